"""Steps of a real-world degradation: frozen values with all parameters, which can be replayed.

step      operation                                        works on
Blur      convolution with one kernel                      single frames
Resize    resize to a fraction of the original's size      single frames
Noise     Gaussian, signal-dependent Gaussian, or Poisson  the clip: one random stream
Jpeg      JPEG encoder at a quality                        single frames
Codec     video encoder                                    the clip

Results of blur and resize may exceed [0, 1] a little; the steps after them clamp. A parameter that
is not valid raises ValueError.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from tubelet.degrade.blur import blur, gaussian_kernel
from tubelet.degrade.kernels import KernelShape, shaped_kernel, sinc_kernel
from tubelet.ops import imresize, resample
from tubelet.ops.pixels import quantize, to_image_array
from tubelet.video.recode import recode

__all__ = [
    "Blur",
    "Codec",
    "DegradationStep",
    "Jpeg",
    "Noise",
    "Resize",
    "ResizeMethod",
    "apply_step",
    "resized_size",
]

ResizeMethod = Literal["bicubic", "area", "bilinear", "bicubic-plain", "bilinear-plain"]

_PART_SEED = 0x9E3779B9
"""Distance between the noise seeds of two parts of a clip: odd and large, so that seeds differ."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Blur:
    """Convolve every frame with one kernel.

    Attributes:
        kernel: "gaussian", "generalized", "plateau" (see `shaped_kernel`) or "sinc".
        taps: Side of the kernel, odd.
        sigma_x: Width along the first axis, pixels; not for "sinc".
        sigma_y: Width along the second axis, pixels; not for "sinc".
        angle_rad: Rotation of the kernel, radians; not for "sinc".
        beta: Exponent of "generalized" and "plateau".
        cutoff_rad: Cut-off frequency of "sinc", radians per pixel.
        edge: Padding beyond the image.
    """

    kernel: KernelShape | Literal["sinc"]
    taps: int
    sigma_x: float = 1.0
    sigma_y: float = 1.0
    angle_rad: float = 0.0
    beta: float = 1.0
    cutoff_rad: float = math.pi
    edge: Literal["reflect", "replicate"] = "replicate"

    def __post_init__(self) -> None:
        kernels = ("gaussian", "generalized", "plateau", "sinc")
        sigmas = (self.sigma_x, self.sigma_y)
        taps_valid = self.taps % 2 == 1 and 1 <= self.taps <= 101
        _require(self.kernel in kernels, "kernel", self.kernel)
        _require(taps_valid, "taps", self.taps)
        _require(min(*sigmas, self.beta) > 0, "sigma or beta", sigmas)
        _require(0 < self.cutoff_rad <= math.pi, "cutoff_rad", self.cutoff_rad)
        _require(self.edge in ("reflect", "replicate"), "edge", self.edge)


@dataclass(frozen=True, slots=True, kw_only=True)
class Resize:
    """Resize to ceil(size · factor), where size is that of the original clip.

    Attributes:
        factor: Fraction of the size of the original, regardless of the current size.
        method: "bicubic" (MATLAB's) and "bilinear" are antialiased, "area" averages. The plain
            ones have no filter and alias, as many players and phones do.
    """

    factor: float
    method: ResizeMethod

    def __post_init__(self) -> None:
        _require(0 < self.factor <= 4, "factor", self.factor)
        _require(self.method in get_args(ResizeMethod), "method", self.method)


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise:
    """Add noise, new in every frame.

    Attributes:
        kind: "gaussian"; "shot", Gaussian whose variance grows with the brightness and which has
            `strength` at mid gray; "poisson", the noise of photon counts with 255 photons at
            white, multiplied by `strength`.
        channels: 3, or 1 for the same noise in all channels.
        strength: Standard deviation as a fraction of white; for "poisson" a factor.
        seed: Seed of the noise.
    """

    kind: Literal["gaussian", "shot", "poisson"]
    channels: Literal[1, 3]
    strength: float
    seed: int

    def __post_init__(self) -> None:
        strength_and_seed = (self.strength, self.seed)
        _require(self.kind in ("gaussian", "shot", "poisson"), "kind", self.kind)
        _require(self.channels in (1, 3), "channels", self.channels)
        _require(min(strength_and_seed) >= 0, "strength or seed", strength_and_seed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Jpeg:
    """Encode and decode every frame as JPEG (libjpeg, 4:2:0).

    Attributes:
        quality: Quality of libjpeg, 1 to 95.
    """

    quality: int

    def __post_init__(self) -> None:
        _require(1 <= self.quality <= 95, "quality", self.quality)


@dataclass(frozen=True, slots=True, kw_only=True)
class Codec:
    """Encode and decode the clip with a video encoder, in 4:2:0.

    Attributes:
        encoder: FFmpeg's name of the encoder.
        options: FFmpeg's options of the encoder.
    """

    encoder: str
    options: Mapping[str, str] = field(default_factory=dict[str, str])


DegradationStep = Blur | Resize | Noise | Jpeg | Codec


def apply_step(
    step: DegradationStep,
    clip: Tensor,
    *,
    gt_size: tuple[int, int],
    part: int = 0,
) -> Tensor:
    """Apply one degradation step to a clip.

    Args:
        step: The step.
        clip: (T, 3, H, W) in [0, 1].
        gt_size: (height, width) of the original clip, pixels.
        part: Index of the part, if `clip` is a part of a longer one. Noise differs between parts,
            nothing else does.

    Returns:
        (T, 3, H', W'); after blur and resize, values may exceed [0, 1] a little.

    Raises:
        ResourceError: This build of FFmpeg lacks an encoder.
    """
    match step:
        case Blur():
            return blur(clip, _blur_kernel(step), edge=step.edge)
        case Resize():
            return _resize(clip, step, gt_size)
        case Noise():
            noisy = _add_noise(clip.clamp(0, 1), step, part)
            return noisy.clamp_(0, 1)
        case Jpeg():
            frames = [_recode_jpeg(frame, step.quality) for frame in clip]
            return torch.stack(frames)
        case Codec():
            return recode(quantize(clip), step.encoder, step.options)


def resized_size(gt_size: tuple[int, int], factor: float) -> tuple[int, int]:
    """Compute the (height, width) of a `Resize`: rounded up, as MATLAB's imresize does.

    Args:
        gt_size: (height, width) of the original clip, pixels.
        factor: Fraction of that size.
    """
    # The small term absorbs rounding errors, so that 100 · 0.07 is 7 pixels and not 8.
    height = math.ceil(gt_size[0] * factor - 1e-9)
    width = math.ceil(gt_size[1] * factor - 1e-9)
    return max(1, height), max(1, width)


def _require(condition: bool, name: str, value: object) -> None:
    if not condition:
        raise ValueError(f"{name}={value!r} is not valid for this step")


def _blur_kernel(step: Blur) -> Tensor:
    if step.kernel == "sinc":
        return sinc_kernel(step.cutoff_rad, step.taps)
    # Not by `shaped_kernel`, whose rounding differs: saved recipes replay to the bit.
    if step.kernel == "gaussian":
        return gaussian_kernel(step.sigma_x, step.sigma_y, step.angle_rad, step.taps)
    return shaped_kernel(
        step.kernel,
        step.sigma_x,
        step.sigma_y,
        step.angle_rad,
        step.beta,
        step.taps,
    )


def _resize(clip: Tensor, step: Resize, gt_size: tuple[int, int]) -> Tensor:
    current_size = (clip.shape[-2], clip.shape[-1])
    size = resized_size(gt_size, step.factor)
    if size == current_size:
        return clip
    match step.method:
        case "bicubic":
            # MATLAB's imresize by a factor is defined for the original size only.
            if current_size == gt_size:
                return imresize(clip, step.factor)
            return resample(clip, size)
        case "area":
            return functional.interpolate(clip, size, mode="area")
        case "bilinear":
            return functional.interpolate(clip, size, mode="bilinear", antialias=True)
        case "bilinear-plain":
            return functional.interpolate(clip, size, mode="bilinear")
        case "bicubic-plain":
            return functional.interpolate(clip, size, mode="bicubic")


def _add_noise(clip: Tensor, step: Noise, part: int) -> Tensor:
    # A separate generator: the noise depends on the recipe only, not on torch's global state.
    seed = (step.seed + part * _PART_SEED) % 2**63
    generator = torch.Generator().manual_seed(seed)
    if step.kind == "poisson":
        # With one channel, photons are counted on the gray image: (T, 1, H, W).
        light = clip if step.channels == 3 else clip.mean(1, keepdim=True)
        counts = torch.poisson(light * 255, generator=generator)
        noise = counts.div_(255).sub_(light).mul_(step.strength)
        return noise + clip
    frames, _, height, width = clip.shape
    noise = torch.randn(frames, step.channels, height, width, generator=generator)
    if step.kind == "gaussian":
        return noise.mul_(step.strength) + clip
    # Shot noise: the variance is proportional to the gray value, and σ is `strength` at 0.5.
    sigma_scale = (2 * clip.mean(1, keepdim=True)).clamp_min(0).sqrt()
    return clip + step.strength * noise * sigma_scale


def _recode_jpeg(frame: Tensor, quality: int) -> Tensor:
    """Encode and decode a frame, (3, H, W)."""
    buffer = io.BytesIO()
    image = Image.fromarray(to_image_array(frame))
    image.save(buffer, "JPEG", quality=quality, subsampling="4:2:0")
    decoded = np.array(Image.open(buffer).convert("RGB"))
    return torch.from_numpy(decoded).permute(2, 0, 1).float() / 255
