"""PSRT-recurrent: a transformer in a chain of four sweeps, aligned by whole patches.

    lq (B, T, 3, H, W) ── conv_first ── g(t)                                         (B, C, H, W)
      four sweeps over the clip in a chain: backward_1, forward_1, backward_2, forward_2
        sweep s at frame t; t' and t'' are the frames that it visited before, t' last
          current  = state of the sweep before s at frame t; g(t) for backward_1
          newer    = align h_s(t'), older = align h_s(t''), every 8×8 patch by its mean flow
          h_s(t)   = SweepTransformer [newer, current, older]                        (B, C, H, W)
      h_forward_2(t) ── conv ── conv, shuffle ×2 ── conv, shuffle ×2 ── conv ── conv ──(+)── sr(t)
      lq(t) ───────────────────────────── bilinear ×4 ─────────────────────────────────┘
    sr (B, T, 3, 4H, 4W)

The blocks of the transformer attend among all three frames and change all of them (MFSAB); the
state is the middle one. At the first frame that a sweep visits, all three are the current one; at
the second, older is zero.

Positions that are rounded to patches and pixels have no derivative, so training does not change
SpyNet.

Published: 120 channels, 3 groups of 6 blocks in each sweep (13.4 M parameters), REDS and Vimeo-90K.

Source: Shi et al., Rethinking Alignment in Video Super-Resolution Transformers, NeurIPS 2022.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from torch import Tensor

from tubelet.layers.sweep_transformer import SweepTransformer, build_mfsab
from tubelet.models.architecture import Architecture
from tubelet.models.chain_network import ChainConfig, ChainNetwork, chain_contract
from tubelet.models.chain_state import (
    CHAIN_MODULES,
    check_chain_config,
    check_published_width,
    infer_chain,
    infer_mlp_ratio,
    is_chain,
    rename_chain,
    table_frames,
)
from tubelet.models.state_dict import State, first_words

__all__ = ["ARCHITECTURE", "PSRT", "PSRTConfig"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PSRTConfig(ChainConfig):
    """Configuration of a `PSRT`."""

    def __post_init__(self) -> None:
        check_chain_config(self)
        check_published_width(self)


class PSRT(ChainNetwork):
    """Recurrent super-resolution by transformers and patch alignment; see the top of this file.

    Args:
        config: Configuration of the network.
    """

    def __init__(self, config: PSRTConfig) -> None:
        build_sweep = partial(
            SweepTransformer,
            config,
            build_mfsab,
            order="current-middle",
            updates="all",
        )
        super().__init__(config, build_sweep, second_frame="zeros")
        self.config = config


_TABLE_FRAMES = 5
"""Entries along the time of a table for queries and keys of all three frames."""


def _translate(state: State) -> dict[str, Tensor] | None:
    """Map the authors' names to ours; return None for other networks."""
    own = rename_chain(state)
    if not is_chain(own) or first_words(own) != {*CHAIN_MODULES, "unused"}:
        return None
    # LRTI-VSR with PSRT's blocks has fewer unused layers.
    if "unused.backward_1.conv_first_feat.weight" not in own:
        return None
    return own if table_frames(own) == _TABLE_FRAMES else None


def _infer(state: State) -> PSRTConfig:
    return PSRTConfig(**infer_chain(state), mlp_ratio=infer_mlp_ratio(state))


ARCHITECTURE = Architecture(
    name=PSRT.__name__,
    config=PSRTConfig,
    build=PSRT,
    translate=_translate,
    infer=_infer,
    contract=chain_contract,
    derived=("spynet.mean", "spynet.std"),
    source="https://arxiv.org/abs/2207.08494",
)
