import pytest

from tubelet.data.catalog import DATASETS
from tubelet.degrade import PRESETS
from tubelet.errors import RequestError
from tubelet.metrics.protocols import DEGRADATIONS, PROTOCOLS, find_protocol

SPECIFIED = [
    *(
        "reds4-bi-x4",
        "vid4-bi-x4",
        "vid4-bd-x4",
        "udm10-bd-x4",
        "vimeo90k-t-bi-x4",
        "vimeo90k-t-bd-x4",
    ),
    *(
        "tos3-bi-x4",
        "vid4-bd-x4-crop8",
        "vid4-bd-x4-drop2",
        "vid4-bd-b-x4",
        "vid4-bd-c-x4",
        "spmcs-bd-x4",
        "videolq-x4",
    ),
]


@pytest.mark.parametrize("name", [*SPECIFIED, *(p.name for p in PROTOCOLS)])
def test_every_name_is_found_and_refers_to_what_there_is(name):
    protocol = find_protocol(name)
    assert protocol.degradation in (*PRESETS, "none")
    (dataset,) = [d for d in DATASETS if d.name == protocol.dataset]
    clips = {clip for split in dataset.splits for clip in split.clips}
    assert set(protocol.clips or ()) <= clips
    assert protocol.scale == 4


def test_names_are_unique_and_degradations_are_those_of_degrade():
    assert len({p.name for p in PROTOCOLS}) == len(PROTOCOLS)
    assert DEGRADATIONS == PRESETS


def test_conventions_of_the_papers():
    reds4 = find_protocol("reds4-bi-x4")
    assert (reds4.clips, reds4.degradation, reds4.metrics) == (
        ("000", "011", "015", "020"),
        "bi-u8",
        ("psnr-rgb", "ssim-rgb"),
    )
    vid4 = find_protocol("vid4-bd-x4")
    assert (vid4.border, vid4.drop_ends, vid4.metrics) == (0, 0, ("psnr-y", "ssim-y"))
    duf = find_protocol("vid4-bd-x4-drop2")
    assert (duf.border, duf.drop_ends) == (8, 2)
    assert find_protocol("vid4-bd-x4-crop8").drop_ends == 0


def test_scored_frames():
    assert list(find_protocol("vid4-bd-x4").scored_frames(3)) == [0, 1, 2]
    assert list(find_protocol("vid4-bd-x4-drop2").scored_frames(7)) == [2, 3, 4]
    assert list(find_protocol("vimeo90k-t-bi-x4").scored_frames(7)) == [3]
    with pytest.raises(
        RequestError, match="leaves out 2 frames at each end, but a clip has only 4"
    ):
        find_protocol("vid4-bd-x4-drop2").scored_frames(4)


def test_free_protocols_take_any_degradation_and_scale():
    free = find_protocol("folder-bd-b-x2")
    assert (free.dataset, free.degradation, free.scale, free.metrics) == (
        "folder",
        "bd-b",
        2,
        ("psnr-y", "ssim-y"),
    )
    assert find_protocol("folder-second-order-x3").degradation == "second-order"


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("vid4-bi-x5", "did you mean vid4-bi-x4"),
        ("folder-bx-x4", "did you mean folder-b"),
        ("folder-bi-x9", "did you mean folder-bi-x4"),
        ("@", "known are reds4-bi-x4"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(name, hint):
    with pytest.raises(RequestError, match=hint):
        find_protocol(name)
