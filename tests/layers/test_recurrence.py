from typing import Any

import pytest
import torch
from torch import Tensor

from tubelet.layers.recurrence import Edge, Past, clip_frames, sweep


def _states(*values: float) -> Past:
    return tuple(torch.tensor(value) for value in values)


def _edge(**hidden: Past) -> Edge:
    return Edge(frames=(torch.zeros(1),) * 3, hidden=hidden, frame_index=5)


def _run(
    step: Any, order: int, edge: Edge
) -> tuple[list[tuple[int, list[float]]], list[tuple[int, float]]]:
    """Sweep over three frames, with the state 10 + t at frame t.

    Returns the past at each frame, and the result of the sweep.
    """
    pasts: list[tuple[int, list[float]]] = []

    def advance(t: int, past: Past) -> Tensor:
        pasts.append((t, [float(state) for state in past]))
        return torch.tensor(10.0 + t)

    return pasts, [
        (t, float(state))
        for t, state in sweep(
            "s",
            3,
            step,
            edge,
            order,
            advance,
        )
    ]


def test_a_sweep_starts_with_no_past_and_takes_the_nearest_states_first() -> None:
    assert _run(1, 1, Edge()) == ([(0, []), (1, [10]), (2, [11])], [(0, 10), (1, 11), (2, 12)])
    assert _run(-1, 2, Edge()) == ([(2, []), (1, [12]), (0, [11, 12])], [(2, 12), (1, 11), (0, 10)])


def test_a_sweep_continues_from_the_states_under_its_name() -> None:
    assert _run(1, 2, _edge(s=_states(3, 2), other=_states(7)))[0] == [
        (0, [3, 2]),
        (1, [10, 3]),
        (2, [11, 10]),
    ]
    assert _run(-1, 2, _edge(s=_states(3)))[0] == [(2, [3]), (1, [12, 3]), (0, [11, 12])]
    assert _run(1, 1, _edge(other=_states(7)))[0] == [(0, []), (1, [10]), (2, [11])]


def test_states_beyond_the_order_are_not_used() -> None:
    assert _run(1, 1, _edge(s=_states(3, 2, 1)))[0] == [(0, [3]), (1, [10]), (2, [11])]


def test_the_observer_gets_every_new_state_before_it_is_yielded() -> None:
    observed: list[tuple[str, int, Tensor]] = []
    for t, state in sweep(
        "s",
        3,
        -1,
        Edge(),
        1,
        lambda t, _: torch.tensor(t),
        lambda *new: observed.append(new),
    ):
        assert observed[-1] == ("s", t, state)
    assert [t for _, t, _ in observed] == [2, 1, 0]


def test_frames_are_numbered_from_the_first_of_the_clip() -> None:
    video = torch.arange(9.0).view(1, 9, 1, 1, 1)
    before = Edge(frames=(video[:, 2], video[:, 1]), frame_index=2)
    after = Edge(frames=(video[:, 6],), frame_index=6)
    frames = clip_frames(video[:, 3:6], before, after)
    assert {t: int(frame) for t, frame in frames.items()} == {-2: 1, -1: 2, 0: 3, 1: 4, 2: 5, 3: 6}
    assert sorted(clip_frames(video, Edge(), Edge())) == list(range(9))


def test_an_edge_without_frames_can_be_inside_the_video() -> None:
    assert Edge().is_video_boundary
    assert Edge(frame_index=-1).is_video_boundary
    assert not Edge(frame_index=0).is_video_boundary


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"frames": (torch.zeros(1),)}, "needs frame_index"),
        (
            {"hidden": {"backward": _states(1)}, "frame_index": 3},
            "1 states of 'backward' has only 0 frames",
        ),
    ],
)
def test_impossible_edges_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Edge(**fields)
