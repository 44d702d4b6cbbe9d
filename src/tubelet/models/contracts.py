"""Methods that the networks of each kind must have, as protocols that pyright checks.

`Contract` declares the kind of a network and its further abilities. `check_contract` compares a
network with its contract once, before it runs. The engine then calls:

    kind     ability    protocol              calls
    frame               FrameModel            once for each frame
    frame    skip       FrameModel            never: the engine interpolates by itself
    window              WindowModel           once for each frame, with its neighbors
    window   encodes    EncodingWindowModel   `encode` for each frame, `fuse` for each window
    online              OnlineModel           once for each frame, with the state of the last call
    online   skip       DetailModel           `step_features`, `detail`
    clip                ClipModel             once for each clip
    clip     streams    StreamingModel        once for each clip, which yields its frames one by one

Training on long clips also calls `propagate` of a `RecurrentModel`, a streaming network with
`edge_states`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol, cast

from torch import Tensor, nn

from tubelet.errors import ConfigError
from tubelet.layers.recurrence import Edge, StateObserver
from tubelet.layers.store import FeatureStore
from tubelet.models.architecture import Contract

__all__ = [
    "CleaningModel",
    "ClipModel",
    "DetailModel",
    "Encoding",
    "EncodingWindowModel",
    "FrameModel",
    "Hidden",
    "OnlineModel",
    "RecurrentModel",
    "StreamingModel",
    "WindowModel",
    "as_cleaning",
    "as_detail",
    "as_encoding",
    "as_online",
    "as_recurrent",
    "as_streaming",
    "check_contract",
]

Hidden = tuple[Tensor, ...]
"""Hidden state of an online network.

Each tensor has the shape (..., H·r, W·r) for some factor r, so that the engine can cut tiles out.
"""

Encoding = tuple[Tensor, ...]
"""Features that a window network computes from one frame, shaped like `Hidden`."""


class FrameModel(Protocol):
    """A network that restores each frame independently."""

    def forward(self, lq: Tensor) -> Tensor:
        """Map (B, T, 3, H, W) to (B, T, 3, sH, sW)."""
        ...


class WindowModel(Protocol):
    """A network that restores the middle frame of a window."""

    def forward(self, lq: Tensor) -> Tensor:
        """Map (B, 2·radius + 1, 3, H, W) to (B, 1, 3, sH, sW)."""
        ...


class EncodingWindowModel(WindowModel, Protocol):
    """A window network in two steps, of which the first depends on only one frame.

    A frame is encoded once for all windows that contain it.
    """

    def encode(self, frame: Tensor) -> Encoding:
        """Compute the features that depend only on one frame, (B, 3, H, W)."""
        ...

    def fuse(self, window: Sequence[Encoding]) -> Tensor:
        """Restore the middle frame from 2·radius + 1 encodings: (B, 3, sH, sW)."""
        ...


class OnlineModel(Protocol):
    """A network that restores frame by frame and propagates a hidden state."""

    def step(self, lq: Tensor, hidden: Hidden | None) -> tuple[Tensor, Hidden]:
        """Restore one frame.

        Args:
            lq: The frame and those that follow it, (B, 1 + lookahead, 3, H, W).
            hidden: State that the previous step returned; None at the start of a scene.

        Returns:
            The restored frame (B, 3, sH, sW), and the new state.
        """
        ...

    def forward(self, lq: Tensor) -> Tensor:
        """Restore a clip step by step: (B, T, 3, H, W) to (B, T, 3, sH, sW)."""
        ...


class DetailModel(OnlineModel, Protocol):
    """An online network that adds detail to the interpolated frame (see `Contract.skip`).

    `step` is divided: the next step waits only for the first part, and the second can be computed
    later, for a few rows at a time.
    """

    def step_features(self, lq: Tensor, hidden: Hidden | None) -> tuple[Tensor, Hidden]:
        """Compute the features of one frame.

        Args:
            lq: See `OnlineModel`.
            hidden: See `OnlineModel`.

        Returns:
            Features, (B, C, H, W), and the new state.
        """
        ...

    def detail(self, features: Tensor) -> Tensor:
        """Compute what `step` adds to the interpolated frame.

        Args:
            features: Features, or some of their rows, (B, C, h, W).

        Returns:
            Detail for all three channels, (B, 1, sh, sW), or for each, (B, 3, sh, sW).
        """
        ...


class ClipModel(Protocol):
    """A network that restores all frames of a clip at once."""

    def forward(self, lq: Tensor) -> Tensor:
        """Map (B, T, 3, H, W) to (B, T', 3, sH, sW), T' = T + between_frames · (T - 1)."""
        ...


class StreamingModel(Protocol):
    """A clip network that yields its frames one by one, and can continue from states at both ends.

    With these states, consecutive clips give the same frames as the whole video at once.
    """

    def forward(self, lq: Tensor, before: Edge = ..., after: Edge = ...) -> Tensor:
        """Map (B, T, 3, H, W) to (B, T', 3, sH, sW), T' = T + between_frames · (T - 1)."""
        ...

    def restore(
        self,
        lq: Tensor,
        *,
        before: Edge = ...,
        after: Edge = ...,
        on_state: StateObserver | None = None,
        store: FeatureStore | None = None,
    ) -> Iterator[Tensor]:
        """Yield the frames of `forward` in order.

        Args:
            lq: Low-quality clip, (B, T, 3, H, W).
            before: Frames and states before the clip; `Edge()` at the start of the video.
            after: Frames and states after the clip; `Edge()` at the end of the video.
            on_state: Callback for every new state, which can become part of a later edge.
            store: Store for features between the sweeps, empty again afterwards; None creates one
                with default limits.

        Yields:
            T' restored frames, (B, 3, sH, sW) each.
        """
        ...


class RecurrentModel(StreamingModel, Protocol):
    """A streaming network whose sweeps can run over a clip without restoring its frames.

    `Contract.edge_states` names the sweeps that continue from the states in edges.
    """

    def propagate(
        self,
        lq: Tensor,
        *,
        before: Edge = ...,
        after: Edge = ...,
        on_state: StateObserver | None = None,
        store: FeatureStore | None = None,
    ) -> Iterator[tuple[int, object]]:
        """Run all sweeps, as `restore` does.

        Args:
            lq: See `StreamingModel.restore`.
            before: See `StreamingModel.restore`.
            after: See `StreamingModel.restore`.
            on_state: See `StreamingModel.restore`.
            store: See `StreamingModel.restore`.

        Yields:
            The number of each restored frame, and the features to restore it from.
        """
        ...


class CleaningModel(Protocol):
    """A network that cleans its frames before it enlarges them (see `Architecture.cleans`)."""

    def clean(self, lq: Tensor) -> Tensor:
        """Remove artifacts from a clip: (B, T, 3, H, W) to the same shape."""
        ...

    def enlarge_cleaned(
        self,
        cleaned: Tensor,
        before: Edge = ...,
        after: Edge = ...,
    ) -> Tensor:
        """Restore a cleaned clip: (B, T, 3, H, W) to (B, T, 3, sH, sW).

        Args:
            cleaned: Cleaned clip.
            before: Edge before the clip; its frames are cleaned, too.
            after: Edge after the clip, likewise.
        """
        ...


def check_contract(network: nn.Module, contract: Contract) -> None:
    """Check that a network has the methods that its contract declares.

    Args:
        network: Network to check.
        contract: Contract of its architecture and configuration.

    Raises:
        ConfigError: A method is missing; the message names it.
    """
    if contract.temporal.kind == "online":
        as_online(network)
    if contract.has_detail:
        as_detail(network)
    if contract.encodes:
        as_encoding(network)
    if contract.streams:
        as_streaming(network)
    if contract.edge_states.sweeps:
        as_recurrent(network)


def as_online(network: nn.Module) -> OnlineModel:
    """Narrow the type of a network to `OnlineModel`.

    Raises:
        ConfigError: The network lacks a method of the protocol.
    """
    _require(network, "step(lq, hidden)", 'temporal.kind="online"')
    return cast(OnlineModel, network)


def as_detail(network: nn.Module) -> DetailModel:
    """Narrow the type of a network to `DetailModel`.

    Raises:
        ConfigError: The network lacks a method of the protocol.
    """
    _require(network, "step_features(lq, hidden)", "skip")
    _require(network, "detail(features)", "skip")
    return cast(DetailModel, network)


def as_encoding(network: nn.Module) -> EncodingWindowModel:
    """Narrow the type of a network to `EncodingWindowModel`.

    Raises:
        ConfigError: The network lacks a method of the protocol.
    """
    _require(network, "encode(frame)", "encodes=True")
    _require(network, "fuse(window)", "encodes=True")
    return cast(EncodingWindowModel, network)


def as_streaming(network: nn.Module) -> StreamingModel:
    """Narrow the type of a network to `StreamingModel`.

    Raises:
        ConfigError: The network lacks a method of the protocol.
    """
    _require(network, "restore(lq)", "streams=True")
    return cast(StreamingModel, network)


def as_recurrent(network: nn.Module) -> RecurrentModel:
    """Narrow the type of a network to `RecurrentModel`.

    Raises:
        ConfigError: The network lacks a method of the protocol.
    """
    _require(network, "restore(lq)", "streams=True")
    _require(network, "propagate(lq)", "edge_states")
    return cast(RecurrentModel, network)


def as_cleaning(network: nn.Module) -> CleaningModel:
    """Narrow the type of a network to `CleaningModel`.

    Raises:
        ConfigError: The network lacks a method of the protocol.
    """
    _require(network, "clean(lq)", "cleans=True")
    _require(network, "enlarge_cleaned(cleaned)", "cleans=True")
    return cast(CleaningModel, network)


def _require(network: nn.Module, signature: str, declaration: str) -> None:
    """Check that a network has a method that its contract declares."""
    name = signature.partition("(")[0]
    if not callable(getattr(network, name, None)):
        raise ConfigError(
            f"{type(network).__name__} has no method {signature}, "
            f"but its contract declares {declaration}"
        )
