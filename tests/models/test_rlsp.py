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
from tubelet.models.rlsp import ARCHITECTURE, RLSP, RLSPConfig, depth_to_space


def _small(**changes: int) -> RLSP:
    torch.manual_seed(0)
    return RLSP(
        RLSPConfig(**{"num_layers": 4, "channels": 8, "state_channels": 6, **changes})
    ).eval()


def test_output_is_the_recorded_one(recordings):
    model, lq, (expected,), case = golden_case(recordings, "rlsp_A", ARCHITECTURE)
    with torch.inference_mode():
        assert_recorded(model(lq), expected, case)


@pytest.mark.parametrize(
    "changes", [{}, {"num_layers": 2}, {"kernel_px": 5}, {"channels": 16, "state_channels": 1}]
)
def test_configuration_is_inferred(changes):
    model = _small(**changes)
    assert_loads_on_meta(ARCHITECTURE, dict(model.state_dict()), model.config)


@pytest.mark.parametrize(
    "changed",
    [
        {"conv1.weight": torch.zeros(8)},
        {"conv1.weight": torch.zeros(8, 62, 3, 3)},
        {"conv1.weight": torch.zeros(8, 63, 2, 2)},
        {"conv1.weight": torch.zeros(8, 57, 3, 3), "conv_out.weight": torch.zeros(48, 8, 3, 3)},
        {"fc.weight": torch.zeros(1, 1)},
    ],
)
def test_other_state_dicts_are_not_taken_for_it(recordings, changed):
    state = dict(_small().state_dict())
    assert ARCHITECTURE.translate(state) is not None
    assert ARCHITECTURE.translate({**state, **changed}) is None
    assert ARCHITECTURE.translate(published_keys(recordings, "rrn_5L")) is None
    assert ARCHITECTURE.translate({}) is None


def test_channels_go_to_pixels_in_the_order_of_tensorflow():
    x = torch.arange(12.0).reshape(1, 12, 1, 1)  # channel (2·dy + dx)·3 + c
    assert depth_to_space(x, 2)[0, :, :, :].tolist() == [
        [[c, 3 + c], [6 + c, 9 + c]] for c in (0.0, 1.0, 2.0)
    ]


@pytest.mark.parametrize("changes", [{}, {"kernel_px": 5}])
def test_engine_gives_what_the_network_gives(changes):
    assert_online(ARCHITECTURE, _small(**changes))


def test_halo_is_the_reach_of_a_step():
    assert_halo(ARCHITECTURE, _small(), side=31)


def test_time():
    assert_causal_but_for_the_lookahead(_small(), 1)


def test_gradients_reach_every_parameter():
    model = _small().train()
    assert_gradients(model, model(torch.rand(1, 3, 3, 8, 9)))


@pytest.mark.parametrize(
    "changes", [{"scale": 5}, {"num_layers": 1}, {"kernel_px": 2}, {"channels": 0}]
)
def test_bad_configuration_is_refused(changes):
    with pytest.raises(ConfigError, match="must be"):
        RLSPConfig(**changes)
