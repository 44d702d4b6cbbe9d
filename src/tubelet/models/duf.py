"""DUF: filters for every output pixel, made from the frames around it, without motion compensation.

    lq (B, 7, 3, H, W) ── conv of each frame ── (B, C, H, W) × 7
      dense blocks × n      7 frames in, 7 out: [x, conv(x over t-1, t, t+1)]     C grows by G a block
      dense blocks × 3      7 in, 5, 3, 1 out: no frames are made up beyond the ends
      norm, conv ── (B, 256, H, W) ─┬─ 1×1, 1×1, softmax ── filters (B, 5·5, s², H, W)
                                    └─ 1×1, 1×1 ── residual (B, 3·s², H, W)
    sr = shuffle ×s of (filters · 5×5 neighborhood of the middle frame + residual)     (B, 1, 3, sH, sW)

A dense block is norm, ReLU, 1×1, norm, ReLU, 3×3×3. Its last convolution is computed frame by frame: what a frame gives
to itself and to its two neighbors in one convolution in the plane, then summed where it belongs.

Published: 16 layers (3 blocks, G = 32; 1.9 M parameters), 28 (9, G = 16) and 52 (21, G = 16; 5.8 M), ×2, ×3, ×4.

Source: Jo et al., "Deep Video Super-Resolution Network Using Dynamic Upsampling Filters Without Explicit Motion
Compensation", CVPR 2018, Secs. 3.1 to 3.3 and Fig. 3.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from tubelet.errors import ConfigError
from tubelet.models.architecture import Architecture, Contract
from tubelet.models.state_dict import (
    Rule,
    State,
    count_names,
    has_convolutions,
    rename,
    shape_of,
    zero_based,
)
from tubelet.types import Temporal

__all__ = ["ARCHITECTURE", "DUF", "DUFConfig"]

_SCALES = (2, 3, 4)
_FRAMES = 7  # three reducing blocks take two each and leave one
_REDUCING = 3
_FILTER_PX = 5
_TRUNK, _FILTER_HIDDEN = 256, 512  # widths after the dense blocks (Fig. 3)


@dataclass(frozen=True, slots=True, kw_only=True)
class DUFConfig:
    """Shape of a `DUF`."""

    FORMER_NAMES: ClassVar[Mapping[str, str]] = {
        "blocks": "num_blocks",
        "growth": "growth_channels",
    }

    scale: int = 4
    """Factor of the output size: 2, 3 or 4."""
    channels: int = 64
    """Width of the first convolution."""
    num_blocks: int = 21
    """Dense blocks over all seven frames."""
    growth_channels: int = 16
    """Channels that a dense block adds."""
    norm_eps: float = 1e-5
    """Added to variances. Names do not tell: 1e-5 is PyTorch's, 1e-3 what weights converted from TensorFlow expect."""

    def __post_init__(self) -> None:
        if (
            self.scale not in _SCALES
            or self.channels < 1
            or self.num_blocks < 0
            or self.growth_channels < 1
        ):
            raise ConfigError(
                f"{self} is out of range: scale 2, 3 or 4; channels, growth ≥ 1; blocks ≥ 0"
            )
        if not 0 < self.norm_eps < 1:
            raise ConfigError(f"norm_eps={self.norm_eps} must lie between 0 and 1")


class DenseBlock(nn.Module):
    """Make new features of each frame from those of the frame and its neighbors in time.

    Args:
        channels: C, of the input.
        growth: G, of the output.
        ends: "zeros": as many frames as came in, with zeros beyond the ends; "drop": two fewer.
        norm_eps: of the normalizations.
    """

    def __init__(
        self, channels: int, growth: int, ends: Literal["zeros", "drop"], norm_eps: float
    ) -> None:
        super().__init__()
        self.ends = ends
        self.norm_1 = nn.BatchNorm2d(channels, eps=norm_eps)
        self.conv_1 = nn.Conv2d(channels, channels, 1)
        self.norm_2 = nn.BatchNorm2d(channels, eps=norm_eps)
        self.conv_2 = nn.Conv2d(
            channels, 3 * growth, 3, padding=1, bias=False
        )  # for t+1, t and t-1
        self.bias = nn.Parameter(torch.zeros(growth))

    def forward(self, frames: list[Tensor]) -> list[Tensor]:
        """Map T features (B, C, H, W) to T, or T - 2, of (B, C + G, H, W): the old and the new.

        The list is changed in place, so that a frame's old features are free as soon as its new ones are there.
        """
        if self.training:  # statistics are of all frames
            given = list(self._give(torch.cat(frames)).chunk(len(frames)))
        else:
            given = [self._give(frame) for frame in frames]
        last = len(frames) - 1
        inner = range(len(frames)) if self.ends == "zeros" else range(1, last)
        for t in inner:
            new = given[t].chunk(3, 1)[1] + self.bias[:, None, None]
            if t > 0:
                new += given[t - 1].chunk(3, 1)[0]
            if t < last:
                new += given[t + 1].chunk(3, 1)[2]
            frames[t] = torch.cat([frames[t], new], 1)
        return [frames[t] for t in inner]

    def _give(self, frame: Tensor) -> Tensor:
        """Compute what a frame gives to the next, to itself and to the one before: (B, 3·G, H, W)."""
        x = self.conv_1(functional.relu_(self.norm_1(frame)))
        return self.conv_2(functional.relu_(self.norm_2(x)))


class DUF(nn.Module):
    """Super-resolution from seven frames by dynamic filters; see the drawing on top of this file.

    Args:
        config: shape of the network.
    """

    def __init__(self, config: DUFConfig) -> None:
        super().__init__()
        self.config = config
        c, growth, eps, phases = (
            config.channels,
            config.growth_channels,
            config.norm_eps,
            config.scale**2,
        )
        self.conv_first = nn.Conv2d(3, c, 3, padding=1)
        self.dense = nn.ModuleList(
            DenseBlock(c + i * growth, growth, "zeros", eps) for i in range(config.num_blocks)
        )
        c += config.num_blocks * growth
        self.reduce = nn.ModuleList(
            DenseBlock(c + i * growth, growth, "drop", eps) for i in range(_REDUCING)
        )
        c += _REDUCING * growth
        self.norm_last = nn.BatchNorm2d(c, eps=eps)
        self.conv_last = nn.Conv2d(c, _TRUNK, 3, padding=1)
        self.residual_1 = nn.Conv2d(_TRUNK, _TRUNK, 1)
        self.residual_2 = nn.Conv2d(_TRUNK, 3 * phases, 1)
        self.filter_1 = nn.Conv2d(_TRUNK, _FILTER_HIDDEN, 1)
        self.filter_2 = nn.Conv2d(_FILTER_HIDDEN, _FILTER_PX**2 * phases, 1)

    def forward(self, lq: Tensor) -> Tensor:
        """Restore the middle frame: (B, 7, 3, H, W) → (B, 1, 3, sH, sW)."""
        frames = lq.unbind(1)
        features = [self.conv_first(frame) for frame in frames]
        for block in (*self.dense, *self.reduce):
            features = block(features)
        x = functional.relu_(self.norm_last(features[0]))
        x = functional.relu_(self.conv_last(x))
        residual = self.residual_2(functional.relu_(self.residual_1(x)))
        filters = self.filter_2(functional.relu_(self.filter_1(x)))
        sr = apply_filters(frames[len(frames) // 2], filters, _FILTER_PX).add_(residual)
        return functional.pixel_shuffle(sr, self.config.scale).unsqueeze(1)


def apply_filters(frame: Tensor, filters: Tensor, size_px: int) -> Tensor:
    """Filter a frame with weights of each pixel's own, which a softmax makes sum to one.

    Args:
        frame: (B, C, H, W); zero outside.
        filters: (B, size_px²·P, H, W) before the softmax, taps outermost: one filter for each of P phases.
        size_px: side of the filters, odd.

    Returns:
        (B, C·P, H, W), phases innermost.

    Source: Eq. 2; the filters are the same for all channels.
    """
    batch, channels, height, width = frame.shape
    phases = filters.shape[1] // size_px**2
    weights = filters.view(batch, size_px**2, phases, height, width).softmax(1)
    padded = functional.pad(frame, [size_px // 2] * 4)
    out = frame.new_zeros(batch, channels, phases, height, width)
    for tap, weight in enumerate(weights.unbind(1)):
        y, x = divmod(tap, size_px)
        shifted = padded[..., y : y + height, x : x + width]
        out = out.addcmul_(shifted.unsqueeze(2), weight.unsqueeze(1))
    return out.flatten(1, 2)


_LAYER = r"^(dense_block1\.dense_blocks\.\d+|dense_block2\.temporal_reduce[123])"
"""Path of a block; layers 1 and 4 are activations."""
_BASICSR: tuple[Rule, ...] = (
    (_LAYER + r"\.0\.(\w+)$", r"\1.norm_1.\2"),
    (_LAYER + r"\.2\.(\w+)$", r"\1.conv_1.\2"),
    (_LAYER + r"\.3\.(\w+)$", r"\1.norm_2.\2"),
    (_LAYER + r"\.5\.weight$", r"\1.conv_2.weight"),
    (_LAYER + r"\.5\.bias$", r"\1.bias"),
    (r"^dense_block1\.dense_blocks\.", "dense."),
    (r"^dense_block2\.temporal_reduce([123])\.", zero_based("reduce.{}.")),
    (r"^conv3d1\.", "conv_first."),
    (r"^bn3d2\.", "norm_last."),
    (r"^conv3d2\.", "conv_last."),
    (r"^conv3d_r([12])\.", r"residual_\1."),
    (r"^conv3d_f([12])\.", r"filter_\1."),
)


def _translate(state: State) -> dict[str, Tensor] | None:
    """Map the names and shapes of BasicSR to ours, or take ours; None where they are of another network."""
    if "conv3d1.weight" not in state:
        return dict(state) if _is_own(state) else None
    if len(shape_of(state, "conv3d1.weight")) != 5:
        return None
    if not {"conv3d_r2.weight", "dense_block2.temporal_reduce1.5.weight"} <= state.keys():
        return None
    own = {name: _flatten(name, value) for name, value in rename(state, _BASICSR).items()}
    return own if _is_own(own) else None


def _is_own(state: State) -> bool:
    return has_convolutions(state, "reduce.0.conv_2", "residual_2", "conv_first")


def _flatten(name: str, value: Tensor) -> Tensor:
    """Make convolutions in time and the plane (O, C, k, h, w) ones in the plane (k·O, C, h, w)."""
    if value.ndim != 5 or not name.endswith(".weight"):
        return value
    return value.permute(2, 0, 1, 3, 4).flatten(0, 1)


def _infer(state: State) -> DUFConfig:
    return DUFConfig(
        scale=round((state["residual_2.weight"].shape[0] / 3) ** 0.5),
        channels=state["conv_first.weight"].shape[0],
        num_blocks=count_names(state, r"dense\..*\.conv_2\.weight"),
        growth_channels=state["reduce.0.conv_2.weight"].shape[0] // 3,
    )


def _contract(config: DUFConfig) -> Contract:
    # Every block reaches a pixel further, as do the first and the last convolution; the filters reach less.
    return Contract(
        scale=config.scale,
        temporal=Temporal("window", radius=_FRAMES // 2),
        halo_px=config.num_blocks + _REDUCING + 2,
    )


ARCHITECTURE = Architecture(
    name="DUF",
    config=DUFConfig,
    build=DUF,
    translate=_translate,
    infer=_infer,
    contract=_contract,
    derived=("num_batches_tracked",),
    source="Jo et al., Deep Video Super-Resolution Network Using Dynamic Upsampling Filters, CVPR 2018",
)
