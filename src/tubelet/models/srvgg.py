"""SRVGGNetCompact: a plain stack of 3×3 convolutions at input resolution; Real-ESRGAN's small networks.

    lq (B, T, 3, H, W), frame by frame
      ├ conv ─ act ─ (conv ─ act) × num_blocks ─ conv → (B, 3s², H, W) ─ pixel shuffle ─┐
      └ nearest ×s ───────────────────────────────────────────────────────────────────┴ sr (B, T, 3, sH, sW)

Published configurations, 64 features, ×4, PReLU:
    realesr-animevideov3      16 convolutions, 621 424 parameters
    realesr-general-x4v3      32 convolutions, 1 213 296 parameters

Source: Wang et al., Real-ESRGAN, ICCVW 2021; the network is of its repository's version 0.2.3, without a paper.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor, nn
from torch.nn import functional

from tubelet.errors import ConfigError
from tubelet.models.architecture import Architecture, Contract
from tubelet.models.state_dict import State, indexes, shape_of, without
from tubelet.types import Temporal

__all__ = ["ARCHITECTURE", "SRVGGConfig", "SRVGGNetCompact"]

Act = Literal["prelu", "relu", "leakyrelu"]
_NAME = r"body\.(\d+)\.(weight|bias)"


@dataclass(frozen=True, slots=True, kw_only=True)
class SRVGGConfig:
    """Shape of an `SRVGGNetCompact`."""

    PUBLISHED_NAMES: ClassVar[Mapping[str, str]] = {
        "num_feat": "channels",
        "num_conv": "num_blocks",
    }

    scale: int = 4
    """Factor of the output size."""
    channels: int = 64
    """Width of the features."""
    num_blocks: int = 16
    """Convolutions between the first and the last."""
    act: Act = "prelu"
    """Activation. Files of the two without parameters look alike: `infer` takes those for "relu"."""

    def __post_init__(self) -> None:
        if self.scale < 1 or self.channels < 1 or self.num_blocks < 0:
            raise ConfigError(f"{self} is out of range: scale, channels ≥ 1; num_blocks ≥ 0")
        if self.act not in ("prelu", "relu", "leakyrelu"):
            raise ConfigError(f"unknown activation {self.act!r}; known are prelu, relu, leakyrelu")


class SRVGGNetCompact(nn.Module):
    """Enlarge every frame by itself; see the drawing on top of this file.

    Args:
        config: shape of the network.
    """

    def __init__(self, config: SRVGGConfig) -> None:
        super().__init__()
        self.config = config
        c = config.channels
        self.body = nn.Sequential(nn.Conv2d(3, c, 3, padding=1), _act(config))
        for _ in range(config.num_blocks):
            self.body.extend([nn.Conv2d(c, c, 3, padding=1), _act(config)])
        self.body.append(nn.Conv2d(c, 3 * config.scale**2, 3, padding=1))

    def forward(self, lq: Tensor) -> Tensor:
        """Enlarge `lq` (B, T, 3, H, W) to (B, T, 3, sH, sW); values can overshoot [0, 1]."""
        frames = lq.flatten(0, 1)  # (B·T, 3, H, W)
        # The nearest ×s skip is the same for all s² sub-pixels, so it is added before they are shuffled.
        x = self.body(frames) + frames.repeat_interleave(
            self.config.scale**2, 1
        )  # (B·T, 3s², H, W)
        sr = functional.pixel_shuffle(x, self.config.scale)  # (B·T, 3, sH, sW)
        return sr.reshape(*lq.shape[:2], *sr.shape[1:])


def _act(config: SRVGGConfig) -> nn.Module:
    if config.act == "prelu":
        return nn.PReLU(config.channels)
    return nn.ReLU(inplace=True) if config.act == "relu" else nn.LeakyReLU(0.1, inplace=True)


def _translate(state: State) -> dict[str, Tensor] | None:
    """Claim names `body.<index>.weight` and `.bias` alone: the only layout in circulation, and ours."""
    first = shape_of(state, "body.0.weight")
    if len(first) != 4 or first[1:] != (3, 3, 3) or without(state, _NAME):
        return None
    last = shape_of(state, _last(state))
    outputs = last[0] if len(last) == 4 else 0
    return dict(state) if outputs and outputs == 3 * math.isqrt(outputs // 3) ** 2 else None


def _last(state: State) -> str:
    return f"body.{indexes(state, _NAME)[-1]}.weight"


def _infer(state: State) -> SRVGGConfig:
    last = _last(state)
    return SRVGGConfig(
        scale=math.isqrt(state[last].shape[0] // 3),
        channels=state["body.0.weight"].shape[0],
        num_blocks=indexes(state, _NAME)[-1] // 2 - 1,
        act="prelu" if "body.1.weight" in state else "relu",
    )


def _contract(config: SRVGGConfig) -> Contract:
    return Contract(
        scale=config.scale,
        temporal=Temporal("frame"),
        halo_px=config.num_blocks + 2,  # every convolution reaches a pixel further
        precisions=(
            "fp32",
            "bf16",
            "fp16",
        ),  # within 0.002 dB with realesr-animevideov3, but for better ones
    )


ARCHITECTURE = Architecture(
    name=SRVGGNetCompact.__name__,
    config=SRVGGConfig,
    build=SRVGGNetCompact,
    translate=_translate,
    infer=_infer,
    contract=_contract,
    source="https://arxiv.org/abs/2107.10833",
)
