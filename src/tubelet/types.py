"""The axis legend, and the types that all packages share.

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

_KINDS_BY_FIELD: dict[str, TemporalKind] = {
    "radius": "window",
    "lookahead": "online",
    "window_frames": "clip",
    "overlap_frames": "clip",
    "between_frames": "clip",
}
"""The temporal kind for which each field of `Temporal` is meant."""


@dataclass(slots=True)
class Frame:
    """One frame of a video with its time.

    Attributes:
        rgb: Image, (3, H, W) float32, upright (the rotation of the container is applied). Values
            are in [0, 1], except for colors that YUV can code and RGB cannot, which
            `open_reader(gamut="keep")` does not clip.
        pts: Presentation time in ticks of `time_base`.
        time_base: Seconds per tick.
        duration: Duration in ticks; 0 if the file does not contain it.
        index: Number of the frame in presentation order, from 0.
        alpha: Transparency, (1, H, W) float32 in [0, 1]; None if the video has none.
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

    @property
    def size(self) -> tuple[int, int]:
        """Height and width, pixels."""
        height, width = self.rgb.shape[-2:]
        return height, width

    def rows(self, start: int, stop: int) -> Tensor:
        """Return rows of the image, (3, stop - start, W)."""
        return self.rgb[:, start:stop]


@dataclass(frozen=True, slots=True)
class Temporal:
    """The temporal interface of a model, which is all that the engine needs to run it.

    kind      call by the engine
    frame     model(lq), lq (B, 1, 3, H, W)
    window    model(lq), lq (B, 2·radius + 1, 3, H, W) → (B, 1, 3, sH, sW), the center frame
    online    model.step(lq, hidden) → (sr, hidden), lq (B, 1 + lookahead, 3, H, W): the frame and
              the frames after it; sr (B, 3, sH, sW); hidden is None at the start of a scene,
              otherwise a tuple of image-like tensors
    clip      model(lq), lq (B, T, 3, H, W) → (B, T', 3, sH, sW), T up to `window_frames`;
              T' = T + `between_frames` · (T - 1)

    Beyond the ends of a scene its first or last frame is repeated.

    A space-time model has `between_frames` = 1: it also returns a frame half-way between any two.
    The engine uses these frames to double the frame rate, and drops them otherwise.

    Attributes:
        kind: Temporal kind; see the table.
        radius: Number of neighbors on each side (window).
        lookahead: Number of frames after the current one that a step needs (online).
        window_frames: Maximum number of frames in a call; 0 for a whole scene (clip).
        overlap_frames: Frames shared by consecutive windows; the seam is in the middle of the
            overlap (clip, if windows do not continue from states; see `Contract.edge_states`).
        between_frames: Frames that the model adds half-way between any two: 0 or 1 (clip).

    Raises:
        ValueError: A field does not fit the kind or another field.
    """

    kind: TemporalKind
    radius: int = 0
    lookahead: int = 0
    window_frames: int = 0
    overlap_frames: int = 0
    between_frames: int = 0

    def __post_init__(self) -> None:
        for name, kind in _KINDS_BY_FIELD.items():
            value = getattr(self, name)
            # The fields of other kinds must be 0.
            is_valid = value >= 0 if kind == self.kind else value == 0
            if not is_valid:
                raise ValueError(
                    f"{name}={value} does not fit a {self.kind!r} model; it is for {kind!r} models"
                )
        if self.window_frames and self.overlap_frames >= self.window_frames:
            raise ValueError(
                f"overlap_frames={self.overlap_frames} must be below "
                f"window_frames={self.window_frames}"
            )
        if self.between_frames > 1:
            raise ValueError(f"between_frames={self.between_frames} must be 0 or 1")
        # Without a shared frame, no window contains both neighbors of the frame at the seam.
        if self.between_frames and self.window_frames and not self.overlap_frames:
            raise ValueError(
                "overlap_frames=0 would leave nothing half-way between two windows; give at least 1"
            )
