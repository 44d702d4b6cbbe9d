import hashlib
from itertools import pairwise

import numpy as np
import pytest

from tubelet.data import CachedClip
from tubelet.errors import InputError
from tubelet.studies.lrti_clips import ClipSettings, StudyClips, split_clips

SETTINGS = ClipSettings(frames=10, window_px=16, score_px=32, held_out=2)


def _video(name: str, number: int = 0, frames: int = 10, side: int = 48) -> CachedClip:
    """A video whose pixels tell where they are from: video, row and column of 16 pixels."""
    y, x = np.mgrid[:side, :side] // 16
    frame = np.stack([np.full((side, side), 20 * number), 20 * y, 20 * x]).astype(np.uint8)
    gt = np.broadcast_to(frame, (frames, 3, side, side))
    return CachedClip(name, gt, (gt[..., ::4, ::4],))


def _videos(count: int = 4) -> list[CachedClip]:
    return [_video(f"v{number}", number) for number in range(count)]


def test_the_lowest_hashes_are_held_out():
    videos = [*_videos(6), _video("short", frames=9)]
    split = split_clips(videos, SETTINGS)
    hashes = sorted((hashlib.sha256(f"v{n}".encode()).hexdigest(), f"v{n}") for n in range(6))
    assert [clip.name for clip in split.held_out] == [name for _, name in hashes[:2]]
    assert {clip.name for clip in split.train} == {name for _, name in hashes[2:]}
    # What else is there does not matter.
    again = split_clips(videos[::-1], SETTINGS)
    assert [clip.name for clip in again.held_out] == [clip.name for clip in split.held_out]
    assert [clip.name for clip in again.train] == [clip.name for clip in split.train]


def test_too_few_long_clips_give_one_line():
    videos = [_video("a"), _video("b"), _video("c", frames=9)]
    with pytest.raises(InputError, match=r"2 of 3 clips have 10 frames; .* needs 2 .* add clips"):
        split_clips(videos, SETTINGS)


def test_real_clips_are_scored_in_their_center():
    videos = _videos()
    clips = StudyClips(videos[2:], videos[:2]).of_kind("real", SETTINGS)
    assert clips.train == videos[2:]
    scored = clips.held_out[0]
    assert scored.gt.shape == (10, 3, 32, 32)
    assert np.array_equal(scored.gt, videos[0].gt[..., 8:40, 8:40])
    assert np.array_equal(scored.lqs[0], videos[0].lqs[0][..., 2:10, 2:10])
    # Smaller videos are scored as a whole.
    small = StudyClips(videos, [_video("small", side=24)]).of_kind("real", SETTINGS)
    assert small.held_out[0].gt.shape[-2:] == (24, 24)


def test_pans_move_slowly_and_have_independent_noise():
    y, x = np.mgrid[:96, :96]
    frame = np.stack([y, x, y]).astype(np.uint8)
    video = CachedClip("v", np.broadcast_to(frame, (10, 3, 96, 96)), ())
    clips = StudyClips([video] * 3, [video]).of_kind("pans", SETTINGS)
    assert len(clips.train) == 6
    assert [len(clip.lqs) for clip in (clips.train[0], clips.held_out[0])] == [4, 1]
    for clip in clips.train:
        rows, columns = clip.gt[:, 0, 0, 0].astype(int), clip.gt[:, 1, 0, 0].astype(int)
        for positions in (rows, columns):
            speeds = set(np.diff(positions).tolist())
            assert len(speeds) == 1
            assert speeds <= {-2, -1, 0, 1, 2}

    flat = CachedClip("flat", np.full((10, 3, 96, 96), 128, np.uint8), ())
    (clip, *_) = StudyClips([flat], [flat]).of_kind("pans", SETTINGS).train
    noise = np.stack(clip.lqs).astype(float) - 128
    assert noise.std() == pytest.approx(10, rel=0.05)
    draws = noise.reshape(4 * 10, -1)
    correlations = np.corrcoef(draws) - np.eye(len(draws))
    assert np.abs(correlations).max() < 0.6  # 48 pixels: 0.14 is one standard deviation
    assert abs(correlations.mean()) < 0.02


def test_unrelated_frames_are_parts_that_never_repeat():
    videos = _videos()
    clips = StudyClips(videos[2:], videos[:2]).of_kind("unrelated", SETTINGS)
    assert len(clips.train) == len(clips.held_out) == 2
    for clip, sources in ((clips.train[0], {2, 3}), (clips.held_out[0], {0, 1})):
        # Every frame is a whole cell.
        assert (clip.gt == clip.gt[..., :1, :1]).all()
        cells = [tuple(cell) for cell in clip.gt[:, :, 0, 0].tolist()]
        assert len(set(cells)) == SETTINGS.frames
        assert {cell[0] // 20 for cell in cells} == sources
        assert all(a[0] != b[0] for a, b in pairwise(cells))
    assert clips.train[0].gt.tolist() != clips.train[1].gt.tolist()


def test_unsuitable_videos_give_one_line():
    few = StudyClips([_video("a", side=36)], [_video("b", side=36)])
    with pytest.raises(InputError, match=r"clips of 10 unrelated frames .* 1 videos have 4: add"):
        few.of_kind("unrelated", SETTINGS)
    small = StudyClips([_video("tiny", side=12)], [_video("b")])
    for kind in ("pans", "unrelated"):
        with pytest.raises(InputError, match="clip tiny is 12×12 pixels; the study needs 16"):
            small.of_kind(kind, SETTINGS)
