"""RVRT: a recurrent transformer that propagates two frames at a time.

    lq (B, T, 3, H, W); clip step c has the frames 2c and 2c + 1
      feat_extract, frame by frame ── g(c)                                         (B·2, C, H, W)
      four sweeps over the clip steps: backward_1, forward_1, backward_2, forward_2
        sweep j at step c; p is the step that it visited before
          aligned(c) = align f_j(p) by guided deformable attention with the
                       queries f_{j-1}(c) and keys f_{j-1}(p) of the sweep before  f_0 = g
          f_j(c)     = aligned(c) + backbone_j [g(c), f_1(c) … f_{j-1}(c), aligned(c)]
      reconstruction [g, f_1 … f_4], frame by frame
         ── 1×1 conv ── conv, shuffle ×2 ── conv, shuffle ×2 ── conv ── conv ──(+)── sr(t)
      lq(t) ──────────────────────────── bilinear ×4 ──────────────────────────┘
    sr (B, T, 3, 4H, 4W)

    trunk    conv ─ LN ─ MRSTBs ─ LN                      feat_extract, backbone, reconstruction
    MRSTB    x + linear(Swin layers(x))
    layer    x + attention(LN x), then x + MLP(LN x); the windows of every second layer are shifted

The backbone attends in windows of both frames of a step, the other trunks in windows of one frame.
The alignment of sweeps 1 and 2 starts from the optical flow between the frames, that of sweeps 3
and 4 from the positions at which 1 and 2 sampled in the mean. At the first step that a sweep
visits, aligned(c) is zero.

A video of any length can be restored: if its number of frames is odd, the last frame is repeated,
and the result of the copy is dropped. Inside a video, clips begin and end between two steps.

Published: 144 channels, windows of 8 (10.8 M parameters), for REDS4 and Vimeo-90K.

Source: Liang et al., "Recurrent Video Restoration Transformer with Guided Deformable Attention",
NeurIPS 2022, Sec. 3.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from tubelet.errors import ConfigError
from tubelet.layers.attention import Mlp
from tubelet.layers.clip_swin import ClipSwinBlock
from tubelet.layers.convolution import ConvAct, ConvCat, LeakyReLU, ShuffleConv
from tubelet.layers.frames import stack_frames
from tubelet.layers.guided_attention import Aligned, GuidedDeformAttention
from tubelet.layers.recurrence import Edge, EdgeStates, Past, StateObserver, clip_frames, sweep
from tubelet.layers.spynet import SpyNet
from tubelet.layers.store import FeatureStore, open_store
from tubelet.layers.upsampling import enlarge, shuffle_x4
from tubelet.models.architecture import Architecture, Contract
from tubelet.models.config_checks import check_min, check_positive
from tubelet.models.spynet import rename_spynet
from tubelet.models.state_dict import (
    Rule,
    State,
    count_names,
    first_words,
    has_convolutions,
    input_channels,
    rename,
    shape_of,
    without,
)
from tubelet.ops.warp import backward_warp
from tubelet.types import Temporal

__all__ = ["ARCHITECTURE", "RVRT", "RVRTConfig"]

_SCALE = 4
_STEP_FRAMES = 2
# Width of the upsampler: published files have it at every `channels`.
_HR_CHANNELS = 64
_SLOPE = 0.1
_SWEEPS = ("backward_1", "forward_1", "backward_2", "forward_2")
_STATES = EdgeStates(
    before=("forward_1", "forward_1/key", "forward_2", "forward_2/key"),
    after=("backward_1", "backward_1/key", "backward_2", "backward_2/key"),
)
_Direction = Literal[-1, 1]


@dataclass(frozen=True, slots=True, kw_only=True)
class RVRTConfig:
    """Configuration of an `RVRT`.

    Fields with three numbers are for the feature extraction, the backbone of each sweep, and the
    reconstruction.
    """

    PUBLISHED_NAMES: ClassVar[Mapping[str, str]] = {
        "deformable_groups": "groups",
    }

    channels: int = 144
    """Number of channels of the features."""
    num_blocks: tuple[int, int, int] = (1, 2, 1)
    """Number of residual blocks (MRSTBs)."""
    depths: tuple[int, int, int] = (2, 2, 2)
    """Number of Swin layers in each block."""
    num_heads: tuple[int, int, int] = (6, 6, 6)
    """Number of attention heads of each Swin layer."""
    window: int = 8
    """Side of a window, lq pixels."""
    mlp_ratio: float = 2.0
    """Hidden width of the MLPs of the Swin layers divided by `channels`."""
    groups: int = 12
    """Offset groups of the alignment: the first half for keys, the second half for values."""
    attention_heads: int = 12
    """Number of heads of the alignment, a multiple of half the groups. Checkpoints do not store it:
    `infer` takes one for each group, as published."""
    max_residue_magnitude: float = 10.0
    """Maximum distance of an offset of the alignment from the flow, lq pixels. Checkpoints do not
    store it: `infer` takes 10, as published."""

    def __post_init__(self) -> None:
        for field in ("num_blocks", "depths", "num_heads"):
            numbers = getattr(self, field)
            if len(numbers) != 3 or min(numbers) < 1:
                raise ConfigError(f"RVRTConfig: {field}={numbers} must hold three numbers above 0")
        for heads in self.num_heads:
            if self.channels % heads:
                raise ConfigError(
                    f"RVRTConfig: each of num_heads={self.num_heads} must divide "
                    f"channels={self.channels}"
                )
        check_min(self, "window", 1)
        check_positive(self, "mlp_ratio")
        check_min(self, "groups", 2)
        if self.groups % 2:
            raise ConfigError(f"RVRTConfig: groups={self.groups} must be even")
        if 2 * self.channels % self.attention_heads or self.attention_heads % (self.groups // 2):
            raise ConfigError(
                f"RVRTConfig: attention_heads={self.attention_heads} must divide twice the "
                f"channels={self.channels}, and half the groups={self.groups} must divide it"
            )


class SwinLayer(ClipSwinBlock):
    """Attention within windows of one or two frames, then an MLP: (B, D, H, W, C) → the same.

    Args:
        config: Configuration of the network.
        heads: Number of attention heads.
        frames: Number of frames of a window.
        shift: Shift of the windows, lq pixels.
    """

    def __init__(self, config: RVRTConfig, heads: int, frames: int, shift: int) -> None:
        c = config.channels
        mlp = Mlp(c, round(c * config.mlp_ratio))
        window = (frames, config.window, config.window)
        super().__init__(c, heads, window, (0, shift, shift), mlp)


class MRSTB(nn.Module):
    """Modified residual Swin Transformer block: Swin layers, a linear layer, a skip.

    Args:
        config: Configuration of the network.
        depth: Number of Swin layers.
        heads: Number of attention heads.
        frames: Number of frames of a window.
    """

    def __init__(self, config: RVRTConfig, depth: int, heads: int, frames: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        for i in range(depth):
            # Every second layer shifts its windows, so that information crosses their borders.
            shift = config.window // 2 if i % 2 else 0
            self.layers.append(SwinLayer(config, heads, frames, shift))
        self.linear = nn.Linear(config.channels, config.channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, D, H, W, C) to the same shape."""
        y = x
        for layer in self.layers:
            y = layer(y)
        return x + self.linear(y)


class TransformerTrunk(nn.Module):
    """Convolution over the concatenation of its inputs, then residual blocks, between two norms.

    Args:
        in_channels: Number of channels of all inputs together.
        config: Configuration of the network.
        stage: Index of the trunk's numbers in the configuration.
        frames: Number of frames of a window.
    """

    def __init__(
        self,
        in_channels: int,
        config: RVRTConfig,
        stage: int,
        frames: int,
    ) -> None:
        super().__init__()
        c = config.channels
        self.frames = frames
        self.conv = ConvCat(in_channels, c)
        self.norm_in = nn.LayerNorm(c)
        self.blocks = nn.ModuleList()
        for _ in range(config.num_blocks[stage]):
            block = MRSTB(config, config.depths[stage], config.num_heads[stage], frames)
            self.blocks.append(block)
        self.norm_out = nn.LayerNorm(c)

    def forward(self, *inputs: Tensor, direction: _Direction = 1) -> Tensor:
        """Compute features of the frames.

        Args:
            inputs: (N, C₁, H, W), (N, C₂, H, W), …; windows of two frames need them next to each
                other.
            direction: 1: the frames of a window in order; -1: in reverse.

        Returns:
            (N, C, H, W).
        """
        x = self.conv(*inputs).permute(0, 2, 3, 1).contiguous()  # (N, H, W, C)
        x = x.view(-1, self.frames, *x.shape[1:])  # (B, D, H, W, C)
        if direction < 0:
            x = x.flip(1)
        x = self.norm_in(x)
        for block in self.blocks:
            x = block(x)
        x = self.norm_out(x)
        if direction < 0:
            x = x.flip(1)
        return x.flatten(0, 1).permute(0, 3, 1, 2)


class RVRT(nn.Module):
    """Recurrent transformer; see the drawing at the top of this file.

    Args:
        config: Configuration of the network.
    """

    def __init__(self, config: RVRTConfig) -> None:
        super().__init__()
        self.config = config
        c = config.channels
        self.spynet = SpyNet()
        self.feat_extract = TransformerTrunk(3, config, 0, frames=1)
        self.deform_align = nn.ModuleDict()
        self.backbone = nn.ModuleDict()
        for num_earlier, name in enumerate(_SWEEPS):
            self.deform_align[name] = GuidedDeformAttention(
                c,
                heads=config.attention_heads,
                groups=config.groups,
                max_residue_px=config.max_residue_magnitude,
            )
            # g, the features of the sweeps before, and the aligned features.
            in_channels = (2 + num_earlier) * c
            self.backbone[name] = TransformerTrunk(in_channels, config, 1, frames=_STEP_FRAMES)

        # g and the features of the four sweeps.
        self.reconstruction = TransformerTrunk(5 * c, config, 2, frames=1)
        act = LeakyReLU(_SLOPE)
        self.conv_before_upsampler = ConvAct(c, _HR_CHANNELS, 1, act=act)
        self.upconv1 = ShuffleConv(_HR_CHANNELS, _HR_CHANNELS, act=act)
        self.upconv2 = ShuffleConv(_HR_CHANNELS, _HR_CHANNELS, act=act)
        self.conv_hr = ConvAct(_HR_CHANNELS, _HR_CHANNELS)
        self.conv_last = ConvAct(_HR_CHANNELS, 3)

    def forward(
        self,
        lq: Tensor,
        before: Edge = Edge(),
        after: Edge = Edge(),
    ) -> Tensor:
        """Restore a clip: (B, T, 3, H, W) → (B, T, 3, 4H, 4W); see `restore`."""
        frames = self.restore(lq, before=before, after=after)
        return stack_frames(frames, lq.shape[1])

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

        Args:
            lq: Low-quality clip, (B, T, 3, H, W). With states in `after`, T is even.
            before: Two frames before the clip, and two states of each forward sweep at their step:
                its features, and under "name/key" those of the sweep before it, or of the feature
                extraction. Empty at the start of the video.
            after: Two frames after the clip, and such states of both backward sweeps; empty at the
                end of the video.
            on_state: Callback for both states of every sweep and clip step, (B, 2, C, H, W).
            store: Store for the features and flows between the sweeps.

        Yields:
            Restored frames in order, (B, 3, 4H, 4W).

        Raises:
            ValueError: The clip is inside a video, and does not begin and end between two steps.
        """
        clip_feats = self.propagate(
            lq,
            before=before,
            after=after,
            on_state=on_state,
            store=store,
        )
        for t, feats in clip_feats:
            yield self._reconstruct(feats, lq[:, t])
            # Free the features before those of the next frame are computed.
            del feats

    def propagate(
        self,
        lq: Tensor,
        *,
        before: Edge = Edge(),
        after: Edge = Edge(),
        on_state: StateObserver | None = None,
        store: FeatureStore | None = None,
    ) -> Iterator[tuple[int, list[Tensor]]]:
        """Extract features and propagate them in four sweeps (Secs. 3.1 and 3.2).

        Args:
            lq: See `restore`.
            before: See `restore`.
            after: See `restore`.
            on_state: See `restore`.
            store: See `restore`.

        Yields:
            The index t of each frame and its features [g, f_1 … f_4], (B, C, H, W) each.
        """
        num_frames = lq.shape[1]
        num_steps = math.ceil(num_frames / _STEP_FRAMES)
        frames = _number_frames(lq, before, after)
        with open_store(store) as features:
            # g(c), in the order in which backward_1 reads it.
            for step in reversed(range(num_steps)):
                first = _STEP_FRAMES * step
                pair = torch.stack([frames[first], frames[first + 1]], 1)
                features.append(step, self.feat_extract(pair.flatten(0, 1)))

            # Each sweep adds f_j(c) to the features of step c in the store.
            for name in _SWEEPS[:-1]:
                edge = after if name.startswith("backward") else before
                current = _Sweep(self, name, frames, edge, features, on_state)
                for step, feats in current.run(num_steps, features.get):
                    features.append(step, feats[-1])
                    # Only the store may hold features, so that it can move or free them.
                    del feats

            # The last sweep completes steps in order, and frees their features in the store.
            last = _Sweep(self, _SWEEPS[-1], frames, before, features, on_state)
            for step, feats in last.run(num_steps, features.pop):
                for i in range(_STEP_FRAMES):
                    t = _STEP_FRAMES * step + i
                    # The last frame can be a copy.
                    if t < num_frames:
                        yield t, [feat[i::_STEP_FRAMES] for feat in feats]
                del feats

    def _reconstruct(self, feats: list[Tensor], frame: Tensor) -> Tensor:
        """Compute the restored frame from all features of a frame.

        Args:
            feats: Features g and f_1 … f_4, (B, C, H, W) each.
            frame: Low-quality frame, (B, 3, H, W).

        Returns:
            Restored frame, (B, 3, 4H, 4W).
        """
        x = self.conv_before_upsampler(self.reconstruction(*feats))
        convs = (self.upconv1, self.upconv2, self.conv_hr, self.conv_last)
        return shuffle_x4(x, enlarge(frame, _SCALE), convs)


class _Sweep:
    """One sweep over a clip.

    Args:
        network: The network.
        name: Name of the sweep.
        frames: Frames by number, those of the edges included.
        edge: Frames and states before the first step that the sweep visits.
        features: Store of the features; also of the flows that sweeps 3 and 4 start from.
        on_state: Callback for every state.
    """

    def __init__(
        self,
        network: RVRT,
        name: str,
        frames: Mapping[int, Tensor],
        edge: Edge,
        features: FeatureStore,
        on_state: StateObserver | None,
    ) -> None:
        self.network = network
        self.name = name
        self.frames = frames
        self.edge = edge
        self.features = features
        self.on_state = on_state
        self.direction: _Direction = -1 if name.startswith("backward") else 1
        # "backward" or "forward", and the number 1 or 2.
        self.family, _, self.round = name.partition("_")
        # Features of the sweep before, at the last step, (B, 2, C, H, W); none at the first step of
        # a video.
        self.keys: Past = ()
        # Flow between the two frames of the last step.
        self.inner_flow: Tensor | None = None

    def run(
        self,
        num_steps: int,
        load: Callable[[int], list[Tensor]],
    ) -> Iterator[tuple[int, list[Tensor]]]:
        """Run over the clip (Sec. 3.2).

        Args:
            num_steps: Number of clip steps.
            load: Returns the features [g(c), f_1(c) … f_{j-1}(c)] of step c.

        Yields:
            The index c of each step and its features [g(c), f_1(c) … f_j(c)].
        """
        # Of the current step, without and with f_j.
        feats: list[Tensor] = []
        key_name = f"{self.name}/key"
        self.keys = self.edge.hidden.get(key_name, ())

        def advance(step: int, past: Past) -> Tensor:
            nonlocal feats
            feats = load(step)
            if past:
                aligned = self._align(step, feats[-1], past[0].flatten(0, 1))
            else:
                aligned = torch.zeros_like(feats[0])
            self.keys = (_as_steps(feats[-1]),)
            if self.on_state is not None:
                self.on_state(key_name, step, self.keys[0])
            backbone = self.network.backbone[self.name]
            residual = backbone(*feats, aligned, direction=self.direction)
            return _as_steps(residual + aligned)

        for step, state in sweep(
            self.name,
            num_steps,
            step=self.direction,
            edge=self.edge,
            order=1,
            advance=advance,
            on_state=self.on_state,
        ):
            yield step, [*feats, state.flatten(0, 1)]

    def _align(self, step: int, query: Tensor, state: Tensor) -> Tensor:
        """Align the state of the last step with the current one.

        Args:
            step: Index c of the current step.
            query: Features of the sweep before, at the current step, (B·2, C, H, W).
            state: State of this sweep at the last step, (B·2, C, H, W).

        Returns:
            (B·2, C, H, W).
        """
        key = self.keys[0].flatten(0, 1)
        flow_key = (f"flows of {self.family}", step)
        if self.round == "1":
            flows = self._estimate_flows(step)
        else:
            flow_1, flow_2 = self.features.pop(flow_key)
            flows = (flow_1, flow_2)

        # Each frame is warped to its own place in the clip, and to the place of the other one.
        swapped = _as_steps(state).flip(1).flatten(0, 1)
        warped = [backward_warp(state, flows[0]), backward_warp(swapped, flows[1])]
        align = self.network.deform_align[self.name]
        aligned: Aligned = align(query, key, state, warped, flows)
        if self.round == "1":
            for flow in aligned.flows:
                self.features.append(flow_key, flow)
        return aligned.features

    def _estimate_flows(self, step: int) -> tuple[Tensor, Tensor]:
        """Estimate the flows from the frames of a step to those of the last one.

        Frames are visited in the order 0, 1 (last step), 2, 3 (this step); flows between neighbors
        are added up, each read at the position to which those before it lead.

        Returns:
            Flows 2 → 0 and 3 → 1, then 2 → 1 and 3 → 0, by the frames of this step in the order of
            the video: (B·2, 2, H, W) each.
        """
        first = _STEP_FRAMES * step + (0 if self.direction > 0 else 1)
        frame_0, frame_1, frame_2, frame_3 = (
            self.frames[first + self.direction * i] for i in (-2, -1, 0, 1)
        )
        spynet = self.network.spynet
        flow_10 = self.inner_flow
        if flow_10 is None:
            flow_10 = spynet(frame_1, frame_0)
        flow_21 = spynet(frame_2, frame_1)
        flow_32 = spynet(frame_3, frame_2)
        self.inner_flow = flow_32

        flow_20 = _follow(flow_21, flow_10)
        flow_31 = _follow(flow_32, flow_21)
        flow_30 = _follow(flow_32, flow_20)
        return self._by_time(flow_20, flow_31), self._by_time(flow_21, flow_30)

    def _by_time(self, nearer: Tensor, farther: Tensor) -> Tensor:
        """Join the tensors (B, …) of both frames of a step, in the order of the video: (B·2, …)."""
        pair = [nearer, farther]
        return torch.stack(pair[:: self.direction], 1).flatten(0, 1)


def _follow(first: Tensor, second: Tensor) -> Tensor:
    """Add a flow to another one, read at the position to which the first leads."""
    return first + backward_warp(second, first)


def _as_steps(feat: Tensor) -> Tensor:
    """View features (B·2, C, H, W) as (B, 2, C, H, W)."""
    return feat.view(-1, _STEP_FRAMES, *feat.shape[1:])


def _number_frames(lq: Tensor, before: Edge, after: Edge) -> dict[int, Tensor]:
    """Collect the frames of a clip and its edges by number, two for each clip step.

    If a video has an odd number of frames, its last frame is repeated: in the clip, or in `after`.

    Raises:
        ValueError: A clip with states at an edge does not begin or end there between two steps.
    """
    num_frames = lq.shape[1]
    start = before.frame_index + 1
    if before.hidden and start % _STEP_FRAMES:
        raise ValueError(f"a clip with states before it starts at frame {start}, which is odd")
    if after.hidden and num_frames % _STEP_FRAMES:
        raise ValueError(f"a clip with states after it has {num_frames} frames, which is odd")

    frames = clip_frames(lq, before, after)
    if num_frames % _STEP_FRAMES:
        frames[num_frames] = lq[:, -1]
    elif len(after.frames) == 1:
        frames[num_frames + 1] = after.frames[0]
    return frames


def _halved(match: re.Match[str]) -> str:
    """Number convolutions without the activations between them."""
    return f"conv_offset.{int(match[1]) // 2}."


_AUTHORS_RULES: tuple[Rule, ...] = (
    (r"\.main\.1\.", ".conv."),
    (r"\.main\.3\.", ".norm_in."),
    (r"\.main\.5\.(\d+)\.residual_group\.blocks\.", r".blocks.\1.layers."),
    (r"\.main\.5\.(\d+)\.linear\.", r".blocks.\1.linear."),
    (r"\.main\.7\.", ".norm_out."),
    (r"\.attn\.qkv_self\.", ".attn.qkv."),
    (r"conv_offset\.(\d+)\.", _halved),
    (r"(\.proj|\.proj_[qkv]|\.mlp)\.1\.", r"\1."),
    (r"^conv_before_upsampler\.0\.", "conv_before_upsampler."),
    (r"^upsampler\.0\.", "upconv1."),
    (r"^upsampler\.5\.", "upconv2."),
    (r"^upsampler\.10\.", "conv_hr."),
)
_MODULES = {
    "spynet",
    "feat_extract",
    "backbone",
    "deform_align",
    "reconstruction",
    "conv_before_upsampler",
    "upconv1",
    "upconv2",
    "conv_hr",
    "conv_last",
}
_TRUNKS = ("feat_extract", "backbone.backward_1", "reconstruction")
_FIRST_LAYER = "blocks.0.layers.0."
_OFFSET_CONV = "deform_align.backward_1.conv_offset.5"
# Offsets (dy, dx) of 3×3 taps in two frames, for each group.
_OFFSETS_PER_GROUP = 36


def _translate(state: State) -> dict[str, Tensor] | None:
    """Map the names of the authors and KAIR, which are the same, to ours.

    Their convolutions are three-dimensional with kernels of one frame: here they have two
    dimensions.

    Returns:
        The renamed tensors, or None if the state dict belongs to another network.
    """
    own = rename_spynet(without(state, r".*\.attn\.relative_position_index"))
    if "feat_extract.main.1.weight" in own:
        own = rename(own, _AUTHORS_RULES)
        for name, tensor in own.items():
            if tensor.ndim == 5 and tensor.shape[2] == 1:
                own[name] = tensor.squeeze(2)
    if first_words(own) != _MODULES:
        return None
    convolutions = ("upconv1", "upconv2", "conv_last", _OFFSET_CONV)
    if not has_convolutions(own, *convolutions):
        return None
    for trunk in _TRUNKS:
        table = shape_of(own, f"{trunk}.{_FIRST_LAYER}attn.relative_position_bias_table")
        if len(table) != 2 or f"{trunk}.{_FIRST_LAYER}mlp.fc1.weight" not in own:
            return None
    # The networks for deblurring and denoising extract features by strided convolutions.
    if input_channels(own, "feat_extract.conv") != 3:
        return None
    return own


def _infer(state: State) -> RVRTConfig:
    channels = state["feat_extract.conv.weight"].shape[0]
    num_blocks: list[int] = []
    depths: list[int] = []
    num_heads: list[int] = []
    for trunk in _TRUNKS:
        path = re.escape(f"{trunk}.blocks.")
        num_blocks.append(count_names(state, rf"{path}\d+\.linear\.weight"))
        depths.append(count_names(state, rf"{path}0\.layers\.\d+\.norm1\.weight"))
        table = state[f"{trunk}.{_FIRST_LAYER}attn.relative_position_bias_table"]
        num_heads.append(table.shape[1])

    # The table of windows of one frame has (2 · window − 1)² entries.
    table = state[f"feat_extract.{_FIRST_LAYER}attn.relative_position_bias_table"]
    hidden = state[f"feat_extract.{_FIRST_LAYER}mlp.fc1.weight"].shape[0]
    groups = state[f"{_OFFSET_CONV}.weight"].shape[0] // _OFFSETS_PER_GROUP
    return RVRTConfig(
        channels=channels,
        num_blocks=(num_blocks[0], num_blocks[1], num_blocks[2]),
        depths=(depths[0], depths[1], depths[2]),
        num_heads=(num_heads[0], num_heads[1], num_heads[2]),
        window=(math.isqrt(len(table)) + 1) // 2,
        mlp_ratio=hidden / channels,
        groups=groups,
        attention_heads=groups,
    )


def _contract(config: RVRTConfig) -> Contract:
    return Contract(
        scale=_SCALE,
        temporal=Temporal("clip"),
        halo_px=32,
        tile_multiple=config.window,
        streams=True,
        edge_frames=_STEP_FRAMES,
        edge_states=_STATES,
        frame_multiple=_STEP_FRAMES,
    )


ARCHITECTURE = Architecture(
    name=RVRT.__name__,
    config=RVRTConfig,
    build=RVRT,
    translate=_translate,
    infer=_infer,
    contract=_contract,
    derived=("spynet.mean", "spynet.std"),
    source="https://arxiv.org/abs/2206.02146",
)
