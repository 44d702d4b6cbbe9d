"""Hand the states of a recurrent clip network over from window to window.

    frames     0 … W-1 given out        W … W+R-1 look-ahead
    window 1   |──────────────────────┤|────────────────────|
                        frames, states └ `before` of the next window
    window 2                           |──────────────────────┤|────────────────────|

A window begins at the seam, with the edge that the window before it recorded: so forward sweeps run
over the video without a break. Backward sweeps start without states at the end of the look-ahead:
this is the only approximation.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import islice
from types import TracebackType

from torch import Tensor

from tubelet.layers.recurrence import Edge, Past
from tubelet.layers.store import FeatureLimits, FeatureStore
from tubelet.models.architecture import Contract

__all__ = ["BoundaryRecorder", "edge_tensors", "with_tensors"]


class BoundaryRecorder:
    """Records, while a network restores a window, what the edge before the next one needs.

    These are the last states before the seam of the sweeps that the contract names for this edge.

    Use it as a context, which removes what was recorded.

    Args:
        contract: Contract of the network.
        num_frames: Number of frames before the seam, a multiple of `contract.frame_multiple`.
        limits: Memory limits for the states, as for other features; None: the default ones.
    """

    def __init__(
        self,
        contract: Contract,
        num_frames: int,
        limits: FeatureLimits | None = None,
    ) -> None:
        self._num_frames = num_frames
        self._edge_frames = contract.edge_frames
        # A state belongs to `frame_multiple` frames. A space-time network also has one half-way
        # between any two frames; it takes the one next to the seam, which belongs to no frame.
        states_per_frame = 1 + contract.temporal.between_frames
        self._sweeps = contract.edge_states.before
        self._num_states = contract.edge_states.order
        self._stop = num_frames * states_per_frame // contract.frame_multiple
        self._store = FeatureStore(limits)

    def __enter__(self) -> BoundaryRecorder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._store.close()

    def observe(self, name: str, t: int, state: Tensor) -> None:
        """Keep a state if the edge needs it; a `StateObserver`."""
        is_last = self._stop - self._num_states <= t < self._stop
        if is_last and name in self._sweeps:
            self._store.append((name, t), state)

    def next_edge(self, lq: Tensor, before: Edge) -> Edge:
        """Return the edge before the next window.

        Args:
            lq: Frames of the window, (1, T, 3, H, W), as the network gets them.
            before: Edge before the window. If the window has fewer frames before the seam than an
                edge, its frames and states follow.
        """
        frames: list[Tensor] = []
        for t in _last(self._num_frames, self._edge_frames):
            # A view would keep the whole window in memory.
            frames.append(lq[:, t].clone())
        frames += before.frames

        hidden: dict[str, Past] = {}
        for name in self._sweeps:
            states: list[Tensor] = []
            for t in _last(self._stop, self._num_states):
                states += self._store.pop((name, t))
            states += before.hidden.get(name, ())
            # A sweep may have been given no states, and compute none before the seam.
            if states:
                hidden[name] = tuple(states[: self._num_states])
        return Edge(
            frames=tuple(frames[: self._edge_frames]),
            hidden=hidden,
            frame_index=before.frame_index + self._num_frames,
        )


def edge_tensors(edge: Edge) -> tuple[Tensor, ...]:
    """List the frames and states of an edge."""
    tensors = list(edge.frames)
    for states in edge.hidden.values():
        tensors += states
    return tuple(tensors)


def with_tensors(edge: Edge, tensors: Iterable[Tensor]) -> Edge:
    """Replace the frames and states of an edge by others in the order of `edge_tensors`."""
    remaining = iter(tensors)
    frames = tuple(islice(remaining, len(edge.frames)))
    hidden: dict[str, Past] = {}
    for name, states in edge.hidden.items():
        hidden[name] = tuple(islice(remaining, len(states)))
    return replace(edge, frames=frames, hidden=hidden)


def _last(stop: int, count: int) -> range:
    """Return the last numbers below `stop`, at most `count` and at least 0, in falling order."""
    return range(max(0, stop - count), stop)[::-1]
