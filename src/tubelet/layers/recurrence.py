"""Sweeps of recurrent clip networks, and the states that they carry across the ends of a clip.

    index in the video  0  1  …  s-2  s-1 │   s  s+1  …  s+T-1 │  s+T  …
    frame number              …   -2   -1 │   0   1   …    T-1 │   T   …
                                 before   │        clip        │ after

A frame's index counts from the start of the video, its number from the start of the clip.

A sweep runs over the clip in one direction, computes a state at each frame, and passes it on to the
next frame. Where the video ends in the direction that the sweep comes from, it starts without
states. Inside the video it continues from the states in an `Edge`, so that processing the clip
gives the same output frames as processing the whole video.

States are arguments, never attributes of the network, so that one network can process several
videos in turn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

__all__ = [
    "Edge",
    "EdgeStates",
    "Past",
    "StateObserver",
    "StepFunction",
    "clip_frames",
    "sweep",
]

Past = tuple[Tensor, ...]
"""The most recent states of a sweep, newest first: at most `order` of them (see `sweep`)."""

StepFunction = Callable[[int, Past], Tensor]
"""One step of a sweep: maps a frame number and the past states to the state at this frame."""

StateObserver = Callable[[str, int, Tensor], None]
"""Called with the name of a sweep, a frame number and the new state there.

It can record states for the edge of a later clip. It must not modify them: the sweep still uses
them.
"""


# Edges are compared by identity: a comparison of tensors gives no single truth value.
@dataclass(frozen=True, slots=True, eq=False)
class Edge:
    """Frames and states beyond one end of a clip, nearest to the clip first.

    Typical cases:

        Edge()                              the video begins (or ends) with the clip
        Edge(frames, hidden, frame_index)   the video continues, and sweeps start from these states
        Edge(frame_index=n)                 the video continues, but sweeps start without states

    Attributes:
        frames: Up to `Contract.edge_frames` low-quality frames of the video, each (B, 3, H, W).
        hidden: Maps the name of a sweep to its states at `frames[0]`, `frames[1]`, …, with the
            shape that the network's step returns; a sweep uses at most `order` of them. Gradients
            flow into them unless they are detached.
        frame_index: Index in the video of the nearest frame outside the clip, which is `frames[0]`
            if there are frames; -1 if there is no such frame.

    Raises:
        ValueError: A sweep has more states than there are frames (each state belongs to a frame),
            or there are frames without `frame_index`.
    """

    frames: tuple[Tensor, ...] = ()
    hidden: Mapping[str, Past] = field(default_factory=dict[str, Past])
    frame_index: int = -1

    def __post_init__(self) -> None:
        num_edge_frames = len(self.frames)
        if num_edge_frames and self.frame_index < 0:
            raise ValueError(
                f"an edge with {num_edge_frames} frames needs frame_index, the index of frames[0]"
            )
        for name, states in self.hidden.items():
            if len(states) > num_edge_frames:
                raise ValueError(
                    f"an edge with {len(states)} states of {name!r} has only {num_edge_frames} "
                    "frames; each state needs the frame that it belongs to"
                )

    @property
    def is_video_boundary(self) -> bool:
        """Whether the video has no frame beyond this end of the clip."""
        return self.frame_index < 0


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeStates:
    """Which states a network takes from the edges of a clip: a part of its contract.

    Attributes:
        before: Names of the sweeps that continue from states before the clip.
        after: Names of the sweeps that continue from states after the clip.
        order: Number of states of each of them.
    """

    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    order: int = 1

    @property
    def sweeps(self) -> tuple[str, ...]:
        """All these sweeps; empty for a network without boundary states."""
        return tuple(dict.fromkeys(self.before + self.after))


def sweep(
    name: str,
    num_frames: int,
    step: Literal[-1, 1],
    edge: Edge,
    order: int,
    advance: StepFunction,
    on_state: StateObserver | None = None,
) -> Iterator[tuple[int, Tensor]]:
    """Run over a clip in one direction, lazily: the iterator computes a step when it is advanced.

    Args:
        name: Name of the sweep; it starts from the states `edge.hidden[name]`.
        num_frames: Number of frames of the clip, T.
        step: 1 runs from frame 0 to T - 1, -1 from T - 1 to 0.
        edge: Edge that the sweep comes from: the one before the clip for step 1, the one after it
            for step -1. Only its states are used.
        order: Maximum number of recent states that are passed to `advance`.
        advance: Computes the state at a frame. `past` has fewer than `order` states in the first
            steps of a sweep that starts without states: at an end of the video, or by choice
            (`Edge(frame_index=n)`).
        on_state: Called with every new state, before the sweep yields it.

    Yields:
        The frame number and its state.
    """
    # A sweep that the edge does not name starts without states.
    past = tuple(edge.hidden.get(name, ()))[:order]
    for t in range(num_frames)[::step]:
        state = advance(t, past)
        if on_state is not None:
            on_state(name, t, state)
        past = (state, *past)[:order]
        yield t, state


def clip_frames(lq: Tensor, before: Edge, after: Edge) -> dict[int, Tensor]:
    """Collect the frames of a clip and its edges in a dictionary by frame number.

    Args:
        lq: Low-quality clip, (B, T, 3, H, W), which has the numbers 0 to T - 1.
        before: Edge before the clip; its frames get the numbers -1, -2, …
        after: Edge after the clip; its frames get the numbers T, T + 1, …

    Returns:
        Maps each frame number to the frame, (B, 3, H, W).
    """
    num_frames = lq.shape[1]
    frames = dict(enumerate(lq.unbind(1)))
    for i, frame in enumerate(before.frames, 1):
        frames[-i] = frame
    for i, frame in enumerate(after.frames):
        frames[num_frames + i] = frame
    return frames
