"""Sweeps of recurrent clip networks, and the state that they carry across the ends of a clip.

    video   … -2  -1 │  0   1   …  T-1 │  T  T+1 …
            before  │       clip      │  after

A sweep runs over the clip in one direction and carries its states from frame to frame. At the first
frame of the video it starts without states. At the first frame of a clip inside the video it
continues from the states in an `Edge`, so that the clip gives the frames that the whole video would
give. States are arguments, never attributes of the network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

__all__ = ["Edge", "Past", "StateObserver", "StepFunction", "clip_frames", "sweep"]

Past = tuple[Tensor, ...]
"""Last states of a sweep, nearest first; fewer than its order at the start of the video."""

StepFunction = Callable[[int, Past], Tensor]
"""One step of a sweep: maps the frame number and the past states to the state at this frame."""

StateObserver = Callable[[str, int, Tensor], None]
"""Observer of a sweep: called with its name, the frame number and the new state (read only)."""


@dataclass(frozen=True, slots=True, eq=False)
class Edge:
    """Frames and states beyond one end of a clip, nearest first.

    Three cases:

        Edge()                              the video begins (or ends) with the clip
        Edge(frames, hidden, frame_index)   the video continues, and sweeps start from these states
        Edge(frame_index=n)                 the video continues, but sweeps start without states

    Attributes:
        frames: Up to `Contract.edge_frames` low-quality frames of the video, each (B, 3, H, W).
        hidden: By the name of the sweep: its states at these frames, at most one for each order of
            the sweep. Detached states are used as constants.
        frame_index: Index in the video of the frame next to the clip (of `frames[0]`, if any);
            -1 if the video ends here.

    Raises:
        ValueError: There are more states than frames, or frames without their index.
    """

    frames: tuple[Tensor, ...] = ()
    hidden: Mapping[str, Past] = field(default_factory=dict[str, Past])
    frame_index: int = -1

    def __post_init__(self) -> None:
        num_frames = len(self.frames)
        if num_frames and self.frame_index < 0:
            raise ValueError(f"an edge with {num_frames} frames needs the frame_index of the first")
        for name, states in self.hidden.items():
            if len(states) > num_frames:
                raise ValueError(
                    f"an edge with {len(states)} states of {name!r} has only {num_frames} frames"
                )

    @property
    def is_video_boundary(self) -> bool:
        """Whether the video has no frame beyond this end of the clip."""
        return self.frame_index < 0


def sweep(
    name: str,
    num_frames: int,
    step: Literal[-1, 1],
    edge: Edge,
    order: int,
    advance: StepFunction,
    on_state: StateObserver | None = None,
) -> Iterator[tuple[int, Tensor]]:
    """Run over a clip in one direction.

    Args:
        name: Name of the sweep; its states at the edge are `edge.hidden[name]`.
        num_frames: T.
        step: 1 runs from frame 0 to T - 1, -1 from T - 1 to 0.
        edge: Frames and states beyond the frame where the sweep starts.
        order: Number of last states that `advance` takes.
        advance: Computes the state at a frame. It recognizes the start of the video by the number
            of past states: none at the first frame, one at the second.
        on_state: Called with every new state, before the sweep yields it.

    Yields:
        The frame number and its state.
    """
    past = tuple(edge.hidden.get(name, ()))[:order]
    for t in range(num_frames)[::step]:
        state = advance(t, past)
        if on_state is not None:
            on_state(name, t, state)
        past = (state, *past)[:order]
        yield t, state


def clip_frames(lq: Tensor, before: Edge, after: Edge) -> dict[int, Tensor]:
    """Number the frames of a clip and of its edges.

    Args:
        lq: Low-quality clip, (B, T, 3, H, W): frames 0 to T - 1.
        before: Edge with frames -1, -2, …
        after: Edge with frames T, T + 1, …

    Returns:
        Frames (B, 3, H, W) by number.
    """
    num_frames = lq.shape[1]
    frames = dict(enumerate(lq.unbind(1)))
    for distance, frame in enumerate(before.frames):
        frames[-1 - distance] = frame
    for distance, frame in enumerate(after.frames):
        frames[num_frames + distance] = frame
    return frames
