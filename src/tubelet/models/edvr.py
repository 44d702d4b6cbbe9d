"""EDVR aligns neighbors by a pyramid of deformable convolutions and fuses them by attention.

    encode, for each frame (B, 3, H, W)
      conv (or predeblur) ── residual blocks ── L1 (B, C, h, w) ── ½ ── L2 ── ½ ── L3      pyramid
    fuse, for a window of T = 2r + 1 encoded frames
      PCD   alignment with Pyramid, Cascading and Deformable convolutions; for each neighbor:
            from L3 to L1: deformable convolution of the neighbor, with offsets predicted from
                           [neighbor, middle] and from the coarser level; joined with the result
                           of the coarser level
            at the end:    the L1 result is aligned once more (cascade)
            ── aligned (B, C, h, w)
      TSA   fusion with Temporal and Spatial Attention; σ is the sigmoid, ⟨,⟩ the inner product:
            aligned · σ⟨conv(aligned), conv(aligned middle)⟩, all frames
            ── 1×1 ── · 2σ(attention) + convs(attention)
            or, without TSA: aligned, all frames ── 1×1
      residual blocks
        ── conv, shuffle ×2 ── conv, shuffle ×2 ── conv ── conv ──(+)── sr (B, 1, 3, sH, sW)
      middle frame ──────── bilinear ×s ──────────────────────────┘

B is the batch, C = `channels`, s the scale. Features have the size of the frame, (h, w) = (H, W),
and s = 4. Only with a strided predeblur module (h, w) = (H/4, W/4) and s = 1, because frames have
the output size already. The pyramid halves the features twice, so H and W are multiples of 4, or
of 16 with a strided predeblur module; the caller pads.

Published networks: M (64 channels, 5 blocks before alignment and 10 after fusion, 3.3 M parameters)
and L (128 channels, 5 and 40 blocks, 20.6 M); with windows of 5 frames for REDS and of 7 for
Vimeo-90K; with and without TSA. Networks for blurry input begin with a predeblur module. Those that
keep the size (s = 1) reduce the frame to a quarter of its height and width in that module.

Modules have the names of BasicSR (`dcn_pack`, `cas_dcnpack`, `conv_l2_1`), below `extractor.` for
all that IconVSR shares.

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

Pyramid = tuple[Tensor, ...]
"""Tensors at L1, L2 and L3: (B, C, h, w), (B, C, h/2, w/2), (B, C, h/4, w/4)."""

Encoding = tuple[Tensor, ...]
"""Result of `encode` for one frame, which all windows with this frame share."""

FusionKind = Literal["tsa", "conv"]
PredeblurKind = Literal["none", "plain", "strided"]

# Factor of the two pixel shuffles at the end of the network.
_SCALE = 4
# Channels of the convolutions after upsampling: 64 in all published networks, whatever `channels`.
_HR_CHANNELS = 64
# For each group, `conv_offset` predicts dy, dx and a mask for each of the 3×3 taps.
_OFFSET_CHANNELS = 27
# Levels of the pyramid: full, half and quarter size of the features.
_LEVELS = ("l1", "l2", "l3")
# Context that a tile needs, in pixels of the features. Measured with random weights: changing the
# input more than 48 px from an output pixel changes that pixel by less than 1e-4 of the standard
# deviation of the output. Trained offsets may reach further.
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
    """Offset groups of the deformable convolutions: groups of channels with their own offsets (not
    the `groups` of `nn.Conv2d`)."""
    num_extract_blocks: int = 5
    """Number of residual blocks for each frame, before alignment."""
    num_reconstruct_blocks: int = 10
    """Number of residual blocks after fusion."""
    fusion: FusionKind = "tsa"
    """Fusion of the aligned frames. "tsa": temporal and spatial attention; "conv": one 1×1
    convolution."""
    predeblur: PredeblurKind = "none"
    """Deblurring before alignment. "none"; "plain": a module that deblurs features at the size of
    the input; "strided": the same after reducing the features to a quarter of the height and width,
    for input that has the output size (scale 1)."""

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
        """Upscaling factor: 4, or 1 with a strided predeblur module."""
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
    """Apply LeakyReLU (slope 0.1), overwriting `x`.

    `x` must be a temporary: nobody else uses it, and autograd has not saved it.
    """
    return functional.leaky_relu_(x, 0.1)


def _conv_first_half(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """Compute the part of conv([x, y]) that depends on x, without the bias: (B, O, H, W).

    With the result of `_conv_second_half`, which adds the bias once, it sums to conv([x, y]).
    """
    weight = conv.weight[:, : x.shape[1]]
    return functional.conv2d(x, weight, padding=1)


def _conv_second_half(conv: nn.Conv2d, y: Tensor) -> Tensor:
    """Compute the part of conv([x, y]) that depends on y, with the bias: (B, O, H, W)."""
    weight = conv.weight[:, -y.shape[1] :]
    return functional.conv2d(y, weight, conv.bias, padding=1)


class PCDAlignment(nn.Module):
    """Align the features of a neighbor with those of the middle frame (Sec. 3.2, "PCD").

    "PCD" is Pyramid, Cascading and Deformable convolutions. `ModulatedDeformConv(x, offset_feat)`
    predicts the offsets and masks itself, by its `conv_offset`; this module computes `offset_feat`,
    the features from which it predicts them.

    The first offset convolution of each level takes [neighbor, middle], concatenated over channels.
    Being linear, it is the sum of a part for each. The neighbor's part is the same in every window
    and is computed in `encode`; the middle frame's part is the same for all neighbors and is
    computed once for each window. In the cascade only the middle frame's part is shared, because
    the other input is already aligned.

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
        # l3 has no coarser level, so here it takes C channels, not 2C, and below it needs neither
        # `offset_conv3` nor `feat_conv`.
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

    def project_neighbor(self, pyramid: Pyramid) -> Pyramid:
        """Compute what a frame, as a neighbor, contributes to the offset features.

        Args:
            pyramid: Features of the frame at L1, L2 and L3.

        Returns:
            The neighbor's part of `offset_conv1` at L1, L2 and L3, in the shapes of the pyramid.
        """
        projections: list[Tensor] = []
        for level, feat in zip(_LEVELS, pyramid, strict=True):
            projections.append(_conv_first_half(self._get_offset_conv1(level), feat))
        return tuple(projections)

    def project_middle(self, pyramid: Pyramid) -> tuple[Tensor, ...]:
        """Compute what the middle frame contributes to the offset features of all neighbors.

        Args:
            pyramid: Features of the middle frame at L1, L2 and L3.

        Returns:
            Four tensors: the middle frame's part of `offset_conv1` at L1, L2 and L3, in the shapes
            of the pyramid, then that of the cascade, (B, C, h, w).
        """
        projections: list[Tensor] = []
        for level, feat in zip(_LEVELS, pyramid, strict=True):
            projections.append(_conv_second_half(self._get_offset_conv1(level), feat))
        projections.append(_conv_second_half(self.cas_offset_conv1, pyramid[0]))
        return tuple(projections)

    def forward(
        self,
        pyramid: Pyramid,
        neighbor_projections: Pyramid,
        middle_projections: tuple[Tensor, ...],
    ) -> Tensor:
        """Align one neighbor with the middle frame.

        Args:
            pyramid: Features of the neighbor at L1, L2 and L3.
            neighbor_projections: Result of `project_neighbor` for the neighbor.
            middle_projections: Result of `project_middle` for the middle frame.

        Returns:
            Aligned features, (B, C, h, w).
        """
        # L3, the coarsest level.
        # Eq. 3: offsets from both frames.
        offset_feat = _lrelu(neighbor_projections[2] + middle_projections[2])
        offset_feat = _lrelu(self.offset_conv2["l3"](offset_feat))
        # Eq. 4: deformable convolution. Its result is a view made in a custom autograd function,
        # which autograd does not allow to be overwritten; so this activation is not in place.
        feat = self.dcn_pack["l3"](pyramid[2], offset_feat)
        feat = functional.leaky_relu(feat, 0.1)

        # L2 and L1 refine the result of the coarser level.
        for i, level in ((1, "l2"), (0, "l1")):
            # Eq. 3: offsets from both frames and from the coarser level. Offsets predicted from
            # these features are in pixels; a pixel of the coarser level is two here, so the
            # published code doubles the features too.
            coarser = offset_feat
            offset_feat = _lrelu(neighbor_projections[i] + middle_projections[i])
            # (B, 2C, ·, ·), at the size of this level.
            offset_feat = torch.cat([offset_feat, enlarge(coarser.mul(2), 2)], 1)
            offset_feat = _lrelu(self.offset_conv2[level](offset_feat))
            offset_feat = _lrelu(self.offset_conv3[level](offset_feat))
            # Eq. 4: deformable convolution, joined with the result of the coarser level.
            aligned = self.dcn_pack[level](pyramid[i], offset_feat)
            feat = torch.cat([aligned, enlarge(feat, 2)], 1)
            feat = self.feat_conv[level](feat)
            # No activation at L1, as in the published code.
            if level == "l2":
                feat = _lrelu(feat)

        # Cascade: align the aligned features once more.
        offset_feat = _conv_first_half(self.cas_offset_conv1, feat)
        offset_feat = _lrelu(offset_feat.add_(middle_projections[3]))
        offset_feat = _lrelu(self.cas_offset_conv2(offset_feat))
        return functional.leaky_relu(self.cas_dcnpack(feat, offset_feat), 0.1)

    def _get_offset_conv1(self, level: str) -> nn.Conv2d:
        """Return `offset_conv1` of a level, with its type, which `nn.ModuleDict` does not know."""
        conv = self.offset_conv1[level]
        assert isinstance(conv, nn.Conv2d)
        return conv


class TSAFusion(nn.Module):
    """Fuse aligned frames by temporal and spatial attention (Sec. 3.3, "TSA").

    Temporal attention weights each frame, at each position, by its similarity to the middle one.
    Spatial attention then scales and shifts the fused features at each position.

    Args:
        channels: Number of channels of the features.
        num_frames: Number of frames in the window.
    """

    def __init__(self, channels: int, num_frames: int) -> None:
        super().__init__()
        c = channels
        # The first embeds the middle frame, the second every frame of the window.
        self.temporal_attn1 = _conv(c, c)
        self.temporal_attn2 = _conv(c, c)
        self.feat_fusion = _conv(num_frames * c, c, 1)
        self.spatial_attn1 = _conv(num_frames * c, c, 1)
        self.spatial_attn2 = _conv(2 * c, c, 1)
        self.spatial_attn3 = _conv(c, c)
        self.spatial_attn4 = _conv(c, c, 1)
        self.spatial_attn5 = _conv(c, c)
        # Names of BasicSR: l1 to l3 are three convolutions in a row, not levels of the pyramid.
        self.spatial_attn_l1 = _conv(c, c, 1)
        self.spatial_attn_l2 = _conv(2 * c, c)
        self.spatial_attn_l3 = _conv(c, c)
        self.spatial_attn_add1 = _conv(c, c, 1)
        self.spatial_attn_add2 = _conv(c, c, 1)

    def forward(self, aligned: list[Tensor]) -> Tensor:
        """Fuse the aligned features of a window.

        Args:
            aligned: Features of T frames, (B, C, h, w) each. This call empties the list, so that
                without gradients the tensors are freed before the attention is computed.

        Returns:
            Fused features, (B, C, h, w).
        """
        # (B, T·C, h, w)
        x = torch.cat(self._weight_by_similarity(aligned), 1)
        aligned.clear()
        # Eq. 7: fusion.
        feat = _lrelu(self.feat_fusion(x))
        attn = _lrelu(self.spatial_attn1(x))
        # Free the widest tensor before the attention is computed.
        del x

        # Spatial attention over three sizes. At half size, (B, C, h/2, w/2):
        attn = _lrelu(self.spatial_attn2(_pool(attn)))
        # At quarter size, (B, C, h/4, w/4), enlarged and added at half size:
        coarser = _lrelu(self.spatial_attn_l1(attn))
        coarser = _lrelu(self.spatial_attn_l2(_pool(coarser)))
        coarser = enlarge(_lrelu(self.spatial_attn_l3(coarser)), 2)
        attn = _lrelu(self.spatial_attn3(attn)).add(coarser)
        # Back at full size, (B, C, h, w):
        attn = _lrelu(self.spatial_attn4(attn))
        attn = self.spatial_attn5(enlarge(attn, 2))
        shift = _lrelu(self.spatial_attn_add1(attn))
        shift = self.spatial_attn_add2(shift)
        # At initialization attn ≈ 0 and its sigmoid ≈ 0.5; the factor 2 makes the gain ≈ 1.
        return (feat * attn.sigmoid()).mul_(2).add_(shift)

    def _weight_by_similarity(self, aligned: list[Tensor]) -> list[Tensor]:
        """Weight each frame, pixel by pixel, by its similarity to the middle one (Eqs. 5 and 6)."""
        middle_embedding = self.temporal_attn1(aligned[len(aligned) // 2])
        weighted: list[Tensor] = []
        for feat in aligned:
            # Eq. 5: sigmoid of the inner product over the channels, (B, 1, h, w).
            weight = (self.temporal_attn2(feat) * middle_embedding).sum(1, keepdim=True).sigmoid()
            # Eq. 6: weighting.
            weighted.append(feat * weight)
        return weighted


def _pool(x: Tensor) -> Tensor:
    """Pool to half size, maxima and means concatenated: (B, C, h, w) → (B, 2C, h/2, w/2)."""
    maxima = functional.max_pool2d(x, 3, stride=2, padding=1)
    # The zeros of the padding count in the means, as in the published code.
    means = functional.avg_pool2d(x, 3, stride=2, padding=1)
    return torch.cat([maxima, means], 1)


class PredeblurModule(nn.Module):
    """Deblur a frame in feature space, over a pyramid of three levels (Sec. 3.1).

    Args:
        channels: Number of channels of the features.
        strided: Reduce the features to a quarter of the frame's height and width first, for frames
            that have the output size.
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
        """Compute deblurred features: (B, 3, H, W) → (B, C, h, w), h = H, or H/4 if strided."""
        l1 = _lrelu(self.conv_first(frame))
        if self.strided:
            l1 = _lrelu(self.stride_conv_hr1(l1))
            l1 = _lrelu(self.stride_conv_hr2(l1))

        # Down the pyramid.
        l2 = _lrelu(self.stride_conv_l2(l1))
        l3 = _lrelu(self.stride_conv_l3(l2))
        # Up again: each level adds the enlarged features of the coarser level.
        l2 = self.resblock_l2_1(l2) + enlarge(self.resblock_l3(l3), 2)
        l2 = enlarge(self.resblock_l2_2(l2), 2)
        for i, block in enumerate(self.resblock_l1):
            # As in the published code, L2 is added before the third of the five blocks.
            if i == 2:
                l1 = l1 + l2
            l1 = block(l1)
        return l1


class EDVRFeatureExtractor(nn.Module):
    """EDVR without the reconstruction: from the frames of a window to fused features.

    `encode` computes the part that depends only on one frame, `fuse` the part that depends on the
    window. `EDVR` and `IconVSR` use it.

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
            # Follows the predeblur module, without an activation.
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

    def encode(self, frame: Tensor) -> Encoding:
        """Compute the features that depend only on one frame.

        Args:
            frame: Low-quality frame, (B, 3, H, W); H and W are multiples of 4, or of 16 if the
                predeblur module is strided.

        Returns:
            Six tensors: the pyramid at L1, L2 and L3, (B, C, h, w), (B, C, h/2, w/2) and
            (B, C, h/4, w/4), then the result of `PCDAlignment.project_neighbor` in these shapes.
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

    def fuse(self, window: Sequence[Encoding]) -> Tensor:
        """Align all frames of a window with the middle one, and fuse them.

        Args:
            window: Results of `encode` for T frames.

        Returns:
            Features of the middle frame, (B, C, h, w).
        """
        num_levels = len(_LEVELS)
        middle_pyramid = window[len(window) // 2][:num_levels]
        middle_projections = self.pcd_align.project_middle(middle_pyramid)

        # As in the paper, the middle frame is aligned with itself like a neighbor.
        aligned: list[Tensor] = []
        for encoding in window:
            pyramid = encoding[:num_levels]
            neighbor_projections = encoding[num_levels:]
            aligned.append(self.pcd_align(pyramid, neighbor_projections, middle_projections))

        if isinstance(self.fusion, TSAFusion):
            return self.fusion(aligned)
        return self.fusion(torch.cat(aligned, 1))

    def forward(self, lq: Tensor) -> Tensor:
        """Compute the features of the middle frame: (B, T, 3, H, W) → (B, C, h, w)."""
        window = [self.encode(frame) for frame in lq.unbind(1)]
        return self.fuse(window)


class EDVR(nn.Module):
    """Super-resolution ×4, with or without deblurring, or deblurring at the same size.

    It restores the middle frame of a window; see the drawing at the top of this file.

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

    def encode(self, frame: Tensor) -> Encoding:
        """Compute the part that depends only on one frame, to share it between windows.

        Args:
            frame: Low-quality frame, (B, 3, H, W); H and W are multiples of 4, or of 16 if the
                predeblur module is strided.

        Returns:
            Seven tensors: the frame, then the six of `EDVRFeatureExtractor.encode`.
        """
        return frame, *self.extractor.encode(frame)

    def fuse(self, window: Sequence[Encoding]) -> Tensor:
        """Restore the middle frame of a window.

        Args:
            window: Results of `encode` for T frames.

        Returns:
            Restored frame, (B, 3, sH, sW), without a time axis: it is always one frame.
        """
        # Without the frame, an encoding is that of the extractor.
        feat = self.extractor.fuse([encoding[1:] for encoding in window])
        feat = self.reconstruction(feat)
        base = window[len(window) // 2][0]
        if self.config.scale != 1:
            base = enlarge(base, self.config.scale)
        convs = (self.upconv1, self.upconv2, self.conv_hr, self.conv_last)
        return shuffle_x4(feat, base, convs)

    def forward(self, lq: Tensor) -> Tensor:
        """Restore the middle frame: (B, T, 3, H, W) → (B, 1, 3, sH, sW)."""
        window = [self.encode(frame) for frame in lq.unbind(1)]
        return self.fuse(window).unsqueeze(1)


# Our names are those of BasicSR, with `extractor.` before those of the extractor. The rules of a
# table map other names to those of BasicSR; they apply in order, each to the result of the last.
# MMagic (formerly MMEditing).
_MMAGIC: tuple[Rule, ...] = (
    (r"\.conv\.(weight|bias)$", r".\1"),
    (r"^feat_l([23])_conv([12])\.", r"conv_l\1_\2."),
    (r"^pcd_alignment\.", "pcd_align."),
    (r"^upsample([12])\.upsample_conv\.", r"upconv\1."),
)
# mmsr, the code of the authors.
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
    # BasicSR swapped the two names.
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
# From the names of BasicSR to ours: all modules but those of the reconstruction belong to the
# extractor.
_EXTRACTOR: tuple[Rule, ...] = (
    (r"^(?!(reconstruction|upconv1|upconv2|conv_hr|conv_last)\.)", "extractor."),
)
# Enough to tell a complete network from a feature extractor.
_REQUIRED_CONVS = ("pcd_align.cas_dcnpack.conv_offset", "conv_l3_2", "upconv2", "conv_last")
# For each kind of fusion, the convolution that fuses the frames; its weight is (C, T·C, 1, 1).
_FUSION_WEIGHT_NAMES: dict[FusionKind, str] = {
    "tsa": "fusion.feat_fusion.weight",
    "conv": "fusion.weight",
}


def _translate(state: State) -> dict[str, Tensor] | None:
    """Rename the tensors of a file of BasicSR, MMagic or the authors.

    Returns:
        The renamed state dict, or None if it belongs to another architecture.
    """
    if "extractor.pcd_align.cas_dcnpack.weight" in state:
        return dict(state)
    if "pcd_align.cas_dcnpack.weight" in state:
        # BasicSR and the authors share this name; only the authors have HRconv.
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


def _find_fusion(state: State, *, prefix: str) -> tuple[FusionKind, Tensor] | None:
    """Find the kind of fusion and the weight of its convolution, (C, T·C, 1, 1).

    Args:
        state: Tensors by name.
        prefix: Prefix of the extractor's names.

    Returns:
        The kind and the weight, or None if no fusion has a weight of a usable shape.
    """
    for kind, name in _FUSION_WEIGHT_NAMES.items():
        weight = state.get(prefix + name)
        if weight is None or weight.ndim != 4:
            continue
        channels, in_channels = weight.shape[:2]
        # Guards the division by the number of channels in `_infer`.
        if 0 < channels <= in_channels:
            return kind, weight
    return None


def _infer(state: State) -> EDVRConfig:
    """Infer the configuration from names and shapes.

    Raises:
        ValueError: The weight that fuses the frames is missing or has another shape.
    """
    match = _find_fusion(state, prefix="extractor.")
    if match is None:
        # A damaged file with our own names: `_translate` has checked only those of other code.
        names = " or ".join(f"extractor.{name}" for name in _FUSION_WEIGHT_NAMES.values())
        raise ValueError(f"it lacks the fusion weight {names}, (C, num_frames·C, 1, 1)")
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


def _infer_predeblur(state: State) -> PredeblurKind:
    if "extractor.predeblur.conv_first.weight" not in state:
        return "none"
    if "extractor.predeblur.stride_conv_hr1.weight" in state:
        return "strided"
    return "plain"


def _contract(config: EDVRConfig) -> Contract:
    """Return how the engine runs the network; it counts in pixels of lq, not of the features."""
    # Input pixels per feature pixel: a strided predeblur module reduces by 4.
    feature_px = 4 if config.predeblur == "strided" else 1
    # The pyramid halves the features twice.
    size_multiple = 4 * feature_px
    return Contract(
        scale=config.scale,
        temporal=Temporal("window", radius=config.num_frames // 2),
        halo_px=_HALO_PX * feature_px,
        size_multiple=size_multiple,
        min_size_px=size_multiple,
        encodes=True,
        precisions=("fp32", "bf16"),
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
