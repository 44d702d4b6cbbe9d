from pathlib import Path

import pytest
import torch
from torch import Tensor

from helpers.recordings import recorded, recorded_input
from tubelet.layers.patch_align import align_patches, patch_mean_flow


@pytest.mark.parametrize("case", ["psrt_patch_align_A", "psrt_patch_align_pad_A"])
@pytest.mark.parametrize("channels", [6, 24])
def test_gives_the_recorded_output(recordings: Path, case: str, channels: int) -> None:
    """Exactly: it copies pixels. With many channels in channels_last it copies rows of a table."""
    description, (expected,) = recorded(recordings, case)
    shapes = {name: tuple(shape) for name, shape in description["inputs"].items()}
    feat = (recorded_input(recordings, case, shapes["x"]) - 0.5) * 2
    flow = (recorded_input(recordings, f"{case}:flow", shapes["flow"]) - 0.5) * 24
    feat = feat.repeat(1, channels // 6, 1, 1).contiguous(memory_format=torch.channels_last)
    aligned = align_patches(feat, flow)
    assert torch.equal(aligned, expected.repeat(1, channels // 6, 1, 1))


def _mean_of_patch(flow: Tensor, y: int, x: int) -> Tensor:
    """Average over a patch whose pixels beyond the border are mirrored: (2,)."""
    height, width = flow.shape[-2:]

    def mirrored(position: int, size: int) -> int:
        return position if position < size else 2 * (size - 1) - position

    total = torch.zeros(2, dtype=flow.dtype)
    for line in range(y // 8 * 8, y // 8 * 8 + 8):
        for column in range(x // 8 * 8, x // 8 * 8 + 8):
            total += flow[:, mirrored(line, height), mirrored(column, width)]
    return total / 64


def test_every_pixel_moves_with_the_mean_of_its_patch() -> None:
    torch.manual_seed(0)
    flow = 4 * torch.randn(2, 2, 12, 13, dtype=torch.float64)
    feat = torch.randn(2, 3, 12, 13, dtype=torch.float64)
    expected = torch.zeros_like(feat)
    for b in range(2):
        for y in range(12):
            for x in range(13):
                dx, dy = _mean_of_patch(flow[b], y, x).tolist()
                line, column = round(y + dy), round(x + dx)
                if 0 <= line < 12 and 0 <= column < 13:
                    expected[b, :, y, x] = feat[b, :, line, column]
    assert torch.equal(align_patches(feat, flow), expected)


def test_flow_has_no_gradient_and_features_have_one() -> None:
    feat = torch.randn(1, 20, 8, 8, requires_grad=True)
    flow = torch.randn(1, 2, 8, 8, requires_grad=True)
    for x in (feat, feat.contiguous(memory_format=torch.channels_last)):
        gradients = torch.autograd.grad(
            align_patches(x, flow).sum(), [feat, flow], allow_unused=True
        )
        assert gradients[0].any()
        assert gradients[1] is None or not gradients[1].any()


@pytest.mark.parametrize("size", [(1, 1), (3, 9), (8, 16)])
def test_a_flow_that_is_the_same_everywhere_stays(size: tuple[int, int]) -> None:
    flow = torch.tensor([1.5, -2.0]).view(1, 2, 1, 1).expand(1, 2, *size)
    torch.testing.assert_close(patch_mean_flow(flow), flow.contiguous())
