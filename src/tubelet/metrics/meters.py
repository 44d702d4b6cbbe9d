"""The two shapes of a meter: one score a frame, and one score for each pair of frames that follow each other."""

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
    """Average values, those that are NaN left out; NaN where nothing is left."""
    kept = [value for value in values if not math.isnan(value)]
    return math.fsum(kept) / len(kept) if kept else math.nan


class Reference:
    """Checks that the frames of a clip fit together, and says of which frame it was otherwise.

    Args:
        name: of the metric, for the message.
        required: whether every frame must come with its ground truth.
    """

    def __init__(self, name: str, *, required: bool) -> None:
        self._name = name
        self._required = required
        self._shape: torch.Size | None = None
        self._referenced: bool | None = None
        self._frames = 0

    def check(self, sr: Tensor, gt: Tensor | None) -> None:
        """Check the next frame.

        Raises:
            InputError: a shape is not (3, H, W), differs from the frame before or from the reference, or the
                reference is absent.
        """
        at = f"{self._name}, frame {self._frames}"
        if sr.ndim != 3 or sr.shape[0] != 3:
            raise InputError(f"{at} is {tuple(sr.shape)}; it must be (3, H, W)")
        if gt is None and (self._required or self._referenced):
            raise InputError(f"{at} has no reference, and {self._name} compares with one")
        if gt is not None and gt.shape != sr.shape:
            raise InputError(
                f"{at} is {_size(sr)} but its reference is {_size(gt)}; they must be of one size"
            )
        if self._shape is not None and sr.shape != self._shape:
            raise InputError(
                f"{at} is {_size(sr)} after frames of {self._shape[2]}×{self._shape[1]}; one clip, one size"
            )
        self._shape, self._referenced = sr.shape, gt is not None
        self._frames += 1


def _size(x: Tensor) -> str:
    return f"{x.shape[-1]}×{x.shape[-2]}" if x.ndim == 3 else str(tuple(x.shape))


class FrameMeter:
    """Scores every frame alone.

    Args:
        name: of the metric, for messages.
        score: maps a frame (3, H, W) in [0, 1] and its reference, which is None for a metric without one, to a
            number.
        needs_reference: whether `score` compares with the ground truth; otherwise it never sees it.
    """

    def __init__(
        self, name: str, score: Callable[[Tensor, Tensor | None], float], *, needs_reference: bool
    ) -> None:
        self._name = name
        self._score = score
        self._needs_reference = needs_reference
        self._reference = Reference(name, required=needs_reference)
        self._values = array("d")

    def update(self, sr: Tensor, gt: Tensor | None) -> None:
        """Score the next frame."""
        gt = gt if self._needs_reference else None
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
    """Scores every frame together with the one before; the first has NaN.

    Args:
        name: of the metric, for messages.
        prepare: maps a frame and its reference to what `score` needs of them, kept until the next frame came.
        score: maps what was prepared of the frame before and of this one to a number.
        needs_reference: whether a frame without ground truth is an error.
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
        self._before: Any = None
        self._values = array("d")

    def update(self, sr: Tensor, gt: Tensor | None) -> None:
        """Score the next frame against the one before."""
        self._reference.check(sr, gt)
        try:
            with torch.inference_mode():
                now = self._prepare(sr, gt)
                self._values.append(self._score(self._before, now) if self._values else math.nan)
        except ValueError as error:
            raise InputError(f"{self._name}: {error}") from error
        self._before = now

    def values(self) -> list[float]:
        """Return a score for each frame, NaN for the first and for those where nothing could be measured."""
        return list(self._values)

    def mean(self) -> float:
        """Return the clip's score, frames without one left out."""
        return mean_of(self.values())
