import pytest
import torch
from torch import Tensor, nn

from tubelet.layers.flows import ClipFlows
from tubelet.layers.recurrence import Edge, clip_frames
from tubelet.layers.store import FeatureStore


class _Counting(nn.Module):
    """Stands in for SpyNet, which would take most of the time, and counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(6, 2, 3, padding=1)
        self.calls = 0

    def flow(self, ref: Tensor, supp: Tensor) -> Tensor:
        return self.body(torch.cat([ref, supp], 1))

    def forward(self, ref: Tensor, supp: Tensor) -> Tensor:
        self.calls += 1
        return self.flow(ref, supp)


@pytest.mark.parametrize("sweeps", [1, 2])
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("beyond", [0, 1, 2])
@pytest.mark.parametrize("num_frames", [1, 2, 4])
def test_flows_are_computed_once_and_leave_nothing(
    num_frames: int, beyond: int, order: int, sweeps: int
) -> None:
    """As sweeps ask for them: at each frame, the flows along as many hops as there are states."""
    clip = torch.rand(1, num_frames, 3, 10, 12)
    around = torch.rand(
        2,
        beyond,
        1,
        3,
        10,
        12,
    )
    before, after = (Edge(tuple(frames), frame_index=7 if beyond else -1) for frames in around)
    frames = clip_frames(clip, before, after)
    spynet = _Counting()
    pairs = set()
    with FeatureStore() as store, torch.no_grad():
        flows = ClipFlows(
            spynet,
            frames,
            num_frames,
            store,
            sweeps=sweeps,
            order=order,
        )
        for _ in range(sweeps):
            for step in (-1, 1):
                for passed, t in enumerate(range(num_frames)[::step]):
                    for hop in range(min(order, passed + beyond)):
                        pair = (t - hop * step, t - (hop + 1) * step)
                        expected = spynet.flow(frames[pair[0]], frames[pair[1]])
                        assert torch.equal(flows.between(*pair), expected)
                        pairs.add(pair)
        assert spynet.calls == len(pairs)
        assert len(store) == 0
