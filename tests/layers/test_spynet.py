from pathlib import Path

import pytest
import torch

from golden import recorded, recorded_input, rules
from tubelet.layers.spynet import SpyNet, rename_spynet
from tubelet.ops import backward_warp


@pytest.mark.parametrize("case", ["spynet_32mult", "spynet_odd"])
def test_recorded_outputs(shared: Path, case: str) -> None:
    description, (expected,) = recorded(shared, case)
    network = SpyNet()
    kept = {name: network.state_dict()[name] for name in description["kept"]}
    fill = rules(shared).fill
    state = {name: torch.from_numpy(fill(name, shape)) for name, (_, shape) in description["state_dict"].items()}
    network.load_state_dict({**state, **kept}, strict=True)
    ref, supp = (
        recorded_input(shared, key, description["inputs"][name])
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
    """Levels that add a constant: what they add is in pixels of their level, and of the stretched frame."""
    network = SpyNet()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        network.basic_module[-2].basic_module[-1].bias.copy_(torch.tensor([1.0, -2.0]))
        flow = network(torch.rand(1, 3, 32, 48), torch.rand(1, 3, 32, 48))  # stretched to 32×64
    torch.testing.assert_close(flow[0, :, 5, 7], torch.tensor([2.0 * 48 / 64, -4.0]))
    ramp = torch.arange(48.0).expand(1, 1, 32, 48)
    assert float(backward_warp(ramp, flow)[0, 0, 10, 20]) == pytest.approx(21.5)


def test_names_of_mmagic() -> None:
    state = {f"spynet.basic_module.2.basic_module.{i}.conv.bias": torch.tensor(i) for i in range(5)}
    renamed = rename_spynet({**state, "fusion.conv.weight": torch.tensor(7)})
    assert {name: int(value) for name, value in renamed.items()} == {
        **{f"spynet.basic_module.2.basic_module.{2 * i}.bias": i for i in range(5)},
        "fusion.conv.weight": 7,
    }


def test_gradients_reach_every_parameter() -> None:
    network = SpyNet()
    network(torch.rand(1, 3, 40, 33), torch.rand(1, 3, 40, 33)).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in network.parameters())
