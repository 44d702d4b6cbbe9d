"""TMNet: Zooming Slow-Mo whose in-between frames can lie at any time, and whose features look at their neighbors.

    lq (B, T, 3, H, W), times (B, k) in (0, 1)
      features      as in Zooming Slow-Mo; the alignment at time τ is modulated: the offset features of every level get
                    local(offset features) · time(2τ - 1), those of the later frame's side time(1 - 2τ)
      local         f(t-1) and f(t+1), aligned ── [aligned, f(t), aligned] ── four 1×1 ──(+ f(t))── g(t)
      both ways     g ── deformable ConvLSTM from both ends, as in Zooming Slow-Mo ── h(t)
      each frame    h(t) ── residual blocks ──(+ f(t))── conv, shuffle ×2 ── conv, shuffle ×2 ── conv ── conv ── sr(t)
    sr (B, T + (T - 1)·k, 3, 4H, 4W); by default k is 1, half-way, where time() is 0: nothing is modulated

H and W are multiples of 4.

Source: Xu et al., "Temporal Modulation Network for Controllable Space-Time Video Super-Resolution", CVPR 2021, Sec. 3.
Published: 64 channels, 8 offset groups, 5 and 40 residual blocks (12.3 M parameters): for one frame half-way trained on
Vimeo-90K, and for any time on Adobe240fps. Their weights have the same names and shapes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from tubelet.errors import ConfigError
from tubelet.layers.deform import ModulatedDeformConv
from tubelet.layers.frames import stack_frames
from tubelet.layers.recurrence import Edge, Seen
from tubelet.layers.store import FeatureStore, open_store
from tubelet.models.architecture import Architecture, Contract
from tubelet.models.state_dict import Rule, State, first_words, rename
from tubelet.models.zooming_slow_mo import (
    HALO_PX,
    OVERLAP_FRAMES,
    SCALE,
    SIZE_MULTIPLE,
    BiDeformableConvLSTM,
    Modulate,
    Reconstruction,
    SpaceTimeFeatures,
    infer_shape,
    rename_space_time,
)
from tubelet.types import Temporal

__all__ = ["ARCHITECTURE", "TMNet", "TMNetConfig"]

_CHANNELS = 64  # the modulation and the local comparison are published at this width alone
_LOCAL_GROUPS = 8
_SLOPE = 0.1

Times = Tensor | Sequence[float]
Between = Sequence[tuple[Modulate | None, Modulate | None]]
"""How the alignment of the first and of the second frame of a pair is modulated, for each moment between them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TMNetConfig:
    """Shape of a `TMNet`; its width is 64."""

    PUBLISHED_NAMES: ClassVar[Mapping[str, str]] = {
        "front_RBs": "num_front_blocks",
        "back_RBs": "num_back_blocks",
    }
    FORMER_NAMES: ClassVar[Mapping[str, str]] = {
        "front_blocks": "num_front_blocks",
        "back_blocks": "num_back_blocks",
    }

    groups: int = 8
    """Groups of channels with offsets of their own, in the alignment of pairs and in the ConvLSTM."""
    num_front_blocks: int = 5
    """Residual blocks that extract features."""
    num_back_blocks: int = 40
    """Residual blocks that reconstruct."""

    def __post_init__(self) -> None:
        if (
            self.groups < 1
            or _CHANNELS % self.groups
            or min(self.num_front_blocks, self.num_back_blocks) < 0
        ):
            raise ConfigError(f"{self} is out of range: groups divide {_CHANNELS}, blocks ≥ 0")


class _Modulation(nn.Module):
    """Weigh local features by a vector of time (temporal modulation block, Sec. 3.2)."""

    def __init__(self) -> None:
        super().__init__()
        c = _CHANNELS
        self.time = nn.Sequential(
            *(nn.Conv2d(1, c, 1, bias=False), nn.LeakyReLU(_SLOPE, inplace=True)),
            *(nn.Conv2d(c, c, 1, bias=False), nn.LeakyReLU(_SLOPE, inplace=True)),
            *(nn.Conv2d(c, c, 1, bias=False), nn.LeakyReLU(_SLOPE, inplace=True)),
        )
        self.local = nn.Sequential(
            *(nn.Conv2d(c, c, 3, padding=1), nn.LeakyReLU(_SLOPE, inplace=True)),
            *(nn.Conv2d(c, c, 3, padding=1), nn.LeakyReLU(_SLOPE, inplace=True)),
        )

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Modulate x (B, C, h, w) by time (B, 1, 1, 1) in (-1, 1)."""
        return self.local(x) * self.time(time)


class _SideModulation(nn.Module):
    """The modulations of the three levels of one side of the alignment."""

    def __init__(self) -> None:
        super().__init__()
        self.level1 = _Modulation()
        self.level2 = _Modulation()
        self.level3 = _Modulation()

    def at(self, time: Tensor) -> Modulate:
        """Give what the alignment calls for one time (B, 1, 1, 1)."""
        levels = {1: self.level1, 2: self.level2, 3: self.level3}
        return lambda level, x: levels[level](x, time)


class _LocalComparison(nn.Module):
    """Compare a frame with those before and after it (locally-temporal feature comparison, Sec. 3.3)."""

    def __init__(self) -> None:
        super().__init__()
        c = _CHANNELS
        self.before_guide, self.after_guide = (
            nn.Sequential(
                *(nn.Conv2d(2 * c, c, 3, padding=1), nn.LeakyReLU(_SLOPE, inplace=True)),
                nn.Conv2d(c, c, 3, padding=1),
            )
            for _ in range(2)
        )
        self.before_dcn, self.after_dcn = (
            ModulatedDeformConv(c, c, groups=_LOCAL_GROUPS) for _ in range(2)
        )
        self.fusion = nn.Sequential(
            *(nn.Conv2d(3 * c, 3 * c, 1), nn.LeakyReLU(_SLOPE, inplace=True)),
            *(nn.Conv2d(3 * c, 3 * c, 1), nn.LeakyReLU(_SLOPE, inplace=True)),
            *(nn.Conv2d(3 * c, 3 * c, 1), nn.LeakyReLU(_SLOPE, inplace=True)),
            nn.Conv2d(3 * c, c, 1),
        )

    def forward(self, before: Tensor, feat: Tensor, after: Tensor) -> Tensor:
        """Map three frames (B, C, H, W) to what the middle one gains."""
        before_guide = self.before_guide(torch.cat([before, feat], 1))
        after_guide = self.after_guide(torch.cat([after, feat], 1))
        aligned = [
            functional.leaky_relu(self.before_dcn(before, before_guide), _SLOPE),
            feat,
            functional.leaky_relu(self.after_dcn(after, after_guide), _SLOPE),
        ]
        return self.fusion(torch.cat(aligned, 1))


class TMNet(nn.Module):
    """Space-time super-resolution, ×4 in size, with frames at any time; see the drawing on top of this file.

    Args:
        config: shape of the network.
    """

    def __init__(self, config: TMNetConfig) -> None:
        super().__init__()
        self.config = config
        self.features = SpaceTimeFeatures(_CHANNELS, config.groups, config.num_front_blocks)
        self.modulation1 = _SideModulation()
        self.modulation2 = _SideModulation()
        self.comparison = _LocalComparison()
        self.lstm = BiDeformableConvLSTM(_CHANNELS, config.groups)
        self.reconstruction = Reconstruction(_CHANNELS, config.num_back_blocks)

    def forward(
        self, lq: Tensor, before: Edge = Edge(), after: Edge = Edge(), *, times: Times | None = None
    ) -> Tensor:
        """Restore a clip, with frames between any two of its frames.

        Args:
            lq: (B, T, 3, H, W), H and W multiples of 4.
            before: see `restore`.
            after: see `restore`.
            times: see `restore`.

        Returns:
            (B, T + (T - 1)·k, 3, 4H, 4W), in order of time.
        """
        count = _count(lq, self._between(times, lq))
        return stack_frames(self.restore(lq, before=before, after=after, times=times), count)

    def restore(
        self,
        lq: Tensor,
        *,
        before: Edge = Edge(),
        after: Edge = Edge(),
        seen: Seen | None = None,
        store: FeatureStore | None = None,
        times: Times | None = None,
    ) -> Iterator[Tensor]:
        """Restore a clip as `forward` does, and yield each frame as it is done.

        The moments of the clip are its frames and those between them, in order of time. The state at an edge is that of
        the moment next to the clip, between it and the frame of the edge.

        Args:
            lq: (B, T, 3, H, W).
            before: one frame, and the state of the sweep "forward"; empty where the video begins.
            after: one frame, and the state of the sweep "backward"; empty where the video ends.
            seen: called with the states of both sweeps at every moment, (B, 2C, H, W).
            store: keeps the features of the clip, those compared, and the hidden states of one direction.
            times: of the frames between two, (k,) for the whole batch or (B, k), in (0, 1) and increasing. Default: one
                half-way, where the modulation adds nothing.

        Yields:
            (B, 3, 4H, 4W), T + (T - 1)·k times.
        """
        moments = self.propagate(
            lq, before=before, after=after, seen=seen, store=store, times=times
        )
        for _, (hidden, raw) in moments:
            yield self.reconstruction(hidden, raw)

    def propagate(
        self,
        lq: Tensor,
        *,
        before: Edge = Edge(),
        after: Edge = Edge(),
        seen: Seen | None = None,
        store: FeatureStore | None = None,
        times: Times | None = None,
    ) -> Iterator[tuple[int, list[Tensor]]]:
        """Compare neighboring moments, and run both sweeps; arguments as in `restore`.

        Yields:
            each moment, its features of both sweeps fused, and its features before both, (B, C, H, W) each.
        """
        between = self._between(times, lq)
        count = _count(lq, between)
        with open_store(store) as features:
            for t, (last, feat, following) in self._neighbors(lq, before, after, between):
                features.append(("raw", t), feat)
                features.append(t, feat + self.comparison(last, feat, following))
            fused = self.lstm(features, count, before=before, after=after, seen=seen)
            for t, feat in enumerate(fused):
                yield t, [feat, *features.pop(("raw", t))]

    def _between(self, times: Times | None, lq: Tensor) -> Between:
        """Make the modulations of both sides for each of the k times."""
        if times is None:
            return [(None, None)]
        signed = (
            2 * torch.as_tensor(times, dtype=lq.dtype, device=lq.device) - 1
        )  # its negative is that of 1 - τ
        signed = signed.expand(lq.shape[0], -1)[..., None, None, None]  # (B, k, 1, 1, 1)
        return [
            (self.modulation1.at(time), self.modulation2.at(-time)) for time in signed.unbind(1)
        ]

    def _neighbors(
        self, lq: Tensor, before: Edge, after: Edge, between: Between
    ) -> Iterator[tuple[int, tuple[Tensor, Tensor, Tensor]]]:
        """Yield each moment with the features of the last, of itself and of the next; video ends are repeated."""
        frames = [*before.frames[:1], *lq.unbind(1), *after.frames[:1]]
        first = -1 - len(between) if before.frames else 0
        count = _count(lq, between)
        triples = _triples(self.features(frames, between))
        for t, triple in enumerate(triples, first):
            if 0 <= t < count:
                yield t, triple


def _count(lq: Tensor, between: Between) -> int:
    """Count the moments of a clip."""
    num_frames = lq.shape[1]
    return num_frames + (num_frames - 1) * len(between)


def _triples(feats: Iterator[Tensor]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield each with the one before and the one after it; beyond the ends the first or last is repeated."""
    feat = next(feats)
    before = feat
    for after in feats:
        yield before, feat, after
        before, feat = feat, after
    yield before, feat, feat


_AUTHORS: tuple[Rule, ...] = (
    (r"^features\.pcd_align\.TMB_A_l(\d)\.", r"modulation1.level\1."),
    (r"^features\.pcd_align\.TMB_B_l(\d)\.", r"modulation2.level\1."),
    (r"^(modulation\d\.level\d\.)t_process\.", r"\1time."),
    (r"^(modulation\d\.level\d\.)f_process\.", r"\1local."),
    (r"^layersAtBOffset\.", "comparison.before_guide."),
    (r"^layersCtBOffset\.", "comparison.after_guide."),
    (r"^layersAtB\.", "comparison.before_dcn."),
    (r"^layersCtB\.", "comparison.after_dcn."),
    (r"^layersFusion\.", "comparison.fusion."),
)
_PARTS = {"features", "modulation1", "modulation2", "comparison", "lstm", "reconstruction"}


def _translate(state: State) -> dict[str, Tensor] | None:
    """Map the authors' names; None where they are of another network."""
    shared = rename_space_time(state)
    if shared is None:
        return None
    own = rename(shared, _AUTHORS)
    return own if first_words(own) == _PARTS else None


def _infer(state: State) -> TMNetConfig:
    shape = infer_shape(state)
    return TMNetConfig(
        groups=shape["groups"],
        num_front_blocks=shape["num_front_blocks"],
        num_back_blocks=shape["num_back_blocks"],
    )


def _contract(config: TMNetConfig) -> Contract:
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
    name="TMNet",
    config=TMNetConfig,
    build=TMNet,
    translate=_translate,
    infer=_infer,
    contract=_contract,
    source="https://arxiv.org/abs/2104.10642",
)
