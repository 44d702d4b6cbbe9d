"""The frames of an evaluation: degraded or read from a folder, each with its original."""

from pathlib import Path

import pytest
import torch

from helpers.evaluation_clips import read_frames, write_frames
from helpers.videos import make_video
from tubelet.data.datasets import EvalClip
from tubelet.degrade import degrade
from tubelet.errors import InputError
from tubelet.evaluation.pairs import FramePair, FramePairs, inspect_clip
from tubelet.metrics.protocols import find_protocol

BI, REAL = find_protocol("folder-bi-x4"), find_protocol("folder-real-x4")


def pairs_of(clip: EvalClip, protocol=BI, max_frames: int | None = None) -> list[FramePair]:
    inspected = inspect_clip(clip, protocol, max_frames=max_frames)
    with FramePairs(inspected, protocol, max_frames=max_frames) as pairs:
        return [pairs.pop() for _ in pairs]


@pytest.mark.parametrize("protocol", [BI, REAL], ids=lambda protocol: protocol.name)
def test_the_protocol_degrades(tmp_path: Path, protocol) -> None:
    folder = write_frames(tmp_path / "a", 4)
    pairs = pairs_of(EvalClip(name="a", gt=folder, lq=None), protocol)
    torch.testing.assert_close(
        torch.stack([p.gt for p in pairs if p.gt is not None]), read_frames(folder)
    )
    assert {tuple(pair.lq.shape) for pair in pairs} == {(3, 12, 16)}
    if protocol is BI:
        torch.testing.assert_close(
            torch.stack([p.lq for p in pairs]), degrade(read_frames(folder), "bi")
        )


def test_random_degradation_is_the_same_every_time_and_another_for_another_name(
    tmp_path: Path,
) -> None:
    folder = write_frames(tmp_path / "a", 3)
    runs = [
        torch.stack([p.lq for p in pairs_of(EvalClip(name=name, gt=folder, lq=None), REAL)])
        for name in "aab"
    ]
    torch.testing.assert_close(runs[0], runs[1], rtol=0, atol=0)
    assert not torch.equal(runs[0], runs[2])


def test_a_folder_of_low_quality_frames_is_read_unchanged(tmp_path: Path) -> None:
    gt, lq = (
        write_frames(tmp_path / "gt", 3, size=(66, 49)),
        write_frames(tmp_path / "lq", 3, size=(16, 12), offset=7),
    )
    pairs = pairs_of(EvalClip(name="a", gt=gt, lq=lq))
    torch.testing.assert_close(torch.stack([p.lq for p in pairs]), read_frames(lq))
    torch.testing.assert_close(
        torch.stack([p.gt for p in pairs if p.gt is not None]), read_frames(gt)[..., :48, :64]
    )


def test_a_clip_without_an_original_has_none(tmp_path: Path) -> None:
    lq = write_frames(tmp_path / "lq", 2, size=(16, 12))
    inspected = inspect_clip(EvalClip(name="a", gt=None, lq=lq), find_protocol("videolq-x4"))
    assert (inspected.width, inspected.height) == (64, 48)
    with FramePairs(inspected, BI) as pairs:
        assert [pairs.pop().gt for _ in pairs] == [None, None]


def test_a_limit_counts_frames(tmp_path: Path) -> None:
    assert (
        len(pairs_of(EvalClip(name="a", gt=write_frames(tmp_path / "a", 4), lq=None), max_frames=2))
        == 2
    )


def test_videos_are_clips_too(tmp_path: Path) -> None:
    video = make_video(tmp_path / "a.mp4")
    assert len(pairs_of(EvalClip(name="a", gt=video, lq=None))) == 10


def test_different_numbers_of_frames_are_refused(tmp_path: Path) -> None:
    gt, lq = write_frames(tmp_path / "gt", 3), write_frames(tmp_path / "lq", 2, size=(16, 12))
    with pytest.raises(InputError, match=r"has 3 frames and .* has 2"):
        inspect_clip(EvalClip(name="a", gt=gt, lq=lq), BI)
    gt_video = make_video(tmp_path / "gt.mp4")
    inspected = inspect_clip(EvalClip(name="a", gt=gt_video, lq=lq), BI)
    with (
        FramePairs(inspected, BI) as pairs,
        pytest.raises(InputError, match="lq ends after 2 frames"),
    ):
        list(pairs)


def test_sizes_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    gt, lq = write_frames(tmp_path / "gt", 2), write_frames(tmp_path / "lq", 2, size=(20, 12))
    with pytest.raises(
        InputError, match=r"lq is 20×12 and .*gt is 64×48; folder-bi-x4 needs 16×12"
    ):
        inspect_clip(EvalClip(name="a", gt=gt, lq=lq), BI)


def test_nothing_to_degrade_is_refused(tmp_path: Path) -> None:
    gt = write_frames(tmp_path / "gt", 2)
    with pytest.raises(InputError, match="no low-quality frames, and videolq-x4 makes none"):
        inspect_clip(EvalClip(name="a", gt=gt, lq=None), find_protocol("videolq-x4"))
    tiny = write_frames(tmp_path / "tiny", 2, size=(3, 40))
    with pytest.raises(InputError, match="3×40, too small"):
        inspect_clip(EvalClip(name="a", gt=tiny, lq=None), BI)


def test_the_fingerprint_changes_with_the_files(tmp_path: Path) -> None:
    folder = write_frames(tmp_path / "a", 2)
    clip = EvalClip(name="a", gt=folder, lq=None)
    before = inspect_clip(clip, BI).fingerprint
    assert inspect_clip(clip, BI).fingerprint == before
    (folder / "001.png").rename(folder / "002.png")
    assert inspect_clip(clip, BI).fingerprint != before
