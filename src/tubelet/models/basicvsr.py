"""BasicVSR: bidirectional propagation of features that are aligned by optical flow.

    lq (B, T, 3, H, W)
      t = T … 1   back(t)  = trunk [lq(t), warp(back(t+1), flow t→t+1)]        (B, C, H, W)
      t = 1 … T   front(t) = trunk [lq(t), warp(front(t-1), flow t→t-1)]       (B, C, H, W)
                  fuse [back(t), front(t)]
                  ── conv, shuffle ×2 ── conv, shuffle ×2 ── conv ── conv ──(+)── sr(t)
                  lq(t) ──────────────── bilinear ×4 ────────────────────────┘
    sr (B, T, 3, 4H, 4W)

Published: 64 channels, 30 blocks in each direction (6.3 M parameters), for REDS and for Vimeo-90K.

Source: Chan et al., "BasicVSR: The Search for Essential Components in Video Super-Resolution and
Beyond", CVPR 2021, Sec. 3.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from tubelet.layers.frames import stack_frames
from tubelet.layers.recurrence import Edge, EdgeStates, Past, StateObserver, clip_frames, sweep
from tubelet.layers.residual import ResidualTrunk
from tubelet.layers.spynet import SpyNet
from tubelet.layers.store import FeatureStore, open_store
from tubelet.layers.upsampling import enlarge, shuffle_x4, shuffle_x4_convs
from tubelet.models.architecture import Architecture, Contract
from tubelet.models.config_checks import check_min
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


@dataclass(frozen=True, slots=True, kw_only=True)
class BasicVSRConfig:
    """Configuration of `BasicVSR`."""

    PUBLISHED_NAMES: ClassVar[Mapping[str, str]] = {
        "num_feat": "channels",
        "num_block": "num_blocks",
        "mid_channels": "channels",
    }

    channels: int = 64
    """Number of channels of the propagated features."""
    num_blocks: int = 30
    """Number of residual blocks in each direction."""
    hr_channels: int = 64
    """Width of the convolutions at high resolution; 64 in all published files."""

    def __post_init__(self) -> None:
        check_min(self, "channels", 1)
        check_min(self, "num_blocks", 0)
        check_min(self, "hr_channels", 1)


class BasicVSR(nn.Module):
    """Bidirectional recurrent super-resolution ×4; see the drawing at the top of this file.

    Args:
        config: Configuration of the network.
    """

    def __init__(self, config: BasicVSRConfig) -> None:
        super().__init__()
        self.config = config
        c = config.channels
        self.spynet = SpyNet()
        self.backward_trunk = ResidualTrunk(3 + c, c, config.num_blocks)
        self.forward_trunk = ResidualTrunk(3 + c, c, config.num_blocks)
        self.fusion = nn.Conv2d(2 * c, c, 1)
        self.upconv1, self.upconv2, self.conv_hr, self.conv_last = shuffle_x4_convs(
            c, config.hr_channels
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
        """Restore a clip like `forward`, but yield each frame as soon as it is finished.

        Args:
            lq: Low-quality clip, (B, T, 3, H, W).
            before: One frame before the clip and the state of the forward sweep at it; empty at the
                start of the video.
            after: One frame after the clip and the state of the backward sweep at it; empty at the
                end of the video.
            on_state: Callback for every state of both sweeps, (B, C, H, W).
            store: Store for the features between the two sweeps.

        Yields:
            Restored frames in order, (B, 3, 4H, 4W).
        """
        clip_feats = self.propagate(
            lq,
            before=before,
            after=after,
            on_state=on_state,
            store=store,
        )
        for t, feats in clip_feats:
            # Aggregation (Sec. 3.3).
            fused = self.fusion(torch.cat(feats, 1))
            fused = functional.leaky_relu_(fused, 0.1)
            # Free the features before the much larger ones at high resolution are computed.
            del feats
            yield self._upsample(fused, lq[:, t])

    def propagate(
        self,
        lq: Tensor,
        *,
        before: Edge = Edge(),
        after: Edge = Edge(),
        on_state: StateObserver | None = None,
        store: FeatureStore | None = None,
    ) -> Iterator[tuple[int, list[Tensor]]]:
        """Propagate features in both directions (Sec. 3.1, Eqs. 2 to 5).

        Args:
            lq: See `restore`.
            before: See `restore`.
            after: See `restore`.
            on_state: See `restore`.
            store: See `restore`.

        Yields:
            The index t of each frame and its features [back(t), front(t)], (B, C, H, W) each.
        """
        num_frames = lq.shape[1]
        frames = clip_frames(lq, before, after)

        def backward(t: int, past: Past) -> Tensor:
            aligned = self._align(past, frames, t, t + 1)
            x = torch.cat([frames[t], aligned], 1)
            return self.backward_trunk(x)

        def forward(t: int, past: Past) -> Tensor:
            aligned = self._align(past, frames, t, t - 1)
            x = torch.cat([frames[t], aligned], 1)
            return self.forward_trunk(x)

        with open_store(store) as features:
            # t = T … 1: all backward features must exist before the first frame can be restored.
            for t, feat in sweep(
                "backward",
                num_frames,
                step=-1,
                edge=after,
                order=1,
                advance=backward,
                on_state=on_state,
            ):
                features.append(t, feat)

            # t = 1 … T: each frame is complete as soon as its forward features exist. The caller
            # gets the only reference to back(t), to free it early.
            for t, feat in sweep(
                "forward",
                num_frames,
                step=1,
                edge=before,
                order=1,
                advance=forward,
                on_state=on_state,
            ):
                yield t, [*features.pop(t), feat]

    def _align(
        self,
        past: Past,
        frames: Mapping[int, Tensor],
        t: int,
        neighbor: int,
    ) -> Tensor:
        """Warp the state of a neighboring frame to frame t (Sec. 3.2).

        Args:
            past: State at the neighbor, (B, C, H, W); empty at the end of the video where the sweep
                starts.
            frames: Frames (B, 3, H, W) by their index.
            t: Index of the current frame.
            neighbor: Index of the frame that the sweep visited before.

        Returns:
            Aligned state, (B, C, H, W); zeros where `past` is empty.
        """
        frame = frames[t]
        if not past:
            batch, _, height, width = frame.shape
            return frame.new_zeros(batch, self.config.channels, height, width)
        flow = self.spynet(frame, frames[neighbor])
        return backward_warp(past[0], flow)

    def _upsample(self, feat: Tensor, frame: Tensor) -> Tensor:
        """Upsample features and add the enlarged frame (Sec. 3.3).

        Args:
            feat: Fused features, (B, C, H, W).
            frame: Low-quality frame, (B, 3, H, W).

        Returns:
            Restored frame, (B, 3, 4H, 4W).
        """
        convs = (self.upconv1, self.upconv2, self.conv_hr, self.conv_last)
        return shuffle_x4(feat, enlarge(frame, _SCALE), convs)


_MMAGIC: tuple[Rule, ...] = (
    (r"^(backward|forward)_resblocks\.", r"\1_trunk."),
    (r"^upsample([12])\.upsample_conv\.", r"upconv\1."),
)
_MODULES = {
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
    """Rename the tensors of a file of BasicSR (whose names are ours) or of MMagic.

    Returns:
        The renamed state dict, or None if it belongs to another architecture.
    """
    renamed = rename(rename_spynet(state), _MMAGIC)
    # A file with more modules is of a network that contains a BasicVSR.
    if first_words(renamed) != _MODULES:
        return None
    if not has_convolutions(renamed, "backward_trunk.main.0"):
        return None
    return renamed


def _infer(state: State) -> BasicVSRConfig:
    return BasicVSRConfig(
        channels=state["backward_trunk.main.0.weight"].shape[0],
        num_blocks=count_names(state, r"backward_trunk\..*\.conv1\.weight"),
        hr_channels=state["conv_hr.weight"].shape[0],
    )


def _contract(config: BasicVSRConfig) -> Contract:
    # All configurations have the same contract.
    del config
    return Contract(
        scale=_SCALE,
        temporal=Temporal("clip"),
        halo_px=32,
        streams=True,
        edge_frames=1,
        edge_states=EdgeStates(before=("forward",), after=("backward",)),
        precisions=("fp32", "bf16"),
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
