"""Samples of long clips: where they start, what they hold, and training on each one alone."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tubelet.errors import ConfigError
from tubelet.losses import l1
from tubelet.training.long_clips import Samples, SampleTask, Sampling
from tubelet.training.restoration import RestorationLoss

CHI_SQUARE_99_9 = 56.9
"""Quantile for 28 degrees of freedom: 29 possible starts."""


class Numbered:
    """Long clips whose pixels are the number of the clip and that of the frame."""

    def __init__(self, frames: int) -> None:
        self.frames = frames
        self.asked: list[int] = []

    def pixels(self, step: int) -> tuple[Tensor, Tensor]:
        self.asked.append(step)
        clip = torch.full((2, self.frames), step, dtype=torch.uint8)
        frame = torch.arange(self.frames, dtype=torch.uint8).expand(2, -1)
        pixels = torch.stack([clip, frame, frame], 2)[..., None, None]
        return pixels.expand(-1, -1, -1, 4, 4), pixels.expand(-1, -1, -1, 16, 16)


def _numbers(x: Tensor, channel: int) -> list[int]:
    """The number in each frame of the first clip of a batch."""
    return (x[0, :, channel, 0, 0] * 255).round().int().tolist()


def test_starts_are_uniform_and_reach_both_ends_of_their_range() -> None:
    sampling = Sampling(clip=40, length=8, samples=5)
    starts = np.array([sampling.draw(clip) for clip in range(2000)])
    # {3 … T - L - 1} of the paper, which counts from 1.
    values, counts = np.unique(starts, return_counts=True)
    assert values.tolist() == list(range(2, 31))
    expected = starts.size / 29
    assert ((counts - expected) ** 2 / expected).sum() < CHI_SQUARE_99_9
    # Samples of one clip do not depend on each other.
    assert abs(np.corrcoef(starts[:, 0], starts[:, 1])[0, 1]) < 0.1


def test_starts_can_include_the_ends_and_depend_on_the_seed() -> None:
    sampling = Sampling(clip=6, length=4, samples=3, starts="all")
    assert {start for clip in range(99) for start in sampling.draw(clip)} == {0, 1, 2}
    one, other = (
        Sampling(clip=99, length=4, samples=9),
        Sampling(clip=99, length=4, samples=9, seed=1),
    )
    assert one.draw(3) == one.draw(3)
    assert one.draw(3) != one.draw(4)
    assert one.draw(3) != other.draw(3)


def test_starts_and_lengths_can_be_multiples() -> None:
    sampling = Sampling(clip=12, length=4, samples=3, multiple=2)
    assert {start for clip in range(99) for start in sampling.draw(clip)} == {2, 4, 6}
    for fields in ({"clip": 13, "length": 4}, {"clip": 12, "length": 3}):
        with pytest.raises(ConfigError, match=r"must be multiples of 2 for this network"):
            Sampling(samples=3, multiple=2, **fields)


def test_a_sample_is_a_part_of_its_clip() -> None:
    source = Numbered(12)
    samples = Samples(source, Sampling(clip=12, length=3, samples=4))
    for step in range(8):
        batch = samples.cut(step)
        start = samples.sampling.draw(step // 4)[step % 4]
        assert samples.span(step) == range(start, start + 3)
        assert samples.begins_clip(step) == (step in (0, 4))
        for name, side in (("lq", 4), ("gt", 16)):
            assert batch[name].shape == (2, 3, 3, side, side)
            assert batch[name].dtype == torch.float32
            assert _numbers(batch[name], 0) == [step // 4] * 3
            assert _numbers(batch[name], 1) == list(samples.span(step))
    # A clip is read once for all its samples.
    assert source.asked == [0, 1]


def test_a_space_time_network_gets_every_second_frame() -> None:
    # Five frames of lq, nine of gt.
    sampling = Sampling(clip=5, length=2, samples=9, starts="all")
    samples = Samples(Numbered(9), sampling, between_frames=1)
    for step in range(9):
        batch = samples.cut(step)
        start = 2 * samples.span(step).start
        assert _numbers(batch["lq"], 1) == [start, start + 2]
        assert _numbers(batch["gt"], 1) == [start, start + 1, start + 2]


def test_the_control_sees_a_sample_without_states() -> None:
    seen = []

    class Look(nn.Module):
        def forward(self, lq: Tensor, *edges: object) -> Tensor:
            seen.append((lq, edges))
            return lq

    samples = Samples(Numbered(12), Sampling(clip=12, length=3, samples=4))
    task = SampleTask(samples, RestorationLoss(pixel=lambda sr, gt: l1(sr, gt[..., :4, :4])))
    batch = task.batch(5)
    (losses,) = task.losses(Look(), batch, 5)
    assert losses["pixel"] == 0
    ((lq, edges),) = seen
    assert torch.equal(lq, samples.cut(5)["lq"])
    assert edges == ()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"clip": 11}, "clip=11 is too short for samples of length=8 with starts=inner; .*12"),
        ({"clip": 7, "starts": "all"}, "clip=7 is too short .* starts=all; .*at least 8"),
        ({"samples": 0}, "samples must be at least 1"),
        ({"length": 0}, "length and samples must be at least 1"),
    ],
)
def test_what_does_not_fit_is_refused(fields: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Sampling(**{"clip": 40, "length": 8, "samples": 5, **fields})
    assert Sampling(clip=12, length=8, samples=5).draw(0) == [2] * 5
