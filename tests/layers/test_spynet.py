from pathlib import Path

import pytest
import torch
from torch import nn

from helpers.recordings import recorded, recorded_input, rules
from tubelet.errors import CheckpointError
from tubelet.layers.spynet import SpyNet, load_spynet
from tubelet.ops import backward_warp, imresize


@pytest.mark.parametrize("case", ["spynet_32mult", "spynet_odd"])
def test_recorded_outputs(recordings: Path, case: str) -> None:
    description, (expected,) = recorded(recordings, case)
    network = SpyNet()
    buffers = {name: network.state_dict()[name] for name in description["kept"]}
    fill = rules(recordings).fill
    state = {
        name: torch.from_numpy(fill(name, shape))
        for name, (_, shape) in description["state_dict"].items()
    }
    network.load_state_dict({**state, **buffers}, strict=True)
    ref, supp = (
        recorded_input(recordings, key, description["inputs"][name])
        for key, name in ((case, "ref"), (f"{case}:supp", "supp"))
    )
    with torch.no_grad():
        flow = network(ref, supp)
    tolerance = max(1e-4, 20 * description["float64_max_abs_over_std"]) * float(expected.std())
    torch.testing.assert_close(flow, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("size", [(1, 1), (9, 33), (32, 32)])
def test_any_size(size: tuple[int, int]) -> None:
    """The published code fails up to 32 pixels."""
    with torch.no_grad():
        flow = SpyNet()(torch.rand(1, 3, *size), torch.rand(1, 3, *size))
    assert flow.shape == (1, 2, *size)
    assert flow.isfinite().all()


def test_direction_and_unit_of_the_flow() -> None:
    """Levels that add a constant, in pixels of their level and of the stretched frame."""
    network = SpyNet()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        network.basic_module[-2].basic_module[-1].bias.copy_(torch.tensor([1.0, -2.0]))
        # Stretched to 32×64.
        flow = network(torch.rand(1, 3, 32, 48), torch.rand(1, 3, 32, 48))
    torch.testing.assert_close(flow[0, :, 5, 7], torch.tensor([2.0 * 48 / 64, -4.0]))
    ramp = torch.arange(48.0).expand(1, 1, 32, 48)
    assert float(backward_warp(ramp, flow)[0, 0, 10, 20]) == pytest.approx(21.5)


def test_gradients_reach_every_parameter() -> None:
    network = SpyNet()
    network(torch.rand(1, 3, 40, 33), torch.rand(1, 3, 40, 33)).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in network.parameters())


def test_levels_of_the_pyramid() -> None:
    network = SpyNet()
    ref = torch.rand(1, 3, 32, 64)
    supp = torch.rand(1, 3, 32, 64)
    with torch.no_grad():
        flows = network.levels(ref, supp)
        assert [flow.shape[2:] for flow in flows] == [(2**k, 2 ** (k + 1)) for k in range(6)]
        torch.testing.assert_close(flows[-1], network(ref, supp))
        halves = [torch.nn.functional.avg_pool2d(frame, 2) for frame in (ref, supp)]
        few = network.levels(halves[0], halves[1], 5)
    for flow, same in zip(few, flows[:-1], strict=True):
        torch.testing.assert_close(flow, same, atol=1e-5, rtol=1e-4)


def test_flow_at_several_sizes() -> None:
    torch.manual_seed(0)
    network = SpyNet().eval()
    ref, supp = torch.rand(2, 1, 3, 64, 96)
    with torch.no_grad():
        flows = network.by_scale(ref, supp, num_scales=3)
        assert torch.equal(flows[0], network(ref, supp))
        for flow, level in zip(flows, network.levels(ref, supp)[::-1], strict=False):
            assert torch.equal(flow, level)
        # Of other sizes, each result has the pixels of its size.
        narrow = network.by_scale(ref[..., :72], supp[..., :72], num_scales=3)
        stretched = [
            torch.nn.functional.interpolate(x[..., :72], (64, 96), mode="bilinear")
            for x in (ref, supp)
        ]
        for flow, level in zip(narrow, network.levels(*stretched)[::-1], strict=False):
            height, width = level.shape[-2:]
            expected = torch.nn.functional.interpolate(
                level, (height, 3 * width // 4), mode="bilinear"
            )
            torch.testing.assert_close(flow[:, 0], expected[:, 0] * 3 / 4)
            torch.testing.assert_close(flow[:, 1], expected[:, 1])


def test_half_precision_keeps_the_unit_of_the_flow() -> None:
    """bfloat16 cannot represent 20 pixels and a sixteenth, but each level's residual."""
    network = SpyNet()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        network.basic_module[-2].basic_module[-1].bias.fill_(10.0)
        network.basic_module[-1].basic_module[-1].bias.fill_(0.0625)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            flow = network(torch.rand(1, 3, 32, 32), torch.rand(1, 3, 32, 32))
    torch.testing.assert_close(flow, torch.full_like(flow, 20.0625))


def test_embedded_weights_see_motion() -> None:
    texture = imresize(
        torch.rand(1, 3, 20, 20, generator=torch.Generator().manual_seed(0)), 5
    ).clamp(0, 1)
    # (x, y) of ref is (x - 3, y + 2) of supp
    ref = texture[..., 2:98, :96]
    supp = texture[..., :96, 3:99]
    network = nn.Sequential(SpyNet(), nn.Conv2d(1, 1, 1), SpyNet())
    assert load_spynet(network) == 2
    for spynet in (network[0], network[2]):
        with torch.no_grad():
            flow = spynet(ref, supp)
        error = flow - torch.tensor([-3.0, 2.0]).view(1, 2, 1, 1)
        assert error[..., 8:-8, 8:-8].square().sum(1).sqrt().mean() < 1.2
    assert load_spynet(nn.Conv2d(1, 1, 1)) == 0


def test_damaged_embedded_weights(tmp_path: Path) -> None:
    (tmp_path / "parts.json").write_text('{"spynet": {"sha256": "0"}}', encoding="utf-8")
    with pytest.raises(CheckpointError, match="missing or damaged"):
        load_spynet(SpyNet(), folder=tmp_path)
