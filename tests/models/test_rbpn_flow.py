import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tubelet.models.rbpn_flow import estimate_flow
from tubelet.ops import backward_warp


def _texture(height: int = 48, width: int = 64) -> Tensor:
    torch.manual_seed(0)
    coarse = torch.rand(1, 3, height // 4, width // 4)
    return functional.interpolate(
        coarse, (height, width), mode="bicubic", align_corners=False
    ).clamp(0, 1)


@pytest.mark.parametrize("moved", [(1.5, -0.75), (4.0, 3.0)])
def test_finds_a_translation(moved: tuple[float, float]) -> None:
    supp = _texture()
    flow = torch.tensor(moved).view(1, 2, 1, 1).expand(1, 2, 48, 64)
    ref = backward_warp(supp, flow, padding="border")
    estimate = estimate_flow(ref, supp)
    error = (estimate - flow).norm(dim=1)[:, 8:-8, 8:-8].mean()
    assert error < 0.05 * flow.norm(dim=1).mean()


def test_finds_no_motion_between_equal_frames() -> None:
    frame = _texture()
    assert estimate_flow(frame, frame).abs().max() < 1e-3


def test_the_items_of_a_batch_are_independent() -> None:
    ref = torch.cat([_texture(), _texture().flip(-1)])
    supp = torch.cat([_texture().roll(1, -1), _texture()])
    difference = (estimate_flow(ref, supp)[:1] - estimate_flow(ref[:1], supp[:1])).abs()
    # Sums of different lengths round differently.
    assert difference.mean() < 1e-3


@pytest.mark.parametrize("size", [(1, 1), (7, 33)])
def test_small_frames(size: tuple[int, int]) -> None:
    flow = estimate_flow(torch.rand(1, 3, *size), torch.rand(1, 3, *size))
    assert flow.shape == (1, 2, *size)
    assert flow.isfinite().all()
