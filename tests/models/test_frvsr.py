import pytest
import torch
from torch import Tensor

from helpers.image_parity import published_keys
from helpers.online_parity import (
    assert_causal_but_for_the_lookahead,
    assert_gradients,
    assert_loads_on_meta,
    assert_online,
    assert_recorded,
    golden_case,
    reach_px,
)
from helpers.recordings import recorded
from tubelet.errors import ConfigError
from tubelet.models.frvsr import ARCHITECTURE, FRVSR, BicubicUpsampler, FRVSRConfig, space_to_depth


def _small(**changes) -> FRVSR:
    torch.manual_seed(0)
    return FRVSR(FRVSRConfig(**{"channels": 8, "num_blocks": 1, **changes})).eval()


@pytest.mark.parametrize("name", ["frvsr_bd_A", "frvsr_bd_x2_A", "frvsr_bi_A_odd"])
def test_output_is_the_recorded_one(recordings, name):
    described, _ = recorded(recordings, name)
    kernels = BicubicUpsampler(described["constructor"]["scale"]).kernels
    constants: dict[str, Tensor] = dict.fromkeys(described["kept"], kernels)
    model, lq, (expected,), case = golden_case(recordings, name, ARCHITECTURE, constants)
    with torch.inference_mode():
        assert_recorded(model(lq), expected, case)


def test_published_names_are_recognized(recordings):
    assert_loads_on_meta(ARCHITECTURE, published_keys(recordings, "frnet_nb10"), FRVSRConfig())


@pytest.mark.parametrize("changes", [{"scale": 2}, {"upsample": "bicubic"}, {"num_blocks": 3}])
def test_configuration_is_inferred(changes):
    model = _small(**changes)
    assert_loads_on_meta(ARCHITECTURE, dict(model.state_dict()), model.config)


@pytest.mark.parametrize(
    "changed",
    [
        {"srnet.conv_in.0.weight": torch.zeros(8)},
        {"srnet.conv_in.0.weight": torch.zeros(8, 50, 3, 3)},
    ],
)
def test_other_state_dicts_are_not_taken_for_it(recordings, changed):
    state = dict(_small().state_dict())
    assert ARCHITECTURE.translate(state) is not None
    assert ARCHITECTURE.translate({**state, **changed}) is None
    assert ARCHITECTURE.translate(published_keys(recordings, "rrn_5L")) is None
    assert ARCHITECTURE.translate({}) is None


def test_pixels_go_to_channels_in_the_order_of_tensorflow():
    x = torch.arange(12.0).reshape(1, 3, 2, 2)
    assert space_to_depth(x, 2).flatten().tolist() == [0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11]


def test_bicubic_upsampling_keeps_the_pixels_it_lies_on_and_ramps():
    ramp = torch.arange(8.0)[None, None, None].expand(1, 2, 5, 8)
    up = BicubicUpsampler(4)(ramp)
    assert torch.equal(up[..., ::4, ::4], ramp)
    assert up[0, 0, 0, 10] == pytest.approx(2.5, abs=1e-5)


@pytest.mark.parametrize("upsample", ["bilinear", "bicubic"])
def test_engine_gives_what_the_network_gives(upsample):
    model = _small(upsample=upsample)
    assert_online(ARCHITECTURE, model, ((1, 16, 24), (2, 24, 16), (3, 32, 256)))


@pytest.fixture(scope="module")
def flows_with_a_hole() -> list[tuple[int, torch.Tensor]]:
    """Flows of an image with one pixel that is not a number, and where it is; all upsamplings share them.

    How far they see depends on the position of the pixel in the pooling grid.
    """
    side, model = 144, _small().double()
    flows = []
    for center in range(side // 2, side // 2 + 8):
        lq = torch.rand(1, 3, side, side, dtype=torch.float64)
        lq[..., center, center] = torch.nan
        with torch.inference_mode():
            flows.append((center, model.fnet(lq, lq)))
    return flows


@pytest.mark.parametrize("upsample", ["bilinear", "bicubic"])
def test_halo_covers_flow_and_network(upsample, flows_with_a_hole):
    model = _small(upsample=upsample).double()
    side = 144
    config = model.config
    halo = ARCHITECTURE.contract(model.config).halo_px
    with torch.inference_mode():
        flow_reach = max(
            reach_px(model.upsample_func(flow).isnan(), center, config.scale)
            for center, flow in flows_with_a_hole
        )
        warped = torch.rand(1, 48, side, side, dtype=torch.float64)
        warped[..., side // 2, side // 2] = torch.nan
        sr = model.srnet(torch.rand_like(warped[:, :3]), warped)
        sr_reach = reach_px(sr.isnan(), side // 2, config.scale)
    # The warp reads the previous output up to 24 pixels away.
    reach = max(flow_reach, 25) + sr_reach
    assert halo - 2 <= reach <= halo


def test_time():
    assert_causal_but_for_the_lookahead(_small(), 0)


def test_gradients_reach_every_parameter():
    model = _small().train()
    assert_gradients(model, model(torch.rand(1, 2, 3, 16, 17)))


@pytest.mark.parametrize("changes", [{"scale": 3}, {"num_blocks": 0}, {"upsample": "nearest"}])
def test_bad_configuration_is_refused(changes):
    with pytest.raises(ConfigError, match="must be"):
        FRVSRConfig(**changes)
