"""SRVGGNetCompact: a plain stack of 3×3 convolutions; the small networks of Real-ESRGAN.

    lq (B, T, 3, H, W), frame by frame
      ├ conv ─ act ─ (conv ─ act) × num_blocks ─ conv ─ (B·T, 3s², H, W) ─ pixel shuffle ─┐
      └ nearest ×s ───────────────────────────────────────────────────────────────────────┴(+) sr
                                                                             (B, T, 3, sH, sW)

A bicubic resize may follow: animevideov3 at ×2 and ×3 is the network ×4, made smaller.

Published configurations, 64 channels, ×4, PReLU:
    realesr-animevideov3      16 convolutions, 621 424 parameters
    realesr-general-x4v3      32 convolutions, 1 213 296 parameters

Source: Wang et al., Real-ESRGAN, ICCVW 2021; the network appeared in version 0.2.3 of its
repository, without a paper.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor, nn
from torch.nn import functional

from tubelet.layers.upsampling import shuffle_to_image
from tubelet.models.architecture import Architecture, Contract
from tubelet.models.config_checks import check_choice, check_min
from tubelet.models.state_dict import State, indexes, shape_of, without
from tubelet.types import Temporal

__all__ = ["ARCHITECTURE", "SRVGGConfig", "SRVGGNetCompact"]

Act = Literal["prelu", "relu", "leakyrelu"]
_NAME = r"body\.(\d+)\.(weight|bias)"


@dataclass(frozen=True, slots=True, kw_only=True)
class SRVGGConfig:
    """Configuration of an `SRVGGNetCompact`."""

    PUBLISHED_NAMES: ClassVar[Mapping[str, str]] = {
        "num_feat": "channels",
        "num_conv": "num_blocks",
    }

    scale: int = 4
    """Upscaling factor of the network."""
    channels: int = 64
    """Width of the features."""
    num_blocks: int = 16
    """Number of convolutions between the first and the last."""
    act: Act = "prelu"
    """Activation. Checkpoints with "relu" and "leakyrelu" look the same: `infer` takes "relu"."""
    output_scale: int = 0
    """Upscaling factor after a final bicubic resize; 0 for no resize."""

    def __post_init__(self) -> None:
        check_min(self, "scale", 1)
        check_min(self, "channels", 1)
        check_min(self, "num_blocks", 0)
        check_choice(self, "act", ("prelu", "relu", "leakyrelu"))
        check_min(self, "output_scale", 0)


class SRVGGNetCompact(nn.Module):
    """SRVGGNetCompact, applied to each frame independently; see the drawing at the top.

    Args:
        config: Configuration of the network.
    """

    def __init__(self, config: SRVGGConfig) -> None:
        super().__init__()
        self.config = config
        c = config.channels
        self.body = nn.Sequential()
        self.body.append(nn.Conv2d(3, c, 3, padding=1))
        self.body.append(_build_act(config))
        for _ in range(config.num_blocks):
            self.body.append(nn.Conv2d(c, c, 3, padding=1))
            self.body.append(_build_act(config))
        out_channels = 3 * config.scale**2
        self.body.append(nn.Conv2d(c, out_channels, 3, padding=1))

    def forward(self, lq: Tensor) -> Tensor:
        """Upscale a clip.

        Args:
            lq: Low-quality clip, (B, T, 3, H, W), in [0, 1].

        Returns:
            (B, T, 3, sH, sW), where s is `output_scale`, if that is not 0; values can exceed
            [0, 1].
        """
        scale = self.config.scale
        frames = lq.flatten(0, 1)  # (B·T, 3, H, W)
        # The nearest-neighbor skip is equal in all s² sub-pixels: add it before the shuffle.
        x = self.body(frames) + frames.repeat_interleave(scale**2, 1)  # (B·T, 3s², H, W)
        sr = shuffle_to_image(x, scale)  # (B·T, 3, sH, sW)
        if self.config.output_scale:
            sr = _resize(sr, self.config.output_scale / scale)
        return sr.reshape(*lq.shape[:2], *sr.shape[1:])


def _resize(image: Tensor, factor: float) -> Tensor:
    """Resize (B, C, H, W) as the layer Interp of ncnn: bicubic, a = -0.75, not antialiased.

    Source: https://github.com/Tencent/ncnn, src/layer/interp.cpp; torch has the same kernel and
    edges.
    """
    height, width = image.shape[-2:]
    size = (round(height * factor), round(width * factor))
    return functional.interpolate(image, size=size, mode="bicubic", align_corners=False)


def _build_act(config: SRVGGConfig) -> nn.Module:
    match config.act:
        case "prelu":
            return nn.PReLU(config.channels)
        case "relu":
            return nn.ReLU(inplace=True)
        case "leakyrelu":
            return nn.LeakyReLU(0.1, inplace=True)


def _translate(state: State) -> dict[str, Tensor] | None:
    """Take state dicts whose names are all `body.<index>.weight` or `.bias`.

    This is the only layout in circulation, and ours.
    """
    first = shape_of(state, "body.0.weight")
    if without(state, _NAME):
        return None
    if len(first) != 4 or first[1:] != (3, 3, 3):
        return None
    last = shape_of(state, _last_weight(state))
    if len(last) != 4 or last[0] == 0:
        return None
    # The last convolution has 3s² output channels.
    scale = math.isqrt(last[0] // 3)
    if last[0] != 3 * scale**2:
        return None
    return dict(state)


def _last_weight(state: State) -> str:
    return f"body.{indexes(state, _NAME)[-1]}.weight"


def _infer(state: State) -> SRVGGConfig:
    last = state[_last_weight(state)]
    # Convolutions have even indexes, activations odd ones.
    num_convolutions = indexes(state, _NAME)[-1] // 2 + 1
    return SRVGGConfig(
        scale=math.isqrt(last.shape[0] // 3),
        channels=state["body.0.weight"].shape[0],
        num_blocks=num_convolutions - 2,
        act="prelu" if "body.1.weight" in state else "relu",
    )


def _contract(config: SRVGGConfig) -> Contract:
    # Each convolution reaches a pixel further.
    halo_px = config.num_blocks + 2
    if config.output_scale:
        # The bicubic kernel reaches less than two pixels of the network's result.
        halo_px += math.ceil(2 / config.scale)
    return Contract(
        scale=config.output_scale or config.scale,
        temporal=Temporal("frame"),
        halo_px=halo_px,
        # With realesr-animevideov3, half precision changes PSNR by less than 0.002 dB.
        precisions=("fp32", "bf16", "fp16"),
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
