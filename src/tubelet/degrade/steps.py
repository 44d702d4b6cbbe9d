"""The steps that a real-world degradation is made of: each a frozen value that says all it does, and can be replayed.

step      does                                                               works on
Blur      one kernel for every frame                                         single frames
Resize    to a fraction of the size of the good clip                         single frames
Noise     Gaussian, signal-dependent Gaussian, or Poisson                    the clip: one stream of draws
Jpeg      a JPEG encoder at a quality                                        single frames
Codec     a video encoder                                                    the clip

Blur and resize may leave [0, 1] by a little; the steps that follow clamp. A value that makes no sense is a ValueError.
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
    "resized",
]

ResizeMethod = Literal["bicubic", "area", "bilinear", "bicubic-plain", "bilinear-plain"]
_PART_SEED = 0x9E3779B9  # odd and large: the parts of a long clip get noise of their own


@dataclass(frozen=True, slots=True, kw_only=True)
class Blur:
    """Convolve every frame with one kernel.

    Attributes:
        kernel: "gaussian", "generalized", "plateau" (see `shaped_kernel`) or "sinc".
        taps: side of the kernel, odd.
        sigma_x: pixels; not for "sinc".
        sigma_y: pixels; not for "sinc".
        angle_rad: turn of the kernel; not for "sinc".
        beta: exponent of "generalized" and "plateau".
        cutoff_rad: of "sinc", radians a pixel.
        edge: what lies beyond the image.
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
        _require(
            self.kernel in ("gaussian", "generalized", "plateau", "sinc"), "kernel", self.kernel
        )
        _require(self.taps % 2 == 1 and 1 <= self.taps <= 101, "taps", self.taps)
        _require(
            min(self.sigma_x, self.sigma_y, self.beta) > 0,
            "sigma or beta",
            (self.sigma_x, self.sigma_y),
        )
        _require(0 < self.cutoff_rad <= math.pi, "cutoff_rad", self.cutoff_rad)
        _require(self.edge in ("reflect", "replicate"), "edge", self.edge)


@dataclass(frozen=True, slots=True, kw_only=True)
class Resize:
    """Resize to ceil(size · factor) of the good clip.

    Attributes:
        factor: fraction of the size of the good clip, whatever the size is by now.
        method: "bicubic" (MATLAB's) and "bilinear" are antialiased, "area" averages, the plain ones do not filter:
            they alias, as many players and phones do.
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
        kind: "gaussian"; "shot": Gaussian whose variance grows with the light, `strength` at mid gray; "poisson":
            that of counted photons, 255 of them at white, times `strength`.
        channels: 3, or 1 for the same noise in all channels.
        strength: standard deviation as a fraction of white; for "poisson" a factor.
        seed: of the draws.
    """

    kind: Literal["gaussian", "shot", "poisson"]
    channels: Literal[1, 3]
    strength: float
    seed: int

    def __post_init__(self) -> None:
        _require(self.kind in ("gaussian", "shot", "poisson"), "kind", self.kind)
        _require(self.channels in (1, 3), "channels", self.channels)
        _require(
            self.strength >= 0 and self.seed >= 0, "strength or seed", (self.strength, self.seed)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Jpeg:
    """Pass every frame through a JPEG encoder (libjpeg, 4:2:0).

    Attributes:
        quality: 1 to 95.
    """

    quality: int

    def __post_init__(self) -> None:
        _require(1 <= self.quality <= 95, "quality", self.quality)


@dataclass(frozen=True, slots=True, kw_only=True)
class Codec:
    """Pass the clip through a video encoder, in 4:2:0.

    Attributes:
        encoder: FFmpeg's name of it.
        options: FFmpeg's options of it.
    """

    encoder: str
    options: Mapping[str, str] = field(default_factory=dict[str, str])


DegradationStep = Blur | Resize | Noise | Jpeg | Codec


def apply_step(
    step: DegradationStep, clip: Tensor, *, gt_size: tuple[int, int], part: int = 0
) -> Tensor:
    """Do one step.

    Args:
        step: what to do.
        clip: (T, 3, H, W) in [0, 1].
        gt_size: (height, width) of the good clip, pixels.
        part: number of the part of a longer clip: noise differs between parts, nothing else does.

    Returns:
        (T, 3, H', W'); blur and resize may leave [0, 1] by a little.

    Raises:
        ResourceError: this build of FFmpeg lacks an encoder.
    """
    match step:
        case Blur():
            return blur(clip, _kernel(step), edge=step.edge)
        case Resize():
            return _resize(clip, step, gt_size)
        case Noise():
            return _noise(clip.clamp(0, 1), step, part).clamp_(0, 1)
        case Jpeg():
            return torch.stack([_jpeg(frame, step.quality) for frame in clip])
        case Codec():
            return recode(quantize(clip), step.encoder, step.options)


def resized(gt_size: tuple[int, int], factor: float) -> tuple[int, int]:
    """Round the size that a `Resize` makes up to whole pixels, as MATLAB's imresize does."""
    height, width = (max(1, math.ceil(n * factor - 1e-9)) for n in gt_size)
    return height, width


def _require(holds: bool, name: str, value: object) -> None:
    if not holds:
        raise ValueError(f"{name}={value!r} is not a value that this step takes")


def _kernel(step: Blur) -> Tensor:
    if step.kernel == "sinc":
        return sinc_kernel(step.cutoff_rad, step.taps)
    if step.kernel == "gaussian":
        return gaussian_kernel(step.sigma_x, step.sigma_y, step.angle_rad, step.taps)
    return shaped_kernel(
        step.kernel, step.sigma_x, step.sigma_y, step.angle_rad, step.beta, step.taps
    )


def _resize(clip: Tensor, step: Resize, gt_size: tuple[int, int]) -> Tensor:
    before, size = (clip.shape[-2], clip.shape[-1]), resized(gt_size, step.factor)
    if size == before:
        return clip
    if step.method == "bicubic":
        return imresize(clip, step.factor) if before == gt_size else resample(clip, size)
    if step.method == "area":
        return functional.interpolate(clip, size, mode="area")
    mode = "bicubic" if step.method == "bicubic-plain" else "bilinear"
    return functional.interpolate(clip, size, mode=mode, antialias=step.method == "bilinear")


def _noise(clip: Tensor, step: Noise, part: int) -> Tensor:
    generator = torch.Generator().manual_seed((step.seed + part * _PART_SEED) % 2**63)
    if step.kind == "poisson":
        light = clip if step.channels == 3 else clip.mean(1, keepdim=True)
        return (
            torch.poisson(light * 255, generator=generator)
            .div_(255)
            .sub_(light)
            .mul_(step.strength)
            + clip
        )
    noise = torch.randn(clip.shape[0], step.channels, *clip.shape[-2:], generator=generator)
    if step.kind == "gaussian":
        return noise.mul_(step.strength) + clip
    return clip + step.strength * noise * (2 * clip.mean(1, keepdim=True)).clamp_min(0).sqrt()


def _jpeg(frame: Tensor, quality: int) -> Tensor:
    buffer = io.BytesIO()
    Image.fromarray(to_image_array(frame)).save(
        buffer, "JPEG", quality=quality, subsampling="4:2:0"
    )
    decoded = np.array(Image.open(buffer).convert("RGB"))
    return torch.from_numpy(decoded).permute(2, 0, 1).float() / 255
