"""Alignment by attention: each pixel attends to the four pixels around the position it came from.

    target (x, y) + flow(x, y) = corner (integers) + offset (in [0, 1)), rows and columns alike

    corner      corner + (0, 1)       four neighbors y_j in the state, clamped to the border
        · offset                      code(j)       sine code of a neighbor's place in the square
    corner + (1, 0)  corner + (1, 1)  code(offset)  sine code of the position between them

    q   = W_q (current + code(offset)) + b_q          one query a pixel
    k_j = W_k (y_j + code(j)) + b_k                   four keys and four values
    v_j = W_v (y_j + code(j)) + b_v
    aligned = Σ_j softmax_j(q · k_j / √d) v_j         in each head of d channels

Keys and values are linear in the state, so that the state is projected once, before its pixels are
gathered: W_k y_j + W_k code(j) + b_k. That takes a quarter of the multiplications.

Bilinear interpolation weights the neighbors by the offset alone. Here the content decides, too, and
the code tells offsets apart that differ by a fraction of a hundredth of a pixel.

Source: Xu et al. (IART), CVPR 2024.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from tubelet.layers.inference import SwitchableLayer

__all__ = ["ImplicitAlignment", "sine_code"]

_TEMPERATURE = 0.01
"""Ratio of the shortest wavelength of a code to the longest, 2π."""
# Rows and columns of the four neighbors.
_NEIGHBORS = ((0, 0), (0, 1), (1, 0), (1, 1))
# Distance between the first and the last neighbor along an axis, and their number, by which the
# published networks scale places and offsets; the constant avoids a division by zero.
_SPAN_PX = 1 + 1e-6
_WINDOW_PX = 2 + 1e-6
# Pixels of a strip on a CPU: their neighbors' keys and values stay in the CPU cache.
_MAX_STRIP_PX = 1024


def sine_code(angles: Tensor, channels: int) -> Tensor:
    """Encode a position in sines and cosines of different frequencies.

    Args:
        angles: Row and column, (..., 2), 2π for the whole range.
        channels: Number of channels C of the code, a multiple of 4.

    Returns:
        (..., C): the sine and cosine of each frequency, all of the row, then all of the column.

    Source: Vaswani et al., NeurIPS 2017, Sec. 3.5, with a temperature below 1, for which
    frequencies grow.
    """
    num_frequencies = channels // 4
    exponents = torch.arange(num_frequencies, dtype=angles.dtype, device=angles.device)
    wavelengths = _TEMPERATURE ** (exponents / num_frequencies)
    # (..., 2, frequencies)
    phases = angles[..., None] / wavelengths
    return torch.stack([phases.sin(), phases.cos()], -1).flatten(-3)


class ImplicitAlignment(SwitchableLayer):
    """Align a state with the current frame; see the drawing at the top of this file.

    Parameters: `q`, `k` and `v` (linear layers C → C). Buffer: `position_bias` (1, 4, C), the codes
    of the four neighbors.

    Args:
        channels: Number of channels C, a multiple of 4.
        heads: Number of attention heads, a divisor of `channels`.
    """

    position_bias: Tensor

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(channels, channels)
        self.k = nn.Linear(channels, channels)
        self.v = nn.Linear(channels, channels)
        places = torch.tensor(_NEIGHBORS, dtype=torch.float32)
        codes = sine_code(places / _SPAN_PX * 2 * math.pi, channels)
        self.register_buffer("position_bias", codes[None])

    def forward(self, state: Tensor, flow: Tensor, current: Tensor) -> Tensor:
        """Sample a state where a flow points.

        Args:
            state: Features of another frame, (B, C, H, W).
            flow: Flow from the current frame to the other one, (B, 2, H, W), pixels, dx then dy.
            current: Features of the current frame, (B, C, H, W).

        Returns:
            (B, C, H, W), channels last in memory.
        """
        height, width = current.shape[-2:]
        rows = self._project(state)
        queries = current.permute(0, 2, 3, 1)  # (B, H, W, C)
        corner, offset = _split_targets(flow)
        strips: list[Tensor] = []
        for strip in self._strips(current):
            neighbors = _neighbor_indexes(corner[:, strip], height, width)
            strips.append(self._attend(queries[:, strip], offset[:, strip], rows, neighbors))
        return torch.cat(strips, 1).permute(0, 3, 1, 2)

    def _project(self, state: Tensor) -> Tensor:
        """Project all pixels of a state to their keys and values: (B, C, H, W) → (B·H·W, 2C)."""
        tokens = state.permute(0, 2, 3, 1).flatten(0, 2)  # (B·H·W, C)
        return torch.cat([self.k(tokens), self.v(tokens)], -1)

    def _strips(self, current: Tensor) -> Iterator[slice]:
        """Cut the lines of an image into strips; in the reference form, or on a GPU, into one."""
        batch, _, height, width = current.shape
        num_lines = height
        if self.is_prepared and current.device.type == "cpu":
            num_lines = max(1, _MAX_STRIP_PX // (batch * width))
        for start in range(0, height, num_lines):
            yield slice(start, start + num_lines)

    def _attend(self, current: Tensor, offset: Tensor, rows: Tensor, neighbors: Tensor) -> Tensor:
        """Attend from the pixels of a strip to their neighbors in the state.

        Args:
            current: Features of the current frame, (B, h, W, C).
            offset: Position between the neighbors, rows then columns, (B, h, W, 2), in [0, 1).
            rows: Keys and values of all pixels of the state, (B·H·W, 2C).
            neighbors: Indexes of the neighbors in `rows`, (B, h, W, 4).

        Returns:
            (B, h, W, C).
        """
        channels = current.shape[-1]
        code = sine_code(offset / _WINDOW_PX * 2 * math.pi, channels)
        q = self._split_heads(self.q(current + code.to(current.dtype)))
        q = q[..., None, :, :]  # (B, h, W, 1, heads, d)

        # W_k code(j) and W_v code(j): (4, 2C)
        weight = torch.cat([self.k.weight, self.v.weight])
        place_codes = functional.linear(self.position_bias[0], weight)
        gathered = functional.embedding(neighbors, rows) + place_codes.to(rows.dtype)
        k, v = gathered.chunk(2, -1)
        k = self._split_heads(k)  # (B, h, W, 4, heads, d)
        v = self._split_heads(v)

        scores = (q * k).sum(-1, keepdim=True) / math.sqrt(channels // self.heads)
        weights = scores.softmax(-3)
        return (weights * v).sum(-3).flatten(-2)

    def _split_heads(self, x: Tensor) -> Tensor:
        """View (..., C) as (..., heads, d)."""
        return x.view(*x.shape[:-1], self.heads, -1)


def _split_targets(flow: Tensor) -> tuple[Tensor, Tensor]:
    """Split the positions that a flow points to into whole pixels and the rest.

    Args:
        flow: (B, 2, H, W), pixels, dx then dy.

    Returns:
        Position rounded down and distance from there, rows then columns: (B, H, W, 2), integers and
        numbers in [0, 1).
    """
    height, width = flow.shape[-2:]
    # Half precision cannot tell the positions of a large image apart.
    flow = flow.to(torch.promote_types(flow.dtype, torch.float32))
    lines = torch.arange(height, dtype=flow.dtype, device=flow.device)
    columns = torch.arange(width, dtype=flow.dtype, device=flow.device)
    target = torch.stack([lines[:, None] + flow[:, 1], columns + flow[:, 0]], -1)
    corner = target.detach().floor()
    return corner.long(), target - corner


def _neighbor_indexes(corner: Tensor, height: int, width: int) -> Tensor:
    """Number the four neighbors, row by row over all images of the batch.

    Args:
        corner: Position of the first neighbor, (B, h, W, 2), rows then columns; it can lie outside
            of the image, where the nearest pixel of the border takes its place.
        height: Height H of the images.
        width: Width W of the images.

    Returns:
        Indexes of pixels among the B·H·W of the batch, (B, h, W, 4).
    """
    places = torch.tensor(_NEIGHBORS, device=corner.device)
    # (B, h, W, 4, 2)
    positions = corner[..., None, :] + places
    line = positions[..., 0].clamp(0, height - 1)
    column = positions[..., 1].clamp(0, width - 1)
    images = torch.arange(len(corner), device=corner.device)[:, None, None, None]
    return (images * height + line) * width + column
