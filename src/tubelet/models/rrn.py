"""RRN: recurrent residual network, which carries features and its last output from frame to frame.

    previous, current (B, 3, H, W) each · features h (B, C, H, W) · last output o (B, 3·s², H, W)
      └ cat ─ conv_1, ReLU ─ residual block × n ─┬─ conv_h, ReLU ─ h of the next step
                                                 └─ conv_o ─ pixel shuffle + bilinear ×s of current ─ sr
                                                    o of the next step = pixel unshuffle of sr

No alignment: motion is left to the features. Published: 128 channels, 5 (RRN-S) or 10 (RRN-L) blocks, ×4, Vimeo-90K
with blur-down degradation.

Source: Isobe et al., Revisiting Temporal Modeling for Video Super-resolution, BMVC 2020.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from tubelet.errors import ConfigError
from tubelet.layers.convolution import ConvAct
from tubelet.layers.online import Hidden, run_online
from tubelet.layers.residual import ResidualBlock
from tubelet.models.architecture import Architecture, Contract
from tubelet.models.state_dict import State, count_blocks, has_convolutions, shape_of
from tubelet.types import Temporal

__all__ = ["ARCHITECTURE", "RRN", "RRNConfig"]

_SCALES = (2, 3, 4)


@dataclass(frozen=True, slots=True, kw_only=True)
class RRNConfig:
    """Shape of an `RRN`."""

    FORMER_NAMES: ClassVar[Mapping[str, str]] = {"blocks": "num_blocks"}

    scale: int = 4
    """Factor of the output size."""
    channels: int = 128
    """Width of the features."""
    num_blocks: int = 10
    """Residual blocks."""

    def __post_init__(self) -> None:
        if self.scale not in _SCALES or self.channels < 1 or self.num_blocks < 1:
            raise ConfigError(f"{self} is out of range: scale 2, 3 or 4; channels, blocks ≥ 1")


def _near_identity(block: ResidualBlock) -> ResidualBlock:
    """Draw small weights for a new block."""
    for conv in (block.conv1, block.conv2):
        nn.init.kaiming_normal_(conv.weight)
        nn.init.zeros_(conv.bias)  # pyright: ignore[reportArgumentType]
        with torch.no_grad():
            conv.weight.mul_(0.1)
    return block


class RecurrentCell(nn.Module):
    """One step on features; see the drawing on top of this file."""

    def __init__(self, config: RRNConfig) -> None:
        super().__init__()
        c, outputs = config.channels, 3 * config.scale**2
        self.conv_1 = ConvAct(2 * 3 + c + outputs, c, act="relu")
        self.recon_trunk = nn.Sequential(
            *(_near_identity(ResidualBlock(c)) for _ in range(config.num_blocks))
        )
        self.conv_h = ConvAct(c, c, act="relu")
        self.conv_o = nn.Conv2d(c, outputs, 3, padding=1)

    def forward(self, seen: Tensor) -> tuple[Tensor, Tensor]:
        """Map (B, 6 + C + 3·s², H, W) to the next features (B, C, H, W) and the detail (B, 3·s², H, W)."""
        x = self.recon_trunk(self.conv_1(seen))
        return self.conv_h(x), self.conv_o(x)


class RRN(nn.Module):
    """Recurrent residual network.

    Args:
        config: shape of the network.
    """

    def __init__(self, config: RRNConfig) -> None:
        super().__init__()
        self.config = config
        self.neuro = RecurrentCell(config)  # the published code's name for it

    def step(self, lq: Tensor, hidden: Hidden | None) -> tuple[Tensor, Hidden]:
        """Restore one frame.

        Args:
            lq: (B, 2, 3, H, W), the frame and the next one, which stands in for the frame before the first; later
                steps do not look at it.
            hidden: previous frame (B, 3, H, W), features (B, C, H, W), last output (B, 3·s², H, W); None at the
                start of a scene.

        Returns:
            sr (B, 3, sH, sW), and the hidden state for the next step.
        """
        current = lq[:, 0]
        if hidden is None:
            b, _, _, h, w = lq.shape
            zeros = lq.new_zeros(b, self.config.channels + 3 * self.config.scale**2, h, w)
            seen = torch.cat([lq[:, 1], current, zeros], 1)
        else:
            previous, features, output = hidden
            seen = torch.cat([previous, current, features, output], 1)
        features, detail = self.neuro(seen)
        scale = self.config.scale
        skip = functional.interpolate(
            current.contiguous(), scale_factor=float(scale), mode="bilinear"
        )
        sr = functional.pixel_shuffle(detail, scale) + skip
        return sr, (current, features, functional.pixel_unshuffle(sr, scale))

    def forward(self, lq: Tensor) -> Tensor:
        """Restore a clip: (B, T, 3, H, W) → (B, T, 3, sH, sW), the same as `step` by `step`."""
        sr, _ = run_online(self.step, lq, lookahead=1)
        return sr


def _translate(state: State) -> dict[str, Tensor] | None:
    if "neuro.recon_trunk.0.conv1.weight" not in state:
        return None
    if not has_convolutions(state, "neuro.conv_1", "neuro.conv_o"):
        return None
    channels, joined = shape_of(state, "neuro.conv_1.weight")[:2]
    outputs = shape_of(state, "neuro.conv_o.weight")[0]
    if outputs not in {3 * s * s for s in _SCALES} or joined != 6 + channels + outputs:
        return None
    return dict(state)


def _infer(state: State) -> RRNConfig:
    return RRNConfig(
        scale=round((state["neuro.conv_o.weight"].shape[0] / 3) ** 0.5),
        channels=state["neuro.conv_1.weight"].shape[0],
        num_blocks=count_blocks(state, "neuro.recon_trunk."),
    )


def _contract(config: RRNConfig) -> Contract:
    # The next frame is needed for the first step only, where the published code uses it as the previous one.
    # Each 3×3 convolution of a step reaches a pixel further: conv_1, two a block, conv_o; the skip reaches one.
    return Contract(
        scale=config.scale,
        temporal=Temporal("online", lookahead=1),
        halo_px=2 * config.num_blocks + 2,
    )


ARCHITECTURE = Architecture(
    name="RRN",
    config=RRNConfig,
    build=RRN,
    translate=_translate,
    infer=_infer,
    contract=_contract,
    source="Isobe et al., Revisiting Temporal Modeling for Video Super-resolution, BMVC 2020",
)
