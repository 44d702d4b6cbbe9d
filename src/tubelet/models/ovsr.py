"""OVSR: omniscient video super-resolution, from the past, the present and the future of a precursor.

    lq (B, T, 3, H, W)
      precursor, over the whole clip: from the last frame to the first (global), or from the first on (local)
        p(t) = unit_p [lq(t); lq(t-1), lq(t+1); p of the frame before it]                          (B, C, H, W)
      successor, t = 1 … T
        s(t) = unit_s [lq(t-1), s(t-1); lq(t), p(t); lq(t+1), p(t+1)]                              (B, C, H, W)
      sr(t) = up_s s(t) + up_p p(t)               conv ── shuffle ×2 ── conv ── shuffle ×2
    sr (B, T, 3, 4H, 4W)

A unit takes three features, one convolution each, runs them through progressive fusion blocks, and merges them. Beyond
the ends the first and the last frame are repeated; the future of the last frame is its present.

Source: Yi et al., "Omniscient Video Super-Resolution", ICCV 2021, Sec. 3; the blocks: Yi et al. (PFNL), ICCV 2019,
Sec. 3.3. Published: GOVSR-8+4-80, 8 precursor and 4 successor blocks of 80 channels (7.1 M parameters); of 56 (3.5 M);
LOVSR is the local one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from tubelet.errors import ConfigError
from tubelet.layers.convolution import ConvAct, ConvCat, LeakyReLU
from tubelet.layers.frames import stack_frames
from tubelet.layers.recurrence import Edge, Past, Seen, clip_frames, sweep
from tubelet.layers.store import FeatureStore, open_store
from tubelet.models.architecture import Architecture, Contract
from tubelet.models.state_dict import State, count_names, first_words, shape_of
from tubelet.types import Temporal

__all__ = ["ARCHITECTURE", "OVSR", "OVSRConfig"]

_SCALE = 4
_STREAMS = 3  # past, present, future
_SLOPE = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class OVSRConfig:
    """Shape of an `OVSR`."""

    channels: int = 80
    """Width of each stream."""
    num_precursor_blocks: int = 8
    """Progressive fusion blocks of the precursor."""
    num_successor_blocks: int = 4
    """Progressive fusion blocks of the successor."""
    kind: Literal["local", "global"] = "global"
    """Way of the precursor: "global" from the last frame to the first, "local" from the first on."""

    def __post_init__(self) -> None:
        if self.channels < 1 or self.num_precursor_blocks < 0 or self.num_successor_blocks < 0:
            raise ConfigError(f"{self} is out of range: channels ≥ 1, blocks ≥ 0")
        if self.kind not in ("local", "global"):
            raise ConfigError(f"kind={self.kind!r} is unknown; it is local or global")


def _conv(in_channels: int, out_channels: int, kernel_px: int = 3) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, kernel_px, padding=kernel_px // 2)


def _act(x: Tensor) -> Tensor:
    """Scale negative values, in place: `x` is a convolution's own output."""
    return functional.leaky_relu_(x, _SLOPE)


class ProgressiveFusionBlock(nn.Module):
    """Let three streams learn from their common part, and keep them apart (PFNL, Fig. 3).

    Args:
        channels: of each stream.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        act = LeakyReLU(_SLOPE)
        self.conv0 = nn.ModuleList(ConvAct(channels, channels, act=act) for _ in range(_STREAMS))
        self.conv1 = ConvCat(_STREAMS * channels, channels, 1, act=act)
        self.conv2 = nn.ModuleList(
            ConvCat(2 * channels, channels, act=act) for _ in range(_STREAMS)
        )

    def forward(self, streams: Sequence[Tensor]) -> list[Tensor]:
        """Map three of (B, C, H, W) to the same."""
        own = [conv(x) for conv, x in zip(self.conv0, streams, strict=True)]
        base = self.conv1(*own)
        triples = zip(streams, own, self.conv2, strict=True)
        return [x + conv(base, y) for x, y, conv in triples]


class _Enlarge(nn.Module):
    """Hidden features (B, C, H, W) → (B, 3, 4H, 4W)."""

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


class _Precursor(nn.Module):
    """Hidden features of a frame from it, its neighbors, and the hidden features before it."""

    def __init__(self, channels: int, num_blocks: int) -> None:
        super().__init__()
        self.conv_c = _conv(3, channels)
        self.conv_sup = _conv(2 * 3, channels)
        self.blocks = nn.Sequential(*(ProgressiveFusionBlock(channels) for _ in range(num_blocks)))
        self.merge = _conv(_STREAMS * channels, channels)
        self.upscale = _Enlarge(channels)

    def forward(self, window: Sequence[Tensor], before: Tensor) -> Tensor:
        """Take three frames (B, 3, H, W) and (B, C, H, W); give (B, C, H, W) (Eq. 1)."""
        last, current, following = window
        around = torch.stack([last, following], 2).flatten(1, 2)  # R, R, G, G, B, B
        streams = [_act(self.conv_c(current)), _act(self.conv_sup(around)), before]
        return self.merge(torch.cat(self.blocks(streams), 1))


class _Successor(nn.Module):
    """Hidden features of a frame from its window and three hidden features."""

    def __init__(self, channels: int, num_blocks: int) -> None:
        super().__init__()
        self.conv_c = nn.ModuleList(_conv(3 + channels, channels) for _ in range(_STREAMS))
        self.blocks = nn.Sequential(*(ProgressiveFusionBlock(channels) for _ in range(num_blocks)))
        self.merge = _conv(_STREAMS * channels, channels)
        self.upscale = _Enlarge(channels)

    def forward(self, window: Sequence[Tensor], hidden: Sequence[Tensor]) -> Tensor:
        """Take three frames (B, 3, H, W) and three of (B, C, H, W); give (B, C, H, W) (Eq. 2)."""
        pairs = zip(self.conv_c, window, hidden, strict=True)
        streams = [_act(conv(torch.cat([frame, feat], 1))) for conv, frame, feat in pairs]
        return self.merge(torch.cat(self.blocks(streams), 1))


class OVSR(nn.Module):
    """Super-resolution ×4 by precursor and successor; see the drawing on top of this file.

    Args:
        config: shape of the network.
    """

    def __init__(self, config: OVSRConfig) -> None:
        super().__init__()
        self.config = config
        self.precursor = _Precursor(config.channels, config.num_precursor_blocks)
        self.successor = _Successor(config.channels, config.num_successor_blocks)

    def forward(self, lq: Tensor, before: Edge = Edge(), after: Edge = Edge()) -> Tensor:
        """Restore a clip: (B, T, 3, H, W) → (B, T, 3, 4H, 4W); see `restore`."""
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
            before: one frame and the state there of the successor, and of a local precursor; empty
                where the video begins.
            after: one frame and the state there of the precursor, global or local; empty where the
                video ends.
            seen: called with the states of "precursor" and "successor", (B, C, H, W).
            store: keeps the features of a global precursor; a local one runs one frame ahead.

        Yields:
            (B, 3, 4H, 4W), from the first frame to the last.
        """
        frames = self.propagate(lq, before=before, after=after, seen=seen, store=store)
        for _, (present, hidden) in frames:
            yield self.successor.upscale(hidden) + self.precursor.upscale(present)
            del present, hidden  # before the next frame

    def propagate(
        self,
        lq: Tensor,
        *,
        before: Edge = Edge(),
        after: Edge = Edge(),
        seen: Seen | None = None,
        store: FeatureStore | None = None,
    ) -> Iterator[tuple[int, list[Tensor]]]:
        """Run precursor and successor; arguments as in `restore`.

        Yields:
            each frame, and its features p(t) and s(t), (B, C, H, W) each.
        """
        num_frames = lq.shape[1]
        frames = clip_frames(lq, before, after)
        at_end = after.hidden.get("precursor", ())[:1]

        def precede(t: int, past: Past) -> Tensor:
            return self.precursor(_window(frames, t), self._last(past, frames[t]))

        def succeed(t: int, past: Past) -> Tensor:
            nonlocal present, future
            present = future
            future = next(coming, present)
            last = self._last(past, frames[t])
            return self.successor(_window(frames, t), (last, present, future))

        with open_store(store) as features:
            if self.config.kind == "global":
                for t, feat in sweep("precursor", num_frames, -1, after, 1, precede, seen):
                    features.append(t, feat)
                preceding = (features.pop(t)[0] for t in range(num_frames))
            else:
                local = sweep("precursor", num_frames, 1, before, 1, precede, seen)
                preceding = (feat for _, feat in local)
            coming = chain(preceding, at_end)  # p(0), p(1), … and, where the video goes on, p(T)
            future = present = next(coming)
            for t, feat in sweep("successor", num_frames, 1, before, 1, succeed, seen):
                yield t, [present, feat]

    def _last(self, past: Past, frame: Tensor) -> Tensor:
        """Return the last state (B, C, H, W), zero at the start of the video."""
        if past:
            return past[0]
        return frame.new_zeros(frame.shape[0], self.config.channels, *frame.shape[2:])


def _window(frames: Mapping[int, Tensor], t: int) -> tuple[Tensor, Tensor, Tensor]:
    """Take a frame and its neighbors; beyond the ends of the video the frame itself is repeated."""
    frame = frames[t]
    return frames.get(t - 1, frame), frame, frames.get(t + 1, frame)


_HEADS = {
    "precursor.conv_c.weight": (3, 3, 3),
    "precursor.conv_sup.weight": (6, 3, 3),
    "precursor.upscale.body.3.weight": (12, 3, 3),
}
"""Names that only this network has, and the shape of an output channel."""


def _translate(state: State) -> dict[str, Tensor] | None:
    """Take the authors' names, which are ours; None where they are of another network."""
    for name, shape in _HEADS.items():
        if shape_of(state, name)[1:] != shape:
            return None
    return dict(state) if first_words(state) == {"precursor", "successor"} else None


def _infer(state: State) -> OVSRConfig:
    return OVSRConfig(
        channels=state["precursor.conv_c.weight"].shape[0],
        num_precursor_blocks=count_names(state, r"precursor\.blocks\..*\.conv1\.weight"),
        num_successor_blocks=count_names(state, r"successor\.blocks\..*\.conv1\.weight"),
    )


def _contract(config: OVSRConfig) -> Contract:
    del config  # every configuration asks for the same
    return Contract(
        scale=_SCALE, temporal=Temporal("clip"), halo_px=32, streams=True, edge_frames=1
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
