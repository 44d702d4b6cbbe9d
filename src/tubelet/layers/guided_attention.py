"""Guided deformable attention: a pair of frames attends to moved samples of the pair before it.

    query frame b and key frame s = (b + i) mod 2; G offset groups, K = 9 taps

    [q, warped 0, warped 1, flow 0, flow 1] ── conv_offset ── offset = flow i + r · tanh(…)
    q ── proj_q ── queries          one at each pixel
    k ── proj_k ── keys             sampled at the taps of the first G/2 groups
    v ── proj_v ── values           sampled at the taps of the last G/2 groups
    softmax over both key frames and all taps, in each head ── proj ── a;  a + MLP(a)

    channels     C ── 2C, in G/2 groups of one or more heads ── C

So keys and values are sampled at different positions. Inputs have the two frames of a pair next to
each other in the batch.

Source: Liang et al. (RVRT), NeurIPS 2022, Sec. 3.3; the groups, and the projections to 2C and back,
as in the published networks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from tubelet.layers.attention import Mlp
from tubelet.layers.convolution import ConvAct, ConvCat, LeakyReLU
from tubelet.layers.inference import SwitchableLayer
from tubelet.ops.deform_attention import (
    FRAMES,
    TAPS,
    Affine,
    AttentionWeights,
    attend_in_strips,
)

__all__ = ["Aligned", "GuidedDeformAttention"]

# Width of the convolutions that predict the offsets, and their number between the first and the
# last.
_OFFSET_CHANNELS = 64
_OFFSET_CONVS = 4
_SLOPE = 0.1
# Tokens of a block of the MLP, as in `tubelet.layers.windows`.
_MLP_TOKENS = 2048
# Sampled keys and values of a strip of lines, of the plain operations in the form for inference.
_STRIP_BYTES = 2**28


class Aligned(NamedTuple):
    """A pair of frames that was aligned with the current one."""

    features: Tensor
    """(B·2, C, H, W)."""
    flows: tuple[Tensor, Tensor]
    """Where the samples were taken in the mean, as the flows of the guide."""


class GuidedDeformAttention(SwitchableLayer):
    """Align a pair of frames with the current one; see the drawing at the top of this file.

    Prepared for inference on a CPU, the attention runs group by group and strip by strip
    (`ops/deform_attention.py`).

    Args:
        channels: Number of channels C.
        heads: Number of attention heads, a multiple of half the groups.
        groups: G, offset groups of keys and values together; even.
        max_residue_px: r, the largest distance of an offset from its flow, pixels.
    """

    def __init__(
        self,
        channels: int,
        *,
        heads: int,
        groups: int,
        max_residue_px: float = 10.0,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.groups = groups
        self.max_residue_px = max_residue_px
        self.conv_offset = _offset_convs(channels, groups)
        inner = 2 * channels
        self.proj_q = nn.Linear(channels, inner)
        self.proj_k = nn.Linear(channels, inner)
        self.proj_v = nn.Linear(channels, inner)
        self.proj = nn.Linear(inner, channels)
        self.mlp = Mlp(channels, 2 * channels)

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        warped: Sequence[Tensor],
        flows: Sequence[Tensor],
    ) -> Aligned:
        """Align the last pair of frames with the current one.

        Args:
            q: Features of the current pair, (B·2, C, H, W).
            k: Features of the last pair that are comparable with `q`, (B·2, C, H, W).
            v: Features of the last pair to align, (B·2, C, H, W).
            warped: Frames of `v` to which `flows` lead, warped by them: (B·2, C, H, W) each.
            flows: Flow from each frame to that of the same place in the last pair, and to the other
                one: (B·2, 2, H, W) each, pixels, dx then dy.
        """
        first, *middle, last = self.conv_offset
        hidden = first(q, *warped, *flows)
        for conv in middle:
            hidden = conv(hidden)
        # (B, b, i, 2, H, W)
        flow = _as_pairs(torch.stack(list(flows), 1))
        last = cast(ConvAct, last)
        if self._runs_in_strips(hidden, q, k, v):
            weights = self._attention_weights(last)
            features, moved = attend_in_strips(hidden, (q, k, v), flow, weights)
            self._add_mlp_(features)
        else:
            features, moved = self._attend(last(hidden), q, k, v, flow)
            features = features + _project(self.mlp, features)
        flow_1, flow_2 = moved.flatten(0, 1).unbind(1)
        return Aligned(features, (flow_1, flow_2))

    def _runs_in_strips(self, *tensors: Tensor) -> bool:
        """Return whether the attention can run in strips, for these tensors."""
        if self.backend in ("reference", "unfused") or torch.is_autocast_enabled("cpu"):
            return False
        for tensor in (*tensors, self.proj.weight):
            if tensor.device.type != "cpu" or tensor.dtype != torch.float32:
                return False
            # Strips have no gradient.
            if tensor.requires_grad and torch.is_grad_enabled():
                return False
        return True

    def _add_mlp_(self, features: Tensor) -> None:
        """Add the result of the MLP to (B·2, C, H, W), channels last, in place and in blocks."""
        tokens = features.permute(0, 2, 3, 1)
        rows = tokens.view(-1, tokens.shape[-1])
        for block in torch.split(rows, _MLP_TOKENS):
            block += self.mlp(block)

    def _attention_weights(self, last: ConvAct) -> AttentionWeights:
        """Collect the weights of the attention; `last` predicts the offsets."""
        assert last.bias is not None
        return AttentionWeights(
            offset=(last.weight.flatten(1), last.bias),
            query=_affine(self.proj_q),
            key=_affine(self.proj_k),
            value=_affine(self.proj_v),
            out=_affine(self.proj),
            heads=self.heads,
            groups=self.groups,
            max_residue_px=self.max_residue_px,
        )

    def _attend(
        self,
        predicted: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        flow: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Attend with plain operations.

        Args:
            predicted: Offsets before activation, (B·2, 2·G·K·2, H, W): i, group, tap, dy and dx.
            q: See `forward`.
            k: See `forward`.
            v: See `forward`.
            flow: (B, b, i, 2, H, W), dx and dy.

        Returns:
            (B·2, C, H, W), and the mean offsets in the shape of `flow`.
        """
        height, width = predicted.shape[-2:]
        residue = self.max_residue_px * torch.tanh(predicted)
        # (B, b, i, G, K, dy and dx, H, W)
        residue = residue.view(-1, FRAMES, FRAMES, self.groups, TAPS, 2, height, width)
        offset = residue + flow.flip(3)[:, :, :, None, None]
        moved = offset.mean((3, 4)).flip(3)

        queries = _as_pairs(_project(self.proj_q, q))
        keys = _as_pairs(_project(self.proj_k, k))
        values = _as_pairs(_project(self.proj_v, v))
        frames: list[Tensor] = []
        for b in range(FRAMES):
            # Key frames in the order of their distance i.
            order = [b, 1 - b]
            strips: list[Tensor] = []
            for lines in self._line_strips(keys):
                strip = self._attend_lines(
                    queries[:, b, :, lines],
                    keys[:, order],
                    values[:, order],
                    offset[:, b, ..., lines, :],
                    lines.start,
                )
                strips.append(strip)
            frames.append(torch.cat(strips, 2))
        attended = torch.stack(frames, 1).flatten(0, 1)  # (B·2, 2C, H, W)
        return _project(self.proj, attended), moved

    def _line_strips(self, keys: Tensor) -> Iterator[slice]:
        """Cut the lines of keys (B, 2, 2C, H, W) into strips; in the reference form, into one."""
        height = keys.shape[-2]
        num_lines = height
        if self.is_prepared:
            # Keys and values, in both frames, of all taps.
            line_bytes = 2 * TAPS * keys.nbytes // height
            num_lines = max(1, _STRIP_BYTES // line_bytes)
        for start in range(0, height, num_lines):
            yield slice(start, min(start + num_lines, height))

    def _attend_lines(
        self,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        offset: Tensor,
        top: int,
    ) -> Tensor:
        """Attend from some lines of a frame.

        Args:
            queries: (B, 2C, h, W).
            keys: Of both key frames, in the order of i: (B, 2, 2C, H, W).
            values: Likewise.
            offset: (B, i, G, K, 2, h, W).
            top: Number of the first line.

        Returns:
            (B, 2C, h, W).
        """
        key_offset, value_offset = offset.chunk(2, 2)
        sampled_keys = self._sample_heads(keys, key_offset, top)
        sampled_values = self._sample_heads(values, value_offset, top)
        batch, channels, lines, width = queries.shape
        head_channels = channels // self.heads
        queries = queries.reshape(batch, self.heads, head_channels, 1, lines, width)
        scores = (queries * sampled_keys).sum(2, keepdim=True) * head_channels**-0.5
        attention = scores.softmax(3)
        return (attention * sampled_values).sum(3).flatten(1, 2)

    def _sample_heads(self, pairs: Tensor, offset: Tensor, top: int) -> Tensor:
        """Sample both frames of pairs: (B, 2, 2C, H, W) → (B, heads, d, 2·K, h, W)."""
        samples: list[Tensor] = []
        for frame, frame_offset in zip(pairs.unbind(1), offset.unbind(1), strict=True):
            samples.append(_sample(frame, frame_offset, top))
        sampled = torch.cat(samples, 2)
        batch, channels, *size = sampled.shape
        return sampled.view(batch, self.heads, channels // self.heads, *size)


def _offset_convs(channels: int, groups: int) -> nn.ModuleList:
    """Build the convolutions that predict the offsets from the guide.

    The last one starts at zero, so that all samples are around the flow.
    """
    act = LeakyReLU(_SLOPE)
    # q and two warped frames; two flows.
    guide_channels = channels * (1 + FRAMES) + 2 * FRAMES
    convs = nn.ModuleList([ConvCat(guide_channels, _OFFSET_CHANNELS, 1, act=act)])
    for _ in range(_OFFSET_CONVS):
        convs.append(ConvAct(_OFFSET_CHANNELS, _OFFSET_CHANNELS, act=act))
    last = ConvAct(_OFFSET_CHANNELS, FRAMES * groups * TAPS * 2, 1)
    assert last.bias is not None
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    convs.append(last)
    return convs


def _affine(linear: nn.Linear) -> Affine:
    return linear.weight, linear.bias


def _as_pairs(x: Tensor) -> Tensor:
    """View (B·2, …) as (B, 2, …)."""
    return x.view(-1, FRAMES, *x.shape[1:])


def _project(layer: nn.Module, x: Tensor) -> Tensor:
    """Apply a layer for tokens to the channels of (N, C, H, W)."""
    return layer(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def _sample(image: Tensor, offset: Tensor, top: int) -> Tensor:
    """Sample an image at moved taps of a 3×3 kernel, bilinearly.

    Args:
        image: (B, C, H, W).
        offset: (B, G', K, 2, h, W), dy and dx of each tap of each of G' groups of channels.
        top: Number of the first line of the offsets.

    Returns:
        (B, C, K, h, W); the image is surrounded by zeros.
    """
    batch, groups, _, _, lines, columns = offset.shape
    channels, height, width = image.shape[1:]
    # Half precision cannot distinguish neighbors.
    offset = offset.to(torch.promote_types(offset.dtype, torch.float32))
    tap = torch.arange(-1, 2, dtype=offset.dtype, device=offset.device)
    line = torch.arange(lines, dtype=offset.dtype, device=offset.device) + top
    column = torch.arange(columns, dtype=offset.dtype, device=offset.device)
    tap_y = tap.repeat_interleave(3)[:, None, None]
    tap_x = tap.repeat(3)[:, None, None]
    y = offset[:, :, :, 0] + tap_y + line[:, None]
    x = offset[:, :, :, 1] + tap_x + column

    # One more line and column of zeros: in grid units, an image of one pixel would have no size.
    image = functional.pad(image.to(offset.dtype), (0, 1, 0, 1))
    image = image.reshape(batch * groups, channels // groups, height + 1, width + 1)
    # -1 and 1 are the centers of the first and the last pixel: (B·G', K·h, W, 2).
    grid = torch.stack([x * (2 / width) - 1, y * (2 / height) - 1], -1)
    grid = grid.view(batch * groups, TAPS * lines, columns, 2)
    sampled = functional.grid_sample(image, grid, align_corners=True)
    return sampled.view(batch, channels, TAPS, lines, columns)
