"""Zooming Slow-Mo: four times the size and twice the frame rate in one network.

    lq (B, T, 3, H, W)
      features      t = 1 … T        conv ── residual blocks ── f(t)                 (B, C, H, W)
      interpolation f(t), f(t+1) ── each aligned with the other, three levels ── 1×1 ── f(t+½)
      both ways     t = 1, 1½, … T   h, c aligned with f(t) ── ConvLSTM ── h(t), c(t);
                                     and the same from the last frame to the first
      each frame    [h forward, h backward] ── 1×1 ── residual blocks
                    ── conv, shuffle ×2 ── conv, shuffle ×2 ── conv ── conv ── sr(t)
    sr (B, 2T - 1, 3, 4H, 4W): frames 0, 2, 4, … are at the times of the input, the others half-way

H and W are multiples of 4. Both directions share one ConvLSTM. There is no skip connection from the
input.

Published: 64 channels, 8 offset groups, 5 and 40 residual blocks (11.1 M parameters), trained on
4 frames → 7 of Vimeo-90K.

Source: Xiang et al., "Zooming Slow-Mo: Fast and Accurate One-Stage Space-Time Video
Super-Resolution", CVPR 2020, Sec. 3. The alignment is that of Wang et al. (EDVR), CVPRW 2019,
Sec. 3.2, in both directions and without the cascade.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from tubelet.layers.convolution import LeakyReLU, ShuffleConv
from tubelet.layers.deform import ModulatedDeformConv
from tubelet.layers.frames import stack_frames
from tubelet.layers.recurrence import Edge, EdgeStates, Past, StateObserver, sweep
from tubelet.layers.residual import ResidualBlock
from tubelet.layers.store import FeatureStore, open_store
from tubelet.models.architecture import Architecture, Contract
from tubelet.models.config_checks import check_divides, check_min
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
# The pyramid halves the frames twice.
SIZE_MULTIPLE = 4
# Measured with random weights: at the seam, tiles differ from the whole frame by 136 dB, with 16 px
# by 90 dB.
HALO_PX = 32
# Measured with random weights: at the seam, windows of both space-time networks differ from the
# whole clip by 155 dB, which is the precision of the figure; with 1 frame by 129 dB.
LOOKAHEAD_FRAMES = 4
# Width of the convolutions at high resolution: published files have it at every `channels`.
_HR_CHANNELS = 64
# Negative slope of all activations.
_SLOPE = 0.1

Pyramid = list[Tensor]
"""Features at full, half and quarter size: (B, C, H, W), (B, C, H/2, W/2), (B, C, H/4, W/4)."""
Modulate = Callable[[int, Tensor], Tensor]
"""Computes a term to add to the offset features of an alignment level.

It takes the level, 1 (full size) to 3, and the features before the last convolution, (B, C, h, w),
and returns (B, C, h, w).
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ZoomingSlowMoConfig:
    """Configuration of `ZoomingSlowMo`."""

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
    """Number of channels of all features at low resolution."""
    groups: int = 8
    """Offset groups of the deformable convolutions: groups of channels with their own offsets."""
    num_front_blocks: int = 5
    """Number of residual blocks of the feature extraction."""
    num_back_blocks: int = 40
    """Number of residual blocks of the reconstruction."""

    def __post_init__(self) -> None:
        check_min(self, "channels", 1)
        check_divides(self, "groups", "channels")
        check_min(self, "num_front_blocks", 0)
        check_min(self, "num_back_blocks", 0)


def _conv(in_channels: int, out_channels: int, *, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, stride, 1)


def _blocks(channels: int, num_blocks: int) -> nn.Sequential:
    return nn.Sequential(*(ResidualBlock(channels) for _ in range(num_blocks)))


def _lrelu(x: Tensor) -> Tensor:
    """Apply LeakyReLU in place, where `x` is the output of a convolution and used nowhere else."""
    return functional.leaky_relu_(x, _SLOPE)


def _double(x: Tensor) -> Tensor:
    return functional.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)


class _AlignLevel(nn.Module):
    """Layers of one alignment level that refines the result of the level below."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        c = channels
        self.offset_conv1 = _conv(2 * c, c)
        self.offset_conv2 = _conv(2 * c, c)
        self.offset_conv3 = _conv(c, c)
        self.dcn = ModulatedDeformConv(c, c, groups=groups)
        self.fea_conv = _conv(2 * c, c)


class _CoarsestLevel(nn.Module):
    """Layers of the coarsest alignment level, which has no level below."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.offset_conv1 = _conv(2 * channels, channels)
        self.offset_conv2 = _conv(channels, channels)
        self.dcn = ModulatedDeformConv(channels, channels, groups=groups)


class _Side(nn.Module):
    """Align one frame of a pair with the other, from the coarsest level on (Sec. 3.2)."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.level1 = _AlignLevel(channels, groups)
        self.level2 = _AlignLevel(channels, groups)
        self.level3 = _CoarsestLevel(channels, groups)

    def forward(self, source: Pyramid, target: Pyramid, modulate: Modulate | None) -> Tensor:
        """Align `source` with `target`: (B, C, H, W)."""
        # Level 3, a quarter of the size.
        level = self.level3
        x = torch.cat([source[2], target[2]], 1)
        x = _lrelu(level.offset_conv1(x))
        offset = _offset_features(level.offset_conv2, x, modulate, 3)
        # Not in place, because the deformable convolution keeps its output.
        aligned = functional.leaky_relu(level.dcn(source[2], offset), _SLOPE)

        # Levels 2 and 1 refine the result of the level below.
        for number, level in ((2, self.level2), (1, self.level1)):
            own = source[number - 1]
            other = target[number - 1]
            x = torch.cat([own, other], 1)
            x = _lrelu(level.offset_conv1(x))
            # Offsets are in pixels, so they double with the size.
            below = _double(offset).mul_(2)
            x = torch.cat([x, below], 1)
            x = _lrelu(level.offset_conv2(x))
            offset = _offset_features(level.offset_conv3, x, modulate, number)
            finer = level.dcn(own, offset)
            aligned = torch.cat([finer, _double(aligned)], 1)
            aligned = level.fea_conv(aligned)
            # The result of the pyramid itself has no activation.
            if number > 1:
                aligned = _lrelu(aligned)
        return aligned


def _offset_features(
    conv: nn.Conv2d,
    x: Tensor,
    modulate: Modulate | None,
    level: int,
) -> Tensor:
    """Compute the features from which a level predicts its offsets: (B, C, h, w)."""
    offset = _lrelu(conv(x))
    if modulate is None:
        return offset
    return offset + modulate(level, x)


class PyramidPairAlign(nn.Module):
    """Align each frame of a pair with the other.

    Args:
        channels: Number of channels of the features.
        groups: Offset groups of the deformable convolutions.
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
        """Align both frames.

        Args:
            first: Pyramid of the first frame.
            second: Pyramid of the second frame.
            modulate: Modulation of the alignment of the first frame, and of the second.

        Returns:
            The first frame aligned with the second, then the second aligned with the first,
            (B, 2C, H, W).
        """
        first_aligned = self.side1(first, second, modulate[0])
        second_aligned = self.side2(second, first, modulate[1])
        return torch.cat([first_aligned, second_aligned], 1)


class _Halvings(nn.Module):
    """Build a pyramid of three levels: two convolutions for each coarser level."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fea_L2_conv1 = _conv(channels, channels, stride=2)
        self.fea_L2_conv2 = _conv(channels, channels)
        self.fea_L3_conv1 = _conv(channels, channels, stride=2)
        self.fea_L3_conv2 = _conv(channels, channels)

    def forward(self, x: Tensor) -> Pyramid:
        """Build the pyramid of features (B, C, H, W)."""
        half = _lrelu(self.fea_L2_conv1(x))
        half = _lrelu(self.fea_L2_conv2(half))
        quarter = _lrelu(self.fea_L3_conv1(half))
        quarter = _lrelu(self.fea_L3_conv2(quarter))
        return [x, half, quarter]


class _AlignState(nn.Module):
    """Align a state of the ConvLSTM with the current frame."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.pyramid = _Halvings(channels)
        self.pcd_align = PyramidPairAlign(channels, groups)
        self.fusion = nn.Conv2d(2 * channels, channels, 1)

    def forward(self, feat: Tensor, state: Tensor) -> Tensor:
        """Align a state (B, C, H, W) with the features of a frame (B, C, H, W)."""
        aligned = self.pcd_align(self.pyramid(feat), self.pyramid(state))
        return self.fusion(aligned)


class _DeformableConvLSTM(nn.Module):
    """A ConvLSTM that aligns its states with each frame before it updates them (Sec. 3.3)."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.channels = channels
        self.pcd_h = _AlignState(channels, groups)
        self.pcd_c = _AlignState(channels, groups)
        self.gates = _conv(2 * channels, 4 * channels)

    def forward(self, feat: Tensor, past: Past) -> Tensor:
        """Update the state with one frame.

        Args:
            feat: Features of the frame, (B, C, H, W).
            past: Last state [h, c], (B, 2C, H, W); empty at the start of the video.

        Returns:
            New state [h, c], (B, 2C, H, W).
        """
        if past:
            h, c = past[0].chunk(2, 1)
        else:
            h = torch.zeros_like(feat)
            c = torch.zeros_like(feat)
        h = self.pcd_h(feat, h)
        c = self.pcd_c(feat, c)

        # The four parts of the gates: input, forget, output, candidate.
        gates = self.gates(torch.cat([feat, h], 1))
        sigmoids = gates[:, : 3 * self.channels].sigmoid()
        input_gate, forget_gate, output_gate = sigmoids.chunk(3, 1)
        candidate = gates[:, 3 * self.channels :].tanh()
        c = forget_gate * c + input_gate * candidate
        h = output_gate * c.tanh()
        return torch.cat([h, c], 1)


class BiDeformableConvLSTM(nn.Module):
    """Run one deformable ConvLSTM over a clip in both directions, and fuse the hidden states.

    Args:
        channels: Number of channels of the features.
        groups: Offset groups of the deformable convolutions.
    """

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.forward_net = _DeformableConvLSTM(channels, groups)
        self.conv_1x1 = nn.Conv2d(2 * channels, channels, 1)

    def forward(
        self,
        features: FeatureStore,
        count: int,
        *,
        before: Edge,
        after: Edge,
        on_state: StateObserver | None,
    ) -> Iterator[Tensor]:
        """Run over moments 0 … count - 1: the frames of the clip and those between them.

        Args:
            features: Store with the features of each moment, (B, C, H, W); a moment is removed when
                it is finished.
            count: Number of moments.
            before: Edge with the state of the sweep "forward" at moment -1.
            after: Edge with the state of the sweep "backward" at moment `count`.
            on_state: Callback for every state of both sweeps, (B, 2C, H, W).

        Yields:
            Fused features of each moment in order, (B, C, H, W).
        """
        h_backward: Tensor | None = None

        def backward(t: int, past: Past) -> Tensor:
            return self.forward_net(features.get(t)[0], past)

        def forward(t: int, past: Past) -> Tensor:
            nonlocal h_backward
            feat, h_backward = features.pop(t)
            return self.forward_net(feat, past)

        for t, state in sweep(
            "backward",
            count,
            step=-1,
            edge=after,
            order=1,
            advance=backward,
            on_state=on_state,
        ):
            features.append(t, _hidden(state))
        for _, state in sweep(
            "forward",
            count,
            step=1,
            edge=before,
            order=1,
            advance=forward,
            on_state=on_state,
        ):
            # `forward` has just set it.
            assert h_backward is not None
            yield self.conv_1x1(torch.cat([_hidden(state), h_backward], 1))


def _hidden(state: Tensor) -> Tensor:
    """Copy h (B, C, H, W) out of a state [h, c], so that c can be freed."""
    h, _ = state.chunk(2, 1)
    return h.clone()


class SpaceTimeFeatures(nn.Module):
    """Compute the features of every frame, and by alignment those of moments between frames.

    Args:
        channels: Number of channels of the features.
        groups: Offset groups of the deformable convolutions.
        num_blocks: Number of residual blocks for each frame.
    """

    def __init__(self, channels: int, groups: int, num_blocks: int) -> None:
        super().__init__()
        self.conv_first = _conv(3, channels)
        self.blocks = _blocks(channels, num_blocks)
        self.pyramid = _Halvings(channels)
        self.pcd_align = PyramidPairAlign(channels, groups)
        self.fusion = nn.Conv2d(2 * channels, channels, 1)

    def forward(
        self,
        frames: Iterable[Tensor],
        between: Sequence[tuple[Modulate | None, Modulate | None]] = ((None, None),),
    ) -> Iterator[Tensor]:
        """Compute the features of a clip, frame by frame.

        Args:
            frames: T frames, (B, 3, H, W) each.
            between: For each of the k moments between two frames, the modulation of the alignment
                of the first frame and of the second. The default is one moment, not modulated.

        Yields:
            Features of T + (T - 1)·k moments in order of time, (B, C, H, W) each.
        """
        last: Pyramid | None = None
        for frame in frames:
            feat = _lrelu(self.conv_first(frame))
            feat = self.blocks(feat)
            pyramid = self.pyramid(feat)
            if last is not None:
                # Feature interpolation (Sec. 3.2).
                for modulate in between:
                    yield self.fusion(self.pcd_align(last, pyramid, modulate))
            yield pyramid[0]
            last = pyramid


class Reconstruction(nn.Module):
    """Residual blocks, and two pixel shuffles to four times the size.

    Args:
        channels: Number of channels of the input.
        num_blocks: Number of residual blocks.
    """

    def __init__(self, channels: int, num_blocks: int) -> None:
        super().__init__()
        self.blocks = _blocks(channels, num_blocks)
        self.upconv1 = ShuffleConv(channels, channels, act=LeakyReLU(_SLOPE))
        self.upconv2 = ShuffleConv(channels, _HR_CHANNELS, act=LeakyReLU(_SLOPE))
        self.conv_hr = _conv(_HR_CHANNELS, _HR_CHANNELS)
        self.conv_last = _conv(_HR_CHANNELS, 3)

    def forward(self, feat: Tensor, skip: Tensor | None = None) -> Tensor:
        """Compute the restored frame.

        Args:
            feat: Features, (B, C, H, W).
            skip: Features to add after the residual blocks, (B, C, H, W).

        Returns:
            Restored frame, (B, 3, 4H, 4W).
        """
        x = self.blocks(feat)
        if skip is not None:
            x = x + skip
        x = self.upconv2(self.upconv1(x))
        return self.conv_last(_lrelu(self.conv_hr(x)))


class ZoomingSlowMo(nn.Module):
    """Space-time super-resolution, ×4 in size and ×2 in frame rate; see the top of this file.

    Args:
        config: Configuration of the network.
    """

    def __init__(self, config: ZoomingSlowMoConfig) -> None:
        super().__init__()
        self.config = config
        self.features = SpaceTimeFeatures(config.channels, config.groups, config.num_front_blocks)
        self.lstm = BiDeformableConvLSTM(config.channels, config.groups)
        self.reconstruction = Reconstruction(config.channels, config.num_back_blocks)

    def forward(
        self,
        lq: Tensor,
        before: Edge = Edge(),
        after: Edge = Edge(),
    ) -> Tensor:
        """Restore a clip: (B, T, 3, H, W) → (B, 2T - 1, 3, 4H, 4W); see `restore`."""
        frames = self.restore(lq, before=before, after=after)
        return stack_frames(frames, 2 * lq.shape[1] - 1)

    def restore(
        self,
        lq: Tensor,
        *,
        before: Edge = Edge(),
        after: Edge = Edge(),
        on_state: StateObserver | None = None,
        store: FeatureStore | None = None,
    ) -> Iterator[Tensor]:
        """Restore a clip like `forward`, but yield each frame as soon as it is finished.

        The moments 0 … 2T - 2 of the clip are its frames and those half-way between them. The state
        in an edge is that of the moment next to the clip, half-way to the frame in the edge. The
        frame itself is not used.

        Args:
            lq: Low-quality clip, (B, T, 3, H, W), H and W multiples of 4.
            before: One frame before the clip and the state of the sweep "forward"; empty at the
                start of the video.
            after: One frame after the clip and the state of the sweep "backward"; empty at the end
                of the video.
            on_state: Callback for the states of both sweeps at every moment, (B, 2C, H, W).
            store: Store for the features of the clip and the hidden states of one direction.

        Yields:
            2T - 1 restored frames in order of time, (B, 3, 4H, 4W) each.
        """
        clip_feats = self.propagate(
            lq,
            before=before,
            after=after,
            on_state=on_state,
            store=store,
        )
        for _, (feat,) in clip_feats:
            yield self.reconstruction(feat)

    def propagate(
        self,
        lq: Tensor,
        *,
        before: Edge = Edge(),
        after: Edge = Edge(),
        on_state: StateObserver | None = None,
        store: FeatureStore | None = None,
    ) -> Iterator[tuple[int, list[Tensor]]]:
        """Extract and interpolate features, and propagate them in both directions.

        Args:
            lq: See `restore`.
            before: See `restore`.
            after: See `restore`.
            on_state: See `restore`.
            store: See `restore`.

        Yields:
            The index of each moment and its fused features of both sweeps, (B, C, H, W).
        """
        num_moments = 2 * lq.shape[1] - 1
        with open_store(store) as features:
            for t, feat in enumerate(self.features(lq.unbind(1))):
                features.append(t, feat)
            fused = self.lstm(
                features,
                num_moments,
                before=before,
                after=after,
                on_state=on_state,
            )
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


# Each group predicts dy, dx and a weight for each of 3×3 kernel taps.
_OFFSET_CHANNELS = 27


def rename_space_time(state: State) -> dict[str, Tensor] | None:
    """Rename the tensors that both published space-time networks have, from the authors' files.

    Args:
        state: Tensors by name. Names that are ours already are unchanged.

    Returns:
        The renamed state dict, or None if it belongs to neither network.
    """
    if "ConvBLSTM.conv_1x1.weight" not in state and "lstm.conv_1x1.weight" not in state:
        return None
    renamed = rename(state, _AUTHORS)
    return renamed if has_convolutions(renamed, "features.conv_first") else None


def infer_shape(state: State) -> dict[str, int]:
    """Infer the configuration fields that both space-time networks have.

    Args:
        state: Tensors by our names.

    Returns:
        `channels`, `groups`, `num_front_blocks` and `num_back_blocks`.
    """
    groups = 1
    offset_weight = state.get("features.pcd_align.side1.level1.dcn.conv_offset.weight")
    if offset_weight is not None:
        groups = offset_weight.shape[0] // _OFFSET_CHANNELS
    return {
        "channels": state["features.conv_first.weight"].shape[0],
        "groups": groups,
        "num_front_blocks": count_names(state, r"features\.blocks\..*\.conv1\.weight"),
        "num_back_blocks": count_names(state, r"reconstruction\.blocks\..*\.conv1\.weight"),
    }


def _translate(state: State) -> dict[str, Tensor] | None:
    """Rename the tensors of a file of the authors.

    Returns:
        The renamed state dict, or None if it belongs to another architecture.
    """
    renamed = rename_space_time(state)
    # A file with more modules is of a network that extends Zooming Slow-Mo.
    if renamed is None or first_words(renamed) != {"features", "lstm", "reconstruction"}:
        return None
    return renamed


def _infer(state: State) -> ZoomingSlowMoConfig:
    return ZoomingSlowMoConfig(**infer_shape(state))


def _contract(config: ZoomingSlowMoConfig) -> Contract:
    # All configurations have the same contract.
    del config
    return Contract(
        scale=SCALE,
        temporal=Temporal("clip", between_frames=1),
        halo_px=HALO_PX,
        size_multiple=SIZE_MULTIPLE,
        streams=True,
        edge_frames=1,
        edge_states=EdgeStates(before=("forward",), after=("backward",)),
        lookahead_frames=LOOKAHEAD_FRAMES,
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
