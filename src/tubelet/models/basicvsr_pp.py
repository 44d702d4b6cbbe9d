"""BasicVSR++: second-order grid propagation with features aligned by flow-guided deformable convolution.

    lq (B, T, 3, H, W) ── feat_extract ── g(t)                                                (B, C, H, W)
      four sweeps over the clip: backward_1, forward_1, backward_2, forward_2; in sweep j, step i at frame t
        aligned(t) = align [f(i-1), f(i-2)] by the flows from t to their frames; zero at the first step
        f_j(t)     = aligned(t) + trunk_j [g(t), f_1(t) … f_{j-1}(t), aligned(t)]             (B, C, H, W)
      reconstruction [g(t), f_1(t) … f_4(t)] ── shuffle ×2 ── shuffle ×2 ── conv ── conv ──(+)── sr(t)
      lq(t) ───────────────────────────────── bilinear ×4 ─────────────────────────────┘
    sr (B, T, 3, 4H, 4W)

The network for restoration at the size of the input takes features at a quarter of it (two convolutions of stride 2),
flows of the image shrunk ×1/4, and adds lq(t) itself.

Source: Chan et al., "BasicVSR++: Improving Video Super-Resolution with Enhanced Propagation and Alignment", CVPR 2022,
Sec. 3. Published: 64 channels and 7 blocks a sweep (7.3 M parameters) for REDS4 and Vimeo-90K; 128 channels and 25
blocks (NTIRE 2021: ×4 of compressed video, and decompression at the size of the input).
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
from tubelet.layers.recurrence import Edge, Past, Seen, clip_frames, sweep
from tubelet.layers.residual import ResidualTrunk
from tubelet.layers.spynet import SpyNet
from tubelet.layers.store import FeatureStore, open_store
from tubelet.layers.upsampling import enlarge, shuffle_x4, shuffle_x4_convs
from tubelet.models.architecture import Architecture, Contract
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
_HR_CHANNELS = 64  # of the last convolutions, whatever the width of the sweeps
_OUTER_BLOCKS = 5  # of the feature extraction and of the reconstruction
_SWEEPS = ("backward_1", "forward_1", "backward_2", "forward_2")


@dataclass(frozen=True, slots=True, kw_only=True)
class BasicVSRPlusPlusConfig:
    """Shape of a `BasicVSRPlusPlus`."""

    PUBLISHED_NAMES: ClassVar[Mapping[str, str]] = {"mid_channels": "channels"}

    channels: int = 64
    """Width of the propagated features."""
    num_blocks: int = 7
    """Residual blocks of each sweep."""
    groups: int = 16
    """Offset groups of the alignment; the first half reads the last step, the second half the one before."""
    max_residue_magnitude: float = 10.0
    """How far the alignment can look from the flow, pixels of the features."""
    input: Literal["low", "full"] = "low"
    """"low": lq is enlarged ×4; "full": lq has the size of the result."""

    def __post_init__(self) -> None:
        if self.channels < 1 or self.num_blocks < 1 or self.groups < 2 or self.groups % 2:
            raise ConfigError(
                f"{self} is out of range: channels ≥ 1, num_blocks ≥ 1, groups even and ≥ 2"
            )
        if 2 * self.channels % self.groups:
            raise ConfigError(
                f"groups={self.groups} must divide twice the channels={self.channels}"
            )


class BasicVSRPlusPlus(nn.Module):
    """Second-order grid propagation; see the drawing on top of this file.

    Args:
        config: shape of the network.
    """

    def __init__(self, config: BasicVSRPlusPlusConfig) -> None:
        super().__init__()
        self.config = config
        c = config.channels
        self.spynet = SpyNet()
        self.feat_extract = _feature_extraction(config)
        self.deform_align = nn.ModuleDict(
            {
                sweep: SecondOrderAlign(
                    c, groups=config.groups, max_residue_px=config.max_residue_magnitude
                )
                for sweep in _SWEEPS
            }
        )
        self.backbone = nn.ModuleDict(
            {
                sweep: ResidualTrunk((2 + j) * c, c, config.num_blocks)
                for j, sweep in enumerate(_SWEEPS)
            }
        )
        self.reconstruction = ResidualTrunk(5 * c, c, _OUTER_BLOCKS)
        self.upconv1, self.upconv2, self.conv_hr, self.conv_last = shuffle_x4_convs(c, _HR_CHANNELS)

    def forward(self, lq: Tensor, before: Edge = Edge(), after: Edge = Edge()) -> Tensor:
        """Restore a clip: (B, T, 3, H, W) → (B, T, 3, sH, sW); see `restore`."""
        return stack_frames(self.restore(lq, before=before, after=after), lq.shape[1])

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

        Args:
            lq: (B, T, 3, H, W).
            before: two frames and the states of both forward sweeps there; fewer where the video begins.
            after: two frames and the states of both backward sweeps there; fewer where the video ends.
            seen: called with the states of the four sweeps, (B, C, H, W), for input "full" a quarter
                of the size.
            store: keeps features and flows between the sweeps.

        Yields:
            (B, 3, sH, sW), s = 4, or 1 for input "full", from the first frame to the last.
        """
        for t, feats in self.propagate(lq, before=before, after=after, seen=seen, store=store):
            yield self._reconstruct(feats, lq[:, t])
            del feats  # before the next frame

    def propagate(
        self,
        lq: Tensor,
        *,
        before: Edge = Edge(),
        after: Edge = Edge(),
        seen: Seen | None = None,
        store: FeatureStore | None = None,
    ) -> Iterator[tuple[int, list[Tensor]]]:
        """Run the four sweeps; arguments as in `restore`.

        Yields:
            each frame, and its features g(t), f_1(t) … f_4(t), (B, C, H, W) each.
        """
        num_frames = lq.shape[1]
        frames = {t: self._shrink(frame) for t, frame in clip_frames(lq, before, after).items()}
        with open_store(store) as features:
            flows = ClipFlows(self.spynet, frames, num_frames, features, sweeps=2, order=2)
            for t in reversed(range(num_frames)):
                features.append(t, self.feat_extract(lq[:, t]))
            for name in _SWEEPS:
                is_last = name == _SWEEPS[-1]
                read = features.pop if is_last else features.get
                edge = after if name.startswith("backward") else before
                for t, feats in self._sweep(name, num_frames, edge, flows, read, seen):
                    if is_last:
                        yield t, feats
                    else:
                        features.append(t, feats[-1])

    def _shrink(self, frame: Tensor) -> Tensor:
        """Return the frame at the size of the features, for the flow."""
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
        read: Callable[[int], list[Tensor]],
        seen: Seen | None,
    ) -> Iterator[tuple[int, list[Tensor]]]:
        """Sweep j over the clip (Eqs. 1 and 2).

        Args:
            name: of the sweep.
            num_frames: T.
            edge: what lies beyond the frame where the sweep starts.
            flows: of the clip.
            read: gives the features g(t), f_1(t) … f_{j-1}(t) of a frame.
            seen: called with every new state.

        Yields:
            each frame, and its features g(t), f_1(t) … f_j(t).
        """
        step = -1 if name.startswith("backward") else 1
        known: list[Tensor] = []  # features of the current frame

        def advance(t: int, past: Past) -> Tensor:
            nonlocal known
            known = read(t)
            hops = [flows.between(t - i * step, t - (i + 1) * step) for i in range(len(past))]
            aligned = self._align(name, known[0], past, hops)
            return self.backbone[name](torch.cat([*known, aligned], 1)) + aligned

        for t, feat in sweep(name, num_frames, step, edge, 2, advance, seen):
            yield t, [*known, feat]

    def _align(self, name: str, current: Tensor, past: Past, hops: list[Tensor]) -> Tensor:
        """Align the states of the last two frames with the current one (Eqs. 3 to 6).

        Args:
            name: of the sweep.
            current: (B, C, H, W), g of the current frame.
            past: states (B, C, H, W) of the last frame and of the one before.
            hops: flows (B, 2, H, W) from the current frame to the last, and from there to the one
                before.

        Returns:
            (B, C, H, W); zero at the first frame of the video.
        """
        if not past:
            return torch.zeros_like(current)
        flow_1 = hops[0]
        if len(past) == 2:
            older = past[1]
            flow_2 = flow_1 + backward_warp(hops[1], flow_1)
            older_warped = backward_warp(older, flow_2)
        else:  # the second frame of the video
            older = torch.zeros_like(current)
            flow_2 = torch.zeros_like(flow_1)
            older_warped = older
        guide = torch.cat([backward_warp(past[0], flow_1), current, older_warped], 1)
        return self.deform_align[name](torch.cat([past[0], older], 1), guide, flow_1, flow_2)

    def _reconstruct(self, feats: list[Tensor], frame: Tensor) -> Tensor:
        """Make a frame of all its features: 5 of (B, C, H, W) → (B, 3, 4H, 4W)."""
        x = self.reconstruction(torch.cat(feats, 1))
        base = enlarge(frame, _SCALE) if self.config.input == "low" else frame
        return shuffle_x4(x, base, (self.upconv1, self.upconv2, self.conv_hr, self.conv_last))


def _feature_extraction(config: BasicVSRPlusPlusConfig) -> nn.Module:
    """Make the first part: (B, 3, H, W) → (B, C, H, W), or (B, C, H/4, W/4) for input "full"."""
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
_PARTS = {
    *("spynet", "feat_extract", "deform_align", "backbone", "reconstruction"),
    *("upconv1", "upconv2", "conv_hr", "conv_last"),
}


def _translate(state: State) -> dict[str, Tensor] | None:
    """Map the names of BasicSR (which are ours) and of MMagic; None where they are of another network."""
    if "deform_align.backward_1.conv_offset.6.weight" not in state:
        return None
    own = rename(rename_spynet(state), _MMAGIC)
    if first_words(own) != _PARTS:
        return None
    return own if has_convolutions(own, "backbone.backward_1.main.0", "upconv1") else None


def _infer(state: State) -> BasicVSRPlusPlusConfig:
    return BasicVSRPlusPlusConfig(
        channels=state["backbone.backward_1.main.0.weight"].shape[0],
        num_blocks=count_names(state, r"backbone\.backward_1\.main\..*\.conv1\.weight"),
        groups=state["deform_align.backward_1.conv_offset.6.weight"].shape[0] // 27,
        input="full" if "feat_extract.0.weight" in state else "low",
    )


def _contract(config: BasicVSRPlusPlusConfig) -> Contract:
    clip = Temporal("clip")
    if config.input == "full":
        return Contract(
            scale=1, temporal=clip, halo_px=128, size_multiple=_SCALE, streams=True, edge_frames=2
        )
    return Contract(scale=_SCALE, temporal=clip, halo_px=32, streams=True, edge_frames=2)


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
