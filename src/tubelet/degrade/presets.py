"""Degradations by name: those of benchmarks, exactly as published, and two random ones.

bi            MATLAB bicubic, one final rounding to 8 bit (Vid4 as published)
bi-u8         MATLAB bicubic of 8-bit images, rounded after each pass (REDS)
bd            Gaussian σ 1.6, 13 taps, reflect, samples 0::s (DUF, RRN, RSDN, OVSR)
bd-b          Gaussian σ 1.6, 12 taps, replicate, block centers (BasicVSR family, TTVSR, IART)
bd-c          Gaussian σ 1.5, 9 taps, reflect, samples 0::s (TecoGAN, FRVSR)
real          blur, resize, noise and a real video encoder, drawn from a seed once per clip
second-order  the same twice, with more kinds of blur and noise, with JPEG, and stronger
              (Real-ESRGAN, RealBasicVSR)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal, get_args

from torch import Tensor

from tubelet.degrade.blur import blur, gaussian_taps
from tubelet.degrade.recipe import apply_recipe, draw_recipe, stream_recipe
from tubelet.errors import ConfigError
from tubelet.ops import imresize
from tubelet.ops.pixels import quantize

__all__ = ["PRESETS", "Preset", "degrade", "degrade_frames"]

Preset = Literal["bi", "bi-u8", "bd", "bd-b", "bd-c", "real", "second-order"]
PRESETS: tuple[Preset, ...] = get_args(Preset)


def degrade(
    clip: Tensor,
    preset: Preset,
    *,
    scale: int = 4,
    seed: int = 0,
) -> Tensor:
    """Create the low-quality version of a clip.

    Args:
        clip: (T, 3, H, W) in [0, 1].
        preset: Name of the degradation, see the top of this file.
        scale: Downscaling factor.
        seed: Seed of the random presets; the same seed gives the same result.

    Returns:
        (T, 3, ceil(H/scale), ceil(W/scale)) in [0, 1], multiples of 1/255. For `bd-b`, H and W
        must be divisible by `scale`.

    Raises:
        ConfigError: The preset is unknown.

    Source: docs/protocols.md, with the papers that use each preset.
    """
    match preset:
        case "bi":
            return quantize(imresize(clip, 1 / scale))
        case "bi-u8":
            return imresize(quantize(clip), 1 / scale, rounding="u8")
        case "bd":
            return quantize(blur(clip, gaussian_taps(1.6, 13), stride=scale))
        case "bd-b":
            lq = blur(
                clip,
                gaussian_taps(1.6, 12),
                stride=scale,
                phase=scale // 2 - 1,
                edge="replicate",
            )
            return quantize(lq)
        case "bd-c":
            return quantize(blur(clip, gaussian_taps(1.5, 9), stride=scale))
        case "real" | "second-order":
            recipe = draw_recipe(preset, scale=scale, seed=seed)
            return apply_recipe(clip, recipe)
    raise ConfigError(f"unknown degradation {preset!r}; known are {', '.join(PRESETS)}")


def degrade_frames(
    frames: Iterable[Tensor],
    preset: Preset,
    size: tuple[int, int],
    *,
    scale: int = 4,
    seed: int = 0,
) -> Iterator[Tensor]:
    """Create the low-quality version of a clip of any length, in bounded memory.

    Args:
        frames: Frames of the clip, (3, H, W) each, in [0, 1].
        preset: Name of the degradation, see the top of this file.
        size: (H, W), pixels.
        scale: Downscaling factor.
        seed: Seed of the random presets.

    Yields:
        (3, ceil(H/scale), ceil(W/scale)) per frame. A random preset processes a clip of more than
        `tubelet.degrade.recipe.part_frames` frames in parts; otherwise the result is that of
        `degrade`.

    Raises:
        ConfigError: The preset is unknown.
    """
    if preset in ("real", "second-order"):
        recipe = draw_recipe(preset, scale=scale, seed=seed)
        yield from stream_recipe(frames, recipe, size)
        return
    for frame in frames:
        yield degrade(frame[None], preset, scale=scale)[0]
