"""IconVSR: BasicVSR with key frames whose features are refilled, and a forward direction that sees the backward one.

    lq (B, T, 3, H, W)
      key frames, every 5th and the last: refill(t) = EDVR features of the window around t          (B, C, H, W)
      t = T … 1   x = warp(back(t+1), flow t→t+1);   at key frames x = fuse [x, refill(t)]
                  back(t)  = trunk [lq(t), x]                                                       (B, C, H, W)
      t = 1 … T   x = warp(front(t-1), flow t→t-1);  at key frames x = fuse [x, refill(t)]
                  front(t) = trunk [lq(t), back(t), x]                                              (B, C, H, W)
                  front(t) ── conv, shuffle ×2 ── conv, shuffle ×2 ── conv ── conv ──(+)── sr(t)
                  lq(t) ──────────────────────── bilinear ×4 ────────────────────────┘
    sr (B, T, 3, 4H, 4W)

Source: Chan et al., "BasicVSR: The Search for Essential Components in Video Super-Resolution and Beyond", CVPR 2021,
Sec. 4. Published: 64 channels, 30 blocks a direction, key frame windows of 5 frames (REDS, 8.7 M parameters) or of 7
(Vimeo-90K).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from tubelet.errors import ConfigError
from tubelet.layers.flows import ClipFlows, is_mirrored
from tubelet.layers.frames import stack_frames
from tubelet.layers.residual import ResidualTrunk
from tubelet.layers.spynet import SpyNet, rename_spynet
from tubelet.layers.store import FeatureStore
from tubelet.layers.upsampling import enlarge, shuffle_x4
from tubelet.models.architecture import Architecture, Contract, State
from tubelet.models.edvr import EDVRConfig, EDVRFeatureExtractor
from tubelet.ops.warp import backward_warp
from tubelet.types import Temporal

__all__ = ["ARCHITECTURE", "IconVSR", "IconVSRConfig"]

_SCALE = 4
_HR_CHANNELS = 64  # of the last convolutions, whatever the width of the trunks
_MULTIPLE = 4  # of the sizes that the pyramid of the key frames takes
_EXTRACT_BLOCKS = 5  # of a key frame's features before alignment


@dataclass(frozen=True, slots=True, kw_only=True)
class IconVSRConfig:
    """Shape of an `IconVSR`."""

    channels: int = 64
    """Width of the propagated features."""
    num_blocks: int = 30
    """Residual blocks of each direction."""
    temporal_padding: int = 2
    """Neighbours on each side of a key frame, frames."""
    groups: int = 8
    """Offset groups of the alignment of a key frame's neighbours."""
    keyframe_stride: int = 5
    """Frames from one key frame to the next; the last frame always is one."""

    def __post_init__(self) -> None:
        if self.channels < 1 or self.num_blocks < 0 or self.groups < 1 or self.channels % self.groups:
            raise ConfigError(f"{self} is out of range: channels ≥ 1, num_blocks ≥ 0, groups divide channels")
        if self.temporal_padding < 0 or self.keyframe_stride < 1:
            raise ConfigError(f"{self} is out of range: temporal_padding ≥ 0, keyframe_stride ≥ 1")


class IconVSR(nn.Module):
    """Bidirectional recurrent super-resolution ×4 with key frames; see the drawing on top of this file.

    Args:
        config: shape of the network.
    """

    def __init__(self, config: IconVSRConfig) -> None:
        super().__init__()
        self.config = config
        c, window = config.channels, 2 * config.temporal_padding + 1
        self.edvr = EDVRFeatureExtractor(
            EDVRConfig(channels=c, num_frames=window, groups=config.groups, extract_blocks=_EXTRACT_BLOCKS)
        )
        self.spynet = SpyNet()
        self.backward_fusion = nn.Conv2d(2 * c, c, 3, padding=1)
        self.backward_trunk = ResidualTrunk(3 + c, c, config.num_blocks)
        self.forward_fusion = nn.Conv2d(2 * c, c, 3, padding=1)
        self.forward_trunk = ResidualTrunk(3 + 2 * c, c, config.num_blocks)
        self.upconv1 = nn.Conv2d(c, 4 * c, 3, padding=1)
        self.upconv2 = nn.Conv2d(c, 4 * _HR_CHANNELS, 3, padding=1)
        self.conv_hr = nn.Conv2d(_HR_CHANNELS, _HR_CHANNELS, 3, padding=1)
        self.conv_last = nn.Conv2d(_HR_CHANNELS, 3, 3, padding=1)

    def forward(self, lq: Tensor) -> Tensor:
        """Restore a clip: (B, T, 3, H, W) → (B, T, 3, 4H, 4W); H and W at least 4."""
        return stack_frames(self.restore(lq), lq.shape[1])

    def restore(self, lq: Tensor) -> Iterator[Tensor]:
        """Restore a clip as `forward` does, and yield each frame as it is done.

        Backward features, refilled features and the flows that are needed again wait in a `FeatureStore`.

        Args:
            lq: (B, T, 3, H, W).

        Yields:
            (B, 3, 4H, 4W), from the first frame to the last.
        """
        height, width = lq.shape[-2:]
        frames = [_pad(frame) for frame in lq.unbind(1)]
        with FeatureStore() as store:
            flows = ClipFlows(self.spynet, frames, store, uses=1, mirrored=is_mirrored(lq))
            self._refill(frames, store)
            feat: Tensor | None = None
            for t in reversed(range(len(frames))):
                aligned = self._align(frames[t], feat, flows, (t, t + 1))
                refill = store.get(("refill", t))
                if refill:
                    aligned = self.backward_fusion(torch.cat([aligned, *refill], 1))
                fresh: Tensor = self.backward_trunk(torch.cat([frames[t], aligned], 1))
                store.append(t, fresh)
                feat = fresh
            feat = None
            for t, frame in enumerate(frames):
                aligned = self._align(frame, feat, flows, (t, t - 1))
                refill = store.pop(("refill", t))
                if refill:
                    aligned = self.forward_fusion(torch.cat([aligned, *refill], 1))
                fresh = self.forward_trunk(torch.cat([frame, *store.pop(t), aligned], 1))
                yield self._upsample(fresh, frame)[..., : height * _SCALE, : width * _SCALE]
                feat = fresh

    def _align(self, frame: Tensor, feat: Tensor | None, flows: ClipFlows, step: tuple[int, int]) -> Tensor:
        """Carry features from the other frame of a step to `frame`: (B, C, H, W), zero at the start."""
        if feat is None:
            return frame.new_zeros(frame.shape[0], self.config.channels, *frame.shape[2:])
        return backward_warp(feat, flows.between(*step))

    def _upsample(self, feat: Tensor, frame: Tensor) -> Tensor:
        """Add the detail that features (B, C, H, W) hold to the enlarged frame: (B, 3, 4H, 4W)."""
        convs = (self.upconv1, self.upconv2, self.conv_hr, self.conv_last)
        return shuffle_x4(feat, enlarge(frame, _SCALE), convs)

    def _refill(self, frames: list[Tensor], store: FeatureStore) -> None:
        """Compute the features of the key frames from their windows (Sec. 4.1)."""
        encoded: dict[int, tuple[Tensor, ...]] = {}  # what windows share is computed once
        for t in keyframes(len(frames), self.config.keyframe_stride):
            window = window_of(t, self.config.temporal_padding, len(frames))
            encoded = {i: encoded[i] if i in encoded else self.edvr.encode(frames[i]) for i in set(window)}
            store.append(("refill", t), self.edvr.fuse([encoded[i] for i in window]))


def keyframes(num_frames: int, stride: int) -> list[int]:
    """List the key frames of a clip: every `stride`-th, and the last."""
    return sorted({*range(0, num_frames, stride), num_frames - 1})


def window_of(t: int, radius: int, num_frames: int) -> list[int]:
    """List the frames of the window around a key frame.

    Beyond the ends stand the frames that come next within: before frame 0 of a window of 5 stand 4 and 3, after the
    last those fourth and fifth from the end.
    """
    last = num_frames - 1
    window: list[int] = []
    for i in range(t - radius, t + radius + 1):
        if i < 0:
            i = radius - i
        elif i > last:
            i = 2 * last - radius - i
        window.append(min(max(i, 0), last))  # Deviation: shorter clips than the window are undefined in the paper
    return window


def _pad(frame: Tensor) -> Tensor:
    """Mirror a frame at its right and lower edge, to sizes that the pyramid of the key frames takes."""
    height, width = frame.shape[-2:]
    if height % _MULTIPLE == 0 and width % _MULTIPLE == 0:
        return frame
    return functional.pad(frame, (0, -width % _MULTIPLE, 0, -height % _MULTIPLE), mode="reflect")


_MMAGIC = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^(backward|forward)_resblocks\.", r"\1_trunk."),
        (r"^upsample([12])\.upsample_conv\.", r"upconv\1."),
        (r"^edvr\.feat_l([23])_conv([12])\.", r"edvr.conv_l\1_\2."),
        (r"^edvr\.pcd_alignment\.", r"edvr.pcd_align."),
        (r"^(edvr\..*)\.conv\.(weight|bias)$", r"\1.\2"),
    )
)
_PARTS = {
    *("edvr", "spynet", "backward_fusion", "backward_trunk", "forward_fusion", "forward_trunk"),
    *("upconv1", "upconv2", "conv_hr", "conv_last"),
}
_MARKS = (
    "backward_trunk.main.0.weight",
    "edvr.fusion.feat_fusion.weight",
    "edvr.pcd_align.cas_dcnpack.conv_offset.weight",
)


def _translate(state: State) -> dict[str, Tensor] | None:
    """Map the names of BasicSR (which are ours) and of MMagic; None where they are of another network."""
    if "edvr.conv_first.weight" not in state or "backward_fusion.weight" not in state:
        return None
    renamed: dict[str, Tensor] = {}
    for name, value in rename_spynet(state).items():
        for pattern, replacement in _MMAGIC:
            name = pattern.sub(replacement, name)
        renamed[name] = value
    if {name.split(".", 1)[0] for name in renamed} != _PARTS:
        return None
    return renamed if all(name in renamed and renamed[name].ndim == 4 for name in _MARKS) else None


def _infer(state: State) -> IconVSRConfig:
    channels, joined = state["edvr.fusion.feat_fusion.weight"].shape[:2]
    head = "backward_trunk.main."
    return IconVSRConfig(
        channels=channels,
        num_blocks=sum(name.startswith(head) and name.endswith(".conv1.weight") for name in state),
        temporal_padding=joined // channels // 2,
        groups=state["edvr.pcd_align.cas_dcnpack.conv_offset.weight"].shape[0] // 27,
    )


def _contract(config: IconVSRConfig) -> Contract:
    temporal = Temporal("clip", start_multiple=config.keyframe_stride)  # so that windows have the clip's keyframes
    return Contract(scale=_SCALE, temporal=temporal, halo_px=48, min_size_px=_MULTIPLE, streams=True)


ARCHITECTURE = Architecture(
    name="IconVSR",
    config=IconVSRConfig,
    build=IconVSR,
    translate=_translate,
    infer=_infer,
    contract=_contract,
    derived=("spynet.mean", "spynet.std"),
    source="https://arxiv.org/abs/2012.02181",
)
