"""RLSP: recurrent latent space propagation, a plain stack of convolutions that feeds its output and a state back.

    previous, current, next (B, 3, H, W) each · last output, space to depth (B, 3·s², H, W) · state (B, S, H, W)
      └ cat ─ conv, ReLU × (layers − 1) ─ conv_out ─┬─ first 3·s² + current repeated ─ depth to space ─ sr
                                                    └─ last S, ReLU ─ state of the next step

Beyond the ends of a clip the first or last frame is repeated; output and state begin at zero. Depth to space is in
the order of TensorFlow: channel (dy·s + dx)·3 + c goes to row dy, column dx of color c. Published: ×4, 7 layers of
64 or 128 filters, state 64 or 128, Vimeo-90K with blur-down degradation (σ = 1.5).

Source: Fuoli et al., Efficient Video Super-Resolution through Recurrent Latent Space Propagation, ICCVW 2019; the
authors' PyTorch version, whose output is RGB (the paper's is luma).
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
from tubelet.models.state_dict import State, count_blocks, first_words, has_convolutions, shape_of
from tubelet.types import Temporal

__all__ = ["ARCHITECTURE", "RLSP", "RLSPConfig"]

_PUBLISHED_SCALE = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class RLSPConfig:
    """Shape of an `RLSP`."""

    PUBLISHED_NAMES: ClassVar[Mapping[str, str]] = {"filters": "channels", "layers": "num_layers"}

    scale: int = _PUBLISHED_SCALE
    """Factor of the output size."""
    num_layers: int = 7
    """Convolutions, the first and the last included."""
    channels: int = 128
    """Width of the features."""
    state_channels: int = 128
    """Width of the latent state."""
    kernel_px: int = 3
    """Side of the convolutions, odd."""

    def __post_init__(self) -> None:
        if self.scale not in (2, 3, 4) or self.num_layers < 2 or self.kernel_px % 2 != 1:
            raise ConfigError(f"{self} is out of range: scale 2, 3 or 4; layers ≥ 2; kernel_px odd")
        if self.channels < 1 or self.state_channels < 1:
            raise ConfigError(f"{self} is out of range: filters, state_channels ≥ 1")


class RLSP(nn.Module):
    """Recurrent latent space propagation.

    Args:
        config: shape of the network.
    """

    def __init__(self, config: RLSPConfig) -> None:
        super().__init__()
        self.config = config
        k, width, outputs = (
            config.kernel_px,
            config.channels,
            3 * config.scale**2 + config.state_channels,
        )
        self.conv1 = ConvAct(3 * 3 + outputs, width, k, act="relu")
        self.conv_list = nn.ModuleList(
            ConvAct(width, width, k, act="relu") for _ in range(config.num_layers - 2)
        )
        self.conv_out = nn.Conv2d(width, outputs, k, padding=k // 2)

    def step(self, lq: Tensor, hidden: Hidden | None) -> tuple[Tensor, Hidden]:
        """Restore one frame.

        Args:
            lq: (B, 2, 3, H, W), the frame and the next one.
            hidden: previous frame (B, 3, H, W), last output before depth to space (B, 3·s², H, W), state
                (B, S, H, W); None at the start of a scene.

        Returns:
            sr (B, 3, sH, sW), and the hidden state for the next step.
        """
        current, following = lq.unbind(1)
        pixels = 3 * self.config.scale**2
        if hidden is None:
            b, _, h, w = current.shape
            zeros = lq.new_zeros(b, pixels + self.config.state_channels, h, w)
            x = torch.cat([current, current, following, zeros], 1)
        else:
            previous, output, state = hidden
            x = torch.cat([previous, current, following, output, state], 1)
        x = self.conv1(x)
        for conv in self.conv_list:
            x = conv(x)
        x = self.conv_out(x)
        output = x[:, :pixels] + current.repeat(1, self.config.scale**2, 1, 1)
        return depth_to_space(output, self.config.scale), (current, output, x[:, pixels:].relu())

    def forward(self, lq: Tensor) -> Tensor:
        """Restore a clip: (B, T, 3, H, W) → (B, T, 3, sH, sW), the same as `step` by `step`."""
        sr, _ = run_online(self.step, lq, lookahead=1)
        return sr


def depth_to_space(x: Tensor, scale: int) -> Tensor:
    """Move channels (dy·s + dx)·C + c to row dy and column dx of channel c.

    Args:
        x: (B, s²·C, H, W).
        scale: s.

    Returns:
        (B, C, sH, sW).

    Source: TensorFlow's `depth_to_space`; `pixel_shuffle` has the channels outermost instead.
    """
    b, channels, h, w = x.shape
    x = x.reshape(b, scale, scale, channels // scale**2, h, w)  # (B, dy, dx, C, H, W)
    return x.permute(0, 3, 4, 1, 5, 2).reshape(b, -1, h * scale, w * scale)


def _translate(state: State) -> dict[str, Tensor] | None:
    if not has_convolutions(state, "conv1", "conv_out"):
        return None
    if not first_words(state) <= {"conv1", "conv_list", "conv_out"}:
        return None
    first = shape_of(state, "conv1.weight")
    outputs = shape_of(state, "conv_out.weight")[0]
    # Any split of the outputs into pixels and state fits the shapes; every published file is for ×4.
    if first[1] != 3 * 3 + outputs or outputs <= 3 * _PUBLISHED_SCALE**2 or first[-1] % 2 != 1:
        return None
    return dict(state)


def _infer(state: State) -> RLSPConfig:
    first, last = state["conv1.weight"], state["conv_out.weight"]
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
        halo_px=config.num_layers * (config.kernel_px // 2),
    )


ARCHITECTURE = Architecture(
    name="RLSP",
    config=RLSPConfig,
    build=RLSP,
    translate=_translate,
    infer=_infer,
    contract=_contract,
    source="Fuoli et al., Efficient Video Super-Resolution through Recurrent Latent Space Propagation, ICCVW 2019",
)
