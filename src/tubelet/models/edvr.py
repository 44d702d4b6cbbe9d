"""EDVR: neighbors aligned to the middle frame by a pyramid of deformable convolutions, fused by attention.

    encode, of each frame (B, 3, H, W)
      conv (or predeblur) ── residual blocks ── L1 (B, C, H, W) ── ½ ── L2 ── ½ ── L3         the pyramid
    fuse, of 2r + 1 pyramids
      PCD   for each neighbor, L3 → L1: offsets from [neighbor, middle] and from the level below; deformable
            convolution of the neighbor; once more at L1 (cascade) ── aligned (B, C, H, W)
      TSA   aligned · σ⟨aligned, middle⟩ ── 1×1 ── · 2σ(attention) + attention                 (or one 1×1 convolution)
      residual blocks ── conv, shuffle ×2 ── conv, shuffle ×2 ── conv ── conv ──(+)── sr (B, 1, 3, 4H, 4W)
      middle frame ─────────────────────────────────────────── bilinear ×4 ─────┘

Published: M, 64 channels, 5 + 10 blocks (3.3 M parameters); L, 128 channels, 5 + 40 blocks (20.6 M); 5 frames for
REDS, 7 for Vimeo-90K; with and without TSA; for deblurring with a predeblur module, also from frames of the output's
size, which it first makes four times smaller.

Source: Wang et al., "EDVR: Video Restoration with Enhanced Deformable Convolutional Networks", CVPRW 2019, Secs. 3.1 to
3.3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from tubelet.errors import ConfigError
from tubelet.layers.deform import ModulatedDeformConv
from tubelet.layers.residual import ResidualBlock
from tubelet.layers.upsampling import enlarge, shuffle_x4, shuffle_x4_convs
from tubelet.models.architecture import Architecture, Contract
from tubelet.models.state_dict import Rule, State, count_names, has_convolutions, rename, zero_based
from tubelet.types import Temporal

__all__ = ["ARCHITECTURE", "EDVR", "EDVRConfig", "EDVRFeatureExtractor"]

Features = tuple[Tensor, ...]
"""What is known of one frame, level by level."""

_SCALE = 4
_HR_CHANNELS = 64  # of the last convolutions, whatever the width of the trunks
_TAPS = 9  # of a deformable convolution, each with two offsets and a weight
_FUSIONS: dict[Literal["tsa", "conv"], str] = {
    "tsa": "fusion.feat_fusion.weight",
    "conv": "fusion.weight",
}
_LEVELS = ("l1", "l2", "l3")  # 1, ½ and ¼ of the size
_HALO_PX = 48  # of features; beyond it, results of random weights move by less than 1e-4 of their deviation


@dataclass(frozen=True, slots=True, kw_only=True)
class EDVRConfig:
    """Shape of an `EDVR`."""

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
    """Width of the features."""
    num_frames: int = 5
    """Frames of the window, the middle one included; odd."""
    groups: int = 8
    """Groups of channels of the deformable convolutions, each with offsets of its own."""
    num_extract_blocks: int = 5
    """Residual blocks of a frame, before alignment."""
    num_reconstruct_blocks: int = 10
    """Residual blocks after fusion."""
    fusion: Literal["tsa", "conv"] = "tsa"
    """Attention over time and space, or one convolution."""
    predeblur: Literal["none", "plain", "strided"] = "none"
    """Before alignment: nothing; a deblurring pyramid; the same for frames of the output's size."""

    def __post_init__(self) -> None:
        if self.channels < 1 or self.num_frames < 1 or self.num_frames % 2 == 0:
            raise ConfigError(f"{self} is out of range: channels ≥ 1, num_frames odd")
        if self.groups < 1 or self.channels % self.groups:
            raise ConfigError(f"groups={self.groups} must divide channels={self.channels}")
        if self.num_extract_blocks < 0 or self.num_reconstruct_blocks < 0:
            raise ConfigError(
                f"{self} is out of range: num_extract_blocks, num_reconstruct_blocks ≥ 0"
            )
        if self.fusion not in ("tsa", "conv") or self.predeblur not in ("none", "plain", "strided"):
            raise ConfigError(
                f"{self} is unknown: fusion tsa or conv; predeblur none, plain or strided"
            )

    @property
    def scale(self) -> int:
        """Factor of the output size."""
        return 1 if self.predeblur == "strided" else _SCALE


def _conv(in_channels: int, out_channels: int, kernel_px: int = 3, *, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, kernel_px, stride=stride, padding=kernel_px // 2)


def _blocks(channels: int, count: int) -> nn.Sequential:
    return nn.Sequential(*(ResidualBlock(channels) for _ in range(count)))


def _lrelu(x: Tensor) -> Tensor:
    """Cut negative values to a tenth, in place: `x` is a convolution's own output."""
    return functional.leaky_relu_(x, 0.1)


def _convolve_first(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """Convolve what stands first in the input of `conv`, [x, y]: its part of the sum."""
    return functional.conv2d(x, conv.weight[:, : x.shape[1]], padding=1)


def _convolve_second(conv: nn.Conv2d, y: Tensor) -> Tensor:
    """Convolve what stands second in the input of `conv`, [x, y]: its part of the sum, with the bias."""
    return functional.conv2d(y, conv.weight[:, -y.shape[1] :], conv.bias, padding=1)


class PCDAlignment(nn.Module):
    """Align the features of a neighbor to those of the middle frame (Sec. 3.2, "PCD").

    A convolution of [neighbor, middle] is the sum of one of each. The neighbor's does not depend on the window, and
    the middle's is the same for all neighbors: each is computed once.

    Args:
        channels: of the features.
        groups: of the deformable convolutions.
    """

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        c = channels
        self.offset_conv1 = nn.ModuleDict({level: _conv(2 * c, c) for level in _LEVELS})
        self.offset_conv2 = nn.ModuleDict(
            {level: _conv(c if level == "l3" else 2 * c, c) for level in _LEVELS}
        )
        self.offset_conv3 = nn.ModuleDict({level: _conv(c, c) for level in _LEVELS[:2]})
        self.dcn_pack = nn.ModuleDict(
            {level: ModulatedDeformConv(c, c, groups=groups) for level in _LEVELS}
        )
        self.feat_conv = nn.ModuleDict({level: _conv(2 * c, c) for level in _LEVELS[:2]})
        self.cas_offset_conv1 = _conv(2 * c, c)
        self.cas_offset_conv2 = _conv(c, c)
        self.cas_dcnpack = ModulatedDeformConv(c, c, groups=groups)

    def project_neighbor(self, pyramid: Features) -> Features:
        """Compute a frame's own part of the offsets at each level, for its place as a neighbor."""
        return tuple(
            _convolve_first(self._level(self.offset_conv1, i), level)
            for i, level in enumerate(pyramid)
        )

    def project_middle(self, pyramid: Features) -> Features:
        """Compute the middle frame's part of the offsets: at each level, and of the cascade."""
        parts = [
            _convolve_second(self._level(self.offset_conv1, i), level)
            for i, level in enumerate(pyramid)
        ]
        return *parts, _convolve_second(self.cas_offset_conv1, pyramid[0])

    def forward(self, neighbor: Features, projected: Features, middle: Features) -> Tensor:
        """Align one neighbor.

        Args:
            neighbor: (B, C, H, W), (B, C, H/2, W/2), (B, C, H/4, W/4).
            projected: of `project_neighbor`.
            middle: of `project_middle`.

        Returns:
            (B, C, H, W).
        """
        offset, feat = neighbor[2], neighbor[2]  # replaced at the first level
        for i in (2, 1, 0):  # Eqs. 3 and 4
            level = _LEVELS[i]
            below = offset
            offset = _lrelu(projected[i] + middle[i])
            if i == 2:
                offset = _lrelu(self.offset_conv2[level](offset))
            else:
                offset = torch.cat(
                    [offset, enlarge(below.mul(2), 2)], 1
                )  # offsets grow with the size
                offset = _lrelu(self.offset_conv3[level](_lrelu(self.offset_conv2[level](offset))))
            aligned = self.dcn_pack[level](neighbor[i], offset)
            if i == 2:
                feat = functional.leaky_relu(
                    aligned, 0.1
                )  # not in place: the operation keeps its output
            else:
                feat = self.feat_conv[level](torch.cat([aligned, enlarge(feat, 2)], 1))
                feat = _lrelu(feat) if i == 1 else feat
        offset = _lrelu(_convolve_first(self.cas_offset_conv1, feat).add_(middle[3]))
        return functional.leaky_relu(
            self.cas_dcnpack(feat, _lrelu(self.cas_offset_conv2(offset))), 0.1
        )

    @staticmethod
    def _level(convs: nn.ModuleDict, index: int) -> nn.Conv2d:
        conv = convs[_LEVELS[index]]
        assert isinstance(conv, nn.Conv2d)
        return conv


class TSAFusion(nn.Module):
    """Fuse aligned features by their likeness to the middle frame, and by place (Sec. 3.3, "TSA").

    Args:
        channels: of the features.
        num_frames: of the window.
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
        """Fuse 2r + 1 features (B, C, H, W), which leave the list, into one."""
        x = torch.cat(self._weigh(aligned), 1)  # (B, T·C, H, W)
        aligned.clear()
        feat = _lrelu(self.feat_fusion(x))
        attn = _lrelu(self.spatial_attn1(x))
        del x
        attn = _lrelu(self.spatial_attn2(_halve(attn)))
        lower = _lrelu(self.spatial_attn_l2(_halve(_lrelu(self.spatial_attn_l1(attn)))))
        lower = enlarge(_lrelu(self.spatial_attn_l3(lower)), 2)
        attn = _lrelu(self.spatial_attn3(attn)).add(lower)
        attn = self.spatial_attn5(enlarge(_lrelu(self.spatial_attn4(attn)), 2))
        shift = self.spatial_attn_add2(_lrelu(self.spatial_attn_add1(attn)))
        return (feat * attn.sigmoid()).mul_(2).add_(shift)  # 2σ starts near 1

    def _weigh(self, aligned: list[Tensor]) -> list[Tensor]:
        """Scale each frame's features, pixel by pixel, by their likeness to the middle frame's (Eqs. 5 and 6)."""
        middle = self.temporal_attn1(aligned[len(aligned) // 2])
        return [
            feat * (self.temporal_attn2(feat) * middle).sum(1, keepdim=True).sigmoid()
            for feat in aligned
        ]


def _halve(x: Tensor) -> Tensor:
    """Pool (B, C, H, W) to (B, 2C, H/2, W/2): maxima and means."""
    return torch.cat([functional.max_pool2d(x, 3, 2, 1), functional.avg_pool2d(x, 3, 2, 1)], 1)


class PredeblurModule(nn.Module):
    """Restore a blurred frame in feature space, over a pyramid of three levels (Sec. 3.1).

    Args:
        channels: of the features.
        strided: frames are of the output's size, and the features four times smaller.
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
        """Map (B, 3, H, W) to (B, C, H, W), or (B, C, H/4, W/4) where strided."""
        l1 = _lrelu(self.conv_first(frame))
        if self.strided:
            l1 = _lrelu(self.stride_conv_hr2(_lrelu(self.stride_conv_hr1(l1))))
        l2 = _lrelu(self.stride_conv_l2(l1))
        l3 = _lrelu(self.stride_conv_l3(l2))
        l2 = self.resblock_l2_1(l2) + enlarge(self.resblock_l3(l3), 2)
        l2 = enlarge(self.resblock_l2_2(l2), 2)
        for i, block in enumerate(self.resblock_l1):
            l1 = block(l1 + l2 if i == 2 else l1)
        return l1


class EDVRFeatureExtractor(nn.Module):
    """EDVR up to fused features: a frame's own part, and what a window makes of the frames' parts.

    Args:
        config: shape of the network.
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
        tsa = config.fusion == "tsa"
        self.fusion = TSAFusion(c, config.num_frames) if tsa else _conv(config.num_frames * c, c, 1)

    def encode(self, frame: Tensor) -> Features:
        """Compute what depends on one frame alone.

        Args:
            frame: (B, 3, H, W).

        Returns:
            three levels of features (B, C, H, W), (B, C, H/2, W/2), (B, C, H/4, W/4), then three of their part of the
            offsets, in the same shapes.
        """
        plain = self.config.predeblur == "none"
        l1 = _lrelu(self.conv_first(frame)) if plain else self.conv_1x1(self.predeblur(frame))
        l1 = self.feature_extraction(l1)
        l2 = _lrelu(self.conv_l2_2(_lrelu(self.conv_l2_1(l1))))
        l3 = _lrelu(self.conv_l3_2(_lrelu(self.conv_l3_1(l2))))
        return l1, l2, l3, *self.pcd_align.project_neighbor((l1, l2, l3))

    def fuse(self, window: Sequence[Features]) -> Tensor:
        """Align the frames of a window to the middle one, and fuse them: `encode` of each to (B, C, H, W)."""
        middle = self.pcd_align.project_middle(window[len(window) // 2][:3])
        aligned = [self.pcd_align(frame[:3], frame[3:], middle) for frame in window]
        return self.fusion(aligned if isinstance(self.fusion, TSAFusion) else torch.cat(aligned, 1))

    def forward(self, lq: Tensor) -> Tensor:
        """Compute the features of the middle frame: (B, T, 3, H, W) → (B, C, H, W)."""
        return self.fuse([self.encode(frame) for frame in lq.unbind(1)])


class EDVR(nn.Module):
    """Super-resolution ×4, or deblurring, from a window of frames; see the drawing on top of this file.

    Args:
        config: shape of the network.
    """

    def __init__(self, config: EDVRConfig) -> None:
        super().__init__()
        self.config = config
        c = config.channels
        self.extractor = EDVRFeatureExtractor(config)
        self.reconstruction = _blocks(c, config.num_reconstruct_blocks)
        self.upconv1, self.upconv2, self.conv_hr, self.conv_last = shuffle_x4_convs(c, _HR_CHANNELS)

    def encode(self, frame: Tensor) -> Features:
        """Compute what depends on one frame alone; it serves every window that the frame is in.

        Args:
            frame: (B, 3, H, W); H and W multiples of 4, or of 16 where the predeblur module is strided.

        Returns:
            the frame and its features, for `fuse`.
        """
        return frame, *self.extractor.encode(frame)

    def fuse(self, window: Sequence[Features]) -> Tensor:
        """Restore the middle frame of a window: `encode` of each of its 2r + 1 frames → (B, 3, sH, sW)."""
        x = self.reconstruction(self.extractor.fuse([features[1:] for features in window]))
        base = window[len(window) // 2][0]
        base = base if self.config.scale == 1 else enlarge(base, _SCALE)
        return shuffle_x4(x, base, (self.upconv1, self.upconv2, self.conv_hr, self.conv_last))

    def forward(self, lq: Tensor) -> Tensor:
        """Restore the middle frame: (B, 2r + 1, 3, H, W) → (B, 1, 3, sH, sW)."""
        return self.fuse([self.encode(frame) for frame in lq.unbind(1)]).unsqueeze(1)


_MMAGIC: tuple[Rule, ...] = (
    (r"\.conv\.(weight|bias)$", r".\1"),
    (r"^feat_l([23])_conv([12])\.", r"conv_l\1_\2."),
    (r"^pcd_alignment\.", "pcd_align."),
    (r"^upsample([12])\.upsample_conv\.", r"upconv\1."),
)
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
_EXTRACTOR: tuple[Rule, ...] = (
    (r"^(?!(reconstruction|upconv1|upconv2|conv_hr|conv_last)\.)", "extractor."),
)
"""All but what comes after the extractor."""
_MARKS = ("pcd_align.cas_dcnpack.conv_offset", "conv_l3_2", "upconv2", "conv_last")


def _translate(state: State) -> dict[str, Tensor] | None:
    """Map the names of BasicSR (ours but for the extractor's prefix), of MMagic and of the authors."""
    if "extractor.pcd_align.cas_dcnpack.weight" in state:
        return dict(state)
    if "pcd_align.cas_dcnpack.weight" in state:
        rules = _MMSR if "HRconv.weight" in state else ()
    elif "pcd_alignment.cas_dcnpack.weight" in state:
        rules = _MMAGIC
    else:
        return None
    own = rename(state, rules)
    if not has_convolutions(own, *_MARKS) or _fusion(own, "") is None:
        return None
    return rename(own, _EXTRACTOR)


def _fusion(state: State, prefix: str) -> tuple[Literal["tsa", "conv"], Tensor] | None:
    """Find how frames are fused, and the convolution (C, T·C, 1, 1) that does it."""
    for kind, name in _FUSIONS.items():
        weight = state.get(prefix + name)
        if weight is not None and weight.ndim == 4 and 0 < weight.shape[0] <= weight.shape[1]:
            return kind, weight
    return None


def _infer(state: State) -> EDVRConfig:
    found = _fusion(state, "extractor.")
    assert found is not None
    fusion, weight = found
    predeblur: Literal["none", "plain", "strided"] = "none"
    if "extractor.predeblur.conv_first.weight" in state:
        predeblur = "strided" if "extractor.predeblur.stride_conv_hr1.weight" in state else "plain"
    return EDVRConfig(
        channels=weight.shape[0],
        num_frames=weight.shape[1] // weight.shape[0],
        groups=state["extractor.pcd_align.cas_dcnpack.conv_offset.weight"].shape[0] // (3 * _TAPS),
        num_extract_blocks=count_names(state, r"extractor\.feature_extraction\..*\.conv1\.weight"),
        num_reconstruct_blocks=count_names(state, r"reconstruction\..*\.conv1\.weight"),
        fusion=fusion,
        predeblur=predeblur,
    )


def _contract(config: EDVRConfig) -> Contract:
    # The pyramid halves twice; a strided predeblur module twice more, and every pixel of its features is four of lq.
    features_px = _SCALE // config.scale
    return Contract(
        scale=config.scale,
        temporal=Temporal("window", radius=config.num_frames // 2),
        halo_px=_HALO_PX * features_px,
        size_multiple=4 * features_px,
        min_size_px=4 * features_px,
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
