"""RRN: recurrent residual network, which carries features and its last output from frame to frame.

    previous, current (B, 3, H, W) each ─┐
    features h (B, C, H, W) ─────────────┤
    previous output o (B, 3·s², H, W) ───┴ cat ─ conv_1 ─ ReLU ─ residual block × num_blocks ─ x

    h of the next step = ReLU(conv_h(x))
    sr = pixel shuffle of conv_o(x) + bilinear ×s of current
    o of the next step = pixel unshuffle of sr

There is no alignment: the features have to follow the motion. Published: 128 channels, 5 (RRN-S) or
10 (RRN-L) blocks, ×4, Vimeo-90K with blur-down degradation.

Source: Isobe et al., Revisiting Temporal Modeling for Video Super-resolution, BMVC 2020.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from tubelet.layers.convolution import ConvAct
from tubelet.layers.online import Hidden, run_online
from tubelet.layers.residual import ResidualBlock
from tubelet.layers.upsampling import enlarge, shuffle_to_image
from tubelet.models.architecture import Architecture, Contract
from tubelet.models.config_checks import check_choice, check_min
from tubelet.models.state_dict import State, count_blocks, has_convolutions, shape_of
from tubelet.types import Temporal

__all__ = ["ARCHITECTURE", "RRN", "RRNConfig"]

_SCALES = (2, 3, 4)


@dataclass(frozen=True, slots=True, kw_only=True)
class RRNConfig:
    """Configuration of an `RRN`."""

    FORMER_NAMES: ClassVar[Mapping[str, str]] = {"blocks": "num_blocks"}

    scale: int = 4
    """Upscaling factor: 2, 3 or 4."""
    channels: int = 128
    """Width of the features."""
    num_blocks: int = 10
    """Number of residual blocks."""

    def __post_init__(self) -> None:
        check_choice(self, "scale", _SCALES)
        check_min(self, "channels", 1)
        check_min(self, "num_blocks", 1)


class RecurrentCell(nn.Module):
    """One step on features; see the drawing at the top of this file.

    Args:
        config: Configuration of the network.
    """

    def __init__(self, config: RRNConfig) -> None:
        super().__init__()
        c = config.channels
        output_channels = 3 * config.scale**2
        # Two frames, the features and the previous output
        in_channels = 2 * 3 + c + output_channels
        self.conv_1 = ConvAct(in_channels, c, act="relu")
        self.recon_trunk = nn.Sequential()
        for _ in range(config.num_blocks):
            block = ResidualBlock(c)
            _init_near_identity(block)
            self.recon_trunk.append(block)
        self.conv_h = ConvAct(c, c, act="relu")
        self.conv_o = nn.Conv2d(c, output_channels, 3, padding=1)

    def forward(
        self,
        inputs: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Compute the features and the detail of a frame.

        Args:
            inputs: Previous frame, current frame, features and previous output, concatenated,
                (B, 6 + C + 3·s², H, W).

        Returns:
            Features of the next step, (B, C, H, W), and detail, (B, 3·s², H, W).
        """
        x = self.recon_trunk(self.conv_1(inputs))
        return self.conv_h(x), self.conv_o(x)


def _init_near_identity(block: ResidualBlock) -> None:
    """Initialize a residual block with small weights."""
    for conv in (block.conv1, block.conv2):
        nn.init.kaiming_normal_(conv.weight)
        nn.init.zeros_(conv.bias)  # pyright: ignore[reportArgumentType]
        with torch.no_grad():
            conv.weight.mul_(0.1)


class RRN(nn.Module):
    """Recurrent residual network; see the drawing at the top of this file.

    Args:
        config: Configuration of the network.
    """

    def __init__(self, config: RRNConfig) -> None:
        super().__init__()
        self.config = config
        # `neuro` is the name in published checkpoints.
        self.neuro = RecurrentCell(config)

    def step(
        self,
        lq: Tensor,
        hidden: Hidden | None,
    ) -> tuple[Tensor, Hidden]:
        """Upscale one frame.

        Args:
            lq: Current frame and the next one, (B, 2, 3, H, W). The first step uses the next frame
                in place of the previous one; later steps ignore it.
            hidden: Previous frame (B, 3, H, W), features (B, C, H, W) and previous output
                (B, 3·s², H, W); None at the start of a scene.

        Returns:
            sr (B, 3, sH, sW), and the hidden state for the next step.
        """
        scale = self.config.scale
        current = lq[:, 0]
        if hidden is None:
            batch, _, _, height, width = lq.shape
            zero_channels = self.config.channels + 3 * scale**2
            zeros = lq.new_zeros(batch, zero_channels, height, width)
            inputs = torch.cat([lq[:, 1], current, zeros], 1)
        else:
            previous, features, output = hidden
            inputs = torch.cat([previous, current, features, output], 1)
        features, detail = self.neuro(inputs)
        sr = shuffle_to_image(detail, scale) + enlarge(current, scale)
        output = functional.pixel_unshuffle(sr, scale)
        return sr, (current, features, output)

    def forward(self, lq: Tensor) -> Tensor:
        """Upscale a clip, (B, T, 3, H, W) → (B, T, 3, sH, sW), with the results of `step`."""
        sr, _ = run_online(self.step, lq, lookahead=1)
        return sr


def _translate(state: State) -> dict[str, Tensor] | None:
    if "neuro.recon_trunk.0.conv1.weight" not in state:
        return None
    if not has_convolutions(state, "neuro.conv_1", "neuro.conv_o"):
        return None
    channels, in_channels = shape_of(state, "neuro.conv_1.weight")[:2]
    output_channels = shape_of(state, "neuro.conv_o.weight")[0]
    if output_channels not in {3 * scale**2 for scale in _SCALES}:
        return None
    if in_channels != 6 + channels + output_channels:
        return None
    return dict(state)


def _infer(state: State) -> RRNConfig:
    output_channels = state["neuro.conv_o.weight"].shape[0]
    return RRNConfig(
        scale=round((output_channels / 3) ** 0.5),
        channels=state["neuro.conv_1.weight"].shape[0],
        num_blocks=count_blocks(state, "neuro.recon_trunk."),
    )


def _contract(config: RRNConfig) -> Contract:
    # Each 3×3 convolution of a step reaches a pixel further: conv_1, two a block, conv_o. The skip
    # reaches one pixel.
    reach_px = 2 * config.num_blocks + 2
    return Contract(
        scale=config.scale,
        # Only the first step needs the next frame: like the published code, it uses it as the
        # previous one.
        temporal=Temporal("online", lookahead=1),
        halo_px=reach_px,
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
