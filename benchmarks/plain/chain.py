"""PSRT, MIA-VSR without masks and LRTI-VSR in the published formulation, with the weights of ours.

All flows first, all features kept, rolls and masks, every window at once, queries, keys and values of all frames,
default layout. The comparison of `benchmarks/zoo.py`; equal to `forward` within rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from plain.recurrent import warp
from plain.swinir import convolve, position_index, shift_mask
from tubelet.layers.attention import QueryFrameAttention, attend
from tubelet.layers.chain import CHAIN_SWEEPS
from tubelet.layers.sweep_transformer import SweepTransformer, TemporalBlock
from tubelet.models.lrti_vsr import RITB

__all__ = ["plain_attention", "plain_block", "plain_chain", "plain_patch_align", "plain_sweep"]

Align = Callable[[Tensor, Tensor, Tensor], Tensor]
Refine = Callable[[SweepTransformer, Tensor, Tensor, Tensor], Tensor]
RunBlock = Callable[[TemporalBlock, Tensor, Tensor | None], Tensor]
PATCH_PX = 8
FRAMES = 3


def plain_chain(
    model: Any,
    lq: Tensor,
    *,
    align: Align | None = None,
    refine: Refine | None = None,
    second_frame: str = "repeat",
) -> Tensor:
    """Restore `lq` (B, T, 3, H, W).

    Args:
        model: network of the family.
        lq: the clip.
        align: moves a state by a flow to the current features; by default by patches.
        refine: runs the transformer of a sweep on current, newer and older; by default `plain_sweep`.
        second_frame: what the second frame of a sweep takes as the older state.
    """
    align = align or plain_patch_align
    refine = refine or plain_sweep
    frames = lq.unbind(1)
    last = len(frames) - 1
    feats = list(convolve(model.conv_first, lq.flatten(0, 1)).unflatten(0, lq.shape[:2]).unbind(1))
    first, second = lq[:, :-1].flatten(0, 1), lq[:, 1:].flatten(0, 1)
    pairs = (lq.shape[0], last)
    to_next = model.spynet(first, second).unflatten(0, pairs)
    to_last = model.spynet(second, first).unflatten(0, pairs)
    kept = {"spatial": feats}
    for name in CHAIN_SWEEPS:
        order = list(range(last + 1))
        flows = to_last
        if name.startswith("backward"):
            order, flows = order[::-1], to_next.flip(1)
        states: list[Tensor] = []
        for i, t in enumerate(order):
            current = feats[t]
            newer = older = current
            if i > 0:
                flow_1 = flows[:, i - 1]
                newer = align(states[-1], flow_1, current)
                older = newer if second_frame == "repeat" else torch.zeros_like(newer)
                if i > 1:
                    flow_2 = flow_1 + warp(flows[:, i - 2], flow_1, "zeros")
                    older = align(states[-2], flow_2, current)
            states.append(refine(model.sweeps[name], current, newer, older))
        feats = states if name.startswith("forward") else states[::-1]
        # Published code keeps the features of every sweep until the end.
        kept[name] = feats
    return torch.stack([_reconstruct(model, x, frames[t]) for t, x in enumerate(feats)], 1)


def plain_patch_align(state: Tensor, flow: Tensor, current: Tensor) -> Tensor:
    """Move patches by their mean flow with grid_sample."""
    height, width = flow.shape[-2:]
    pad = (0, -width % PATCH_PX, 0, -height % PATCH_PX)
    mean = functional.avg_pool2d(functional.pad(flow, pad, mode="reflect"), PATCH_PX)
    mean = functional.interpolate(mean, scale_factor=PATCH_PX, mode="nearest")
    mean = mean[..., :height, :width]
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    grid = torch.stack([x, y], -1).to(flow) + mean.permute(0, 2, 3, 1)
    size = grid.new_tensor([max(width - 1, 1), max(height - 1, 1)])
    return functional.grid_sample(
        state, 2 * grid / size - 1, mode="nearest", padding_mode="zeros", align_corners=True
    )


def _reconstruct(model: Any, x: Tensor, frame: Tensor) -> Tensor:
    x = convolve(model.conv_before_upsample, x)
    x = functional.leaky_relu(convolve(model.upconv1, x), 0.1)
    x = functional.leaky_relu(convolve(model.upconv2, x), 0.1)
    x = functional.leaky_relu(convolve(model.conv_hr, x), 0.1)
    base = functional.interpolate(frame, scale_factor=4, mode="bilinear", align_corners=False)
    return convolve(model.conv_last, x) + base


def plain_sweep(
    sweep: SweepTransformer,
    current: Tensor,
    newer: Tensor,
    older: Tensor,
    run_block: RunBlock | None = None,
) -> Tensor:
    """Compute the state of a frame from current, newer and older (B, C, H, W); blocks run by `run_block`."""
    run_block = run_block or plain_block
    frames = [older, newer, current]
    middle = 2
    if sweep.order == "current-middle":
        frames, middle = [newer, current, older], 1
    x = sweep.patch_norm(torch.stack(frames, 1).permute(0, 1, 3, 4, 2))  # (B, 3, H, W, C)
    past = None
    if sweep.updates == "current":
        past, x = x[:, :-1], x[:, -1:]
    for group in sweep.groups:
        y = x
        for block in group.blocks:
            y = run_block(block, y, past)
        image = convolve(group.conv, y.flatten(0, 1).permute(0, 3, 1, 2).contiguous())
        x = x + image.permute(0, 2, 3, 1).unflatten(0, x.shape[:2])
    x = sweep.norm(x)[:, middle if past is None else 0]
    return convolve(sweep.conv_after_body, x.permute(0, 3, 1, 2).contiguous()) + current


def plain_block(block: TemporalBlock, x: Tensor, past: Tensor | None) -> Tensor:
    """Run a block on x (B, D, H, W, C) with the past frames (B, 2, H, W, C)."""
    x = x + plain_attention(block, x, past)
    if isinstance(block, RITB):
        assert past is not None
        return x + block.feed_forward(x, (past[:, 1:2],))
    return x + block.mlp.fc2(functional.gelu(block.mlp.fc1(block.norm2(x))))


def plain_attention(block: TemporalBlock, x: Tensor, past: Tensor | None) -> Tensor:
    """Run the attention of a block, without its skip."""
    stack = x if past is None else torch.cat([past, x], 1)
    height, width = x.shape[2:4]
    w, shift = block.window[-1], block.shift[-1]
    y = functional.pad(block.norm1(stack), (0, 0, 0, -width % w, 0, -height % w))
    size = (y.shape[2], y.shape[3])
    mask = shift_mask(size, w, shift).to(y) if shift else None
    if shift:
        y = y.roll((-shift, -shift), (2, 3))
    windows = _partition(y, w)
    out = _attend_windows(block.attn, windows, mask)
    frames = out.shape[1] // w**2
    out = _reverse(out, frames, w, *size)
    if shift:
        out = out.roll((shift, shift), (2, 3))
    return out[:, :, :height, :width]


def _attend_windows(attn: nn.Module, windows: Tensor, mask: Tensor | None) -> Tensor:
    """Attend in windows (n, 3·w², C) of all frames: (n, queries, C)."""
    n, tokens, channels = windows.shape
    one_frame = isinstance(attn, QueryFrameAttention)
    queries = tokens // FRAMES if one_frame else tokens
    q, k, v = attn.qkv(windows).reshape(n, tokens, 3, attn.heads, -1).permute(2, 0, 3, 1, 4)
    q = q[:, :, -queries:] * q.shape[-1] ** -0.5
    w = attn.window if one_frame else attn.window[-1]
    bias = attn.relative_position_bias_table[_position_index(w, one_frame).flatten()]
    bias = bias.view(queries, tokens, -1).permute(2, 0, 1).contiguous()
    scores = q @ k.transpose(-2, -1) + bias.unsqueeze(0)
    if mask is not None:
        mask = mask.repeat(1, queries // (w * w), FRAMES)
    if one_frame and attn.attend is not attend:
        weights = functional.relu(scores) ** 2
        if mask is not None:
            weights = _by_window(weights, mask == 0, torch.mul)
    else:
        if mask is not None:
            scores = _by_window(scores, mask, torch.add)
        weights = scores.softmax(-1)
    return attn.proj((weights @ v).transpose(1, 2).reshape(n, queries, channels))


def _by_window(scores: Tensor, mask: Tensor, combine: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Combine scores (B·windows, heads, N, M) with the mask of their window (windows, N, M)."""
    split = scores.view(-1, len(mask), *scores.shape[1:])
    return combine(split, mask[None, :, None]).view_as(scores)


def _position_index(w: int, one_frame: bool) -> Tensor:
    """Entry of the table of every pair of tokens: (queries, 3·w²)."""
    plane = position_index(w)
    entries = (2 * w - 1) ** 2
    rows: list[Tensor] = []
    for query in [FRAMES - 1] if one_frame else range(FRAMES):
        # One frame of queries counts as frame 0 of the table of distances.
        apart = [(query - key + (0 if one_frame else FRAMES - 1)) for key in range(FRAMES)]
        rows.append(torch.cat([plane + entries * distance for distance in apart], 1))
    return torch.cat(rows)


def _partition(x: Tensor, w: int) -> Tensor:
    """(B, D, H, W, C) → (B·windows, D·w², C)."""
    batch, frames, height, width, channels = x.shape
    split = x.view(batch, frames, height // w, w, width // w, w, channels)
    return split.permute(0, 2, 4, 1, 3, 5, 6).reshape(-1, frames * w * w, channels)


def _reverse(windows: Tensor, frames: int, w: int, height: int, width: int) -> Tensor:
    """(B·windows, D·w², C) → (B, D, H, W, C)."""
    split = windows.view(-1, height // w, width // w, frames, w, w, windows.shape[-1])
    joined = split.permute(0, 3, 1, 4, 2, 5, 6)
    return joined.reshape(len(split), frames, height, width, windows.shape[-1])
