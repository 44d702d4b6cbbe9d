"""TDAN: neighbors aligned to the middle frame by deformable convolutions, without estimating motion.

    encode, of each frame (B, 3, H, W), less 0.5
      conv, ReLU ── residual blocks ── feat (B, C, H, W)
    fuse, of 2r + 1 frames
      x = conv [feat of the middle frame, feat of a neighbor]
      x = deform_2(deform_1(x))                    each with offsets from its own input
      x = deform_4(deform_3(feat of the neighbor, offsets from x)) ── conv ── aligned frame (B, 3, H, W)
      the aligned neighbors and the middle frame, 3·(2r + 1) channels ── conv, ReLU ── residual blocks
        ── conv, shuffle ×2 ── conv, shuffle ×2 ── conv ── sr (B, 1, 3, 4H, 4W), and 0.5

Published: 64 channels, 5 + 10 blocks, 5 frames (2.0 M parameters), by the authors and by MMagic. The authors' weights
were trained with the original deformable convolution, which differs from today's within a pixel of the border; names
tell the two releases apart, shapes do not.

Source: Tian et al., "TDAN: Temporally-Deformable Alignment Network for Video Super-Resolution", CVPR 2020, Secs. 3.2 to
3.4.
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
from tubelet.models.architecture import Architecture, Contract
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

Features = tuple[Tensor, ...]
"""What is known of one frame."""

_SCALE = 4
_MEAN = 0.5  # of the frames: what both releases subtract from them and add to the result
_HALO_PX = 32  # beyond it, results of random weights move by less than 1e-5 of their deviation
_OFFSETS = 18  # channels of a group of plain offsets: nine taps, dy and dx
_ALIGN: dict[Literal["authors", "mmagic"], str] = {
    "authors": "alignment",
    "mmagic": "alignment_mmagic",
}
"""Names of the aligning part: weights of one release cannot pass for those of the other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TDANConfig:
    """Shape of a `TDAN`."""

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
    """Residual blocks after alignment."""
    deform: Literal["plain", "modulated"] = "plain"
    """Deformable convolutions: offsets alone; or weighted samples and a bias as well (not in the third)."""
    release: Literal["authors", "mmagic"] = "authors"
    """Whose names the parameters have."""
    border: Border = "original"
    """How deformable convolutions read beyond the border; the authors' weights expect "original", MMagic's "zeros"."""

    def __post_init__(self) -> None:
        if self.channels < 1 or self.num_frames < 1 or self.num_frames % 2 == 0:
            raise ConfigError(f"{self} is out of range: channels ≥ 1, num_frames odd")
        if self.groups < 1 or self.channels % self.groups:
            raise ConfigError(f"groups={self.groups} must divide channels={self.channels}")
        if self.num_extract_blocks < 0 or self.num_reconstruct_blocks < 0:
            raise ConfigError(
                f"{self} is out of range: num_extract_blocks, num_reconstruct_blocks ≥ 0"
            )
        if self.deform not in ("plain", "modulated") or self.release not in _ALIGN:
            raise ConfigError(
                f"{self} is unknown: deform plain or modulated; release authors or mmagic"
            )
        if self.border not in ("zeros", "original"):
            raise ConfigError(f"border={self.border!r} must be zeros or original")


class TemporalAlignment(nn.Module):
    """Turn the features of a neighbor into its frame, aligned to the middle one (Sec. 3.3).

    Args:
        config: shape of the network.
    """

    def __init__(self, config: TDANConfig) -> None:
        super().__init__()
        c, modulated = config.channels, config.deform == "modulated"

        def deform(modulation: Literal["sigmoid", "none"]) -> ModulatedDeformConv:
            return ModulatedDeformConv(
                c,
                c,
                groups=config.groups,
                modulation=modulation,
                bias=modulated,
                border=config.border,
            )

        self.merge = nn.Conv2d(2 * c, c, 3, padding=1)
        self.deform_1 = deform("sigmoid" if modulated else "none")
        self.deform_2 = deform("sigmoid" if modulated else "none")
        self.deform_3 = deform("none")
        self.deform_4 = deform("sigmoid" if modulated else "none")
        self.to_rgb = nn.Conv2d(c, 3, 3, padding=1)

    def project_middle(self, feat: Tensor) -> Tensor:
        """Compute the middle frame's part of `merge`, which is the same for all neighbors: (B, C, H, W)."""
        return functional.conv2d(
            feat, self.merge.weight[:, : feat.shape[1]], self.merge.bias, padding=1
        )

    def project_neighbor(self, feat: Tensor) -> Tensor:
        """Compute a neighbor's part of `merge`, which is the same in all windows: (B, C, H, W)."""
        return functional.conv2d(feat, self.merge.weight[:, feat.shape[1] :], padding=1)

    def forward(self, feat: Tensor, projected: Tensor, middle: Tensor) -> Tensor:
        """Align one neighbor.

        Args:
            feat: (B, C, H, W), of the neighbor.
            projected: of `project_neighbor`.
            middle: of `project_middle`.

        Returns:
            (B, 3, H, W), less the mean.
        """
        x = projected + middle
        x = self.deform_1(x, x)
        x = self.deform_2(x, x)
        x = self.deform_3(feat, x)
        return self.to_rgb(self.deform_4(x, x))


class TDAN(nn.Module):
    """Super-resolution ×4 from a window of frames; see the drawing on top of this file.

    Args:
        config: shape of the network.
    """

    def __init__(self, config: TDANConfig) -> None:
        super().__init__()
        self.config = config
        c = config.channels
        self.conv_first = nn.Conv2d(3, c, 3, padding=1)
        self.feature_extraction = nn.Sequential(
            *(ResidualBlock(c) for _ in range(config.num_extract_blocks))
        )
        self.add_module(_ALIGN[config.release], TemporalAlignment(config))
        self.conv_fuse = nn.Conv2d(3 * config.num_frames, c, 3, padding=1)
        self.reconstruction = nn.Sequential(
            *(ResidualBlock(c) for _ in range(config.num_reconstruct_blocks))
        )
        self.upconv1 = nn.Conv2d(c, 4 * c, 3, padding=1)
        self.upconv2 = nn.Conv2d(c, 4 * c, 3, padding=1)
        self.conv_last = nn.Conv2d(c, 3, 3, padding=1, bias=False)

    def encode(self, frame: Tensor) -> Features:
        """Compute what depends on one frame alone: (B, 3, H, W) to what `fuse` and `align` take of it."""
        frame = frame - _MEAN
        feat = self.feature_extraction(functional.relu_(self.conv_first(frame)))
        return frame, feat, self._alignment().project_neighbor(feat)

    def align(self, window: Sequence[Features]) -> Tensor:
        """Align the frames of a window to the middle one: `encode` of each to (B, 2r + 1, 3, H, W), RGB."""
        return torch.stack(self._align(window), 1).add_(_MEAN)

    def fuse(self, window: Sequence[Features]) -> Tensor:
        """Restore the middle frame of a window: `encode` of each of its 2r + 1 frames → (B, 3, 4H, 4W)."""
        x = functional.relu_(self.conv_fuse(torch.cat(self._align(window), 1)))
        x = self.reconstruction(x)
        x = functional.pixel_shuffle(self.upconv1(x), 2)
        x = functional.pixel_shuffle(self.upconv2(x), 2)
        return self.conv_last(x).add_(_MEAN)

    def forward(self, lq: Tensor) -> Tensor:
        """Restore the middle frame: (B, 2r + 1, 3, H, W) → (B, 1, 3, 4H, 4W)."""
        return self.fuse([self.encode(frame) for frame in lq.unbind(1)]).unsqueeze(1)

    def _align(self, window: Sequence[Features]) -> list[Tensor]:
        """Align frames less their mean; the middle one is as it was."""
        align, half = self._alignment(), len(window) // 2
        frame, feat, _ = window[half]
        middle = align.project_middle(feat)
        return [
            frame if t == half else align(*features[1:], middle)
            for t, features in enumerate(window)
        ]

    def _alignment(self) -> TemporalAlignment:
        align = self.get_submodule(_ALIGN[self.config.release])
        assert isinstance(align, TemporalAlignment)
        return align


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
    """Map the names of the authors and of MMagic to ours; None where they are of another network."""
    own = _rename(state)
    align = _ALIGN[_release(own)]
    marks = [
        f"{align}.{name}" for name in ("merge", "deform_1.conv_offset", "deform_3.conv_offset")
    ]
    return own if has_convolutions(own, "conv_fuse", *marks) else None


def _rename(state: State) -> dict[str, Tensor]:
    if any(f"{name}.deform_3.weight" in state for name in _ALIGN.values()):
        return dict(state)
    if "deconv_3.weight" in state:
        return rename(state, _AUTHORS)
    return rename(state, _MMAGIC) if "align_1.conv_offset.weight" in state else {}


def _release(state: State) -> Literal["authors", "mmagic"]:
    return "mmagic" if _ALIGN["mmagic"] in first_words(state) else "authors"


def _infer(state: State) -> TDANConfig:
    release = _release(state)
    align, fuse = _ALIGN[release], state["conv_fuse.weight"]
    plain = state[f"{align}.deform_3.conv_offset.weight"].shape[0]
    return TDANConfig(
        channels=fuse.shape[0],
        num_frames=fuse.shape[1] // 3,
        groups=plain // _OFFSETS,
        num_extract_blocks=count_names(state, r"feature_extraction\..*\.conv1\.weight"),
        num_reconstruct_blocks=count_names(state, r"reconstruction\..*\.conv1\.weight"),
        deform="plain"
        if state[f"{align}.deform_1.conv_offset.weight"].shape[0] == plain
        else "modulated",
        release=release,
        border="original" if release == "authors" else "zeros",
    )


def _contract(config: TDANConfig) -> Contract:
    return Contract(
        scale=_SCALE,
        temporal=Temporal("window", radius=config.num_frames // 2),
        halo_px=_HALO_PX,
        encodes=True,
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
