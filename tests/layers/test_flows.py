import pytest
import torch
from torch import Tensor

from tubelet.layers.flows import ClipFlows, is_mirrored
from tubelet.layers.spynet import SpyNet
from tubelet.layers.store import FeatureStore


class _Counting(SpyNet):
    """A SpyNet of which the pairs are known that it was asked for."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__()
        self.calls = 0

    def forward(self, ref: Tensor, supp: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(ref, supp)


@pytest.mark.parametrize("uses", [1, 2])
@pytest.mark.parametrize("mirrored", [False, True])
def test_flows_are_computed_once_and_leave_nothing(uses: int, mirrored: bool) -> None:
    clip = torch.rand(1, 4, 3, 10, 12)
    if mirrored:
        clip[:, 2:] = clip[:, :2].flip(1)
    frames, spynet = clip.unbind(1), _Counting()
    with FeatureStore() as store, torch.no_grad():
        flows = ClipFlows(spynet, frames, store, uses=uses, mirrored=is_mirrored(clip))
        for _ in range(uses):
            for t in (2, 1, 0):
                assert torch.equal(flows.between(t, t + 1), SpyNet.forward(spynet, frames[t], frames[t + 1]))
            for t in (1, 2, 3):
                assert torch.equal(flows.between(t, t - 1), SpyNet.forward(spynet, frames[t], frames[t - 1]))
        assert spynet.calls == (3 if mirrored else 6)
        assert len(store) == 0


def test_mirrored_clips_are_told_from_others() -> None:
    clip = torch.rand(2, 3, 3, 4, 4)
    assert is_mirrored(torch.cat([clip, clip.flip(1)], 1))
    assert not is_mirrored(torch.cat([clip, clip], 1))
    assert not is_mirrored(torch.cat([clip, clip.flip(1)[:, 1:]], 1))  # five frames: no two directions are alike
    assert not is_mirrored(clip[:, :1])
    other = torch.cat([clip, clip.flip(1)], 1)
    other[1, 0, 0, 0, 0] += 1  # of one clip of the batch
    assert not is_mirrored(other)
