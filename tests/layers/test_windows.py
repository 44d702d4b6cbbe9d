from math import prod

import pytest
import torch

from helpers.recordings import recorded, recorded_input
from tubelet.layers.windows import (
    WindowSpan,
    fit_windows,
    map_windows,
    pad_to_windows,
    split_windows,
    window_blocks,
    window_spans,
    zero_padded_blocks,
)


def _parts(grid, window, shift):
    """Number the positions of a grid by the window that they are in."""
    x = torch.zeros(1, *grid, 1)
    number = 0
    for size, place in window_blocks(x, window, shift, "auto"):
        counts = [(s.stop - s.start) // n for s, n in zip(place[1:], size, strict=True)]
        parts = torch.arange(number, number + prod(counts)).view(1, *counts, 1).float()
        for axis, side in enumerate(size):
            parts = parts.repeat_interleave(side, 1 + axis)
        x[place] = parts
        number += prod(counts)
    return x


def test_a_shift_cuts_the_first_and_the_last_window():
    assert window_spans(12, 4, 2) == [
        WindowSpan(0, 2, 1),
        WindowSpan(2, 4, 2),
        WindowSpan(10, 2, 1),
    ]
    assert window_spans(12, 4, 0) == [WindowSpan(0, 4, 3)]
    assert window_spans(4, 4, 2) == [WindowSpan(0, 2, 1), WindowSpan(2, 2, 1)]
    assert window_spans(2, 4, 3) == [WindowSpan(0, 2, 1)]


def test_windows_and_their_shift_are_the_recorded_ones(recordings):
    description, (windows, joined, mask, *_) = recorded(recordings, "swin_windows_A")
    x = recorded_input(recordings, "swin_windows_A", tuple(description["inputs"]["x"])).permute(
        0, 2, 3, 1
    )
    assert torch.equal(joined, x)
    rolled = x.roll((-4, -4), (1, 2))
    assert torch.equal(split_windows(rolled, (8, 8)), windows.flatten(1, 2))
    # The windows that the shift does not cut.
    assert torch.equal(split_windows(x[:, 4:12, 4:20], (8, 8)), windows[:2].flatten(1, 2))
    # (6, 64, 1)
    parts = split_windows(_parts((16, 24), (8, 8), (4, 4)).roll((-4, -4), (1, 2)), (8, 8))
    # The mask separates tokens of different windows of the partition.
    assert torch.equal(parts.ne(parts.mT) * -100.0, mask)


def test_windows_of_a_clip_and_their_shift_are_the_recorded_ones(recordings):
    _, (mask, *_) = recorded(recordings, "swin3d_windows_A")
    # 13×20 pixels, extended to 16×24. The recorded shift of three frames is that of a whole window.
    parts = _parts((3, 16, 24), (3, 8, 8), (0, 4, 4))
    rolled = split_windows(parts.roll((-4, -4), (2, 3)), (3, 8, 8))  # (6, 192, 1)
    assert torch.equal(rolled.ne(rolled.mT) * -100.0, mask)


@pytest.mark.parametrize(
    ("grid", "window", "shift"),
    [
        ((40, 56), (8, 8), (4, 4)),
        ((16, 800), (8, 8), (0, 0)),
        ((5, 6), (4, 4), (2, 2)),
        ((4, 12, 20), (2, 4, 4), (1, 2, 2)),
    ],
)
def test_a_few_windows_at_once_are_all_windows(grid, window, shift):
    torch.manual_seed(0)
    x, y = torch.randn(2, 2, *grid, 3)

    def apply(windows, size):
        first, second = windows
        assert first.shape[1] == prod(size)
        return first.cumsum(1) * second.mean(1, keepdim=True)

    def run(x, y, backend):
        return map_windows(apply, [x, y], window=window, shift=shift, backend=backend)

    before = x.clone()
    whole = run(x, y, "reference")
    torch.testing.assert_close(run(x, y, "auto"), whole)
    torch.testing.assert_close(run(x[:1], y[:1], "reference")[0], whole[0])
    assert torch.equal(x, before)


def test_blocks_are_small_on_a_cpu_and_cover_everything():
    x = torch.zeros(1, 48, 640, 1)
    assert len(list(window_blocks(x, (8, 8), (0, 0), "reference"))) == 1
    places = [place for _, place in window_blocks(x, (8, 8), (4, 4), "auto")]
    for place in places:
        assert x[place].numel() <= 2048
        x[place] += 1
    assert x.unique().tolist() == [1]
    parts = _parts((16, 24), (8, 8), (4, 4))
    assert parts.unique().numel() == 3 * 4


def test_gradients_are_those_of_the_function():
    torch.manual_seed(0)
    x = torch.randn(
        1,
        6,
        10,
        2,
        dtype=torch.float64,
        requires_grad=True,
    )

    def step(tensor):
        return map_windows(
            lambda windows, _: windows[0].softmax(1),
            [tensor],
            window=(4, 4),
            shift=(2, 2),
            backend="reference",
        )

    assert torch.autograd.gradcheck(step, [x])


def test_images_are_mirrored_to_whole_windows():
    x = torch.rand(1, 3, 5, 8)
    padded = pad_to_windows(x, 8)
    assert torch.equal(padded[:, :, 5:], x[:, :, 1:4].flip(2))
    assert pad_to_windows(padded, 8) is padded
    tiny = pad_to_windows(torch.rand(1, 3, 2, 3), 8)
    assert torch.equal(tiny[..., 3:], tiny[..., 2:3].expand(1, 3, 8, 5))


def test_axes_of_one_window_are_not_shifted():
    assert fit_windows((2, 8, 9), (6, 8, 8), (3, 4, 4)) == ((2, 8, 8), (0, 0, 4))


@pytest.mark.parametrize("backend", ["reference", "auto"])
@pytest.mark.parametrize(
    ("grid", "window", "shift"),
    [
        ((5, 9), (4, 4), (2, 2)),
        ((5, 13, 60), (2, 8, 8), (1, 4, 4)),
        ((6, 8, 8), (2, 8, 8), (0, 0, 0)),
    ],
)
def test_zeros_complete_the_windows_of_a_rolled_grid(grid, window, shift, backend):
    torch.manual_seed(0)
    x = torch.randn(2, *grid, 3)
    padded = torch.zeros(2, *(-(-n // w) * w for n, w in zip(grid, window, strict=True)), 3)
    padded[tuple(slice(n) for n in x.shape)] = x
    # Where each position is in its window of the rolled grid.
    within = torch.stack(
        torch.meshgrid(*(torch.arange(n) for n in padded.shape[1:-1]), indexing="ij"), -1
    )
    within = (within - torch.tensor(shift)) % torch.tensor(window)

    covered = torch.zeros_like(x)
    for block in zero_padded_blocks(x, window=window, shift=shift, backend=backend):
        whole = tuple(
            slice(s.start, s.start + n) for s, n in zip(block.index[1:], block.sides, strict=True)
        )
        windows = block.split(x[block.index])
        assert torch.equal(windows, split_windows(padded[:, *whole], block.size))
        assert torch.equal(within[whole].flatten(0, -2)[0], torch.tensor(block.offset))
        assert torch.equal(block.join(windows, x[block.index]), x[block.index])
        covered[block.index] += 1
    assert covered.unique().tolist() == [1]


def test_zeros_can_extend_a_grid_further_than_to_whole_windows():
    x = torch.ones(1, 9, 5, 2)
    blocks = list(
        zero_padded_blocks(x, window=(4, 8), shift=(2, 4), backend="reference", padded=(16, 8))
    )
    # Without the further zeros, the last window would end at line 12.
    assert [(block.index[1], block.sides[0]) for block in blocks[-2:]] == [(slice(2, 9), 12)] * 2
