"""Blocks that compute only the tokens that changed since the last frame of a sweep.

    before block b    x of the current frame, x' of the last frame       (B, 1, H, W, C)
                      r' is what the block added to x'
      keep = 1 where linear |LN x − LN x'| ≥ 0, one number a token; 0 elsewhere
      r    = attention and MLP of x where keep is 1, r' elsewhere
    before block b + 1    x + r and x' + r'

Tokens at the same position are compared, without alignment. The first frame of a sweep computes all
of them. In training, keep is a sample that depends on the logit, and the gradient is that of a
sigmoid; the caches of the last frame get no gradient.

A group of blocks keeps x' before its first block and r' of every block. The published code keeps
three maps a block: LN x, the result of the attention and that of the MLP. They follow from these:
both results belong to the same tokens, so that their sum is enough, and x' adds up. That is 7 maps
instead of 18 for 6 blocks.

Source: Zhou et al. (MIA-VSR), CVPR 2024, Sec. 3.3; samples: Jang et al., Categorical
Reparameterization with Gumbel-Softmax, ICLR 2017.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from tubelet.layers.attention import QueryFrameAttention
from tubelet.layers.sweep_transformer import (
    NUM_FRAMES,
    BlockConfig,
    SweepTransformer,
    TemporalBlock,
    TemporalGroup,
    pad_tokens,
)
from tubelet.layers.windows import map_windows

__all__ = ["KeepRatio", "MaskedBlock", "cache_names", "refine_masked"]

_KEEP = "/keep"
"""End of the name of a mask."""
_TEMPERATURE = 2 / 3
"""Of the samples in training, as published."""
# Tokens that are compared at once: their norms stay in the CPU cache.
_MAX_STRIP_TOKENS = 4096


class MaskedBlock(TemporalBlock):
    """Intra- and inter-frame attention block that can reuse the results of the last frame.

    Called like a `TemporalBlock` it computes all tokens.

    Args:
        config: Configuration of the block.
    """

    attn: QueryFrameAttention

    def __init__(self, config: BlockConfig) -> None:
        attention = QueryFrameAttention(config.channels, config.heads, config.window, NUM_FRAMES)
        super().__init__(config, attention, 1)
        self.mask_predictor = nn.Linear(config.channels, 1)

    def predict_keep(self, x: Tensor, last_x: Tensor) -> Tensor:
        """Predict which tokens must be computed.

        Args:
            x: Tokens of the current frame, (B, 1, H, W, C).
            last_x: Tokens of the last frame, (B, 1, H, W, C).

        Returns:
            1 for tokens to compute, 0 for the others, (B, 1, H, W, 1); in training a sample.
        """
        if self.training:
            return _draw_keep(self._mask_logits(x, last_x))

        num_lines = x.shape[2]
        if self.is_prepared:
            num_lines = max(1, _MAX_STRIP_TOKENS // (x.shape[0] * x.shape[3]))
        logits: list[Tensor] = []
        for start in range(0, x.shape[2], num_lines):
            lines = slice(start, start + num_lines)
            logits.append(self._mask_logits(x[:, :, lines], last_x[:, :, lines]))
        return (torch.cat(logits, 2) >= 0).to(x.dtype)

    def _mask_logits(self, x: Tensor, last_x: Tensor) -> Tensor:
        difference = self.norm1(x) - self.norm1(last_x)
        return self.mask_predictor(difference.abs())

    def residual(
        self,
        x: Tensor,
        past: tuple[Tensor, ...],
        inside: Tensor | None,
        keep: Tensor | None = None,
        last_residual: Tensor | None = None,
    ) -> Tensor:
        """Compute what the block adds to x.

        Args:
            x: See `TemporalBlock.forward`.
            past: See `TemporalBlock.forward`.
            inside: See `TemporalBlock.forward`.
            keep: See `predict_keep`; None to compute all tokens.
            last_residual: What the block added to the last frame, (B, 1, H, W, C); None together
                with `keep`.

        Returns:
            (B, 1, H, W, C).
        """
        factors = self._path_factors(x)
        inputs = [x, *past] if inside is None else [x, *past, inside]
        num_inputs = len(inputs)
        if keep is not None and last_residual is not None:
            inputs += [keep, last_residual]

        def compute(windows: tuple[Tensor, ...], size: tuple[int, ...]) -> Tensor:
            if len(windows) == num_inputs:
                return self._window_residual(windows, size, len(past), factors)
            *inner, kept, last = windows
            if self.is_prepared:
                return self._sparse_residual(tuple(inner), size, len(past), kept, last)
            fresh = self._window_residual(tuple(inner), size, len(past), factors)
            return kept * fresh + (1 - kept) * last

        return map_windows(
            compute,
            inputs,
            window=self.window,
            shift=self.shift,
            backend=self.backend,
        )

    def _sparse_residual(
        self,
        windows: tuple[Tensor, ...],
        size: tuple[int, ...],
        num_past: int,
        keep: Tensor,
        last_residual: Tensor,
    ) -> Tensor:
        """Compute the tokens that `keep` selects, and take the others from the last frame.

        The attention runs in every window that has a selected token, its last linear layer and the
        MLP for the selected tokens alone.

        Args:
            windows: See `_window_residual`.
            size: See `_window_residual`.
            num_past: See `_window_residual`.
            keep: 1 for selected tokens, otherwise 0, (n, N, 1).
            last_residual: What the block added to the last frame, (n, N, C).

        Returns:
            (n, N, C).
        """
        is_kept = keep[..., 0] != 0
        selected = is_kept.flatten().nonzero()[:, 0]
        if not len(selected):
            return last_residual
        is_busy = is_kept.any(1)
        if not is_busy.all():
            windows = tuple(tensor[is_busy] for tensor in windows)
            is_kept = is_kept[is_busy]

        attended = self.attn.attend_heads(self._normalized(windows, num_past), size)
        attended = self.attn.proj(attended[is_kept])
        fresh = attended + self.feed_forward(windows[0][is_kept] + attended, ())
        tokens = last_residual.flatten(0, 1)
        return tokens.index_copy(0, selected, fresh.to(tokens.dtype)).view_as(last_residual)


def _draw_keep(logits: Tensor) -> Tensor:
    """Draw 1 with the probability sigmoid(logits), otherwise 0, with the gradient of a sigmoid."""
    # Two classes, to keep and to skip; the logit of the second is 0.
    choices = torch.cat([logits, torch.zeros_like(logits)], -1)
    return functional.gumbel_softmax(choices, _TEMPERATURE, hard=True)[..., :1]


@dataclass(frozen=True, slots=True)
class _GroupCache:
    """What a group of blocks keeps of a frame.

    Attributes:
        x: Tokens before its first block, (B, 1, H, W, C).
        residuals: What each block added to them, (B, 1, H, W, C) each.
        keeps: Which tokens each block computed, (B, 1, H, W, 1) each; empty at the first frame of a
            sweep, where all are.
    """

    x: Tensor
    residuals: tuple[Tensor, ...]
    keeps: tuple[Tensor, ...] = ()


def refine_masked(
    transformer: SweepTransformer,
    current: Tensor,
    newer: Tensor,
    older: Tensor,
    caches: dict[str, Tensor],
) -> tuple[Tensor, dict[str, Tensor]]:
    """Compute the state of a frame, and reuse what the blocks computed for the last frame.

    Args:
        transformer: Transformer whose blocks are `MaskedBlock`s.
        current: See `SweepTransformer.forward`.
        newer: See `SweepTransformer.forward`.
        older: See `SweepTransformer.forward`.
        caches: Maps that this function returned for the last frame, (B, C, H, W) each, by the names
            of `cache_names`; empty at the first frame of a sweep. They are taken out, so that each
            can be freed after its use.

    Returns:
        State (B, C, H, W), and the caches of this frame, without gradient. With them,
        "group.block/keep" has what each block computed, (B, 1, H, W), with gradient.
    """
    size = (current.shape[-2], current.shape[-1])
    x, past, inside = transformer.embed(current, newer, older)
    fresh: dict[str, Tensor] = {}
    for index, module in enumerate(transformer.groups):
        group = cast(TemporalGroup, module)
        last = _take_cache(caches, index, len(group.blocks), x)
        y, cache = _run_blocks(group, x, past, inside, last)
        fresh |= _maps_of(cache, index, size)
        x = group.merge(y, x, inside, size)
    return transformer.project(x, current), fresh


def cache_names(depths: Sequence[int]) -> list[str]:
    """Return the names of the caches of a transformer with groups of so many blocks."""
    names: list[str] = []
    for group, depth in enumerate(depths):
        names.append(_input_name(group))
        names += [_residual_name(group, block) for block in range(depth)]
    return names


def _run_blocks(
    group: TemporalGroup,
    x: Tensor,
    past: tuple[Tensor, ...],
    inside: Tensor | None,
    last: _GroupCache | None,
) -> tuple[Tensor, _GroupCache]:
    """Run the blocks of a group on x, (B, 1, H, W, C); return the result and the new cache."""
    residuals: list[Tensor] = []
    keeps: list[Tensor] = []
    y = x
    last_y = None if last is None else last.x
    for index, module in enumerate(group.blocks):
        block = cast(MaskedBlock, module)
        if last is None or last_y is None:
            residual = block.residual(y, past, inside)
        else:
            last_residual = last.residuals[index]
            keep = block.predict_keep(y, last_y)
            residual = block.residual(y, past, inside, keep, last_residual)
            last_y = last_y + last_residual
            keeps.append(keep)
        residuals.append(residual.detach())
        y = y + residual
    return y, _GroupCache(x.detach(), tuple(residuals), tuple(keeps))


class KeepRatio:
    """Collects which share of the tokens is computed; pass it to a network as `on_state`.

    The published loss is 1e-4 times the mean. It is differentiable if the network is in training::

        ratio = KeepRatio()
        sr = torch.stack(list(network.restore(lq, on_state=ratio)), 1)
        loss = pixel_loss(sr, gt) + 1e-4 * ratio.mean()
    """

    def __init__(self) -> None:
        self._ratios: list[Tensor] = []

    def __call__(self, name: str, t: int, state: Tensor) -> None:
        """Observe a state of a network; only masks count."""
        if name.endswith(_KEEP):
            self._ratios.append(state.mean())

    def mean(self) -> Tensor:
        """Return the mean over all blocks and frames with masks: a scalar, 1 if there are none."""
        return torch.stack(self._ratios).mean() if self._ratios else torch.ones(())


def _input_name(group: int) -> str:
    return f"{group}/input"


def _residual_name(group: int, block: int) -> str:
    return f"{group}.{block}/residual"


def _take_cache(
    caches: dict[str, Tensor],
    group: int,
    depth: int,
    x: Tensor,
) -> _GroupCache | None:
    """Take the maps of a group out of `caches`, and bring them into the shape of x."""
    if not caches:
        return None

    def take(name: str) -> Tensor:
        tokens = caches.pop(name).permute(0, 2, 3, 1)[:, None]  # (B, 1, H, W, C)
        if tokens.shape != x.shape:
            tokens = pad_tokens(tokens, x.shape[2], x.shape[3])
        return tokens.contiguous()

    residuals = [take(_residual_name(group, block)) for block in range(depth)]
    return _GroupCache(take(_input_name(group)), tuple(residuals))


def _maps_of(cache: _GroupCache, group: int, size: tuple[int, int]) -> dict[str, Tensor]:
    """View the tokens of a cache as images of `size`, (B, C, H, W) each."""
    height, width = size
    tokens = {_input_name(group): cache.x}
    for block, residual in enumerate(cache.residuals):
        tokens[_residual_name(group, block)] = residual
    for block, keep in enumerate(cache.keeps):
        tokens[f"{group}.{block}{_KEEP}"] = keep
    maps: dict[str, Tensor] = {}
    for name, values in tokens.items():
        maps[name] = values[:, 0, :height, :width].permute(0, 3, 1, 2)
    return maps
