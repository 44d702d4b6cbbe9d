"""TOFlow: frames enlarged, aligned to the middle one by optical flow that is learned for the task, and fused.

    encode, of each frame (B, 3, H, W)
      bicubic ×s, normalized ── halved three times ── (B, 3, sH, sW) … (B, 3, sH/8, sW/8)
    fuse, of 2r + 1 frames
      flow from the middle frame to each neighbor, coarse to fine: flow = 2 · up(flow);
        flow += five convolutions [middle, warp(neighbor, flow), flow]
      [warp(neighbor, flow) …] in order of time, 3·(2r + 1) channels
        ── conv 9×9, ReLU ── conv 9×9, ReLU ── 1×1, ReLU ── 1×1 ──(+)── sr (B, 1, 3, sH, sW)
      middle frame ───────────────────────────────────────────────┘

Published: 7 frames, ×4, Vimeo-90K (1.4 M parameters). The networks in circulation take frames that were enlarged
before, by MATLAB's bicubic kernel; here that is the first step, and `scale=1` leaves it out.

Source: Xue et al., "Video Enhancement with Task-Oriented Flow", IJCV 2019, Sec. 4 and Fig. 4; the flow network after
Ranjan and Black (SpyNet), CVPR 2017, with batch normalization.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from tubelet.errors import ConfigError
from tubelet.models.architecture import Architecture, Contract
from tubelet.models.state_dict import Rule, State, rename
from tubelet.ops.resize import imresize
from tubelet.ops.warp import backward_warp
from tubelet.types import Temporal

__all__ = ["ARCHITECTURE", "TOFlow", "TOFlowConfig"]

Features = tuple[Tensor, ...]
"""What is known of one frame: itself, enlarged and normalized, and halved up to three times, the largest first."""

_LEVELS = 4
_WIDTHS = (
    8,
    32,
    64,
    32,
    16,
    2,
)  # of the flow network: middle frame, warped neighbor and flow in; flow out
_CHANNELS = 64  # of the fusing convolutions
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, R, G, B


@dataclass(frozen=True, slots=True, kw_only=True)
class TOFlowConfig:
    """Shape of a `TOFlow`."""

    scale: int = 4
    """Factor by which frames are enlarged first; 1 where they are already, or to restore without enlarging."""
    num_frames: int = 7
    """Frames of the window, the middle one included; odd."""
    order: Literal["time", "middle_first"] = "time"
    """How frames enter the fusion. Names do not tell: weights converted from the authors' Torch want the middle first;
    MMagic's file is such a one, and is rearranged to the order of time as it is read."""

    def __post_init__(self) -> None:
        if self.scale < 1 or self.num_frames < 1 or self.num_frames % 2 == 0:
            raise ConfigError(f"{self} is out of range: scale ≥ 1, num_frames odd")
        if self.order not in ("time", "middle_first"):
            raise ConfigError(f"order={self.order!r} must be time or middle_first")


class ConvNorm(nn.Module):
    """Convolution 7×7, normalized over the batch, and cut at zero.

    Args:
        in_channels: of the input.
        out_channels: of the output.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 7, padding=3, bias=False)
        self.bn = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in, H, W) to (B, out, H, W)."""
        if self.training:
            return functional.relu_(self.bn(self.conv(x)))
        mean, variance = self.bn.running_mean, self.bn.running_var
        assert mean is not None
        assert variance is not None
        factor = (
            self.bn.weight * (variance + self.bn.eps).rsqrt()
        )  # part of the convolution, once trained
        weight, bias = self.conv.weight * factor[:, None, None, None], self.bn.bias - mean * factor
        return functional.relu_(functional.conv2d(x, weight, bias, padding=3))


class FlowLevel(nn.Module):
    """The flow network of one level: (B, 8, h, w) → the residual of the flow (B, 2, h, w)."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.Sequential(*(ConvNorm(a, b) for a, b in pairwise(_WIDTHS[:-1])))
        self.last = nn.Conv2d(_WIDTHS[-2], _WIDTHS[-1], 7, padding=3)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, 8, h, w) to (B, 2, h, w)."""
        return self.last(self.convs(x))


class TOFlow(nn.Module):
    """Restore the middle frame of a window with task-oriented flow; see the drawing on top of this file.

    Args:
        config: shape of the network.
    """

    frame_mean: Tensor
    frame_std: Tensor

    def __init__(self, config: TOFlowConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("frame_mean", torch.tensor(_MEAN).view(1, 3, 1, 1))
        self.register_buffer("frame_std", torch.tensor(_STD).view(1, 3, 1, 1))
        self.flow = nn.ModuleList(FlowLevel() for _ in range(_LEVELS))
        self.conv_1 = nn.Conv2d(3 * config.num_frames, _CHANNELS, 9, padding=4)
        self.conv_2 = nn.Conv2d(_CHANNELS, _CHANNELS, 9, padding=4)
        self.conv_3 = nn.Conv2d(_CHANNELS, _CHANNELS, 1)
        self.conv_4 = nn.Conv2d(_CHANNELS, 3, 1)

    def encode(self, frame: Tensor) -> Features:
        """Compute what depends on one frame alone: enlarge it, and halve that.

        Args:
            frame: (B, 3, H, W); sH and sW multiples of 8.

        Returns:
            (B, 3, sH, sW) … (B, 3, sH/8, sW/8), normalized, for `fuse`.
        """
        if self.config.scale != 1:
            frame = imresize(frame, self.config.scale)
        levels = [(frame - self.frame_mean) / self.frame_std]
        for _ in range(_LEVELS - 1):
            levels.append(functional.avg_pool2d(levels[-1], 2))
        return tuple(levels)

    def estimate_flow(self, middle: Features, neighbor: Features) -> Tensor:
        """Estimate where each pixel of the middle frame lies in a neighbor: (B, 2, sH, sW), pixels, dx then dy."""
        flow, warped = torch.zeros_like(middle[-1][:, :2]), neighbor[-1]
        for i, level in enumerate(self.flow):
            frame = middle[_LEVELS - 1 - i]
            if i:
                flow = 2 * functional.interpolate(
                    flow, scale_factor=2.0, mode="bilinear", align_corners=True
                )
                warped = backward_warp(neighbor[_LEVELS - 1 - i], flow)
            flow = flow + level(torch.cat([frame, warped, flow], 1))
        return flow

    def fuse(self, window: Sequence[Features]) -> Tensor:
        """Restore the middle frame of a window: `encode` of each of its 2r + 1 frames → (B, 3, sH, sW)."""
        half = len(window) // 2
        middle = window[half]
        aligned = [
            middle[0] if t == half else backward_warp(frame[0], self.estimate_flow(middle, frame))
            for t, frame in enumerate(window)
        ]
        if self.config.order == "middle_first":
            aligned.insert(0, aligned.pop(half))
        x = functional.relu_(self.conv_1(torch.cat(aligned, 1)))
        x = functional.relu_(self.conv_2(x))
        x = self.conv_4(functional.relu_(self.conv_3(x)))
        return x.add_(middle[0]).mul(self.frame_std).add_(self.frame_mean)

    def forward(self, lq: Tensor) -> Tensor:
        """Restore the middle frame: (B, 2r + 1, 3, H, W) → (B, 1, 3, sH, sW)."""
        return self.fuse([self.encode(frame) for frame in lq.unbind(1)]).unsqueeze(1)


_CONVOLUTIONS = len(_WIDTHS) - 1
"""Of each level of the flow; the last one has no normalization."""


def _module(level: str, index: int, layer: str) -> str:
    place = "last" if index == _CONVOLUTIONS - 1 else f"convs.{index}.{layer}"
    return f"flow.{level}.{place}."


def _count_modules(match: re.Match[str]) -> str:
    """Rename a layer of a level in which every convolution stands with its normalization, as in MMagic."""
    return _module(match[1], int(match[2]), match[3])


def _count_layers(match: re.Match[str]) -> str:
    """Rename a layer of a level in which convolutions, normalizations and activations are counted, as in BasicSR."""
    index, layer = divmod(int(match[2]), 3)
    return _module(match[1], index, "bn" if layer else "conv")


_LEVEL = r"^spynet\.basic_module\.(\d)\.basic_module\.(\d+)\."
_STATISTICS: Rule = (r"^(mean|std)$", r"frame_\1")
_MMAGIC: tuple[Rule, ...] = (
    (r"^conv([1-4])\.", r"conv_\1."),
    (_LEVEL + r"(conv|bn)\.", _count_modules),
    _STATISTICS,
)
_BASICSR: tuple[Rule, ...] = ((_LEVEL + r"(?=\w+$)", _count_layers), _STATISTICS)


def _translate(state: State) -> dict[str, Tensor] | None:
    """Map the names of BasicSR and of MMagic to ours; None where they are of another network."""
    is_mmagic = "spynet.basic_module.0.basic_module.0.conv.weight" in state
    first = state.get("conv1.weight" if is_mmagic else "conv_1.weight")
    if first is None or first.ndim != 4 or first.shape[1] < 3:
        return None
    if is_mmagic:
        return {**rename(state, _MMAGIC), "conv_1.weight": _in_time(first)}
    if "spynet.basic_module.0.basic_module.1.running_var" in state:
        return rename(state, _BASICSR)
    return dict(state) if "flow.0.convs.0.conv.weight" in state else None


def _in_time(weight: Tensor) -> Tensor:
    """Rearrange a convolution of frames, the middle one first, to the order of time."""
    frames = list(weight.chunk(weight.shape[1] // 3, 1))
    frames.insert(len(frames) // 2, frames.pop(0))
    return torch.cat(frames, 1)


def _infer(state: State) -> TOFlowConfig:
    return TOFlowConfig(num_frames=state["conv_1.weight"].shape[1] // 3)


def _contract(config: TOFlowConfig) -> Contract:
    # Frames are halved three times after they are enlarged. Five convolutions of 7×7 at every level see 15·(8+4+2+1)
    # pixels of the result, the fusion 8 more.
    halved = 2 ** (_LEVELS - 1)
    multiple = halved // math.gcd(halved, config.scale)
    return Contract(
        scale=config.scale,
        temporal=Temporal("window", radius=config.num_frames // 2),
        halo_px=-(-(15 * (2 * halved - 1) + 8) // config.scale),
        size_multiple=multiple,
        min_size_px=multiple,
        encodes=True,
    )


ARCHITECTURE = Architecture(
    name="TOFlow",
    config=TOFlowConfig,
    build=TOFlow,
    translate=_translate,
    infer=_infer,
    contract=_contract,
    derived=("frame_mean", "frame_std", "num_batches_tracked"),
    source="https://arxiv.org/abs/1711.09078",
)
