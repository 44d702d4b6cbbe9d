import pytest

from tubelet.layers.recurrence import EdgeStates
from tubelet.models.architecture import Contract
from tubelet.types import Temporal


@pytest.mark.parametrize(
    ("kind", "fields", "words"),
    [
        ("frame", {"streams": True}, "streams=True does not fit a 'frame' model"),
        ("clip", {"edge_frames": 2}, "edge_frames=2 is for models with streams=True"),
        (
            "clip",
            {"streams": True, "edge_frames": 1, "edge_states": EdgeStates(after=("b",), order=2)},
            "edge_frames=1 is too few for the order 2 of edge_states",
        ),
        ("clip", {"streams": True, "frame_multiple": 2}, "is for models with edge_frames"),
        (
            "clip",
            {"streams": True, "edge_frames": 3, "frame_multiple": 2},
            "edge_frames=3 must be a multiple of frame_multiple=2",
        ),
        (
            "clip",
            {"streams": True, "edge_frames": 2, "frame_multiple": 2, "warmup_frames": 9},
            "warmup_frames=9 must be a multiple of frame_multiple=2",
        ),
        ("online", {"encodes": True}, "encodes=True does not fit a 'online' model"),
    ],
)
def test_fields_of_other_kinds_are_refused(kind, fields, words):
    with pytest.raises(ValueError, match=words):
        Contract(scale=4, temporal=Temporal(kind), **fields)


def test_windows_that_continue_from_states_do_not_overlap():
    temporal = Temporal("clip", overlap_frames=8)
    with pytest.raises(ValueError, match="whose windows do not overlap; give lookahead_frames"):
        Contract(scale=4, temporal=temporal, streams=True, edge_frames=1)


def test_a_space_time_model_looks_ahead():
    temporal = Temporal("clip", between_frames=1)
    with pytest.raises(ValueError, match="nothing half-way between two windows"):
        Contract(scale=4, temporal=temporal, streams=True, edge_frames=1, lookahead_frames=0)


def test_fields_of_the_own_kind_are_taken():
    assert (
        Contract(scale=4, temporal=Temporal("clip"), streams=True, edge_frames=2).edge_frames == 2
    )
    assert Contract(scale=4, temporal=Temporal("window", radius=2), encodes=True).encodes
