"""RealBasicVSR: BasicVSR for real video, behind a network that cleans the frames first.

    lq (B, T, 3, H, W)
      up to 3 times, until mean |residue| of the clip falls below a threshold
        residue(t) = clean lq(t)      conv ── residual blocks ── conv                (B, 3, H, W)
        lq(t) += residue(t)
      BasicVSR ── sr (B, T, 3, 4H, 4W)

Source: Chan et al., "Investigating Tradeoffs in Real-World Video Super-Resolution", CVPR 2022, Sec. 4.1. Published: 64
channels, 20 cleaning blocks, 20 blocks a direction (6.3 M parameters).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from tubelet.errors import ConfigError
from tubelet.layers.frames import stack_frames
from tubelet.layers.recurrence import Edge, Seen
from tubelet.layers.residual import ResidualTrunk
from tubelet.layers.store import FeatureStore
from tubelet.models import basicvsr
from tubelet.models.architecture import Architecture, Contract
from tubelet.models.basicvsr import BasicVSR, BasicVSRConfig
from tubelet.models.state_dict import (
    State,
    below,
    count_names,
    first_words,
    has_convolutions,
    without,
)

__all__ = ["ARCHITECTURE", "RealBasicVSR", "RealBasicVSRConfig"]

_MAX_CLEANINGS = 3  # Sec. 4.1
_LEVELS = 255  # of a pixel; the published threshold counts them


@dataclass(frozen=True, slots=True, kw_only=True)
class RealBasicVSRConfig:
    """Shape of a `RealBasicVSR`."""

    PUBLISHED_NAMES: ClassVar[Mapping[str, str]] = {"mid_channels": "channels"}

    channels: int = 64
    """Width of the features."""
    num_blocks: int = 20
    """Residual blocks of each direction of propagation."""
    num_cleaning_blocks: int = 20
    """Residual blocks of the cleaning."""
    dynamic_refine_thres: float = 255.0
    """A clip is cleaned again while its mean change is at least this, in levels of 1/255. 255: cleaned once, as it is
    trained; its authors evaluate real video with 5."""

    def __post_init__(self) -> None:
        if (
            self.channels < 1
            or self.num_blocks < 0
            or self.num_cleaning_blocks < 0
            or self.dynamic_refine_thres < 0
        ):
            raise ConfigError(f"{self} is out of range: channels ≥ 1, the others ≥ 0")


class RealBasicVSR(nn.Module):
    """Recurrent super-resolution ×4 of damaged video; see the drawing on top of this file.

    Args:
        config: shape of the network.
    """

    def __init__(self, config: RealBasicVSRConfig) -> None:
        super().__init__()
        self.config = config
        self.image_cleaning = nn.Sequential(
            ResidualTrunk(3, config.channels, config.num_cleaning_blocks),
            nn.Conv2d(config.channels, 3, 3, padding=1),
        )
        self.basicvsr = BasicVSR(
            BasicVSRConfig(channels=config.channels, num_blocks=config.num_blocks)
        )

    def forward(
        self,
        lq: Tensor,
        before: Edge = Edge(),
        after: Edge = Edge(),
        *,
        cleanings: Tensor | None = None,
    ) -> Tensor:
        """Restore a clip: (B, T, 3, H, W) → (B, T, 3, 4H, 4W); see `restore`."""
        return stack_frames(
            self.restore(lq, before=before, after=after, cleanings=cleanings), lq.shape[1]
        )

    def restore(
        self,
        lq: Tensor,
        *,
        before: Edge = Edge(),
        after: Edge = Edge(),
        seen: Seen | None = None,
        store: FeatureStore | None = None,
        cleanings: Tensor | None = None,
    ) -> Iterator[Tensor]:
        """Restore a clip as `forward` does, and yield each frame as it is done.

        Args:
            lq: (B, T, 3, H, W).
            before: one frame, not cleaned, and the state of the forward sweep there; empty where the video begins.
            after: one frame, not cleaned, and the state of the backward sweep there; empty where the video ends.
            seen: called with the states of both sweeps, (B, C, H, W).
            store: keeps features between the sweeps.
            cleanings: (B,), how often each clip is cleaned, at most 3; None decides it by the clip, not by its video.

        Yields:
            (B, 3, 4H, 4W), from the first frame to the last.
        """
        lq, before, after = self._clean_all(lq, before, after, cleanings)
        yield from self.basicvsr.restore(lq, before=before, after=after, seen=seen, store=store)

    def propagate(
        self,
        lq: Tensor,
        *,
        before: Edge = Edge(),
        after: Edge = Edge(),
        seen: Seen | None = None,
        store: FeatureStore | None = None,
        cleanings: Tensor | None = None,
    ) -> Iterator[tuple[int, list[Tensor]]]:
        """Run both sweeps over the cleaned clip; arguments as in `restore`.

        Yields:
            each frame, and its features of both sweeps, (B, C, H, W) each.
        """
        lq, before, after = self._clean_all(lq, before, after, cleanings)
        yield from self.basicvsr.propagate(lq, before=before, after=after, seen=seen, store=store)

    def clean(self, lq: Tensor) -> Tensor:
        """Remove noise and artifacts from a clip, as often as it needs: (B, T, 3, H, W) to the same.

        Each clip of a batch is judged by itself.
        """
        return self._clean(lq, None)[0]

    def enlarge_cleaned(self, cleaned: Tensor) -> Tensor:
        """Restore a clip that is cleaned already: (B, T, 3, H, W) to (B, T, 3, 4H, 4W)."""
        return self.basicvsr(cleaned)

    def _clean_all(
        self, lq: Tensor, before: Edge, after: Edge, cleanings: Tensor | None
    ) -> tuple[Tensor, Edge, Edge]:
        """Clean a clip, and the frames of its edges as often as the clip."""
        lq, cleanings = self._clean(lq, cleanings)
        return lq, self._clean_edge(before, cleanings), self._clean_edge(after, cleanings)

    def _clean_edge(self, edge: Edge, cleanings: Tensor) -> Edge:
        if not edge.frames:
            return edge
        cleaned, _ = self._clean(torch.stack(edge.frames, 1), cleanings)
        return replace(edge, frames=cleaned.unbind(1))

    def _clean(self, lq: Tensor, cleanings: Tensor | None) -> tuple[Tensor, Tensor]:
        """Clean a clip; return it and how often each clip of the batch was cleaned, (B,)."""
        threshold = self.config.dynamic_refine_thres / _LEVELS
        done = torch.zeros(lq.shape[0], dtype=torch.long, device=lq.device)
        active = torch.ones_like(done, dtype=torch.bool)
        for number in range(_MAX_CLEANINGS):
            if cleanings is not None:
                active = cleanings > number
            if not active.any():
                break
            lq, change = self._clean_once(lq, active)
            done = done + active
            active = active & (change >= threshold)
        return lq, done

    def _clean_once(self, lq: Tensor, active: Tensor) -> tuple[Tensor, Tensor]:
        """Clean the clips that are `active` (B,), frame by frame; return the clips and their mean change (B,)."""
        num_frames = lq.shape[1]
        change = lq.new_zeros(lq.shape[0])

        def cleaned() -> Iterator[Tensor]:
            for frame in lq.unbind(1):
                residue = self.image_cleaning(frame) * active.view(-1, 1, 1, 1)
                change.add_(residue.detach().abs().mean((1, 2, 3)) / num_frames)
                yield frame + residue

        return stack_frames(cleaned(), num_frames, like=lq), change


def _translate(state: State) -> dict[str, Tensor] | None:
    """Map the names of MMagic; None where they are of another network."""
    if not has_convolutions(state, "image_cleaning.0.main.0"):
        return None
    inner = basicvsr.ARCHITECTURE.translate(below(state, "basicvsr."))
    outer = without(state, r"basicvsr\..*")
    if inner is None or first_words(outer) != {"image_cleaning"}:
        return None
    return outer | {f"basicvsr.{name}": value for name, value in inner.items()}


def _infer(state: State) -> RealBasicVSRConfig:
    inner = basicvsr.ARCHITECTURE.infer(below(state, "basicvsr."))
    return RealBasicVSRConfig(
        channels=inner.channels,
        num_blocks=inner.num_blocks,
        num_cleaning_blocks=count_names(state, r"image_cleaning\.0\.main\.2\..*\.conv1\.weight"),
    )


def _contract(config: RealBasicVSRConfig) -> Contract | None:
    return basicvsr.ARCHITECTURE.contract(
        BasicVSRConfig(channels=config.channels, num_blocks=config.num_blocks)
    )


ARCHITECTURE = Architecture(
    name="RealBasicVSR",
    config=RealBasicVSRConfig,
    build=RealBasicVSR,
    translate=_translate,
    infer=_infer,
    contract=_contract,
    cleans=True,
    derived=("spynet.mean", "spynet.std"),
    not_exportable="frames are cleaned until they change little, so the number of cleanings depends on the frames",
    source="https://arxiv.org/abs/2111.12704",
)
