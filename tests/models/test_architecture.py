import pytest

from tubelet.models.architecture import Contract
from tubelet.types import Temporal


@pytest.mark.parametrize(
    ("kind", "fields", "words"),
    [
        ("frame", {"streams": True}, "streams=True does not fit a 'frame' model"),
        ("clip", {"edge_frames": 2}, "edge_frames=2 is for models with streams=True"),
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
