"""IART: a transformer in a chain of four sweeps, aligned by attention to neighboring pixels.

    lq (B, T, 3, H, W) ── conv_first ── g(t)                                         (B, C, H, W)
      four sweeps over the clip in a chain: backward_1, forward_1, backward_2, forward_2
        sweep s at frame t; t' and t'' are the frames that it visited before, t' last
          current  = state of the sweep before s at frame t; g(t) for backward_1
          newer    = align h_s(t'), older = align h_s(t''), each pixel by its flow
          h_s(t)   = SweepTransformer [newer, current, older]                        (B, C, H, W)
      h_forward_2(t) ── conv ── conv, shuffle ×2 ── conv, shuffle ×2 ── conv ── conv ──(+)── sr(t)
      lq(t) ───────────────────────────── bilinear ×4 ─────────────────────────────────┘
    sr (B, T, 3, 4H, 4W)

    align    every pixel of current attends to the four pixels of the state around the position that
             its flow points to; one `ImplicitAlignment` for all sweeps and both states

Everything but the alignment is that of PSRT: the blocks attend among all three frames and change
all of them (MFSAB), and the state is the middle one. At the first frame that a sweep visits, all
three are the current one; at the second, older is zero.

Published: 120 channels, 3 groups of 6 blocks in each sweep (13.4 M parameters), REDS and Vimeo-90K.

Source: Xu et al., Enhancing Video Super-Resolution via Implicit Resampling-based Alignment,
CVPR 2024.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from tubelet.errors import ConfigError
from tubelet.layers.chain import CHAIN_STATES, CHAIN_SWEEPS, Caches, SweepChain
from tubelet.layers.frames import stack_frames
from tubelet.layers.implicit_alignment import ImplicitAlignment
from tubelet.layers.recurrence import Edge, StateObserver
from tubelet.layers.spynet import SpyNet
from tubelet.layers.store import FeatureStore
from tubelet.layers.sweep_transformer import SweepTransformer, build_mfsab
from tubelet.layers.upsampling import enlarge, shuffle_x4, shuffle_x4_convs
from tubelet.models.architecture import Architecture, Contract
from tubelet.models.chain_state import (
    CHAIN_MODULES,
    MIN_SIZE_PX,
    check_chain_config,
    check_published_width,
    infer_chain,
    infer_mlp_ratio,
    is_chain,
    rename_chain,
    unused_convs,
)
from tubelet.models.state_dict import State, first_words, without
from tubelet.types import Temporal

__all__ = ["ARCHITECTURE", "IART", "IARTConfig"]

_SCALE = 4
_HALO_PX = 32
_CODE_MULTIPLE = 4
"""The code of a position has a sine and a cosine for the row and for the column."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IARTConfig:
    """Configuration of an `IART`."""

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

    def __post_init__(self) -> None:
        check_chain_config(self)
        check_published_width(self)
        if self.channels % _CODE_MULTIPLE:
            raise ConfigError(
                f"IARTConfig: channels={self.channels} must be a multiple of {_CODE_MULTIPLE}"
            )


class IART(nn.Module):
    """Recurrent super-resolution by transformers and implicit alignment; see the top of this file.

    Args:
        config: Configuration of the network.
    """

    def __init__(self, config: IARTConfig) -> None:
        super().__init__()
        self.config = config
        c = config.channels
        self.spynet = SpyNet()
        self.conv_first = nn.Conv2d(3, c, 3, padding=1)
        # The published code takes the heads of the first group.
        self.implicit_warp = ImplicitAlignment(c, config.num_heads[0])
        self.sweeps = nn.ModuleDict()
        for name in CHAIN_SWEEPS:
            self.sweeps[name] = SweepTransformer(
                config,
                build_mfsab,
                order="current-middle",
                updates="all",
            )
        self.unused = unused_convs(c)
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
        chain = SweepChain(
            extract=self.conv_first,
            estimate_flow=self.spynet,
            align=self.implicit_warp,
            refine=self._refine,
            second_frame="zeros",
        )
        return chain.propagate(
            lq,
            before=before,
            after=after,
            on_state=on_state,
            store=store,
        )

    def _refine(
        self,
        name: str,
        current: Tensor,
        newer: Tensor,
        older: Tensor,
        caches: Caches,
    ) -> tuple[Tensor, Caches]:
        """Compute the state of a sweep, which keeps nothing else."""
        return self.sweeps[name](current, newer, older), caches


_DERIVED_NAME = r"implicit_warp\.window_idx_offset"
"""Places of the neighbors, which are constants here."""


def _translate(state: State) -> dict[str, Tensor] | None:
    """Map the authors' names to ours; return None for other networks."""
    own = rename_chain(without(state, _DERIVED_NAME))
    if not is_chain(own) or first_words(own) != {*CHAIN_MODULES, "unused", "implicit_warp"}:
        return None
    return own if "implicit_warp.q.weight" in own else None


def _infer(state: State) -> IARTConfig:
    return IARTConfig(**infer_chain(state), mlp_ratio=infer_mlp_ratio(state))


def _contract(config: IARTConfig) -> Contract:
    return Contract(
        scale=_SCALE,
        temporal=Temporal("clip"),
        halo_px=_HALO_PX,
        size_multiple=config.window,
        min_size_px=MIN_SIZE_PX,
        streams=True,
        edge_frames=2,
        edge_states=CHAIN_STATES,
    )


ARCHITECTURE = Architecture(
    name=IART.__name__,
    config=IARTConfig,
    build=IART,
    translate=_translate,
    infer=_infer,
    contract=_contract,
    derived=("spynet.mean", "spynet.std", "implicit_warp.position_bias"),
    source="https://arxiv.org/abs/2305.00163",
)
