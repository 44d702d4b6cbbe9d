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
    """Two smooth images, whose values between pixels can be interpolated exactly."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for i in range(2):
        coarse = torch.from_numpy(rng.random((3, 10, 12), dtype=np.float32))
        smooth = imresize(coarse, 32).clamp(0, 1)
        pixels = (smooth * 255).round().byte()
        Image.fromarray(pixels.movedim(0, -1).numpy()).save(root / f"{i}.png")
    (root / "notes.txt").write_text("no image")
    return root


def images(folder: Path, seed: int = 0, **changes: float) -> MovingImages:
    settings = {"batch": 8, "patch_px": 40, "max_px": 6.0, "noise": 0.0, "change": 0.0} | changes
    return MovingImages(find_images([folder]), MotionSettings(**settings), seed)


def warp_error(frames: torch.Tensor, flow: torch.Tensor) -> torch.Tensor:
    """Warp supp to ref, and return the maximum error of the channels: (H, W)."""
    warped = backward_warp(frames[1:], flow[None], padding="border")[0]
    return (frames[0] - warped).abs().amax(0)


def test_a_pair_depends_only_on_seed_and_number(folder: Path) -> None:
    frames, flow, visible = images(folder).batch(2)
    assert frames.shape == (8, 2, 3, 40, 40)
    assert flow.shape == (8, 2, 40, 40)
    assert visible.shape == (8, 1, 40, 40)
    assert 0 <= frames.min() < frames.max() <= 1
    again = images(folder).pair(5)
    assert torch.equal(frames[4], again.frames)
    assert torch.equal(flow[4], again.flow)
    assert not torch.equal(frames[0], frames[4])
    assert not torch.equal(frames[4], images(folder, seed=1).pair(5).frames)


def test_the_mean_motion_of_a_batch_is_zero(folder: Path) -> None:
    frames, flow, visible = images(folder).batch(0)
    assert flow[:4].abs().max() > 0.1
    assert flow[:4].mean((0, 2, 3)).abs().max() < 1e-6
    # The fourth pair is mirrored along both axes; its flow still fits its frames.
    is_visible = visible[3, 0] > 0
    assert warp_error(frames[3], flow[3])[is_visible].median() < 0.01


def test_the_flow_fits_the_frames_where_they_are_visible(folder: Path) -> None:
    source = images(folder, things=3)
    hidden_errors: list[torch.Tensor] = []
    max_gain = 0.0
    for i in range(24):
        frames, flow, visible = source.pair(i)
        error = warp_error(frames, flow)
        is_visible = visible[0] > 0
        # At outlines, neighboring pixels belong to other objects, and a pixel mixes two of them.
        assert error[is_visible].quantile(0.7) < 0.02
        hidden_errors.append(error[~is_visible])
        unwarped_error = (frames[0] - frames[1]).abs().amax(0)[is_visible].mean()
        max_gain = max(max_gain, float(unwarped_error / error[is_visible].mean()))
    assert torch.cat(hidden_errors).median() > 0.05
    assert max_gain > 20


def test_no_motion_is_longer_than_its_maximum(folder: Path) -> None:
    source = images(folder, max_px=5.0)
    lengths_px: list[float] = []
    for i in range(40):
        flow = source.pair(i).flow
        lengths_px.append(float(flow.square().sum(0).amax().sqrt()))
    assert 4 < max(lengths_px) <= 5.001
    # Some pairs do not move at all.
    assert 0 in lengths_px


def test_both_frames_are_resampled_alike(folder: Path) -> None:
    """Fine detail is as strong in ref as in supp, over many pairs."""
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (200, 220, 3), dtype=np.uint8)).save(folder / "noise.png")
    source = MovingImages(
        [folder / "noise.png"], MotionSettings(patch_px=24, noise=0, change=0, things=0), 0
    )
    details: list[torch.Tensor] = []
    for i in range(60):
        gradient = source.pair(i).frames.diff(dim=-1)
        details.append(gradient.square().mean((1, 2, 3)))
    ref, supp = torch.stack(details).mean(0)
    assert float(ref / supp) == pytest.approx(1, abs=0.03)


def test_light_and_noise_change(folder: Path) -> None:
    plain = images(folder, change=0, noise=0, things=0)
    changed = images(folder, change=0.2, noise=0.1, things=0)
    ref_and_supp: list[torch.Tensor] = []
    for i in range(16):
        difference = plain.pair(i).frames - changed.pair(i).frames
        ref_and_supp.append(difference.abs().mean((1, 2, 3)))
    differences = torch.stack(ref_and_supp)  # (16, 2)
    assert differences[:, 1].max() > 0.05
    # Half of the pairs keep the light, and half are free of noise.
    assert differences.sum(1).min() == 0


@pytest.mark.parametrize(
    "changes",
    [{"batch": 0}, {"batch": 6}, {"patch_px": 4}, {"max_px": 0.0}, {"noise": -1.0}, {"things": -1}],
)
def test_settings_out_of_range(changes: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        MotionSettings(**changes)


def test_folders_without_usable_images_are_refused(tmp_path: Path) -> None:
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
