"""SESR: collapsible linear blocks, wide during training, a plain stack of convolutions afterwards.

    lq (B, T, 3, H, W), frame by frame; luma (B·T, 1, H, W)
      ├ 5×5 ─ act ─┬─ (3×3 with inner skip ─ act) × num_blocks ─┐
      │            └────────────────────────────────────────────┴(+)─ 5×5 ─ (B·T, s², H, W) ─┐
      └ nearest ×s ──────────────────────────────────────────────────────────────────────────┴(+)
                                                                     ─ pixel shuffle ─ luma of sr
      color ─ bicubic ×s ─ color of sr                                        sr (B, T, 3, sH, sW)

    block    k×k convolution to `expanded_channels`, then 1×1; both are linear, so that they and
             the inner skip equal one k×k convolution

Published configurations (Table 1), 256 expanded channels, PReLU:
    M3, M5, M7, M11    16 channels and 3, 5, 7, 11 blocks
    XL                 32 channels and 11 blocks
The published weights are for TensorFlow; no layout for PyTorch is in circulation.

Source: Bhardwaj et al., Collapsible Linear Blocks for Super-Efficient Super Resolution, MLSys 2022,
Sections 3.1, 3.2.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from tubelet.models.architecture import Architecture, Contract
from tubelet.models.config_checks import check_choice, check_min
from tubelet.models.state_dict import State, count_names, shape_of
from tubelet.ops.resize import resample
from tubelet.types import Temporal

__all__ = ["ARCHITECTURE", "SESR", "LinearBlock", "SESRConfig"]

_SCALES = (2, 3, 4)
# Weights of R, G and B, in [0, 1], in BT.601 luma, from 16 to 235; their sum is 219.
_BT601_WEIGHTS = (65.481, 128.553, 24.966)


@dataclass(frozen=True, slots=True, kw_only=True)
class SESRConfig:
    """Configuration of a `SESR`."""

    PUBLISHED_NAMES: ClassVar[Mapping[str, str]] = {
        "f": "channels",
        "m": "num_blocks",
        "p": "expanded_channels",
    }

    scale: int = 4
    """Upscaling factor: 2, 3 or 4."""
    channels: int = 16
    """Width of the features."""
    num_blocks: int = 5
    """Number of 3×3 blocks between the first and the last."""
    expanded_channels: int = 256
    """Width inside the blocks during training; 0 for the collapsed network."""

    def __post_init__(self) -> None:
        check_choice(self, "scale", _SCALES)
        check_min(self, "channels", 1)
        check_min(self, "num_blocks", 0)
        check_min(self, "expanded_channels", 0)


class LinearBlock(nn.Module):
    """k×k convolution to `width` channels, 1×1 convolution, and a skip, applied as one convolution.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_px: Side of the kernel, k.
        width: Channels between the two convolutions.
        skip: Add the input to the output; both must have the same number of channels.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_px: int,
        width: int,
        *,
        skip: bool = False,
    ) -> None:
        super().__init__()
        self.wide = nn.Conv2d(in_channels, width, kernel_px, padding=kernel_px // 2)
        self.narrow = nn.Conv2d(width, out_channels, 1)
        self.skip = skip

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in, H, W) to (B, out, H, W)."""
        weight, bias = self.collapsed()
        padding = weight.shape[-1] // 2
        return functional.conv2d(x, weight, bias, padding=padding)

    def collapsed(self) -> tuple[Tensor, Tensor]:
        """Compute the equivalent convolution.

        Returns:
            Weight (out, in, k, k) and bias (out,).

        Source: Algorithms 1 and 2.
        """
        # Algorithm 1: the product of the two convolutions
        narrow = self.narrow.weight[:, :, 0, 0]  # (out, width)
        weight = torch.einsum("ow,wikl->oikl", narrow, self.wide.weight)
        bias = narrow @ _bias(self.wide) + _bias(self.narrow)
        # Algorithm 2: the skip is a convolution with one in the middle of the kernels
        if self.skip:
            margin = weight.shape[-1] // 2
            identity = torch.eye(
                weight.shape[0],
                device=weight.device,
                dtype=weight.dtype,
            )
            kernel = identity[:, :, None, None]
            weight = weight + functional.pad(kernel, (margin,) * 4)
        return weight, bias

    def collapse(self) -> nn.Conv2d:
        """Return the equivalent plain convolution."""
        weight, bias = self.collapsed()
        out_channels, in_channels, kernel_px, _ = weight.shape
        conv = nn.Conv2d(
            in_channels,
            out_channels,
            kernel_px,
            padding=kernel_px // 2,
            device=weight.device,
            dtype=weight.dtype,
        )
        state = {"weight": weight.detach(), "bias": bias.detach()}
        conv.load_state_dict(state)
        return conv


def _bias(conv: nn.Conv2d) -> Tensor:
    assert conv.bias is not None
    return conv.bias


class SESR(nn.Module):
    """SESR, applied to each frame independently; see the drawing at the top of this file.

    Args:
        config: Configuration of the network.
    """

    luma_of_rgb: Tensor

    def __init__(self, config: SESRConfig) -> None:
        super().__init__()
        self.config = config
        c = config.channels
        width = config.expanded_channels
        self.first = _build_block(1, c, 5, width)
        self.body = nn.ModuleList()
        for _ in range(config.num_blocks):
            self.body.append(_build_block(c, c, 3, width, skip=True))
        self.last = _build_block(c, config.scale**2, 5, width)
        self.acts = nn.ModuleList()
        for _ in range(config.num_blocks + 1):
            self.acts.append(nn.PReLU(c))
        weights = torch.tensor(_BT601_WEIGHTS) / 255
        weights = weights.view(1, 3, 1, 1)
        self.register_buffer("luma_of_rgb", weights, persistent=False)

    def forward(self, lq: Tensor) -> Tensor:
        """Upscale a clip.

        Args:
            lq: Low-quality clip, (B, T, 3, H, W), in [0, 1].

        Returns:
            (B, T, 3, sH, sW); values can exceed [0, 1].
        """
        frames = lq.flatten(0, 1).contiguous()  # (B·T, 3, H, W)
        luma = self._luma(frames)
        first_act, *acts = self.acts
        first = first_act(self.first(luma))  # (B·T, C, H, W)
        x = first
        for conv, act in zip(self.body, acts, strict=True):
            x = act(conv(x))
        # The nearest-neighbor skip is equal in all s² sub-pixels: add it before the shuffle.
        luma_sr = self.last(x + first) + luma  # (B·T, s², H, W)
        luma_sr = functional.pixel_shuffle(luma_sr, self.config.scale)  # (B·T, 1, sH, sW)

        # Y, Cb and Cr are linear in R, G and B: new luma with bicubic Cb and Cr is bicubic RGB plus
        # the difference of luma, times 255/219, in all three channels.
        height, width = luma_sr.shape[-2:]
        rgb = resample(frames, (height, width))
        sr = rgb + (luma_sr - self._luma(rgb)) * (255 / 219)  # (B·T, 3, sH, sW)
        return sr.reshape(*lq.shape[:2], *sr.shape[1:])

    def _luma(self, rgb: Tensor) -> Tensor:
        """Compute BT.601 luma, (B, 1, H, W) from 16/255 to 235/255, of (B, 3, H, W)."""
        return (rgb * self.luma_of_rgb).sum(1, keepdim=True) + 16 / 255

    def collapse(self) -> SESR:
        """Replace each block, in place, by the equivalent convolution; return the network."""
        self.first = _collapsed(self.first)
        self.last = _collapsed(self.last)
        self.body = nn.ModuleList(map(_collapsed, self.body))
        self.config = replace(self.config, expanded_channels=0)
        return self


def _build_block(
    in_channels: int,
    out_channels: int,
    kernel_px: int,
    width: int,
    *,
    skip: bool = False,
) -> LinearBlock | nn.Conv2d:
    if width == 0:
        return nn.Conv2d(in_channels, out_channels, kernel_px, padding=kernel_px // 2)
    return LinearBlock(in_channels, out_channels, kernel_px, width, skip=skip)


def _collapsed(conv: nn.Module) -> nn.Module:
    return conv.collapse() if isinstance(conv, LinearBlock) else conv


def _translate(state: State) -> dict[str, Tensor] | None:
    """Take our own names, with blocks (`first.wide.weight`) or collapsed (`first.weight`)."""
    is_collapsed = "first.wide.weight" not in state
    first = shape_of(state, "first.weight" if is_collapsed else "first.wide.weight")
    last_bias = shape_of(state, "last.bias" if is_collapsed else "last.narrow.bias")
    if len(first) != 4 or first[1:] != (1, 5, 5):
        return None
    if len(shape_of(state, "acts.0.weight")) != 1:
        return None
    if last_bias not in ((4,), (9,), (16,)):
        return None
    return dict(state)


def _infer(state: State) -> SESRConfig:
    wide = state.get("first.wide.weight")
    last_bias = state["last.bias" if wide is None else "last.narrow.bias"]
    num_acts = count_names(state, r"acts\..*")
    return SESRConfig(
        scale=math.isqrt(last_bias.shape[0]),
        channels=state["acts.0.weight"].shape[0],
        num_blocks=num_acts - 1,
        expanded_channels=0 if wide is None else wide.shape[0],
    )


def _contract(config: SESRConfig) -> Contract:
    return Contract(
        scale=config.scale,
        temporal=Temporal("frame"),
        # Two 5×5 convolutions, and the 3×3 convolutions between them.
        halo_px=config.num_blocks + 4,
    )


ARCHITECTURE = Architecture(
    name=SESR.__name__,
    config=SESRConfig,
    build=SESR,
    translate=_translate,
    infer=_infer,
    contract=_contract,
    source="https://arxiv.org/abs/2103.09404",
)
