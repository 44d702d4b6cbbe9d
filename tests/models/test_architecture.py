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
        ("online", {"encodes": True}, "encodes=True does not fit a 'online' model"),
    ],
)
def test_fields_of_other_kinds_are_refused(kind, fields, words):
    with pytest.raises(ValueError, match=words):
        Contract(scale=4, temporal=Temporal(kind), **fields)


def test_fields_of_the_own_kind_are_taken():
    assert (
        Contract(scale=4, temporal=Temporal("clip"), streams=True, edge_frames=2).edge_frames == 2
    )
    assert Contract(scale=4, temporal=Temporal("window", radius=2), encodes=True).encodes
