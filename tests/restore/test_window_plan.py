import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tubelet.errors import ConfigError
from tubelet.layers.recurrence import EdgeStates
from tubelet.models.architecture import Contract
from tubelet.restore.window_plan import WindowPlan, check_window, plan_window
from tubelet.types import Temporal


def contract_of(overlap_frames: int = 0, between_frames: int = 0, **fields: Any) -> Contract:
    temporal = Temporal("clip", overlap_frames=overlap_frames, between_frames=between_frames)
    states = EdgeStates(before=("forward",)) if fields.get("edge_frames") else EdgeStates()
    return Contract(scale=4, temporal=temporal, streams=True, edge_states=states, **fields)


def test_windows_with_states_look_ahead_and_others_overlap() -> None:
    assert plan_window(contract_of(edge_frames=2), 60) == WindowPlan(frames=60, lookahead=8)
    assert plan_window(contract_of(), 60) == WindowPlan(frames=60, overlap=8)
    assert plan_window(contract_of(overlap_frames=11), 60) == WindowPlan(frames=60, overlap=11)
    fixed = Contract(scale=4, temporal=Temporal("clip", window_frames=7, overlap_frames=2))
    assert plan_window(fixed, 7) == WindowPlan(frames=7, overlap=2)


def test_short_windows_look_less_far() -> None:
    contract = contract_of(edge_frames=1, lookahead_frames=5)
    assert plan_window(contract, 11) == WindowPlan(frames=11, lookahead=5)
    assert plan_window(contract, 7) == WindowPlan(frames=7, lookahead=3)
    assert plan_window(contract_of(), 6) == WindowPlan(frames=6, overlap=3)


def test_lengths_are_multiples_of_what_the_network_takes() -> None:
    contract = contract_of(edge_frames=2, lookahead_frames=7, frame_multiple=2)
    assert plan_window(contract, 61) == WindowPlan(frames=60, lookahead=6)
    assert plan_window(contract, 5) == WindowPlan(frames=4, lookahead=2)


@pytest.mark.parametrize(
    ("window", "context", "step"),
    [
        (WindowPlan(frames=20, lookahead=4), (0, 4), 16),
        (WindowPlan(frames=20, lookahead=0), (0, 0), 20),
        (WindowPlan(frames=20, overlap=5), (2, 3), 15),
    ],
)
def test_context_and_step(window: WindowPlan, context: tuple[int, int], step: int) -> None:
    assert window.context_frames == context
    assert window.step == step
    assert window.continues == (window.lookahead is not None)


@given(
    num_frames=st.integers(4, 200),
    edge_frames=st.sampled_from((0, 2, 4)),
    lookahead_frames=st.integers(1, 20),
    multiple=st.sampled_from((1, 2)),
    between_frames=st.sampled_from((0, 1)),
)
def test_planned_windows_fit_and_follow_one_another(
    num_frames: int,
    edge_frames: int,
    lookahead_frames: int,
    multiple: int,
    between_frames: int,
) -> None:
    has_pairs = edge_frames > 0 and not between_frames and lookahead_frames >= multiple
    contract = contract_of(
        between_frames=between_frames,
        edge_frames=edge_frames,
        lookahead_frames=lookahead_frames,
        frame_multiple=multiple if has_pairs else 1,
    )
    window = plan_window(contract, num_frames)
    check_window(window, contract)
    assert window.continues == (edge_frames > 0)
    assert num_frames - contract.frame_multiple < window.frames <= num_frames
    assert 2 * sum(window.context_frames) <= window.frames + contract.frame_multiple


@pytest.mark.parametrize(
    ("window", "fields", "words"),
    [
        (WindowPlan(frames=4, overlap=4), {}, "must have 0 ≤ overlap < frames"),
        (WindowPlan(frames=4, overlap=-1), {}, "must have 0 ≤ overlap < frames"),
        (WindowPlan(frames=4, lookahead=1), {}, "this model cannot continue from states"),
        (WindowPlan(frames=4, lookahead=4), {"edge_frames": 1}, "overlap < frames"),
        (
            WindowPlan(frames=4, lookahead=-1),
            {"edge_frames": 1},
            "must have overlap=0 and lookahead ≥ 0",
        ),
        (WindowPlan(frames=9, overlap=2, lookahead=1), {"edge_frames": 1}, "must have overlap=0"),
        (
            WindowPlan(frames=4, lookahead=0),
            {"edge_frames": 1, "between_frames": 1},
            "lookahead ≥ 1",
        ),
        (
            WindowPlan(frames=9, lookahead=2),
            {"edge_frames": 2, "frame_multiple": 2},
            "in multiples of 2",
        ),
    ],
)
def test_windows_that_leave_gaps_are_refused(
    window: WindowPlan, fields: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)):
        check_window(window, contract_of(**fields))
