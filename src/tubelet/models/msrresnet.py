"""MSRResNet: SRResNet without batch normalization; BasicSR's baseline that is trained for PSNR.

    lq (B, T, 3, H, W), frame by frame
      ├ conv_first ─ act ─ residual block × num_blocks                               (B·T, C, H, W)
      │   ─ (conv ─ pixel shuffle ─ act) up to ×s ─ conv_hr ─ act ─ conv_last ─┐
      └ bilinear ×s ───────────────────────────────────────────────────────────┴(+) sr
                                                                             (B, T, 3, sH, sW)
    residual block    x + conv(ReLU(conv(x)))
    act               LeakyReLU 0.1

Published configuration: 64 channels, 16 blocks, ×2, ×3, ×4.

Source: Ledig et al., Photo-Realistic Single Image Super-Resolution Using a GAN, CVPR 2017,
Section 2.1.1; without batch normalization as in Wang et al., ESRGAN, ECCVW 2018, Section 3.1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from tubelet.layers.convolution import ConvAct, LeakyReLU, ShuffleConv
from tubelet.layers.residual import ResidualBlock
from tubelet.layers.upsampling import enlarge
from tubelet.models.architecture import Architecture, Contract
from tubelet.models.config_checks import check_choice, check_min
from tubelet.models.state_dict import State, count_names, input_channels, shape_of
from tubelet.types import Temporal

__all__ = ["ARCHITECTURE", "MSRResNet", "MSRResNetConfig"]

_UPSAMPLE_FACTORS: dict[int, tuple[int, ...]] = {
    2: (2,),
    3: (3,),
    4: (2, 2),
}
"""Factors of the successive pixel shuffles of each scale."""
_SLOPE = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class MSRResNetConfig:
    """Configuration of an `MSRResNet`."""

    PUBLISHED_NAMES: ClassVar[Mapping[str, str]] = {
        "num_feat": "channels",
        "num_block": "num_blocks",
    }

    scale: int = 4
    """Upscaling factor: 2, 3 or 4."""
    channels: int = 64
    """Width of the features."""
    num_blocks: int = 16
    """Number of residual blocks."""

    def __post_init__(self) -> None:
        check_choice(self, "scale", _UPSAMPLE_FACTORS)
        check_min(self, "channels", 1)
        check_min(self, "num_blocks", 0)


class MSRResNet(nn.Module):
    """MSRResNet, applied to each frame independently; see the drawing at the top of this file.

    Args:
        config: Configuration of the network.
    """

    def __init__(self, config: MSRResNetConfig) -> None:
        super().__init__()
        self.config = config
        c = config.channels
        self.conv_first = ConvAct(3, c, act=LeakyReLU(_SLOPE))
        self.body = nn.Sequential()
        for _ in range(config.num_blocks):
            self.body.append(ResidualBlock(c))
        for i, factor in enumerate(_UPSAMPLE_FACTORS[config.scale], 1):
            upconv = ShuffleConv(c, c, act=LeakyReLU(_SLOPE), factor=factor)
            self.add_module(f"upconv{i}", upconv)
        self.conv_hr = ConvAct(c, c, act=LeakyReLU(_SLOPE))
        self.conv_last = nn.Conv2d(c, 3, 3, padding=1)

    def forward(self, lq: Tensor) -> Tensor:
        """Upscale a clip.

        Args:
            lq: Low-quality clip, (B, T, 3, H, W), in [0, 1].

        Returns:
            (B, T, 3, sH, sW); values can exceed [0, 1].
        """
        frames = lq.flatten(0, 1)  # (B·T, 3, H, W)
        x = self.body(self.conv_first(frames))
        for i in range(1, 1 + len(_UPSAMPLE_FACTORS[self.config.scale])):
            upconv = self.get_submodule(f"upconv{i}")
            x = upconv(x)
        x = self.conv_last(self.conv_hr(x))  # (B·T, 3, sH, sW)
        skip = enlarge(frames, self.config.scale)
        return (x + skip).unflatten(0, lq.shape[:2])


def _translate(state: State) -> dict[str, Tensor] | None:
    """Take our names, which are those of BasicSR; None for the tensors of another network."""
    if not state.keys() >= {"conv_hr.weight", "body.0.conv1.weight"}:
        return None
    if input_channels(state, "conv_first") != 3:
        return None
    channels = state["conv_first.weight"].shape[0]
    if shape_of(state, "conv_last.weight") != (3, channels, 3, 3):
        return None
    if _infer_scale(state) not in _UPSAMPLE_FACTORS:
        return None
    return dict(state)


def _infer_scale(state: State) -> int:
    """Infer the scale from the convolutions before the pixel shuffles; 0 if they fit no scale."""
    ratios: list[float] = []
    for name in ("upconv1.weight", "upconv2.weight"):
        shape = shape_of(state, name)
        if len(shape) == 4 and shape[1] > 0:
            ratios.append(shape[0] / shape[1])
    # A shuffle by a factor needs factor² times the channels.
    for scale, factors in _UPSAMPLE_FACTORS.items():
        if ratios == [factor**2 for factor in factors]:
            return scale
    return 0


def _infer(state: State) -> MSRResNetConfig:
    return MSRResNetConfig(
        scale=_infer_scale(state),
        channels=state["conv_first.weight"].shape[0],
        num_blocks=count_names(state, r"body\.\d+\.conv1\.weight"),
    )


def _contract(config: MSRResNetConfig) -> Contract:
    # Two convolutions a block, conv_first, the first of the upsampling, and at most a pixel after
    # it.
    reach_px = 2 * config.num_blocks + 3
    return Contract(
        scale=config.scale,
        temporal=Temporal("frame"),
        halo_px=reach_px,
        precisions=("fp32", "bf16"),
    )


ARCHITECTURE = Architecture(
    name=MSRResNet.__name__,
    config=MSRResNetConfig,
    build=MSRResNet,
    translate=_translate,
    infer=_infer,
    contract=_contract,
    source="https://arxiv.org/abs/1609.04802",
)
