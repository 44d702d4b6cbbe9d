"""How steady a clip is: warping error, difference of motion (tOF), and flicker of what stands still.

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
_MIN_SHARE = 0.01  # of the pixels; with fewer to measure, a frame has no score
_STATIC_WINDOW_PX = 7
_STATIC_LEVELS = (
    2.0  # mean change of the reference's luma within the window: sensor and coding noise stay below
)
_DIS_MIN_PX = 16
_FARNEBACK = (
    0.5,
    3,
    15,
    3,
    5,
    1.2,
    0,
)  # TecoGAN: pyramid scale, levels, window, iterations, poly n, poly sigma, flags


def temporal_meter(name: str, *, border: int, device: torch.device) -> PairMeter:
    """Make the meter of `warp-error`, `tof` or `flicker`.

    Args:
        name: of the metric.
        border: pixels of each side whose differences do not count; flow and masks see the whole frame.
        device: where frames are warped and compared.

    Raises:
        ResourceError: OpenCV is absent, and the metric needs flow.
    """
    if name == "flicker":
        return _flicker(border, device)
    return _warp_error(border, device) if name == "warp-error" else _tof(border)


def _opencv(name: str) -> Any:
    try:
        import cv2
    except ImportError as error:
        raise ResourceError(
            f"{name} needs OpenCV for its flow; install it: pip install 'tubelet[metrics]'"
        ) from error
    return cv2


def _luma(x: Tensor) -> Tensor:
    """(3, H, W) in [0, 1] → (H, W) in [16, 235]."""
    return to_channel(x, "y")[0]


def _gray(x: Tensor) -> _Gray:
    return _luma(x).round().byte().cpu().numpy()


def _inside(x: Tensor, border: int) -> Tensor:
    return x[..., border : x.shape[-2] - border, border : x.shape[-1] - border]


class _Warpable(NamedTuple):
    rgb: Tensor  # (3, H, W) in [0, 1], float32, in steps of 1/255
    guide: _Gray  # of which the flow is estimated


def _warp_error(border: int, device: torch.device) -> PairMeter:
    """Make the meter of the warping error; docs/metrics.md has its definition.

    Source: Lai et al., Learning Blind Video Temporal Consistency, ECCV 2018, Eq. 12 and 13.
    """
    cv2 = _opencv("warp-error")
    dis: Any = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)

    def prepare(sr: Tensor, gt: Tensor | None) -> _Warpable:
        _check_size(sr, border)
        rgb = quantize(sr.to(device).float())
        return _Warpable(rgb, _gray(sr if gt is None else gt))

    def score(before: _Warpable, now: _Warpable) -> float:
        forward, backward = (
            torch.from_numpy(flow).permute(2, 0, 1).to(device)
            for flow in (
                dis.calc(before.guide, now.guide, None),
                dis.calc(now.guide, before.guide, None),
            )
        )
        warped = warp(torch.cat([now.rgb, backward]), forward)
        visible = _inside(occlusion_mask(forward, warped[3:]), border)
        if visible.float().mean() < _MIN_SHARE:
            return math.nan
        error = _inside((before.rgb - warped[:3]).square().sum(0), border)
        return error[visible].double().mean().item()

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
    ys = torch.arange(height, dtype=flow.dtype, device=flow.device)[:, None]
    xs = torch.arange(width, dtype=flow.dtype, device=flow.device)
    u, v = (xs + flow[0] + 0.5) * (2 / width) - 1, (ys + flow[1] + 0.5) * (2 / height) - 1
    grid = torch.stack([u, v], -1)[None]  # (1, H, W, 2)
    return functional.grid_sample(x[None], grid, padding_mode="border", align_corners=False)[0]


def occlusion_mask(forward: Tensor, backward_warped: Tensor) -> Tensor:
    """Find the pixels that can be followed: seen in both frames, away from the edges of moving things.

    Args:
        forward: (2, H, W), flow from a frame to the next one, pixels.
        backward_warped: (2, H, W), flow from the next frame back, sampled where `forward` points.

    Returns:
        (H, W) bool, True where a pixel is visible in both frames.

    Source: Sundaram et al., ECCV 2010, and Ruder et al., GCPR 2016, Eq. 5 (disocclusion) and Eq. 6 (motion boundary).
    """
    height, width = forward.shape[-2:]
    length = forward.square().sum(0)
    consistent = (forward + backward_warped).square().sum(0) <= 0.01 * (
        length + backward_warped.square().sum(0)
    ) + 0.5
    dx = functional.pad(forward[:, :, 1:] - forward[:, :, :-1], (0, 1))
    dy = functional.pad(forward[:, 1:] - forward[:, :-1], (0, 0, 0, 1))
    smooth = dx.square().sum(0) + dy.square().sum(0) <= 0.01 * length + 0.002
    x = torch.arange(width, device=forward.device) + forward[0]
    y = torch.arange(height, device=forward.device)[:, None] + forward[1]
    inside = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    return consistent & smooth & inside


def _tof(border: int) -> PairMeter:
    """Make the meter of tOF: the length of the difference of the motion of clip and reference.

    Source: Chu et al., TecoGAN, ACM TOG 2020, Sec. 5.2; parameters as in its published code.
    """
    cv2 = _opencv("tof")

    def flow(before: _Gray, now: _Gray) -> _Flow:
        return cv2.calcOpticalFlowFarneback(before, now, None, *_FARNEBACK)

    def prepare(sr: Tensor, gt: Tensor | None) -> tuple[_Gray, _Gray]:
        assert gt is not None
        _check_size(sr, border)
        return _full_gray(sr, cv2), _full_gray(gt, cv2)

    def score(before: tuple[_Gray, _Gray], now: tuple[_Gray, _Gray]) -> float:
        difference = flow(before[0], now[0]) - flow(before[1], now[1])
        height, width = difference.shape[:2]
        difference = difference[border : height - border, border : width - border]
        return float(np.sqrt(np.square(difference).sum(-1)).mean(dtype=np.float64))

    return PairMeter("tof", prepare, score, needs_reference=True)


def _full_gray(x: Tensor, cv2: Any) -> _Gray:
    """Full-range gray of OpenCV, as TecoGAN has it."""
    return cv2.cvtColor(to_image_array(x), cv2.COLOR_RGB2GRAY)


def _flicker(border: int, device: torch.device) -> PairMeter:
    """Make the meter of flicker.

    The difference of two consecutive values with independent errors has twice their variance, so the root mean
    square of the differences over √2 is the temporal standard deviation, and slow changes do not count (von Neumann
    et al., The Mean Square Successive Difference, 1941).
    """

    def prepare(sr: Tensor, gt: Tensor | None) -> tuple[Tensor, Tensor]:
        assert gt is not None
        _check_size(sr, border)
        return _luma(sr.to(device)), _luma(gt.to(device))

    def score(before: tuple[Tensor, Tensor], now: tuple[Tensor, Tensor]) -> float:
        change = (now[1] - before[1]).abs()[None, None]
        window = _STATIC_WINDOW_PX
        around = functional.avg_pool2d(change, window, 1, window // 2, count_include_pad=False)[
            0, 0
        ]
        static = _inside(around <= _STATIC_LEVELS, border)
        if static.double().mean() < _MIN_SHARE:
            return math.nan
        difference = _inside(now[0] - before[0], border)[static]
        return math.sqrt(difference.square().mean().item() / 2)

    return PairMeter("flicker", prepare, score, needs_reference=True)


def _check_size(x: Tensor, border: int) -> None:
    smallest = max(_DIS_MIN_PX, 2 * border + 1)
    if min(x.shape[-2:]) < smallest:
        raise ValueError(
            f"frames of {x.shape[-1]}×{x.shape[-2]} are too small; at least {smallest} pixels a side"
        )
