import numpy as np
import pytest
import torch

from tubelet.data import CachedClip, Crops, CropSettings
from tubelet.errors import ConfigError, InputError


def _clip(name: str, frames: int, side: int = 20) -> CachedClip:
    """A clip whose lq pixels hold their time, row and column: a crop shows its own position."""
    time, row, column = np.meshgrid(
        np.arange(frames), np.arange(side), np.arange(side), indexing="ij"
    )
    lq = np.stack([time, row, column], 1).astype(np.uint8)
    return CachedClip(name, lq.repeat(4, -1).repeat(4, -2), (lq,))


SETTINGS = CropSettings(batch=3, frames=4, patch_px=8)


def test_gt_and_lq_are_cropped_at_the_same_position_and_time():
    crops = Crops([_clip("a", 9), _clip("b", 3), _clip("c", 1)], 4, SETTINGS, seed=0)
    lq, gt = crops.batch(0)
    assert lq.shape == (3, 4, 3, 8, 8)
    assert gt.shape == (3, 4, 3, 32, 32)
    for step in range(20):
        lq, gt = crops.batch(step)
        assert torch.equal(gt[..., ::4, ::4], lq)


def test_frames_are_consecutive_and_a_short_clip_is_played_back_and_forth():
    crops = Crops([_clip("short", 3)], 4, CropSettings(batch=1, frames=7, patch_px=8), seed=1)
    for index in range(20):
        times = crops.sample(index)[0][:, 0, 0, 0].astype(int)
        assert set(times) == {0, 1, 2}
        assert (np.abs(np.diff(times)) == 1).all()


def test_time_runs_forward_only_where_the_settings_say_so():
    both = Crops([_clip("a", 9)], 4, CropSettings(batch=1, frames=4, patch_px=8), seed=1)
    settings = CropSettings(batch=1, frames=4, patch_px=8, direction="forward")
    forward = Crops([_clip("a", 9)], 4, settings, seed=1)
    directions = set()
    for index in range(20):
        times = both.sample(index)[0][:, 0, 0, 0].astype(int)
        forward_times = forward.sample(index)[0][:, 0, 0, 0].astype(int)
        directions.add(times[1] - times[0])
        assert (np.diff(forward_times) == 1).all()
        assert set(forward_times) == set(times)
    assert directions == {-1, 1}


def test_pixels_are_the_batch_before_its_conversion():
    crops = Crops([_clip("a", 9)], 4, SETTINGS, seed=5)
    for pixels, batch in zip(crops.pixels(3), crops.batch(3), strict=True):
        assert pixels.dtype == torch.uint8
        assert torch.equal(pixels.float() / 255, batch)


def test_a_batch_depends_only_on_seed_and_step():
    clips = [_clip("a", 9), _clip("b", 5)]
    crops = Crops(clips, 4, SETTINGS, seed=5)
    same_seed = Crops(clips, 4, SETTINGS, seed=5)
    other_seed = Crops(clips, 4, SETTINGS, seed=6)
    # Earlier batches do not matter.
    crops.batch(0)
    lq, _ = crops.batch(7)
    assert torch.equal(lq, same_seed.batch(7)[0])
    assert not torch.equal(lq, crops.batch(8)[0])
    assert not torch.equal(lq, other_seed.batch(7)[0])


def test_prefers_detail():
    lq = np.zeros((1, 3, 8, 64), np.uint8)
    lq[..., 32:] = np.random.default_rng(0).integers(0, 255, (1, 3, 8, 32))
    clip = CachedClip("half flat", lq.repeat(4, -1).repeat(4, -2), (lq,))

    def mean_detail(candidates: int) -> float:
        settings = CropSettings(patch_px=8, candidates=candidates)
        crops = Crops([clip], 4, settings, seed=0)
        return float(np.mean([crops.sample(i)[0].std() for i in range(60)]))

    assert mean_detail(6) > 1.3 * mean_detail(1)


def test_refuses_clips_that_are_too_small():
    with pytest.raises(InputError, match="none of 1 clips has 64 px"):
        Crops([_clip("a", 3)], 4, CropSettings(), seed=0)
    with pytest.raises(ConfigError, match="at least 1"):
        CropSettings(batch=0)
