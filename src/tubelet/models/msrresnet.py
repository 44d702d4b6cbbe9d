"""MSRResNet: SRResNet without batch normalization; BasicSR's baseline that is trained for PSNR.

    lq (B, T, 3, H, W), frame by frame
      ├ conv_first ─ LeakyReLU ─ (conv ─ ReLU ─ conv, + skip) × num_blocks                        (B·T, C, H, W)
      │   ─ (conv ─ pixel shuffle ─ LeakyReLU) up to ×s ─ conv_hr ─ LeakyReLU ─ conv_last ─┐
      └ bilinear ×s ───────────────────────────────────────────────────────────────────────┴ sr (B, T, 3, sH, sW)

Published configuration: 64 features, 16 blocks, ×2, ×3, ×4.

Source: Ledig et al., Photo-Realistic Single Image Super-Resolution Using a GAN, CVPR 2017, Section 2.1.1; as changed in
Wang et al., ESRGAN, ECCVW 2018, Section 3.1 (no batch normalization).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional

from tubelet.errors import ConfigError
from tubelet.layers.convolution import ConvAct, LeakyReLU
from tubelet.layers.residual import ResidualBlock
from tubelet.models.architecture import Architecture, Contract
from tubelet.models.state_dict import State, count_names, shape_of
from tubelet.types import Temporal

__all__ = ["ARCHITECTURE", "MSRResNet", "MSRResNetConfig"]

_STEPS: dict[int, tuple[int, ...]] = {2: (2,), 3: (3,), 4: (2, 2)}
"""Factors of the pixel shuffles that make a scale."""
_SLOPE = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class MSRResNetConfig:
    """Shape of an `MSRResNet`."""

    PUBLISHED_NAMES: ClassVar[Mapping[str, str]] = {
        "num_feat": "channels",
        "num_block": "num_blocks",
    }

    scale: int = 4
    """Factor of the output size: 2, 3 or 4."""
    channels: int = 64
    """Width of the features."""
    num_blocks: int = 16
    """Residual blocks."""

    def __post_init__(self) -> None:
        if self.scale not in _STEPS or self.channels < 1 or self.num_blocks < 0:
            raise ConfigError(
                f"{self} is out of range: scale 2, 3 or 4; channels ≥ 1; num_blocks ≥ 0"
            )


class MSRResNet(nn.Module):
    """Enlarge every frame by itself; see the drawing on top of this file.

    Args:
        config: shape of the network.
    """

    def __init__(self, config: MSRResNetConfig) -> None:
        super().__init__()
        self.config = config
        c = config.channels
        self.conv_first = ConvAct(3, c, act=LeakyReLU(_SLOPE))
        self.body = nn.Sequential(*(ResidualBlock(c) for _ in range(config.num_blocks)))
        for i, step in enumerate(_STEPS[config.scale], 1):
            self.add_module(f"upconv{i}", nn.Conv2d(c, c * step**2, 3, padding=1))
        self.conv_hr = ConvAct(c, c, act=LeakyReLU(_SLOPE))
        self.conv_last = nn.Conv2d(c, 3, 3, padding=1)

    def forward(self, lq: Tensor) -> Tensor:
        """Enlarge `lq` (B, T, 3, H, W) to (B, T, 3, sH, sW); values can overshoot [0, 1]."""
        frames = lq.flatten(0, 1)  # (B·T, 3, H, W)
        x = self.body(self.conv_first(frames))
        for i, step in enumerate(_STEPS[self.config.scale], 1):
            x = functional.pixel_shuffle(self.get_submodule(f"upconv{i}")(x), step)
            x = functional.leaky_relu(x, _SLOPE, inplace=True)
        x = self.conv_last(self.conv_hr(x))  # (B·T, 3, sH, sW)
        skip = functional.interpolate(
            frames, scale_factor=float(self.config.scale), mode="bilinear"
        )
        return (x + skip).unflatten(0, lq.shape[:2])


def _translate(state: State) -> dict[str, Tensor] | None:
    if "conv_hr.weight" not in state or "body.0.conv1.weight" not in state:
        return None
    first = shape_of(state, "conv_first.weight")
    if (
        len(first) != 4
        or first[1] != 3
        or shape_of(state, "conv_last.weight") != (3, first[0], 3, 3)
    ):
        return None
    return dict(state) if _scale(state) in _STEPS else None


def _scale(state: State) -> int:
    """Read the scale off the convolutions before the pixel shuffles; 0 where they are of another network."""
    shapes = [shape_of(state, f"{name}.weight") for name in ("upconv1", "upconv2")]
    ratios = [shape[0] / shape[1] for shape in shapes if len(shape) == 4 and shape[1]]
    return next(
        (scale for scale, steps in _STEPS.items() if ratios == [step**2 for step in steps]), 0
    )


def _infer(state: State) -> MSRResNetConfig:
    return MSRResNetConfig(
        scale=_scale(state),
        channels=state["conv_first.weight"].shape[0],
        num_blocks=count_names(state, r"body\.\d+\.conv1\.weight"),
    )


def _contract(config: MSRResNetConfig) -> Contract:
    return Contract(
        scale=config.scale,
        temporal=Temporal("frame"),
        halo_px=2 * config.num_blocks
        + 3,  # first, body, first of the upsampling, and at most a pixel after it
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
