"""BasicVSR: bidirectional propagation with features aligned by optical flow.

    lq (B, T, 3, H, W)
      t = T … 1   back(t)  = trunk [lq(t), warp(back(t+1), flow t→t+1)]        (B, C, H, W)
      t = 1 … T   front(t) = trunk [lq(t), warp(front(t-1), flow t→t-1)]       (B, C, H, W)
                  fuse [back(t), front(t)] ── conv, shuffle ×2 ── conv, shuffle ×2 ── conv ── conv ──(+)── sr(t)
                  lq(t) ────────────────────────────── bilinear ×4 ───────────────────────────────────┘
    sr (B, T, 3, 4H, 4W)

Source: Chan et al., "BasicVSR: The Search for Essential Components in Video Super-Resolution and Beyond", CVPR 2021,
Sec. 3. Published: 64 channels, 30 blocks a direction (6.3 M parameters) for REDS and for Vimeo-90K.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from tubelet.errors import ConfigError
from tubelet.layers.frames import stack_frames
from tubelet.layers.recurrence import Edge, Past, Seen, clip_frames, sweep
from tubelet.layers.residual import ResidualTrunk
from tubelet.layers.spynet import SpyNet
from tubelet.layers.store import FeatureStore, open_store
from tubelet.layers.upsampling import enlarge, shuffle_x4, shuffle_x4_convs
from tubelet.models.architecture import Architecture, Contract
from tubelet.models.spynet import rename_spynet
from tubelet.models.state_dict import (
    Rule,
    State,
    count_names,
    first_words,
    has_convolutions,
    rename,
)
from tubelet.ops.warp import backward_warp
from tubelet.types import Temporal

__all__ = ["ARCHITECTURE", "BasicVSR", "BasicVSRConfig"]

_SCALE = 4
_HR_CHANNELS = 64  # of the last convolutions, whatever the width of the trunks


@dataclass(frozen=True, slots=True, kw_only=True)
class BasicVSRConfig:
    """Shape of a `BasicVSR`."""

    PUBLISHED_NAMES: ClassVar[Mapping[str, str]] = {
        "num_feat": "channels",
        "num_block": "num_blocks",
        "mid_channels": "channels",
    }

    channels: int = 64
    """Width of the propagated features."""
    num_blocks: int = 30
    """Residual blocks of each direction."""

    def __post_init__(self) -> None:
        if self.channels < 1 or self.num_blocks < 0:
            raise ConfigError(f"{self} is out of range: channels ≥ 1, num_blocks ≥ 0")


class BasicVSR(nn.Module):
    """Bidirectional recurrent super-resolution ×4; see the drawing on top of this file.

    Args:
        config: shape of the network.
    """

    def __init__(self, config: BasicVSRConfig) -> None:
        super().__init__()
        self.config = config
        c = config.channels
        self.spynet = SpyNet()
        self.backward_trunk = ResidualTrunk(3 + c, c, config.num_blocks)
        self.forward_trunk = ResidualTrunk(3 + c, c, config.num_blocks)
        self.fusion = nn.Conv2d(2 * c, c, 1)
        self.upconv1, self.upconv2, self.conv_hr, self.conv_last = shuffle_x4_convs(c, _HR_CHANNELS)

    def forward(self, lq: Tensor, before: Edge = Edge(), after: Edge = Edge()) -> Tensor:
        """Restore a clip: (B, T, 3, H, W) → (B, T, 3, 4H, 4W); see `restore`."""
        return stack_frames(self.restore(lq, before=before, after=after), lq.shape[1])

    def restore(
        self,
        lq: Tensor,
        *,
        before: Edge = Edge(),
        after: Edge = Edge(),
        seen: Seen | None = None,
        store: FeatureStore | None = None,
    ) -> Iterator[Tensor]:
        """Restore a clip as `forward` does, and yield each frame as it is done.

        Args:
            lq: (B, T, 3, H, W).
            before: one frame and the state of the forward sweep there; empty where the video begins.
            after: one frame and the state of the backward sweep there; empty where the video ends.
            seen: called with the states of both sweeps, (B, C, H, W).
            store: keeps features between the sweeps.

        Yields:
            (B, 3, 4H, 4W), from the first frame to the last.
        """
        for t, feats in self.propagate(lq, before=before, after=after, seen=seen, store=store):
            x = functional.leaky_relu_(self.fusion(torch.cat(feats, 1)), 0.1)
            del feats  # before the large features of the end are made
            convs = (self.upconv1, self.upconv2, self.conv_hr, self.conv_last)
            yield shuffle_x4(x, enlarge(lq[:, t], _SCALE), convs)

    def propagate(
        self,
        lq: Tensor,
        *,
        before: Edge = Edge(),
        after: Edge = Edge(),
        seen: Seen | None = None,
        store: FeatureStore | None = None,
    ) -> Iterator[tuple[int, list[Tensor]]]:
        """Run both sweeps (Eqs. 2 to 5); arguments as in `restore`.

        Yields:
            each frame, and its features of both sweeps, (B, C, H, W) each.
        """
        num_frames = lq.shape[1]
        frames = clip_frames(lq, before, after)

        def backward(t: int, past: Past) -> Tensor:
            aligned = self._align(past, frames, t, t + 1)
            return self.backward_trunk(torch.cat([frames[t], aligned], 1))

        def forward(t: int, past: Past) -> Tensor:
            aligned = self._align(past, frames, t, t - 1)
            return self.forward_trunk(torch.cat([frames[t], aligned], 1))

        with open_store(store) as features:
            for t, feat in sweep("backward", num_frames, -1, after, 1, backward, seen):
                features.append(t, feat)
            for t, feat in sweep("forward", num_frames, 1, before, 1, forward, seen):
                yield t, [*features.pop(t), feat]

    def _align(self, past: Past, frames: Mapping[int, Tensor], t: int, other: int) -> Tensor:
        """Carry the state at frame `other` to frame t: (B, C, H, W), zero at the start of the video."""
        frame = frames[t]
        if not past:
            return frame.new_zeros(frame.shape[0], self.config.channels, *frame.shape[2:])
        return backward_warp(past[0], self.spynet(frame, frames[other]))


_MMAGIC: tuple[Rule, ...] = (
    (r"^(backward|forward)_resblocks\.", r"\1_trunk."),
    (r"^upsample([12])\.upsample_conv\.", r"upconv\1."),
)
_PARTS = {
    "spynet",
    "backward_trunk",
    "forward_trunk",
    "fusion",
    "upconv1",
    "upconv2",
    "conv_hr",
    "conv_last",
}


def _translate(state: State) -> dict[str, Tensor] | None:
    """Map the names of BasicSR (which are ours) and of MMagic; None where they are of another network."""
    own = rename(rename_spynet(state), _MMAGIC)
    if first_words(own) != _PARTS:
        return None  # foreign, or more than a BasicVSR
    return own if has_convolutions(own, "backward_trunk.main.0") else None


def _infer(state: State) -> BasicVSRConfig:
    return BasicVSRConfig(
        channels=state["backward_trunk.main.0.weight"].shape[0],
        num_blocks=count_names(state, r"backward_trunk\..*\.conv1\.weight"),
    )


def _contract(config: BasicVSRConfig) -> Contract:
    del config  # every configuration asks for the same
    return Contract(
        scale=_SCALE, temporal=Temporal("clip"), halo_px=32, streams=True, edge_frames=1
    )


ARCHITECTURE = Architecture(
    name="BasicVSR",
    config=BasicVSRConfig,
    build=BasicVSR,
    translate=_translate,
    infer=_infer,
    contract=_contract,
    derived=("spynet.mean", "spynet.std"),
    source="https://arxiv.org/abs/2012.02181",
)
