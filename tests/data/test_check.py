from pathlib import Path

import pytest
from PIL import Image
from torch import Tensor

from helpers.toy_datasets import make_vid4, save_frames
from helpers.videos import make_video
from tubelet.data.catalog import find_dataset
from tubelet.data.check import check_folder, check_set, identify_degradation, sets_in
from tubelet.degrade import degrade
from tubelet.errors import Cancelled
from tubelet.evaluation.scene import draw_scene
from tubelet.progress import CancelToken

VID4 = find_dataset("vid4")


def problems(root: Path, **options: bool) -> dict[str, tuple[str, ...]]:
    return {
        clip.name: clip.problems for clip in check_set(VID4, root, **options).clips if clip.problems
    }


def test_a_complete_set_is_complete(shared: Path):
    report = check_set(VID4, shared / "data" / "dev_eval")
    assert report.is_complete
    assert (report.found, report.expected) == (4, 4)
    assert [(clip.frames, clip.size) for clip in report.clips] == [
        (41, (720, 576)),
        (34, (704, 576)),
        (49, (720, 480)),
        (47, (720, 480)),
    ]


def test_wrong_sizes_counts_and_missing_clips_are_told(tmp_path: Path):
    make_vid4(tmp_path, clips=("calendar", "city", "walk"))
    (tmp_path / "GT" / "city" / "00000007.png").unlink()
    found = problems(tmp_path)
    assert found["calendar"] == ("16x12 instead of 720x576",)
    assert found["city"][0] == "33 frames instead of 34"
    assert found["foliage"] == ("missing",)
    assert not check_set(VID4, tmp_path).is_complete


def test_every_frame_finds_what_the_first_hides(tmp_path: Path):
    make_vid4(tmp_path)
    folder = tmp_path / "GT" / "walk"
    Image.new("RGB", (8, 8)).save(folder / "00000005.png")
    whole = (folder / "00000009.png").read_bytes()
    (folder / "00000009.png").write_bytes(whole[: len(whole) // 2])
    assert len(problems(tmp_path)["walk"]) == 1  # the size alone
    told = "; ".join(problems(tmp_path, every_frame=True)["walk"])
    assert "1 frames are not 16x12" in told
    assert "00000009.png cannot be read" in told


def test_low_quality_clips_of_another_length(tmp_path: Path):
    make_vid4(tmp_path)
    save_frames(tmp_path / "BIx4" / "walk", 46, (4, 3))
    assert "bi: 46 low-quality frames, not 47" in problems(tmp_path)["walk"]


@pytest.fixture(scope="module")
def gt() -> Tensor:
    """A part of the drawn scene."""
    return next(iter(draw_scene(1)))[None, :, 100:180, 100:220]


@pytest.mark.parametrize("preset", ["bi", "bd", "bd-b", "bd-c"])
def test_the_degradation_of_a_clip_is_recognized(tmp_path: Path, gt: Tensor, preset: str):
    for name, clip in (("gt", gt), ("lq", degrade(gt, preset))):
        (tmp_path / name).mkdir()
        pixels = (clip[0] * 255).round().byte().permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(tmp_path / name / "0.png")
    likeness = identify_degradation(tmp_path / "gt", tmp_path / "lq")
    assert next(iter(likeness)) == preset
    assert likeness[preset] > 45


def test_a_mislabeled_convention_is_a_problem(tmp_path: Path, gt: Tensor):
    make_vid4(tmp_path)
    for folder, clip in (("GT", gt), ("BDx4", degrade(gt, "bd"))):
        for name in ("calendar",):
            for old in (tmp_path / folder / name).glob("*.png"):
                old.unlink()
            (tmp_path / folder / name).mkdir(parents=True, exist_ok=True)
            pixels = (clip[0] * 255).round().byte().permute(1, 2, 0).numpy()
            Image.fromarray(pixels).save(tmp_path / folder / name / "0.png")
    (problem,) = check_set(VID4, tmp_path).problems
    assert "is expected to be bd-b, but nearest is bd: bd 9" in problem


def test_sets_are_recognized_and_numbers_alone_are_not(tmp_path: Path):
    save_frames(tmp_path / "000", 2)
    assert sets_in(tmp_path) == []
    make_vid4(tmp_path / "Vid4")
    save_frames(tmp_path / "REDS" / "train_sharp" / "000", 2)
    assert [dataset.name for dataset in sets_in(tmp_path)] == ["reds4", "vid4"]


def test_any_folder_is_described(tmp_path: Path):
    save_frames(tmp_path / "a", 3)
    make_video(tmp_path / "b.mp4", frames=5)
    (tmp_path / "c.mp4").write_bytes(b"nothing")
    report = check_folder(tmp_path)
    assert [(clip.name, clip.frames, clip.size) for clip in report.clips] == [
        ("a", 3, (16, 12)),
        ("b", 5, (64, 48)),
        ("c", None, None),
    ]
    assert not report.is_complete


def test_progress_counts_clips_and_a_token_stops_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("tubelet.progress.MIN_INTERVAL_S", 0.0)
    for name in ("a", "b", "c"):
        save_frames(tmp_path / name, 1)
    seen: list[int] = []
    check_folder(tmp_path, on_progress=lambda now: seen.append(now.done))
    assert seen == [1, 2, 3, 3]
    token = CancelToken()
    with pytest.raises(Cancelled):
        check_folder(tmp_path, on_progress=lambda now: token.cancel(), cancel=token)
