"""A clip of a single image, over which a virtual camera pans."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from tubelet.errors import require

__all__ = ["PanSettings", "pan_over"]

# Maximum height and width of the clip.
_WINDOW = (640, 960)


@dataclass(frozen=True, slots=True, kw_only=True)
class PanSettings:
    """Clips that are made of single images."""

    frames: int = 14
    """Frames of a clip."""
    max_px: float = 6.0
    """Maximum speed of the camera, pixels of the clip per frame; 0 for a still camera."""
    speed: Literal["any", "whole"] = "any"
    """whole: a whole number of pixels per frame, so that the motion is exactly uniform. any: the
    position is rounded in each frame."""

    def __post_init__(self) -> None:
        require(
            self.frames >= 1 and self.max_px >= 0,
            f"{self}: need frames ≥ 1 and max_px ≥ 0",
        )

    @property
    def identity(self) -> str:
        """Text that differs if the clips differ, for the key of a cached clip."""
        text = f"{self.frames}x{_WINDOW}"
        if self == PanSettings(frames=self.frames):
            return text
        return f"{text}|{self.max_px:g} {self.speed}"


def pan_over(image: Tensor, seed: int, settings: PanSettings) -> list[NDArray[np.uint8]]:
    """Move a window over an image at constant velocity.

    The image is halved first, which removes its compression artifacts.

    Args:
        image: (3, H, W) uint8.
        seed: Seed of the velocity.
        settings: Length and speed.

    Returns:
        Frames, (3, h, w) uint8 each. In a small image there is little or no motion, because the
        window must not leave it.
    """
    half = functional.interpolate(image[None].float(), scale_factor=0.5, mode="area")[0]
    half = half.round().byte()
    height = min(_WINDOW[0], half.shape[-2])
    width = min(_WINDOW[1], half.shape[-1])

    rng = random.Random(seed)
    tops = _positions(rng, half.shape[-2] - height, settings)
    lefts = _positions(rng, half.shape[-1] - width, settings)
    frames: list[NDArray[np.uint8]] = []
    for top, left in zip(tops, lefts, strict=True):
        window = half[:, top : top + height, left : left + width]
        frames.append(window.numpy())
    return frames


def _positions(rng: random.Random, max_position: int, settings: PanSettings) -> list[int]:
    """Draw the positions of the window along one axis, 0 … `max_position`, for every frame."""
    num_frames = settings.frames
    max_speed = min(settings.max_px, max_position / num_frames)
    if settings.speed == "whole":
        speed = float(rng.randint(-int(max_speed), int(max_speed)))
    else:
        speed = rng.uniform(-1, 1) * max_speed
    # Halfway through the clip, the window is at the center of the image.
    start = max_position / 2 - speed * num_frames / 2
    if settings.speed == "whole":
        # Halves would be rounded up and down in turn.
        start = float(int(start))
    return [round(start + speed * t) for t in range(num_frames)]
