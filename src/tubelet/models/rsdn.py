"""RSDN: recurrent structure-detail network; two streams that exchange, and a hidden state that adapts to the frame.

    previous, current (B, 3, H, W) each = structure (bilinear ×½, then ×2) + detail (the rest)
    hidden state h (B, C, H, W) ─ adaptation to the current frame ─ h'
      detail:    cat(details,    h', last o_d) ─ conv_d, act ─┐ structure-detail ┌─ conv_od ─ o_d (B, 3·s², H, W)
      structure: cat(structures, h', last o_s) ─ conv_s, act ─┘    block × n     └─ conv_os ─ o_s
    sr = pixel shuffle of conv(cat(o_d, o_s)), without a skip from the frame
    h of the next step = act(conv_hd(detail)) + act(conv_hs(structure)); act is LeakyReLU 0.1, within the blocks ReLU

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

from tubelet.errors import ConfigError
from tubelet.layers.convolution import ConvAct, ConvAdd
from tubelet.layers.online import Hidden, run_online
from tubelet.models.architecture import Architecture, Contract
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
_KERNEL_PX = 3  # side of the adaptation's filters


@dataclass(frozen=True, slots=True, kw_only=True)
class RSDNConfig:
    """Shape of an `RSDN`."""

    FORMER_NAMES: ClassVar[Mapping[str, str]] = {"blocks": "num_blocks"}

    scale: int = 4
    """Factor of the output size."""
    channels: int = 128
    """Width of each stream."""
    num_blocks: int = 9
    """Structure-detail blocks."""

    def __post_init__(self) -> None:
        if self.scale not in _SCALES or self.channels < 1 or self.num_blocks < 1:
            raise ConfigError(f"{self} is out of range: scale 2, 3 or 4; channels, blocks ≥ 1")


class StructureDetailBlock(nn.Module):
    """A residual block for each stream; the sum of their residuals is added to both (Fig. 3)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv_d1 = ConvAct(channels, channels, act="relu")
        self.conv_d2 = ConvAct(channels, channels)
        self.conv_s1 = ConvAct(channels, channels, act="relu")
        self.conv_s2 = ConvAdd(channels, channels)

    def forward(self, detail: Tensor, structure: Tensor) -> tuple[Tensor, Tensor]:
        """Refine both streams, (B, C, H, W) each."""
        both = self.conv_d2(self.conv_d1(detail))
        both = self.conv_s2(self.conv_s1(structure), both)
        return detail + both, structure + both


class RecurrentCell(nn.Module):
    """One step; see the drawing on top of this file."""

    def __init__(self, config: RSDNConfig) -> None:
        super().__init__()
        c, outputs = config.channels, 3 * config.scale**2
        self.forget = nn.Conv2d(3, _KERNEL_PX**2, 3, padding=1)
        self.conv_d = nn.Conv2d(2 * 3 + c + outputs, c, 3, padding=1)
        self.conv_s = nn.Conv2d(2 * 3 + c + outputs, c, 3, padding=1)
        self.blocks = nn.ModuleList(StructureDetailBlock(c) for _ in range(config.num_blocks))
        self.conv_hd = nn.Conv2d(c, c, 3, padding=1)
        self.conv_od = nn.Conv2d(c, outputs, 3, padding=1)
        self.conv_hs = nn.Conv2d(c, c, 3, padding=1)
        self.conv_os = nn.Conv2d(c, outputs, 3, padding=1)

    def forward(
        self, frames: Tensor, hidden: Tensor, output_d: Tensor, output_s: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Do a step.

        Args:
            frames: (B, 2, 3, H, W), previous and current.
            hidden: (B, C, H, W).
            output_d: detail of the last step (B, 3·s², H, W).
            output_s: structure of the last step (B, 3·s², H, W).

        Returns:
            hidden, output_d and output_s of this step.
        """
        details, structures = decompose(frames)
        hidden = self.adapt(hidden, frames[:, 1])
        d = _act(self.conv_d(torch.cat([details.flatten(1, 2), hidden, output_d], 1)))
        s = _act(self.conv_s(torch.cat([structures.flatten(1, 2), hidden, output_s], 1)))
        for block in self.blocks:
            d, s = block(d, s)
        return _act(self.conv_hd(d)) + _act(self.conv_hs(s)), self.conv_od(d), self.conv_os(s)

    def adapt(self, hidden: Tensor, current: Tensor) -> Tensor:
        """Keep of the hidden state (B, C, H, W) what resembles the current frame (B, 3, H, W).

        Every pixel has a 3×3 filter of its own, the same for all channels (Sect. 3.3).
        """
        kernels = _act(self.forget(current))  # (B, 9, H, W)
        h, w = hidden.shape[-2:]
        padded = functional.pad(hidden, (1, 1, 1, 1))
        offsets = [(dy, dx) for dy in range(_KERNEL_PX) for dx in range(_KERNEL_PX)]
        similarity = torch.zeros_like(hidden)
        for i, (dy, dx) in enumerate(offsets):
            similarity = torch.addcmul(
                similarity, padded[..., dy : dy + h, dx : dx + w], kernels[:, i : i + 1]
            )
        return hidden * similarity.sigmoid()


class RSDN(nn.Module):
    """Recurrent structure-detail network.

    Args:
        config: shape of the network.
    """

    def __init__(self, config: RSDNConfig) -> None:
        super().__init__()
        self.config = config
        outputs = 3 * config.scale**2
        self.neuro = RecurrentCell(config)  # the published code's name for it
        self.conv = nn.Conv2d(2 * outputs, outputs, 3, padding=1)

    def step(self, lq: Tensor, hidden: Hidden | None) -> tuple[Tensor, Hidden]:
        """Restore one frame.

        Args:
            lq: (B, 2, 3, H, W), the frame and the next one, which stands in for the frame before the first; later
                steps do not look at it.
            hidden: previous frame (B, 3, H, W), hidden state (B, C, H, W), the last detail and structure before
                pixel shuffle (B, 3·s², H, W) each; None at the start of a scene.

        Returns:
            sr (B, 3, sH, sW), and the hidden state for the next step.
        """
        current = lq[:, 0]
        if hidden is None:
            b, _, h, w = current.shape
            output = lq.new_zeros(b, 3 * self.config.scale**2, h, w)
            hidden = lq[:, 1], lq.new_zeros(b, self.config.channels, h, w), output, output
        previous, features, output_d, output_s = hidden
        frames = torch.stack([previous, current], 1)
        features, output_d, output_s = self.neuro(frames, features, output_d, output_s)
        sr = functional.pixel_shuffle(
            self.conv(torch.cat([output_d, output_s], 1)), self.config.scale
        )
        return sr, (current, features, output_d, output_s)

    def forward(self, lq: Tensor) -> Tensor:
        """Restore a clip: (B, T, 3, H, W) → (B, T, 3, sH, sW), the same as `step` by `step`."""
        sr, _ = run_online(self.step, lq, lookahead=1)
        return sr

    def forward_parts(self, lq: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Restore a clip and give what the training loss compares with the parts of gt (Eq. 8).

        Args:
            lq: (B, T, 3, H, W).

        Returns:
            sr, detail and structure, (B, T, 3, sH, sW) each.
        """
        parts: list[tuple[Tensor, Tensor]] = []

        def step(lq: Tensor, hidden: Hidden | None) -> tuple[Tensor, Hidden]:
            sr, hidden = self.step(lq, hidden)
            detail, structure = (
                functional.pixel_shuffle(output, self.config.scale) for output in hidden[2:]
            )
            parts.append((detail, structure))
            return sr, hidden

        sr, _ = run_online(step, lq, lookahead=1)
        details, structures = zip(*parts, strict=True)
        return sr, torch.stack(details, 1), torch.stack(structures, 1)


def decompose(clip: Tensor) -> tuple[Tensor, Tensor]:
    """Split frames into detail and structure, which sum up to them.

    Args:
        clip: (B, T, 3, H, W), H and W even.

    Returns:
        detail and structure, both of the shape of `clip`.

    Source: Sect. 3.1.
    """
    frames = clip.flatten(0, 1)
    small = functional.interpolate(frames, scale_factor=0.5, mode="bilinear")
    structure = functional.interpolate(small, scale_factor=2.0, mode="bilinear").reshape_as(clip)
    return clip - structure, structure


def _act(x: Tensor) -> Tensor:
    return functional.leaky_relu_(x, 0.1)


_AUTHORS: tuple[Rule, ...] = ((r"^neuro\.SD(\d+)\.", zero_based("neuro.blocks.{}.")),)


def _translate(state: State) -> dict[str, Tensor] | None:
    if not has_convolutions(state, "neuro.conv_d", "conv") or "neuro.forget.weight" not in state:
        return None
    channels, joined = shape_of(state, "neuro.conv_d.weight")[:2]
    outputs = shape_of(state, "conv.weight")[0]
    if outputs not in {3 * s * s for s in _SCALES} or joined != 6 + channels + outputs:
        return None
    own = rename(state, _AUTHORS)
    return own if "neuro.blocks.0.conv_d1.weight" in own else None


def _infer(state: State) -> RSDNConfig:
    return RSDNConfig(
        scale=round((state["conv.weight"].shape[0] / 3) ** 0.5),
        channels=state["neuro.conv_d.weight"].shape[0],
        num_blocks=count_blocks(state, "neuro.blocks."),
    )


def _contract(config: RSDNConfig) -> Contract:
    # The next frame is needed for the first step only, where the published code uses it as the previous one.
    # The frame's parts reach 3 pixels, the adaptation 2 more than the state; then a pixel for each 3×3 convolution:
    # conv_d, two a block, conv_od, conv.
    return Contract(
        scale=config.scale,
        temporal=Temporal("online", lookahead=1),
        halo_px=3 + 1 + 2 * config.num_blocks + 2,
        size_multiple=2,
    )


ARCHITECTURE = Architecture(
    name="RSDN",
    config=RSDNConfig,
    build=RSDN,
    translate=_translate,
    infer=_infer,
    contract=_contract,
    source="Isobe et al., Video Super-Resolution with Recurrent Structure-Detail Network, ECCV 2020",
)
