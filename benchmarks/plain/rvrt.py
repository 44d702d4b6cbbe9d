"""RVRT as it was published, with the weights of ours: all frames at once, rolls, masks, every sample in memory.

Plain PyTorch: default layout, convolutions in three dimensions, grid_sample. The published kernel for CUDA, which
samples and attends in one pass, is written with `grid_sample`, one query frame after the other.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from plain.recurrent import flows, warp
from tubelet.layers.guided_attention import GuidedDeformAttention
from tubelet.models.rvrt import MRSTB, RVRT, SwinLayer, TransformerTrunk

__all__ = ["plain_rvrt"]


def plain_rvrt(model: RVRT, lq: Tensor) -> Tensor:
    """Restore `lq` (B, T, 3, H, W); the last frame of an odd number is repeated."""
    frames = lq.shape[1]
    if frames % 2:
        lq = torch.cat([lq, lq[:, -1:]], 1)
    to_next, to_last = flows(model.spynet, lq)
    feats: dict[str, list[Tensor]] = {}
    feats["shallow"] = list(_trunk(model.feat_extract, lq).split(2, 1))
    updated: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for name in model.backbone:
        backward = name.startswith("backward")
        hops = to_next.flip(1) if backward else to_last
        feats[name] = _sweep(model, name, feats, hops, updated)
    x = torch.cat([torch.cat(kept, 1) for kept in feats.values()], 2)
    x = _trunk(model.reconstruction, x)
    x = functional.leaky_relu(_convolve(model.conv_before_upsampler, x), 0.1)
    x = functional.leaky_relu(_shuffle(_convolve(model.upconv1, x)), 0.1)
    x = functional.leaky_relu(_shuffle(_convolve(model.upconv2, x)), 0.1)
    x = _convolve(model.conv_last, _convolve(model.conv_hr, x))
    base = functional.interpolate(lq.flatten(0, 1), scale_factor=4.0, mode="bilinear")
    return (x + base.view_as(x))[:, :frames]


def _sweep(
    model: RVRT,
    name: str,
    feats: dict[str, list[Tensor]],
    hops: Tensor,
    updated: dict[str, list[tuple[Tensor, Tensor]]],
) -> list[Tensor]:
    """Run a sweep; clips are (B, 2, C, H, W), and `hops` (B, T-1, 2, H, W) in the order of the sweep."""
    backward = name.startswith("backward")
    number = len(feats["shallow"])
    order = list(range(number))[::-1] if backward else list(range(number))
    last_key = list(feats)[-1]

    def clip(key: str, c: int) -> Tensor:
        return feats[key][c].flip(1) if backward else feats[key][c]

    first_round = name.endswith("_1")
    if first_round:
        updated[name] = []
    prop = torch.zeros_like(feats["shallow"][0])
    done: list[Tensor] = []
    for i, c in enumerate(order):
        if i:
            if first_round:
                guide = _flows(hops[:, 2 * i - 2], hops[:, 2 * i - 1], hops[:, 2 * i])
            else:
                guide = updated[name.replace("_2", "_1")][i - 1]
            q, k = clip(last_key, c), clip(last_key, order[i - 1])
            warped = [_warp(prop, guide[0]), _warp(prop.flip(1), guide[1])]
            prop, moved = _align(model.deform_align[name], q, k, prop, warped, guide)
            if first_round:
                updated[name].append(moved)
        known = [*(clip(key, c) for key in feats), prop]
        prop = prop + _trunk(model.backbone[name], torch.cat(known, 2))
        done.append(prop)
    return [x.flip(1) for x in done[::-1]] if backward else done


def _flows(n01: Tensor, n12: Tensor, n23: Tensor) -> tuple[Tensor, Tensor]:
    n02 = n12 + warp(n01, n12)
    n13 = n23 + warp(n12, n23)
    n03 = n23 + warp(n02, n23)
    return torch.stack([n02, n13], 1), torch.stack([n12, n03], 1)


def _warp(clip: Tensor, flow: Tensor) -> Tensor:
    return warp(clip.flatten(0, 1), flow.flatten(0, 1)).view_as(clip)


def _align(
    align: GuidedDeformAttention,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    warped: list[Tensor],
    guide: tuple[Tensor, Tensor],
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    x = torch.cat([q, *warped, *guide], 2)
    for conv in align.conv_offset[:-1]:
        x = functional.leaky_relu(_convolve(conv, x), 0.1)
    offset_1, offset_2 = (
        align.max_residue_px * torch.tanh(_convolve(align.conv_offset[-1], x))
    ).chunk(2, 2)
    offset_1 = offset_1 + guide[0].flip(2).repeat(1, 1, offset_1.shape[2] // 2, 1, 1)
    offset_2 = offset_2 + guide[1].flip(2).repeat(1, 1, offset_2.shape[2] // 2, 1, 1)
    moved = [
        offset.unflatten(2, (-1, 2)).mean(2).flip(2).contiguous() for offset in (offset_1, offset_2)
    ]
    query = _linear(align.proj_q, q)
    pairs = torch.cat([_linear(align.proj_k, k), _linear(align.proj_v, v)], 2)
    out: list[Tensor] = []
    for b in (0, 1):
        samples = [
            _sample(pairs[:, (b + n) % 2], offset[:, b], align.groups)
            for n, offset in enumerate((offset_1, offset_2))
        ]
        keys, values = torch.cat(samples, 2).chunk(2, 1)  # (B, 2C, 18, H, W)
        keys = keys.unflatten(1, (align.heads, -1))
        values = values.unflatten(1, (align.heads, -1))
        queries = query[:, b].unflatten(1, (align.heads, -1)).unsqueeze(3)
        scores = (queries * keys).sum(2) * (queries.shape[2]) ** -0.5
        out.append((scores.softmax(2).unsqueeze(2) * values).sum(3).flatten(1, 2))
    x = _linear(align.proj, torch.stack(out, 1))
    mlp = align.mlp
    x = x + _linear(mlp.fc2, functional.gelu(_linear(mlp.fc1, x)))
    return x, (moved[0], moved[1])


def _sample(image: Tensor, offset: Tensor, groups: int) -> Tensor:
    """Sample (B, C, H, W) at 3×3 taps with offsets (B, groups · 9 · 2, H, W): (B, C, 9, H, W)."""
    batch, channels, height, width = image.shape
    offset = offset.view(batch * groups, 9, 2, height, width)
    tap = torch.arange(-1, 2)
    y = offset[:, :, 0] + tap.repeat_interleave(3).view(-1, 1, 1) + torch.arange(height).view(-1, 1)
    x = offset[:, :, 1] + tap.repeat(3).view(-1, 1, 1) + torch.arange(width)
    grid = torch.stack([2 * x / (width - 1) - 1, 2 * y / (height - 1) - 1], -1).flatten(1, 2)
    image = image.reshape(batch * groups, -1, height, width)
    sampled = functional.grid_sample(image, grid, align_corners=True)
    return sampled.view(batch, channels, 9, height, width)


def _trunk(trunk: TransformerTrunk, clip: Tensor) -> Tensor:
    """Run a trunk: (B, D, C', H, W) → (B, D, C, H, W)."""
    x = _convolve(trunk.conv, clip)
    x = trunk.norm_in(x.permute(0, 1, 3, 4, 2)).permute(0, 4, 1, 2, 3)  # (B, C, D, H, W)
    for block in trunk.blocks:
        x = _block(block, x)
    return trunk.norm_out(x.permute(0, 2, 3, 4, 1)).permute(0, 1, 4, 2, 3)


def _block(block: MRSTB, x: Tensor) -> Tensor:
    y = x.permute(0, 2, 3, 4, 1)  # (B, D, H, W, C)
    for layer in block.layers:
        y = _layer(layer, y)
    return x + block.linear(y).permute(0, 4, 1, 2, 3)


def _layer(layer: SwinLayer, x: Tensor) -> Tensor:
    depth, side, _ = layer.window
    shift = layer.shift[1]
    height, width = x.shape[2:4]
    y = layer.norm1(x)
    y = functional.pad(y, (0, 0, 0, -width % side, 0, -height % side))
    if shift:
        y = torch.roll(y, (-shift, -shift), (2, 3))
    windows = _partition(y, depth, side)
    attn = layer.attn
    qkv = attn.qkv(windows).reshape(*windows.shape[:2], 3, attn.heads, -1).permute(2, 0, 3, 1, 4)
    q, k, v = qkv[0], qkv[1], qkv[2]
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    tokens = depth * side * side
    bias = attn.relative_position_bias_table[_position_index(depth, side).flatten()]
    scores = scores + bias.view(tokens, tokens, -1).permute(2, 0, 1).unsqueeze(0)
    if shift:
        mask = _shift_mask(y.shape, depth, side, shift)
        scores = scores.view(len(x), -1, attn.heads, tokens, tokens) + mask[None, :, None]
        scores = scores.view(-1, attn.heads, tokens, tokens)
    out = (scores.softmax(-1) @ v).transpose(1, 2).reshape(windows.shape)
    y = _reverse(attn.proj(out), y.shape, depth, side)
    if shift:
        y = torch.roll(y, (shift, shift), (2, 3))
    x = x + y[:, :, :height, :width]
    return x + layer.mlp.fc2(functional.gelu(layer.mlp.fc1(layer.norm2(x))))


def _partition(x: Tensor, depth: int, side: int) -> Tensor:
    """Cut (B, D, H, W, C) into windows (n, N, C)."""
    b, d, h, w, c = x.shape
    x = x.view(b, d // depth, depth, h // side, side, w // side, side, c)
    return x.permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(-1, depth * side * side, c)


def _reverse(windows: Tensor, shape: torch.Size, depth: int, side: int) -> Tensor:
    b, d, h, w, c = shape
    x = windows.view(b, d // depth, h // side, w // side, depth, side, side, c)
    return x.permute(0, 1, 4, 2, 5, 3, 6, 7).reshape(shape)


def _position_index(depth: int, side: int) -> Tensor:
    """Entry of the table of every pair of tokens: (N, N)."""
    axes = [torch.arange(n) for n in (depth, side, side)]
    places = torch.stack(torch.meshgrid(*axes, indexing="ij")).flatten(1)
    apart = places[:, :, None] - places[:, None]
    span = 2 * side - 1
    return ((apart[0] + depth - 1) * span + apart[1] + side - 1) * span + apart[2] + side - 1


def _shift_mask(shape: torch.Size, depth: int, side: int, shift: int) -> Tensor:
    """Mask of every window of the rolled clip, 0 or −100: (windows, N, N)."""
    _, d, h, w, _ = shape
    regions = torch.zeros(1, d, h, w, 1)
    cuts = (slice(0, -side), slice(-side, -shift), slice(-shift, None))
    for i, rows in enumerate(cuts):
        for j, columns in enumerate(cuts):
            regions[:, :, rows, columns] = 3 * i + j
    windows = _partition(regions, depth, side)[..., 0]
    return (windows[:, None] - windows[:, :, None]).ne(0) * -100.0


def _convolve(conv: nn.Conv2d, clip: Tensor) -> Tensor:
    """Convolve the frames of a clip (B, D, C, H, W) in three dimensions, without activation."""
    weight = conv.weight.contiguous().unsqueeze(2)
    padding = (0, *conv.padding)
    return functional.conv3d(clip.transpose(1, 2), weight, conv.bias, padding=padding).transpose(
        1, 2
    )


def _shuffle(clip: Tensor) -> Tensor:
    return functional.pixel_shuffle(clip, 2)


def _linear(linear: nn.Linear, clip: Tensor) -> Tensor:
    """Apply a linear layer to the channels of (B, D, C, H, W)."""
    return linear(clip.permute(0, 1, 3, 4, 2)).permute(0, 1, 4, 2, 3)
