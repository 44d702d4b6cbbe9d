import pytest
import torch

from helpers.image_parity import published_keys
from helpers.online_parity import (
    assert_causal_but_for_the_lookahead,
    assert_gradients,
    assert_halo,
    assert_loads_on_meta,
    assert_online,
    assert_recorded,
    golden_case,
)
from tubelet.errors import ConfigError
from tubelet.models.rrn import ARCHITECTURE, RRN, RRNConfig


def _small(scale: int = 4) -> RRN:
    torch.manual_seed(0)
    return RRN(RRNConfig(scale=scale, channels=8, num_blocks=2)).eval()


def test_output_is_the_recorded_one(recordings):
    model, lq, (expected,), case = golden_case(recordings, "rrn_A", ARCHITECTURE)
    with torch.inference_mode():
        assert_recorded(model(lq), expected, case)


@pytest.mark.parametrize(("name", "blocks"), [("rrn_5L", 5), ("rrn_10L", 10)])
def test_published_names_are_recognized(recordings, name, blocks):
    assert_loads_on_meta(
        ARCHITECTURE, published_keys(recordings, name), RRNConfig(num_blocks=blocks)
    )


@pytest.mark.parametrize("scale", [2, 3])
def test_other_scales_are_inferred(scale):
    model = _small(scale)
    assert_loads_on_meta(ARCHITECTURE, dict(model.state_dict()), model.config)


@pytest.mark.parametrize(
    "changed",
    [
        {"neuro.conv_1.weight": torch.zeros(8)},
        {"neuro.conv_1.weight": torch.zeros(8, 63, 3, 3)},
        {"neuro.conv_o.weight": torch.zeros(47, 8, 3, 3)},
    ],
)
def test_other_state_dicts_are_not_taken_for_it(recordings, changed):
    state = dict(_small().state_dict())
    assert ARCHITECTURE.translate(state) is not None
    assert ARCHITECTURE.translate({**state, **changed}) is None
    assert ARCHITECTURE.translate(published_keys(recordings, "rsdn9_128")) is None
    assert ARCHITECTURE.translate({}) is None


def test_engine_gives_what_the_network_gives():
    assert_online(ARCHITECTURE, _small())


def test_halo_is_the_reach_of_a_step():
    assert_halo(ARCHITECTURE, _small(), side=31)


def test_time():
    assert_causal_but_for_the_lookahead(_small(), 1)


@torch.inference_mode()
def test_next_frame_is_the_previous_one_of_the_first_frame_only():
    model = _small()
    lq = torch.rand(1, 3, 3, 9, 9)
    changed = lq.clone()
    changed[:, 2] = 0
    assert torch.equal(model(changed)[:, 1], model(lq)[:, 1])


def test_gradients_reach_every_parameter():
    model = _small().train()
    assert_gradients(model, model(torch.rand(1, 3, 3, 8, 9)))


def test_bad_configuration_is_refused():
    with pytest.raises(ConfigError, match="scale=5 must be 2, 3 or 4"):
        RRNConfig(scale=5)
