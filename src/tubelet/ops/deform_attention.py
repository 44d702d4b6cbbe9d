"""Guided deformable attention on a CPU, group by group and strip by strip.

    query frame b and key frame s, 0 or 1; G offset groups, K = 9 taps, G/2 groups of heads
    group of heads:
      keys, values   projections of both key frames to the channels of the group, as tables
      strip of n pixels of a query frame:
        offset (n, 2·2·2·K)   from `hidden`, for keys and values and both key frames
        products (n, 2·K, heads, d) = query · sampled keys
        weights (n, heads, 2·K) = softmax of their sums over d
        out (n, C) += (sum of weights · sampled values) · projection

Only a group's tables and a strip's samples of its keys are in memory at a time. The attention
weights are multiplied into the interpolation, so that no sampled value is stored. Tables of one
group are small enough that most samples come from the CPU cache.

Source: Liang et al. (RVRT), NeurIPS 2022, Sec. 3.3.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from tubelet.ops.row_sampler import RowSampler, Strip, Taps

__all__ = ["FRAMES", "TAPS", "Affine", "AttentionWeights", "attend_in_strips"]

FRAMES = 2
"""Frames of a pair."""
TAPS = 9
"""Taps of the 3×3 kernel, K."""

Affine = tuple[Tensor, Tensor]
"""Weight (O, I) and bias (O,) of a linear layer."""

# Samples of a strip in both key frames: with 48 channels in a group, those of the keys take 12 MB.
_STRIP_SAMPLES = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionWeights:
    """Weights of guided deformable attention; P channels in all heads together.

    Attributes:
        offset: `hidden` → offsets before activation, (2·G·K·2, C'): distance i of the key frame in
            its pair from the query frame, group, tap, dy and dx. The first G/2 groups move the
            taps of keys, the others those of values.
        query: Features → queries, (P, C).
        key: Features → keys, (P, C).
        value: Features → values, (P, C).
        out: Sums of all heads → result, (C, P).
        heads: Number of heads, a multiple of G/2.
        groups: G, even.
        max_residue_px: r, the largest distance of an offset from the flow, pixels.
    """

    offset: Affine
    query: Affine
    key: Affine
    value: Affine
    out: Affine
    heads: int
    groups: int
    max_residue_px: float


def attend_in_strips(
    hidden: Tensor,
    features: tuple[Tensor, Tensor, Tensor],
    flow: Tensor,
    weights: AttentionWeights,
) -> tuple[Tensor, Tensor]:
    """Attend from each pixel of a pair of frames to moved samples of another pair.

    The form for inference: float32 on a CPU, without gradients.

    Args:
        hidden: Features from which the offsets are predicted, (B·2, C', H, W); the frames of a pair
            are next to each other.
        features: Features of queries, keys and values, (B·2, C, H, W) each.
        flow: Flow from each query frame b to the key frame (b + i) mod 2, (B, 2, 2, 2, H, W): b, i,
            dx and dy.
        weights: Weights.

    Returns:
        (B·2, C, H, W), channels last in memory; and the mean of all offsets by query and key frame,
        in the shape of `flow`.
    """
    height, width = hidden.shape[-2:]
    query, key, value = features
    hidden_rows = _pair_rows(hidden)
    query_rows = _pair_rows(query)
    key_rows = _pair_rows(key)
    value_rows = _pair_rows(value)
    flow_rows = flow.flatten(4).permute(0, 1, 4, 2, 3)  # (B, b, H·W, i, 2)
    attention = _StripAttention(weights, height, width, like=hidden)
    out = query.new_empty(query_rows.shape)
    moved = torch.empty_like(flow_rows)
    for image in range(len(out)):
        pair = _PairRows(
            hidden_rows[image],
            query_rows[image],
            key_rows[image],
            value_rows[image],
            flow_rows[image],
        )
        moved[image] = attention.run(pair, out[image])
    out = out.view(-1, height, width, out.shape[-1]).permute(0, 3, 1, 2)
    return out, moved.permute(0, 1, 3, 4, 2).reshape(flow.shape)


@dataclass(frozen=True, slots=True)
class _PairRows:
    """Inputs of a pair, the pixels of a frame as rows."""

    hidden: Tensor
    """(2, H·W, C')."""
    query: Tensor
    """(2, H·W, C)."""
    key: Tensor
    """(2, H·W, C)."""
    value: Tensor
    """(2, H·W, C)."""
    flow: Tensor
    """(2, H·W, 2, 2): i, dx and dy."""


@dataclass(frozen=True, slots=True)
class _GroupWeights:
    """Weights of a group of heads, for one query frame.

    Offsets are listed for keys and values, key frame s, tap, dy and dx: (n, 2·2·K·2).
    """

    offset: Affine
    """Twice the weight and bias: tanh(a) = 2 · sigmoid(2a) − 1, and sigmoid is faster."""
    query: Affine
    """Divided by √d."""
    out: Tensor
    """(P / groups of heads, C)."""


class _StripAttention:
    """The attention for images of one size, with tables and scratch memory that are allocated once.

    Args:
        weights: Weights.
        height: H.
        width: W.
        like: Tensor on the device of the images.
    """

    def __init__(self, weights: AttentionWeights, height: int, width: int, *, like: Tensor) -> None:
        self.weights = weights
        self.num_groups = weights.groups // 2
        self.group_heads = weights.heads // self.num_groups
        self.head_channels = weights.query[0].shape[0] // weights.heads
        self.group_channels = self.group_heads * self.head_channels
        # The two key frames are groups of channels.
        taps = Taps(
            kernel=(3, 3),
            stride=(1, 1),
            padding=(1, 1),
            dilation=(1, 1),
            groups=FRAMES,
            border="zeros",
        )
        size = (height, width)
        table_size = (FRAMES * self.group_channels, *size)
        self.keys = RowSampler(table_size, taps, size, like=like, strip_samples=_STRIP_SAMPLES)
        self.values = RowSampler(table_size, taps, size, like=like, strip_samples=_STRIP_SAMPLES)
        self.sum_matrices = [_sum_matrix(b, like=like) for b in range(FRAMES)]

    def run(self, rows: _PairRows, out: Tensor) -> Tensor:
        """Attend from both frames of a pair.

        Args:
            rows: Inputs.
            out: (2, H·W, C), receives the result.

        Returns:
            Mean of all offsets, in the shape of the flow.
        """
        weights = self.weights
        out_bias = weights.out[1]
        out.copy_(out_bias.expand_as(out))
        # Sums of the sigmoids of all offsets, dy and dx.
        sums = torch.zeros_like(rows.flow)
        for group in range(self.num_groups):
            self._fill(self.keys, weights.key, group, rows.key)
            self._fill(self.values, weights.value, group, rows.value)
            for b in range(FRAMES):
                self._attend(group, b, rows, out[b], sums[b].flatten(1))

        max_px = weights.max_residue_px
        mean = sums.flip(-1) / (weights.groups * TAPS)
        return rows.flow + max_px * (2 * mean - 1)

    def _channels_of(self, group: int) -> slice:
        """Return the channels of a group among those of all heads."""
        return slice(group * self.group_channels, (group + 1) * self.group_channels)

    def _fill(self, sampler: RowSampler, affine: Affine, group: int, rows: Tensor) -> None:
        """Write the projections of both key frames (2, H·W, C) to a group into a table."""
        weight, bias = affine
        channels = self._channels_of(group)
        height, width, _ = sampler.pixels.shape
        frame_tables = sampler.pixels.view(height, width, FRAMES, self.group_channels)
        for frame_rows, table in zip(rows, frame_tables.unbind(2), strict=True):
            projected = functional.linear(frame_rows, weight[channels], bias[channels])
            table.copy_(projected.view(table.shape))

    def _weights_of(self, group: int, query_frame: int) -> _GroupWeights:
        """Cut out the weights of a group for a query frame b."""
        weights = self.weights
        channels = self._channels_of(group)
        scale = self.head_channels**-0.5
        query_weight, query_bias = weights.query
        offset_weight, offset_bias = weights.offset
        # i, keys and values, group, tap · 2
        parts = (FRAMES, 2, self.num_groups, 2 * TAPS)
        by_part = offset_weight.view(*parts, -1)[:, :, group]
        bias_by_part = offset_bias.view(parts)[:, :, group]
        if query_frame == 1:
            # From the distance i to the key frame s.
            by_part = by_part.flip(0)
            bias_by_part = bias_by_part.flip(0)
        by_part = by_part.transpose(0, 1).flatten(0, 2)
        bias_by_part = bias_by_part.transpose(0, 1).flatten()
        return _GroupWeights(
            offset=(2 * by_part, 2 * bias_by_part),
            query=(scale * query_weight[channels], scale * query_bias[channels]),
            out=weights.out[0][:, channels].t(),
        )

    def _attend(
        self,
        group: int,
        query_frame: int,
        rows: _PairRows,
        out: Tensor,
        sums: Tensor,
    ) -> None:
        """Attend from all pixels of a frame, in the heads of a group.

        Args:
            group: Number of the group, whose tables are filled.
            query_frame: b.
            rows: Inputs.
            out: (H·W, C), to which the result is added.
            sums: (H·W, 2·2), to which the sigmoids of the offsets are added: i, dy and dx.
        """
        weights = self._weights_of(group, query_frame)
        # r · tanh(a) = 2r · sigmoid(2a) − r
        gain = 2 * self.weights.max_residue_px
        origin = rows.flow[query_frame] - self.weights.max_residue_px
        if query_frame == 1:
            origin = origin.flip(1)
        hidden = rows.hidden[query_frame]
        query = rows.query[query_frame]
        heads = (self.group_heads, self.head_channels)

        for pixels in self.keys.strips():
            offset = functional.linear(hidden[pixels], *weights.offset).sigmoid_()
            sums[pixels].addmm_(offset, self.sum_matrices[query_frame])
            key_offset, value_offset = offset.chunk(2, 1)
            origin_x, origin_y = origin[pixels].unbind(-1)
            key_strip = Strip(key_offset, gain, origin_y, origin_x, None)
            value_strip = Strip(value_offset, gain, origin_y, origin_x, None)

            # One softmax over both key frames.
            products = self.keys.sample(key_strip, pixels).view(len(offset), -1, *heads)
            products *= functional.linear(query[pixels], *weights.query).view(-1, 1, *heads)
            attention = products.sum(-1).transpose(1, 2).softmax(-1)  # (n, heads, 2·K)
            attended = self.values.sum_samples(value_strip, pixels, attention)
            out[pixels].addmm_(attended, weights.out)


def _pair_rows(x: Tensor) -> Tensor:
    """List the pixels of (B·2, C, H, W) as rows: (B, 2, H·W, C)."""
    batch, channels, height, width = x.shape
    return x.permute(0, 2, 3, 1).reshape(batch // FRAMES, FRAMES, height * width, channels)


def _sum_matrix(query_frame: int, *, like: Tensor) -> Tensor:
    """Return the matrix that sums offsets (n, 2·2·K·2) over keys and values and all taps.

    The sums are listed by the distance i of the key frame s = (b + i) mod 2: (n, 2·2), i, dy, dx.
    """
    matrix = like.new_zeros(2, FRAMES, TAPS, 2, FRAMES, 2)
    for i in range(FRAMES):
        key_frame = (query_frame + i) % FRAMES
        for axis in (0, 1):
            matrix[:, key_frame, :, axis, i, axis] = 1
    return matrix.view(-1, FRAMES * 2)
