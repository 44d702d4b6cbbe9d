"""Every metric by name, and meters that score a video frame by frame in constant memory."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import torch
from torch import Tensor

from tubelet.errors import RequestError, ResourceError, suggest
from tubelet.metrics.fidelity import Channel, psnr, ssim
from tubelet.metrics.meters import FrameMeter

__all__ = ["METRICS", "Direction", "Meter", "MetricInfo", "make_meter", "metric_info"]

Direction = Literal["higher", "lower"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricInfo:
    """Description of a metric: its convention, and the unit and range of its values.

    Attributes:
        name: Name, as `make_meter` takes it.
        summary: The convention in a line.
        unit: Unit of its values, "" for a pure number.
        direction: Whether higher or lower values are better.
        low: Smallest possible value.
        high: Largest possible value.
        needs_reference: Every frame must have its ground truth.
        temporal: It compares several frames.
    """

    name: str
    summary: str
    unit: str
    direction: Direction
    low: float
    high: float
    needs_reference: bool
    temporal: bool


class Meter(Protocol):
    """Meter of one clip, frame by frame; its memory does not grow with the video."""

    def update(self, sr: Tensor, gt: Tensor | None) -> None:
        """Add the next frame.

        Args:
            sr: Restored frame, (3, H, W) in [0, 1].
            gt: Ground truth, of the same size; None where there is none.

        Raises:
            InputError: The sizes disagree, the frame is too small, or a reference that is needed is
                absent.
        """
        ...

    def values(self) -> list[float]:
        """Return a score for each frame.

        It is NaN for a frame without one, such as the first frame of a temporal metric.
        """
        ...

    def mean(self) -> float:
        """Return the clip's score: the mean of the scores that are not NaN, or NaN."""
        ...


def _fidelity(
    name: str,
    summary: str,
    unit: str,
    high: float,
) -> MetricInfo:
    return MetricInfo(
        name=name,
        summary=summary,
        unit=unit,
        direction="higher",
        low=-1.0 if name.startswith("ssim") else 0.0,
        high=high,
        needs_reference=True,
        temporal=False,
    )


def _perceptual(
    name: str,
    summary: str,
    direction: Direction,
    high: float,
    *,
    needs_reference: bool,
) -> MetricInfo:
    return MetricInfo(
        name=name,
        summary=summary,
        unit="",
        direction=direction,
        low=0.0,
        high=high,
        needs_reference=needs_reference,
        temporal=False,
    )


def _temporal(
    name: str,
    summary: str,
    unit: str,
    *,
    high: float = math.inf,
    needs_reference: bool = True,
) -> MetricInfo:
    return MetricInfo(
        name=name,
        summary=summary,
        unit=unit,
        direction="lower",
        low=0.0,
        high=high,
        needs_reference=needs_reference,
        temporal=True,
    )


_LUMA = "luma (BT.601, limited range, not rounded) of frames rounded to 8 bit"
METRICS: tuple[MetricInfo, ...] = (
    _fidelity("psnr-y", f"PSNR of {_LUMA}, mean over frames", "dB", math.inf),
    _fidelity(
        "psnr-rgb",
        "PSNR of R, G and B together, frames rounded to 8 bit, mean over frames",
        "dB",
        math.inf,
    ),
    _fidelity("ssim-y", f"SSIM of {_LUMA}; 11×11 Gaussian σ 1.5, valid area", "", 1.0),
    _fidelity(
        "ssim-rgb",
        "SSIM of R, G and B, averaged; 11×11 Gaussian σ 1.5, valid area, 8 bit",
        "",
        1.0,
    ),
    _perceptual(
        "lpips",
        "LPIPS v0.1 with AlexNet features",
        "lower",
        math.inf,
        needs_reference=True,
    ),
    _perceptual(
        "lpips-vgg",
        "LPIPS v0.1 with VGG-16 features",
        "lower",
        math.inf,
        needs_reference=True,
    ),
    _perceptual(
        "dists",
        "DISTS, VGG-16 features, frames at their own size",
        "lower",
        1.0,
        needs_reference=True,
    ),
    _perceptual(
        "clip-iqa",
        "CLIP-IQA, ResNet-50, 'Good photo.' against 'Bad photo.'",
        "higher",
        1.0,
        needs_reference=False,
    ),
    _perceptual(
        "niqe",
        "NIQE with the published pristine model, luma rounded to 8 bit",
        "lower",
        math.inf,
        needs_reference=False,
    ),
    _perceptual(
        "niqe-tubelet",
        "NIQE with Tubelet's own pristine model; not comparable with published NIQE",
        "lower",
        math.inf,
        needs_reference=False,
    ),
    _temporal(
        "warp-error",
        "squared RGB difference of a frame and the next one warped to it by DIS flow of the "
        "reference (of the clip itself where there is none), over pixels that are not occluded",
        "",
        high=3.0,
        needs_reference=False,
    ),
    _temporal(
        "tof",
        "mean length of the difference of Farneback flows of the clip and of the reference",
        "px",
    ),
    _temporal(
        "tlpips",
        "difference of the LPIPS (AlexNet) of consecutive frames, clip against reference",
        "",
    ),
    _temporal(
        "flicker",
        "temporal standard deviation of luma where the reference does not change, from "
        "consecutive frames",
        "levels of 255",
        high=255.0,
    ),
    MetricInfo(
        name="vmaf",
        summary="VMAF v0.6.1 by an ffmpeg with libvmaf, BT.601 luma of 8 bit",
        unit="",
        direction="higher",
        low=0.0,
        high=100.0,
        needs_reference=True,
        temporal=True,
    ),
)
_METRICS_BY_NAME = {info.name: info for info in METRICS}


def metric_info(name: str) -> MetricInfo:
    """Find a metric by its name.

    Raises:
        RequestError: There is none; the message has the nearest name.
    """
    if name in _METRICS_BY_NAME:
        return _METRICS_BY_NAME[name]
    raise RequestError(f"there is no metric {name!r}; {suggest(name, _METRICS_BY_NAME)}")


def make_meter(
    name: str,
    *,
    border: int = 0,
    weights: Path | None = None,
    device: str | torch.device = "cpu",
) -> Meter:
    """Create a meter for one clip.

    Args:
        name: Name of a metric in `METRICS`.
        border: Pixels left out on each side of every frame. Frames are cropped before they are
            compared, except for `warp-error`, `tof` and `flicker`, whose flow and masks use the
            whole frame.
        weights: Folder of the metric's weight files, or one of them; None: torch's cache, then a
            download. For `vmaf` a model file. Metrics without weights ignore it.
        device: Device of networks and of comparisons; flow and VMAF are computed on the CPU.

    Raises:
        RequestError: There is no such metric, or the border is negative.
        ResourceError: A package, a program, a weight file or the device is absent.
        CheckpointError: A weight file is damaged or has another network.
    """
    info = metric_info(name)
    if border < 0:
        raise RequestError(f"border={border} must not be negative")
    return _build(info, border, weights, _find_device(device))


def _find_device(device: str | torch.device) -> torch.device:
    try:
        return torch.empty(0, device=device).device
    # AssertionError: torch was built without CUDA.
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ResourceError(f"device {str(device)!r} cannot be used: {reason}") from error


def _build(
    info: MetricInfo,
    border: int,
    weights: Path | None,
    device: torch.device,
) -> Meter:
    """Build the meter; the packages that a metric needs are imported only here."""
    family, _, variant = info.name.partition("-")
    if family in ("psnr", "ssim"):
        return _fidelity_meter(info, "y" if variant == "y" else "rgb", border, device)
    if family == "niqe":
        from tubelet.metrics.niqe import niqe_meter

        return niqe_meter(info.name, border=border, weights=weights, device=device)
    if info.name in ("lpips", "lpips-vgg", "dists", "clip-iqa", "tlpips"):
        from tubelet.metrics.perceptual import perceptual_meter

        return perceptual_meter(info.name, border=border, weights=weights, device=device)
    if info.name == "vmaf":
        from tubelet.metrics.vmaf import VmafMeter

        return VmafMeter(border=border, model=weights)
    from tubelet.metrics.temporal import temporal_meter

    return temporal_meter(info.name, border=border, device=device)


def _fidelity_meter(
    info: MetricInfo,
    channel: Channel,
    border: int,
    device: torch.device,
) -> Meter:
    metric = psnr if info.name.startswith("psnr") else ssim

    def score(sr: Tensor, gt: Tensor | None) -> float:
        assert gt is not None
        return metric(sr.to(device), gt.to(device), channel=channel, border=border).item()

    return FrameMeter(info.name, score, needs_reference=True)
