"""LRTI-VSR: long-range refocused temporal information, in a chain of four sweeps.

    lq (B, T, 3, H, W) ── conv_first ── g(t)                                         (B, C, H, W)
      four sweeps over the clip in a chain: backward_1, forward_1, backward_2, forward_2
        sweep s at frame t; t' and t'' are the frames that it visited before, t' last
          current  = state of the sweep before s at frame t; g(t) for backward_1
          newer    = align h_s(t'), older = align h_s(t''), every 8×8 patch by its mean flow
          h_s(t)   = SweepTransformer [older, newer, current]                        (B, C, H, W)
      h_forward_2(t) ── conv ── conv, shuffle ×2 ── conv, shuffle ×2 ── conv ── conv ──(+)── sr(t)
      lq(t) ───────────────────────────── bilinear ×4 ─────────────────────────────────┘
    sr (B, T, 3, 4H, 4W)

    RITB   x = x + W_o [ReLU²(q kᵀ / √d + bias) v]                                          Eq. 6
           x = x + g(ReLU²(f(LN x)) ⊙ f(LN newer))                                          Eq. 7
           queries of current, keys and values of all three frames; only current changes

ReLU² gives unrelated tokens a weight of zero, where a softmax spreads its weight over all of them.
The refocused gated unit of Eq. 7 lets the last state select what passes.

At the first frame that a sweep visits, all three frames are the current one; at the second, older
is newer. Positions that are rounded to patches and pixels have no derivative, so training does not
change SpyNet.

The block is a setting: with `iiab` the network is MIA-VSR's without masks, with `mfsab` PSRT's.
Published: 120 channels; 6 blocks (small) or 3 groups of 6 in each sweep; printed with 6.06 and
12.9 M parameters, which hold with one unused convolution in each sweep.

Source: the paper of LRTI-VSR, Sec. 2.2 to 2.4; what it leaves open follows MIA-VSR (Zhou et al.,
CVPR 2024).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint  # pyright: ignore[reportUnknownVariableType]

from tubelet.errors import ConfigError
from tubelet.layers.attention import AttentionFunction, QueryFrameAttention, attend
from tubelet.layers.chain import SecondFrame
from tubelet.layers.sweep_transformer import (
    NUM_FRAMES,
    BlockConfig,
    StackOrder,
    SweepTransformer,
    TemporalBlock,
    build_iiab,
    build_mfsab,
)
from tubelet.models.architecture import Architecture
from tubelet.models.chain_network import ChainConfig, ChainNetwork, chain_contract
from tubelet.models.chain_state import (
    CHAIN_MODULES,
    check_chain_config,
    infer_chain,
    infer_mlp_ratio,
    is_chain,
    rename_chain,
    table_frames,
)
from tubelet.models.config_checks import check_choice
from tubelet.models.state_dict import State, first_words, shape_of

__all__ = ["ARCHITECTURE", "LRTIVSR", "RITB", "LRTIVSRConfig", "RefocusedGate", "attend_squared"]

BlockKind = Literal["ritb", "iiab", "mfsab"]
ScoreActivation = Literal["relu2", "softmax", "softmax-positive"]
GateKind = Literal["shared", "two-thirds", "none"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LRTIVSRConfig(ChainConfig):
    """Configuration of an `LRTIVSR`.

    A checkpoint of other code does not tell `activation`, `score_norm`, `stack_order` and
    `second_frame`, for which `infer` takes the defaults.
    """

    depths: tuple[int, ...] = (6, 6, 6)
    """Number of blocks in each group of a sweep; (6,) for the small network."""
    block: BlockKind = "ritb"
    """ritb: attention from the current frame, and the refocused gate; iiab: the block of MIA-VSR;
    mfsab: the block of PSRT."""
    activation: ScoreActivation = "relu2"
    """What turns the scores of `ritb` into weights. softmax-positive: a softmax over the scores
    that are not negative."""
    gate: GateKind = "shared"
    """Feed-forward part of `ritb`. shared: one layer f for both factors, as Eq. 7 writes it;
    two-thirds: a layer for each, with two thirds of the width; none: a plain MLP."""
    score_norm: Literal["none", "keys"] = "none"
    """keys: divide the weights of relu2 by the number of keys."""
    mlp_ratio: float = 2.0
    """Hidden width of the MLPs, or of the shared gate, divided by `channels`."""
    stack_order: StackOrder = "current-last"
    """Order of the three frames in a window; current-middle is for `mfsab` only."""
    second_frame: SecondFrame = "repeat"
    """What stands for the older state at the second frame of a sweep."""
    has_unused: bool = True
    """Keep the unused convolution of each sweep, with which the printed parameter counts hold."""

    def __post_init__(self) -> None:
        check_chain_config(self)
        check_choice(self, "block", ("ritb", "iiab", "mfsab"))
        check_choice(self, "activation", ("relu2", "softmax", "softmax-positive"))
        check_choice(self, "gate", ("shared", "two-thirds", "none"))
        check_choice(self, "score_norm", ("none", "keys"))
        check_choice(self, "stack_order", ("current-last", "current-middle"))
        check_choice(self, "second_frame", ("repeat", "zeros"))
        if self.stack_order == "current-middle" and self.block != "mfsab":
            raise ConfigError(
                f"LRTIVSRConfig: stack_order='current-middle' does not go with "
                f"block={self.block!r}, whose queries are those of the last frame"
            )


def attend_squared(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor,
    *,
    score_norm: Literal["none", "keys"] = "none",
) -> Tensor:
    """Attend with the square of every positive score, and nothing for the others (Eq. 6).

    Args:
        q: Queries, (n, heads, N, d).
        k: Keys, (n, heads, M, d).
        v: Values, (n, heads, M, d).
        bias: (heads, N, M), added to the scores.
        score_norm: keys: divide by M.

    Returns:
        (n, N, heads·d). Scores and sums are float32 or better: the squares of large scores exceed
        the range of float16.
    """
    with _without_autocast(q.device.type):
        q, k, v, bias = map(_at_least_float32, (q, k, v, bias))
        # Squared, a factor of the scores divides the weights by the number of keys.
        factor = k.shape[-2] ** -0.5 if score_norm == "keys" else 1.0
        heads = partial(_attend_squared_heads, factor=factor)
        if torch.is_grad_enabled() and q.requires_grad:
            # The scores of all blocks would be a third of the memory of a training: the backward
            # pass computes them again.
            recompute = partial(
                cast(Any, checkpoint), use_reentrant=False, preserve_rng_state=False
            )
            return recompute(heads, q, k, v, bias)
        return heads(q, k, v, bias)


def _attend_squared_heads(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor,
    *,
    factor: float,
) -> Tensor:
    """Attend as `attend_squared`, with all scores multiplied by a factor."""
    results: list[Tensor] = []
    # One head at a time: its tensors are strided, so that nothing is copied, and its scores stay in
    # the cache.
    for head in range(q.shape[1]):
        scores = torch.baddbmm(
            factor * bias[head],
            q[:, head],
            k[:, head].mT,
            alpha=factor * q.shape[-1] ** -0.5,
        )
        weights = scores.relu_().square()  # (n, N, M)
        results.append(weights @ v[:, head])
    return torch.cat(results, -1)


def attend_positive(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """Attend by a softmax over the scores that are not negative.

    A query without such scores gets zeros. Arguments and result are those of `attend_squared`.
    """
    with _without_autocast(q.device.type):
        q, k, v, bias = map(_at_least_float32, (q, k, v, bias))
        scores = (q * q.shape[-1] ** -0.5) @ k.mT + bias
        is_negative = scores < 0
        # A finite minimum, so that a row of negative scores has a softmax and gradients.
        lowest = torch.finfo(scores.dtype).min
        weights = scores.masked_fill(is_negative, lowest).softmax(-1)
        weights = weights.masked_fill(is_negative, 0)
        return (weights @ v).transpose(1, 2).flatten(2)


def _without_autocast(device_type: str) -> AbstractContextManager[object]:
    """Return a context in which operations keep the precision of their inputs."""
    if not torch.amp.is_autocast_available(device_type):
        return nullcontext()
    return torch.autocast(device_type, enabled=False)


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


class RefocusedGate(nn.Module):
    """Refocused gated unit: g(ReLU²(f(x)) ⊙ f(newer)) (Eq. 7).

    Args:
        channels: Number of channels of a token, C.
        hidden: Width of f.
        is_shared: Whether x and newer have the same f.
    """

    def __init__(self, channels: int, hidden: int, *, is_shared: bool) -> None:
        super().__init__()
        self.fc_in = nn.Linear(channels, hidden)
        self.fc_newer = None if is_shared else nn.Linear(channels, hidden)
        self.fc_out = nn.Linear(hidden, channels)

    def forward(self, x: Tensor, newer: Tensor) -> Tensor:
        """Gate the tokens x by those of the aligned last state: (..., C) both → the same shape."""
        project_newer = self.fc_in if self.fc_newer is None else self.fc_newer
        return self.fc_out(self.fc_in(x).relu().square() * project_newer(newer))


class RITB(TemporalBlock):
    """Refocused intra- and inter-frame transformer block; see the drawing at the top of this file.

    Args:
        config: Configuration of the block.
        attention: See `TemporalBlock`.
        gate: Feed-forward part.
    """

    def __init__(
        self,
        config: BlockConfig,
        attention: QueryFrameAttention,
        gate: RefocusedGate,
    ) -> None:
        super().__init__(config, attention, 1, mlp=gate)

    def feed_forward(self, x: Tensor, past: tuple[Tensor, ...]) -> Tensor:
        """Gate x (n, N, C) by the newer of the past frames."""
        # The paper does not say how the state is normalized. As MIA-VSR, which normalizes all
        # frames by the same layer, this takes the norm of x.
        return self.mlp(self.norm2(x), self.norm2(past[-1]))


def build_ritb(
    config: BlockConfig,
    *,
    activation: ScoreActivation = "relu2",
    gate: GateKind = "shared",
    score_norm: Literal["none", "keys"] = "none",
) -> TemporalBlock:
    """Build the block of LRTI-VSR.

    Args:
        config: Configuration of the block.
        activation: See `LRTIVSRConfig`.
        gate: See `LRTIVSRConfig`.
        score_norm: See `LRTIVSRConfig`.
    """
    functions: dict[ScoreActivation, AttentionFunction] = {
        "relu2": partial(attend_squared, score_norm=score_norm),
        "softmax": attend,
        "softmax-positive": attend_positive,
    }
    attention = QueryFrameAttention(
        config.channels,
        config.heads,
        config.window,
        NUM_FRAMES,
        attend=functions[activation],
    )
    if gate == "none":
        return TemporalBlock(config, attention, 1)

    hidden = round(config.channels * config.mlp_ratio)
    if gate == "two-thirds":
        # Three layers of two thirds of the width have about the parameters of two.
        hidden = hidden * 2 // 3
    unit = RefocusedGate(config.channels, hidden, is_shared=gate == "shared")
    return RITB(config, attention, unit)


class LRTIVSR(ChainNetwork):
    """Recurrent super-resolution by refocused attention; see the top of this file.

    Args:
        config: Configuration of the network.
    """

    def __init__(self, config: LRTIVSRConfig) -> None:
        build_sweep = partial(
            SweepTransformer,
            config,
            _block_builder(config),
            order=config.stack_order,
            updates="all" if config.block == "mfsab" else "current",
        )
        super().__init__(
            config,
            build_sweep,
            second_frame=config.second_frame,
            unused=("conv_before_upsample",) if config.has_unused else (),
        )
        self.config = config


def _block_builder(config: LRTIVSRConfig) -> Callable[[BlockConfig], TemporalBlock]:
    """Return the function that builds a block."""
    match config.block:
        case "mfsab":
            return build_mfsab
        case "iiab":
            return build_iiab
        case "ritb":
            return partial(
                build_ritb,
                activation=config.activation,
                gate=config.gate,
                score_norm=config.score_norm,
            )


_FIRST_MLP = "sweeps.backward_1.groups.0.blocks.0.mlp."
_UNUSED_NAMES = re.compile(r"unused\.\w+\.conv_before_upsample\.(weight|bias)")


def _translate(state: State) -> dict[str, Tensor] | None:
    """Accept our names, or those of MIA-VSR's code for the same layers; None for other networks."""
    own = rename_chain(state)
    modules = first_words(own)
    if not is_chain(own) or modules - {"unused"} != CHAIN_MODULES:
        return None
    # PSRT and MIA-VSR have more unused layers.
    unused = [name for name in own if name.startswith("unused.")]
    return own if all(map(_UNUSED_NAMES.fullmatch, unused)) else None


def _infer(state: State) -> LRTIVSRConfig:
    fields = infer_chain(state)
    gate_shape = shape_of(state, f"{_FIRST_MLP}fc_in.weight")
    if not gate_shape:
        # A block `ritb` without its gate has the layers of `iiab`.
        is_mfsab = table_frames(state) != NUM_FRAMES
        fields["block"] = "mfsab" if is_mfsab else "iiab"
        fields["mlp_ratio"] = infer_mlp_ratio(state)
    else:
        hidden, channels = gate_shape
        is_shared = f"{_FIRST_MLP}fc_newer.weight" not in state
        fields["gate"] = "shared" if is_shared else "two-thirds"
        width = hidden if is_shared else hidden * 3 / 2
        fields["mlp_ratio"] = width / channels
    has_unused = "unused" in first_words(state)
    return LRTIVSRConfig(**fields, has_unused=has_unused)


ARCHITECTURE = Architecture(
    name=LRTIVSR.__name__,
    config=LRTIVSRConfig,
    build=LRTIVSR,
    translate=_translate,
    infer=_infer,
    contract=chain_contract,
    derived=("spynet.mean", "spynet.std"),
)
