"""Axis legend and the few types that every part shares.

B batch · T frames of a clip · C channels · H height · W width, both in pixels · s scale factor
lq low-quality input · gt ground truth · sr super-resolved result

Clips are (B, T, C, H, W), RGB, float32 in [0, 1]: the R'G'B' values that the file codes, in its own
primaries and transfer function. Flow is (B, 2, H, W), pixels, dx then dy.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Frame", "Precision", "Temporal", "TemporalKind"]

TemporalKind = Literal["frame", "window", "online", "clip"]
Precision = Literal["fp32", "bf16", "fp16"]


@dataclass(slots=True)
class Frame:
    """One image of a video with its place in time.

    Attributes:
        rgb: (3, H, W) float32, upright (rotation of the container is already applied). In [0, 1] but for colors
            that YUV can code and RGB cannot, which `open_reader(gamut="keep")` leaves as they are.
        pts: presentation time in ticks of `time_base`.
        time_base: seconds per tick.
        duration: ticks that the frame is shown; 0 where the file does not say.
        index: number of the frame in presentation order, from 0.
        alpha: (1, H, W) float32 in [0, 1], or None where the video has no transparency.
    """

    rgb: Tensor
    pts: int
    time_base: Fraction
    duration: int = 0
    index: int = 0
    alpha: Tensor | None = None

    @property
    def time_s(self) -> float:
        """Presentation time in seconds."""
        return float(self.pts * self.time_base)


@dataclass(frozen=True, slots=True)
class Temporal:
    """What a model needs of the time axis; the engine needs nothing else to run it.

    kind      the engine calls                                    settings that matter
    frame     model(lq) with (B, 1, 3, H, W)                      none
    window    model(lq) with (B, 2·radius + 1, 3, H, W) → (B, 1, 3, sH, sW), the middle frame
    online    model.step(lq, hidden) → (sr, hidden), lq (B, 1 + lookahead, 3, H, W): the frame and those
              that follow it; sr (B, 3, sH, sW); hidden is None at the start of a scene, otherwise a tuple
              of tensors that are images too
    clip      model(lq) with (B, T, 3, H, W) → (B, T', 3, sH, sW), T up to `window_frames`;
              T' = T + `between_frames` · (T - 1)

    Neighbors beyond the ends of a scene repeat the first or last frame of the scene.

    A space-time model has `between_frames` = 1: between any two frames it also gives the one half-way. The engine uses
    those where twice the frame rate is asked for, and otherwise drops them.

    Attributes:
        kind: see above.
        radius: neighbors on each side (window).
        lookahead: frames after the current one that a step needs (online).
        window_frames: the most frames at once, 0 for a whole scene (clip).
        overlap_frames: frames that consecutive windows share; the seam lies in their middle (clip).
        between_frames: frames that the result also has between any two, half-way: 0 or 1 (clip).
    """

    kind: TemporalKind
    radius: int = 0
    lookahead: int = 0
    window_frames: int = 0
    overlap_frames: int = 0
    between_frames: int = 0

    def __post_init__(self) -> None:
        owner = {"radius": "window", "lookahead": "online"}
        owner |= dict.fromkeys(("window_frames", "overlap_frames", "between_frames"), "clip")
        for name, kind in owner.items():
            value = getattr(self, name)
            if value < 0 or (value and kind != self.kind):
                raise ValueError(
                    f"{name}={value} does not fit a {self.kind!r} model; it is for {kind!r} models"
                )
        if self.window_frames and self.overlap_frames >= self.window_frames:
            raise ValueError(
                f"overlap_frames={self.overlap_frames} must be below window_frames={self.window_frames}"
            )
        if self.between_frames > 1:
            raise ValueError(f"between_frames={self.between_frames} must be 0 or 1")
        if self.between_frames and self.window_frames and not self.overlap_frames:
            raise ValueError(
                "overlap_frames=0 would leave nothing half-way between two windows; give at least 1"
            )
