"""FSRCNN: convolutions over shrunk features at input resolution, then a transposed convolution.

    lq (B, T, 3, H, W), frame by frame
      luma (B·T, 1, H, W)
        ─ 5×5, C channels                                          feature extraction
        ─ 1×1, S channels                                          shrinking
        ─ (3×3, S channels) × num_blocks                           mapping
        ─ 1×1, C channels                                          expanding
        ─ 9×9 transposed convolution of stride s ─ luma of sr      deconvolution
      color ─ bicubic ×s ─ color of sr                                sr (B, T, 3, sH, sW)

A PReLU follows each convolution except the last. Luma is Y of BT.601, from 16/255 to 235/255.
Checkpoints with three image channels exist too: they upscale R, G and B. Published configuration:
C = 56, S = 12, 4 mapping convolutions, luma, ×2, ×3, ×4.

Source: Dong et al., Accelerating the Super-Resolution Convolutional Neural Network, ECCV 2016,
Section 3.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from tubelet.models.architecture import Architecture, Contract
from tubelet.models.config_checks import check_choice, check_min
from tubelet.models.state_dict import State, count_names, has_convolutions, shape_of
from tubelet.ops.resize import resample
from tubelet.types import Temporal

__all__ = ["ARCHITECTURE", "FSRCNN", "FSRCNNConfig"]

# Weights of R, G and B, in [0, 1], in BT.601 luma, from 16 to 235; their sum is 219.
_BT601_WEIGHTS = (65.481, 128.553, 24.966)


@dataclass(frozen=True, slots=True, kw_only=True)
class FSRCNNConfig:
    """Configuration of an `FSRCNN`."""

    PUBLISHED_NAMES: ClassVar[Mapping[str, str]] = {
        "d": "channels",
        "s": "shrunk_channels",
        "m": "num_blocks",
    }
    FORMER_NAMES: ClassVar[Mapping[str, str]] = {
        "channels": "image_channels",
        "d": "channels",
        "s": "shrunk_channels",
        "m": "num_blocks",
    }

    scale: int = 4
    """Upscaling factor: 1 to 4. Checkpoints do not store it, as the last kernel is 9×9 for each
    scale: `infer` takes 4."""
    image_channels: Literal[1, 3] = 1
    """1: the network upscales luma, and color is bicubic; 3: the network upscales R, G and B."""
    channels: int = 56
    """Width C of the features."""
    shrunk_channels: int = 12
    """Width S of the shrunk features."""
    num_blocks: int = 4
    """Number of 3×3 convolutions between shrinking and expanding."""

    def __post_init__(self) -> None:
        check_choice(self, "scale", (1, 2, 3, 4))
        check_choice(self, "image_channels", (1, 3))
        check_min(self, "channels", 1)
        check_min(self, "shrunk_channels", 1)
        check_min(self, "num_blocks", 0)


class FSRCNN(nn.Module):
    """FSRCNN, applied to each frame independently; see the drawing at the top of this file.

    Args:
        config: Configuration of the network.
    """

    luma_of_rgb: Tensor

    def __init__(self, config: FSRCNNConfig) -> None:
        super().__init__()
        self.config = config
        colors = config.image_channels
        c = config.channels
        shrunk = config.shrunk_channels
        # Feature extraction
        self.first_part = nn.Sequential(
            nn.Conv2d(colors, c, 5, padding=2),
            nn.PReLU(c),
        )
        # Shrinking, mapping, expanding
        self.mid_part = nn.Sequential()
        self.mid_part.append(nn.Conv2d(c, shrunk, 1))
        self.mid_part.append(nn.PReLU(shrunk))
        for _ in range(config.num_blocks):
            self.mid_part.append(nn.Conv2d(shrunk, shrunk, 3, padding=1))
            self.mid_part.append(nn.PReLU(shrunk))
        self.mid_part.append(nn.Conv2d(shrunk, c, 1))
        self.mid_part.append(nn.PReLU(c))
        # Deconvolution
        self.last_part = nn.ConvTranspose2d(
            c,
            colors,
            9,
            stride=config.scale,
            padding=4,
            output_padding=config.scale - 1,
        )
        weights = torch.tensor(_BT601_WEIGHTS) / 255
        weights = weights.view(1, 3, 1, 1)
        self.register_buffer("luma_of_rgb", weights, persistent=False)

    def forward(self, lq: Tensor) -> Tensor:
        """Upscale a clip.

        Args:
            lq: Low-quality clip, (B, T, 3, H, W), in [0, 1]; or (B, T, 1, H, W), luma from 16/255
                to 235/255, if the network has one image channel.

        Returns:
            (B, T, 3 or 1, sH, sW); values can exceed [0, 1].
        """
        frames = lq.flatten(0, 1)  # (B·T, 3 or 1, H, W)
        has_bicubic_color = frames.shape[1] > self.config.image_channels
        x = self._luma(frames) if has_bicubic_color else frames
        x = self.mid_part(self.first_part(x))  # (B·T, C, H, W)
        x = self.last_part(x)  # (B·T, image_channels, sH, sW)
        if has_bicubic_color:
            # Y, Cb and Cr are linear in R, G and B: new luma with bicubic Cb and Cr is bicubic RGB
            # plus the difference of luma, times 255/219, in all three channels.
            height, width = x.shape[-2:]
            rgb = resample(frames.contiguous(), (height, width))
            x = rgb + (x - self._luma(rgb)) * (255 / 219)  # (B·T, 3, sH, sW)
        return x.unflatten(0, lq.shape[:2])

    def _luma(self, rgb: Tensor) -> Tensor:
        """Compute BT.601 luma, (B, 1, H, W) from 16/255 to 235/255, of (B, 3, H, W)."""
        return (rgb * self.luma_of_rgb).sum(1, keepdim=True) + 16 / 255


def _translate(state: State) -> dict[str, Tensor] | None:
    if not has_convolutions(state, "first_part.0", "mid_part.0", "last_part"):
        return None
    first = shape_of(state, "first_part.0.weight")
    last = shape_of(state, "last_part.weight")
    if first[1] not in (1, 3):
        return None
    if first[2:] != (5, 5) or last[2:] != (9, 9):
        return None
    if _infer_num_blocks(state) < 0:
        return None
    return dict(state)


def _infer_num_blocks(state: State) -> int:
    """Count the convolutions of `mid_part`, without the first and the last."""
    convolutions = count_names(state, r"mid_part\.\d+\.bias")
    return convolutions - 2


def _infer(state: State) -> FSRCNNConfig:
    channels, colors = state["first_part.0.weight"].shape[:2]
    return FSRCNNConfig(
        image_channels=1 if colors == 1 else 3,
        channels=channels,
        shrunk_channels=state["mid_part.0.weight"].shape[0],
        num_blocks=_infer_num_blocks(state),
    )


def _contract(config: FSRCNNConfig) -> Contract:
    # The 3×3 convolutions, the 5×5 one, and 4 output pixels of the 9×9 one.
    reach_px = config.num_blocks + 2 + math.ceil(4 / config.scale)
    return Contract(
        scale=config.scale,
        temporal=Temporal("frame"),
        halo_px=reach_px,
    )


ARCHITECTURE = Architecture(
    name=FSRCNN.__name__,
    config=FSRCNNConfig,
    build=FSRCNN,
    translate=_translate,
    infer=_infer,
    contract=_contract,
    source="https://arxiv.org/abs/1608.00367",
)
