"""EDVR: neighbors aligned by a pyramid of deformable convolutions, and fused by attention.

    encode, for each frame (B, 3, H, W)
      conv (or predeblur) ── residual blocks ── L1 (B, C, H, W) ── ½ ── L2 ── ½ ── L3      pyramid
    fuse, for a window of 2r + 1 pyramids
      PCD   for each neighbor, from L3 to L1: offsets from [neighbor, middle] and from the level
            below; deformable convolution of the neighbor; once more at L1 (cascade)
            ── aligned (B, C, H, W)
      TSA   aligned · σ⟨aligned, middle⟩ ── 1×1 ── · 2σ(attention) + attention   (or only one 1×1)
      residual blocks
        ── conv, shuffle ×2 ── conv, shuffle ×2 ── conv ── conv ──(+)── sr (B, 1, 3, 4H, 4W)
      middle frame ──────── bilinear ×4 ──────────────────────────┘

Published: M, 64 channels, 5 + 10 blocks (3.3 M parameters); L, 128 channels, 5 + 40 blocks
(20.6 M); 5 frames for REDS, 7 for Vimeo-90K; with and without TSA. Networks for deblurring begin
with a predeblur module; some of them take frames of the output size, and downsample them ×1/4 in
that module.

Source: Wang et al., "EDVR: Video Restoration with Enhanced Deformable Convolutional Networks",
CVPRW 2019, Secs. 3.1 to 3.3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from tubelet.layers.deform import ModulatedDeformConv
from tubelet.layers.residual import ResidualBlock
from tubelet.layers.upsampling import enlarge, shuffle_x4, shuffle_x4_convs
from tubelet.models.architecture import Architecture, Contract
from tubelet.models.config_checks import check_choice, check_divides, check_min, check_odd
from tubelet.models.state_dict import Rule, State, count_names, has_convolutions, rename, zero_based
from tubelet.types import Temporal

__all__ = ["ARCHITECTURE", "EDVR", "EDVRConfig", "EDVRFeatureExtractor"]

Features = tuple[Tensor, ...]
"""Features of one frame: a tensor for each level of the pyramid, and others that `encode` lists."""

Fusion = Literal["tsa", "conv"]
Predeblur = Literal["none", "plain", "strided"]

_SCALE = 4
# Width of the convolutions at high resolution: published files have it at every `channels`.
_HR_CHANNELS = 64
# Each group predicts dy, dx and a weight for each of 3×3 kernel taps.
_OFFSET_CHANNELS = 27
# Full, half and quarter size.
_LEVELS = ("l1", "l2", "l3")
# In pixels of the features. With random weights, changes further away move the output by less than
# 1e-4 of its standard deviation.
_HALO_PX = 48


@dataclass(frozen=True, slots=True, kw_only=True)
class EDVRConfig:
    """Configuration of `EDVR`."""

    PUBLISHED_NAMES: ClassVar[Mapping[str, str]] = {
        "num_feat": "channels",
        "num_frame": "num_frames",
        "deformable_groups": "groups",
        "num_extract_block": "num_extract_blocks",
        "num_reconstruct_block": "num_reconstruct_blocks",
    }
    FORMER_NAMES: ClassVar[Mapping[str, str]] = {
        "extract_blocks": "num_extract_blocks",
        "reconstruct_blocks": "num_reconstruct_blocks",
    }

    channels: int = 64
    """Number of channels of the features."""
    num_frames: int = 5
    """Number of frames in the window, including the middle one; odd."""
    groups: int = 8
    """Offset groups of the deformable convolutions: groups of channels with their own offsets."""
    num_extract_blocks: int = 5
    """Number of residual blocks for each frame, before alignment."""
    num_reconstruct_blocks: int = 10
    """Number of residual blocks after fusion."""
    fusion: Fusion = "tsa"
    """Fusion of the aligned frames: temporal and spatial attention, or one convolution."""
    predeblur: Predeblur = "none"
    """Deblurring before alignment: none, a pyramid, or a pyramid for frames of the output size."""

    def __post_init__(self) -> None:
        check_min(self, "channels", 1)
        check_odd(self, "num_frames")
        check_divides(self, "groups", "channels")
        check_min(self, "num_extract_blocks", 0)
        check_min(self, "num_reconstruct_blocks", 0)
        check_choice(self, "fusion", ("tsa", "conv"))
        check_choice(self, "predeblur", ("none", "plain", "strided"))

    @property
    def scale(self) -> int:
        """Upscaling factor."""
        return 1 if self.predeblur == "strided" else _SCALE


def _conv(
    in_channels: int,
    out_channels: int,
    kernel_px: int = 3,
    *,
    stride: int = 1,
) -> nn.Conv2d:
    padding = kernel_px // 2
    return nn.Conv2d(in_channels, out_channels, kernel_px, stride=stride, padding=padding)


def _blocks(channels: int, num_blocks: int) -> nn.Sequential:
    return nn.Sequential(*(ResidualBlock(channels) for _ in range(num_blocks)))


def _lrelu(x: Tensor) -> Tensor:
    """Apply LeakyReLU in place, where `x` is the output of a convolution and used nowhere else."""
    return functional.leaky_relu_(x, 0.1)


def _convolve_first(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """Compute the contribution of x to conv([x, y]), without the bias: (B, O, H, W)."""
    weight = conv.weight[:, : x.shape[1]]
    return functional.conv2d(x, weight, padding=1)


def _convolve_second(conv: nn.Conv2d, y: Tensor) -> Tensor:
    """Compute the contribution of y to conv([x, y]), with the bias: (B, O, H, W)."""
    weight = conv.weight[:, -y.shape[1] :]
    return functional.conv2d(y, weight, conv.bias, padding=1)


class PCDAlignment(nn.Module):
    """Align the features of a neighbor with those of the middle frame (Sec. 3.2, "PCD").

    A convolution of [neighbor, middle] is the sum of a convolution of each. The one of the neighbor
    is the same in every window, and the one of the middle frame is the same for all neighbors, so
    each is computed once.

    Args:
        channels: Number of channels of the features.
        groups: Offset groups of the deformable convolutions.
    """

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        c = channels
        self.offset_conv1 = nn.ModuleDict(
            {
                "l1": _conv(2 * c, c),
                "l2": _conv(2 * c, c),
                "l3": _conv(2 * c, c),
            }
        )
        # Only l3, the coarsest level, has no offsets from a level below.
        self.offset_conv2 = nn.ModuleDict(
            {
                "l1": _conv(2 * c, c),
                "l2": _conv(2 * c, c),
                "l3": _conv(c, c),
            }
        )
        self.offset_conv3 = nn.ModuleDict(
            {
                "l1": _conv(c, c),
                "l2": _conv(c, c),
            }
        )
        self.dcn_pack = nn.ModuleDict(
            {
                "l1": ModulatedDeformConv(c, c, groups=groups),
                "l2": ModulatedDeformConv(c, c, groups=groups),
                "l3": ModulatedDeformConv(c, c, groups=groups),
            }
        )
        self.feat_conv = nn.ModuleDict(
            {
                "l1": _conv(2 * c, c),
                "l2": _conv(2 * c, c),
            }
        )
        self.cas_offset_conv1 = _conv(2 * c, c)
        self.cas_offset_conv2 = _conv(c, c)
        self.cas_dcnpack = ModulatedDeformConv(c, c, groups=groups)

    def project_neighbor(self, pyramid: Features) -> Features:
        """Compute the contribution of a frame to the offsets when it is a neighbor.

        Args:
            pyramid: Features of the frame: (B, C, H, W), (B, C, H/2, W/2), (B, C, H/4, W/4).

        Returns:
            The first half of `offset_conv1` for each level, in the shapes of the pyramid.
        """
        projected: list[Tensor] = []
        for level, feat in zip(_LEVELS, pyramid, strict=True):
            projected.append(_convolve_first(self._offset_conv1(level), feat))
        return tuple(projected)

    def project_middle(self, pyramid: Features) -> Features:
        """Compute the contribution of the middle frame to the offsets of all neighbors.

        Args:
            pyramid: Features of the middle frame, as for `project_neighbor`.

        Returns:
            The second half of `offset_conv1` for each level, in the shapes of the pyramid, then
            that of the cascade, (B, C, H, W).
        """
        projected: list[Tensor] = []
        for level, feat in zip(_LEVELS, pyramid, strict=True):
            projected.append(_convolve_second(self._offset_conv1(level), feat))
        projected.append(_convolve_second(self.cas_offset_conv1, pyramid[0]))
        return tuple(projected)

    def forward(self, neighbor: Features, projected: Features, middle: Features) -> Tensor:
        """Align one neighbor.

        Args:
            neighbor: Features of the neighbor: (B, C, H, W), (B, C, H/2, W/2), (B, C, H/4, W/4).
            projected: Result of `project_neighbor`.
            middle: Result of `project_middle`.

        Returns:
            Aligned features, (B, C, H, W).
        """
        # L3, the coarsest level.
        # Eq. 3
        offset = _lrelu(projected[2] + middle[2])
        offset = _lrelu(self.offset_conv2["l3"](offset))
        # Eq. 4. Not in place, because the deformable convolution keeps its output.
        feat = self.dcn_pack["l3"](neighbor[2], offset)
        feat = functional.leaky_relu(feat, 0.1)

        # L2 and L1 refine the result of the level below.
        for i, level in ((1, "l2"), (0, "l1")):
            # Eq. 3. Offsets are in pixels, so they double with the size.
            below = offset
            offset = _lrelu(projected[i] + middle[i])
            offset = torch.cat([offset, enlarge(below.mul(2), 2)], 1)
            offset = _lrelu(self.offset_conv2[level](offset))
            offset = _lrelu(self.offset_conv3[level](offset))
            # Eq. 4
            aligned = self.dcn_pack[level](neighbor[i], offset)
            feat = torch.cat([aligned, enlarge(feat, 2)], 1)
            feat = self.feat_conv[level](feat)
            # The result of the pyramid itself has no activation.
            if level == "l2":
                feat = _lrelu(feat)

        # Cascade: align the aligned features once more.
        offset = _convolve_first(self.cas_offset_conv1, feat)
        offset = _lrelu(offset.add_(middle[3]))
        offset = _lrelu(self.cas_offset_conv2(offset))
        return functional.leaky_relu(self.cas_dcnpack(feat, offset), 0.1)

    def _offset_conv1(self, level: str) -> nn.Conv2d:
        conv = self.offset_conv1[level]
        assert isinstance(conv, nn.Conv2d)
        return conv


class TSAFusion(nn.Module):
    """Fuse aligned frames by temporal and spatial attention (Sec. 3.3, "TSA").

    Temporal attention weights each frame by its similarity to the middle one. Spatial attention
    then weights the fused features by position.

    Args:
        channels: Number of channels of the features.
        num_frames: Number of frames in the window.
    """

    def __init__(self, channels: int, num_frames: int) -> None:
        super().__init__()
        c = channels
        self.temporal_attn1 = _conv(c, c)
        self.temporal_attn2 = _conv(c, c)
        self.feat_fusion = _conv(num_frames * c, c, 1)
        self.spatial_attn1 = _conv(num_frames * c, c, 1)
        self.spatial_attn2 = _conv(2 * c, c, 1)
        self.spatial_attn3 = _conv(c, c)
        self.spatial_attn4 = _conv(c, c, 1)
        self.spatial_attn5 = _conv(c, c)
        self.spatial_attn_l1 = _conv(c, c, 1)
        self.spatial_attn_l2 = _conv(2 * c, c)
        self.spatial_attn_l3 = _conv(c, c)
        self.spatial_attn_add1 = _conv(c, c, 1)
        self.spatial_attn_add2 = _conv(c, c, 1)

    def forward(self, aligned: list[Tensor]) -> Tensor:
        """Fuse the aligned features of a window.

        Args:
            aligned: Features of 2r + 1 frames, (B, C, H, W) each. The list is emptied, to free them
                early.

        Returns:
            Fused features, (B, C, H, W).
        """
        # (B, T·C, H, W)
        x = torch.cat(self._weight_by_similarity(aligned), 1)
        aligned.clear()
        # Eq. 7
        feat = _lrelu(self.feat_fusion(x))
        attn = _lrelu(self.spatial_attn1(x))
        # Free the widest tensor before the attention is computed.
        del x

        # Spatial attention over a pyramid. Half the size, (B, C, H/2, W/2):
        attn = _lrelu(self.spatial_attn2(_pool(attn)))
        # A quarter of the size, (B, C, H/4, W/4), enlarged and added to the half:
        lower = _lrelu(self.spatial_attn_l1(attn))
        lower = _lrelu(self.spatial_attn_l2(_pool(lower)))
        lower = enlarge(_lrelu(self.spatial_attn_l3(lower)), 2)
        attn = _lrelu(self.spatial_attn3(attn)).add(lower)
        # Back to full size, (B, C, H, W):
        attn = _lrelu(self.spatial_attn4(attn))
        attn = self.spatial_attn5(enlarge(attn, 2))
        shift = _lrelu(self.spatial_attn_add1(attn))
        shift = self.spatial_attn_add2(shift)
        # The factor 2 lets the attention start near 1.
        return (feat * attn.sigmoid()).mul_(2).add_(shift)

    def _weight_by_similarity(self, aligned: list[Tensor]) -> list[Tensor]:
        """Weight each frame, pixel by pixel, by its similarity to the middle one (Eqs. 5 and 6)."""
        middle = self.temporal_attn1(aligned[len(aligned) // 2])
        weighted: list[Tensor] = []
        for feat in aligned:
            # Eq. 5: the inner product over the channels, (B, 1, H, W).
            similarity = (self.temporal_attn2(feat) * middle).sum(1, keepdim=True).sigmoid()
            # Eq. 6
            weighted.append(feat * similarity)
        return weighted


def _pool(x: Tensor) -> Tensor:
    """Halve the size, and return maxima and means: (B, C, H, W) → (B, 2C, H/2, W/2)."""
    maxima = functional.max_pool2d(x, 3, stride=2, padding=1)
    means = functional.avg_pool2d(x, 3, stride=2, padding=1)
    return torch.cat([maxima, means], 1)


class PredeblurModule(nn.Module):
    """Deblur a frame in feature space, over a pyramid of three levels (Sec. 3.1).

    Args:
        channels: Number of channels of the features.
        strided: Frames have the output size, and the features a quarter of it.
    """

    def __init__(self, channels: int, *, strided: bool) -> None:
        super().__init__()
        c = channels
        self.conv_first = _conv(3, c)
        if strided:
            self.stride_conv_hr1 = _conv(c, c, stride=2)
            self.stride_conv_hr2 = _conv(c, c, stride=2)
        self.strided = strided
        self.stride_conv_l2 = _conv(c, c, stride=2)
        self.stride_conv_l3 = _conv(c, c, stride=2)
        self.resblock_l3 = ResidualBlock(c)
        self.resblock_l2_1 = ResidualBlock(c)
        self.resblock_l2_2 = ResidualBlock(c)
        self.resblock_l1 = nn.ModuleList(ResidualBlock(c) for _ in range(5))

    def forward(self, frame: Tensor) -> Tensor:
        """Map a frame (B, 3, H, W) to features (B, C, H, W), or (B, C, H/4, W/4) if strided."""
        l1 = _lrelu(self.conv_first(frame))
        if self.strided:
            l1 = _lrelu(self.stride_conv_hr1(l1))
            l1 = _lrelu(self.stride_conv_hr2(l1))

        # Down the pyramid.
        l2 = _lrelu(self.stride_conv_l2(l1))
        l3 = _lrelu(self.stride_conv_l3(l2))
        # Up again: each level adds the enlarged features of the level below.
        l2 = self.resblock_l2_1(l2) + enlarge(self.resblock_l3(l3), 2)
        l2 = enlarge(self.resblock_l2_2(l2), 2)
        for i, block in enumerate(self.resblock_l1):
            # L2 joins after two of the five blocks.
            if i == 2:
                l1 = l1 + l2
            l1 = block(l1)
        return l1


class EDVRFeatureExtractor(nn.Module):
    """EDVR without the reconstruction: from the frames of a window to fused features.

    `encode` computes the part that depends only on one frame, `fuse` the part that depends on the
    window.

    Args:
        config: Configuration of the network.
    """

    def __init__(self, config: EDVRConfig) -> None:
        super().__init__()
        c = config.channels
        if config.predeblur == "none":
            self.conv_first = _conv(3, c)
        else:
            self.predeblur = PredeblurModule(c, strided=config.predeblur == "strided")
            self.conv_1x1 = _conv(c, c, 1)
        self.config = config
        self.feature_extraction = _blocks(c, config.num_extract_blocks)
        self.conv_l2_1 = _conv(c, c, stride=2)
        self.conv_l2_2 = _conv(c, c)
        self.conv_l3_1 = _conv(c, c, stride=2)
        self.conv_l3_2 = _conv(c, c)
        self.pcd_align = PCDAlignment(c, config.groups)
        if config.fusion == "tsa":
            self.fusion = TSAFusion(c, config.num_frames)
        else:
            self.fusion = _conv(config.num_frames * c, c, 1)

    def encode(self, frame: Tensor) -> Features:
        """Compute the features that depend only on one frame.

        Args:
            frame: Low-quality frame, (B, 3, H, W).

        Returns:
            The pyramid (B, C, H, W), (B, C, H/2, W/2), (B, C, H/4, W/4), then its contributions to
            the offsets (see `PCDAlignment.project_neighbor`), in the same three shapes.
        """
        if self.config.predeblur == "none":
            l1 = _lrelu(self.conv_first(frame))
        else:
            l1 = self.conv_1x1(self.predeblur(frame))
        l1 = self.feature_extraction(l1)
        l2 = _lrelu(self.conv_l2_1(l1))
        l2 = _lrelu(self.conv_l2_2(l2))
        l3 = _lrelu(self.conv_l3_1(l2))
        l3 = _lrelu(self.conv_l3_2(l3))
        pyramid = (l1, l2, l3)
        return pyramid + self.pcd_align.project_neighbor(pyramid)

    def fuse(self, window: Sequence[Features]) -> Tensor:
        """Align all frames of a window with the middle one, and fuse them.

        Args:
            window: Results of `encode` for 2r + 1 frames.

        Returns:
            Features of the middle frame, (B, C, H, W).
        """
        num_levels = len(_LEVELS)
        middle_pyramid = window[len(window) // 2][:num_levels]
        middle = self.pcd_align.project_middle(middle_pyramid)

        # The middle frame itself goes through the alignment, too.
        aligned: list[Tensor] = []
        for features in window:
            pyramid = features[:num_levels]
            projected = features[num_levels:]
            aligned.append(self.pcd_align(pyramid, projected, middle))

        if isinstance(self.fusion, TSAFusion):
            return self.fusion(aligned)
        return self.fusion(torch.cat(aligned, 1))

    def forward(self, lq: Tensor) -> Tensor:
        """Compute the features of the middle frame: (B, 2r + 1, 3, H, W) → (B, C, H, W)."""
        window = [self.encode(frame) for frame in lq.unbind(1)]
        return self.fuse(window)


class EDVR(nn.Module):
    """Super-resolution ×4 or deblurring from a window of frames; see the top of this file.

    Args:
        config: Configuration of the network.
    """

    def __init__(self, config: EDVRConfig) -> None:
        super().__init__()
        self.config = config
        c = config.channels
        self.extractor = EDVRFeatureExtractor(config)
        self.reconstruction = _blocks(c, config.num_reconstruct_blocks)
        self.upconv1, self.upconv2, self.conv_hr, self.conv_last = shuffle_x4_convs(c, _HR_CHANNELS)

    def encode(self, frame: Tensor) -> Features:
        """Compute the part that depends only on one frame, to share it between windows.

        Args:
            frame: Low-quality frame, (B, 3, H, W); H and W are multiples of 4, or of 16 if the
                predeblur module is strided.

        Returns:
            The frame, and its features as in `EDVRFeatureExtractor.encode`.
        """
        return frame, *self.extractor.encode(frame)

    def fuse(self, window: Sequence[Features]) -> Tensor:
        """Restore the middle frame of a window.

        Args:
            window: Results of `encode` for 2r + 1 frames.

        Returns:
            Restored frame, (B, 3, sH, sW).
        """
        feat = self.extractor.fuse([features[1:] for features in window])
        feat = self.reconstruction(feat)
        base = window[len(window) // 2][0]
        if self.config.scale != 1:
            base = enlarge(base, _SCALE)
        convs = (self.upconv1, self.upconv2, self.conv_hr, self.conv_last)
        return shuffle_x4(feat, base, convs)

    def forward(self, lq: Tensor) -> Tensor:
        """Restore the middle frame: (B, 2r + 1, 3, H, W) → (B, 1, 3, sH, sW)."""
        window = [self.encode(frame) for frame in lq.unbind(1)]
        return self.fuse(window).unsqueeze(1)


_MMAGIC: tuple[Rule, ...] = (
    (r"\.conv\.(weight|bias)$", r".\1"),
    (r"^feat_l([23])_conv([12])\.", r"conv_l\1_\2."),
    (r"^pcd_alignment\.", "pcd_align."),
    (r"^upsample([12])\.upsample_conv\.", r"upconv\1."),
)
# The code of the authors.
_MMSR: tuple[Rule, ...] = (
    (r"^pre_deblur\.conv_first_1\.", "predeblur.conv_first."),
    (r"^pre_deblur\.conv_first_2\.", "predeblur.stride_conv_hr1."),
    (r"^pre_deblur\.conv_first_3\.", "predeblur.stride_conv_hr2."),
    (r"^pre_deblur\.deblur_L([23])_conv\.", r"predeblur.stride_conv_l\1."),
    (r"^pre_deblur\.RB_L3_1\.", "predeblur.resblock_l3."),
    (r"^pre_deblur\.RB_L2_([12])\.", r"predeblur.resblock_l2_\1."),
    (r"^pre_deblur\.RB_L1_(\d)\.", zero_based("predeblur.resblock_l1.{}.")),
    (r"^pre_deblur\.", "predeblur."),
    (r"^fea_L([23])_conv([12])\.", r"conv_l\1_\2."),
    (r"^pcd_align\.L([123])_offset_conv([123])\.", r"pcd_align.offset_conv\2.l\1."),
    (r"^pcd_align\.L([123])_dcnpack\.", r"pcd_align.dcn_pack.l\1."),
    (r"^pcd_align\.L([12])_fea_conv\.", r"pcd_align.feat_conv.l\1."),
    (r"\.conv_offset_mask\.", ".conv_offset."),
    (r"^tsa_fusion\.tAtt_1\.", "fusion.temporal_attn2."),
    (r"^tsa_fusion\.tAtt_2\.", "fusion.temporal_attn1."),
    (r"^tsa_fusion\.fea_fusion\.", "fusion.feat_fusion."),
    (r"^tsa_fusion\.sAtt_add_", "fusion.spatial_attn_add"),
    (r"^tsa_fusion\.sAtt_L", "fusion.spatial_attn_l"),
    (r"^tsa_fusion\.sAtt_", "fusion.spatial_attn"),
    (r"^tsa_fusion\.", "fusion."),
    (r"^recon_trunk\.", "reconstruction."),
    (r"^HRconv\.", "conv_hr."),
)
# All modules that are not part of the reconstruction belong to the extractor.
_EXTRACTOR: tuple[Rule, ...] = (
    (r"^(?!(reconstruction|upconv1|upconv2|conv_hr|conv_last)\.)", "extractor."),
)
_REQUIRED_CONVS = ("pcd_align.cas_dcnpack.conv_offset", "conv_l3_2", "upconv2", "conv_last")
# The convolution that fuses the frames, (C, T·C, 1, 1).
_FUSION_WEIGHTS: dict[Fusion, str] = {
    "tsa": "fusion.feat_fusion.weight",
    "conv": "fusion.weight",
}


def _translate(state: State) -> dict[str, Tensor] | None:
    """Rename the tensors of a file of BasicSR, MMagic or the authors.

    Names of BasicSR are ours without the prefix of the extractor.

    Returns:
        The renamed state dict, or None if it belongs to another architecture.
    """
    if "extractor.pcd_align.cas_dcnpack.weight" in state:
        return dict(state)
    if "pcd_align.cas_dcnpack.weight" in state:
        rules = _MMSR if "HRconv.weight" in state else ()
    elif "pcd_alignment.cas_dcnpack.weight" in state:
        rules = _MMAGIC
    else:
        return None
    renamed = rename(state, rules)
    if not has_convolutions(renamed, *_REQUIRED_CONVS):
        return None
    if _find_fusion(renamed, prefix="") is None:
        return None
    return rename(renamed, _EXTRACTOR)


def _find_fusion(state: State, *, prefix: str) -> tuple[Fusion, Tensor] | None:
    """Find the kind of fusion and the weight of its convolution, (C, T·C, 1, 1)."""
    for kind, name in _FUSION_WEIGHTS.items():
        weight = state.get(prefix + name)
        if weight is None or weight.ndim != 4:
            continue
        channels, in_channels = weight.shape[:2]
        if 0 < channels <= in_channels:
            return kind, weight
    return None


def _infer(state: State) -> EDVRConfig:
    # `_translate` has checked that there is a fusion.
    match = _find_fusion(state, prefix="extractor.")
    assert match is not None
    fusion, fusion_weight = match
    channels, in_channels = fusion_weight.shape[:2]
    offset_weight = state["extractor.pcd_align.cas_dcnpack.conv_offset.weight"]
    return EDVRConfig(
        channels=channels,
        num_frames=in_channels // channels,
        groups=offset_weight.shape[0] // _OFFSET_CHANNELS,
        num_extract_blocks=count_names(state, r"extractor\.feature_extraction\..*\.conv1\.weight"),
        num_reconstruct_blocks=count_names(state, r"reconstruction\..*\.conv1\.weight"),
        fusion=fusion,
        predeblur=_infer_predeblur(state),
    )


def _infer_predeblur(state: State) -> Predeblur:
    if "extractor.predeblur.conv_first.weight" not in state:
        return "none"
    if "extractor.predeblur.stride_conv_hr1.weight" in state:
        return "strided"
    return "plain"


def _contract(config: EDVRConfig) -> Contract:
    # Side of a feature in pixels of lq: a strided predeblur module downsamples ×1/4.
    feature_px = _SCALE // config.scale
    # The pyramid halves the features twice.
    size_multiple = 4 * feature_px
    return Contract(
        scale=config.scale,
        temporal=Temporal("window", radius=config.num_frames // 2),
        halo_px=_HALO_PX * feature_px,
        size_multiple=size_multiple,
        min_size_px=size_multiple,
        encodes=True,
    )


ARCHITECTURE = Architecture(
    name="EDVR",
    config=EDVRConfig,
    build=EDVR,
    translate=_translate,
    infer=_infer,
    contract=_contract,
    source="https://arxiv.org/abs/1905.02716",
)
