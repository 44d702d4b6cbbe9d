"""TMNet: Zooming Slow-Mo with new frames at any time, and features compared with their neighbors.

    lq (B, T, 3, H, W), times (B, k) in (0, 1)
      features      as in Zooming Slow-Mo, but the alignment at time τ is modulated: each level adds
                    local(offset features) · time(2τ - 1) to its offset features; the alignment of
                    the later frame adds local(offset features) · time(1 - 2τ)
      comparison    f(t-1) and f(t+1), aligned ── [aligned, f(t), aligned] ── four 1×1
                    ──(+ f(t))── g(t)
      both ways     g ── deformable ConvLSTM in both directions, as in Zooming Slow-Mo ── h(t)
      each frame    h(t) ── residual blocks ──(+ f(t))
                    ── conv, shuffle ×2 ── conv, shuffle ×2 ── conv ── conv ── sr(t)
    sr (B, T + (T - 1)·k, 3, 4H, 4W)

By default k is 1, half-way, where time() is 0, so nothing is modulated. H and W are multiples of 4.

Published: 64 channels, 8 offset groups, 5 and 40 residual blocks (12.3 M parameters): for one frame
half-way, trained on Vimeo-90K, and for any time, on Adobe240fps. Both have the same names and
shapes.

Source: Xu et al., "Temporal Modulation Network for Controllable Space-Time Video Super-Resolution",
CVPR 2021, Sec. 3.
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
from tubelet.layers.recurrence import Edge, EdgeStates, StateObserver
from tubelet.layers.store import FeatureStore, open_store
from tubelet.models.architecture import Architecture, Contract
from tubelet.models.config_checks import check_min
from tubelet.models.state_dict import Rule, State, first_words, rename
from tubelet.models.zooming_slow_mo import (
    HALO_PX,
    LOOKAHEAD_FRAMES,
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

# The modulation and the comparison are published only at this width.
_CHANNELS = 64
_COMPARISON_GROUPS = 8
# Of all leaky ReLUs.
_SLOPE = 0.1

Times = Tensor | Sequence[float]
Between = Sequence[tuple[Modulate | None, Modulate | None]]
"""For each moment between two frames: modulation of the alignment of the first and the second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TMNetConfig:
    """Configuration of `TMNet`, which always has 64 channels."""

    PUBLISHED_NAMES: ClassVar[Mapping[str, str]] = {
        "front_RBs": "num_front_blocks",
        "back_RBs": "num_back_blocks",
    }
    FORMER_NAMES: ClassVar[Mapping[str, str]] = {
        "front_blocks": "num_front_blocks",
        "back_blocks": "num_back_blocks",
    }

    groups: int = 8
    """Offset groups of the alignment of frame pairs and of the ConvLSTM."""
    num_front_blocks: int = 5
    """Number of residual blocks of the feature extraction."""
    num_back_blocks: int = 40
    """Number of residual blocks of the reconstruction."""

    def __post_init__(self) -> None:
        check_min(self, "groups", 1)
        if _CHANNELS % self.groups:
            raise ConfigError(f"TMNetConfig: groups={self.groups} must divide {_CHANNELS}")
        check_min(self, "num_front_blocks", 0)
        check_min(self, "num_back_blocks", 0)


class _Modulation(nn.Module):
    """Weight local features by a vector of time (temporal modulation block, Sec. 3.2)."""

    def __init__(self) -> None:
        super().__init__()
        c = _CHANNELS
        self.time = nn.Sequential(
            nn.Conv2d(1, c, 1, bias=False),
            nn.LeakyReLU(_SLOPE, inplace=True),
            nn.Conv2d(c, c, 1, bias=False),
            nn.LeakyReLU(_SLOPE, inplace=True),
            nn.Conv2d(c, c, 1, bias=False),
            nn.LeakyReLU(_SLOPE, inplace=True),
        )
        self.local = nn.Sequential(
            nn.Conv2d(c, c, 3, padding=1),
            nn.LeakyReLU(_SLOPE, inplace=True),
            nn.Conv2d(c, c, 3, padding=1),
            nn.LeakyReLU(_SLOPE, inplace=True),
        )

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Modulate features x (B, C, h, w) by a time (B, 1, 1, 1) in (-1, 1)."""
        return self.local(x) * self.time(time)


class _SideModulation(nn.Module):
    """Modulations of the three levels of the alignment of one frame."""

    def __init__(self) -> None:
        super().__init__()
        self.level1 = _Modulation()
        self.level2 = _Modulation()
        self.level3 = _Modulation()

    def at(self, time: Tensor) -> Modulate:
        """Return the function that modulates each level for a time, (B, 1, 1, 1)."""
        levels = {1: self.level1, 2: self.level2, 3: self.level3}
        return lambda level, x: levels[level](x, time)


class _LocalComparison(nn.Module):
    """Compare a frame with its neighbors (locally-temporal feature comparison, Sec. 3.3)."""

    def __init__(self) -> None:
        super().__init__()
        c = _CHANNELS
        self.before_guide = _guide_convs()
        self.after_guide = _guide_convs()
        self.before_dcn = ModulatedDeformConv(c, c, groups=_COMPARISON_GROUPS)
        self.after_dcn = ModulatedDeformConv(c, c, groups=_COMPARISON_GROUPS)
        self.fusion = nn.Sequential(
            nn.Conv2d(3 * c, 3 * c, 1),
            nn.LeakyReLU(_SLOPE, inplace=True),
            nn.Conv2d(3 * c, 3 * c, 1),
            nn.LeakyReLU(_SLOPE, inplace=True),
            nn.Conv2d(3 * c, 3 * c, 1),
            nn.LeakyReLU(_SLOPE, inplace=True),
            nn.Conv2d(3 * c, c, 1),
        )

    def forward(self, before: Tensor, feat: Tensor, after: Tensor) -> Tensor:
        """Compute the residual of a frame from its neighbors.

        Args:
            before: Features of the frame before, (B, C, H, W).
            feat: Features of the frame, (B, C, H, W).
            after: Features of the frame after, (B, C, H, W).

        Returns:
            Residual of `feat`, (B, C, H, W).
        """
        # The offsets of each neighbor are predicted from it and the frame.
        before_guide = self.before_guide(torch.cat([before, feat], 1))
        after_guide = self.after_guide(torch.cat([after, feat], 1))
        # Not in place, because the deformable convolution keeps its output.
        before_aligned = self.before_dcn(before, before_guide)
        before_aligned = functional.leaky_relu(before_aligned, _SLOPE)
        after_aligned = self.after_dcn(after, after_guide)
        after_aligned = functional.leaky_relu(after_aligned, _SLOPE)
        return self.fusion(torch.cat([before_aligned, feat, after_aligned], 1))


def _guide_convs() -> nn.Sequential:
    """Build the convolutions of a guide for offsets: (B, 2C, H, W) → (B, C, H, W)."""
    return nn.Sequential(
        nn.Conv2d(2 * _CHANNELS, _CHANNELS, 3, padding=1),
        nn.LeakyReLU(_SLOPE, inplace=True),
        nn.Conv2d(_CHANNELS, _CHANNELS, 3, padding=1),
    )


class TMNet(nn.Module):
    """Space-time super-resolution, ×4 in size, with new frames at any time.

    See the drawing at the top of this file.

    Args:
        config: Configuration of the network.
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
        self,
        lq: Tensor,
        before: Edge = Edge(),
        after: Edge = Edge(),
        *,
        times: Times | None = None,
    ) -> Tensor:
        """Restore a clip, with new frames between its frames.

        Args:
            lq: Low-quality clip, (B, T, 3, H, W), H and W multiples of 4.
            before: See `restore`.
            after: See `restore`.
            times: See `restore`.

        Returns:
            Restored clip in order of time, (B, T + (T - 1)·k, 3, 4H, 4W).
        """
        num_moments = _count_moments(lq, self._between(times, lq))
        frames = self.restore(lq, before=before, after=after, times=times)
        return stack_frames(frames, num_moments)

    def restore(
        self,
        lq: Tensor,
        *,
        before: Edge = Edge(),
        after: Edge = Edge(),
        on_state: StateObserver | None = None,
        store: FeatureStore | None = None,
        times: Times | None = None,
    ) -> Iterator[Tensor]:
        """Restore a clip like `forward`, but yield each frame as soon as it is finished.

        The moments of the clip are its frames and the new ones between them, in order of time. The
        state in an edge is that of the moment next to the clip, between it and the frame in the
        edge.

        Args:
            lq: Low-quality clip, (B, T, 3, H, W), H and W multiples of 4.
            before: One frame before the clip and the state of the sweep "forward"; empty at the
                start of the video.
            after: One frame after the clip and the state of the sweep "backward"; empty at the end
                of the video.
            on_state: Callback for the states of both sweeps at every moment, (B, 2C, H, W).
            store: Store for the features of the clip before and after the comparison, and the
                hidden states of one direction.
            times: Times of the new frames between two frames, in (0, 1) and increasing: (k,) for
                the whole batch, or (B, k). None is one frame half-way, which is not modulated.

        Yields:
            T + (T - 1)·k restored frames in order of time, (B, 3, 4H, 4W) each.
        """
        moments = self.propagate(
            lq,
            before=before,
            after=after,
            on_state=on_state,
            store=store,
            times=times,
        )
        for _, (hidden, feat) in moments:
            yield self.reconstruction(hidden, feat)

    def propagate(
        self,
        lq: Tensor,
        *,
        before: Edge = Edge(),
        after: Edge = Edge(),
        on_state: StateObserver | None = None,
        store: FeatureStore | None = None,
        times: Times | None = None,
    ) -> Iterator[tuple[int, list[Tensor]]]:
        """Compare each moment with its neighbors, and propagate features in both directions.

        Args:
            lq: See `restore`.
            before: See `restore`.
            after: See `restore`.
            on_state: See `restore`.
            store: See `restore`.
            times: See `restore`.

        Yields:
            The index t of each moment and its features [h(t), f(t)], (B, C, H, W) each.
        """
        between = self._between(times, lq)
        num_moments = _count_moments(lq, between)
        with open_store(store) as features:
            for t, (last, feat, following) in self._neighbors(lq, before, after, between):
                # f(t), for the skip connection of the reconstruction.
                features.append(("raw", t), feat)
                # g(t)
                features.append(t, feat + self.comparison(last, feat, following))

            fused = self.lstm(
                features,
                num_moments,
                before=before,
                after=after,
                on_state=on_state,
            )
            for t, feat in enumerate(fused):
                yield t, [feat, *features.pop(("raw", t))]

    def _between(self, times: Times | None, lq: Tensor) -> Between:
        """Return the modulations of both frames of a pair for each of the k times."""
        if times is None:
            return [(None, None)]
        # From τ in (0, 1) to (-1, 1). Seen from the later frame, time runs the other way: 1 - 2τ.
        signed = 2 * torch.as_tensor(times, dtype=lq.dtype, device=lq.device) - 1
        # (B, k, 1, 1, 1)
        signed = signed.expand(lq.shape[0], -1)[..., None, None, None]
        between: list[tuple[Modulate | None, Modulate | None]] = []
        for time in signed.unbind(1):
            first = self.modulation1.at(time)
            second = self.modulation2.at(-time)
            between.append((first, second))
        return between

    def _neighbors(
        self, lq: Tensor, before: Edge, after: Edge, between: Between
    ) -> Iterator[tuple[int, tuple[Tensor, Tensor, Tensor]]]:
        """Compute the features of each moment of the clip and of its neighbors.

        Args:
            lq: Low-quality clip, (B, T, 3, H, W).
            before: Edge before the clip.
            after: Edge after the clip.
            between: Modulations for the moments between two frames.

        Yields:
            The index t of each moment and the features of the moments t-1, t and t+1, (B, C, H, W)
            each. At the ends of the video, the first and the last moment are repeated.
        """
        frames = [*before.frames[:1], *lq.unbind(1), *after.frames[:1]]
        # A frame before the clip adds itself and the moments between it and the clip.
        first = -1 - len(between) if before.frames else 0
        num_moments = _count_moments(lq, between)
        triples = _triples(self.features(frames, between))
        for t, triple in enumerate(triples, first):
            if 0 <= t < num_moments:
                yield t, triple


def _count_moments(lq: Tensor, between: Between) -> int:
    """Count the frames of a clip and the new ones between them."""
    num_frames = lq.shape[1]
    return num_frames + (num_frames - 1) * len(between)


def _triples(feats: Iterator[Tensor]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield each item with the one before and the one after it; repeat the first and the last."""
    feat = next(feats)
    before = feat
    for after in feats:
        yield before, feat, after
        before = feat
        feat = after
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
_MODULES = {"features", "modulation1", "modulation2", "comparison", "lstm", "reconstruction"}


def _translate(state: State) -> dict[str, Tensor] | None:
    """Rename the tensors of a file of the authors.

    Returns:
        The renamed state dict, or None if it belongs to another architecture.
    """
    # Modules in common with Zooming Slow-Mo, then those of TMNet.
    renamed = rename_space_time(state)
    if renamed is None:
        return None
    renamed = rename(renamed, _AUTHORS)
    return renamed if first_words(renamed) == _MODULES else None


def _infer(state: State) -> TMNetConfig:
    shape = infer_shape(state)
    return TMNetConfig(
        groups=shape["groups"],
        num_front_blocks=shape["num_front_blocks"],
        num_back_blocks=shape["num_back_blocks"],
    )


def _contract(config: TMNetConfig) -> Contract:
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
    name="TMNet",
    config=TMNetConfig,
    build=TMNet,
    translate=_translate,
    infer=_infer,
    contract=_contract,
    source="https://arxiv.org/abs/2104.10642",
)
