"""The network around a chain of four sweeps, which PSRT, IART, MIA-VSR and LRTI-VSR share.

    lq (B, T, 3, H, W) ── conv_first ── g(t) ── SweepChain ── h_forward_2(t)         (B, C, H, W)
      h_forward_2(t) ── conv ── conv, shuffle ×2 ── conv, shuffle ×2 ── conv ── conv ──(+)── sr(t)
      lq(t) ───────────────────────────── bilinear ×4 ─────────────────────────────────┘
    sr (B, T, 3, 4H, 4W)

The networks differ in the transformer of a sweep, the alignment, and what the second frame of a
sweep takes as its older state.

Source: Shi et al. (PSRT), NeurIPS 2022, whose code the others extend.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from tubelet.layers.chain import (
    CHAIN_STATES,
    CHAIN_SWEEPS,
    SecondFrame,
    SweepChain,
    chain_by_patches,
)
from tubelet.layers.frames import stack_frames
from tubelet.layers.patch_align import PATCH_PX
from tubelet.layers.recurrence import Edge, EdgeStates, StateObserver
from tubelet.layers.spynet import SpyNet
from tubelet.layers.store import FeatureStore
from tubelet.layers.sweep_transformer import SweepTransformer
from tubelet.layers.upsampling import enlarge, shuffle_x4, shuffle_x4_convs
from tubelet.models.architecture import Contract
from tubelet.models.chain_state import MIN_SIZE_PX, UNUSED_CONVS, UnusedConv, unused_convs
from tubelet.types import Temporal

__all__ = ["ChainConfig", "ChainNetwork", "chain_contract"]

_SCALE = 4
_HALO_PX = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainConfig:
    """Fields that the configurations of all these networks have."""

    PUBLISHED_NAMES: ClassVar[Mapping[str, str]] = {
        "embed_dim": "channels",
        "window_size": "window",
        "drop_path_rate": "drop_path",
    }

    channels: int = 120
    """Width of the propagated features."""
    depths: tuple[int, ...] = (6, 6, 6)
    """Number of blocks in each group of a sweep."""
    num_heads: tuple[int, ...] = (6, 6, 6)
    """Number of attention heads in each group of a sweep."""
    window: int = 8
    """Side of a window, lq pixels."""
    mlp_ratio: float = 2.0
    """Hidden width of the MLPs divided by `channels`."""
    mid_channels: int = 64
    """Width of the features before upsampling."""
    hr_channels: int = 64
    """Width of the features at the size of the result."""
    drop_path: float = 0.1
    """Probability with which training drops a branch of the last block of a sweep; it rises
    linearly from 0 at the first."""


class ChainNetwork(nn.Module):
    """Recurrent super-resolution by a chain of four sweeps; see the top of this file.

    Args:
        config: Configuration of the network.
        build_sweep: Builds the transformer of a sweep.
        second_frame: What stands for the older state at the second frame of a sweep.
        unused: Layers that the published code builds for each sweep and does not use; without any,
            the network has no module for them.
    """

    def __init__(
        self,
        config: ChainConfig,
        build_sweep: Callable[[], SweepTransformer],
        *,
        second_frame: SecondFrame,
        unused: Sequence[UnusedConv] = UNUSED_CONVS,
    ) -> None:
        super().__init__()
        self.second_frame: SecondFrame = second_frame
        c = config.channels
        self.spynet = SpyNet()
        self.conv_first = nn.Conv2d(3, c, 3, padding=1)
        self.sweeps = nn.ModuleDict()
        for name in CHAIN_SWEEPS:
            self.sweeps[name] = build_sweep()
        if unused:
            self.unused = unused_convs(c, unused)
        self.conv_before_upsample = nn.Conv2d(c, config.mid_channels, 3, padding=1)
        self.upconv1, self.upconv2, self.conv_hr, self.conv_last = shuffle_x4_convs(
            config.mid_channels, config.hr_channels
        )

    def forward(
        self,
        lq: Tensor,
        before: Edge = Edge(),
        after: Edge = Edge(),
    ) -> Tensor:
        """Restore a clip: (B, T, 3, H, W) → (B, T, 3, 4H, 4W); see `restore`."""
        frames = self.restore(lq, before=before, after=after)
        return stack_frames(frames, lq.shape[1])

    def restore(
        self,
        lq: Tensor,
        *,
        before: Edge = Edge(),
        after: Edge = Edge(),
        on_state: StateObserver | None = None,
        store: FeatureStore | None = None,
    ) -> Iterator[Tensor]:
        """Yield the frames of `forward`, (B, 3, 4H, 4W), as soon as each is finished.

        Args:
            lq: Low-quality clip, (B, T, 3, H, W).
            before: Two frames before the clip and the states of both forward sweeps at them; fewer
                near the start of the video.
            after: Two frames after the clip and the states of both backward sweeps at them; fewer
                near the end of the video.
            on_state: Callback for every state of the four sweeps, (B, C, H, W).
            store: Store for the states and flows between the sweeps.
        """
        states = self.propagate(
            lq,
            before=before,
            after=after,
            on_state=on_state,
            store=store,
        )
        for t, state in states:
            x = self.conv_before_upsample(state)
            convs = (self.upconv1, self.upconv2, self.conv_hr, self.conv_last)
            yield shuffle_x4(x, enlarge(lq[:, t], _SCALE), convs)

    def propagate(
        self,
        lq: Tensor,
        *,
        before: Edge = Edge(),
        after: Edge = Edge(),
        on_state: StateObserver | None = None,
        store: FeatureStore | None = None,
    ) -> Iterator[tuple[int, Tensor]]:
        """Propagate features in four sweeps; see `restore` for the arguments.

        Yields:
            The index t of each frame and its state of the last sweep, (B, C, H, W).
        """
        return self.chain().propagate(
            lq,
            before=before,
            after=after,
            on_state=on_state,
            store=store,
        )

    def chain(self) -> SweepChain:
        """Describe the chain: by default with patch alignment and without caches."""
        return chain_by_patches(self.conv_first, self.spynet, self.sweeps, self.second_frame)


def chain_contract(config: ChainConfig, *, has_states: bool = True) -> Contract:
    """Return the contract of a network.

    Args:
        config: Configuration of the network.
        has_states: Whether a clip continues from the states of the clip before it.
    """
    return Contract(
        scale=_SCALE,
        temporal=Temporal("clip"),
        halo_px=_HALO_PX,
        min_size_px=MIN_SIZE_PX,
        tile_multiple=math.lcm(config.window, PATCH_PX),
        streams=True,
        edge_frames=2 if has_states else 0,
        edge_states=CHAIN_STATES if has_states else EdgeStates(),
    )
