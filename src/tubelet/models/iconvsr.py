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

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from tubelet.errors import ConfigError
from tubelet.layers.frames import stack_frames
from tubelet.layers.recurrence import Edge, Past, Seen, clip_frames, sweep
from tubelet.layers.residual import ResidualTrunk
from tubelet.layers.spynet import SpyNet
from tubelet.layers.store import FeatureStore, open_store
from tubelet.layers.upsampling import enlarge, shuffle_x4, shuffle_x4_convs
from tubelet.models.architecture import Architecture, Contract
from tubelet.models.edvr import EDVRConfig, EDVRFeatureExtractor
from tubelet.models.spynet import rename_spynet
from tubelet.models.state_dict import (
    Rule,
    State,
    count_names,
    first_words,
    has_convolutions,
    rename,
)
from tubelet.ops.sizes import pad_to, round_up
from tubelet.ops.warp import backward_warp
from tubelet.types import Temporal

__all__ = ["ARCHITECTURE", "IconVSR", "IconVSRConfig"]

_SCALE = 4
_HR_CHANNELS = 64  # of the last convolutions, whatever the width of the trunks
_MULTIPLE = 4  # of the sizes that the pyramid of the key frames takes
_OVERLAP_FRAMES = 11  # measured, random weights: windows differ by 70 dB at the seam, with 8 by 59
_EXTRACT_BLOCKS = 5  # of a key frame's features before alignment


@dataclass(frozen=True, slots=True, kw_only=True)
class IconVSRConfig:
    """Shape of an `IconVSR`."""

    PUBLISHED_NAMES: ClassVar[Mapping[str, str]] = {
        "num_feat": "channels",
        "num_block": "num_blocks",
        "mid_channels": "channels",
    }

    channels: int = 64
    """Width of the propagated features."""
    num_blocks: int = 30
    """Residual blocks of each direction."""
    temporal_padding: int = 2
    """Neighbors on each side of a key frame, frames."""
    groups: int = 8
    """Offset groups of the alignment of a key frame's neighbors."""
    keyframe_stride: int = 5
    """Frames from one key frame to the next; the last frame always is one."""

    def __post_init__(self) -> None:
        if (
            self.channels < 1
            or self.num_blocks < 0
            or self.groups < 1
            or self.channels % self.groups
        ):
            raise ConfigError(
                f"{self} is out of range: channels ≥ 1, num_blocks ≥ 0, groups divide channels"
            )
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
            EDVRConfig(
                channels=c,
                num_frames=window,
                groups=config.groups,
                num_extract_blocks=_EXTRACT_BLOCKS,
            )
        )
        self.spynet = SpyNet()
        self.backward_fusion = nn.Conv2d(2 * c, c, 3, padding=1)
        self.backward_trunk = ResidualTrunk(3 + c, c, config.num_blocks)
        self.forward_fusion = nn.Conv2d(2 * c, c, 3, padding=1)
        self.forward_trunk = ResidualTrunk(3 + 2 * c, c, config.num_blocks)
        self.upconv1, self.upconv2, self.conv_hr, self.conv_last = shuffle_x4_convs(c, _HR_CHANNELS)

    def forward(self, lq: Tensor, before: Edge = Edge(), after: Edge = Edge()) -> Tensor:
        """Restore a clip: (B, T, 3, H, W) → (B, T, 3, 4H, 4W), H and W at least 4; see `restore`."""
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
            before: frames for the windows of key frames, twice `temporal_padding` or as many as the
                video has, and the state of the forward sweep. Its `frame_index` alone tells which
                frames are key frames.
            after: likewise, with the state of the backward sweep. Where it is empty, the last frame
                is a key frame.
            seen: called with the states of both sweeps, (B, C, H', W'), sides rounded up to
                multiples of 4.
            store: keeps backward and refilled features.

        Yields:
            (B, 3, 4H, 4W), from the first frame to the last.
        """
        height, width = lq.shape[-2:]
        for t, feats in self.propagate(lq, before=before, after=after, seen=seen, store=store):
            padded = _pad(lq[:, t])
            yield self._upsample(feats.pop(), padded)[..., : height * _SCALE, : width * _SCALE]

    def propagate(
        self,
        lq: Tensor,
        *,
        before: Edge = Edge(),
        after: Edge = Edge(),
        seen: Seen | None = None,
        store: FeatureStore | None = None,
    ) -> Iterator[tuple[int, list[Tensor]]]:
        """Refill key frames, then run both sweeps (Secs. 4.1 and 4.2); arguments as in `restore`.

        Yields:
            each frame, and its features of the forward sweep, (B, C, H', W').
        """
        num_frames = lq.shape[1]
        frames = {t: _pad(frame) for t, frame in clip_frames(lq, before, after).items()}
        keys = keyframes(
            before.frame_index + 1,
            num_frames,
            stride=self.config.keyframe_stride,
            ends_video=after.is_video_end,
        )
        with open_store(store) as features:

            def backward(t: int, past: Past) -> Tensor:
                x = self._align(past, frames, t, t + 1)
                if t in keys:
                    x = self.backward_fusion(torch.cat([x, *features.get(("refill", t))], 1))
                return self.backward_trunk(torch.cat([frames[t], x], 1))

            def forward(t: int, past: Past) -> Tensor:
                x = self._align(past, frames, t, t - 1)
                if t in keys:
                    x = self.forward_fusion(torch.cat([x, *features.pop(("refill", t))], 1))
                return self.forward_trunk(torch.cat([frames[t], *features.pop(t), x], 1))

            for t, refill in self._refill(frames, keys):
                features.append(("refill", t), refill)
            for t, feat in sweep("backward", num_frames, -1, after, 1, backward, seen):
                features.append(t, feat)
            for t, feat in sweep("forward", num_frames, 1, before, 1, forward, seen):
                yield t, [feat]

    def _align(self, past: Past, frames: Mapping[int, Tensor], t: int, other: int) -> Tensor:
        """Carry the state at frame `other` to frame t: (B, C, H, W), zero at the start of the video."""
        frame = frames[t]
        if not past:
            return frame.new_zeros(frame.shape[0], self.config.channels, *frame.shape[2:])
        return backward_warp(past[0], self.spynet(frame, frames[other]))

    def _upsample(self, feat: Tensor, frame: Tensor) -> Tensor:
        """Add the detail that features (B, C, H, W) hold to the enlarged frame: (B, 3, 4H, 4W)."""
        convs = (self.upconv1, self.upconv2, self.conv_hr, self.conv_last)
        return shuffle_x4(feat, enlarge(frame, _SCALE), convs)

    def _refill(
        self, frames: Mapping[int, Tensor], keys: list[int]
    ) -> Iterator[tuple[int, Tensor]]:
        """Compute the features of the key frames from their windows (Sec. 4.1)."""
        encoded: dict[int, tuple[Tensor, ...]] = {}  # what windows share is computed once
        for t in keys:
            window = window_of(t, self.config.temporal_padding, min(frames), max(frames))
            for i in encoded.keys() - set(window):
                del encoded[i]
            for i in window:
                if i not in encoded:
                    encoded[i] = self.edvr.encode(frames[i])
            yield t, self.edvr.fuse([encoded[i] for i in window])


def keyframes(first: int, num_frames: int, *, stride: int, ends_video: bool) -> list[int]:
    """List the key frames of a clip: every `stride`-th frame of the video, and its last.

    Args:
        first: index in the video of the clip's first frame.
        num_frames: T.
        stride: frames from one key frame to the next.
        ends_video: whether the clip's last frame is the video's.
    """
    keys = [t for t in range(num_frames) if (first + t) % stride == 0]
    last = num_frames - 1
    if ends_video and last not in keys:
        keys.append(last)
    return keys


def window_of(t: int, radius: int, first: int, last: int) -> list[int]:
    """List the frames of the window around a key frame.

    Beyond the ends stand the frames that come next within: before frame 0 of a window of 5 stand 4 and 3, after the
    last those fourth and fifth from the end.

    Args:
        t: the key frame.
        radius: neighbors on each side.
        first: the first frame that there is.
        last: the last frame that there is.
    """
    window: list[int] = []
    for i in range(t - radius, t + radius + 1):
        if i < first:
            i = 2 * first + radius - i
        elif i > last:
            i = 2 * last - radius - i
        window.append(
            min(max(i, first), last)
        )  # Deviation: shorter clips than the window are undefined in the paper
    return window


def _pad(frame: Tensor) -> Tensor:
    """Mirror a frame at its right and lower edge, to sizes that the pyramid of the key frames takes."""
    height, width = frame.shape[-2:]
    return pad_to(frame, round_up(height, _MULTIPLE), round_up(width, _MULTIPLE))


_MMAGIC: tuple[Rule, ...] = (
    (r"^(backward|forward)_resblocks\.", r"\1_trunk."),
    (r"^upsample([12])\.upsample_conv\.", r"upconv\1."),
    (r"^edvr\.feat_l([23])_conv([12])\.", r"edvr.conv_l\1_\2."),
    (r"^edvr\.pcd_alignment\.", r"edvr.pcd_align."),
    (r"^(edvr\..*)\.conv\.(weight|bias)$", r"\1.\2"),
)
_PARTS = {
    *("edvr", "spynet", "backward_fusion", "backward_trunk", "forward_fusion", "forward_trunk"),
    *("upconv1", "upconv2", "conv_hr", "conv_last"),
}
_MARKS = (
    "backward_trunk.main.0",
    "edvr.fusion.feat_fusion",
    "edvr.pcd_align.cas_dcnpack.conv_offset",
)


def _translate(state: State) -> dict[str, Tensor] | None:
    """Map the names of BasicSR (which are ours) and of MMagic; None where they are of another network."""
    if "edvr.conv_first.weight" not in state or "backward_fusion.weight" not in state:
        return None
    own = rename(rename_spynet(state), _MMAGIC)
    if first_words(own) != _PARTS:
        return None
    return own if has_convolutions(own, *_MARKS) else None


def _infer(state: State) -> IconVSRConfig:
    channels, joined = state["edvr.fusion.feat_fusion.weight"].shape[:2]
    return IconVSRConfig(
        channels=channels,
        num_blocks=count_names(state, r"backward_trunk\.main\..*\.conv1\.weight"),
        temporal_padding=joined // channels // 2,
        groups=state["edvr.pcd_align.cas_dcnpack.conv_offset.weight"].shape[0] // 27,
    )


def _contract(config: IconVSRConfig) -> Contract:
    return Contract(
        scale=_SCALE,
        temporal=Temporal("clip", overlap_frames=_OVERLAP_FRAMES),
        halo_px=48,
        min_size_px=_MULTIPLE,
        streams=True,
        edge_frames=2
        * config.temporal_padding,  # windows at a video's end take frames so far within
    )


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
