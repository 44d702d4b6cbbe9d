import shutil
from pathlib import Path

import pytest

from helpers.toy_datasets import VID4_FRAMES, make_vid4, save_frames
from helpers.videos import make_video
from tubelet.data.catalog import find_dataset
from tubelet.data.datasets import find_clips, find_set_clips, find_training_clips
from tubelet.errors import InputError, RequestError
from tubelet.metrics.protocols import find_protocol

VID4 = find_protocol("vid4-bi-x4")


@pytest.mark.parametrize("layout", ["GT/{}", "HR/{}", "{}", "{}/truth", "{}/original", "vid4_{}"])
@pytest.mark.parametrize("below", ["", "Vid4", "VID4"])
def test_vid4_is_found_in_every_layout(tmp_path: Path, layout: str, below: str):
    make_vid4(tmp_path / below, layout)
    clips = find_clips(VID4, tmp_path)
    assert [clip.name for clip in clips] == list(VID4_FRAMES)
    assert [clip.gt for clip in clips] == [
        tmp_path / below / layout.format(name) for name in VID4_FRAMES
    ]
    assert {clip.lq for clip in clips} == {None}


def test_low_quality_clips_are_used_under_their_own_convention_only(tmp_path: Path):
    make_vid4(tmp_path)
    make_vid4(tmp_path, "BDx4/{}")
    assert (
        find_clips(find_protocol("vid4-bd-b-x4"), tmp_path)[0].lq == tmp_path / "BDx4" / "calendar"
    )
    assert find_clips(find_protocol("vid4-bd-x4"), tmp_path)[0].lq is None
    assert find_clips(VID4, tmp_path)[0].lq is None
    (tmp_path / "BDx4" / "walk" / "00000003.png").unlink()
    with pytest.raises(InputError, match=r"Vid4 walk: .* has 47 frames, but .* has 46"):
        find_clips(find_protocol("vid4-bd-b-x4"), tmp_path)
    shutil.rmtree(tmp_path / "BDx4" / "walk")
    assert {clip.lq for clip in find_clips(find_protocol("vid4-bd-b-x4"), tmp_path)} == {None}


def test_what_is_missing_is_named(tmp_path: Path):
    with pytest.raises(InputError, match=r"no such folder: .*nowhere"):
        find_clips(VID4, tmp_path / "nowhere")
    with pytest.raises(
        InputError,
        match=r"Vid4 is not in .*: searched it, and the folder vid4 in it, for GT/…, HR/…",
    ):
        find_clips(VID4, tmp_path)
    make_vid4(tmp_path, clips=("calendar", "walk"))
    with pytest.raises(
        InputError,
        match=r"Vid4 has 4 clips, but .* has 2; missing: city, foliage;.*check --set vid4",
    ):
        find_clips(VID4, tmp_path)


def test_a_missing_frame_is_not_passed_over(tmp_path: Path):
    make_vid4(tmp_path)
    (tmp_path / "GT" / "city" / "00000007.png").unlink()
    with pytest.raises(InputError, match=r"Vid4 city has 34 frames, but .* has 33"):
        find_clips(VID4, tmp_path)


@pytest.mark.parametrize("gt", ["GT/{}", "train_sharp/{}", "train/train_sharp/{}"])
def test_reds4(tmp_path: Path, gt: str):
    lq = {"GT/{}": "sharp_bicubic/{}", "train_sharp/{}": "train_sharp_bicubic/X4/{}"}.get(gt)
    for name in ("000", "011", "015", "020"):
        save_frames(tmp_path / gt.format(name), 100, (4, 4))
        if lq:
            save_frames(tmp_path / lq.format(name), 100, (1, 1))
    clips = find_clips(find_protocol("reds4-bi-x4"), tmp_path)
    assert [clip.name for clip in clips] == ["000", "011", "015", "020"]
    assert [clip.lq for clip in clips] == [
        tmp_path / lq.format(clip.name) if lq else None for clip in clips
    ]


@pytest.mark.parametrize("regrouped", [False, True])
def test_reds_trains_on_all_but_reds4(tmp_path: Path, regrouped: bool):
    for number in range(270 if regrouped else 240):
        save_frames(tmp_path / "train_sharp" / f"{number:03d}", 1, (1, 1))
    if not regrouped:
        for number in range(30):
            save_frames(tmp_path / "val_sharp" / f"{number:03d}", 1, (1, 1))
    clips = find_training_clips("reds", tmp_path)
    assert len(clips) == 266
    assert len({clip.name for clip in clips}) == 266
    assert not {clip.gt for clip in clips} & {
        tmp_path / "train_sharp" / n for n in ("000", "011", "015", "020")
    }
    assert (tmp_path / ("train_sharp/240" if regrouped else "val_sharp/000")) in {
        clip.gt for clip in clips
    }


def test_vimeo_follows_its_lists(tmp_path: Path):
    for name in ("00001/0001", "00001/0002", "00096/0935"):
        save_frames(tmp_path / "sequences" / name, 7, names="im{}.png")
    (tmp_path / "sep_trainlist.txt").write_text("00001/0001\n00096/0935\n")
    clips = find_training_clips("vimeo90k", tmp_path)
    assert [(clip.name, clip.gt) for clip in clips] == [
        ("00001_0001", tmp_path / "sequences/00001/0001"),
        ("00096_0935", tmp_path / "sequences/00096/0935"),
    ]
    with pytest.raises(InputError, match=r"Vimeo-90K-T needs .*sep_testlist.txt"):
        find_clips(find_protocol("vimeo90k-t-bi-x4"), tmp_path)


def test_sets_without_fixed_names_take_what_is_there(tmp_path: Path):
    for number in range(10):
        save_frames(tmp_path / "udm10" / f"clip{number}" / "truth", 32, (4, 4))
        save_frames(tmp_path / "udm10" / f"clip{number}" / "blur4", 32, (1, 1))
    clips = find_clips(find_protocol("udm10-bd-x4"), tmp_path)
    assert [clip.name for clip in clips] == [f"clip{number}" for number in range(10)]
    assert clips[3].lq == tmp_path / "udm10/clip3/blur4"
    shutil.rmtree(tmp_path / "udm10" / "clip9")
    with pytest.raises(InputError, match=r"UDM10 has 10 clips, but .* has 9"):
        find_clips(find_protocol("udm10-bd-x4"), tmp_path)


def test_videolq_has_no_good_clips(tmp_path: Path):
    for number in range(50):
        save_frames(tmp_path / "VideoLQ" / "Input" / f"{number:03d}", 2)
    clips = find_clips(find_protocol("videolq-x4"), tmp_path)
    assert len(clips) == 50
    assert {clip.gt for clip in clips} == {None}
    assert clips[7].lq == tmp_path / "VideoLQ/Input/007"


def test_images_train(tmp_path: Path):
    save_frames(tmp_path / "DIV2K_train_HR", 3, names="{:04d}.png")
    save_frames(tmp_path / "DIV2K_train_LR_bicubic/X4", 3, names="{:04d}x4.png")
    clips = find_training_clips("div2k", tmp_path)
    assert [clip.name for clip in clips] == ["0001", "0002"]
    assert clips[0].lq == tmp_path / "DIV2K_train_LR_bicubic/X4/0001x4.png"


def test_test_sets_are_not_trained_on(tmp_path: Path):
    make_vid4(tmp_path)
    with pytest.raises(InputError, match="Vid4 is a test set"):
        find_training_clips("vid4", tmp_path)
    assert len(find_set_clips(find_dataset("vid4"), tmp_path)) == 4


def test_any_folder_of_clips(tmp_path: Path):
    protocol = find_protocol("folder-bi-x4")
    with pytest.raises(InputError, match="no video and no folder of frames"):
        find_clips(protocol, tmp_path)
    save_frames(tmp_path / "beach", 2)
    make_video(tmp_path / "beach.mp4", frames=2)
    (tmp_path / "empty").mkdir()
    clips = find_clips(protocol, tmp_path)
    assert [(clip.name, clip.gt) for clip in clips] == [
        ("beach", tmp_path / "beach"),
        ("beach.mp4", tmp_path / "beach.mp4"),
    ]
    assert [clip.name for clip in find_clips(protocol, tmp_path / "beach")] == ["beach"]


def test_names_of_sets_have_hints():
    with pytest.raises(RequestError, match="did you mean udm10"):
        find_dataset("udm")
    assert find_dataset("REDS4").title == "REDS4"


def test_vid4_of_the_shared_data(shared: Path):
    clips = find_clips(VID4, shared / "data" / "dev_eval")
    assert [clip.gt.name for clip in clips if clip.gt] == [f"vid4_{name}" for name in VID4_FRAMES]
