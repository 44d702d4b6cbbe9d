"""VRT: a transformer that attends, warps and fuses all frames of a clip in parallel.

    lq (B, T, 3, H, W)
      SpyNet: flow between neighboring frames, at 1, 1/2, 1/4 and 1/8 of the size
      [lq(t), the four pixels around each flow target in lq(t+1) and in lq(t-1)] ── conv_first ── f

      f ─ stage 1 ─┬─ 2 ─┬─ 3 ─┬─ 4 ── 5 ─(+)─ 6 ─(+)─ 7 ─(+)─ linear LN ─ groups ─ linear LN ─ r
          size 1   │ 1/2 │ 1/4 │ 1/8  1/4  │  1/2  │   1   │
                   │     │     └───────────┘       │       │
                   │     └─────────────────────────┘       │
                   └───────────────────────────────────────┘
      f + r ── conv ── (conv, shuffle ×2) twice ── conv ── conv ──(+)── sr
      lq(t) ── bilinear ×4 ───────────────────────────────────────┘
    sr (B, T, 3, 4H, 4W)

    stage    change of size: 2×2 pixels ⇄ channels, LN, linear
             x + linear(mutual blocks(x)), then x + linear(self blocks(x))           Sec. 3.2
             parallel warping                                                        Sec. 3.3
    group    x + linear(self blocks(x)); the last groups see single frames
    blocks   `vrt_attention.py`; every second one shifts its windows
    warping  `vrt_warping.py`

    f, r, x  (B, T, h, w, C), channels last

Published for ×4, 120 and 180 channels, 80 blocks, 6 heads, windows of 8×8 pixels:
    REDS, 6 frames             windows of 6 frames, 1 neighbor on each side    30.68 M parameters
    REDS, 16 frames            windows of 8 frames, 3 neighbors                35.13 M
    Vimeo-90K, 7 frames        windows of 8 frames, 2 neighbors

Source: Liang et al., VRT: A Video Restoration Transformer, IEEE TIP 2024.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from tubelet.errors import ConfigError
from tubelet.layers.convolution import ConvAct, LeakyReLU, ShuffleConv
from tubelet.layers.frames import stack_frames
from tubelet.layers.spynet import SpyNet
from tubelet.layers.upsampling import enlarge, shuffle_x4
from tubelet.models.architecture import Architecture, Contract
from tubelet.models.config_checks import check_divides, check_min, check_range
from tubelet.models.state_dict import (
    Rule,
    State,
    count_names,
    first_words,
    has_convolutions,
    rename,
    shape_of,
    without,
    zero_based,
)
from tubelet.models.vrt_attention import MutualBlock, SelfBlock
from tubelet.models.vrt_warping import (
    ClipMotion,
    ParallelWarping,
    estimate_motion,
    nearest_four,
)
from tubelet.types import Temporal

__all__ = ["ARCHITECTURE", "VRT", "VRTConfig"]

_SCALE = 4
# Width of the convolutions after the features.
_HR_CHANNELS = 64
_BEFORE_SLOPE = 0.01
_SLOPE = 0.1
# Share of the blocks of a stage that have mutual attention.
_MUTUAL_SHARE = 0.75
# Largest distance of an offset from the flow, pixels at full size.
_MAX_RESIDUE_PX = 10.0

Resizing = Literal["none", "down", "up"]
_STAGES: tuple[tuple[Resizing, int], ...] = (
    ("none", 1),
    ("down", 2),
    ("down", 4),
    ("down", 8),
    ("up", 4),
    ("up", 2),
    ("up", 1),
)
"""Change of size at the start of each stage, and by how much the stage is smaller than lq."""
_NUM_SCALES = 4
_SIZE_MULTIPLE = 8
_OVERLAP_FRAMES = 2
_TILE_OVERLAP_PX = 20
"""Overlap of windows and tiles in the authors' own test script."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VRTConfig:
    """Configuration of a `VRT`."""

    PUBLISHED_NAMES: ClassVar[Mapping[str, str]] = {"deformable_groups": "groups"}

    channels: int = 120
    """Number of channels of the seven stages."""
    group_channels: int = 180
    """Number of channels of the groups after them."""
    depths: tuple[int, ...] = (8, 8, 8, 8, 8, 8, 8)
    """Number of blocks of each stage; three quarters of them, rounded down, are mutual blocks."""
    group_depths: tuple[int, ...] = (4, 4, 4, 4, 4, 4)
    """Number of blocks of each group."""
    num_frame_groups: int = 2
    """How many of the last groups see single frames."""
    num_heads: int = 6
    """Number of attention heads."""
    window_frames: int = 6
    """Number of frames of a window of self-attention."""
    window: int = 8
    """Height and width of a window, pixels of the stage."""
    num_neighbors: int = 1
    """Number of frames on each side that are aligned with a frame."""
    groups: int = 12
    """Offset groups of the alignment, of the neighbors on one side together."""

    def __post_init__(self) -> None:
        if len(self.depths) != len(_STAGES) or min(self.depths) < 2:
            raise ConfigError(
                f"VRTConfig: depths={self.depths} must be {len(_STAGES)} numbers of at least 2"
            )
        if not self.group_depths or min(self.group_depths) < 1:
            raise ConfigError(
                f"VRTConfig: group_depths={self.group_depths} must be numbers of at least 1"
            )
        check_range(self, "num_frame_groups", 0, len(self.group_depths))
        check_min(self, "window_frames", 1)
        check_min(self, "window", 1)
        check_divides(self, "num_heads", "channels")
        check_divides(self, "num_heads", "group_channels")
        check_divides(self, "num_neighbors", "channels")
        check_divides(self, "num_neighbors", "groups")
        # The position code has a sine and a cosine for height and width.
        if self.channels % 4:
            raise ConfigError(f"VRTConfig: channels={self.channels} must be a multiple of 4")
        channels_aligned = self.num_neighbors * self.channels
        if channels_aligned % self.groups:
            raise ConfigError(
                f"VRTConfig: groups={self.groups} must divide num_neighbors · channels="
                f"{channels_aligned}"
            )


class Resize(nn.Module):
    """Change the size of features by moving pixels to channels or back, then normalize.

    Args:
        channels: C.
        kind: "none": only normalize; "down": halve height and width; "up": double them.
    """

    def __init__(self, channels: int, kind: Resizing) -> None:
        super().__init__()
        self.kind: Resizing = kind
        moved_channels = {"none": channels, "down": 4 * channels, "up": channels // 4}[kind]
        self.norm = nn.LayerNorm(moved_channels)
        self.linear = nn.Identity() if kind == "none" else nn.Linear(moved_channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, H, W, C) to the same shape, or to that with half or twice the sides."""
        batch, num_frames, height, width, channels = x.shape
        clip = (batch, num_frames)
        # In the channels of 2×2 pixels, the column comes first, then the row.
        match self.kind:
            case "none":
                pass
            case "down":
                x = x.view(*clip, height // 2, 2, width // 2, 2, channels)
                x = x.permute(0, 1, 2, 4, 5, 3, 6)  # (B, T, H/2, W/2, 2, 2, C)
                x = x.reshape(*clip, height // 2, width // 2, 4 * channels)
            case "up":
                x = x.view(*clip, height, width, 2, 2, channels // 4)
                x = x.permute(0, 1, 2, 5, 3, 4, 6)  # (B, T, H, 2, W, 2, C/4)
                x = x.reshape(*clip, 2 * height, 2 * width, channels // 4)
        return self.linear(self.norm(x))


class Stage(nn.Module):
    """Mutual blocks, self blocks and parallel warping at one size; see the top of this file.

    Args:
        config: Configuration of the network.
        depth: Number of blocks.
        resizing: Change of size at the start.
        shrinkage: By how much the features are smaller than lq.
    """

    def __init__(self, config: VRTConfig, depth: int, resizing: Resizing, shrinkage: int) -> None:
        super().__init__()
        c = config.channels
        self.shrinkage = shrinkage
        self.reshape = Resize(c, resizing)
        num_mutual = int(depth * _MUTUAL_SHARE)
        self.mutual_blocks = nn.ModuleList()
        for i in range(num_mutual):
            block = MutualBlock(c, config.num_heads, config.window, is_shifted=i % 2 == 1)
            self.mutual_blocks.append(block)
        self.linear1 = nn.Linear(c, c)
        self.self_blocks = _self_blocks(config, c, depth - num_mutual, config.window_frames)
        self.linear2 = nn.Linear(c, c)
        self.warping = ParallelWarping(
            c,
            config.num_neighbors,
            config.groups,
            _MAX_RESIDUE_PX / shrinkage,
        )

    def forward(self, x: Tensor, motion: ClipMotion) -> Tensor:
        """Map (B, T, H, W, C) to the size of the stage, given the flow at that size."""
        x = self.reshape(x)
        x = _add_blocks(x, self.mutual_blocks, self.linear1)
        x = _add_blocks(x, self.self_blocks, self.linear2)
        return self.warping(x, motion)


class Group(nn.Module):
    """Self blocks, a linear layer, a skip.

    Args:
        config: Configuration of the network.
        depth: Number of blocks.
        window_frames: Number of frames of a window.
    """

    def __init__(self, config: VRTConfig, depth: int, window_frames: int) -> None:
        super().__init__()
        c = config.group_channels
        self.blocks = _self_blocks(config, c, depth, window_frames)
        self.linear = nn.Linear(c, c)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, H, W, C) to the same shape."""
        return _add_blocks(x, self.blocks, self.linear)


def _self_blocks(
    config: VRTConfig,
    channels: int,
    depth: int,
    window_frames: int,
) -> nn.ModuleList:
    """Build self blocks; every second one shifts its windows by half their size."""
    window = (window_frames, config.window, config.window)
    blocks = nn.ModuleList()
    for i in range(depth):
        shift = [side // 2 if i % 2 else 0 for side in window]
        blocks.append(SelfBlock(channels, config.num_heads, window, shift))
    return blocks


def _add_blocks(x: Tensor, blocks: nn.ModuleList, linear: nn.Module) -> Tensor:
    """Return x + linear(blocks(x)); x is (B, T, H, W, C)."""
    y = x
    for block in blocks:
        y = block(y)
    return linear(y).add_(x)


class VRT(nn.Module):
    """Video restoration transformer for super-resolution ×4; see the drawing on top of this file.

    Args:
        config: Configuration of the network.
    """

    def __init__(self, config: VRTConfig) -> None:
        super().__init__()
        self.config = config
        c = config.channels
        self.spynet = SpyNet()
        # A frame and four samples of each of its neighbors.
        self.conv_first = nn.Conv2d(3 * (1 + 4 + 4), c, 3, padding=1)
        self.stages = nn.ModuleList()
        for depth, (resizing, shrinkage) in zip(config.depths, _STAGES, strict=True):
            self.stages.append(Stage(config, depth, resizing, shrinkage))

        self.group_norm = nn.LayerNorm(c)
        self.group_linear = nn.Linear(c, config.group_channels)
        self.groups = nn.ModuleList()
        num_clip_groups = len(config.group_depths) - config.num_frame_groups
        for i, depth in enumerate(config.group_depths):
            window_frames = config.window_frames if i < num_clip_groups else 1
            self.groups.append(Group(config, depth, window_frames))
        self.norm = nn.LayerNorm(config.group_channels)
        self.linear_after_body = nn.Linear(config.group_channels, c)

        act = LeakyReLU(_SLOPE)
        self.conv_before_upsample = ConvAct(c, _HR_CHANNELS, act=LeakyReLU(_BEFORE_SLOPE))
        self.upconv1 = ShuffleConv(_HR_CHANNELS, _HR_CHANNELS, act=act)
        self.upconv2 = ShuffleConv(_HR_CHANNELS, _HR_CHANNELS, act=act)
        self.conv_hr = ConvAct(_HR_CHANNELS, _HR_CHANNELS)
        self.conv_last = ConvAct(_HR_CHANNELS, 3)

    def forward(self, lq: Tensor) -> Tensor:
        """Restore a clip.

        Args:
            lq: Low-quality clip, (B, T, 3, H, W), in [0, 1]; H and W are multiples of 8. The
                published network takes sides of at least 64.

        Returns:
            (B, T, 3, 4H, 4W); values can exceed [0, 1].
        """
        num_frames = lq.shape[1]
        if num_frames == 1:
            # Deviation: the published network takes two frames or more; a single one is repeated.
            lq = lq.expand(-1, 2, -1, -1, -1)
        motions = estimate_motion(self.spynet, lq, _NUM_SCALES)
        shallow = self._extract_shallow(lq, motions[0])
        deep = self._extract_deep(shallow, motions)
        frames = self._reconstructed_frames(lq[:, :num_frames], shallow, deep)
        return stack_frames(frames, num_frames)

    def _extract_shallow(self, lq: Tensor, motion: ClipMotion) -> Tensor:
        """Convolve every frame with the samples of its neighbors: (B, T, H, W, C)."""
        batch, num_frames, rgb, height, width = lq.shape
        outside = lq.new_zeros(batch, 4 * rgb, height, width)
        features: list[Tensor] = []
        for t in range(num_frames):
            after = outside
            before = outside
            if t + 1 < num_frames:
                after = nearest_four(lq[:, t + 1], motion.to_next[t])
            if t > 0:
                before = nearest_four(lq[:, t - 1], motion.to_last[t - 1])
            feat = self.conv_first(torch.cat([lq[:, t], after, before], 1))
            features.append(feat.permute(0, 2, 3, 1))
        return torch.stack(features, 1).contiguous()

    def _extract_deep(self, shallow: Tensor, motions: list[ClipMotion]) -> Tensor:
        """Run the stages and the groups: (B, T, H, W, C) → (B, T, H, W, C of the groups)."""
        motion_by_shrinkage = {2**i: motion for i, motion in enumerate(motions)}
        x = shallow
        # Results of the stages on the way down, for those of the same size on the way up.
        skips: list[Tensor] = []
        num_down = _NUM_SCALES - 1
        for i, stage in enumerate(self.stages):
            x = stage(x, motion_by_shrinkage[stage.shrinkage])
            if i < num_down:
                skips.append(x)
            elif i > num_down:
                x = x + skips.pop()

        x = self.group_linear(self.group_norm(x))
        for group in self.groups:
            x = group(x)
        return x

    def _reconstructed_frames(self, lq: Tensor, shallow: Tensor, deep: Tensor) -> Iterator[Tensor]:
        """Yield sr (B, 3, 4H, 4W) of each frame of lq.

        Args:
            lq: (B, T, 3, H, W).
            shallow: (B, T, H, W, C).
            deep: (B, T, H, W, C of the groups).
        """
        convs = (self.upconv1, self.upconv2, self.conv_hr, self.conv_last)
        for t in range(lq.shape[1]):
            residual = self.linear_after_body(self.norm(deep[:, t]))
            features = residual.add_(shallow[:, t]).permute(0, 3, 1, 2)  # (B, C, H, W)
            features = self.conv_before_upsample(features)
            yield shuffle_x4(features, enlarge(lq[:, t], _SCALE), convs)


_AUTHORS: tuple[Rule, ...] = (
    # Self blocks have only one set of queries, keys and values.
    (r"(\.residual_group2?\.blocks\.\d+\.attn)\.qkv_self\.", r"\1.qkv."),
    (r"\.residual_group1\.blocks\.", ".mutual_blocks."),
    (r"\.residual_group2\.blocks\.", ".self_blocks."),
    (r"\.residual_group\.", "."),
    (r"\.reshape\.1\.", ".reshape.norm."),
    (r"\.reshape\.2\.", ".reshape.linear."),
    (r"\.pa_deform\.", ".warping.align."),
    (r"\.pa_fuse\.", ".warping.fuse."),
    (r"^stage8\.0\.1\.", "group_norm."),
    (r"^stage8\.0\.2\.", "group_linear."),
    (r"^stage8\.(\d+)\.", zero_based("groups.{}.")),
    (r"^stage(\d+)\.", zero_based("stages.{}.")),
    (r"^conv_after_body\.", "linear_after_body."),
    (r"^conv_before_upsample\.0\.", "conv_before_upsample."),
    (r"^upsample\.0\.", "upconv1."),
    (r"^upsample\.5\.", "upconv2."),
    (r"^upsample\.10\.", "conv_hr."),
)
_DERIVED_NAMES = r".*\.attn\.(relative_position_index|position_bias)"
"""Tensors of published files that follow from the size of the windows."""
_MODULES = {
    "spynet",
    "conv_first",
    "stages",
    "group_norm",
    "group_linear",
    "groups",
    "norm",
    "linear_after_body",
    "conv_before_upsample",
    "upconv1",
    "upconv2",
    "conv_hr",
    "conv_last",
}
_MUTUAL_TABLE = "stages.0.mutual_blocks.0.attn.relative_position_bias_table"
_SELF_TABLE = "stages.0.self_blocks.0.attn.relative_position_bias_table"
_GUIDE = "stages.0.warping.align.conv_offset.0"
_OFFSETS = "stages.0.warping.align.conv_offset.6"
# Each group predicts dy, dx and a weight for each of 3×3 kernel taps.
_OFFSET_CHANNELS = 27


def _translate(state: State) -> dict[str, Tensor] | None:
    """Rename the tensors of a file of the authors or of KAIR, which have the same names.

    Returns:
        The renamed state dict, or None if it belongs to another architecture.
    """
    own: dict[str, Tensor] = {}
    for name, tensor in rename(without(state, _DERIVED_NAMES), _AUTHORS).items():
        # Published convolutions have a kernel of one frame: (C', C, 1, 3, 3).
        is_3d = tensor.ndim == 5 and tensor.shape[2] == 1
        own[name] = tensor.squeeze(2) if is_3d else tensor
    # Networks for deblurring, denoising and interpolation have no upsampling.
    if first_words(own) != _MODULES:
        return None
    if not has_convolutions(own, "conv_first", "upconv1", _GUIDE, _OFFSETS):
        return None
    tables = [shape_of(own, _MUTUAL_TABLE), shape_of(own, _SELF_TABLE)]
    return own if all(len(shape) == 2 for shape in tables) else None


def _infer(state: State) -> VRTConfig:
    depths: list[int] = []
    for i in range(len(_STAGES)):
        pattern = rf"stages\.{i}\.(mutual|self)_blocks\.\d+\.norm1\.weight"
        depths.append(count_names(state, pattern))

    # The table of mutual blocks has (2·2 − 1) · (2·window − 1)² entries, that of self blocks
    # (2·window_frames − 1) · (2·window − 1)².
    num_entries, num_heads = state[_MUTUAL_TABLE].shape
    pixel_entries = num_entries // 3
    window = (math.isqrt(pixel_entries) + 1) // 2
    window_frames = (len(state[_SELF_TABLE]) // pixel_entries + 1) // 2

    group_depths: list[int] = []
    num_frame_groups = 0
    for i in range(count_names(state, r"groups\.\d+\.linear\.weight")):
        group_depths.append(count_names(state, rf"groups\.{i}\.blocks\.\d+\.norm1\.weight"))
        table = state[f"groups.{i}.blocks.0.attn.relative_position_bias_table"]
        if window_frames > 1 and len(table) == pixel_entries:
            num_frame_groups += 1

    # The guide has the features of the frame, and features and flow of each neighbor.
    channels, guide_channels = state[f"{_GUIDE}.weight"].shape[:2]
    return VRTConfig(
        channels=channels,
        group_channels=len(state["group_linear.weight"]),
        depths=tuple(depths),
        group_depths=tuple(group_depths),
        num_frame_groups=num_frame_groups,
        num_heads=num_heads,
        window_frames=window_frames,
        window=window,
        num_neighbors=(guide_channels - channels) // (channels + 2),
        groups=len(state[f"{_OFFSETS}.weight"]) // _OFFSET_CHANNELS,
    )


def _contract(config: VRTConfig) -> Contract:
    return Contract(
        scale=_SCALE,
        # Any number of frames: how many are restored together depends on the memory.
        temporal=Temporal("clip", overlap_frames=_OVERLAP_FRAMES),
        # Deviation: attention and alignment see much further, but the influence is faint.
        halo_px=_TILE_OVERLAP_PX,
        size_multiple=_SIZE_MULTIPLE,
        # A window of the smallest stage.
        min_size_px=_SIZE_MULTIPLE * config.window,
    )


ARCHITECTURE = Architecture(
    name=VRT.__name__,
    config=VRTConfig,
    build=VRT,
    translate=_translate,
    infer=_infer,
    contract=_contract,
    derived=("spynet.mean", "spynet.std"),
    source="https://arxiv.org/abs/2201.12288",
)
