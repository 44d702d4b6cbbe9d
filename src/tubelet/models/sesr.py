"""SESR: collapsible linear blocks, trained wide with many skips, run as a plain stack of convolutions.

    lq (B, T, 3, H, W), frame by frame; luma (B·T, 1, H, W)
      ├ 5×5, f ─ act ─┬─ (3×3 with inner skip, act) × m ─┐
      │               └──────────────────────────────────┴─ 5×5 → (B·T, s², H, W) ─┐
      └ nearest ×s ────────────────────────────────────────────────────────────────┴─ pixel shuffle ─ luma of sr
      color ─ bicubic ×s ────────────────────────────────────────────────────────────────────────┴ sr (B, T, 3, sH, sW)

    block: k×k to p channels, then 1×1; both linear, so they equal one k×k convolution, and so does the inner skip

Published configurations (Table 1), p = 256: M3, M5, M7, M11 with f = 16 and XL with f = 32, m = 11; PReLU.
The published weights are for TensorFlow; no layout for PyTorch is in circulation.

Source: Bhardwaj et al., Collapsible Linear Blocks for Super-Efficient Super Resolution, MLSys 2022, Sections 3.1, 3.2.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from tubelet.errors import ConfigError
from tubelet.models.architecture import Architecture, Contract
from tubelet.models.state_dict import State, count_names, shape_of
from tubelet.ops.resize import resample
from tubelet.types import Temporal

__all__ = ["ARCHITECTURE", "SESR", "LinearBlock", "SESRConfig"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SESRConfig:
    """Shape of a `SESR`."""

    PUBLISHED_NAMES: ClassVar[Mapping[str, str]] = {
        "f": "channels",
        "m": "num_blocks",
        "p": "expanded_channels",
    }

    scale: int = 4
    """Factor of the output size: 2, 3 or 4."""
    channels: int = 16
    """Width of the features."""
    num_blocks: int = 5
    """3×3 blocks between the first and the last."""
    expanded_channels: int = 256
    """Width inside the blocks in training; 0 for the collapsed network."""

    def __post_init__(self) -> None:
        if (
            self.scale not in (2, 3, 4)
            or self.channels < 1
            or self.num_blocks < 0
            or self.expanded_channels < 0
        ):
            raise ConfigError(f"{self} is out of range: scale 2, 3 or 4; f ≥ 1; m, p ≥ 0")


class LinearBlock(nn.Module):
    """k×k convolution to `width` channels, then 1×1, plus an inner skip: collapsed before it meets the image.

    Args:
        in_channels: of the input.
        out_channels: of the output.
        side: k.
        width: channels between the two.
        skip: add the input to the output; both must have as many channels.
    """

    def __init__(
        self, in_channels: int, out_channels: int, side: int, width: int, *, skip: bool = False
    ) -> None:
        super().__init__()
        self.wide = nn.Conv2d(in_channels, width, side, padding=side // 2)
        self.narrow = nn.Conv2d(width, out_channels, 1)
        self.skip = skip

    def forward(self, x: Tensor) -> Tensor:
        """Convolve (B, in, H, W) → (B, out, H, W)."""
        weight, bias = self.collapsed()
        return functional.conv2d(x, weight, bias, padding=weight.shape[-1] // 2)

    def collapsed(self) -> tuple[Tensor, Tensor]:
        """Multiply the two convolutions out (Algorithm 1) and add the skip (Algorithm 2): (out, in, k, k), (out,)."""
        narrow = self.narrow.weight[:, :, 0, 0]  # (out, width)
        weight = torch.einsum("ow,wikl->oikl", narrow, self.wide.weight)
        if self.skip:
            middle = self.wide.weight.shape[-1] // 2
            identity = torch.eye(weight.shape[0], device=weight.device, dtype=weight.dtype)
            weight = weight + functional.pad(identity[:, :, None, None], (middle,) * 4)
        return weight, narrow @ _bias(self.wide) + _bias(self.narrow)

    def collapse(self) -> nn.Conv2d:
        """Make the plain convolution that gives the same result."""
        weight, bias = self.collapsed()
        out_channels, in_channels, side, _ = weight.shape
        conv = nn.Conv2d(
            in_channels,
            out_channels,
            side,
            padding=side // 2,
            device=weight.device,
            dtype=weight.dtype,
        )
        conv.load_state_dict({"weight": weight.detach(), "bias": bias.detach()})
        return conv


def _bias(conv: nn.Conv2d) -> Tensor:
    assert conv.bias is not None
    return conv.bias


def _conv(
    in_channels: int, out_channels: int, side: int, p: int, *, skip: bool = False
) -> LinearBlock | nn.Conv2d:
    if p:
        return LinearBlock(in_channels, out_channels, side, p, skip=skip)
    return nn.Conv2d(in_channels, out_channels, side, padding=side // 2)


class SESR(nn.Module):
    """Enlarge every frame by itself; see the drawing on top of this file.

    Args:
        config: shape of the network.
    """

    luma_of_rgb: Tensor

    def __init__(self, config: SESRConfig) -> None:
        super().__init__()
        self.config = config
        f, p = config.channels, config.expanded_channels
        self.first = _conv(1, f, 5, p)
        self.body = nn.ModuleList(_conv(f, f, 3, p, skip=True) for _ in range(config.num_blocks))
        self.last = _conv(f, config.scale**2, 5, p)
        self.acts = nn.ModuleList(nn.PReLU(f) for _ in range(config.num_blocks + 1))
        weights = torch.tensor([65.481, 128.553, 24.966]) / 255  # BT.601, times 219/255
        self.register_buffer("luma_of_rgb", weights.view(1, 3, 1, 1), persistent=False)

    def forward(self, lq: Tensor) -> Tensor:
        """Enlarge `lq` (B, T, 3, H, W) to (B, T, 3, sH, sW); values can overshoot [0, 1]."""
        frames, s = lq.flatten(0, 1).contiguous(), self.config.scale  # (B·T, 3, H, W)
        luma = self._luma(frames)
        first = x = self.acts[0](self.first(luma))  # (B·T, f, H, W)
        for conv, act in zip(self.body, list(self.acts)[1:], strict=True):
            x = act(conv(x))
        luma_sr = functional.pixel_shuffle(self.last(x + first) + luma, s)  # (B·T, 1, sH, sW)
        # Bicubic color under new luma is bicubic RGB plus the same difference of luma in all three, times 255/219.
        rgb = resample(frames, (luma_sr.shape[-2], luma_sr.shape[-1]))
        sr = rgb + (luma_sr - self._luma(rgb)) * (255 / 219)  # (B·T, 3, sH, sW)
        return sr.reshape(*lq.shape[:2], *sr.shape[1:])

    def _luma(self, rgb: Tensor) -> Tensor:
        return (rgb * self.luma_of_rgb).sum(1, keepdim=True) + 16 / 255

    def collapse(self) -> SESR:
        """Replace, in place, every block by the convolution that it equals; returns self."""
        self.first, self.last = _collapsed(self.first), _collapsed(self.last)
        self.body = nn.ModuleList(_collapsed(conv) for conv in self.body)
        self.config = replace(self.config, expanded_channels=0)
        return self


def _collapsed(conv: nn.Module) -> nn.Module:
    return conv.collapse() if isinstance(conv, LinearBlock) else conv


def _translate(state: State) -> dict[str, Tensor] | None:
    """Claim our own names: trained (`first.wide.weight`) or collapsed (`first.weight`)."""
    trained = "first.wide.weight" in state
    first = shape_of(state, "first.wide.weight" if trained else "first.weight")
    outputs = shape_of(state, "last.narrow.bias" if trained else "last.bias")
    if len(first) != 4 or first[1:] != (1, 5, 5) or len(shape_of(state, "acts.0.weight")) != 1:
        return None
    return dict(state) if outputs in ((4,), (9,), (16,)) else None


def _infer(state: State) -> SESRConfig:
    wide = state.get("first.wide.weight")
    return SESRConfig(
        scale=math.isqrt(state["last.bias" if wide is None else "last.narrow.bias"].shape[0]),
        channels=state["acts.0.weight"].shape[0],
        num_blocks=count_names(state, r"acts\..*") - 1,
        expanded_channels=0 if wide is None else wide.shape[0],
    )


def _contract(config: SESRConfig) -> Contract:
    return Contract(
        scale=config.scale,
        temporal=Temporal("frame"),
        halo_px=config.num_blocks + 4,  # two 5×5 and the 3×3 between them
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
