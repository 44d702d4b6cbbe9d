"""The degradations by name: benchmark ones exactly as published, and a real-world one.

bi      MATLAB bicubic, one final rounding to 8 bit (Vid4 as published)
bi-u8   MATLAB bicubic of 8-bit images, rounded after each pass (REDS)
bd      Gaussian σ 1.6, 13 taps, reflect, samples 0::s (DUF, RRN, RSDN, OVSR)
bd-b    Gaussian σ 1.6, 12 taps, replicate, block centres (BasicVSR family, TTVSR, IART)
bd-c    Gaussian σ 1.5, 9 taps, reflect, samples 0::s (TecoGAN, FRVSR)
real    blur, resize, noise, and a real video encoder, drawn from a seed once for the clip
"""

from __future__ import annotations

import math
import random
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from tubelet.degrade.blur import blur, gaussian_kernel, gaussian_taps
from tubelet.errors import ConfigError
from tubelet.ops import imresize
from tubelet.video.recode import recode

__all__ = ["PRESETS", "REAL_RECIPE", "Preset", "degrade"]

Preset = Literal["bi", "bi-u8", "bd", "bd-b", "bd-c", "real"]
PRESETS: tuple[Preset, ...] = get_args(Preset)
REAL_RECIPE = 2  # raise it when `real` gives other pixels for a seed: caches of degraded clips go by it


def degrade(clip: Tensor, preset: Preset, *, scale: int = 4, seed: int = 0) -> Tensor:
    """Make the low-quality version of a clip.

    Args:
        clip: (T, 3, H, W) in [0, 1].
        preset: see the top of this file.
        scale: factor by which the result is smaller.
        seed: of the random preset; the same seed gives the same result.

    Returns:
        (T, 3, ceil(H/scale), ceil(W/scale)) in [0, 1], multiples of 1/255; `bd-b` wants H and W that `scale` divides.

    Raises:
        ConfigError: unknown preset.

    Source: docs/protocols.md, with the papers that use each preset.
    """
    if preset == "bi":
        return _quantise(imresize(clip, 1 / scale))
    if preset == "bi-u8":
        return imresize(_quantise(clip), 1 / scale, rounding="u8")
    if preset == "bd":
        return _quantise(blur(clip, gaussian_taps(1.6, 13), stride=scale))
    if preset == "bd-b":
        return _quantise(blur(clip, gaussian_taps(1.6, 12), stride=scale, phase=scale // 2 - 1, edge="replicate"))
    if preset == "bd-c":
        return _quantise(blur(clip, gaussian_taps(1.5, 9), stride=scale))
    if preset == "real":
        return _real(clip, scale, seed)
    raise ConfigError(f"unknown degradation {preset!r}; known are {', '.join(PRESETS)}")


def _quantise(x: Tensor) -> Tensor:
    return (x.clamp(0, 1) * 255).round() / 255


def _real(clip: Tensor, scale: int, seed: int) -> Tensor:
    """Blur → resize → noise → codec, each drawn once, as a camera and an upload do to a whole clip."""
    rng = random.Random(seed)
    if rng.random() < 0.5:
        low, high = 0.15 * scale, 0.35 * scale  # σ in gt pixels: from sharp optics to slightly out of focus
        taps = 2 * math.ceil(3 * high) + 1
        clip = blur(
            clip, gaussian_kernel(rng.uniform(low, high), rng.uniform(low, high), rng.uniform(0, math.pi), taps)
        )
    clip = _shrink(clip, scale, rng.choice(["bicubic", "area", "bilinear"])).clamp(0, 1)
    clip = _add_noise(clip, rng).clamp(0, 1)
    clip = _quantise(clip)
    encoder, options = _draw_codec(rng)
    return recode(clip, encoder, options) if encoder else clip


def _shrink(clip: Tensor, scale: int, method: str) -> Tensor:
    if method == "bicubic":
        return imresize(clip, 1 / scale)
    size = [math.ceil(n / scale) for n in clip.shape[-2:]]
    if method == "area":
        return functional.interpolate(clip, size, mode="area")
    return functional.interpolate(clip, size, mode="bilinear", antialias=True)


def _add_noise(clip: Tensor, rng: random.Random) -> Tensor:
    """Gaussian noise of the sensor, or Poisson noise of the light, in one channel or in all."""
    kind = rng.choice(["none", "gaussian", "poisson"])
    generator = torch.Generator().manual_seed(rng.getrandbits(62))
    channels = rng.choice([1, 3])
    noise = torch.randn(clip.shape[0], channels, *clip.shape[-2:], generator=generator)
    strength = rng.uniform(0.5, 6.0) / 255
    if kind == "gaussian":
        return clip + strength * noise
    if kind == "poisson":  # variance in proportion to the light, `strength` at mid grey
        return clip + strength * noise * (2 * clip.mean(1, keepdim=True)).clamp_min(0).sqrt()
    return clip


def _draw_codec(rng: random.Random) -> tuple[str, dict[str, str]]:
    kind = rng.choice(["libx264", "libx264", "libx264", "libx265", "mpeg4", ""])
    if kind == "libx264":
        return kind, {"crf": f"{rng.uniform(16, 30):.1f}", "preset": rng.choice(["veryfast", "medium"])}
    if kind == "libx265":
        return kind, {
            "crf": f"{rng.uniform(18, 32):.1f}",
            "preset": "veryfast",
            "x265-params": "log-level=none",
        }
    if kind == "mpeg4":
        quality = str(rng.randint(2, 7))
        return kind, {
            "flags": "qscale",
            "global_quality": str(118 * int(quality)),
            "qmin": quality,
            "qmax": quality,
        }
    return "", {}
