"""SwinIR as it was published, with the weights of ours: rolls, masks, every window at once, default layout.

The comparison of `benchmarks/zoo.py`; equal to `SwinIR.forward` within rounding.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from tubelet.layers.convolution import ShuffleConv
from tubelet.models.swinir import RSTB, SwinBlock, SwinIR

__all__ = ["plain_forward"]


def plain_forward(model: SwinIR, lq: Tensor) -> Tensor:
    """Restore `lq` (B, T, 3, H, W) as the published code does, all frames at once."""
    config, frames = model.config, lq.flatten(0, 1)
    height, width = (config.scale * side for side in frames.shape[-2:])
    w = config.window
    x = functional.pad(frames, (0, -frames.shape[-1] % w, 0, -frames.shape[-2] % w), mode="reflect")
    x = (x - model.mean) * config.img_range
    shallow = convolve(model.conv_first, x)
    size = (shallow.shape[-2], shallow.shape[-1])
    tokens = model.patch_norm(shallow.flatten(2).transpose(1, 2))  # (B, H·W, C)
    for group in model.layers:
        tokens = _group(group, tokens, size)
    deep = model.norm(tokens).transpose(1, 2).view(shallow.shape)
    features = convolve(model.conv_after_body, deep) + shallow
    sr = _upsample(model, features, x) / config.img_range + model.mean
    return sr[..., :height, :width].unflatten(0, lq.shape[:2])


def convolve(module: nn.Module, x: Tensor) -> Tensor:
    """Run convolutions and what is between them, in the default layout."""
    if isinstance(module, nn.Sequential):
        for part in module:
            x = convolve(part, x)
        return x
    if isinstance(module, nn.Conv2d):
        x = functional.conv2d(x, module.weight.contiguous(), module.bias, padding=module.padding)
        if isinstance(module, ShuffleConv):
            x = functional.pixel_shuffle(x, module.factor)
        return x
    return module(x)


def _group(group: RSTB, tokens: Tensor, size: tuple[int, int]) -> Tensor:
    x = tokens
    for block in group.blocks:
        x = _block(block, x, size)
    image = x.transpose(1, 2).view(x.shape[0], x.shape[2], *size)
    return convolve(group.conv, image).flatten(2).transpose(1, 2) + tokens


def _block(block: SwinBlock, x: Tensor, size: tuple[int, int]) -> Tensor:
    shift = block.shift[0]
    mask = shift_mask(size, block.window[0], shift) if shift else None
    x = x + attend_windows(block.attn, block.norm1(x), size, shift, mask)
    return x + block.mlp.fc2(functional.gelu(block.mlp.fc1(block.norm2(x))))


def attend_windows(
    attn: nn.Module, x: Tensor, size: tuple[int, int], shift: int, mask: Tensor | None
) -> Tensor:
    """Roll, cut into windows, attend, join, roll back: (B, H·W, C) → (B, H·W, C)."""
    batch, _, channels = x.shape
    w = attn.window[0]
    x = x.view(batch, *size, channels)
    if shift:
        x = torch.roll(x, (-shift, -shift), (1, 2))
    windows = partition(x, w).view(-1, w * w, channels)
    q, k, v = (
        attn.qkv(windows).reshape(len(windows), w * w, 3, attn.heads, -1).permute(2, 0, 3, 1, 4)
    )
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    table = attn.relative_position_bias_table[position_index(w).flatten()]
    scores = scores + table.view(w * w, w * w, -1).permute(2, 0, 1).contiguous().unsqueeze(0)
    if mask is not None:
        scores = scores.view(batch, len(mask), attn.heads, w * w, w * w) + mask[:, None][None]
        scores = scores.view(-1, attn.heads, w * w, w * w)
    out = attn.proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(windows.shape))
    x = reverse(out.view(-1, w, w, channels), w, *size)
    if shift:
        x = torch.roll(x, (shift, shift), (1, 2))
    return x.view(batch, -1, channels)


def partition(x: Tensor, w: int) -> Tensor:
    """(B, H, W, C) → (B·windows, w, w, C)."""
    b, h, width, c = x.shape
    return (
        x.view(b, h // w, w, width // w, w, c)
        .permute(0, 1, 3, 2, 4, 5)
        .contiguous()
        .view(-1, w, w, c)
    )


def reverse(windows: Tensor, w: int, h: int, width: int) -> Tensor:
    """(B·windows, w, w, C) → (B, H, W, C)."""
    x = windows.view(-1, h // w, width // w, w, w, windows.shape[-1])
    return x.permute(0, 1, 3, 2, 4, 5).contiguous().view(len(x), h, width, -1)


def position_index(w: int) -> Tensor:
    """Entry of the table of every pair of tokens: (w², w²)."""
    places = torch.stack(torch.meshgrid(torch.arange(w), torch.arange(w), indexing="ij")).flatten(1)
    apart = places[:, :, None] - places[:, None] + w - 1
    return apart[0] * (2 * w - 1) + apart[1]


def shift_mask(size: tuple[int, int], w: int, shift: int) -> Tensor:
    """Mask of every window of the rolled image, 0 or −100: (windows, w², w²)."""
    regions = torch.zeros(1, *size, 1)
    cuts = (slice(0, -w), slice(-w, -shift), slice(-shift, None))
    for i, rows in enumerate(cuts):
        for j, columns in enumerate(cuts):
            regions[:, rows, columns] = 3 * i + j
    windows = partition(regions, w).view(-1, w * w)
    return (windows[:, None] - windows[:, :, None]).ne(0) * -100.0


def _upsample(model: SwinIR, features: Tensor, x: Tensor) -> Tensor:
    kind = model.config.upsampler
    if kind == "none":
        return x + convolve(model.conv_last, features)
    if kind == "pixelshuffledirect":
        return convolve(model.upsample, features)
    up = convolve(model.conv_before_upsample, features)
    if kind == "pixelshuffle":
        return convolve(model.conv_last, convolve(model.upsample, up))
    for name in ("conv_up1", "conv_up2"):
        if hasattr(model, name):
            up = functional.interpolate(up, scale_factor=2, mode="nearest")
            up = functional.leaky_relu(convolve(getattr(model, name), up), 0.2)
    return convolve(model.conv_last, functional.leaky_relu(convolve(model.conv_hr, up), 0.2))
