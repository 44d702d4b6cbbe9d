"""What a recurrent clip network knows of the video beyond the two ends of its clip.

    video   … -2  -1 │  0   1   …  T-1 │  T  T+1 …
            before  │       clip      │  after

A sweep runs over the clip in one direction and carries its states from frame to frame. At the first
frame of the video it starts with none. At the first frame of a clip inside the video it goes on from
the states in an `Edge`, so that the clip gives the frames that the whole video would give. States
are arguments, never attributes of the network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

__all__ = ["Advance", "Edge", "Past", "Seen", "clip_frames", "sweep"]

Past = tuple[Tensor, ...]
"""Last states of a sweep, nearest first; fewer than its order at the start of the video."""

Advance = Callable[[int, Past], Tensor]
"""One step of a sweep: the frame of the clip and the past to the state at this frame."""

Seen = Callable[[str, int, Tensor], None]
"""Called with the name of a sweep, a frame of the clip and its new state, not to be changed."""


@dataclass(frozen=True, slots=True, eq=False)
class Edge:
    """What lies beyond one end of a clip, nearest first; `Edge()` where the video ends.

    Three cases:

        Edge()                              the video begins (or ends) with the clip
        Edge(frames, hidden, frame_index)   the video goes on, and sweeps go on from these states
        Edge(frame_index=n)                 the video goes on, and sweeps start as at its ends

    Attributes:
        frames: up to `Contract.edge_frames` of (B, 3, H, W), lq as the video has it.
        hidden: by the name of the sweep, its states at these frames, as many as the order of the
            sweep or as the video has. They are used as constants if they are detached.
        frame_index: index in the video of the frame next to the clip, `frames[0]` where it is given.

    Raises:
        ValueError: there are more states than frames, or frames without their index.
    """

    frames: tuple[Tensor, ...] = ()
    hidden: Mapping[str, Past] = field(default_factory=dict[str, Past])
    frame_index: int = -1

    def __post_init__(self) -> None:
        if self.frames and self.frame_index < 0:
            raise ValueError(
                f"an edge with {len(self.frames)} frames needs the frame_index of the first"
            )
        for name, states in self.hidden.items():
            if len(states) > len(self.frames):
                raise ValueError(
                    f"an edge with {len(states)} states of {name!r} has only {len(self.frames)} frames"
                )

    @property
    def is_video_end(self) -> bool:
        """Whether the video has no frame beyond this end of the clip."""
        return self.frame_index < 0


def sweep(
    name: str,
    num_frames: int,
    step: Literal[-1, 1],
    edge: Edge,
    order: int,
    advance: Advance,
    seen: Seen | None = None,
) -> Iterator[tuple[int, Tensor]]:
    """Run over a clip in one direction.

    Args:
        name: of the sweep; its states at the edge are `edge.hidden[name]`.
        num_frames: T.
        step: 1 runs from frame 0 to T - 1, -1 from T - 1 to 0.
        edge: what lies beyond the frame where the sweep starts.
        order: how many of the last states `advance` takes.
        advance: computes the state at a frame. The number of states in its past tells where the
            video starts: none at its first frame, one at its second.
        seen: called with every new state.

    Yields:
        the frame and its state.
    """
    past = tuple(edge.hidden.get(name, ()))[:order]
    for t in range(num_frames)[::step]:
        fresh = advance(t, past)
        if seen is not None:
            seen(name, t, fresh)
        past = (fresh, *past)[:order]
        yield t, fresh


def clip_frames(lq: Tensor, before: Edge, after: Edge) -> dict[int, Tensor]:
    """Number the frames of a clip and of its edges.

    Args:
        lq: (B, T, 3, H, W).
        before: gives frames -1, -2, …
        after: gives frames T, T + 1, …

    Returns:
        (B, 3, H, W) by their number.
    """
    num_frames = lq.shape[1]
    frames = dict(enumerate(lq.unbind(1)))
    for distance, frame in enumerate(before.frames):
        frames[-1 - distance] = frame
    for distance, frame in enumerate(after.frames):
        frames[num_frames + distance] = frame
    return frames
