"""VRT as it was published, with the weights of ours: rolls, masks, every window at once, default layout.

The comparison of `benchmarks/zoo.py`; equal to `VRT.forward` within rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import torch
from torch import Tensor, nn
from torch.nn import functional

from plain.recurrent import warp
from tubelet.layers.attention import GatedMlp, WindowAttention
from tubelet.layers.convolution import ConvAct, ConvCat
from tubelet.models.vrt import VRT, Resize, Stage
from tubelet.models.vrt_attention import MutualAttention, MutualBlock, SelfBlock
from tubelet.models.vrt_warping import FlowGuidedAlign
from tubelet.ops.sizes import pad_to, round_up

__all__ = ["plain_vrt"]

# Flow of all pairs of frames: by scale, then by distance, (B, T - distance, 2, H, W) each.
Flows = list[list[Tensor]]


def plain_vrt(model: VRT, lq: Tensor) -> Tensor:
    """Restore `lq` (B, T, 3, H, W), T of at least 2, as the published code does, all frames at once.

    Height and width are extended to multiples of 8, as the engine does.
    """
    height, width = lq.shape[-2:]
    lq = pad_to(lq, round_up(height, 8), round_up(width, 8))
    reach = model.config.num_neighbors
    backward, forward = all_flows(model, lq, reach)
    aligned = [_sampled(lq, backward[0][0], -1), _sampled(lq, forward[0][0], 1)]
    x = torch.cat([lq, *aligned], 2)
    shallow = by_frame(lambda frames: convolve(model.conv_first, frames), x)  # (B, T, C, H, W)
    deep = features(model, shallow.permute(0, 1, 3, 4, 2).contiguous(), backward, forward)
    deep = model.linear_after_body(model.norm(deep)).permute(0, 1, 4, 2, 3) + shallow
    sr = by_frame(lambda frames: upsample(model, frames), deep)
    sr = sr + by_frame(
        lambda frames: functional.interpolate(
            frames, scale_factor=4.0, mode="bilinear", align_corners=False
        ),
        lq,
    )
    return sr[..., : 4 * height, : 4 * width]


def by_frame(run: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Run a function of images (N, C, H, W) on all frames of (B, T, C, H, W) at once."""
    return run(x.flatten(0, 1)).unflatten(0, x.shape[:2])


def convolve(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """Convolve in the default layout, without the activation of the layer."""
    return functional.conv2d(x, conv.weight.contiguous(), conv.bias, padding=1)


def upsample(model: VRT, x: Tensor) -> Tensor:
    """Turn features (N, C, H, W) into what is added to the enlarged frames."""
    x = functional.leaky_relu(convolve(model.conv_before_upsample, x), 0.01)
    for conv in (model.upconv1, model.upconv2):
        x = functional.leaky_relu(functional.pixel_shuffle(convolve(conv, x), 2), 0.1)
    return convolve(model.conv_last, convolve(model.conv_hr, x))


def all_flows(model: VRT, lq: Tensor, reach: int) -> tuple[Flows, Flows]:
    """Estimate all flows, to the frames after and to the frames before, up to a distance."""
    first = lq[:, :-1].flatten(0, 1)
    second = lq[:, 1:].flatten(0, 1)
    shape = (lq.shape[0], lq.shape[1] - 1)
    to_next = model.spynet.by_scale(first, second, num_scales=4)
    to_last = model.spynet.by_scale(second, first, num_scales=4)
    return (
        [_longer(flow.unflatten(0, shape), reach, -1) for flow in to_next],
        [_longer(flow.unflatten(0, shape), reach, 1) for flow in to_last],
    )


def _longer(flow: Tensor, reach: int, step: int) -> list[Tensor]:
    """Chain the flow between neighbors (B, T - 1, 2, H, W) to flow over 1, 2, … frames."""
    chained = [flow]
    while len(chained) < min(reach, flow.shape[1]):
        longest, distance = chained[-1], len(chained)
        if step < 0:
            near, far = longest[:, :-1], flow[:, distance:]
        else:
            near, far = longest[:, 1:], flow[:, :-distance]
        hop = warp(far.flatten(0, 1), near.flatten(0, 1)).unflatten(0, near.shape[:2])
        chained.append(near + hop)
    return chained


def _sampled(lq: Tensor, flow: Tensor, step: int) -> Tensor:
    """Sample the four pixels around each target in the neighbors: (B, T, 12, H, W)."""
    source = lq[:, 1:] if step < 0 else lq[:, :-1]
    height, width = lq.shape[-2:]
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    across, down = x + flow[:, :, 0], y + flow[:, :, 1]
    samples: list[Tensor] = []
    for columns, lines in product((across.floor(), across.ceil()), (down.floor(), down.ceil())):
        grid = torch.stack([2 * columns / (width - 1) - 1, 2 * lines / (height - 1) - 1], -1)
        sampled = functional.grid_sample(
            source.flatten(0, 1), grid.flatten(0, 1), mode="nearest", align_corners=True
        )
        samples.append(sampled.unflatten(0, source.shape[:2]))
    result = torch.cat(samples, 2)
    missing = torch.zeros_like(result[:, :1])
    return torch.cat([result, missing] if step < 0 else [missing, result], 1)


def features(model: VRT, x: Tensor, backward: Flows, forward: Flows) -> Tensor:
    """Run the stages and groups on (B, T, H, W, C)."""
    down: list[Tensor] = []
    for i, stage in enumerate(model.stages):
        scale = min(i, 6 - i)
        x = run_stage(stage, x, backward[scale], forward[scale])
        if i < 3:
            down.append(x)
        if i > 3:
            x = x + down.pop()
    x = model.group_linear(model.group_norm(x))
    for group in model.groups:
        x = group.linear(run_blocks(group.blocks, x)) + x
    return x


def run_stage(stage: Stage, x: Tensor, backward: list[Tensor], forward: list[Tensor]) -> Tensor:
    """Run a stage on (B, T, H, W, C)."""
    x = resize(stage.reshape, x)
    x = stage.linear1(run_blocks(stage.mutual_blocks, x)) + x
    x = stage.linear2(run_blocks(stage.self_blocks, x)) + x
    images = x.permute(0, 1, 4, 2, 3)
    align = stage.warping.align
    after = _aligned(align, images, backward, -1).permute(0, 1, 3, 4, 2)
    before = _aligned(align, images, forward, 1).permute(0, 1, 3, 4, 2)
    return gated_mlp(stage.warping.fuse, torch.cat([x, after, before], -1))


def resize(layer: Resize, x: Tensor) -> Tensor:
    """Move pixels to channels or back: (B, T, H, W, C)."""
    batch, frames, height, width, channels = x.shape
    if layer.kind == "down":
        x = x.view(batch, frames, height // 2, 2, width // 2, 2, channels)
        x = x.permute(0, 1, 2, 4, 5, 3, 6).reshape(batch, frames, height // 2, width // 2, -1)
    elif layer.kind == "up":
        x = x.view(batch, frames, height, width, 2, 2, -1).permute(0, 1, 2, 5, 3, 4, 6)
        x = x.reshape(batch, frames, 2 * height, 2 * width, -1)
    return layer.linear(layer.norm(x))


def gated_mlp(mlp: GatedMlp, x: Tensor) -> Tensor:
    """Run a gated MLP on all tokens at once."""
    return mlp.fc2(functional.gelu(mlp.fc11(x)) * mlp.fc12(x))


def run_blocks(blocks: nn.ModuleList, x: Tensor) -> Tensor:
    """Run blocks on (B, T, H, W, C)."""
    for i, block in enumerate(blocks):
        x = x + attend(block, block.norm1(x), is_shifted=i % 2 == 1)
        x = x + gated_mlp(block.mlp, block.norm2(x))
    return x


def attend(block: SelfBlock | MutualBlock, x: Tensor, *, is_shifted: bool) -> Tensor:
    """Pad, roll, cut into windows, attend, join, roll back, crop: (B, T, H, W, C)."""
    grid = x.shape[1:4]
    window = tuple(min(side, length) for side, length in zip(block.window, grid, strict=True))
    shift = [
        side // 2 if is_shifted and length > side else 0
        for side, length in zip(block.window, grid, strict=True)
    ]
    missing = [-length % side for length, side in zip(grid, window, strict=True)]
    x = functional.pad(x, (0, 0, 0, missing[2], 0, missing[1], 0, missing[0]))
    padded = tuple(x.shape[1:4])
    if any(shift):
        x = torch.roll(x, [-offset for offset in shift], (1, 2, 3))
    mask = shift_mask(padded, window, shift) if any(shift) else None
    tokens = partition(x, window)
    if isinstance(block, MutualBlock):
        tokens = attend_mutually(block.attn, tokens, mask)
    else:
        tokens = attend_windows(block.attn, tokens, window, mask)
    x = reverse(tokens, window, padded, x.shape[0])
    if any(shift):
        x = torch.roll(x, shift, (1, 2, 3))
    return x[:, : grid[0], : grid[1], : grid[2]]


def attend_windows(
    attn: WindowAttention, x: Tensor, window: tuple[int, ...], mask: Tensor | None
) -> Tensor:
    """Attend among the tokens of all windows, (n, N, C)."""
    q, k, v = split_heads(attn.qkv(x), attn.heads)
    bias = position_bias(attn.relative_position_bias_table, attn.window, x.shape[1])
    return attn.proj(weigh(q, k, v, bias, mask))


def attend_mutually(attn: MutualAttention, x: Tensor, mask: Tensor | None) -> Tensor:
    """Attend within and between the two frames of all windows, (n, N, C)."""
    q, k, v = split_heads(attn.qkv_self(x), attn.heads)
    bias = position_bias(attn.relative_position_bias_table, attn.window, x.shape[1])
    own = weigh(q, k, v, bias, mask)
    half = x.shape[1] // 2
    code = attn.position_code.flatten(0, 1)
    q, k, v = split_heads(attn.qkv_mut(x + code.repeat(2, 1)), attn.heads)
    half_mask = None if mask is None else mask[:, :half, :half]
    first = weigh(q[:, :, half:], k[:, :, :half], v[:, :, :half], None, half_mask)
    second = weigh(q[:, :, :half], k[:, :, half:], v[:, :, half:], None, half_mask)
    return attn.proj(torch.cat([torch.cat([first, second], 1), own], 2))


def split_heads(qkv: Tensor, heads: int) -> tuple[Tensor, ...]:
    """(n, N, 3·C) → three times (n, heads, N, d)."""
    n, tokens, _ = qkv.shape
    return qkv.reshape(n, tokens, 3, heads, -1).permute(2, 0, 3, 1, 4).unbind(0)


def weigh(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, mask: Tensor | None) -> Tensor:
    """Weigh the values of every window: (n, N, C)."""
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    if bias is not None:
        scores = scores + bias.unsqueeze(0)
    if mask is not None:
        by_image = scores.view(-1, len(mask), *scores.shape[1:]) + mask[:, None][None]
        scores = by_image.view(scores.shape)
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)


def position_bias(table: Tensor, window: tuple[int, ...], tokens: int) -> Tensor:
    """Look up the bias of every pair of the first tokens of a window: (heads, N, N)."""
    axes = [torch.arange(side) for side in window]
    places = torch.stack(torch.meshgrid(*axes, indexing="ij")).flatten(1)
    apart = places[:, :, None] - places[:, None]
    index = torch.zeros_like(apart[0])
    for distance, side in zip(apart, window, strict=True):
        index = index * (2 * side - 1) + distance + side - 1
    index = index[:tokens, :tokens]
    return table[index.flatten()].view(tokens, tokens, -1).permute(2, 0, 1).contiguous()


def partition(x: Tensor, window: tuple[int, ...]) -> Tensor:
    """(B, T, H, W, C) → (n, N, C)."""
    b, t, h, w, c = x.shape
    d, u, v = window
    x = x.view(b, t // d, d, h // u, u, w // v, v, c)
    return x.permute(0, 1, 3, 5, 2, 4, 6, 7).contiguous().view(-1, d * u * v, c)


def reverse(windows: Tensor, window: tuple[int, ...], grid: tuple[int, ...], batch: int) -> Tensor:
    """(n, N, C) → (B, T, H, W, C)."""
    (t, h, w), (d, u, v) = grid, window
    x = windows.view(batch, t // d, h // u, w // v, d, u, v, -1)
    return x.permute(0, 1, 4, 2, 5, 3, 6, 7).contiguous().view(batch, t, h, w, -1)


def shift_mask(grid: tuple[int, ...], window: tuple[int, ...], shift: list[int]) -> Tensor:
    """Mask of every window of the rolled clip, 0 or -100: (windows, N, N)."""
    regions = torch.zeros(1, *grid, 1)
    cuts: list[list[slice]] = []
    for side, offset in zip(window, shift, strict=True):
        cuts.append([slice(-side), slice(-side, -offset), slice(-offset, None)])
    for number, index in enumerate(product(*cuts)):
        regions[:, index[0], index[1], index[2]] = number
    tokens = partition(regions, window).squeeze(-1)
    return (tokens[:, None] - tokens[:, :, None]).ne(0) * -100.0


def _aligned(align: FlowGuidedAlign, x: Tensor, flows: list[Tensor], step: int) -> Tensor:
    """Align the neighbors of all frames: (B, T, C, H, W)."""
    count = x.shape[1]
    results: list[Tensor] = []
    for t in range(count):
        neighbors: list[Tensor] = []
        motion: list[Tensor] = []
        for i in range(align.num_neighbors):
            other = t - step * (i + 1)
            if 0 <= other < count:
                neighbors.append(x[:, other])
                motion.append(flows[i][:, min(t, other)])
            elif i:
                neighbors.append(torch.zeros_like(x[:, t]))
                motion.append(torch.zeros_like(motion[0]))
            else:
                break
        aligned = _align(align, x[:, t], neighbors, motion) if neighbors else x[:, t] * 0
        results.append(aligned)
    return torch.stack(results, 1)


def _align(
    align: FlowGuidedAlign, current: Tensor, neighbors: list[Tensor], flows: list[Tensor]
) -> Tensor:
    """Align neighbors with a frame, by torchvision: (B, C, H, W)."""
    warped = [warp(x.contiguous(), flow) for x, flow in zip(neighbors, flows, strict=True)]
    out = torch.cat([*warped, current, *flows], 1)
    for layer in align.conv_offset:
        if isinstance(layer, ConvCat | ConvAct):
            out = convolve(layer, out)
            out = out if layer.act == "none" else functional.leaky_relu(out, 0.1)
    first, second, mask = out.chunk(3, 1)
    offset = align.max_residue_px * torch.tanh(torch.cat([first, second], 1))
    parts: list[Tensor] = []
    for part, flow in zip(offset.chunk(len(flows), 1), flows, strict=True):
        parts.append(part + flow.flip(1).repeat(1, part.shape[1] // 2, 1, 1))
    # Imported here, because the runs that are compared with this one do without it.
    from torchvision.ops import deform_conv2d

    return deform_conv2d(
        torch.cat(neighbors, 1),
        torch.cat(parts, 1),
        align.weight.contiguous(),
        align.bias,
        padding=1,
        mask=mask.sigmoid(),
    )
