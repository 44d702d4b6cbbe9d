"""MIA-VSR with masks in the published formulation: every token is computed, and replaced where it is not kept.

Three maps a block are kept of the last frame: its normalized tokens, the result of the attention, that of the MLP. The
comparison of `benchmarks/zoo.py`; equal to `MIAVSR.forward` but for tokens whose decision hangs on rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor

from plain.chain import plain_attention, plain_sweep
from tubelet.layers.masked_attention import MaskedBlock
from tubelet.layers.sweep_transformer import SweepTransformer, TemporalBlock

__all__ = ["plain_masks"]


def plain_masks() -> Callable[[SweepTransformer, Tensor, Tensor, Tensor], Tensor]:
    """Return a function of a transformer, current, newer and older (B, C, H, W), which keeps the maps."""
    caches: dict[TemporalBlock, tuple[Tensor, Tensor, Tensor]] = {}

    def run_block(block: TemporalBlock, x: Tensor, past: Tensor | None) -> Tensor:
        query = block.norm1(x)
        attended = plain_attention(block, x, past)
        keep = None
        if block in caches:
            last_query, last_attended, _ = caches[block]
            logits = cast(MaskedBlock, block).mask_predictor((query - last_query).abs())
            keep = logits >= 0
            attended = torch.where(keep, attended, last_attended)
        x = x + attended
        hidden = block.mlp(block.norm2(x))
        if keep is not None:
            hidden = torch.where(keep, hidden, caches[block][2])
        caches[block] = (query, attended, hidden)
        return x + hidden

    def refine(
        transformer: SweepTransformer, current: Tensor, newer: Tensor, older: Tensor
    ) -> Tensor:
        # The first frame of a sweep has nothing to compare with.
        if newer is current:
            caches.clear()
        return plain_sweep(transformer, current, newer, older, run_block)

    return refine
