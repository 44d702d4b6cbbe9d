"""Temporal consistency: warping error, difference of motion (tOF), and flicker of static regions.

Flow is estimated by OpenCV, on 8-bit luma and on the CPU.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from tubelet.errors import ResourceError
from tubelet.metrics.fidelity import to_channel
from tubelet.metrics.meters import PairMeter
from tubelet.ops.pixels import quantize, to_image_array

__all__ = ["occlusion_mask", "temporal_meter", "warp"]

_Gray = NDArray[np.uint8]
_Flow = NDArray[np.float32]
# Fraction of the pixels: with fewer to measure, a frame has no score.
_MIN_FRACTION = 0.01
_STATIC_WINDOW_PX = 7
# Mean change of the reference's luma within the window: sensor and coding noise are below.
_MAX_STATIC_LEVELS = 2.0
_DIS_MIN_PX = 16
# Parameters of TecoGAN.
_FARNEBACK: dict[str, float] = {
    "pyr_scale": 0.5,
    "levels": 3,
    "winsize": 15,
    "iterations": 3,
    "poly_n": 5,
    "poly_sigma": 1.2,
    "flags": 0,
}


def temporal_meter(name: str, *, border: int, device: torch.device) -> PairMeter:
    """Create the meter of `warp-error`, `tof` or `flicker`.

    Args:
        name: Name of the metric.
        border: Pixels of each side whose differences do not count; flow and masks use the whole
            frame.
        device: Device that warps and compares frames.

    Raises:
        ResourceError: The metric needs flow, and OpenCV is absent.
    """
    if name == "flicker":
        return _flicker(border, device)
    return _warp_error(border, device) if name == "warp-error" else _tof(border)


def _import_opencv(metric: str) -> Any:
    try:
        import cv2
    except ImportError as error:
        raise ResourceError(
            f"{metric} needs OpenCV for its flow; install it: pip install 'tubelet[metrics]'"
        ) from error
    return cv2


def _luma(x: Tensor) -> Tensor:
    """Convert (3, H, W) in [0, 1] to limited-range luma (H, W) in [16, 235]."""
    return to_channel(x, "y")[0]


def _gray(x: Tensor) -> _Gray:
    """Convert (3, H, W) in [0, 1] to rounded limited-range luma for OpenCV."""
    return _luma(x).round().byte().cpu().numpy()


def _crop(x: Tensor, border: int) -> Tensor:
    height, width = x.shape[-2:]
    return x[..., border : height - border, border : width - border]


class _WarpInput(NamedTuple):
    """A frame of the warping error."""

    rgb: Tensor
    """(3, H, W) in [0, 1], float32, in steps of 1/255."""
    guide: _Gray
    """Frame from which the flow is estimated."""


def _warp_error(border: int, device: torch.device) -> PairMeter:
    """Create the meter of the warping error; docs/metrics.md has its definition.

    Source: Lai et al., Learning Blind Video Temporal Consistency, ECCV 2018, Eq. 12 and 13.
    """
    cv2 = _import_opencv("warp-error")
    dis: Any = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)

    def estimate_flow(start: _Gray, end: _Gray) -> Tensor:
        flow = torch.from_numpy(dis.calc(start, end, None))
        # (H, W, 2) → (2, H, W)
        return flow.permute(2, 0, 1).to(device)

    def prepare(sr: Tensor, gt: Tensor | None) -> _WarpInput:
        _check_size(sr, border)
        rgb = quantize(sr.to(device).float())
        return _WarpInput(rgb, _gray(sr if gt is None else gt))

    def score(previous: _WarpInput, current: _WarpInput) -> float:
        forward = estimate_flow(previous.guide, current.guide)
        backward = estimate_flow(current.guide, previous.guide)
        # (5, H, W): the current frame and the backward flow, warped to the previous frame.
        warped = warp(torch.cat([current.rgb, backward]), forward)
        visible = _crop(occlusion_mask(forward, warped[3:]), border)
        if visible.float().mean() < _MIN_FRACTION:
            return math.nan
        squared_error = (previous.rgb - warped[:3]).square().sum(0)
        return _crop(squared_error, border)[visible].double().mean().item()

    return PairMeter("warp-error", prepare, score, needs_reference=False)


def warp(x: Tensor, flow: Tensor) -> Tensor:
    """Sample `x` where `flow` points, bilinearly; outside, the edge repeats.

    Args:
        x: (C, H, W).
        flow: (2, H, W), pixels, dx then dy.

    Returns:
        (C, H, W).
    """
    height, width = x.shape[-2:]
    lines = torch.arange(height, dtype=flow.dtype, device=flow.device)[:, None]
    columns = torch.arange(width, dtype=flow.dtype, device=flow.device)
    # Without align_corners, -1 and 1 are the outer edges of the first and the last pixel.
    grid_x = (columns + flow[0] + 0.5) * (2 / width) - 1
    grid_y = (lines + flow[1] + 0.5) * (2 / height) - 1
    # (1, H, W, 2)
    grid = torch.stack([grid_x, grid_y], -1)[None]
    return functional.grid_sample(x[None], grid, padding_mode="border", align_corners=False)[0]


def occlusion_mask(forward: Tensor, backward_warped: Tensor) -> Tensor:
    """Find the pixels that are visible in both frames and away from motion boundaries.

    Args:
        forward: (2, H, W), flow from a frame to the next one, pixels.
        backward_warped: (2, H, W), flow from the next frame back, sampled where `forward` points.

    Returns:
        (H, W) bool, True where a pixel is visible in both frames.

    Source: Sundaram et al., ECCV 2010, and Ruder et al., GCPR 2016, Eq. 5 (disocclusion) and Eq. 6
    (motion boundary).
    """
    height, width = forward.shape[-2:]
    squared_length = forward.square().sum(0)

    # Eq. 5: forward and backward flow cancel.
    squared_sum = (forward + backward_warped).square().sum(0)
    squared_lengths = squared_length + backward_warped.square().sum(0)
    is_consistent = squared_sum <= 0.01 * squared_lengths + 0.5

    # Eq. 6: neighboring pixels move alike.
    dx = functional.pad(forward[:, :, 1:] - forward[:, :, :-1], (0, 1))
    dy = functional.pad(forward[:, 1:] - forward[:, :-1], (0, 0, 0, 1))
    squared_gradient = dx.square().sum(0) + dy.square().sum(0)
    is_smooth = squared_gradient <= 0.01 * squared_length + 0.002

    # The pixel stays within the image.
    x = torch.arange(width, device=forward.device) + forward[0]
    y = torch.arange(height, device=forward.device)[:, None] + forward[1]
    is_inside = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    return is_consistent & is_smooth & is_inside


class _Pair(NamedTuple):
    """A restored frame and its reference, as the metric uses them."""

    sr: Any
    gt: Any


def _tof(border: int) -> PairMeter:
    """Create the meter of tOF: the length of the difference of the motion of clip and reference.

    Source: Chu et al., TecoGAN, ACM TOG 2020, Sec. 5.2; parameters as in its published code.
    """
    cv2 = _import_opencv("tof")

    def estimate_flow(start: _Gray, end: _Gray) -> _Flow:
        return cv2.calcOpticalFlowFarneback(start, end, None, **_FARNEBACK)

    def prepare(sr: Tensor, gt: Tensor | None) -> _Pair:
        assert gt is not None
        _check_size(sr, border)
        return _Pair(_full_range_gray(sr, cv2), _full_range_gray(gt, cv2))

    def score(previous: _Pair, current: _Pair) -> float:
        # (H, W, 2)
        sr_flow = estimate_flow(previous.sr, current.sr)
        gt_flow = estimate_flow(previous.gt, current.gt)
        difference = sr_flow - gt_flow
        height, width = difference.shape[:2]
        difference = difference[border : height - border, border : width - border]
        length = np.sqrt(np.square(difference).sum(-1))
        return float(length.mean(dtype=np.float64))

    return PairMeter("tof", prepare, score, needs_reference=True)


def _full_range_gray(x: Tensor, cv2: Any) -> _Gray:
    """Convert (3, H, W) in [0, 1] to the full-range gray of OpenCV, as TecoGAN does."""
    return cv2.cvtColor(to_image_array(x), cv2.COLOR_RGB2GRAY)


def _flicker(border: int, device: torch.device) -> PairMeter:
    """Create the meter of flicker.

    The difference of two consecutive values with independent errors has twice their variance, so
    the root mean square of the differences over √2 is the temporal standard deviation, and slow
    changes do not count (von Neumann et al., The Mean Square Successive Difference, 1941).
    """

    def prepare(sr: Tensor, gt: Tensor | None) -> _Pair:
        assert gt is not None
        _check_size(sr, border)
        return _Pair(_luma(sr.to(device)), _luma(gt.to(device)))

    def score(previous: _Pair, current: _Pair) -> float:
        # (1, 1, H, W)
        gt_change = (current.gt - previous.gt).abs()[None, None]
        mean_change = functional.avg_pool2d(
            gt_change,
            _STATIC_WINDOW_PX,
            stride=1,
            padding=_STATIC_WINDOW_PX // 2,
            count_include_pad=False,
        )[0, 0]
        is_static = _crop(mean_change <= _MAX_STATIC_LEVELS, border)
        if is_static.double().mean() < _MIN_FRACTION:
            return math.nan
        difference = _crop(current.sr - previous.sr, border)[is_static]
        return math.sqrt(difference.square().mean().item() / 2)

    return PairMeter("flicker", prepare, score, needs_reference=True)


def _check_size(x: Tensor, border: int) -> None:
    """Check that the flow can be estimated and that the border leaves pixels."""
    height, width = x.shape[-2:]
    min_px = max(_DIS_MIN_PX, 2 * border + 1)
    if min(height, width) < min_px:
        raise ValueError(
            f"frames of {width}×{height} are too small; at least {min_px} pixels a side"
        )
