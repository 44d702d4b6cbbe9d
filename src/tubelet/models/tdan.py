"""TDAN aligns neighbors with the middle frame by deformable convolutions, without optical flow.

    encode, for each frame (B, 3, H, W) minus 0.5
      conv, ReLU ── residual blocks ── feat (B, C, H, W)
    fuse, for a window of T = 2r + 1 encoded frames
      for each neighbor:
        x = merge [feat of the middle frame, feat of the neighbor]
        x = deform_2(deform_1(x))             each with offsets predicted from its own input
        x = deform_3(feat of the neighbor)    with offsets predicted from x
        x = deform_4(x) ── conv ── aligned frame (B, 3, H, W)
      the aligned neighbors and the unchanged middle frame, in order of time, 3·T channels
        ── conv, ReLU ── residual blocks ── conv, shuffle ×2 ── conv, shuffle ×2 ── conv
        ── plus 0.5 ── sr (B, 1, 3, 4H, 4W)

Unlike EDVR, each neighbor is aligned to an image, not to features, and no interpolated frame is
added to the result.

Published: 64 channels, 5 blocks before alignment and 10 after, 5 frames (2.0 M parameters), by the
authors and by MMagic. The authors' weights were trained with the original deformable convolution,
which differs from today's within a pixel of the border. The two releases differ in their names, in
the border, and in modulation (`TDANConfig.deform`).

Source: Tian et al., "TDAN: Temporally-Deformable Alignment Network for Video Super-Resolution",
CVPR 2020, Secs. 3.2 to 3.4.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from tubelet.layers.convolution import ConvAct, ShuffleConv
from tubelet.layers.deform import ModulatedDeformConv
from tubelet.layers.residual import ResidualBlock
from tubelet.layers.upsampling import run_shuffles
from tubelet.models.architecture import Architecture, Contract
from tubelet.models.config_checks import check_choice, check_divides, check_min, check_odd
from tubelet.models.state_dict import (
    Rule,
    State,
    count_names,
    first_words,
    has_convolutions,
    rename,
)
from tubelet.ops.deform import Border
from tubelet.types import Temporal

__all__ = ["ARCHITECTURE", "TDAN", "TDANConfig"]

Encoding = tuple[Tensor, ...]
"""Result of `TDAN.encode` for one frame, which all windows with this frame share.

Three tensors: the frame minus the mean, (B, 3, H, W), its features, (B, C, H, W), and what they
contribute to the alignment as a neighbor, (B, C, H, W).
"""

Release = Literal["authors", "mmagic"]

_SCALE = 4
# Both releases subtract it from the frames and add it to the result.
_MEAN = 0.5
# Measured with random weights: changing the input more than 32 px from an output pixel changes that
# pixel by less than 1e-5 of the standard deviation of the output. Trained offsets may reach
# further.
_HALO_PX = 32
# For each group, `conv_offset` without modulation predicts dy and dx for each of the 3×3 taps.
_PLAIN_OFFSET_CHANNELS = 18
# Module name of the alignment. It differs so that weights of one release cannot be loaded as those
# of the other, whose shapes can be the same.
_ALIGNMENT: dict[Release, str] = {
    "authors": "alignment",
    "mmagic": "alignment_mmagic",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TDANConfig:
    """Configuration of `TDAN`."""

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
    """Number of residual blocks after alignment."""
    deform: Literal["plain", "modulated"] = "plain"
    """Kind of the deformable convolutions. "plain" (the authors): they predict only offsets, and
    add no bias; "modulated" (MMagic): all but the third also predict a mask, which weights the
    samples, and all add a bias."""
    release: Release = "authors"
    """Release whose parameter names the network has."""
    border: Border = "original"
    """Sampling of deformable convolutions beyond the border: the authors' weights expect
    "original", those of MMagic "zeros"."""

    def __post_init__(self) -> None:
        check_min(self, "channels", 1)
        check_odd(self, "num_frames")
        check_divides(self, "groups", "channels")
        check_min(self, "num_extract_blocks", 0)
        check_min(self, "num_reconstruct_blocks", 0)
        check_choice(self, "deform", ("plain", "modulated"))
        check_choice(self, "release", ("authors", "mmagic"))
        check_choice(self, "border", ("zeros", "original"))


class TemporalAlignment(nn.Module):
    """Compute the frame of a neighbor, aligned with the middle frame, from features (Sec. 3.3).

    `ModulatedDeformConv(x, guide)` samples `x` at offsets that it predicts from `guide` itself.

    `merge` takes [middle, neighbor], concatenated over channels. Being linear, it is the sum of a
    part for each. The neighbor's part is the same in every window and is computed in `encode`; the
    middle frame's part is the same for all neighbors and is computed once for each window.

    Args:
        config: Configuration of the network.
    """

    def __init__(self, config: TDANConfig) -> None:
        super().__init__()
        c = config.channels
        is_modulated = config.deform == "modulated"

        def deform_conv(*, modulated: bool) -> ModulatedDeformConv:
            return ModulatedDeformConv(
                c,
                c,
                groups=config.groups,
                modulation="sigmoid" if modulated else "none",
                bias=is_modulated,
                border=config.border,
            )

        self.merge = nn.Conv2d(2 * c, c, 3, padding=1)
        self.deform_1 = deform_conv(modulated=is_modulated)
        self.deform_2 = deform_conv(modulated=is_modulated)
        # Both releases predict only offsets in the third.
        self.deform_3 = deform_conv(modulated=False)
        self.deform_4 = deform_conv(modulated=is_modulated)
        self.to_rgb = nn.Conv2d(c, 3, 3, padding=1)

    def project_middle(self, feat: Tensor) -> Tensor:
        """Compute what the middle frame contributes to `merge`, the same for all neighbors.

        Args:
            feat: Features of the middle frame, (B, C, H, W).

        Returns:
            Convolution with the first half of the weight, and the bias, (B, C, H, W).
        """
        weight = self.merge.weight[:, : feat.shape[1]]
        return functional.conv2d(feat, weight, self.merge.bias, padding=1)

    def project_neighbor(self, feat: Tensor) -> Tensor:
        """Compute what a frame, as a neighbor, contributes to `merge`, the same in all windows.

        Args:
            feat: Features of the neighbor, (B, C, H, W).

        Returns:
            Convolution with the second half of the weight, without the bias, (B, C, H, W).
        """
        weight = self.merge.weight[:, feat.shape[1] :]
        return functional.conv2d(feat, weight, padding=1)

    def forward(
        self,
        feat: Tensor,
        neighbor_projection: Tensor,
        middle_projection: Tensor,
    ) -> Tensor:
        """Align one neighbor with the middle frame.

        Args:
            feat: Features of the neighbor, (B, C, H, W).
            neighbor_projection: Result of `project_neighbor` for the neighbor.
            middle_projection: Result of `project_middle` for the middle frame.

        Returns:
            Aligned frame minus the mean, (B, 3, H, W).
        """
        # merge [middle, neighbor]
        x = neighbor_projection + middle_projection
        x = self.deform_1(x, x)
        x = self.deform_2(x, x)
        # Only here are the features of the neighbor itself sampled; before, x guides the offsets.
        x = self.deform_3(feat, x)
        x = self.deform_4(x, x)
        return self.to_rgb(x)


class TDAN(nn.Module):
    """Super-resolution ×4 of the middle frame of a window; see the drawing at the top of this file.

    Args:
        config: Configuration of the network.
    """

    def __init__(self, config: TDANConfig) -> None:
        super().__init__()
        self.config = config
        c = config.channels
        self.conv_first = nn.Conv2d(3, c, 3, padding=1)
        self.feature_extraction = _blocks(c, config.num_extract_blocks)
        self.add_module(_ALIGNMENT[config.release], TemporalAlignment(config))
        self.conv_fuse = nn.Conv2d(3 * config.num_frames, c, 3, padding=1)
        self.reconstruction = _blocks(c, config.num_reconstruct_blocks)
        self.upconv1 = ShuffleConv(c, c)
        self.upconv2 = ShuffleConv(c, c)
        self.conv_last = ConvAct(c, 3, bias=False)

    def encode(self, frame: Tensor) -> Encoding:
        """Compute the part that depends only on one frame, to share it between windows.

        Args:
            frame: Low-quality frame, (B, 3, H, W).

        Returns:
            Three tensors: the frame minus the mean, (B, 3, H, W), its features, (B, C, H, W), and
            the result of `TemporalAlignment.project_neighbor`, (B, C, H, W).
        """
        frame = frame - _MEAN
        feat = functional.relu_(self.conv_first(frame))
        feat = self.feature_extraction(feat)
        neighbor_projection = self._get_alignment().project_neighbor(feat)
        return frame, feat, neighbor_projection

    def align(self, window: Sequence[Encoding]) -> Tensor:
        """Align the frames of a window with the middle one.

        Args:
            window: Results of `encode` for T frames.

        Returns:
            Aligned frames, RGB, (B, T, 3, H, W); the middle one is unchanged.
        """
        return torch.stack(self._align(window), 1).add_(_MEAN)

    def fuse(self, window: Sequence[Encoding]) -> Tensor:
        """Restore the middle frame of a window.

        Args:
            window: Results of `encode` for T frames.

        Returns:
            Restored frame, (B, 3, 4H, 4W), without a time axis: it is always one frame.
        """
        # Reconstruction (Sec. 3.4) from all aligned frames, (B, 3·T, H, W).
        x = torch.cat(self._align(window), 1)
        x = functional.relu_(self.conv_fuse(x))
        x = self.reconstruction(x)
        detail = run_shuffles(x, (self.upconv1, self.upconv2), self.conv_last)
        # Under autocast the network computes in half precision, and the image is a sum in float32.
        return detail.to(window[0][0].dtype) + _MEAN

    def forward(self, lq: Tensor) -> Tensor:
        """Restore the middle frame: (B, T, 3, H, W) → (B, 1, 3, 4H, 4W)."""
        window = [self.encode(frame) for frame in lq.unbind(1)]
        return self.fuse(window).unsqueeze(1)

    def _align(self, window: Sequence[Encoding]) -> list[Tensor]:
        """Align the frames of a window: T tensors (B, 3, H, W), minus the mean."""
        alignment = self._get_alignment()
        middle_index = len(window) // 2
        _, middle_feat, _ = window[middle_index]
        middle_projection = alignment.project_middle(middle_feat)

        aligned: list[Tensor] = []
        for t, (frame, feat, neighbor_projection) in enumerate(window):
            if t == middle_index:
                aligned.append(frame)
            else:
                aligned.append(alignment(feat, neighbor_projection, middle_projection))
        return aligned

    def _get_alignment(self) -> TemporalAlignment:
        """Return the alignment, whose module name depends on the release."""
        alignment = self.get_submodule(_ALIGNMENT[self.config.release])
        assert isinstance(alignment, TemporalAlignment)
        return alignment


def _blocks(channels: int, num_blocks: int) -> nn.Sequential:
    return nn.Sequential(*(ResidualBlock(channels) for _ in range(num_blocks)))


# Rules apply in order, each to the result of the last. The authors number the alignment off2d_1 to
# off2d_3, then off2d (offsets), and dconv_1, deconv_2, deconv_3, then dconv (convolutions).
_AUTHORS: tuple[Rule, ...] = (
    (r"^residual_layer\.", "feature_extraction."),
    (r"^cr\.", "alignment.merge."),
    (r"^off2d_([123])\.", r"alignment.deform_\1.conv_offset."),
    (r"^off2d\.", "alignment.deform_4.conv_offset."),
    (r"^dconv_1\.", "alignment.deform_1."),
    (r"^deconv_([23])\.", r"alignment.deform_\1."),
    (r"^dconv\.", "alignment.deform_4."),
    (r"^recon_lr\.", "alignment.to_rgb."),
    (r"^fea_ex\.0\.", "conv_fuse."),
    (r"^recon_layer\.", "reconstruction."),
    (r"^up\.0\.0\.", "upconv1."),
    (r"^up\.0\.2\.", "upconv2."),
    (r"^up\.1\.", "conv_last."),
)
# MMagic (formerly MMEditing).
_MMAGIC: tuple[Rule, ...] = (
    (r"^feat_extract\.0\.conv\.", "conv_first."),
    (r"^feat_extract\.1\.", "feature_extraction."),
    (r"^feat_aggregate\.0\.", "alignment_mmagic.merge."),
    (r"^feat_aggregate\.([12])\.", r"alignment_mmagic.deform_\1."),
    (r"^align_1\.", "alignment_mmagic.deform_3."),
    (r"^align_2\.", "alignment_mmagic.deform_4."),
    (r"^to_rgb\.", "alignment_mmagic.to_rgb."),
    (r"^reconstruct\.0\.conv\.", "conv_fuse."),
    (r"^reconstruct\.1\.", "reconstruction."),
    (r"^reconstruct\.2\.upsample_conv\.", "upconv1."),
    (r"^reconstruct\.3\.upsample_conv\.", "upconv2."),
    (r"^reconstruct\.4\.", "conv_last."),
)


def _translate(state: State) -> dict[str, Tensor] | None:
    """Rename the tensors of a file of the authors or of MMagic.

    Returns:
        The renamed state dict, or None if it belongs to another architecture.
    """
    renamed = _rename(state)
    alignment = _ALIGNMENT[_infer_release(renamed)]
    required_convs = (
        "conv_fuse",
        f"{alignment}.merge",
        f"{alignment}.deform_1.conv_offset",
        f"{alignment}.deform_3.conv_offset",
    )
    return renamed if has_convolutions(renamed, *required_convs) else None


def _rename(state: State) -> dict[str, Tensor]:
    """Rename the tensors of any release; return an empty dict for another architecture."""
    if any(f"{name}.deform_3.weight" in state for name in _ALIGNMENT.values()):
        return dict(state)
    if "deconv_3.weight" in state:
        return rename(state, _AUTHORS)
    if "align_1.conv_offset.weight" in state:
        return rename(state, _MMAGIC)
    return {}


def _infer_release(state: State) -> Release:
    return "mmagic" if _ALIGNMENT["mmagic"] in first_words(state) else "authors"


def _infer(state: State) -> TDANConfig:
    release = _infer_release(state)
    alignment = _ALIGNMENT[release]
    # The convolution that fuses the aligned frames: (C, 3·T, 3, 3).
    channels, in_channels = state["conv_fuse.weight"].shape[:2]
    # The third deformable convolution is never modulated, so `conv_offset` predicts no masks there.
    # That of the first has as many channels only if it predicts no masks, either.
    plain_channels = state[f"{alignment}.deform_3.conv_offset.weight"].shape[0]
    is_plain = state[f"{alignment}.deform_1.conv_offset.weight"].shape[0] == plain_channels
    return TDANConfig(
        channels=channels,
        num_frames=in_channels // 3,
        groups=plain_channels // _PLAIN_OFFSET_CHANNELS,
        num_extract_blocks=count_names(state, r"feature_extraction\..*\.conv1\.weight"),
        num_reconstruct_blocks=count_names(state, r"reconstruction\..*\.conv1\.weight"),
        deform="plain" if is_plain else "modulated",
        release=release,
        border="original" if release == "authors" else "zeros",
    )


def _contract(config: TDANConfig) -> Contract:
    return Contract(
        scale=_SCALE,
        temporal=Temporal("window", radius=config.num_frames // 2),
        halo_px=_HALO_PX,
        encodes=True,
        precisions=("fp32", "bf16"),
    )


ARCHITECTURE = Architecture(
    name="TDAN",
    config=TDANConfig,
    build=TDAN,
    translate=_translate,
    infer=_infer,
    contract=_contract,
    source="https://arxiv.org/abs/1812.02898",
)
