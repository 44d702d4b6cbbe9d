"""MIA-VSR: a transformer in a chain of four sweeps, with attention from the current frame only.

    lq (B, T, 3, H, W) ── conv_first ── g(t)                                         (B, C, H, W)
      four sweeps over the clip in a chain: backward_1, forward_1, backward_2, forward_2
        sweep s at frame t; t' and t'' are the frames that it visited before, t' last
          current  = state of the sweep before s at frame t; g(t) for backward_1
          newer    = align h_s(t'), older = align h_s(t''), every 8×8 patch by its mean flow
          h_s(t)   = SweepTransformer [older, newer, current]                        (B, C, H, W)
      h_forward_2(t) ── conv ── conv, shuffle ×2 ── conv, shuffle ×2 ── conv ── conv ──(+)── sr(t)
      lq(t) ───────────────────────────── bilinear ×4 ─────────────────────────────────┘
    sr (B, T, 3, 4H, 4W)

The blocks of the transformer (IIAB) attend from the current frame to all three, and change only the
current one; every block gets the same past frames. At the first frame that a sweep visits, all
three are the current one; at the second, older is newer.

A block computes only the tokens that changed since the frame that the sweep visited last, and takes
the others from there (`use_mask`). So a sweep hands on more than its state: see
`layers.masked_attention`.

Positions that are rounded to patches and pixels have no derivative, so training does not change
SpyNet.

Published: 120 channels, 4 groups of 6 blocks in each sweep (16.6 M parameters), REDS and Vimeo-90K.

Source: Zhou et al., Video Super-Resolution Transformer with Masked Inter&Intra-Frame Attention,
CVPR 2024.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import cast

from torch import Tensor

from tubelet.errors import RequestError
from tubelet.layers.chain import CHAIN_SWEEPS, Caches, SweepChain
from tubelet.layers.masked_attention import MaskedBlock, cache_names, refine_masked
from tubelet.layers.recurrence import Edge, StateObserver
from tubelet.layers.store import FeatureStore
from tubelet.layers.sweep_transformer import SweepTransformer
from tubelet.models.architecture import Architecture, Contract
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
from tubelet.models.state_dict import Rule, State, first_words, rename

__all__ = ["ARCHITECTURE", "MIAVSR", "MIAVSRConfig"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MIAVSRConfig(ChainConfig):
    """Configuration of a `MIAVSR`."""

    depths: tuple[int, ...] = (6,) * 4
    """Number of blocks in each group of a sweep."""
    num_heads: tuple[int, ...] = (6,) * 4
    """Number of attention heads in each group of a sweep."""
    use_mask: bool = True
    """Skip tokens that have hardly changed since the last frame. Checkpoints do not store it:
    networks without masks have the same tensors."""

    def __post_init__(self) -> None:
        check_chain_config(self)
        check_published_width(self)


class MIAVSR(ChainNetwork):
    """Recurrent super-resolution by inter- and intra-frame attention; see the top of this file.

    With masks, an edge that has states also needs the caches of their sweeps at the nearest frame,
    such as "forward_1/" and each of `cache_names(depths)`. `on_state` is called with every cache;
    "forward_1/0.2/keep" shows which tokens block 2 of group 0 computed, (B, 1, H, W).

    Args:
        config: Configuration of the network.
    """

    def __init__(self, config: MIAVSRConfig) -> None:
        build_sweep = partial(
            SweepTransformer,
            config,
            MaskedBlock,
            order="current-last",
            updates="current",
        )
        super().__init__(config, build_sweep, second_frame="repeat")
        self.config = config

    def propagate(
        self,
        lq: Tensor,
        *,
        before: Edge = Edge(),
        after: Edge = Edge(),
        on_state: StateObserver | None = None,
        store: FeatureStore | None = None,
    ) -> Iterator[tuple[int, Tensor]]:
        """Propagate features as `ChainNetwork.propagate` does.

        Raises:
            RequestError: With masks, an edge has states without their caches.
        """
        if self.config.use_mask:
            _check_caches(self.config, before, "forward")
            _check_caches(self.config, after, "backward")
        return super().propagate(
            lq,
            before=before,
            after=after,
            on_state=on_state,
            store=store,
        )

    def chain(self) -> SweepChain:
        """Describe the chain, which has caches if there are masks."""
        chain = super().chain()
        if not self.config.use_mask:
            return chain
        return replace(chain, refine=self._refine_masked)

    def _refine_masked(
        self,
        name: str,
        current: Tensor,
        newer: Tensor,
        older: Tensor,
        caches: Caches,
    ) -> tuple[Tensor, Caches]:
        """Compute the state of a sweep from the tokens that changed since the last frame."""
        transformer = cast(SweepTransformer, self.sweeps[name])
        return refine_masked(transformer, current, newer, older, caches)


def _check_caches(config: MIAVSRConfig, edge: Edge, direction: str) -> None:
    """Check that an edge has the caches of every sweep of a direction whose states it has.

    Raises:
        RequestError: Caches are missing.
    """
    for sweep_name in CHAIN_SWEEPS:
        if not sweep_name.startswith(direction) or not edge.hidden.get(sweep_name):
            continue
        for cache_name in cache_names(config.depths):
            name = f"{sweep_name}/{cache_name}"
            if not edge.hidden.get(name):
                raise RequestError(
                    f"MIAVSR with masks continues {sweep_name} from its caches, but the edge lacks "
                    f"{name!r}; give all caches that on_state showed, or set use_mask=False"
                )


_MASK_RULES: tuple[Rule, ...] = ((r"\.attn\.predmask\.rnn\.", ".mask_predictor."),)
_MASK_WEIGHT = "sweeps.backward_1.groups.0.blocks.0.mask_predictor.weight"


def _translate(state: State) -> dict[str, Tensor] | None:
    """Map the authors' names to ours; return None for other networks."""
    own = rename(rename_chain(state), _MASK_RULES)
    if not is_chain(own) or first_words(own) != {*CHAIN_MODULES, "unused"}:
        return None
    return own if _MASK_WEIGHT in own else None


def _infer(state: State) -> MIAVSRConfig:
    return MIAVSRConfig(**infer_chain(state), mlp_ratio=infer_mlp_ratio(state))


def _contract(config: MIAVSRConfig) -> Contract:
    # With masks, the caches of every block would have to be handed on, too: 0.8 GB for each sweep
    # at 320×180.
    return chain_contract(config, has_states=not config.use_mask)


ARCHITECTURE = Architecture(
    name=MIAVSR.__name__,
    config=MIAVSRConfig,
    build=MIAVSR,
    translate=_translate,
    infer=_infer,
    contract=_contract,
    derived=("spynet.mean", "spynet.std"),
    source="https://arxiv.org/abs/2401.06312",
)
