"""RSDN: recurrent structure-detail network; two streams that exchange, and an adapted hidden state.

    previous, current (B, 3, H, W) each = structure (bilinear ×½, then ×2) + detail (the remainder)
    hidden state h (B, C, H, W) ─ adaptation to the current frame ─ h'

      detail:    cat(details,    h', previous o_d) ─ conv_d ─ act ─┐ structure-detail   ┌─ detail
      structure: cat(structures, h', previous o_s) ─ conv_s ─ act ─┘ block × num_blocks └─ structure

    o_d = conv_od(detail) and o_s = conv_os(structure), (B, 3·s², H, W) each
    sr = pixel shuffle of conv(cat(o_d, o_s)), without a skip from the frame
    h of the next step = act(conv_hd(detail)) + act(conv_hs(structure))
    act is LeakyReLU 0.1; within the blocks it is ReLU

Published: 128 channels, 9 blocks, ×4, Vimeo-90K with blur-down degradation.

Source: Isobe et al., Video Super-Resolution with Recurrent Structure-Detail Network, ECCV 2020.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from tubelet.layers.convolution import ConvAct, ConvAdd
from tubelet.layers.online import Hidden, run_online
from tubelet.models.architecture import Architecture, Contract
from tubelet.models.config_checks import check_choice, check_min
from tubelet.models.state_dict import (
    Rule,
    State,
    count_blocks,
    has_convolutions,
    rename,
    shape_of,
    zero_based,
)
from tubelet.types import Temporal

__all__ = ["ARCHITECTURE", "RSDN", "RSDNConfig"]

_SCALES = (2, 3, 4)
# Side of the filters that adapt the hidden state.
_ADAPTATION_KERNEL_PX = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class RSDNConfig:
    """Configuration of an `RSDN`."""

    FORMER_NAMES: ClassVar[Mapping[str, str]] = {"blocks": "num_blocks"}

    scale: int = 4
    """Upscaling factor: 2, 3 or 4."""
    channels: int = 128
    """Width of each stream."""
    num_blocks: int = 9
    """Number of structure-detail blocks."""

    def __post_init__(self) -> None:
        check_choice(self, "scale", _SCALES)
        check_min(self, "channels", 1)
        check_min(self, "num_blocks", 1)


class StructureDetailBlock(nn.Module):
    """Residual block for each stream; the sum of both residuals is added to both (Fig. 3).

    Args:
        channels: Width of each stream.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv_d1 = ConvAct(channels, channels, act="relu")
        self.conv_d2 = ConvAct(channels, channels)
        self.conv_s1 = ConvAct(channels, channels, act="relu")
        self.conv_s2 = ConvAdd(channels, channels)

    def forward(
        self,
        detail: Tensor,
        structure: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Map both streams, (B, C, H, W) each, to the same shapes."""
        residual = self.conv_d2(self.conv_d1(detail))
        residual = self.conv_s2(self.conv_s1(structure), residual)
        return detail + residual, structure + residual


class RecurrentCell(nn.Module):
    """One step of the network; see the drawing at the top of this file.

    Args:
        config: Configuration of the network.
    """

    def __init__(self, config: RSDNConfig) -> None:
        super().__init__()
        c = config.channels
        output_channels = 3 * config.scale**2
        # Two frames, the hidden state and the previous output
        in_channels = 2 * 3 + c + output_channels
        # Filters of the adaptation; checkpoints have this name.
        self.forget = nn.Conv2d(3, _ADAPTATION_KERNEL_PX**2, 3, padding=1)
        self.conv_d = nn.Conv2d(in_channels, c, 3, padding=1)
        self.conv_s = nn.Conv2d(in_channels, c, 3, padding=1)
        self.blocks = nn.ModuleList()
        for _ in range(config.num_blocks):
            self.blocks.append(StructureDetailBlock(c))
        self.conv_hd = nn.Conv2d(c, c, 3, padding=1)
        self.conv_od = nn.Conv2d(c, output_channels, 3, padding=1)
        self.conv_hs = nn.Conv2d(c, c, 3, padding=1)
        self.conv_os = nn.Conv2d(c, output_channels, 3, padding=1)

    def forward(
        self,
        frames: Tensor,
        hidden: Tensor,
        output_d: Tensor,
        output_s: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Compute the next hidden state and the outputs of a frame.

        Args:
            frames: Previous and current frame, (B, 2, 3, H, W).
            hidden: Hidden state, (B, C, H, W).
            output_d: Detail of the previous step, (B, 3·s², H, W).
            output_s: Structure of the previous step, (B, 3·s², H, W).

        Returns:
            hidden, output_d and output_s of this step.
        """
        details, structures = decompose(frames)
        hidden = self.adapt(hidden, frames[:, 1])
        detail = torch.cat([details.flatten(1, 2), hidden, output_d], 1)
        detail = _act(self.conv_d(detail))
        structure = torch.cat([structures.flatten(1, 2), hidden, output_s], 1)
        structure = _act(self.conv_s(structure))
        for block in self.blocks:
            detail, structure = block(detail, structure)
        hidden = _act(self.conv_hd(detail)) + _act(self.conv_hs(structure))
        return hidden, self.conv_od(detail), self.conv_os(structure)

    def adapt(
        self,
        hidden: Tensor,
        current: Tensor,
    ) -> Tensor:
        """Keep the parts of the hidden state that resemble the current frame (Sect. 3.3).

        Each pixel has its own 3×3 filter, the same for all channels.

        Args:
            hidden: Hidden state, (B, C, H, W).
            current: Current frame, (B, 3, H, W).

        Returns:
            Adapted hidden state, (B, C, H, W).
        """
        kernels = _act(self.forget(current))  # (B, 9, H, W)
        height, width = hidden.shape[-2:]
        padded = functional.pad(hidden, (1, 1, 1, 1))
        similarity = torch.zeros_like(hidden)
        for tap in range(_ADAPTATION_KERNEL_PX**2):
            dy, dx = divmod(tap, _ADAPTATION_KERNEL_PX)
            shifted = padded[..., dy : dy + height, dx : dx + width]
            kernel = kernels[:, tap : tap + 1]
            similarity = torch.addcmul(similarity, shifted, kernel)
        return hidden * similarity.sigmoid()


class RSDN(nn.Module):
    """Recurrent structure-detail network; see the drawing at the top of this file.

    Args:
        config: Configuration of the network.
    """

    def __init__(self, config: RSDNConfig) -> None:
        super().__init__()
        self.config = config
        output_channels = 3 * config.scale**2
        # `neuro` is the name in published checkpoints.
        self.neuro = RecurrentCell(config)
        self.conv = nn.Conv2d(2 * output_channels, output_channels, 3, padding=1)

    def step(
        self,
        lq: Tensor,
        hidden: Hidden | None,
    ) -> tuple[Tensor, Hidden]:
        """Upscale one frame.

        Args:
            lq: Current frame and the next one, (B, 2, 3, H, W). The first step uses the next frame
                in place of the previous one; later steps ignore it.
            hidden: Previous frame (B, 3, H, W), hidden state (B, C, H, W), previous detail and
                structure before the pixel shuffle, (B, 3·s², H, W) each; None at the start of a
                scene.

        Returns:
            sr (B, 3, sH, sW), and the hidden state for the next step.
        """
        current = lq[:, 0]
        if hidden is None:
            batch, _, height, width = current.shape
            features = lq.new_zeros(batch, self.config.channels, height, width)
            output_channels = 3 * self.config.scale**2
            output = lq.new_zeros(batch, output_channels, height, width)
            hidden = (lq[:, 1], features, output, output)
        previous, features, output_d, output_s = hidden
        frames = torch.stack([previous, current], 1)
        features, output_d, output_s = self.neuro(frames, features, output_d, output_s)
        x = torch.cat([output_d, output_s], 1)
        x = self.conv(x)
        sr = functional.pixel_shuffle(x, self.config.scale)
        return sr, (current, features, output_d, output_s)

    def forward(self, lq: Tensor) -> Tensor:
        """Upscale a clip, (B, T, 3, H, W) → (B, T, 3, sH, sW), with the results of `step`."""
        sr, _ = run_online(self.step, lq, lookahead=1)
        return sr

    def forward_parts(
        self,
        lq: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Upscale a clip, and return detail and structure for the training loss (Eq. 8).

        Args:
            lq: Low-quality clip, (B, T, 3, H, W), in [0, 1].

        Returns:
            sr, detail and structure, (B, T, 3, sH, sW) each.
        """
        details: list[Tensor] = []
        structures: list[Tensor] = []

        def step(
            lq: Tensor,
            hidden: Hidden | None,
        ) -> tuple[Tensor, Hidden]:
            sr, hidden = self.step(lq, hidden)
            _, _, output_d, output_s = hidden
            detail = functional.pixel_shuffle(output_d, self.config.scale)
            structure = functional.pixel_shuffle(output_s, self.config.scale)
            details.append(detail)
            structures.append(structure)
            return sr, hidden

        sr, _ = run_online(step, lq, lookahead=1)
        detail = torch.stack(details, 1)
        structure = torch.stack(structures, 1)
        return sr, detail, structure


def decompose(clip: Tensor) -> tuple[Tensor, Tensor]:
    """Split frames into detail and structure, whose sum they are.

    Args:
        clip: (B, T, 3, H, W), H and W even.

    Returns:
        Detail and structure, both of the shape of `clip`.

    Source: Sect. 3.1.
    """
    frames = clip.flatten(0, 1)
    small = functional.interpolate(frames, scale_factor=0.5, mode="bilinear")
    structure = functional.interpolate(small, scale_factor=2.0, mode="bilinear")
    structure = structure.reshape_as(clip)
    return clip - structure, structure


def _act(x: Tensor) -> Tensor:
    return functional.leaky_relu_(x, 0.1)


_AUTHORS_RULES: tuple[Rule, ...] = ((r"^neuro\.SD(\d+)\.", zero_based("neuro.blocks.{}.")),)


def _translate(state: State) -> dict[str, Tensor] | None:
    """Map the names of the authors to ours; None if the state dict belongs to another network."""
    if not has_convolutions(state, "neuro.conv_d", "conv") or "neuro.forget.weight" not in state:
        return None
    channels, in_channels = shape_of(state, "neuro.conv_d.weight")[:2]
    output_channels = shape_of(state, "conv.weight")[0]
    if output_channels not in {3 * scale**2 for scale in _SCALES}:
        return None
    if in_channels != 6 + channels + output_channels:
        return None
    own = rename(state, _AUTHORS_RULES)
    return own if "neuro.blocks.0.conv_d1.weight" in own else None


def _infer(state: State) -> RSDNConfig:
    output_channels = state["conv.weight"].shape[0]
    return RSDNConfig(
        scale=round((output_channels / 3) ** 0.5),
        channels=state["neuro.conv_d.weight"].shape[0],
        num_blocks=count_blocks(state, "neuro.blocks."),
    )


def _contract(config: RSDNConfig) -> Contract:
    # The decomposition reaches 3 pixels, the adaptation 1 more (2 more than the state); then each
    # 3×3 convolution reaches a pixel further: conv_d, two a block, conv_od, conv.
    reach_px = 3 + 1 + 2 * config.num_blocks + 2
    return Contract(
        scale=config.scale,
        # Only the first step needs the next frame: like the published code, it uses it as the
        # previous one.
        temporal=Temporal("online", lookahead=1),
        halo_px=reach_px,
        size_multiple=2,
    )


ARCHITECTURE = Architecture(
    name="RSDN",
    config=RSDNConfig,
    build=RSDN,
    translate=_translate,
    infer=_infer,
    contract=_contract,
    source="Isobe et al., Video Super-Resolution with Recurrent Structure-Detail Network, "
    "ECCV 2020",
)
