"""Zooming Slow-Mo: four times the size and twice the frame rate, in one network.

    lq (B, T, 3, H, W)
      features      t = 1 … T        conv ── residual blocks ── f(t)                     (B, C, H, W)
      half-way      f(t), f(t+1) ── each aligned with the other, three levels ── 1×1 ── f(t+½)
      both ways     t = 1, 1½, … T   h, c aligned with f(t) ── ConvLSTM ── h(t), c(t); and the same from the end
      each frame    [h forward, h backward] ── 1×1 ── residual blocks ── conv, shuffle ×2 ── conv, shuffle ×2
                    ── conv ── conv ── sr(t)
    sr (B, 2T - 1, 3, 4H, 4W): frames 0, 2, 4, … are at the times of the input, the others half-way

H and W are multiples of 4. Both ways share one ConvLSTM. There is no skip from the input.

Source: Xiang et al., "Zooming Slow-Mo: Fast and Accurate One-Stage Space-Time Video Super-Resolution", CVPR 2020,
Sec. 3; the alignment is that of Wang et al. (EDVR), CVPRW 2019, Sec. 3.2, both ways and without its last step.
Published: 64 channels, 8 offset groups, 5 and 40 residual blocks (11.1 M parameters), trained on 4 frames → 7 of
Vimeo-90K.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from tubelet.errors import ConfigError
from tubelet.layers.deform import ModulatedDeformConv
from tubelet.layers.frames import stack_frames
from tubelet.layers.recurrence import Edge, Past, Seen, sweep
from tubelet.layers.residual import ResidualBlock
from tubelet.layers.store import FeatureStore, open_store
from tubelet.models.architecture import Architecture, Contract
from tubelet.models.state_dict import (
    Rule,
    State,
    count_names,
    first_words,
    has_convolutions,
    rename,
)
from tubelet.types import Temporal

__all__ = [
    "ARCHITECTURE",
    "BiDeformableConvLSTM",
    "PyramidPairAlign",
    "Reconstruction",
    "SpaceTimeFeatures",
    "ZoomingSlowMo",
    "ZoomingSlowMoConfig",
    "infer_shape",
    "rename_space_time",
]

SCALE = 4
SIZE_MULTIPLE = 4  # two halvings that must come out even
HALO_PX = 32  # measured, random weights: tiles differ from the whole by 136 dB at the seam, with 16 px by 90 dB
OVERLAP_FRAMES = 8  # likewise: windows of both networks differ by 139 dB at the seam, with 4 by 104 dB, with 2 by 70 dB
_HR_CHANNELS = 64  # of the last convolutions, whatever the width of the others

Pyramid = list[Tensor]
"""Features at full, half and quarter size: (B, C, H, W), (B, C, H/2, W/2), (B, C, H/4, W/4)."""
Modulate = Callable[[int, Tensor], Tensor]
"""What is added to the offset features of a level: (1 to 3, features before the last convolution) → (B, C, h, w)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ZoomingSlowMoConfig:
    """Shape of a `ZoomingSlowMo`."""

    PUBLISHED_NAMES: ClassVar[Mapping[str, str]] = {
        "nf": "channels",
        "front_RBs": "num_front_blocks",
        "back_RBs": "num_back_blocks",
    }
    FORMER_NAMES: ClassVar[Mapping[str, str]] = {
        "front_blocks": "num_front_blocks",
        "back_blocks": "num_back_blocks",
    }

    channels: int = 64
    """Width of all features at low resolution."""
    groups: int = 8
    """Groups of channels with offsets of their own."""
    num_front_blocks: int = 5
    """Residual blocks that extract features."""
    num_back_blocks: int = 40
    """Residual blocks that reconstruct."""

    def __post_init__(self) -> None:
        if (
            min(self.channels, self.groups) < 1
            or min(self.num_front_blocks, self.num_back_blocks) < 0
        ):
            raise ConfigError(f"{self} is out of range: channels and groups ≥ 1, blocks ≥ 0")
        if self.channels % self.groups:
            raise ConfigError(f"groups={self.groups} must divide channels={self.channels}")


def _conv(in_channels: int, out_channels: int, *, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, stride, 1)


def _lrelu(x: Tensor) -> Tensor:
    return functional.leaky_relu_(x, 0.1)


def _double(x: Tensor) -> Tensor:
    return functional.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)


class _AlignLevel(nn.Module):
    """What one level of the pyramid has."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        c = channels
        self.offset_conv1 = _conv(2 * c, c)
        self.offset_conv2 = _conv(2 * c, c)
        self.offset_conv3 = _conv(c, c)
        self.dcn = ModulatedDeformConv(c, c, groups=groups)
        self.fea_conv = _conv(2 * c, c)


class _CoarsestLevel(nn.Module):
    """The same where there is nothing to take from a coarser one."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.offset_conv1 = _conv(2 * channels, channels)
        self.offset_conv2 = _conv(channels, channels)
        self.dcn = ModulatedDeformConv(channels, channels, groups=groups)


class _Side(nn.Module):
    """Align one frame of a pair: the coarsest level first, each next one refines (Sec. 3.2)."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.level1 = _AlignLevel(channels, groups)
        self.level2 = _AlignLevel(channels, groups)
        self.level3 = _CoarsestLevel(channels, groups)

    def forward(self, own: Pyramid, other: Pyramid, modulate: Modulate | None) -> Tensor:
        """Move `own` towards `other`: (B, C, H, W)."""
        level = self.level3
        x = _lrelu(level.offset_conv1(torch.cat([own[2], other[2]], 1)))
        guide = _guide(level.offset_conv2, x, modulate, 3)
        aligned = functional.leaky_relu(level.dcn(own[2], guide), 0.1)
        for number, level in ((2, self.level2), (1, self.level1)):
            x = _lrelu(level.offset_conv1(torch.cat([own[number - 1], other[number - 1]], 1)))
            coarser = _double(guide).mul_(
                2
            )  # offsets count in pixels, which are half as large here
            x = _lrelu(level.offset_conv2(torch.cat([x, coarser], 1)))
            guide = _guide(level.offset_conv3, x, modulate, number)
            finer = level.dcn(own[number - 1], guide)
            aligned = level.fea_conv(torch.cat([finer, _double(aligned)], 1))
            if number > 1:
                aligned = _lrelu(aligned)
        return aligned


def _guide(conv: nn.Conv2d, x: Tensor, modulate: Modulate | None, level: int) -> Tensor:
    """Make the features that tell the offsets of a level: (B, C, h, w)."""
    guide = _lrelu(conv(x))
    return guide if modulate is None else guide + modulate(level, x)


class PyramidPairAlign(nn.Module):
    """Align each frame of a pair with the other.

    Args:
        channels: C.
        groups: groups of channels with offsets of their own.
    """

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.side1 = _Side(channels, groups)
        self.side2 = _Side(channels, groups)

    def forward(
        self,
        first: Pyramid,
        second: Pyramid,
        modulate: tuple[Modulate | None, Modulate | None] = (None, None),
    ) -> Tensor:
        """Give (B, 2C, H, W): the first towards the second, then the second towards the first."""
        return torch.cat(
            [self.side1(first, second, modulate[0]), self.side2(second, first, modulate[1])], 1
        )


class _Halvings(nn.Module):
    """The two convolutions of each coarser level of a pyramid; a part of those who build one."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fea_L2_conv1 = _conv(channels, channels, stride=2)
        self.fea_L2_conv2 = _conv(channels, channels)
        self.fea_L3_conv1 = _conv(channels, channels, stride=2)
        self.fea_L3_conv2 = _conv(channels, channels)

    def forward(self, x: Tensor) -> Pyramid:
        """Build the pyramid of (B, C, H, W)."""
        half = _lrelu(self.fea_L2_conv2(_lrelu(self.fea_L2_conv1(x))))
        return [x, half, _lrelu(self.fea_L3_conv2(_lrelu(self.fea_L3_conv1(half))))]


class _AlignState(nn.Module):
    """Bring a state of the ConvLSTM to the current frame."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.pyramid = _Halvings(channels)
        self.pcd_align = PyramidPairAlign(channels, groups)
        self.fusion = nn.Conv2d(2 * channels, channels, 1)

    def forward(self, feat: Tensor, state: Tensor) -> Tensor:
        """Align state (B, C, H, W) with feat (B, C, H, W)."""
        return self.fusion(self.pcd_align(self.pyramid(feat), self.pyramid(state)))


class _DeformableConvLSTM(nn.Module):
    """A ConvLSTM whose states are aligned with each frame before they meet it (Sec. 3.3)."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.channels = channels
        self.pcd_h = _AlignState(channels, groups)
        self.pcd_c = _AlignState(channels, groups)
        self.gates = _conv(2 * channels, 4 * channels)

    def forward(self, feat: Tensor, past: Past) -> Tensor:
        """Take one step.

        Args:
            feat: (B, C, H, W).
            past: the last state (B, 2C, H, W), h then c; empty at the start of the video.

        Returns:
            the state (B, 2C, H, W).
        """
        h, c = past[0].chunk(2, 1) if past else (torch.zeros_like(feat), torch.zeros_like(feat))
        h, c = self.pcd_h(feat, h), self.pcd_c(feat, c)
        gates = self.gates(torch.cat([feat, h], 1))
        input_gate, forget_gate, output_gate = gates[:, : 3 * self.channels].sigmoid().chunk(3, 1)
        candidate = gates[:, 3 * self.channels :].tanh()
        c = forget_gate * c + input_gate * candidate
        return torch.cat([output_gate * c.tanh(), c], 1)


class BiDeformableConvLSTM(nn.Module):
    """Run one deformable ConvLSTM over a clip from both ends, and fuse what it knows of each moment.

    Args:
        channels: C.
        groups: groups of channels with offsets of their own.
    """

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.forward_net = _DeformableConvLSTM(channels, groups)
        self.conv_1x1 = nn.Conv2d(2 * channels, channels, 1)

    def forward(
        self, features: FeatureStore, count: int, *, before: Edge, after: Edge, seen: Seen | None
    ) -> Iterator[Tensor]:
        """Run over the moments 0 … count - 1 of a store.

        Args:
            features: one map (B, C, H, W) for each moment; it is taken out as the moment is finished.
            count: how many.
            before: gives the state of the sweep "forward" at moment -1.
            after: gives the state of the sweep "backward" at moment `count`.
            seen: called with the states of both sweeps, (B, 2C, H, W).

        Yields:
            (B, C, H, W), from the first moment to the last.
        """

        def backward(t: int, past: Past) -> Tensor:
            return self.forward_net(features.get(t)[0], past)

        def forward(t: int, past: Past) -> Tensor:
            nonlocal h_backward
            feat, h_backward = features.pop(t)
            return self.forward_net(feat, past)

        h_backward: Tensor | None = None
        for t, state in sweep("backward", count, -1, after, 1, backward, seen):
            features.append(t, _hidden_part(state))
        for _, state in sweep("forward", count, 1, before, 1, forward, seen):
            assert h_backward is not None
            yield self.conv_1x1(torch.cat([_hidden_part(state), h_backward], 1))


def _hidden_part(state: Tensor) -> Tensor:
    """Take h (B, C, H, W) of a state (B, 2C, H, W), as a tensor of its own."""
    h, _ = state.chunk(2, 1)
    return h.clone()


class SpaceTimeFeatures(nn.Module):
    """Features of every frame, and by alignment those half-way between any two.

    Args:
        channels: C.
        groups: groups of channels with offsets of their own.
        num_blocks: residual blocks of each frame.
    """

    def __init__(self, channels: int, groups: int, num_blocks: int) -> None:
        super().__init__()
        self.conv_first = _conv(3, channels)
        self.blocks = nn.Sequential(*(ResidualBlock(channels) for _ in range(num_blocks)))
        self.pyramid = _Halvings(channels)
        self.pcd_align = PyramidPairAlign(channels, groups)
        self.fusion = nn.Conv2d(2 * channels, channels, 1)

    def forward(
        self,
        frames: Iterable[Tensor],
        between: Sequence[tuple[Modulate | None, Modulate | None]] = ((None, None),),
    ) -> Iterator[Tensor]:
        """Look at a clip frame by frame.

        Args:
            frames: T of (B, 3, H, W).
            between: for each of the k moments between two frames, how the alignment of the first and of the second
                is modulated; by default there is one, not modulated.

        Yields:
            T + (T - 1)·k maps (B, C, H, W), in order of time.
        """
        before: Pyramid | None = None
        for frame in frames:
            pyramid = self.pyramid(self.blocks(_lrelu(self.conv_first(frame))))
            if before is not None:
                for modulate in between:
                    yield self.fusion(self.pcd_align(before, pyramid, modulate))
            yield pyramid[0]
            before = pyramid


class Reconstruction(nn.Module):
    """Residual blocks, and two shuffles to four times the size.

    Args:
        channels: C of the input.
        num_blocks: residual blocks.
    """

    def __init__(self, channels: int, num_blocks: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(ResidualBlock(channels) for _ in range(num_blocks)))
        self.upconv1 = _conv(channels, 4 * channels)
        self.upconv2 = _conv(channels, 4 * _HR_CHANNELS)
        self.conv_hr = _conv(_HR_CHANNELS, _HR_CHANNELS)
        self.conv_last = _conv(_HR_CHANNELS, 3)

    def forward(self, feat: Tensor, skip: Tensor | None = None) -> Tensor:
        """Map (B, C, H, W), plus `skip` of that shape after the blocks, to an image (B, 3, 4H, 4W)."""
        x = self.blocks(feat)
        if skip is not None:
            x = x + skip
        x = _lrelu(functional.pixel_shuffle(self.upconv1(x), 2))
        x = _lrelu(functional.pixel_shuffle(self.upconv2(x), 2))
        return self.conv_last(_lrelu(self.conv_hr(x)))


class ZoomingSlowMo(nn.Module):
    """Space-time super-resolution, ×4 in size and ×2 in time; see the drawing on top of this file.

    Args:
        config: shape of the network.
    """

    def __init__(self, config: ZoomingSlowMoConfig) -> None:
        super().__init__()
        self.config = config
        self.features = SpaceTimeFeatures(config.channels, config.groups, config.num_front_blocks)
        self.lstm = BiDeformableConvLSTM(config.channels, config.groups)
        self.reconstruction = Reconstruction(config.channels, config.num_back_blocks)

    def forward(self, lq: Tensor, before: Edge = Edge(), after: Edge = Edge()) -> Tensor:
        """Restore a clip: (B, T, 3, H, W) → (B, 2T - 1, 3, 4H, 4W); see `restore`."""
        return stack_frames(self.restore(lq, before=before, after=after), 2 * lq.shape[1] - 1)

    def restore(
        self,
        lq: Tensor,
        *,
        before: Edge = Edge(),
        after: Edge = Edge(),
        seen: Seen | None = None,
        store: FeatureStore | None = None,
    ) -> Iterator[Tensor]:
        """Restore a clip as `forward` does, and yield each frame as it is done.

        The moments of the clip are 0 … 2T - 2, its frames and those half-way. The state at an edge
        is that of the moment next to the clip, half-way to the frame of the edge. The frame itself
        is not looked at.

        Args:
            lq: (B, T, 3, H, W), H and W multiples of 4.
            before: one frame, and the state of the sweep "forward"; empty where the video begins.
            after: one frame, and the state of the sweep "backward"; empty where the video ends.
            seen: called with the states of both sweeps at every moment, (B, 2C, H, W).
            store: keeps the features of the clip, and the hidden states of one direction.

        Yields:
            (B, 3, 4H, 4W), 2T - 1 times.
        """
        for _, (feat,) in self.propagate(lq, before=before, after=after, seen=seen, store=store):
            yield self.reconstruction(feat)

    def propagate(
        self,
        lq: Tensor,
        *,
        before: Edge = Edge(),
        after: Edge = Edge(),
        seen: Seen | None = None,
        store: FeatureStore | None = None,
    ) -> Iterator[tuple[int, list[Tensor]]]:
        """Run both sweeps; arguments as in `restore`.

        Yields:
            each moment, and its features of both sweeps fused, (B, C, H, W).
        """
        count = 2 * lq.shape[1] - 1
        with open_store(store) as features:
            for t, feat in enumerate(self.features(lq.unbind(1))):
                features.append(t, feat)
            fused = self.lstm(features, count, before=before, after=after, seen=seen)
            for t, feat in enumerate(fused):
                yield t, [feat]


_AUTHORS: tuple[Rule, ...] = (
    (r"\.conv_offset_mask\.", ".conv_offset."),
    (r"\bpcd_align\.L(\d)_dcnpack_(\d)\.", r"pcd_align.side\2.level\1.dcn."),
    (r"\bpcd_align\.L(\d)_(offset_conv\d|fea_conv)_(\d)\.", r"pcd_align.side\3.level\1.\2."),
    (r"\bfea_L(\d)_", r"pyramid.fea_L\1_"),
    (r"\bpyramid\.pyramid\.", "pyramid."),
    (r"^feature_extraction\.", "features.blocks."),
    (r"^(conv_first|pyramid|pcd_align|fusion)\.", r"features.\1."),
    (r"^ConvBLSTM\.", "lstm."),
    (r"^lstm\.forward_net\.cell_list\.0\.conv\.", "lstm.forward_net.gates."),
    (r"^recon_trunk\.", "reconstruction.blocks."),
    (r"^(upconv1|upconv2|conv_last)\.", r"reconstruction.\1."),
    (r"^HRconv\.", "reconstruction.conv_hr."),
)


def rename_space_time(state: State) -> dict[str, Tensor] | None:
    """Map the names that both published space-time networks share to ours, which stay; None for foreign ones."""
    if "ConvBLSTM.conv_1x1.weight" not in state and "lstm.conv_1x1.weight" not in state:
        return None
    own = rename(state, _AUTHORS)
    return own if has_convolutions(own, "features.conv_first") else None


def infer_shape(state: State) -> dict[str, int]:
    """Read width, groups and numbers of blocks off our names and shapes."""
    offsets = state.get("features.pcd_align.side1.level1.dcn.conv_offset.weight")
    return {
        "channels": state["features.conv_first.weight"].shape[0],
        "groups": 1
        if offsets is None
        else offsets.shape[0] // 27,  # dy, dx and a weight for each of 3×3 taps
        "num_front_blocks": count_names(state, r"features\.blocks\..*\.conv1\.weight"),
        "num_back_blocks": count_names(state, r"reconstruction\.blocks\..*\.conv1\.weight"),
    }


def _translate(state: State) -> dict[str, Tensor] | None:
    """Map the authors' names; None where they are of another network."""
    own = rename_space_time(state)
    if own is None or first_words(own) != {"features", "lstm", "reconstruction"}:
        return None  # foreign, or more than a Zooming Slow-Mo
    return own


def _infer(state: State) -> ZoomingSlowMoConfig:
    return ZoomingSlowMoConfig(**infer_shape(state))


def _contract(config: ZoomingSlowMoConfig) -> Contract:
    del config  # every configuration asks for the same
    temporal = Temporal("clip", overlap_frames=OVERLAP_FRAMES, between_frames=1)
    return Contract(
        scale=SCALE,
        temporal=temporal,
        halo_px=HALO_PX,
        size_multiple=SIZE_MULTIPLE,
        streams=True,
        edge_frames=1,
    )


ARCHITECTURE = Architecture(
    name="ZoomingSlowMo",
    config=ZoomingSlowMoConfig,
    build=ZoomingSlowMo,
    translate=_translate,
    infer=_infer,
    contract=_contract,
    source="https://arxiv.org/abs/2002.11616",
)
