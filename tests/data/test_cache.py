import numpy as np
import pytest
import torch
from PIL import Image

from tubelet.data import prepare_clips
from tubelet.degrade import degrade
from tubelet.errors import Cancelled, InputError
from tubelet.progress import CancelToken


@pytest.fixture
def root(tmp_path):
    """A folder with a folder of frames and a single image."""
    rng = np.random.default_rng(0)
    frames = tmp_path / "clips" / "walk"
    frames.mkdir(parents=True)
    for t in range(4):
        Image.fromarray(rng.integers(0, 255, (50, 61, 3), dtype=np.uint8)).save(
            frames / f"{t:04d}.png"
        )
    Image.fromarray(rng.integers(0, 255, (120, 200, 3), dtype=np.uint8)).save(
        tmp_path / "clips" / "still.png"
    )
    return tmp_path / "clips"


def test_folders_and_images_become_clips(root, tmp_path):
    clips = {c.name: c for c in prepare_clips([root], tmp_path / "cache", preset="bi", scale=4)}
    assert clips["walk"].gt.shape == (4, 3, 48, 60)
    assert clips["walk"].lqs[0].shape == (4, 3, 12, 15)
    with Image.open(root / "walk" / "0002.png") as image:
        assert np.array_equal(clips["walk"].gt[2].transpose(1, 2, 0), np.array(image)[:48, :60])
    gt = torch.from_numpy(np.array(clips["walk"].gt)).float() / 255
    assert np.array_equal((degrade(gt, "bi") * 255).round().byte().numpy(), clips["walk"].lqs[0])
    assert clips["still"].gt.shape == (14, 3, 60, 96)


def test_the_second_call_reads_the_cache_and_a_changed_source_does_not(root, tmp_path):
    def times() -> dict[str, int]:
        list(prepare_clips([root], tmp_path / "cache", preset="bi", scale=2))
        return {str(p): p.stat().st_mtime_ns for p in (tmp_path / "cache").rglob("*.npy")}

    first = times()
    assert times() == first
    Image.fromarray(np.zeros((100, 100, 3), np.uint8)).save(root / "still.png")
    assert len(times()) == len(first) + 2
    image = min((root / "walk").iterdir())
    Image.open(image).transpose(Image.Transpose.FLIP_TOP_BOTTOM).save(image)
    assert len(times()) == len(first) + 4
    assert not list((tmp_path / "cache").rglob("*.part"))


def test_random_presets_give_several_versions(root, tmp_path):
    clip = next(prepare_clips([root], tmp_path / "cache", preset="real", scale=4, variants=3))
    assert len(clip.lqs) == 3
    assert not np.array_equal(clip.lqs[0], clip.lqs[1])


def test_missing_and_empty_folders_are_named(tmp_path):
    with pytest.raises(InputError, match="no such folder of clips"):
        list(prepare_clips([tmp_path / "nowhere"], tmp_path, preset="bi", scale=4))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no video, image or folder"):
        list(prepare_clips([tmp_path / "empty"], tmp_path, preset="bi", scale=4))


def test_a_token_stops_it_before_the_next_clip(root, tmp_path):
    token = CancelToken()
    clips = prepare_clips([root], tmp_path / "cache", preset="bi", scale=4, cancel=token)
    assert next(clips).name == "still"
    token.cancel()
    with pytest.raises(Cancelled):
        next(clips)
    assert [path.name.split("-")[0] for path in (tmp_path / "cache").iterdir()] == ["still"]
