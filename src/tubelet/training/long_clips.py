"""Short samples of long clips, and a task that trains on each sample as if it were a whole video.

    long clip k   0  1  2  3  …                                  T-1
    sample 0            s ──── s+L-1
    sample 1                            s ──── s+L-1             step k·N + n trains on sample n
    …
    sample N-1       s ──── s+L-1

All samples of a long clip come from the same crop of the same video.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from torch import Tensor, nn

from tubelet.errors import ConfigError, require
from tubelet.ops.pixels import to_float
from tubelet.ops.sizes import round_up
from tubelet.training.restoration import RestorationLoss
from tubelet.training.task import Batch, Losses

__all__ = ["ClipSource", "SampleTask", "Samples", "Sampling", "Starts"]

Starts = Literal["inner", "all"]

_INNER_MARGIN = 2
"""Frames that "inner" leaves free before the first and after the last possible sample."""

_START_STREAM = 1
"""Third part of the seed of starts, which must not depend on the crops of (seed, number)."""


class ClipSource(Protocol):
    """The long clips that samples are cut from."""

    def pixels(self, step: int) -> tuple[Tensor, Tensor]:
        """Return a batch of clips, uint8: lq (B, T, 3, h, w) and gt (B, T, 3, sh, sw).

        It must be a pure function of its argument, the number of the long clip.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How samples are cut from long clips.

    Attributes:
        clip: Frames of a long clip, T.
        length: Frames of a sample, L.
        samples: Samples of a long clip, N.
        starts: "inner" leaves two frames free at both ends of the clip, as published, so that every
            sample has full edges. "all" also trains the ends, where the sweeps start.
        multiple: Clips, samples and their starts are multiples of this many frames; see
            `Contract.frame_multiple`.
        seed: Seed of the starts.

    Raises:
        ConfigError: A number is below 1 or no multiple, or the clip is too short.
    """

    clip: int
    length: int
    samples: int
    starts: Starts = "inner"
    multiple: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        min_count = min(self.clip, self.length, self.samples)
        require(min_count >= 1, "clip, length and samples must be at least 1")
        if self.clip % self.multiple or self.length % self.multiple:
            raise ConfigError(
                f"clip={self.clip} and length={self.length} must be multiples of {self.multiple} "
                "for this network"
            )
        min_clip = self.length + 2 * self._margin
        if self.clip < min_clip:
            raise ConfigError(
                f"clip={self.clip} is too short for samples of length={self.length} with "
                f"starts={self.starts}; it must be at least {min_clip}"
            )

    @property
    def _margin(self) -> int:
        """Frames that stay free at both ends of a clip."""
        if self.starts == "all":
            return 0
        # Algorithm 1
        return round_up(_INNER_MARGIN, self.multiple)

    def draw(self, clip: int) -> list[int]:
        """Draw the first frames of all samples of a long clip.

        Args:
            clip: Number of the long clip, from 0.

        Returns:
            N frame numbers, counted from 0. All clips of a batch share them, because in a batch all
            edges have the same number of frames.

        Source: LRTI-VSR, Algorithm 1: t in {3 … T-L-1}, counted from 1.
        """
        # A function of the clip, not of the steps before it, so that a run can resume anywhere.
        rng = np.random.default_rng((self.seed, clip, _START_STREAM))
        last = self.clip - self.length - self._margin
        possible = range(self._margin, last + 1, self.multiple)
        chosen = rng.integers(0, len(possible), self.samples)
        return [possible[index] for index in chosen.tolist()]


class Samples:
    """Cuts the sample of every step from its long clip.

    Args:
        clips: Long clips.
        sampling: How samples are cut from them. Its frames are those of the network's input.
        between_frames: Frames that the network inserts between two frames of its input; it gets
            every (1 + between_frames)-th frame of lq, and gt has all frames.

    Attributes:
        sampling: See the arguments.
        frame_step: Moments from one input frame to the next: 1 + between_frames.
    """

    def __init__(self, clips: ClipSource, sampling: Sampling, *, between_frames: int = 0) -> None:
        self.sampling = sampling
        self.frame_step = 1 + between_frames
        self._clips = clips
        # The last long clip, which serves several steps.
        self._clip_number = -1
        self._pixels: tuple[Tensor, Tensor] | None = None

    def span(self, step: int) -> range:
        """Return the frames of the sample of a step."""
        clip, number = divmod(step, self.sampling.samples)
        start = self.sampling.draw(clip)[number]
        return range(start, start + self.sampling.length)

    def begins_clip(self, step: int) -> bool:
        """Return whether the sample of a step is the first one of its long clip."""
        return step % self.sampling.samples == 0

    def long_clip(self, step: int) -> tuple[Tensor, Tensor]:
        """Return the long clip of a step, uint8: lq (B, T, 3, h, w) and gt (B, T', 3, sh, sw)."""
        number = step // self.sampling.samples
        if self._pixels is None or self._clip_number != number:
            lq, gt = self._clips.pixels(number)
            # A space-time network restores the omitted frames.
            self._pixels = (lq[:, :: self.frame_step], gt)
            self._clip_number = number
        return self._pixels

    def cut(self, step: int) -> dict[str, Tensor]:
        """Cut out the sample of a step: "lq" (B, L, 3, h, w) and "gt" (B, L', 3, sh, sw)."""
        lq, gt = self.long_clip(step)
        span = self.span(step)
        # Only the sample is converted to float32: gt of a whole clip would take much memory.
        first_moment = self.frame_step * span.start
        last_moment = self.frame_step * (span.stop - 1)
        return {
            "lq": to_float(lq[:, span.start : span.stop]),
            "gt": to_float(gt[:, first_moment : last_moment + 1]),
        }


class SampleTask:
    """Trains on each sample as if it were a whole video.

    It is the control of truncated back-propagation: the same samples in the same order, but without
    states from outside.

    Args:
        samples: Samples of long clips.
        loss: Loss of a sample.
    """

    def __init__(self, samples: Samples, loss: RestorationLoss) -> None:
        self._samples = samples
        self._loss = loss

    def batch(self, step: int) -> Batch:
        """Cut out the sample of a step; see `Samples.cut`."""
        return self._samples.cut(step)

    def losses(self, model: nn.Module, batch: Batch, step: int) -> Iterator[Losses]:
        """Restore the sample, and compare it with gt."""
        del step
        yield self._loss(model, batch["lq"], batch["gt"])
