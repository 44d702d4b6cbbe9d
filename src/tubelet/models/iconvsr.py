"""IconVSR is BasicVSR with information-refill at key frames and with coupled propagation.

Information-refill: at key frames, the propagated features are fused with features that EDVR
computes from a window of frames, so that alignment errors do not accumulate. Coupled propagation:
the forward direction takes the features of the backward one.

    lq (B, T, 3, H, W)
      key frames: every 5th of the video, and its last
                  refill(t) = EDVR features of the window around t                    (B, C, H, W)
      t = T … 1   x = warp(back(t+1), flow t→t+1);   at key frames x = fuse [x, refill(t)]
                  back(t)  = trunk [lq(t), x]                                         (B, C, H, W)
      t = 1 … T   x = warp(front(t-1), flow t→t-1);  at key frames x = fuse [x, refill(t)]
                  front(t) = trunk [lq(t), back(t), x]                                (B, C, H, W)
                  front(t)
                  ── conv, shuffle ×2 ── conv, shuffle ×2 ── conv ── conv ──(+)── sr(t)
                  lq(t) ──────────────── bilinear ×4 ────────────────────────┘
    sr (B, T, 3, 4H, 4W)

Published: 64 channels, 30 blocks in each direction, windows of 5 frames around key frames (REDS,
8.7 M parameters) or of 7 (Vimeo-90K).

Source: Chan et al., "BasicVSR: The Search for Essential Components in Video Super-Resolution and
Beyond", CVPR 2021, Sec. 4.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from tubelet.layers.frames import stack_frames
from tubelet.layers.recurrence import Edge, EdgeStates, Past, StateObserver, clip_frames, sweep
from tubelet.layers.residual import ResidualTrunk
from tubelet.layers.spynet import SpyNet
from tubelet.layers.store import FeatureStore, open_store
from tubelet.layers.upsampling import enlarge, shuffle_x4, shuffle_x4_convs
from tubelet.models.architecture import Architecture, Contract
from tubelet.models.config_checks import check_divides, check_min
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
# Channels of the convolutions after upsampling: 64 in all published networks, whatever `channels`.
_HR_CHANNELS = 64
# The pyramid of EDVR halves the frames twice.
_SIZE_MULTIPLE = 4
# Residual blocks of EDVR for each frame, before alignment.
_NUM_EXTRACT_BLOCKS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class IconVSRConfig:
    """Configuration of `IconVSR`."""

    PUBLISHED_NAMES: ClassVar[Mapping[str, str]] = {
        "num_feat": "channels",
        "num_block": "num_blocks",
        "mid_channels": "channels",
    }

    channels: int = 64
    """Number of channels of the propagated features."""
    num_blocks: int = 30
    """Number of residual blocks in each direction."""
    temporal_padding: int = 2
    """Number of neighbors on each side of a key frame in its window, in frames."""
    groups: int = 8
    """Offset groups of the deformable convolutions of EDVR: groups of channels with their own
    offsets."""
    keyframe_stride: int = 5
    """Distance between key frames, in frames; the last frame of a video is also a key frame."""

    def __post_init__(self) -> None:
        check_min(self, "channels", 1)
        check_min(self, "num_blocks", 0)
        check_divides(self, "groups", "channels")
        check_min(self, "temporal_padding", 0)
        check_min(self, "keyframe_stride", 1)


class IconVSR(nn.Module):
    """Bidirectional recurrent super-resolution ×4 with key frames; see the top of this file.

    Args:
        config: Configuration of the network.
    """

    def __init__(self, config: IconVSRConfig) -> None:
        super().__init__()
        self.config = config
        c = config.channels
        self.edvr = EDVRFeatureExtractor(
            EDVRConfig(
                channels=c,
                num_frames=2 * config.temporal_padding + 1,
                groups=config.groups,
                num_extract_blocks=_NUM_EXTRACT_BLOCKS,
            )
        )
        self.spynet = SpyNet()
        self.backward_fusion = nn.Conv2d(2 * c, c, 3, padding=1)
        self.backward_trunk = ResidualTrunk(3 + c, c, config.num_blocks)
        self.forward_fusion = nn.Conv2d(2 * c, c, 3, padding=1)
        self.forward_trunk = ResidualTrunk(3 + 2 * c, c, config.num_blocks)
        self.upconv1, self.upconv2, self.conv_hr, self.conv_last = shuffle_x4_convs(c, _HR_CHANNELS)

    def forward(
        self,
        lq: Tensor,
        before: Edge = Edge(),
        after: Edge = Edge(),
    ) -> Tensor:
        """Restore a clip: (B, T, 3, H, W) → (B, T, 3, 4H, 4W), H and W ≥ 4; see `restore`."""
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
            before: Frames before the clip for the windows around key frames, 2 · `temporal_padding`
                or fewer near the start of the video, and the state of the forward sweep. Which
                frames are key frames depends only on its `frame_index`.
            after: The same after the clip, with the state of the backward sweep. If it is empty,
                the last frame is a key frame.
            on_state: Callback for every state of both sweeps, (B, C, H', W'), where H' and W' are
                H and W rounded up to multiples of 4.
            store: Store for backward and refill features.

        Yields:
            Restored frames in order, (B, 3, 4H, 4W).
        """
        height, width = lq.shape[-2:]
        clip_feats = self.propagate(
            lq,
            before=before,
            after=after,
            on_state=on_state,
            store=store,
        )
        for t, feats in clip_feats:
            padded = _pad(lq[:, t])
            # `pop` lets the features be freed before the frame is used.
            yield self._upsample(feats.pop(), padded)[..., : height * _SCALE, : width * _SCALE]

    def propagate(
        self,
        lq: Tensor,
        *,
        before: Edge = Edge(),
        after: Edge = Edge(),
        on_state: StateObserver | None = None,
        store: FeatureStore | None = None,
    ) -> Iterator[tuple[int, list[Tensor]]]:
        """Compute the refill features of key frames, then propagate backward, then forward.

        Args:
            lq: See `restore`.
            before: See `restore`.
            after: See `restore`.
            on_state: See `restore`.
            store: See `restore`.

        Yields:
            The index t of each frame and the list [front(t)], (B, C, H', W').
        """
        num_frames = lq.shape[1]
        # Indexes count from the first frame of the clip; frames before it have negative ones.
        frames = {t: _pad(frame) for t, frame in clip_frames(lq, before, after).items()}
        # `frame_index` is -1 at the start of a video, so its first frame is frame 0.
        key_frames = keyframes(
            before.frame_index + 1,
            num_frames,
            stride=self.config.keyframe_stride,
            ends_video=after.is_video_boundary,
        )
        with open_store(store) as features:

            def backward(t: int, past: Past) -> Tensor:
                x = self._align(past, frames, t, t + 1)
                if t in key_frames:
                    # Information-refill (Sec. 4.1). `get` returns the list [refill(t)].
                    x = torch.cat([x, *features.get(("refill", t))], 1)
                    x = self.backward_fusion(x)
                x = torch.cat([frames[t], x], 1)
                return self.backward_trunk(x)

            def forward(t: int, past: Past) -> Tensor:
                x = self._align(past, frames, t, t - 1)
                if t in key_frames:
                    # Information-refill (Sec. 4.1). This is the last use of refill(t).
                    x = torch.cat([x, *features.pop(("refill", t))], 1)
                    x = self.forward_fusion(x)
                # Coupled propagation (Sec. 4.2): the forward trunk takes back(t), too. This is the
                # only use of back(t).
                x = torch.cat([frames[t], *features.pop(t), x], 1)
                return self.forward_trunk(x)

            for t, refill in self._refill(frames, key_frames):
                features.append(("refill", t), refill)
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
            for t, feat in sweep(
                "forward",
                num_frames,
                step=1,
                edge=before,
                order=1,
                advance=forward,
                on_state=on_state,
            ):
                yield t, [feat]

    def _align(
        self,
        past: Past,
        frames: Mapping[int, Tensor],
        t: int,
        neighbor: int,
    ) -> Tensor:
        """Warp the state of a neighboring frame to frame t (Sec. 3.2).

        Args:
            past: State at the neighbor, (B, C, H', W'); empty at the end of the video where the
                sweep starts.
            frames: Frames (B, 3, H', W') by their index.
            t: Index of the current frame.
            neighbor: Index of the frame that the sweep visited before.

        Returns:
            Aligned state, (B, C, H', W'); zeros where `past` is empty.
        """
        frame = frames[t]
        if not past:
            batch, _, height, width = frame.shape
            return frame.new_zeros(batch, self.config.channels, height, width)
        flow = self.spynet(frame, frames[neighbor])
        return backward_warp(past[0], flow)

    def _upsample(self, feat: Tensor, frame: Tensor) -> Tensor:
        """Upsample features (B, C, H', W') and add the enlarged frame: (B, 3, 4H', 4W')."""
        convs = (self.upconv1, self.upconv2, self.conv_hr, self.conv_last)
        return shuffle_x4(feat, enlarge(frame, _SCALE), convs)

    def _refill(
        self, frames: Mapping[int, Tensor], key_frames: list[int]
    ) -> Iterator[tuple[int, Tensor]]:
        """Compute the features of key frames from the windows around them (Sec. 4.1).

        Args:
            frames: Frames (B, 3, H', W') by their index.
            key_frames: Indexes of the key frames.

        Yields:
            The index t of each key frame and refill(t), (B, C, H', W').
        """
        # Encodings of the frames of the current window, by index. Windows can overlap; a frame is
        # encoded once for consecutive windows.
        encoded: dict[int, tuple[Tensor, ...]] = {}
        for t in key_frames:
            window = window_of(
                t,
                self.config.temporal_padding,
                first=min(frames),
                last=max(frames),
            )
            for i in encoded.keys() - set(window):
                del encoded[i]
            for i in window:
                if i not in encoded:
                    encoded[i] = self.edvr.encode(frames[i])
            yield t, self.edvr.fuse([encoded[i] for i in window])


def keyframes(
    first: int,
    num_frames: int,
    *,
    stride: int,
    ends_video: bool,
) -> list[int]:
    """List the key frames of a clip: every `stride`-th frame of the video, and its last.

    Args:
        first: Index in the video of the first frame of the clip.
        num_frames: Number of frames T of the clip.
        stride: Distance between key frames, in frames.
        ends_video: The last frame of the clip is the last frame of the video.

    Returns:
        Indexes in the clip, in order.
    """
    indexes = [t for t in range(num_frames) if (first + t) % stride == 0]
    last = num_frames - 1
    if ends_video and last not in indexes:
        indexes.append(last)
    return indexes


def window_of(t: int, radius: int, first: int, last: int) -> list[int]:
    """List the frames of the window around a key frame.

    As in the published code, frames beyond the ends are replaced by those that follow the window
    inside the video, not by a reflection. A window of 5 frames around frame 0 is 4, 3, 0, 1, 2; the
    one around the last frame ends with the fourth and the fifth frame from the end.

    Args:
        t: Index of the key frame.
        radius: Number of neighbors on each side.
        first: Index of the first available frame.
        last: Index of the last available frame.

    Returns:
        2 · radius + 1 indexes.
    """
    window: list[int] = []
    for i in range(t - radius, t + radius + 1):
        if i < first:
            i = 2 * first + radius - i
        elif i > last:
            i = 2 * last - radius - i
        # Deviation: clips shorter than the window are undefined in the paper; repeat their ends.
        window.append(min(max(i, first), last))
    return window


def _pad(frame: Tensor) -> Tensor:
    """Pad a frame at its right and lower edge to the size multiple of EDVR."""
    height, width = frame.shape[-2:]
    return pad_to(frame, round_up(height, _SIZE_MULTIPLE), round_up(width, _SIZE_MULTIPLE))


# MMagic (formerly MMEditing).
_MMAGIC: tuple[Rule, ...] = (
    (r"^(backward|forward)_resblocks\.", r"\1_trunk."),
    (r"^upsample([12])\.upsample_conv\.", r"upconv\1."),
    (r"^edvr\.feat_l([23])_conv([12])\.", r"edvr.conv_l\1_\2."),
    (r"^edvr\.pcd_alignment\.", r"edvr.pcd_align."),
    (r"^(edvr\..*)\.conv\.(weight|bias)$", r"\1.\2"),
)
# Top-level modules of our names.
_MODULES = {
    "edvr",
    "spynet",
    "backward_fusion",
    "backward_trunk",
    "forward_fusion",
    "forward_trunk",
    "upconv1",
    "upconv2",
    "conv_hr",
    "conv_last",
}
# Convolutions whose shapes `_infer` reads, and the first of a trunk.
_REQUIRED_CONVS = (
    "backward_trunk.main.0",
    "edvr.fusion.feat_fusion",
    "edvr.pcd_align.cas_dcnpack.conv_offset",
)
# For each group, `conv_offset` predicts dy, dx and a mask for each of the 3×3 taps.
_OFFSET_CHANNELS = 27


def _translate(state: State) -> dict[str, Tensor] | None:
    """Rename the tensors of a file of BasicSR (whose names are ours) or of MMagic.

    Returns:
        The renamed state dict, or None if it belongs to another architecture.
    """
    if "edvr.conv_first.weight" not in state or "backward_fusion.weight" not in state:
        return None
    renamed = rename(rename_spynet(state), _MMAGIC)
    if first_words(renamed) != _MODULES:
        return None
    if not has_convolutions(renamed, *_REQUIRED_CONVS):
        return None
    return renamed


def _infer(state: State) -> IconVSRConfig:
    # The convolution that fuses a window: (C, T·C, 1, 1).
    channels, in_channels = state["edvr.fusion.feat_fusion.weight"].shape[:2]
    num_frames = in_channels // channels
    offset_weight = state["edvr.pcd_align.cas_dcnpack.conv_offset.weight"]
    return IconVSRConfig(
        channels=channels,
        num_blocks=count_names(state, r"backward_trunk\.main\..*\.conv1\.weight"),
        temporal_padding=num_frames // 2,
        groups=offset_weight.shape[0] // _OFFSET_CHANNELS,
    )


def _contract(config: IconVSRConfig) -> Contract:
    return Contract(
        scale=_SCALE,
        temporal=Temporal("clip"),
        # As large as that of EDVR at key frames. The recurrence reaches further with every frame;
        # this covers what still matters.
        halo_px=48,
        # The network would pad by itself, but its states must have the size of its input.
        size_multiple=_SIZE_MULTIPLE,
        min_size_px=_SIZE_MULTIPLE,
        streams=True,
        # A window at the end of a video takes frames up to twice the radius from its key frame; the
        # flow takes one.
        edge_frames=max(1, 2 * config.temporal_padding),
        edge_states=EdgeStates(before=("forward",), after=("backward",)),
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
