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
from tubelet.models.rsdn import ARCHITECTURE, RSDN, RSDNConfig, decompose


def _small(scale: int = 4) -> RSDN:
    torch.manual_seed(0)
    return RSDN(RSDNConfig(scale=scale, channels=8, num_blocks=2)).eval()


@pytest.mark.parametrize("name", ["rsdn_A", "rsdn_A_damped"])
def test_outputs_are_the_recorded_ones(recordings, name):
    model, lq, outputs, case = golden_case(recordings, name, ARCHITECTURE)
    with torch.inference_mode():
        parts = model.forward_parts(lq)
        for part, expected in zip(parts, outputs, strict=True):
            assert_recorded(part, expected, case)
        assert torch.equal(model(lq), parts[0])


def test_published_names_are_recognized(recordings):
    assert_loads_on_meta(ARCHITECTURE, published_keys(recordings, "rsdn9_128"), RSDNConfig())


@pytest.mark.parametrize("scale", [2, 3])
def test_our_own_names_and_other_scales_are_recognized(scale):
    model = _small(scale)
    assert_loads_on_meta(ARCHITECTURE, dict(model.state_dict()), model.config)


@pytest.mark.parametrize(
    "changed",
    [
        {"neuro.conv_d.weight": torch.zeros(8)},
        {"neuro.conv_d.weight": torch.zeros(8, 63, 3, 3)},
        {"conv.weight": torch.zeros(47, 96, 3, 3)},
    ],
)
def test_other_state_dicts_are_not_taken_for_it(recordings, changed):
    state = dict(_small().state_dict())
    assert ARCHITECTURE.translate(state) is not None
    assert ARCHITECTURE.translate({**state, **changed}) is None
    assert (
        ARCHITECTURE.translate({name: t for name, t in state.items() if ".blocks." not in name})
        is None
    )
    assert ARCHITECTURE.translate(published_keys(recordings, "rrn_5L")) is None
    assert ARCHITECTURE.translate({}) is None


def test_detail_and_structure_sum_up_to_the_frame():
    clip = torch.rand(2, 3, 3, 8, 10)
    detail, structure = decompose(clip)
    torch.testing.assert_close(detail + structure, clip)
    flat = torch.full_like(clip, 0.25)
    torch.testing.assert_close(decompose(flat)[1], flat)


def test_engine_gives_what_the_network_gives():
    assert_online(ARCHITECTURE, _small())


def test_halo_is_the_reach_of_a_step():
    assert_halo(ARCHITECTURE, _small(), side=32)


def test_time():
    assert_causal_but_for_the_lookahead(_small(), 1)


def test_gradients_reach_every_parameter():
    model = _small().train()
    assert_gradients(model, model(torch.rand(1, 3, 3, 8, 10)))


def test_bad_configuration_is_refused():
    with pytest.raises(ConfigError, match="scale=5 must be 2, 3 or 4"):
        RSDNConfig(scale=5)
