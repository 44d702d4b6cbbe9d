"""HAT as it was published, with the weights of ours: rolls, masks, unfolded keys, every window at once, default layout.

The comparison of `benchmarks/zoo.py`; equal to `HAT.forward` within rounding.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from plain.swinir import attend_windows, convolve, partition, reverse, shift_mask
from tubelet.models.hat import CAB, HAB, HAT, OCAB

__all__ = ["plain_forward"]


def plain_forward(model: HAT, lq: Tensor) -> Tensor:
    """Enlarge `lq` (B, T, 3, H, W) as the published code does, all frames at once."""
    config, frames = model.config, lq.flatten(0, 1)
    height, width = (config.scale * side for side in frames.shape[-2:])
    w = config.window
    x = functional.pad(frames, (0, -frames.shape[-1] % w, 0, -frames.shape[-2] % w), mode="reflect")
    x = (x - model.mean) * config.img_range
    shallow = convolve(model.conv_first, x)
    size = (shallow.shape[-2], shallow.shape[-1])
    mask = shift_mask(size, w, w // 2)
    tokens = model.patch_norm(shallow.flatten(2).transpose(1, 2))  # (B, H·W, C)
    for group in model.layers:
        y = tokens
        for block in group.blocks:
            y = _hybrid_block(block, y, size, mask)
        y = _overlapping_attention(group.overlap, y, size)
        image = y.transpose(1, 2).view(shallow.shape)
        tokens = convolve(group.conv, image).flatten(2).transpose(1, 2) + tokens
    deep = model.norm(tokens).transpose(1, 2).view(shallow.shape)
    features = convolve(model.conv_after_body, deep) + shallow
    up = convolve(model.conv_before_upsample, features)
    sr = convolve(model.conv_last, convolve(model.upsample, up)) / config.img_range + model.mean
    return sr[..., :height, :width].unflatten(0, lq.shape[:2])


def _hybrid_block(block: HAB, x: Tensor, size: tuple[int, int], mask: Tensor) -> Tensor:
    normed = block.norm1(x)
    detail = _channel_attention(block.cab, normed.view(len(x), *size, -1).permute(0, 3, 1, 2))
    detail = detail.permute(0, 2, 3, 1).contiguous().view(x.shape)
    shift = block.shift[0]
    attended = attend_windows(block.attn, normed, size, shift, mask if shift else None)
    x = x + attended + detail * block.conv_scale
    return x + block.mlp.fc2(functional.gelu(block.mlp.fc1(block.norm2(x))))


def _channel_attention(cab: CAB, x: Tensor) -> Tensor:
    y = convolve(cab.expand, functional.gelu(convolve(cab.compress, x)))
    weights = functional.relu(convolve(cab.squeeze, functional.adaptive_avg_pool2d(y, 1)))
    return y * torch.sigmoid(convolve(cab.excite, weights))


def _overlapping_attention(block: OCAB, x: Tensor, size: tuple[int, int]) -> Tensor:
    batch, _, channels = x.shape
    w, k, heads = block.window, block.key_window, block.heads
    qkv = block.qkv(block.norm1(x)).view(batch, *size, 3, channels).permute(3, 0, 4, 1, 2)
    q = partition(qkv[0].permute(0, 2, 3, 1), w).view(-1, w * w, channels)
    unfolded = functional.unfold(torch.cat((qkv[1], qkv[2]), 1), k, stride=w, padding=(k - w) // 2)
    unfolded = unfolded.view(batch, 2, channels, k * k, -1).permute(1, 0, 4, 3, 2).contiguous()
    keys, values = unfolded.view(2, -1, k * k, channels)
    q, keys, values = (
        t.reshape(len(q), -1, heads, channels // heads).permute(0, 2, 1, 3)
        for t in (q, keys, values)
    )
    scores = (q * q.shape[-1] ** -0.5) @ keys.transpose(-2, -1)
    bias = block.relative_position_bias_table[_overlapping_index(w, k).flatten()]
    scores = scores + bias.view(w * w, k * k, -1).permute(2, 0, 1).contiguous().unsqueeze(0)
    out = (scores.softmax(-1) @ values).transpose(1, 2).reshape(-1, w, w, channels)
    x = block.proj(reverse(out, w, *size).view(batch, -1, channels)) + x
    return x + block.mlp.fc2(functional.gelu(block.mlp.fc1(block.norm2(x))))


def _overlapping_index(w: int, k: int) -> Tensor:
    """Entry of the table of every query and key, negative for half of them: (w², k²)."""
    queries, keys = (
        torch.stack(torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")).flatten(
            1
        )
        for side in (w, k)
    )
    apart = keys[:, None] - queries[:, :, None] + w - k + 1
    return apart[0] * (w + k - 1) + apart[1]
