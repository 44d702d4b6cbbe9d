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

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, cast

from torch import Tensor, nn

from tubelet.errors import RequestError
from tubelet.layers.chain import CHAIN_STATES, CHAIN_SWEEPS, Caches, chain_by_patches
from tubelet.layers.frames import stack_frames
from tubelet.layers.masked_attention import MaskedBlock, cache_names, refine_masked
from tubelet.layers.recurrence import Edge, EdgeStates, StateObserver
from tubelet.layers.spynet import SpyNet
from tubelet.layers.store import FeatureStore
from tubelet.layers.sweep_transformer import SweepTransformer
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
from tubelet.models.state_dict import Rule, State, first_words, rename
from tubelet.types import Temporal

__all__ = ["ARCHITECTURE", "MIAVSR", "MIAVSRConfig"]

_SCALE = 4
_HALO_PX = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class MIAVSRConfig:
    """Configuration of a `MIAVSR`."""

    PUBLISHED_NAMES: ClassVar[Mapping[str, str]] = {
        "embed_dim": "channels",
        "window_size": "window",
        "drop_path_rate": "drop_path",
    }

    channels: int = 120
    """Width of the propagated features."""
    depths: tuple[int, ...] = (6,) * 4
    """Number of blocks in each group of a sweep."""
    num_heads: tuple[int, ...] = (6,) * 4
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
    use_mask: bool = True
    """Skip tokens that have hardly changed since the last frame. Checkpoints do not store it:
    networks without masks have the same tensors."""

    def __post_init__(self) -> None:
        check_chain_config(self)
        check_published_width(self)


class MIAVSR(nn.Module):
    """Recurrent super-resolution by inter- and intra-frame attention; see the top of this file.

    Args:
        config: Configuration of the network.
    """

    def __init__(self, config: MIAVSRConfig) -> None:
        super().__init__()
        self.config = config
        c = config.channels
        self.spynet = SpyNet()
        self.conv_first = nn.Conv2d(3, c, 3, padding=1)
        self.sweeps = nn.ModuleDict()
        for name in CHAIN_SWEEPS:
            self.sweeps[name] = SweepTransformer(
                config,
                MaskedBlock,
                order="current-last",
                updates="current",
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
                near the start of the video. With masks, also the caches of both sweeps at the
                nearest frame: "forward_1/" and each of `cache_names(depths)`.
            after: Two frames after the clip and the states of both backward sweeps at them; fewer
                near the end of the video. With masks, also their caches.
            on_state: Callback for every state of the four sweeps, (B, C, H, W), and for every
                cache; "forward_1/0.2/keep" shows which tokens block 2 of group 0 computed,
                (B, 1, H, W).
            store: Store for the states and flows between the sweeps.

        Raises:
            RequestError: An edge has states without their caches.
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
        chain = chain_by_patches(self.conv_first, self.spynet, self.sweeps, "repeat")
        if self.config.use_mask:
            _check_caches(self.config, before, "forward")
            _check_caches(self.config, after, "backward")
            chain = replace(chain, refine=self._refine_masked)
        return chain.propagate(
            lq,
            before=before,
            after=after,
            on_state=on_state,
            store=store,
        )

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
    has_states = not config.use_mask
    return Contract(
        scale=_SCALE,
        temporal=Temporal("clip"),
        halo_px=_HALO_PX,
        size_multiple=config.window,
        min_size_px=MIN_SIZE_PX,
        streams=True,
        edge_frames=2 if has_states else 0,
        edge_states=CHAIN_STATES if has_states else EdgeStates(),
    )


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
