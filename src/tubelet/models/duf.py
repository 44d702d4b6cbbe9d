"""DUF: dynamic upsampling filters, predicted from seven frames without motion compensation.

    lq (B, 7, 3, H, W) ── conv of each frame ── (B, C, H, W) × 7
      dense blocks × num_blocks   7 frames in, 7 out             each adds G channels
      dense blocks × 3            7 frames in; 5, 3 and 1 out
      norm, conv ── (B, 256, H, W) ─┬─ 1×1, 1×1, softmax ── filters (B, 5·5, s², H, W)
                                    └─ 1×1, 1×1 ── residual (B, 3·s², H, W)
    sr = pixel shuffle of (filters · 5×5 neighborhoods of the middle frame + residual)
         (B, 1, 3, sH, sW)

    dense block    cat(x, conv3d(ReLU(norm(conv1x1(ReLU(norm(x)))))))
                   padded in time with zeros, or, in the last three blocks, without padding

The last convolution of a dense block, 3×3×3, is computed as one 2D convolution of each frame. It
yields the frame's contributions to the new features of the next frame, of itself and of the
previous frame, which are then summed.

Published: 16 layers (3 blocks, G = 32; 1.9 M parameters), 28 layers (9 blocks, G = 16) and 52
layers (21 blocks, G = 16; 5.8 M parameters), ×2, ×3, ×4.

Source: Jo et al., "Deep Video Super-Resolution Network Using Dynamic Upsampling Filters Without
Explicit Motion Compensation", CVPR 2018, Secs. 3.1 to 3.3 and Fig. 3.
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
from tubelet.models.config_checks import check_choice, check_min
from tubelet.models.state_dict import (
    Rule,
    State,
    count_names,
    has_convolutions,
    rename,
    zero_based,
)
from tubelet.types import Temporal

__all__ = ["ARCHITECTURE", "DUF", "DUFConfig"]

_SCALES = (2, 3, 4)
_NUM_FRAMES = 7
# Each of the last dense blocks drops a frame at both ends; three of them leave one frame of seven.
_NUM_REDUCING_BLOCKS = 3
_FILTER_PX = 5
# Widths after the dense blocks (Fig. 3)
_TRUNK_CHANNELS = 256
_FILTER_CHANNELS = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class DUFConfig:
    """Configuration of a `DUF`."""

    FORMER_NAMES: ClassVar[Mapping[str, str]] = {
        "blocks": "num_blocks",
        "growth": "growth_channels",
    }

    scale: int = 4
    """Upscaling factor: 2, 3 or 4."""
    channels: int = 64
    """Width C of the first convolution."""
    num_blocks: int = 21
    """Number of dense blocks over all seven frames."""
    growth_channels: int = 16
    """Channels G that each dense block adds."""
    norm_eps: float = 1e-5
    """Epsilon of the batch normalization. Checkpoints do not store it: `infer` takes 1e-5, the
    default of PyTorch; weights converted from TensorFlow expect 1e-3."""

    def __post_init__(self) -> None:
        check_choice(self, "scale", _SCALES)
        check_min(self, "channels", 1)
        check_min(self, "num_blocks", 0)
        check_min(self, "growth_channels", 1)
        if not 0 < self.norm_eps < 1:
            raise ConfigError(f"DUFConfig: norm_eps={self.norm_eps} must be between 0 and 1")


class DenseBlock(nn.Module):
    """Dense block over frames: appends features computed from a frame and its two neighbors.

    Args:
        channels: Channels C of the input.
        growth: Channels G that the block appends.
        ends: "zeros": the output has as many frames as the input, which is padded with zeros in
            time; "drop": the output lacks the first and the last frame.
        norm_eps: Epsilon of the batch normalization.
    """

    def __init__(
        self,
        channels: int,
        growth: int,
        ends: Literal["zeros", "drop"],
        norm_eps: float,
    ) -> None:
        super().__init__()
        self.ends = ends
        self.norm_1 = nn.BatchNorm2d(channels, eps=norm_eps)
        self.conv_1 = nn.Conv2d(channels, channels, 1)
        self.norm_2 = nn.BatchNorm2d(channels, eps=norm_eps)
        # Contributions to the frames t + 1, t and t − 1, in this order.
        self.conv_2 = nn.Conv2d(
            channels,
            3 * growth,
            3,
            padding=1,
            bias=False,
        )
        self.bias = nn.Parameter(torch.zeros(growth))

    def forward(
        self,
        frames: list[Tensor],
    ) -> list[Tensor]:
        """Append new features to those of each frame.

        The list is modified in place, so that the old features of a frame are freed as soon as its
        new ones exist.

        Args:
            frames: Features of T frames, (B, C, H, W) each.

        Returns:
            Features of T, or T − 2, frames, (B, C + G, H, W) each.
        """
        contributions = self._contributions(frames)
        last = len(frames) - 1
        indexes = range(len(frames)) if self.ends == "zeros" else range(1, last)
        for t in indexes:
            _, to_itself, _ = contributions[t].chunk(3, 1)
            new = to_itself + self.bias[:, None, None]
            if t > 0:
                to_next, _, _ = contributions[t - 1].chunk(3, 1)
                new += to_next
            if t < last:
                _, _, to_previous = contributions[t + 1].chunk(3, 1)
                new += to_previous
            frames[t] = torch.cat([frames[t], new], 1)
        return [frames[t] for t in indexes]

    def _contributions(
        self,
        frames: list[Tensor],
    ) -> list[Tensor]:
        """Compute the contributions of each frame to its neighbors and itself, (B, 3·G, H, W)."""
        # In training, the statistics are those of all frames together.
        if self.training:
            contributions = self._convolve(torch.cat(frames))
            return list(contributions.chunk(len(frames)))
        return [self._convolve(frame) for frame in frames]

    def _convolve(self, x: Tensor) -> Tensor:
        x = functional.relu_(self.norm_1(x))
        x = self.conv_1(x)
        x = functional.relu_(self.norm_2(x))
        return self.conv_2(x)


class DUF(nn.Module):
    """Super-resolution by dynamic upsampling filters; see the drawing at the top of this file.

    Args:
        config: Configuration of the network.
    """

    def __init__(self, config: DUFConfig) -> None:
        super().__init__()
        self.config = config
        c = config.channels
        growth = config.growth_channels
        eps = config.norm_eps
        sub_pixels = config.scale**2
        self.conv_first = nn.Conv2d(3, c, 3, padding=1)
        self.dense = nn.ModuleList()
        for _ in range(config.num_blocks):
            self.dense.append(DenseBlock(c, growth, "zeros", eps))
            c += growth
        self.reduce = nn.ModuleList()
        for _ in range(_NUM_REDUCING_BLOCKS):
            self.reduce.append(DenseBlock(c, growth, "drop", eps))
            c += growth
        self.norm_last = nn.BatchNorm2d(c, eps=eps)
        self.conv_last = nn.Conv2d(c, _TRUNK_CHANNELS, 3, padding=1)
        self.residual_1 = nn.Conv2d(_TRUNK_CHANNELS, _TRUNK_CHANNELS, 1)
        self.residual_2 = nn.Conv2d(_TRUNK_CHANNELS, 3 * sub_pixels, 1)
        self.filter_1 = nn.Conv2d(_TRUNK_CHANNELS, _FILTER_CHANNELS, 1)
        self.filter_2 = nn.Conv2d(_FILTER_CHANNELS, _FILTER_PX**2 * sub_pixels, 1)

    def forward(self, lq: Tensor) -> Tensor:
        """Upscale the middle one of seven frames.

        Args:
            lq: Low-quality window, (B, 7, 3, H, W), in [0, 1].

        Returns:
            (B, 1, 3, sH, sW); values can exceed [0, 1].
        """
        frames = lq.unbind(1)
        features = [self.conv_first(frame) for frame in frames]
        for block in (*self.dense, *self.reduce):
            features = block(features)
        # One frame is left: (B, 256, H, W).
        x = functional.relu_(self.norm_last(features[0]))
        x = functional.relu_(self.conv_last(x))
        residual = functional.relu_(self.residual_1(x))
        residual = self.residual_2(residual)
        filters = functional.relu_(self.filter_1(x))
        filters = self.filter_2(filters)
        middle = frames[len(frames) // 2]
        sr = apply_filters(middle, filters, _FILTER_PX).add_(residual)  # (B, 3·s², H, W)
        return functional.pixel_shuffle(sr, self.config.scale).unsqueeze(1)


def apply_filters(
    frame: Tensor,
    filters: Tensor,
    size_px: int,
) -> Tensor:
    """Filter each pixel of a frame with its own weights, which a softmax makes sum to one.

    Args:
        frame: (B, C, H, W), zero-padded at the borders.
        filters: Filters before the softmax, (B, size_px²·P, H, W), taps outermost: one filter for
            each of P sub-pixels.
        size_px: Side of the filters, odd.

    Returns:
        (B, C·P, H, W), sub-pixels innermost.

    Source: Eq. 2; the filters are the same for all channels.
    """
    batch, channels, height, width = frame.shape
    num_taps = size_px**2
    sub_pixels = filters.shape[1] // num_taps
    weights = filters.view(batch, num_taps, sub_pixels, height, width)
    weights = weights.softmax(1)
    padded = functional.pad(frame, [size_px // 2] * 4)
    out = frame.new_zeros(batch, channels, sub_pixels, height, width)
    # Eq. 2, tap by tap
    for tap, weight in enumerate(weights.unbind(1)):
        y, x = divmod(tap, size_px)
        shifted = padded[..., y : y + height, x : x + width]
        out = out.addcmul_(shifted.unsqueeze(2), weight.unsqueeze(1))
    return out.flatten(1, 2)


_BLOCK = r"^(dense_block1\.dense_blocks\.\d+|dense_block2\.temporal_reduce[123])"
"""Path of a dense block in BasicSR; its layers 1 and 4 are activations."""
_BASICSR_RULES: tuple[Rule, ...] = (
    (_BLOCK + r"\.0\.(\w+)$", r"\1.norm_1.\2"),
    (_BLOCK + r"\.2\.(\w+)$", r"\1.conv_1.\2"),
    (_BLOCK + r"\.3\.(\w+)$", r"\1.norm_2.\2"),
    (_BLOCK + r"\.5\.weight$", r"\1.conv_2.weight"),
    (_BLOCK + r"\.5\.bias$", r"\1.bias"),
    (r"^dense_block1\.dense_blocks\.", "dense."),
    (r"^dense_block2\.temporal_reduce([123])\.", zero_based("reduce.{}.")),
    (r"^conv3d1\.", "conv_first."),
    (r"^bn3d2\.", "norm_last."),
    (r"^conv3d2\.", "conv_last."),
    (r"^conv3d_r([12])\.", r"residual_\1."),
    (r"^conv3d_f([12])\.", r"filter_\1."),
)


_BASICSR_NAMES = {"conv3d_r2.weight", "dense_block2.temporal_reduce1.5.weight"}


def _translate(state: State) -> dict[str, Tensor] | None:
    """Map the names and shapes of BasicSR to ours; None if the state dict is of another network."""
    own = dict(state)
    is_basicsr = "conv3d1.weight" in state
    if is_basicsr:
        if not state.keys() >= _BASICSR_NAMES or state["conv3d1.weight"].ndim != 5:
            return None
        own = rename(state, _BASICSR_RULES)
        for name, value in own.items():
            is_conv3d = value.ndim == 5 and name.endswith(".weight")
            if is_conv3d:
                own[name] = _as_conv2d(value)
    if not has_convolutions(own, "reduce.0.conv_2", "residual_2", "conv_first"):
        return None
    return own


def _as_conv2d(weight: Tensor) -> Tensor:
    """Turn the weight of a 3D convolution, (O, C, k, h, w), into one of 2D, (k·O, C, h, w)."""
    taps_first = weight.permute(2, 0, 1, 3, 4)  # (k, O, C, h, w)
    return taps_first.flatten(0, 1)


def _infer(state: State) -> DUFConfig:
    residual_channels = state["residual_2.weight"].shape[0]
    return DUFConfig(
        scale=round((residual_channels / 3) ** 0.5),
        channels=state["conv_first.weight"].shape[0],
        num_blocks=count_names(state, r"dense\..*\.conv_2\.weight"),
        growth_channels=state["reduce.0.conv_2.weight"].shape[0] // 3,
    )


def _contract(config: DUFConfig) -> Contract:
    # Each dense block reaches a pixel further, as do conv_first and conv_last. The filters reach
    # less far.
    reach_px = config.num_blocks + _NUM_REDUCING_BLOCKS + 2
    return Contract(
        scale=config.scale,
        temporal=Temporal("window", radius=_NUM_FRAMES // 2),
        halo_px=reach_px,
    )


ARCHITECTURE = Architecture(
    name="DUF",
    config=DUFConfig,
    build=DUF,
    translate=_translate,
    infer=_infer,
    contract=_contract,
    derived=("num_batches_tracked",),
    source="Jo et al., Deep Video Super-Resolution Network Using Dynamic Upsampling Filters, "
    "CVPR 2018",
)
