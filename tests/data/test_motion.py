from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tubelet.data.motion import MotionSettings, MovingImages, find_images
from tubelet.errors import ConfigError, InputError
from tubelet.ops import backward_warp, imresize


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two smooth images: what is between their pixels is known well."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for i in range(2):
        coarse = torch.from_numpy(rng.random((3, 10, 12), dtype=np.float32))
        pixels = (imresize(coarse, 32).clamp(0, 1).movedim(0, -1) * 255).round().byte().numpy()
        Image.fromarray(pixels).save(root / f"{i}.png")
    (root / "notes.txt").write_text("no image")
    return root


def images(folder: Path, seed: int = 0, **changes: float) -> MovingImages:
    settings = {"batch": 8, "patch_px": 40, "max_px": 6.0, "noise": 0.0, "change": 0.0} | changes
    return MovingImages(find_images([folder]), MotionSettings(**settings), seed)


def test_a_pair_depends_on_seed_and_number_alone(folder: Path) -> None:
    frames, flow, visible = images(folder).batch(2)
    assert (frames.shape, flow.shape, visible.shape) == (
        (8, 2, 3, 40, 40),
        (8, 2, 40, 40),
        (8, 1, 40, 40),
    )
    assert 0 <= frames.min() < frames.max() <= 1
    again = images(folder).pair(5)
    assert torch.equal(frames[4], again.frames)
    assert torch.equal(flow[4], again.flow)
    assert not torch.equal(frames[0], frames[4])
    assert not torch.equal(frames[4], images(folder, seed=1).pair(5).frames)


def test_a_batch_moves_to_no_side(folder: Path) -> None:
    frames, flow, visible = images(folder).batch(0)
    assert flow[:4].abs().max() > 0.1
    assert flow[:4].mean((0, 2, 3)).abs().max() < 1e-6
    seen = visible[3, 0] > 0
    error = (
        (frames[3, 0] - backward_warp(frames[3:4, 1], flow[3:4], padding="border")[0]).abs().amax(0)
    )
    assert error[seen].median() < 0.01  # mirrored at both axes, the flow still fits the frames


def test_the_flow_leads_to_what_is_seen(folder: Path) -> None:
    source = images(folder, things=3)
    hidden: list[torch.Tensor] = []
    moved = 0.0
    for i in range(24):
        frames, flow, visible = source.pair(i)
        error = (
            (frames[0] - backward_warp(frames[1:], flow[None], padding="border")[0]).abs().amax(0)
        )
        seen = visible[0] > 0
        # At the outlines of things, neighbors lie on other things, and a pixel mixes two of them.
        assert error[seen].quantile(0.7) < 0.02
        hidden.append(error[~seen])
        still = (frames[0] - frames[1]).abs().amax(0)[seen].mean()
        moved = max(moved, float(still / error[seen].mean()))
    assert torch.cat(hidden).median() > 0.05
    assert moved > 20


def test_no_motion_is_longer_than_told(folder: Path) -> None:
    source = images(folder, max_px=5.0)
    lengths = torch.stack([source.pair(i).flow.square().sum(0).amax().sqrt() for i in range(40)])
    assert 4 < lengths.max() <= 5.001
    assert (lengths == 0).any()


def test_both_frames_are_resampled_alike(folder: Path) -> None:
    """Fine detail is as strong in ref as in supp, over many pairs."""
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (200, 220, 3), dtype=np.uint8)).save(folder / "noise.png")
    source = MovingImages(
        [folder / "noise.png"], MotionSettings(patch_px=24, noise=0, change=0, things=0), 0
    )
    detail = torch.stack(
        [source.pair(i).frames.diff(dim=-1).square().mean((1, 2, 3)) for i in range(60)]
    ).mean(0)
    assert float(detail[0] / detail[1]) == pytest.approx(1, abs=0.03)


def test_light_and_noise_change(folder: Path) -> None:
    plain, lit = (
        images(folder, change=change, noise=noise, things=0)
        for change, noise in ((0, 0), (0.2, 0.1))
    )
    differences = [
        (plain.pair(i).frames - lit.pair(i).frames).abs().mean((1, 2, 3)) for i in range(16)
    ]
    assert max(float(d[1]) for d in differences) > 0.05
    assert (
        min(float(d.sum()) for d in differences) == 0
    )  # half of the pairs keep light, and half are free of noise


@pytest.mark.parametrize(
    "changes",
    [{"batch": 0}, {"batch": 6}, {"patch_px": 4}, {"max_px": 0.0}, {"noise": -1.0}, {"things": -1}],
)
def test_settings_out_of_range(changes: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        MotionSettings(**changes)


def test_what_is_no_folder_of_images(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        find_images([tmp_path / "absent"])
    with pytest.raises(InputError, match="no image in"):
        find_images([tmp_path])
    Image.new("RGB", (90, 20)).save(tmp_path / "small.png")
    with pytest.raises(InputError, match="90×20"):
        MovingImages(find_images([tmp_path]), MotionSettings(), 0)


def test_a_large_image_is_halved(tmp_path: Path) -> None:
    Image.new("RGB", (2600, 1700), "red").save(tmp_path / "large.png")
    source = MovingImages(
        find_images([tmp_path]), MotionSettings(patch_px=16, noise=0, change=0), 0
    )
    assert source._images[0][0].shape == (3, 850, 1300)
    assert source.pair(1).frames.std((0, 2, 3)).max() < 1e-3
