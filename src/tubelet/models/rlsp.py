"""RLSP: recurrent latent space propagation, convolutions that feed an output and a state back.

    previous, current, next (B, 3, H, W) each ─────────────────┐
    previous output before depth to space (B, 3·s², H, W) ─────┤
    state (B, S, H, W) ────────────────────────────────────────┴ cat
      ─ (conv ─ ReLU) × (num_layers − 1) ─ conv_out ─ (B, 3·s² + S, H, W)

    output = first 3·s² channels + current, repeated s² times
    sr = depth to space of output
    state of the next step = ReLU of the last S channels

Beyond the ends of a clip the first or last frame is repeated; output and state start at zero. Depth
to space is in the order of TensorFlow: channel (dy·s + dx)·3 + c goes to row dy, column dx of color
c. Published: ×4, 7 layers of 64 or 128 channels, state of 64 or 128 channels, Vimeo-90K with
blur-down degradation (σ = 1.5).

Source: Fuoli et al., Efficient Video Super-Resolution through Recurrent Latent Space Propagation,
ICCVW 2019; the authors' PyTorch version, whose output is RGB (the paper's is luma).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from tubelet.errors import ConfigError
from tubelet.layers.convolution import ConvAct
from tubelet.layers.online import Hidden, run_online
from tubelet.models.architecture import Architecture, Contract
from tubelet.models.config_checks import check_choice, check_min
from tubelet.models.state_dict import State, count_blocks, first_words, has_convolutions, shape_of
from tubelet.types import Temporal

__all__ = ["ARCHITECTURE", "RLSP", "RLSPConfig"]

_PUBLISHED_SCALE = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class RLSPConfig:
    """Configuration of an `RLSP`."""

    PUBLISHED_NAMES: ClassVar[Mapping[str, str]] = {"filters": "channels", "layers": "num_layers"}

    scale: int = _PUBLISHED_SCALE
    """Upscaling factor: 2, 3 or 4."""
    num_layers: int = 7
    """Number of convolutions, including the first and the last."""
    channels: int = 128
    """Width of the features."""
    state_channels: int = 128
    """Width S of the latent state."""
    kernel_px: int = 3
    """Side of the kernels, odd."""

    def __post_init__(self) -> None:
        check_choice(self, "scale", (2, 3, 4))
        check_min(self, "num_layers", 2)
        check_min(self, "channels", 1)
        check_min(self, "state_channels", 1)
        if self.kernel_px % 2 != 1:
            raise ConfigError(f"RLSPConfig: kernel_px={self.kernel_px} must be odd")


class RLSP(nn.Module):
    """Recurrent latent space propagation; see the drawing at the top of this file.

    Args:
        config: Configuration of the network.
    """

    def __init__(self, config: RLSPConfig) -> None:
        super().__init__()
        self.config = config
        c = config.channels
        k = config.kernel_px
        out_channels = 3 * config.scale**2 + config.state_channels
        # Three frames, the previous output and the state
        in_channels = 3 * 3 + out_channels
        self.conv1 = ConvAct(in_channels, c, k, act="relu")
        self.conv_list = nn.ModuleList()
        for _ in range(config.num_layers - 2):
            self.conv_list.append(ConvAct(c, c, k, act="relu"))
        self.conv_out = nn.Conv2d(c, out_channels, k, padding=k // 2)

    def step(
        self,
        lq: Tensor,
        hidden: Hidden | None,
    ) -> tuple[Tensor, Hidden]:
        """Upscale one frame.

        Args:
            lq: Current frame and the next one, (B, 2, 3, H, W).
            hidden: Previous frame (B, 3, H, W), previous output before depth to space
                (B, 3·s², H, W) and state (B, S, H, W); None at the start of a scene.

        Returns:
            sr (B, 3, sH, sW), and the hidden state for the next step.
        """
        current, following = lq.unbind(1)
        scale = self.config.scale
        output_channels = 3 * scale**2
        if hidden is None:
            batch, _, height, width = current.shape
            zero_channels = output_channels + self.config.state_channels
            zeros = lq.new_zeros(batch, zero_channels, height, width)
            x = torch.cat([current, current, following, zeros], 1)
        else:
            previous, output, state = hidden
            x = torch.cat([previous, current, following, output, state], 1)
        x = self.conv1(x)
        for conv in self.conv_list:
            x = conv(x)
        x = self.conv_out(x)  # (B, 3·s² + S, H, W)
        output = x[:, :output_channels] + current.repeat(1, scale**2, 1, 1)
        state = x[:, output_channels:].relu()
        return depth_to_space(output, scale), (current, output, state)

    def forward(self, lq: Tensor) -> Tensor:
        """Upscale a clip, (B, T, 3, H, W) → (B, T, 3, sH, sW), with the results of `step`."""
        sr, _ = run_online(self.step, lq, lookahead=1)
        return sr


def depth_to_space(x: Tensor, scale: int) -> Tensor:
    """Move channel (dy·s + dx)·C + c to row dy and column dx of channel c.

    Args:
        x: (B, s²·C, H, W).
        scale: Factor s.

    Returns:
        (B, C, sH, sW).

    Source: TensorFlow's `depth_to_space`; `pixel_shuffle` has the channels outermost instead.
    """
    batch, in_channels, height, width = x.shape
    channels = in_channels // scale**2
    x = x.reshape(batch, scale, scale, channels, height, width)  # (B, dy, dx, C, H, W)
    x = x.permute(0, 3, 4, 1, 5, 2)  # (B, C, H, dy, W, dx)
    return x.reshape(batch, -1, height * scale, width * scale)


def _translate(state: State) -> dict[str, Tensor] | None:
    if not has_convolutions(state, "conv1", "conv_out"):
        return None
    if not first_words(state) <= {"conv1", "conv_list", "conv_out"}:
        return None
    first = shape_of(state, "conv1.weight")
    out_channels = shape_of(state, "conv_out.weight")[0]
    in_channels = 3 * 3 + out_channels
    if first[1] != in_channels or first[-1] % 2 != 1:
        return None
    # The shapes fit any division of the output channels into pixels and state; all published files
    # are for ×4.
    if out_channels <= 3 * _PUBLISHED_SCALE**2:
        return None
    return dict(state)


def _infer(state: State) -> RLSPConfig:
    first = state["conv1.weight"]
    last = state["conv_out.weight"]
    return RLSPConfig(
        num_layers=2 + count_blocks(state, "conv_list."),
        channels=first.shape[0],
        state_channels=last.shape[0] - 3 * _PUBLISHED_SCALE**2,
        kernel_px=first.shape[-1],
    )


def _contract(config: RLSPConfig) -> Contract:
    return Contract(
        scale=config.scale,
        temporal=Temporal("online", lookahead=1),
        # Each convolution reaches half a kernel further.
        halo_px=config.num_layers * (config.kernel_px // 2),
    )


ARCHITECTURE = Architecture(
    name="RLSP",
    config=RLSPConfig,
    build=RLSP,
    translate=_translate,
    infer=_infer,
    contract=_contract,
    source="Fuoli et al., Efficient Video Super-Resolution through Recurrent Latent Space "
    "Propagation, ICCVW 2019",
)
