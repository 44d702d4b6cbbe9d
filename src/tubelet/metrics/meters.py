"""The two kinds of meters: one scores each frame, the other each pair of consecutive frames."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from tubelet.errors import InputError

__all__ = ["FrameMeter", "PairMeter", "Reference", "mean_of"]


def mean_of(values: Sequence[float]) -> float:
    """Return the mean of the values that are not NaN; NaN if there are none."""
    numbers = [value for value in values if not math.isnan(value)]
    if not numbers:
        return math.nan
    return math.fsum(numbers) / len(numbers)


class Reference:
    """Checker of the shapes of a clip's frames and of their references; its errors name the frame.

    Args:
        name: Name of the metric, for messages.
        required: Every frame must have its ground truth.
    """

    def __init__(self, name: str, *, required: bool) -> None:
        self._name = name
        self._required = required
        # Of the frame before: its shape, and whether it had a reference.
        self._shape: torch.Size | None = None
        self._has_reference: bool | None = None
        self._num_frames = 0

    def check(self, sr: Tensor, gt: Tensor | None) -> None:
        """Check the next frame.

        Args:
            sr: Restored frame, (3, H, W).
            gt: Ground truth, or None.

        Raises:
            InputError: A shape is not (3, H, W) or differs from the frame before or from the
                reference, or the reference is absent.
        """
        frame = f"{self._name}, frame {self._num_frames}"
        if sr.ndim != 3 or sr.shape[0] != 3:
            raise InputError(f"{frame} is {tuple(sr.shape)}; it must be (3, H, W)")
        if gt is None:
            # A clip has a reference for every frame, or for none.
            if self._required or self._has_reference:
                raise InputError(f"{frame} has no reference, and {self._name} compares with one")
        elif gt.shape != sr.shape:
            raise InputError(
                f"{frame} is {_format_size(sr)} but its reference is {_format_size(gt)}; "
                "they must have the same size"
            )
        if self._shape is not None and sr.shape != self._shape:
            _, height, width = self._shape
            raise InputError(
                f"{frame} is {_format_size(sr)} after frames of {width}×{height}; "
                "all frames of a clip must have the same size"
            )
        self._shape = sr.shape
        self._has_reference = gt is not None
        self._num_frames += 1


def _format_size(x: Tensor) -> str:
    return f"{x.shape[-1]}×{x.shape[-2]}" if x.ndim == 3 else str(tuple(x.shape))


class FrameMeter:
    """A meter that scores every frame by itself.

    Args:
        name: Name of the metric, for messages.
        score: Maps a frame (3, H, W) in [0, 1] and its reference to a number. The reference is None
            for a metric without one.
        needs_reference: `score` compares with the ground truth; otherwise it never gets it.
    """

    def __init__(
        self,
        name: str,
        score: Callable[[Tensor, Tensor | None], float],
        *,
        needs_reference: bool,
    ) -> None:
        self._name = name
        self._score = score
        self._needs_reference = needs_reference
        self._reference = Reference(name, required=needs_reference)
        self._values = array("d")

    def update(self, sr: Tensor, gt: Tensor | None) -> None:
        """Score the next frame."""
        if not self._needs_reference:
            gt = None
        self._reference.check(sr, gt)
        try:
            with torch.inference_mode():
                self._values.append(self._score(sr, gt))
        except ValueError as error:
            raise InputError(f"{self._name}: {error}") from error

    def values(self) -> list[float]:
        """Return a score for each frame."""
        return list(self._values)

    def mean(self) -> float:
        """Return the clip's score."""
        return mean_of(self.values())


class PairMeter:
    """A meter that scores every frame together with the one before; the first frame has NaN.

    Args:
        name: Name of the metric, for messages.
        prepare: Maps a frame and its reference to the data that `score` needs, which is kept until
            the next frame is scored.
        score: Maps the data of the frame before and of the current one to a number.
        needs_reference: A frame without ground truth is an error.
    """

    def __init__(
        self,
        name: str,
        prepare: Callable[[Tensor, Tensor | None], Any],
        score: Callable[[Any, Any], float],
        *,
        needs_reference: bool,
    ) -> None:
        self._name = name
        self._prepare = prepare
        self._score = score
        self._reference = Reference(name, required=needs_reference)
        self._previous: Any = None
        self._values = array("d")

    def update(self, sr: Tensor, gt: Tensor | None) -> None:
        """Score the next frame against the one before."""
        self._reference.check(sr, gt)
        try:
            with torch.inference_mode():
                current = self._prepare(sr, gt)
                score = self._score(self._previous, current) if self._values else math.nan
                self._values.append(score)
        except ValueError as error:
            raise InputError(f"{self._name}: {error}") from error
        self._previous = current

    def values(self) -> list[float]:
        """Return a score for each frame, NaN for the first one and where none could be computed."""
        return list(self._values)

    def mean(self) -> float:
        """Return the clip's score, frames without one left out."""
        return mean_of(self.values())
