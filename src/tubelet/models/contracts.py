"""What a network of each kind must have, as protocols that pyright checks.

`Contract` says which of them a network keeps; `check_contract` compares the two once, before
anything runs.

    kind     further         protocol              called for
    frame                    FrameModel            each frame
    window                   WindowModel           each frame with its neighbors
    window   encodes         EncodingWindowModel   each frame once, then each window of encodings
    online                   OnlineModel           each frame, with the state that the last call returned
    clip                     ClipModel             each window of frames
    clip     streams         StreamingModel        each window, whose frames come one by one
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol, cast

from torch import Tensor, nn

from tubelet.errors import ConfigError
from tubelet.layers.recurrence import Edge, Seen
from tubelet.layers.store import FeatureStore
from tubelet.models.architecture import Contract

__all__ = [
    "CleaningModel",
    "ClipModel",
    "Encoding",
    "EncodingWindowModel",
    "FrameModel",
    "Hidden",
    "OnlineModel",
    "StreamingModel",
    "WindowModel",
    "as_cleaning",
    "as_encoding",
    "as_online",
    "as_streaming",
    "check_contract",
]

Hidden = tuple[Tensor, ...]
"""State of an online network: images (..., H·r, W·r), so that tiles can be cut out of them."""

Encoding = tuple[Tensor, ...]
"""What a window network computes of one frame by itself: images (..., H·r, W·r) likewise."""


class FrameModel(Protocol):
    """Restores each frame by itself."""

    def forward(self, lq: Tensor) -> Tensor:
        """Map (B, T, 3, H, W) to (B, T, 3, sH, sW)."""
        ...


class WindowModel(Protocol):
    """Restores the frame in the middle of a window."""

    def forward(self, lq: Tensor) -> Tensor:
        """Map (B, 2·radius + 1, 3, H, W) to (B, 1, 3, sH, sW)."""
        ...


class EncodingWindowModel(WindowModel, Protocol):
    """Restores the middle frame in two steps; the first depends on one frame alone."""

    def encode(self, frame: Tensor) -> Encoding:
        """Compute what depends on one frame (B, 3, H, W) alone."""
        ...

    def fuse(self, window: Sequence[Encoding]) -> Tensor:
        """Restore the middle frame from the encodings of 2·radius + 1 frames: (B, 3, sH, sW)."""
        ...


class OnlineModel(Protocol):
    """Restores frame by frame, and carries a state along."""

    def step(self, lq: Tensor, hidden: Hidden | None) -> tuple[Tensor, Hidden]:
        """Restore one frame.

        Args:
            lq: (B, 1 + lookahead, 3, H, W), the frame and those that follow it.
            hidden: None at the start of a scene, otherwise what the last step returned.

        Returns:
            sr (B, 3, sH, sW), and the new state.
        """
        ...

    def forward(self, lq: Tensor) -> Tensor:
        """Restore a clip step by step: (B, T, 3, H, W) to (B, T, 3, sH, sW)."""
        ...


class ClipModel(Protocol):
    """Restores several frames at once."""

    def forward(self, lq: Tensor) -> Tensor:
        """Map (B, T, 3, H, W) to (B, T', 3, sH, sW), T' = T + between_frames · (T - 1)."""
        ...


class StreamingModel(Protocol):
    """Restores several frames, gives them one by one, and goes on from states at both ends."""

    def forward(self, lq: Tensor, before: Edge = ..., after: Edge = ...) -> Tensor:
        """Map (B, T, 3, H, W) to (B, T', 3, sH, sW), T' = T + between_frames · (T - 1)."""
        ...

    def restore(
        self,
        lq: Tensor,
        *,
        before: Edge = ...,
        after: Edge = ...,
        seen: Seen | None = None,
        store: FeatureStore | None = None,
    ) -> Iterator[Tensor]:
        """Yield the frames of `forward` in order.

        Args:
            lq: (B, T, 3, H, W).
            before: what lies before the clip, `Edge()` where the video begins.
            after: what lies after the clip, `Edge()` where the video ends.
            seen: called with every new state, so that it can become part of an edge.
            store: keeps features between the sweeps, and is empty afterwards; None makes one with
                default limits.

        Yields:
            T' times (B, 3, sH, sW).
        """
        ...


class CleaningModel(Protocol):
    """Cleans its frames before it enlarges them; `Architecture.cleans` says so."""

    def clean(self, lq: Tensor) -> Tensor:
        """Clean a clip: (B, T, 3, H, W) to the same."""
        ...

    def enlarge_cleaned(self, cleaned: Tensor) -> Tensor:
        """Do the rest of `forward`: (B, T, 3, H, W) to (B, T, 3, sH, sW)."""
        ...


def check_contract(network: nn.Module, contract: Contract) -> None:
    """Check that a network has the methods that its contract promises.

    Raises:
        ConfigError: it lacks one; the line names it.
    """
    if contract.temporal.kind == "online":
        as_online(network)
    if contract.encodes:
        as_encoding(network)
    if contract.streams:
        as_streaming(network)


def as_online(network: nn.Module) -> OnlineModel:
    """Take a network as an online one; ConfigError where it lacks a method."""
    _require(network, "step(lq, hidden)", 'temporal.kind="online"')
    return cast(OnlineModel, network)


def as_encoding(network: nn.Module) -> EncodingWindowModel:
    """Take a network as one with `encode` and `fuse`; ConfigError where it lacks one of them."""
    _require(network, "encode(frame)", "encodes=True")
    _require(network, "fuse(window)", "encodes=True")
    return cast(EncodingWindowModel, network)


def as_streaming(network: nn.Module) -> StreamingModel:
    """Take a network as one with `restore`; ConfigError where it lacks that."""
    _require(network, "restore(lq)", "streams=True")
    return cast(StreamingModel, network)


def as_cleaning(network: nn.Module) -> CleaningModel:
    """Take a network as one that cleans its frames first; ConfigError where it lacks a method."""
    _require(network, "clean(lq)", "cleans=True")
    _require(network, "enlarge_cleaned(cleaned)", "cleans=True")
    return cast(CleaningModel, network)


def _require(network: nn.Module, signature: str, promise: str) -> None:
    name = signature.partition("(")[0]
    if not callable(getattr(network, name, None)):
        raise ConfigError(
            f"{type(network).__name__} has no method {signature}, which its contract promises: {promise}"
        )
