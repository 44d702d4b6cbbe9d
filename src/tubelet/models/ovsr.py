"""OVSR: omniscient super-resolution, from the past, present and future features of a precursor.

    lq (B, T, 3, H, W)
      precursor, over the whole clip: from the last frame to the first (global), or from the first
      frame to the last (local)
        p(t) = unit_p [lq(t); lq(t-1), lq(t+1); p of the frame visited before]       (B, C, H, W)
      successor, t = 1 … T
        s(t) = unit_s [lq(t-1), s(t-1); lq(t), p(t); lq(t+1), p(t+1)]                (B, C, H, W)
      sr(t) = up_s s(t) + up_p p(t)               conv ── shuffle ×2 ── conv ── shuffle ×2
    sr (B, T, 3, 4H, 4W)

A unit maps each of its three inputs to features by a convolution, runs them through progressive
fusion blocks, and merges them. Beyond the ends of the video, its first and its last frame are
repeated; the future features of the last frame are its present ones.

Published: GOVSR-8+4-80, 8 precursor and 4 successor blocks of 80 channels (7.1 M parameters); the
same of 56 channels (3.5 M); LOVSR is the local variant.

Source: Yi et al., "Omniscient Video Super-Resolution", ICCV 2021, Sec. 3; the blocks: Yi et al.
(PFNL), ICCV 2019, Sec. 3.3.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from tubelet.layers.convolution import ConvAct, ConvCat, LeakyReLU
from tubelet.layers.frames import stack_frames
from tubelet.layers.recurrence import Edge, EdgeStates, Past, StateObserver, clip_frames, sweep
from tubelet.layers.store import FeatureStore, open_store
from tubelet.models.architecture import Architecture, Contract
from tubelet.models.config_checks import check_choice, check_min
from tubelet.models.state_dict import State, count_names, first_words, shape_of
from tubelet.types import Temporal

__all__ = ["ARCHITECTURE", "OVSR", "OVSRConfig"]

_SCALE = 4
# Past, present, future.
_STREAMS = 3
# Of all leaky ReLUs.
_SLOPE = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class OVSRConfig:
    """Configuration of `OVSR`."""

    channels: int = 80
    """Number of channels of each stream."""
    num_precursor_blocks: int = 8
    """Number of progressive fusion blocks of the precursor."""
    num_successor_blocks: int = 4
    """Number of progressive fusion blocks of the successor."""
    kind: Literal["local", "global"] = "global"
    """Direction of the precursor: "global" from the last frame to the first, "local" from the first
    to the last."""

    def __post_init__(self) -> None:
        check_min(self, "channels", 1)
        check_min(self, "num_precursor_blocks", 0)
        check_min(self, "num_successor_blocks", 0)
        check_choice(self, "kind", ("local", "global"))


def _conv(in_channels: int, out_channels: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, padding=1)


def _lrelu(x: Tensor) -> Tensor:
    """Apply LeakyReLU in place, where `x` is the output of a convolution and used nowhere else."""
    return functional.leaky_relu_(x, _SLOPE)


class ProgressiveFusionBlock(nn.Module):
    """Refine three streams, each by its own features and those that all have in common.

    Args:
        channels: Number of channels of each stream.

    Source: PFNL, Fig. 3.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        c = channels
        act = LeakyReLU(_SLOPE)
        self.conv0 = nn.ModuleList(ConvAct(c, c, act=act) for _ in range(_STREAMS))
        self.conv1 = ConvCat(_STREAMS * c, c, 1, act=act)
        self.conv2 = nn.ModuleList(ConvCat(2 * c, c, act=act) for _ in range(_STREAMS))

    def forward(self, streams: Sequence[Tensor]) -> list[Tensor]:
        """Map three streams (B, C, H, W) to the same shapes."""
        own: list[Tensor] = []
        for x, conv in zip(streams, self.conv0, strict=True):
            own.append(conv(x))
        common = self.conv1(*own)
        refined: list[Tensor] = []
        for x, own_feat, conv in zip(streams, own, self.conv2, strict=True):
            refined.append(x + conv(common, own_feat))
        return refined


class _Enlarge(nn.Module):
    """Upsample features to an image: (B, C, H, W) → (B, 3, 4H, 4W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _conv(channels, 3 * _SCALE**2),
            nn.LeakyReLU(_SLOPE, inplace=True),
            nn.PixelShuffle(2),
            _conv(12, 12),
            nn.PixelShuffle(2),
        )

    def forward(self, hidden: Tensor) -> Tensor:
        return self.body(hidden)


def _fusion_blocks(channels: int, num_blocks: int) -> nn.Sequential:
    return nn.Sequential(*(ProgressiveFusionBlock(channels) for _ in range(num_blocks)))


class _Precursor(nn.Module):
    """Compute the features p of a frame from a window of frames and the last p (Eq. 1)."""

    def __init__(self, channels: int, num_blocks: int) -> None:
        super().__init__()
        self.conv_c = _conv(3, channels)
        self.conv_sup = _conv(2 * 3, channels)
        self.blocks = _fusion_blocks(channels, num_blocks)
        self.merge = _conv(_STREAMS * channels, channels)
        self.upscale = _Enlarge(channels)

    def forward(self, window: Sequence[Tensor], last: Tensor) -> Tensor:
        """Compute p(t).

        Args:
            window: Frames t-1, t and t+1, (B, 3, H, W) each.
            last: Features p of the frame visited before, (B, C, H, W).

        Returns:
            Features p(t), (B, C, H, W).
        """
        previous, current, following = window
        # The published weights expect both neighbors interleaved: R, R, G, G, B, B.
        neighbors = torch.stack([previous, following], 2).flatten(1, 2)
        present = _lrelu(self.conv_c(current))
        surrounding = _lrelu(self.conv_sup(neighbors))
        return self.merge(torch.cat(self.blocks([present, surrounding, last]), 1))


class _Successor(nn.Module):
    """Compute the features s of a frame from a window of frames and of features (Eq. 2)."""

    def __init__(self, channels: int, num_blocks: int) -> None:
        super().__init__()
        self.conv_c = nn.ModuleList(_conv(3 + channels, channels) for _ in range(_STREAMS))
        self.blocks = _fusion_blocks(channels, num_blocks)
        self.merge = _conv(_STREAMS * channels, channels)
        self.upscale = _Enlarge(channels)

    def forward(self, window: Sequence[Tensor], hidden: Sequence[Tensor]) -> Tensor:
        """Compute s(t).

        Args:
            window: Frames t-1, t and t+1, (B, 3, H, W) each.
            hidden: Features s(t-1), p(t) and p(t+1), (B, C, H, W) each.

        Returns:
            Features s(t), (B, C, H, W).
        """
        streams: list[Tensor] = []
        for conv, frame, feat in zip(self.conv_c, window, hidden, strict=True):
            stream = torch.cat([frame, feat], 1)
            stream = _lrelu(conv(stream))
            streams.append(stream)
        return self.merge(torch.cat(self.blocks(streams), 1))


class OVSR(nn.Module):
    """Super-resolution ×4 by a precursor and a successor; see the drawing at the top of this file.

    Args:
        config: Configuration of the network.
    """

    def __init__(self, config: OVSRConfig) -> None:
        super().__init__()
        self.config = config
        self.precursor = _Precursor(config.channels, config.num_precursor_blocks)
        self.successor = _Successor(config.channels, config.num_successor_blocks)

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
            lq: Low-quality clip, (B, T, 3, H, W).
            before: One frame before the clip and the states at it of the successor and of a local
                precursor; empty at the start of the video.
            after: One frame after the clip and the state at it of the precursor, global or local;
                empty at the end of the video.
            on_state: Callback for every state of "precursor" and "successor", (B, C, H, W).
            store: Store for the features of a global precursor; a local one is computed one frame
                ahead of the successor.

        Yields:
            Restored frames in order, (B, 3, 4H, 4W).
        """
        clip_feats = self.propagate(
            lq,
            before=before,
            after=after,
            on_state=on_state,
            store=store,
        )
        for _, (present, hidden) in clip_feats:
            yield self.successor.upscale(hidden) + self.precursor.upscale(present)
            # Free the features before those of the next frame are computed.
            del present, hidden

    def propagate(
        self,
        lq: Tensor,
        *,
        before: Edge = Edge(),
        after: Edge = Edge(),
        on_state: StateObserver | None = None,
        store: FeatureStore | None = None,
    ) -> Iterator[tuple[int, list[Tensor]]]:
        """Run the precursor and the successor.

        Args:
            lq: See `restore`.
            before: See `restore`.
            after: See `restore`.
            on_state: See `restore`.
            store: See `restore`.

        Yields:
            The index t of each frame and its features [p(t), s(t)], (B, C, H, W) each.
        """
        num_frames = lq.shape[1]
        frames = clip_frames(lq, before, after)

        def precede(t: int, past: Past) -> Tensor:
            # Eq. 1
            last = self._last(past, frames[t])
            return self.precursor(_window(frames, t), last)

        def succeed(t: int, past: Past) -> Tensor:
            nonlocal present, future
            present = future
            # At the end of the video, p(t) takes the place of p(t+1).
            future = next(upcoming, present)
            last = self._last(past, frames[t])
            # Eq. 2
            return self.successor(_window(frames, t), (last, present, future))

        with open_store(store) as features:
            # p(0), p(1), … p(T-1)
            if self.config.kind == "global":
                # It runs backward, so it must finish before the successor begins.
                for t, feat in sweep(
                    "precursor",
                    num_frames,
                    step=-1,
                    edge=after,
                    order=1,
                    advance=precede,
                    on_state=on_state,
                ):
                    features.append(t, feat)
                precursor_feats = (features.pop(t)[0] for t in range(num_frames))
            else:
                # It runs forward, and is computed only when the successor needs it.
                local_sweep = sweep(
                    "precursor",
                    num_frames,
                    step=1,
                    edge=before,
                    order=1,
                    advance=precede,
                    on_state=on_state,
                )
                precursor_feats = (feat for _, feat in local_sweep)
            # p(T), if the video continues after the clip.
            beyond = after.hidden.get("precursor", ())[:1]
            upcoming = chain(precursor_feats, beyond)

            future = present = next(upcoming)
            for t, feat in sweep(
                "successor",
                num_frames,
                step=1,
                edge=before,
                order=1,
                advance=succeed,
                on_state=on_state,
            ):
                yield t, [present, feat]

    def _last(self, past: Past, frame: Tensor) -> Tensor:
        """Return the last state of a sweep, (B, C, H, W), or zeros where the sweep starts."""
        if past:
            return past[0]
        batch, _, height, width = frame.shape
        return frame.new_zeros(batch, self.config.channels, height, width)


def _window(frames: Mapping[int, Tensor], t: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return frames t-1, t and t+1; beyond the ends of the video, frame t is repeated."""
    frame = frames[t]
    return frames.get(t - 1, frame), frame, frames.get(t + 1, frame)


# Convolutions that only this architecture has, and their input channels and kernel size.
_REQUIRED_SHAPES = {
    "precursor.conv_c.weight": (3, 3, 3),
    "precursor.conv_sup.weight": (6, 3, 3),
    "precursor.upscale.body.3.weight": (12, 3, 3),
}


def _translate(state: State) -> dict[str, Tensor] | None:
    """Accept a file of the authors, whose names are ours.

    Returns:
        The state dict, or None if it belongs to another architecture.
    """
    for name, shape in _REQUIRED_SHAPES.items():
        if shape_of(state, name)[1:] != shape:
            return None
    if first_words(state) != {"precursor", "successor"}:
        return None
    return dict(state)


def _infer(state: State) -> OVSRConfig:
    return OVSRConfig(
        channels=state["precursor.conv_c.weight"].shape[0],
        num_precursor_blocks=count_names(state, r"precursor\.blocks\..*\.conv1\.weight"),
        num_successor_blocks=count_names(state, r"successor\.blocks\..*\.conv1\.weight"),
    )


def _contract(config: OVSRConfig) -> Contract:
    states = EdgeStates(before=("successor",), after=("precursor",))
    if config.kind == "local":
        # It runs forward, and the successor takes its state at the next frame.
        states = EdgeStates(before=("successor", "precursor"), after=("precursor",))
    return Contract(
        scale=_SCALE,
        temporal=Temporal("clip"),
        halo_px=32,
        streams=True,
        edge_frames=1,
        edge_states=states,
    )


ARCHITECTURE = Architecture(
    name="OVSR",
    config=OVSRConfig,
    build=OVSR,
    translate=_translate,
    infer=_infer,
    contract=_contract,
    source="https://arxiv.org/abs/2103.15683",
)
