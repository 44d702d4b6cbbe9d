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

from dataclasses import dataclass, replace
from functools import partial

from torch import Tensor

from tubelet.errors import ConfigError
from tubelet.layers.chain import SweepChain
from tubelet.layers.implicit_alignment import ImplicitAlignment
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
)
from tubelet.models.state_dict import State, first_words, without

__all__ = ["ARCHITECTURE", "IART", "IARTConfig"]

_CODE_MULTIPLE = 4
"""The code of a position has a sine and a cosine for the row and for the column."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IARTConfig(ChainConfig):
    """Configuration of an `IART`."""

    def __post_init__(self) -> None:
        check_chain_config(self)
        check_published_width(self)
        if self.channels % _CODE_MULTIPLE:
            raise ConfigError(
                f"IARTConfig: channels={self.channels} must be a multiple of {_CODE_MULTIPLE}"
            )


class IART(ChainNetwork):
    """Recurrent super-resolution by transformers and implicit alignment; see the top of this file.

    Args:
        config: Configuration of the network.
    """

    def __init__(self, config: IARTConfig) -> None:
        build_sweep = partial(
            SweepTransformer,
            config,
            build_mfsab,
            order="current-middle",
            updates="all",
        )
        super().__init__(config, build_sweep, second_frame="zeros")
        self.config = config
        # The published code takes the heads of the first group.
        self.implicit_warp = ImplicitAlignment(config.channels, config.num_heads[0])

    def chain(self) -> SweepChain:
        """Describe the chain, in which the flow gets gradients through the alignment."""
        return replace(super().chain(), estimate_flow=self.spynet, align=self.implicit_warp)


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


ARCHITECTURE = Architecture(
    name=IART.__name__,
    config=IARTConfig,
    build=IART,
    translate=_translate,
    infer=_infer,
    contract=chain_contract,
    derived=("spynet.mean", "spynet.std", "implicit_warp.position_bias"),
    source="https://arxiv.org/abs/2305.00163",
)
