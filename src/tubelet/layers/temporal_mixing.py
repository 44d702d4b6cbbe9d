"""Temporal strategies: how the tokens of a frame see those of other frames, with frozen weights.

    y (B·T, N, C)   normalized tokens of all frames, N = H·W
    attention       layer of a frozen image network: q, k, v = W_qkv y, then W_proj

    TimeAttention         softmax(q kᵀ / √d) v among the T tokens at one position
    ChannelTimeAttention  softmax(temperature · qᵀ k) vᵀ among the channels, over these T tokens
    TrajectoryAttention   the most similar token on the trajectory of each token, times similarity

Every strategy implements `TemporalStrategy`; a new one is a class with `mix`.

Source: PFVSR, Sec. 3.2 and 3.3; trajectories as in TTVSR (Liu et al., CVPR 2022).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from tubelet.layers.attention import ProjectedAttention, attend_within
from tubelet.layers.inference import Backend, SwitchableLayer
from tubelet.layers.trajectories import (
    GatherMode,
    gather_matches,
    identity_locations,
    join_tokens,
    match_tokens,
    pool_flow,
    split_tokens,
    update_locations,
)
from tubelet.layers.windows import map_windows
from tubelet.ops.sizes import round_up

__all__ = [
    "ChannelTimeAttention",
    "Clip",
    "TemporalStrategy",
    "TimeAttention",
    "TrajectoryAttention",
]

_SHORT_CLIP_FRAMES = 7
"""Up to this length, every frame of a clip is compared (PFVSR trains on clips of 7 and 14)."""


def _no_maps() -> dict[tuple[int, int], Tensor]:
    # torch.compile cannot call dict[...].
    return {}


@dataclass(slots=True, eq=False)
class Clip:
    """What a temporal strategy knows of the clip.

    Attributes:
        num_frames: Number of frames, T.
        height: Height of the tokens' grid, with what the network adds to fill its windows.
        width: Width of the tokens' grid, likewise.
        flows_backward: Flow from each frame but the first to the one before it,
            (B, T − 1, 2, H, W), pixels of lq; None without flow, or for one frame.
        flows_forward: Flow from each frame but the last to the one after it, likewise.
        locations: Location maps by frame t and frame s ≠ t, see `locate`.
    """

    num_frames: int
    height: int
    width: int
    flows_backward: Tensor | None = None
    flows_forward: Tensor | None = None
    locations: dict[tuple[int, int], Tensor] = field(default_factory=_no_maps)

    def flows_for(self, features: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Return both flows in pixels of features (·, C, H', W'), which may be smaller than lq.

        Returns:
            (B, T − 1, 2, H', W') each, or None for one frame.
        """
        return (
            _shrink(self.flows_backward, features),
            _shrink(self.flows_forward, features),
        )

    def locate(
        self,
        token_px: int,
        mode: GatherMode,
    ) -> dict[tuple[int, int], Tensor]:
        """Return the location maps of every pair of frames; all blocks share them.

        Args:
            token_px: Side of a token, pixels.
            mode: How the maps are read between tokens.

        Returns:
            By (t, s): position in frame s of each token of frame t, (B, 2, h, w), in tokens.
        """
        if not self.locations and self.num_frames > 1:
            assert self.flows_backward is not None
            assert self.flows_forward is not None
            backward = self._token_flows(self.flows_backward, token_px)
            forward = self._token_flows(self.flows_forward, token_px)
            frames = range(self.num_frames)
            # Frame t sees the frames before it along the flow t → t − 1, and those after it along
            # t → t + 1.
            self._sweep(frames, backward, mode)
            self._sweep(frames[::-1], forward[::-1], mode)
        return self.locations

    def _sweep(
        self,
        order: Sequence[int],
        flows: Sequence[Tensor],
        mode: GatherMode,
    ) -> None:
        """Locate the tokens of each frame in the frames that come before it in an order."""
        # The maps of all visited frames move together, two channels each.
        visited: list[int] = []
        maps = identity_locations(flows[0])
        for t, last, flow in zip(order[1:], order, flows, strict=False):
            visited.append(last)
            moved = update_locations(maps, flow, mode)
            for number, s in enumerate(visited):
                self.locations[t, s] = moved[:, 2 * number : 2 * number + 2]
            # The next frame looks at frame t, too.
            maps = torch.cat([moved, identity_locations(flow)], 1)

    def _token_flows(
        self,
        flows: Tensor,
        token_px: int,
    ) -> list[Tensor]:
        """Average flows (B, T − 1, 2, H, W) over tokens: T − 1 times (B, 2, h, w)."""
        height = round_up(self.height, token_px)
        width = round_up(self.width, token_px)
        # The network may have extended the frames to whole windows.
        padding = (0, width - flows.shape[-1], 0, height - flows.shape[-2])
        padded = functional.pad(flows.flatten(0, 1), padding, mode="replicate")
        return list(_by_frame(pool_flow(padded, token_px), flows.shape[1]))


def _shrink(
    flows: Tensor | None,
    features: Tensor,
) -> Tensor | None:
    """Average flows (B, T − 1, 2, H, W) over the pixels of features (·, C, H', W')."""
    if flows is None or flows.shape[-1] == features.shape[-1]:
        return flows
    # Such as after a pixel unshuffle.
    factor = flows.shape[-1] // features.shape[-1]
    pooled = pool_flow(flows.flatten(0, 1), factor)
    return pooled.view(*flows.shape[:2], *pooled.shape[1:])


def _by_frame(
    tensor: Tensor,
    num_frames: int,
) -> tuple[Tensor, ...]:
    """Separate the frames of a batch of clips: (B·T, …) to T times (B, …)."""
    return tensor.view(-1, num_frames, *tensor.shape[1:]).unbind(1)


class TemporalStrategy(Protocol):
    """Exchanges information between the frames of a clip.

    Its result passes through an adapter that starts at zero, so whatever it computes, training
    begins with the image network.
    """

    @property
    def uses_flow(self) -> bool:
        """Whether `clip` must have flows."""
        ...

    def mix(
        self,
        y: Tensor,
        attention: ProjectedAttention,
        clip: Clip,
    ) -> Tensor:
        """Compute what each token takes from other frames.

        Args:
            y: Normalized tokens, (B·T, N, C), N = `clip.height` · `clip.width`.
            attention: Frozen attention of the block.
            clip: The clip.

        Returns:
            (B·T, N, C).
        """
        ...


class TimeAttention(SwitchableLayer):
    """T-MSA: attention among the tokens at the same position in all frames (PFVSR, Sec. 3.2).

    The weights are those of the block's spatial attention. There is no position bias, as its table
    has no time axis, so the order of the frames does not matter.
    """

    uses_flow = False

    def mix(
        self,
        y: Tensor,
        attention: ProjectedAttention,
        clip: Clip,
    ) -> Tensor:
        """Attend along time; see `TemporalStrategy.mix`."""
        return _map_positions(partial(attend_within, attention=attention), y, clip, self.backend)


class ChannelTimeAttention(SwitchableLayer):
    """DAT's attention between channels, with the frames at one position in place of the pixels.

    It weights the channels of each frame by what the frames have in common; no value of another
    frame arrives.
    """

    uses_flow = False

    def mix(
        self,
        y: Tensor,
        attention: ProjectedAttention,
        clip: Clip,
    ) -> Tensor:
        """Attend between channels; see `TemporalStrategy.mix`."""
        temperature = cast(nn.Module, attention).get_parameter("temperature")  # (heads, 1, 1)

        def attend_between_channels(tokens: Tensor) -> Tensor:
            qkv = attention.qkv(tokens).unflatten(-1, (3, attention.heads, -1))
            # Normalized over the frames, as in space over the pixels.
            q, k, v = qkv.permute(2, 0, 3, 4, 1).unbind(0)  # (n, heads, d, T) each
            q = functional.normalize(q, dim=-1)
            k = functional.normalize(k, dim=-1)
            weights = (q @ k.transpose(-2, -1) * temperature).softmax(-1)  # (n, heads, d, d)
            mixed = (weights @ v).flatten(1, 2)  # (n, C, T)
            return attention.proj(mixed.transpose(1, 2))

        return _map_positions(attend_between_channels, y, clip, self.backend)


def _map_positions(
    apply: Callable[[Tensor], Tensor], y: Tensor, clip: Clip, backend: Backend
) -> Tensor:
    """Apply a function to the tokens (n, T, C) of all frames at n positions of y, (B·T, N, C)."""
    tokens = y.view(-1, clip.num_frames, *y.shape[1:])  # (B, T, N, C)

    def apply_to_windows(
        windows: tuple[Tensor, ...],
        _: tuple[int, ...],
    ) -> Tensor:
        return apply(windows[0])

    # All frames at one position are a window, so that memory is bounded as in the blocks.
    mixed = map_windows(
        apply_to_windows,
        [tokens],
        window=(clip.num_frames, 1),
        shift=(0, 0),
        backend=backend,
    )
    return mixed.flatten(0, 1)


class TrajectoryAttention(nn.Module):
    """Hard attention along trajectories, with the projections of the block (PFVSR, Sec. 3.3).

    Args:
        token_px: Side of a token, pixels.
        frame_stride: Frames whose number is a multiple of it are looked at; 0: all frames of a clip
            of up to 7, every third of a longer one.
        gather: How values are read between tokens. With "nearest", as in TTVSR, no gradient
            reaches the flow.
    """

    uses_flow = True

    def __init__(
        self,
        *,
        token_px: int = 4,
        frame_stride: int = 0,
        gather: GatherMode = "bilinear",
    ) -> None:
        super().__init__()
        self.token_px = token_px
        self.frame_stride = frame_stride
        self.gather: GatherMode = gather

    def locate(self, clip: Clip) -> dict[tuple[int, int], Tensor]:
        """Return the location maps of a clip, which are computed once; see `Clip.locate`."""
        return clip.locate(self.token_px, self.gather)

    def mix(
        self,
        y: Tensor,
        attention: ProjectedAttention,
        clip: Clip,
    ) -> Tensor:
        """Take the most similar token of another frame; see `TemporalStrategy.mix`."""
        # Where things were, then what they look like.
        locations = self.locate(clip)
        queries, keys, values = self._project(y, attention, clip)
        mixed: list[Tensor] = []
        for t in range(clip.num_frames):
            others = list(self._other_frames(t, clip.num_frames))
            if not others:
                mixed.append(torch.zeros_like(values[t]))
                continue
            # One frame after the other, with a running maximum: memory does not grow with T.
            frames = [(keys[s], locations[t, s]) for s in others]
            match = match_tokens(queries[t], frames, self.gather)
            found = gather_matches([values[s] for s in others], match, self.gather)
            # Its gradient is the only one that reaches queries and keys: the choice has none.
            mixed.append(found * match.similarity)
        # (B, T, H', W', C), then without the rows and columns that fill whole tokens.
        images = [join_tokens(tokens, self.token_px) for tokens in mixed]
        result = torch.stack(images, 1).permute(0, 1, 3, 4, 2)
        result = result[:, :, : clip.height, : clip.width]
        return attention.proj(result.reshape(y.shape))

    def _other_frames(
        self,
        t: int,
        num_frames: int,
    ) -> Iterator[int]:
        """Yield the frames that frame t looks at."""
        stride = self.frame_stride or (1 if num_frames <= _SHORT_CLIP_FRAMES else 3)
        for s in range(0, num_frames, stride):
            if s != t:
                yield s

    def _project(
        self, y: Tensor, attention: ProjectedAttention, clip: Clip
    ) -> tuple[list[Tensor], ...]:
        """Compute queries, keys and values of each frame, T times (B, token_px²·C, h, w) each."""
        images = attention.qkv(y).unflatten(1, (clip.height, clip.width))  # (B·T, H, W, 3C)
        images = images.permute(0, 3, 1, 2)
        # Rows and columns that fill the last tokens.
        rows = -clip.height % self.token_px
        columns = -clip.width % self.token_px
        if rows or columns:
            images = functional.pad(images, (0, columns, 0, rows), mode="replicate")
        projections: list[list[Tensor]] = []
        for part in images.chunk(3, 1):
            tokens = split_tokens(part, self.token_px)
            projections.append(list(_by_frame(tokens, clip.num_frames)))
        return tuple(projections)
