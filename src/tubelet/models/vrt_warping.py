"""Parallel warping of VRT: align the neighbors of every frame with it, then fuse all three.

    x (B, T, H, W, C)
      frames t+1 … t+n ── align ── after(t)     (B, H, W, C); zeros for the last frame
      frames t-1 … t-n ── align ── before(t)    (B, H, W, C); zeros for the first frame
      [x(t), after(t), before(t)] ── GatedMlp 3C → 3C → C ── x(t)                        Eq. 5

    align   offsets around the flow = 10 px / scale · tanh conv [warped neighbors, x(t), flows]
            deformable convolution, each neighbor to C/n of the channels                 Eq. 4

Source: Liang et al., VRT: A Video Restoration Transformer, IEEE TIP 2024, Sec. 3.3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tubelet.layers.attention import GatedMlp
from tubelet.layers.convolution import ConvAct, ConvCat, LeakyReLU
from tubelet.layers.inference import SwitchableLayer
from tubelet.layers.spynet import SpyNet
from tubelet.layers.windows import map_windows
from tubelet.ops.deform import guided_deform_conv2d
from tubelet.ops.warp import backward_warp

__all__ = ["ClipMotion", "FlowGuidedAlign", "ParallelWarping", "estimate_motion", "nearest_four"]

_SLOPE = 0.1
# dy, dx and mask of each of the nine taps of a group.
_OFFSET_CHANNELS = 27


@dataclass(frozen=True, slots=True)
class ClipMotion:
    """Optical flow between the neighboring frames of a clip, at one scale.

    Attributes:
        to_next: Flow from each frame t to t + 1, T − 1 times (B, 2, H, W), pixels of this scale.
        to_last: Flow from each frame t + 1 to t.
    """

    to_next: list[Tensor]
    to_last: list[Tensor]

    def chain(self, t: int, step: int, num_frames: int) -> list[Tensor]:
        """Compute the flow from a frame to those that follow it in one direction.

        Args:
            t: Index of the frame.
            step: 1 for the frames after it, -1 for those before it.
            num_frames: Number of frames n.

        Returns:
            Flow to t + step, t + 2 · step, …, (B, 2, H, W): n of them, or fewer at the end of the
            clip.
        """
        hops = self.to_next[t:] if step > 0 else self.to_last[:t][::-1]
        flows: list[Tensor] = []
        for hop in hops[:num_frames]:
            # A hop is read at the position to which the flow so far leads.
            flow = flows[-1] + backward_warp(hop, flows[-1]) if flows else hop
            flows.append(flow)
        return flows


def estimate_motion(spynet: SpyNet, lq: Tensor, num_scales: int) -> list[ClipMotion]:
    """Estimate the flow between neighboring frames at full size, a half, a quarter, ….

    Args:
        spynet: Network that estimates the flow.
        lq: Clip, (B, T, 3, H, W).
        num_scales: Number of sizes.

    Returns:
        The motion at each size, the largest first.
    """
    motions = [ClipMotion([], []) for _ in range(num_scales)]
    for t in range(lq.shape[1] - 1):
        current = lq[:, t]
        following = lq[:, t + 1]
        to_next = spynet.by_scale(current, following, num_scales=num_scales)
        to_last = spynet.by_scale(following, current, num_scales=num_scales)
        for motion, forward, backward in zip(motions, to_next, to_last, strict=True):
            motion.to_next.append(forward)
            motion.to_last.append(backward)
    return motions


def nearest_four(frame: Tensor, flow: Tensor) -> Tensor:
    """Sample the four pixels around the position that the flow gives.

    Args:
        frame: (B, 3, H, W).
        flow: (B, 2, H, W), pixels.

    Returns:
        (B, 12, H, W): the pixels at the upper left, lower left, upper right and lower right; zeros
        outside of the frame.
    """
    height, width = frame.shape[-2:]
    columns = torch.arange(width, dtype=flow.dtype, device=flow.device).expand(height, width)
    lines = torch.arange(height, dtype=flow.dtype, device=flow.device)[:, None]
    grid = torch.stack([columns, lines.expand(height, width)])  # (2, H, W)
    position = grid + flow
    low = position.floor() - grid
    high = position.ceil() - grid
    samples: list[Tensor] = []
    for horizontal in (low, high):
        for vertical in (low, high):
            whole_flow = torch.cat([horizontal[:, :1], vertical[:, 1:]], 1)
            samples.append(backward_warp(frame, whole_flow, mode="nearest"))
    return torch.cat(samples, 1)


class FlowGuidedAlign(nn.Module):
    """Align n neighbors with a frame by deformable convolution around their flows (Eq. 4).

    Parameters: `weight` (C, C, 3, 3), of which each neighbor has C/n filters, `bias` (C,), and
    `conv_offset.{0, 2, 4, 6}` (convolutions (n + 1)·C + 2n → C → C → C → 27·G).

    Args:
        channels: C.
        num_neighbors: n, a divisor of C.
        groups: G, offset groups of all neighbors together, a multiple of n.
        max_residue_px: Largest distance of an offset from its flow, pixels.
    """

    def __init__(
        self,
        channels: int,
        num_neighbors: int,
        groups: int,
        max_residue_px: float,
    ) -> None:
        super().__init__()
        self.num_neighbors = num_neighbors
        self.max_residue_px = max_residue_px
        self.weight = nn.Parameter(torch.empty(channels, channels, 3, 3))
        self.bias = nn.Parameter(torch.zeros(channels))
        act = LeakyReLU(_SLOPE)
        guide_channels = (num_neighbors + 1) * channels + 2 * num_neighbors
        last = ConvAct(channels, _OFFSET_CHANNELS * groups)
        # Published files also number the activations, which the convolutions include.
        self.conv_offset = nn.Sequential(
            ConvCat(guide_channels, channels, act=act),
            nn.Identity(),
            ConvAct(channels, channels, act=act),
            nn.Identity(),
            ConvAct(channels, channels, act=act),
            nn.Identity(),
            last,
        )
        # Offsets start at the flows, and the masks at sigmoid(0).
        bound = 1 / math.sqrt(9 * num_neighbors * channels)
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.zeros_(last.weight)
        assert last.bias is not None
        nn.init.zeros_(last.bias)

    def forward(self, current: Tensor, neighbors: Sequence[Tensor], flows: list[Tensor]) -> Tensor:
        """Align neighbors.

        Args:
            current: Features of the frame, (B, C, H, W).
            neighbors: Features of its neighbors, nearest first, (B, C, H, W) each: 1 to n. Those
                beyond the end of the clip count as zeros.
            flows: Flow from the frame to each of them, (B, 2, H, W), pixels.

        Returns:
            (B, C, H, W).
        """
        warped = [backward_warp(x, flow) for x, flow in zip(neighbors, flows, strict=True)]
        num_missing = self.num_neighbors - len(neighbors)
        no_features = [torch.zeros_like(current)] * num_missing
        no_flow = [torch.zeros_like(flows[0])] * num_missing
        first, *others = self.conv_offset
        predicted = first(*warped, *no_features, current, *flows, *no_flow)
        for layer in others:
            predicted = layer(predicted)

        aligned: list[Tensor] = []
        for i, (x, flow) in enumerate(zip(neighbors, flows, strict=True)):
            aligned.append(self._sample(i, x, flow, predicted))
        # The samples of zeros are zeros: only the bias is left.
        filters_done = len(neighbors) * len(self.bias) // self.num_neighbors
        if num_missing:
            rest = self.bias[filters_done:].view(1, -1, 1, 1)
            aligned.append(rest.expand(len(current), -1, *current.shape[2:]))
        return torch.cat(aligned, 1) if len(aligned) > 1 else aligned[0]

    def _sample(self, i: int, x: Tensor, flow: Tensor, predicted: Tensor) -> Tensor:
        """Compute the channels of neighbor i, (B, C/n, H, W).

        Args:
            i: Index of the neighbor.
            x: Its features, (B, C, H, W).
            flow: Flow from the frame to it, (B, 2, H, W).
            predicted: Offsets and masks of all neighbors before activation, (B, 27·G, H, W).
        """
        n = self.num_neighbors
        if n > 1:
            # Offsets of all neighbors come first, then their masks.
            num_samples = predicted.shape[1] // 3
            offsets = predicted[:, : 2 * num_samples].chunk(n, 1)
            masks = predicted[:, 2 * num_samples :].chunk(n, 1)
            predicted = torch.cat([offsets[i], masks[i]], 1)
        return guided_deform_conv2d(
            x,
            predicted,
            self.weight.chunk(n)[i],
            self.bias.chunk(n)[i],
            flows=(flow,),
            max_residue_px=self.max_residue_px,
            padding=1,
        )


class ParallelWarping(SwitchableLayer):
    """Fuse every frame of a clip with its neighbors, aligned with it (Eqs. 4 and 5).

    Args:
        channels: C.
        num_neighbors: Number of neighbors on each side.
        groups: Offset groups of the neighbors on one side together.
        max_residue_px: Largest distance of an offset from its flow, pixels.
    """

    def __init__(
        self,
        channels: int,
        num_neighbors: int,
        groups: int,
        max_residue_px: float,
    ) -> None:
        super().__init__()
        self.align = FlowGuidedAlign(channels, num_neighbors, groups, max_residue_px)
        self.fuse = GatedMlp(3 * channels, 3 * channels, channels)

    def forward(self, x: Tensor, motion: ClipMotion) -> Tensor:
        """Map (B, T, H, W, C) to the same shape."""
        out = torch.empty_like(x)
        for t in range(x.shape[1]):
            after = self._aligned(x, t, 1, motion)
            before = self._aligned(x, t, -1, motion)
            out[:, t] = self._fuse(x[:, t], after, before)
        return out

    def _aligned(self, x: Tensor, t: int, step: int, motion: ClipMotion) -> Tensor:
        """Align the neighbors of frame t in one direction: (B, H, W, C)."""
        current = x[:, t]
        flows = motion.chain(t, step, self.align.num_neighbors)
        if not flows:
            # Nothing is known beyond the end of the clip.
            return torch.zeros_like(current)
        neighbors: list[Tensor] = []
        for i in range(1, len(flows) + 1):
            neighbors.append(x[:, t + i * step].permute(0, 3, 1, 2))
        aligned = self.align(current.permute(0, 3, 1, 2), neighbors, flows)
        return aligned.permute(0, 2, 3, 1)

    def _fuse(self, *frames: Tensor) -> Tensor:
        """Apply the MLP to the concatenation of three frames, (B, H, W, C) each."""

        def restore(tokens: tuple[Tensor, ...], size: tuple[int, ...]) -> Tensor:
            del size
            return self.fuse(torch.cat(tokens, -1))

        # The MLP sees single tokens: any windows will do, and small blocks stay in the CPU cache.
        inputs = [frame.contiguous() for frame in frames]
        width = inputs[0].shape[2]
        return map_windows(
            restore,
            inputs,
            window=(1, width),
            shift=(0, 0),
            backend=self.backend,
        )
