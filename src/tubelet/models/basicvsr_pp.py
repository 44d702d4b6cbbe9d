"""BasicVSR++: second-order grid propagation, aligned by flow-guided deformable convolution.

    lq (B, T, 3, H, W) ── feat_extract ── g(t)                                       (B, C, H, W)
      four sweeps over the clip: backward_1, forward_1, backward_2, forward_2
        sweep j at frame t; t-1 and t-2 are the frames that it visited before
          aligned(t) = align [f_j(t-1), f_j(t-2)] by the flows from t to these frames
          f_j(t)     = aligned(t) + trunk_j [g(t), f_1(t) … f_{j-1}(t), aligned(t)]  (B, C, H, W)
      reconstruction [g(t), f_1(t) … f_4(t)]
         ── conv, shuffle ×2 ── conv, shuffle ×2 ── conv ── conv ──(+)── sr(t)
      lq(t) ──────────────── bilinear ×4 ──────────────────────────┘
    sr (B, T, 3, 4H, 4W)

At the first frame that a sweep visits, aligned(t) is zero.

The network for restoration at the size of its input (`input="full"`) extracts features at a quarter
of that size (two convolutions of stride 2), estimates flow on frames downsampled ×1/4, and adds
lq(t) instead of its enlargement.

Published: 64 channels and 7 blocks in each sweep (7.3 M parameters) for REDS4 and Vimeo-90K;
128 channels and 25 blocks (NTIRE 2021: ×4 of compressed video, and restoration of compressed video
at the size of the input).

Source: Chan et al., "BasicVSR++: Improving Video Super-Resolution with Enhanced Propagation and
Alignment", CVPR 2022, Sec. 3.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from tubelet.errors import ConfigError
from tubelet.layers.deform import SecondOrderAlign
from tubelet.layers.flows import ClipFlows
from tubelet.layers.frames import stack_frames
from tubelet.layers.recurrence import Edge, EdgeStates, Past, StateObserver, clip_frames, sweep
from tubelet.layers.residual import ResidualTrunk
from tubelet.layers.spynet import SpyNet
from tubelet.layers.store import FeatureStore, open_store
from tubelet.layers.upsampling import enlarge, shuffle_x4, shuffle_x4_convs
from tubelet.models.architecture import Architecture, Contract
from tubelet.models.config_checks import check_min
from tubelet.models.spynet import rename_spynet
from tubelet.models.state_dict import (
    Rule,
    State,
    count_names,
    first_words,
    has_convolutions,
    rename,
)
from tubelet.ops.warp import backward_warp
from tubelet.types import Temporal

__all__ = ["ARCHITECTURE", "BasicVSRPlusPlus", "BasicVSRPlusPlusConfig"]

_SCALE = 4
# Width of the convolutions at high resolution: published files have it at every `channels`.
_HR_CHANNELS = 64
# Residual blocks of the feature extraction and of the reconstruction.
_OUTER_BLOCKS = 5
_SWEEPS = ("backward_1", "forward_1", "backward_2", "forward_2")
_EDGE_STATES = EdgeStates(
    before=("forward_1", "forward_2"),
    after=("backward_1", "backward_2"),
    order=2,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class BasicVSRPlusPlusConfig:
    """Configuration of `BasicVSRPlusPlus`."""

    PUBLISHED_NAMES: ClassVar[Mapping[str, str]] = {"mid_channels": "channels"}

    channels: int = 64
    """Number of channels of the propagated features."""
    num_blocks: int = 7
    """Number of residual blocks in each sweep."""
    groups: int = 16
    """Offset groups of the alignment: the first half for step t-1, the second half for t-2."""
    max_residue_magnitude: float = 10.0
    """Maximum distance of an offset from the flow, in pixels of the features."""
    input: Literal["low", "full"] = "low"
    """"low": lq is enlarged ×4; "full": lq already has the size of the result."""

    def __post_init__(self) -> None:
        check_min(self, "channels", 1)
        check_min(self, "num_blocks", 1)
        check_min(self, "groups", 2)
        if self.groups % 2:
            raise ConfigError(f"BasicVSRPlusPlusConfig: groups={self.groups} must be even")
        if 2 * self.channels % self.groups:
            raise ConfigError(
                f"BasicVSRPlusPlusConfig: groups={self.groups} must divide twice the "
                f"channels={self.channels}"
            )


class BasicVSRPlusPlus(nn.Module):
    """Recurrent super-resolution by second-order grid propagation; see the top of this file.

    Args:
        config: Configuration of the network.
    """

    def __init__(self, config: BasicVSRPlusPlusConfig) -> None:
        super().__init__()
        self.config = config
        c = config.channels
        self.spynet = SpyNet()
        self.feat_extract = _feature_extraction(config)

        self.deform_align = nn.ModuleDict()
        for name in _SWEEPS:
            self.deform_align[name] = SecondOrderAlign(
                c,
                groups=config.groups,
                max_residue_px=config.max_residue_magnitude,
            )

        # The trunk of sweep j takes g, the features of the j - 1 sweeps before, and the aligned
        # features.
        self.backbone = nn.ModuleDict()
        for num_earlier, name in enumerate(_SWEEPS):
            in_channels = (2 + num_earlier) * c
            self.backbone[name] = ResidualTrunk(in_channels, c, config.num_blocks)

        # g and the features of the four sweeps.
        self.reconstruction = ResidualTrunk(5 * c, c, _OUTER_BLOCKS)
        self.upconv1, self.upconv2, self.conv_hr, self.conv_last = shuffle_x4_convs(c, _HR_CHANNELS)

    def forward(
        self,
        lq: Tensor,
        before: Edge = Edge(),
        after: Edge = Edge(),
    ) -> Tensor:
        """Restore a clip: (B, T, 3, H, W) → (B, T, 3, sH, sW); see `restore`."""
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
            lq: Low-quality clip, (B, T, 3, H, W).
            before: Two frames before the clip and the states of both forward sweeps at them; fewer
                near the start of the video.
            after: Two frames after the clip and the states of both backward sweeps at them; fewer
                near the end of the video.
            on_state: Callback for every state of the four sweeps, (B, C, H, W), or
                (B, C, H/4, W/4) if the input is "full".
            store: Store for the features and flows between the sweeps.

        Yields:
            Restored frames in order, (B, 3, sH, sW); s is 4, or 1 if the input is "full".
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
        """Extract features and propagate them in four sweeps (Sec. 3.1).

        Args:
            lq: See `restore`.
            before: See `restore`.
            after: See `restore`.
            on_state: See `restore`.
            store: See `restore`.

        Yields:
            The index t of each frame and its features [g(t), f_1(t) … f_4(t)], (B, C, H, W) each.
        """
        num_frames = lq.shape[1]
        frames = {t: self._downsample(x) for t, x in clip_frames(lq, before, after).items()}
        with open_store(store) as features:
            flows = ClipFlows(
                self.spynet,
                frames,
                num_frames,
                features,
                sweeps=2,
                order=2,
            )

            # g(t), in the order in which backward_1 reads it.
            for t in reversed(range(num_frames)):
                features.append(t, self.feat_extract(lq[:, t]))

            # Each sweep adds f_j(t) to the features of frame t in the store.
            for name in _SWEEPS[:-1]:
                edge = after if name.startswith("backward") else before
                for t, feats in self._sweep(name, num_frames, edge, flows, features.get, on_state):
                    features.append(t, feats[-1])
                    # Only the store may hold features, so that it can move or free them.
                    del feats

            # The last sweep completes frames in order, and frees their features in the store.
            yield from self._sweep(_SWEEPS[-1], num_frames, before, flows, features.pop, on_state)

    def _downsample(self, frame: Tensor) -> Tensor:
        """Resize a frame to the size of the features, for the optical flow."""
        if self.config.input == "low":
            return frame
        return functional.interpolate(
            frame, scale_factor=1 / _SCALE, mode="bicubic", align_corners=False
        )

    def _sweep(
        self,
        name: str,
        num_frames: int,
        edge: Edge,
        flows: ClipFlows,
        load: Callable[[int], list[Tensor]],
        on_state: StateObserver | None,
    ) -> Iterator[tuple[int, list[Tensor]]]:
        """Run sweep j over the clip (Eqs. 1 and 2).

        Args:
            name: Name of the sweep.
            num_frames: Number of frames T of the clip.
            edge: Frames and states before the first frame that the sweep visits.
            flows: Optical flow between the frames of the clip.
            load: Returns the features [g(t), f_1(t) … f_{j-1}(t)] of frame t.
            on_state: Callback for every state.

        Yields:
            The index t of each frame and its features [g(t), f_1(t) … f_j(t)].
        """
        step = -1 if name.startswith("backward") else 1
        # [g(t), f_1(t) … f_{j-1}(t)] of the current frame.
        feats: list[Tensor] = []

        def advance(t: int, past: Past) -> Tensor:
            nonlocal feats
            feats = load(t)
            # Flows from the current frame to the last one, and from there to the one before.
            hops: list[Tensor] = []
            for i in range(len(past)):
                start = t - i * step
                hops.append(flows.between(start, start - step))

            # Eq. 1
            aligned = self._align(name, feats[0], past, hops)
            # Eq. 2
            residual = self.backbone[name](torch.cat([*feats, aligned], 1))
            return residual + aligned

        for t, feat in sweep(
            name,
            num_frames,
            step=step,
            edge=edge,
            order=2,
            advance=advance,
            on_state=on_state,
        ):
            yield t, [*feats, feat]

    def _align(self, name: str, current: Tensor, past: Past, hops: list[Tensor]) -> Tensor:
        """Align the states of the last two frames with the current frame (Eqs. 3 to 6).

        Args:
            name: Name of the sweep.
            current: Features g of the current frame, (B, C, H, W).
            past: States of the last frame and of the one before it, (B, C, H, W) each; fewer at the
                end of the video where the sweep starts.
            hops: Flow from the current frame to the last one, and from the last one to the one
                before it, (B, 2, H, W) each; as many as there are states.

        Returns:
            Aligned state, (B, C, H, W); zeros at the first frame that the sweep visits.
        """
        if not past:
            return torch.zeros_like(current)

        # Eq. 3, first order: warp the last state by the flow.
        flow_1 = hops[0]
        # Eq. 3, second order: the flow to the frame before the last one is the sum of both hops,
        # the second one read at the position to which the first one leads.
        if len(past) == 2:
            older = past[1]
            flow_2 = flow_1 + backward_warp(hops[1], flow_1)
            older_warped = backward_warp(older, flow_2)
        else:
            # The second frame of the video has only one frame before it.
            older = torch.zeros_like(current)
            flow_2 = torch.zeros_like(flow_1)
            older_warped = older

        # Eqs. 4 to 6: predict offsets around the flows from the warped states, and sample the
        # states that are not warped.
        guide = torch.cat([backward_warp(past[0], flow_1), current, older_warped], 1)
        states = torch.cat([past[0], older], 1)
        return self.deform_align[name](states, guide, flow_1, flow_2)

    def _reconstruct(self, feats: list[Tensor], frame: Tensor) -> Tensor:
        """Compute the restored frame from all features of a frame.

        Args:
            feats: Features g and f_1 … f_4, (B, C, H, W) each.
            frame: Low-quality frame, (B, 3, H, W), or (B, 3, 4H, 4W) if the input is "full".

        Returns:
            Restored frame, (B, 3, 4H, 4W).
        """
        x = self.reconstruction(torch.cat(feats, 1))
        base = enlarge(frame, _SCALE) if self.config.input == "low" else frame
        convs = (self.upconv1, self.upconv2, self.conv_hr, self.conv_last)
        return shuffle_x4(x, base, convs)


def _feature_extraction(config: BasicVSRPlusPlusConfig) -> nn.Module:
    """Build the feature extraction.

    It maps (B, 3, H, W) to (B, C, H, W), or to (B, C, H/4, W/4) if the input is "full".
    """
    c = config.channels
    if config.input == "low":
        return ResidualTrunk(3, c, _OUTER_BLOCKS)
    return nn.Sequential(
        nn.Conv2d(3, c, 3, stride=2, padding=1),
        nn.LeakyReLU(0.1, inplace=True),
        nn.Conv2d(c, c, 3, stride=2, padding=1),
        nn.LeakyReLU(0.1, inplace=True),
        ResidualTrunk(c, c, _OUTER_BLOCKS),
    )


_MMAGIC: tuple[Rule, ...] = ((r"^upsample([12])\.upsample_conv\.", r"upconv\1."),)
_MODULES = {
    "spynet",
    "feat_extract",
    "deform_align",
    "backbone",
    "reconstruction",
    "upconv1",
    "upconv2",
    "conv_hr",
    "conv_last",
}
# Each group predicts dy, dx and a weight for each of 3×3 kernel taps.
_OFFSET_CHANNELS = 27


def _translate(state: State) -> dict[str, Tensor] | None:
    """Rename the tensors of a file of BasicSR (whose names are ours) or of MMagic.

    Returns:
        The renamed state dict, or None if it belongs to another architecture.
    """
    if "deform_align.backward_1.conv_offset.6.weight" not in state:
        return None
    renamed = rename(rename_spynet(state), _MMAGIC)
    if first_words(renamed) != _MODULES:
        return None
    if not has_convolutions(renamed, "backbone.backward_1.main.0", "upconv1"):
        return None
    return renamed


def _infer(state: State) -> BasicVSRPlusPlusConfig:
    offset_weight = state["deform_align.backward_1.conv_offset.6.weight"]
    # Without strided convolutions, feat_extract is a `ResidualTrunk`: its names begin with "main".
    is_full = "feat_extract.0.weight" in state
    return BasicVSRPlusPlusConfig(
        channels=state["backbone.backward_1.main.0.weight"].shape[0],
        num_blocks=count_names(state, r"backbone\.backward_1\.main\..*\.conv1\.weight"),
        groups=offset_weight.shape[0] // _OFFSET_CHANNELS,
        input="full" if is_full else "low",
    )


def _contract(config: BasicVSRPlusPlusConfig) -> Contract:
    is_full = config.input == "full"
    return Contract(
        scale=1 if is_full else _SCALE,
        temporal=Temporal("clip"),
        # A feature of "full" covers four pixels of lq, so it sees four times as far.
        halo_px=32 * _SCALE if is_full else 32,
        size_multiple=_SCALE if is_full else 1,
        streams=True,
        edge_frames=2,
        edge_states=_EDGE_STATES,
        precisions=("fp32", "bf16"),
    )


ARCHITECTURE = Architecture(
    name="BasicVSRPlusPlus",
    config=BasicVSRPlusPlusConfig,
    build=BasicVSRPlusPlus,
    translate=_translate,
    infer=_infer,
    contract=_contract,
    derived=("spynet.mean", "spynet.std"),
    source="https://arxiv.org/abs/2104.13371",
)
