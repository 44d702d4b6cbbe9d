"""TTVSR as it was published, with the weights of ours: all features first, every key frame as tokens of three scales.

Plain PyTorch: default layout, unfold, grid_sample, all key frames of a sweep gathered at once. The comparison of
`benchmarks/zoo.py`; equal to `TTVSR.forward` within rounding.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from plain.recurrent import flows, trunk, warp
from tubelet.models.ttvsr import LTAM, TTVSR

__all__ = ["plain_ttvsr"]

TOKEN_PX = 4


def plain_ttvsr(model: TTVSR, lq: Tensor) -> Tensor:
    """Restore `lq` (B, T, 3, H, W), H and W multiples of 4."""
    frames = lq.shape[1]
    to_next, to_last = flows(model.spynet, lq)
    current = trunk(model.extractor, lq.flatten(0, 1)).unflatten(0, lq.shape[:2])
    stride = model.config.keyframe_stride
    back = _sweep(model, current, to_next, list(range(frames))[::-1], stride)
    front = _sweep(model, current, to_last, list(range(frames)), stride)
    out: list[Tensor] = []
    for t in range(frames):
        fused = model.fusion(torch.cat([back[t], current[:, t], front[t]], 1))
        x = model.upconv1(functional.leaky_relu(fused, 0.1))
        x = model.conv_last(model.conv_hr(model.upconv2(x)))
        base = functional.interpolate(
            lq[:, t], scale_factor=4.0, mode="bilinear", align_corners=False
        )
        out.append(x + base)
    return torch.stack(out, 1)


def _sweep(
    model: TTVSR, current: Tensor, flow: Tensor, order: list[int], stride: int
) -> dict[int, Tensor]:
    """Propagate in one direction: the state (B, C, H, W) of every frame."""
    feat = torch.zeros_like(current[:, 0])
    batch, _, height, width = feat.shape
    grid_size = (height // TOKEN_PX, width // TOKEN_PX)
    y, x = torch.meshgrid(*(torch.arange(n, dtype=feat.dtype) for n in grid_size), indexing="ij")
    identity = torch.stack([x, y]).expand(batch, 2, *grid_size)
    locations = feat.new_zeros(batch, 0, *grid_size)
    keys: list[Tensor] = []
    scales: list[list[Tensor]] = [[], [], []]
    done: dict[int, Tensor] = {}
    for i, t in enumerate(order):
        if i:
            step = flow[:, min(t, order[i - 1])]
            pooled = functional.adaptive_avg_pool2d(step, grid_size) / TOKEN_PX
            locations = _nearest(locations, pooled)
            attended = _attend(
                model.attention,
                current[:, t],
                torch.stack(keys, 1),
                [torch.stack(tokens, 1) for tokens in scales],
                locations,
            )
            feat = warp(feat, step, "border") + attended
        feat = trunk(model.trunk, torch.cat([current[:, t], feat], 1))
        done[t] = feat
        if i % stride == 0:
            keys.append(_tokens(current[:, t], TOKEN_PX))
            for tokens, side in zip(scales, (4, 6, 8), strict=True):
                tokens.append(_tokens(feat, side))
            locations = torch.cat([locations, identity], 1)
    return done


def _tokens(feat: Tensor, side: int) -> Tensor:
    """Cut squares of `side` around all tokens, lay them out as an image and pool it: (B, C·16, h, w)."""
    height, width = feat.shape[-2:]
    rows, columns = height // TOKEN_PX, width // TOKEN_PX
    squares = functional.unfold(feat, side, padding=(side - TOKEN_PX) // 2, stride=TOKEN_PX)
    image = functional.fold(squares, (rows * side, columns * side), side, stride=side)
    pooled = functional.adaptive_avg_pool2d(image, (height, width))
    return functional.unfold(pooled, TOKEN_PX, stride=TOKEN_PX).unflatten(-1, (rows, columns))


def _nearest(maps: Tensor, flow: Tensor) -> Tensor:
    """Move location maps (B, 2·K, h, w): the nearest value, that of the border outside."""
    height, width = maps.shape[-2:]
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    grid = torch.stack([x + flow[:, 0], y + flow[:, 1]], -1)
    grid = 2 * grid / torch.tensor([width - 1, height - 1], dtype=flow.dtype) - 1
    return functional.grid_sample(
        maps, grid, mode="nearest", padding_mode="border", align_corners=True
    )


def _attend(
    attention: LTAM,
    current: Tensor,
    keys: Tensor,
    scales: list[Tensor],
    locations: Tensor,
) -> Tensor:
    """Attend to all key frames at once.

    Args:
        attention: Its convolution.
        current: (B, C, H, W).
        keys: Tokens of the key frames, (B, K, C·16, h, w).
        scales: Values of three scales, likewise.
        locations: (B, 2·K, h, w).
    """
    batch, num_keys, numbers, rows, columns = keys.shape
    grid = locations.unflatten(1, (num_keys, 2)).flatten(0, 1).permute(0, 2, 3, 1)
    grid = 2 * grid / torch.tensor([columns - 1, rows - 1], dtype=grid.dtype) - 1

    def gather(tokens: Tensor) -> Tensor:
        """Read tokens (B, K, C·16, h, w) where the maps point: (B, K, C·16, h·w)."""
        read = functional.grid_sample(
            tokens.flatten(0, 1), grid, mode="nearest", padding_mode="zeros", align_corners=True
        )
        return read.view(batch, num_keys, numbers, rows * columns)

    query = functional.unfold(current, TOKEN_PX, stride=TOKEN_PX)
    query = functional.normalize(query, dim=1).transpose(1, 2).unsqueeze(2)  # (B, h·w, 1, C·16)
    gathered = functional.normalize(gather(keys), dim=2).permute(0, 3, 2, 1)  # (B, h·w, C·16, K)
    similarity, best = torch.matmul(query, gathered).squeeze(2).max(-1)  # (B, h·w)
    index = best.view(batch, 1, 1, -1).expand(-1, -1, numbers, -1)
    images: list[Tensor] = []
    for tokens in scales:
        chosen = gather(tokens).gather(1, index).squeeze(1)
        images.append(functional.fold(chosen, current.shape[-2:], TOKEN_PX, stride=TOKEN_PX))
    weight = functional.fold(
        similarity.unsqueeze(1).expand(-1, TOKEN_PX**2, -1),
        current.shape[-2:],
        TOKEN_PX,
        stride=TOKEN_PX,
    )
    return attention.fusion(torch.cat(images, 1)) * weight
