"""TOFlow aligns frames by optical flow that is trained for the task, and fuses them.

    encode, for each frame (B, 3, H, W)
      bicubic ×s, normalized ── halved three times ── (B, 3, sH, sW) … (B, 3, sH/8, sW/8)
    fuse, for a window of T = 2r + 1 encoded frames
      flow from the middle frame to each neighbor; starts at 0, then from the coarsest to the finest
      of the four levels:
        flow = 2 · up(flow)                                            not at the coarsest
        flow = flow + five convolutions [middle, warp(neighbor, flow), flow]
      [warp(neighbor, flow), …, middle, …] in order of time, 3·T channels
        ── conv 9×9, ReLU ── conv 9×9, ReLU ── 1×1, ReLU ── 1×1 ──(+)── sr (B, 1, 3, sH, sW)
      middle frame ───────────────────────────────────────────────┘

Published: 7 frames, ×4, Vimeo-90K (1.4 M parameters). Published networks take frames that were
enlarged beforehand, by the bicubic kernel of MATLAB; here that is the first step, and `scale=1`
omits it.

Source: Xue et al., "Video Enhancement with Task-Oriented Flow", IJCV 2019, Sec. 4 and Fig. 4; the
flow network is that of Ranjan and Black (SpyNet), CVPR 2017, with batch normalization.
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

from tubelet.models.architecture import Architecture, Contract
from tubelet.models.config_checks import check_choice, check_min, check_odd
from tubelet.models.state_dict import Rule, State, rename
from tubelet.ops.resize import imresize
from tubelet.ops.warp import backward_warp
from tubelet.types import Temporal

__all__ = ["ARCHITECTURE", "TOFlow", "TOFlowConfig"]

Encoding = tuple[Tensor, ...]
"""Result of `TOFlow.encode` for one frame, which all windows with this frame share.

A pyramid of the enlarged and normalized frame, the largest level first: (B, 3, sH, sW),
(B, 3, sH/2, sW/2), (B, 3, sH/4, sW/4), (B, 3, sH/8, sW/8).
"""

_NUM_LEVELS = 4
# Channels of the flow network: middle frame, warped neighbor and flow in; flow out.
_FLOW_CHANNELS = (3 + 3 + 2, 32, 64, 32, 16, 2)
_NUM_FLOW_CONVS = len(_FLOW_CHANNELS) - 1
# Channels of the convolutions that fuse the frames.
_CHANNELS = 64
# Mean and standard deviation of ImageNet: R, G, B.
_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, slots=True, kw_only=True)
class TOFlowConfig:
    """Configuration of `TOFlow`."""

    scale: int = 4
    """Factor by which frames are first enlarged; 1 if they are enlarged already, or to restore them
    at their size."""
    num_frames: int = 7
    """Number of frames in the window, including the middle one; odd."""
    order: Literal["time", "middle_first"] = "time"
    """Order of the frames in the fusion, which a file does not show. Weights converted from the
    authors' Torch code expect "middle_first". The file of MMagic is one of these, but is rearranged
    to the order of time when it is loaded."""

    def __post_init__(self) -> None:
        check_min(self, "scale", 1)
        check_odd(self, "num_frames")
        check_choice(self, "order", ("time", "middle_first"))


class ConvNorm(nn.Module):
    """Convolution 7×7, batch normalization and ReLU.

    In inference, the convolution includes the normalization.

    Args:
        in_channels: Number of channels of the input.
        out_channels: Number of channels of the output.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 7, padding=3, bias=False)
        self.bn = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in, H, W) to (B, out, H, W)."""
        if self.training:
            return functional.relu_(self.bn(self.conv(x)))
        # After training, the normalization is a constant scale and shift of each channel, which the
        # weight and bias of the convolution absorb.
        mean = self.bn.running_mean
        variance = self.bn.running_var
        assert mean is not None
        assert variance is not None
        factor = self.bn.weight * (variance + self.bn.eps).rsqrt()
        weight = self.conv.weight * factor[:, None, None, None]
        bias = self.bn.bias - mean * factor
        return functional.relu_(functional.conv2d(x, weight, bias, padding=3))


class FlowLevel(nn.Module):
    """Flow network of one level: computes a correction of the flow from the coarser level."""

    def __init__(self) -> None:
        super().__init__()
        convs: list[nn.Module] = []
        for in_channels, out_channels in pairwise(_FLOW_CHANNELS[:-1]):
            convs.append(ConvNorm(in_channels, out_channels))
        self.convs = nn.Sequential(*convs)
        self.last = nn.Conv2d(_FLOW_CHANNELS[-2], _FLOW_CHANNELS[-1], 7, padding=3)

    def forward(self, x: Tensor) -> Tensor:
        """Map [middle, warped neighbor, flow] to a correction: (B, 8, h, w) → (B, 2, h, w)."""
        return self.last(self.convs(x))


class TOFlow(nn.Module):
    """Restore the middle frame of a window with task-oriented flow; see the top of this file.

    Args:
        config: Configuration of the network.
    """

    frame_mean: Tensor
    frame_std: Tensor

    def __init__(self, config: TOFlowConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("frame_mean", torch.tensor(_MEAN).view(1, 3, 1, 1))
        self.register_buffer("frame_std", torch.tensor(_STD).view(1, 3, 1, 1))
        # From the coarsest level to the finest.
        self.flow = nn.ModuleList(FlowLevel() for _ in range(_NUM_LEVELS))
        self.conv_1 = nn.Conv2d(3 * config.num_frames, _CHANNELS, 9, padding=4)
        self.conv_2 = nn.Conv2d(_CHANNELS, _CHANNELS, 9, padding=4)
        self.conv_3 = nn.Conv2d(_CHANNELS, _CHANNELS, 1)
        self.conv_4 = nn.Conv2d(_CHANNELS, 3, 1)

    def encode(self, frame: Tensor) -> Encoding:
        """Enlarge and normalize a frame, and build its pyramid, to share it between windows.

        Args:
            frame: Low-quality frame, (B, 3, H, W); sH and sW are multiples of 8.

        Returns:
            Four tensors: the normalized pyramid (B, 3, sH, sW) … (B, 3, sH/8, sW/8).
        """
        if self.config.scale != 1:
            frame = imresize(frame, self.config.scale)
        levels = [(frame - self.frame_mean) / self.frame_std]
        for _ in range(_NUM_LEVELS - 1):
            levels.append(functional.avg_pool2d(levels[-1], 2))
        return tuple(levels)

    def estimate_flow(self, middle: Encoding, neighbor: Encoding) -> Tensor:
        """Estimate the optical flow from the middle frame to a neighbor.

        Args:
            middle: Result of `encode` for the middle frame.
            neighbor: Result of `encode` for the neighbor.

        Returns:
            Flow (B, 2, sH, sW) in pixels, dx then dy.
        """
        # The coarsest level starts without motion.
        flow = torch.zeros_like(middle[-1][:, :2])
        warped = neighbor[-1]
        for i, level in enumerate(self.flow):
            # The pyramid is ordered from fine to coarse, the flow networks from coarse to fine.
            pyramid_index = _NUM_LEVELS - 1 - i
            if i > 0:
                # Flow is in pixels, so it doubles with the size.
                flow = 2 * functional.interpolate(
                    flow, scale_factor=2.0, mode="bilinear", align_corners=True
                )
                warped = backward_warp(neighbor[pyramid_index], flow)
            x = torch.cat([middle[pyramid_index], warped, flow], 1)
            flow = flow + level(x)
        return flow

    def fuse(self, window: Sequence[Encoding]) -> Tensor:
        """Restore the middle frame of a window.

        Args:
            window: Results of `encode` for T frames.

        Returns:
            Restored frame, (B, 3, sH, sW), without a time axis: it is always one frame.
        """
        # Only the largest level of each pyramid is warped and fused; the others serve the flow.
        middle_index = len(window) // 2
        middle = window[middle_index]
        aligned: list[Tensor] = []
        for t, neighbor in enumerate(window):
            if t == middle_index:
                aligned.append(middle[0])
            else:
                aligned.append(backward_warp(neighbor[0], self.estimate_flow(middle, neighbor)))
        if self.config.order == "middle_first":
            aligned.insert(0, aligned.pop(middle_index))

        # (B, 3·T, sH, sW)
        x = torch.cat(aligned, 1)
        x = functional.relu_(self.conv_1(x))
        x = functional.relu_(self.conv_2(x))
        x = functional.relu_(self.conv_3(x))
        x = self.conv_4(x)
        # Add the middle frame, and undo the normalization.
        return x.add_(middle[0]).mul(self.frame_std).add_(self.frame_mean)

    def forward(self, lq: Tensor) -> Tensor:
        """Restore the middle frame: (B, T, 3, H, W) → (B, 1, 3, sH, sW)."""
        window = [self.encode(frame) for frame in lq.unbind(1)]
        return self.fuse(window).unsqueeze(1)


def _flow_layer(level: str, index: int, layer: str) -> str:
    """Return our name of a layer in the flow network, up to its last dot.

    Args:
        level: Index of the level, from the coarsest.
        index: Index of the convolution in its level.
        layer: "conv" or "bn"; the last convolution has no normalization.
    """
    if index == _NUM_FLOW_CONVS - 1:
        return f"flow.{level}.last."
    return f"flow.{level}.convs.{index}.{layer}."


def _from_mmagic(match: re.Match[str]) -> str:
    """Rename a layer of MMagic, which groups each convolution with its normalization."""
    return _flow_layer(match[1], int(match[2]), match[3])


def _from_basicsr(match: re.Match[str]) -> str:
    """Rename a layer of BasicSR, which counts convolutions, normalizations and activations."""
    index, position = divmod(int(match[2]), 3)
    return _flow_layer(match[1], index, "conv" if position == 0 else "bn")


# The groups are the indexes of the level and of the layer in it.
_LEVEL = r"^spynet\.basic_module\.(\d)\.basic_module\.(\d+)\."
_STATISTICS: Rule = (r"^(mean|std)$", r"frame_\1")
# MMagic (formerly MMEditing).
_MMAGIC: tuple[Rule, ...] = (
    (r"^conv([1-4])\.", r"conv_\1."),
    (_LEVEL + r"(conv|bn)\.", _from_mmagic),
    _STATISTICS,
)
# The last part of a name, such as "weight", stays.
_BASICSR: tuple[Rule, ...] = ((_LEVEL + r"(?=\w+$)", _from_basicsr), _STATISTICS)


def _translate(state: State) -> dict[str, Tensor] | None:
    """Rename the tensors of a file of BasicSR or of MMagic.

    Returns:
        The renamed state dict, or None if it belongs to another architecture.
    """
    is_mmagic = "spynet.basic_module.0.basic_module.0.conv.weight" in state
    # The convolution that fuses the frames: (64, 3·T, 9, 9).
    fusion_weight = state.get("conv1.weight" if is_mmagic else "conv_1.weight")
    if fusion_weight is None or fusion_weight.ndim != 4 or fusion_weight.shape[1] < 3:
        return None
    if is_mmagic:
        renamed = rename(state, _MMAGIC)
        # Converted from the authors' Torch code, which fuses the middle frame first.
        renamed["conv_1.weight"] = _to_time_order(fusion_weight)
        return renamed
    if "spynet.basic_module.0.basic_module.1.running_var" in state:
        return rename(state, _BASICSR)
    if "flow.0.convs.0.conv.weight" in state:
        return dict(state)
    return None


def _to_time_order(weight: Tensor) -> Tensor:
    """Rearrange the input channels of a convolution from the middle frame first to time order."""
    frames = list(weight.chunk(weight.shape[1] // 3, 1))
    middle = frames.pop(0)
    # Half of the neighbors are before the middle frame.
    frames.insert(len(frames) // 2, middle)
    return torch.cat(frames, 1)


def _infer(state: State) -> TOFlowConfig:
    # Names and shapes show neither the scale nor the order of the frames.
    return TOFlowConfig(num_frames=state["conv_1.weight"].shape[1] // 3)


def _contract(config: TOFlowConfig) -> Contract:
    # Frames are halved three times after they are enlarged.
    reduction = 2 ** (_NUM_LEVELS - 1)
    size_multiple = reduction // math.gcd(reduction, config.scale)
    # In pixels of the result: five convolutions 7×7 see 15 pixels of their level on each side, so
    # 15 · (8 + 4 + 2 + 1) in all four; the two convolutions 9×9 of the fusion see 8 more. Motion,
    # by which the warp reaches further, is not included.
    reach_px = 15 * (2 * reduction - 1) + 8
    return Contract(
        scale=config.scale,
        temporal=Temporal("window", radius=config.num_frames // 2),
        halo_px=math.ceil(reach_px / config.scale),
        size_multiple=size_multiple,
        min_size_px=size_multiple,
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
