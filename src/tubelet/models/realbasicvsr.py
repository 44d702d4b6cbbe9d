"""RealBasicVSR: BasicVSR for real video, after a network that cleans the frames.

    lq (B, T, 3, H, W)
      up to 3 times, until the mean |residue| of the clip falls below a threshold
        residue(t) = conv ── residual blocks ── conv, of lq(t)                       (B, 3, H, W)
        lq(t)     += residue(t)
      BasicVSR ── sr (B, T, 3, 4H, 4W)

Published: 64 channels, 20 cleaning blocks, 20 blocks in each direction (6.3 M parameters).

Source: Chan et al., "Investigating Tradeoffs in Real-World Video Super-Resolution", CVPR 2022,
Sec. 4.1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from tubelet.layers.frames import stack_frames
from tubelet.layers.recurrence import Edge, StateObserver
from tubelet.layers.residual import ResidualTrunk
from tubelet.layers.store import FeatureStore
from tubelet.models import basicvsr
from tubelet.models.architecture import Architecture, Contract
from tubelet.models.basicvsr import BasicVSR, BasicVSRConfig
from tubelet.models.config_checks import check_min
from tubelet.models.state_dict import (
    State,
    below,
    count_names,
    first_words,
    has_convolutions,
    without,
)

__all__ = ["ARCHITECTURE", "RealBasicVSR", "RealBasicVSRConfig"]

# Sec. 4.1
_MAX_CLEANINGS = 3
# Levels of a pixel value: the published threshold counts in them.
_LEVELS = 255


@dataclass(frozen=True, slots=True, kw_only=True)
class RealBasicVSRConfig:
    """Configuration of `RealBasicVSR`."""

    PUBLISHED_NAMES: ClassVar[Mapping[str, str]] = {"mid_channels": "channels"}

    channels: int = 64
    """Number of channels of the features."""
    num_blocks: int = 20
    """Number of residual blocks in each direction of the propagation."""
    num_cleaning_blocks: int = 20
    """Number of residual blocks of the cleaning."""
    dynamic_refine_thres: float = 255.0
    """Clean a clip again while the mean change reaches this threshold, in levels of 1/255. 255
    cleans once, as in training; the authors evaluate real video with 5."""

    def __post_init__(self) -> None:
        check_min(self, "channels", 1)
        check_min(self, "num_blocks", 0)
        check_min(self, "num_cleaning_blocks", 0)
        check_min(self, "dynamic_refine_thres", 0)


class RealBasicVSR(nn.Module):
    """Recurrent super-resolution ×4 of degraded video; see the drawing at the top of this file.

    Args:
        config: Configuration of the network.
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
        frames = self.restore(lq, before=before, after=after, cleanings=cleanings)
        return stack_frames(frames, lq.shape[1])

    def restore(
        self,
        lq: Tensor,
        *,
        before: Edge = Edge(),
        after: Edge = Edge(),
        on_state: StateObserver | None = None,
        store: FeatureStore | None = None,
        cleanings: Tensor | None = None,
    ) -> Iterator[Tensor]:
        """Restore a clip like `forward`, but yield each frame as soon as it is finished.

        Args:
            lq: Low-quality clip, (B, T, 3, H, W).
            before: One frame before the clip, not cleaned, and the state of the forward sweep at
                it; empty at the start of the video.
            after: One frame after the clip, not cleaned, and the state of the backward sweep at it;
                empty at the end of the video.
            on_state: Callback for every state of both sweeps, (B, C, H, W).
            store: Store for the features between the two sweeps.
            cleanings: Number of cleanings of each clip in the batch, (B,), at most 3. None decides
                by the mean change of this clip, which can differ from that of the whole video.

        Yields:
            Restored frames in order, (B, 3, 4H, 4W).
        """
        lq, before, after = self._clean_with_edges(lq, before, after, cleanings)
        yield from self.basicvsr.restore(
            lq,
            before=before,
            after=after,
            on_state=on_state,
            store=store,
        )

    def propagate(
        self,
        lq: Tensor,
        *,
        before: Edge = Edge(),
        after: Edge = Edge(),
        on_state: StateObserver | None = None,
        store: FeatureStore | None = None,
        cleanings: Tensor | None = None,
    ) -> Iterator[tuple[int, list[Tensor]]]:
        """Clean a clip and propagate features in both directions.

        Args:
            lq: See `restore`.
            before: See `restore`.
            after: See `restore`.
            on_state: See `restore`.
            store: See `restore`.
            cleanings: See `restore`.

        Yields:
            The index t of each frame and its features [back(t), front(t)], (B, C, H, W) each.
        """
        lq, before, after = self._clean_with_edges(lq, before, after, cleanings)
        yield from self.basicvsr.propagate(
            lq,
            before=before,
            after=after,
            on_state=on_state,
            store=store,
        )

    def clean(self, lq: Tensor) -> Tensor:
        """Remove noise and artifacts, as often as each clip of the batch needs.

        Args:
            lq: Low-quality clips, (B, T, 3, H, W).

        Returns:
            Cleaned clips, (B, T, 3, H, W).
        """
        cleaned, _ = self._clean(lq, None)
        return cleaned

    def enlarge_cleaned(
        self,
        cleaned: Tensor,
        before: Edge = Edge(),
        after: Edge = Edge(),
    ) -> Tensor:
        """Restore a cleaned clip: (B, T, 3, H, W) → (B, T, 3, 4H, 4W).

        Args:
            cleaned: Cleaned clip.
            before: As in `restore`, but its frame is cleaned.
            after: As in `restore`, but its frame is cleaned.
        """
        return self.basicvsr(cleaned, before, after)

    def _clean_with_edges(
        self, lq: Tensor, before: Edge, after: Edge, cleanings: Tensor | None
    ) -> tuple[Tensor, Edge, Edge]:
        """Clean a clip, and the frames of its edges as often as the clip."""
        cleaned, cleanings = self._clean(lq, cleanings)
        before = self._clean_edge(before, cleanings)
        after = self._clean_edge(after, cleanings)
        return cleaned, before, after

    def _clean_edge(self, edge: Edge, cleanings: Tensor) -> Edge:
        if not edge.frames:
            return edge
        cleaned, _ = self._clean(torch.stack(edge.frames, 1), cleanings)
        return replace(edge, frames=cleaned.unbind(1))

    def _clean(self, lq: Tensor, cleanings: Tensor | None) -> tuple[Tensor, Tensor]:
        """Clean each clip of a batch the given number of times, or until it changes little.

        Args:
            lq: Low-quality clips, (B, T, 3, H, W).
            cleanings: Number of cleanings of each clip, (B,); None decides by the mean change.

        Returns:
            Cleaned clips, (B, T, 3, H, W), and how often each was cleaned, (B,).
        """
        threshold = self.config.dynamic_refine_thres / _LEVELS
        num_cleaned = torch.zeros(lq.shape[0], dtype=torch.long, device=lq.device)
        # Clips that are not finished yet, (B,).
        active = torch.ones_like(num_cleaned, dtype=torch.bool)
        for number in range(_MAX_CLEANINGS):
            if cleanings is not None:
                active = cleanings > number
            if not active.any():
                break
            lq, change = self._clean_once(lq, active)
            num_cleaned = num_cleaned + active
            active = active & (change >= threshold)
        return lq, num_cleaned

    def _clean_once(self, lq: Tensor, active: Tensor) -> tuple[Tensor, Tensor]:
        """Clean the active clips of a batch once, frame by frame.

        Args:
            lq: Low-quality clips, (B, T, 3, H, W).
            active: Mask of the clips to clean, (B,); others are returned unchanged.

        Returns:
            The clips, (B, T, 3, H, W), and the mean absolute change of each, (B,).
        """
        num_frames = lq.shape[1]
        change = lq.new_zeros(lq.shape[0])

        def cleaned_frames() -> Iterator[Tensor]:
            for frame in lq.unbind(1):
                residue = self.image_cleaning(frame) * active.view(-1, 1, 1, 1)
                change.add_(residue.detach().abs().mean((1, 2, 3)) / num_frames)
                yield frame + residue

        # `change` is complete only after all frames have been computed.
        cleaned = stack_frames(cleaned_frames(), num_frames, like=lq)
        return cleaned, change


def _translate(state: State) -> dict[str, Tensor] | None:
    """Rename the tensors of a file of MMagic.

    Returns:
        The renamed state dict, or None if it belongs to another architecture.
    """
    if not has_convolutions(state, "image_cleaning.0.main.0"):
        return None
    inner = basicvsr.ARCHITECTURE.translate(below(state, "basicvsr."))
    outer = without(state, r"basicvsr\..*")
    if inner is None or first_words(outer) != {"image_cleaning"}:
        return None
    return outer | {f"basicvsr.{name}": tensor for name, tensor in inner.items()}


def _infer(state: State) -> RealBasicVSRConfig:
    inner = basicvsr.ARCHITECTURE.infer(below(state, "basicvsr."))
    return RealBasicVSRConfig(
        channels=inner.channels,
        num_blocks=inner.num_blocks,
        num_cleaning_blocks=count_names(state, r"image_cleaning\.0\.main\.2\..*\.conv1\.weight"),
    )


def _contract(config: RealBasicVSRConfig) -> Contract | None:
    contract = basicvsr.ARCHITECTURE.contract(
        BasicVSRConfig(channels=config.channels, num_blocks=config.num_blocks)
    )
    assert contract is not None
    # The number of cleanings depends on differences as small as the steps of bfloat16.
    return replace(contract, precisions=("fp32",))


ARCHITECTURE = Architecture(
    name="RealBasicVSR",
    config=RealBasicVSRConfig,
    build=RealBasicVSR,
    translate=_translate,
    infer=_infer,
    contract=_contract,
    cleans=True,
    derived=("spynet.mean", "spynet.std"),
    not_exportable=(
        "frames are cleaned until they change little, so the number of cleanings depends on the "
        "frames"
    ),
    source="https://arxiv.org/abs/2111.12704",
)
