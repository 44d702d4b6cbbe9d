from functools import cache
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from tubelet.video.scenes import CutDetector


def cuts(frames) -> list[int]:
    detector = CutDetector()
    return [t for t, rgb in enumerate(frames) if detector.is_cut(rgb)]


def texture(seed: int, height: int = 90, width: int = 160) -> Tensor:
    """Create soft random blobs, like an image out of focus, (3, H, W)."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(1, 3, height // 10 + 1, width // 10 + 1, generator=generator)
    return F.interpolate(noise, size=(height, width), mode="bilinear")[0]


def noisy(rgb: Tensor, strength: float, seed: int) -> Tensor:
    noise = torch.randn(rgb.shape, generator=torch.Generator().manual_seed(seed))
    return (rgb + strength * noise).clamp(0, 1)


@pytest.mark.parametrize("size", [(90, 160), (20, 24), (1, 1), (160, 90)])
def test_first_frame_and_repeated_frames_are_no_cuts(size):
    assert cuts([torch.rand(3, *size)] * 5) == []


@pytest.mark.parametrize("brightness", [1.0, 0.2])
def test_hard_cuts_are_found(brightness):
    scenes = [noisy(texture(t // 6) * brightness, 0.005, t) for t in range(24)]
    assert cuts(scenes) == [6, 12, 18]


def test_a_scene_of_one_frame_is_two_cuts():
    assert cuts([texture(0), texture(0), texture(1), texture(2), texture(2)]) == [2, 3]


def test_cut_between_flat_images():
    red, blue = torch.zeros(3, 48, 64), torch.zeros(3, 48, 64)
    red[0] = 0.8
    blue[2] = 0.8
    assert cuts([red, red, blue, blue]) == [2]


@pytest.mark.parametrize("speed_px", [1, 4, 8])
def test_pans_are_no_cuts(speed_px):
    wide = texture(3, 90, 600)
    assert cuts(wide[:, :, speed_px * t : speed_px * t + 160] for t in range(30)) == []


def test_flashes_during_a_pan_are_no_cuts():
    wide = texture(5, 90, 600) * 0.5
    scene = []
    for t in range(30):
        flash = 0.4 if t in (7, 8, 20) else 0.0
        scene.append(wide[:, :, 8 * t : 8 * t + 160] + flash)
    assert cuts(scene) == []


def test_noise_is_no_cut():
    assert cuts(noisy(texture(4), 0.15, t) for t in range(12)) == []


def test_flashes_and_fades_are_no_cuts():
    base = texture(5) * 0.5
    flash = [base + 0.4 * (t in (4, 5)) for t in range(10)]
    assert cuts(flash) == []
    assert cuts(base * (1 - t / 20) for t in range(20)) == []


@cache
def load(path: Path) -> list[Tensor]:
    """Read the frames of a clip, at a quarter of the size to be quick; several tests share them."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        width, height = stream.width // 4, stream.height // 4
        images = [
            f.to_ndarray(format="rgb24", width=width, height=height)
            for f in container.decode(stream)
        ]
    return [torch.from_numpy(np.ascontiguousarray(p)).permute(2, 0, 1) / 255 for p in images]


NAMES = [
    "davis_drift-straight",
    "davis_motocross-jump",
    "cotracker_pillow",
    "davis_bmx-trees",
    "editly_changi",
]


@pytest.mark.parametrize("name", NAMES)
def test_real_clips_with_much_motion_have_no_cut(shared, name):
    assert cuts(load(shared / "data" / "train_video" / f"{name}.mp4")) == []


@pytest.mark.parametrize(
    ("first", "second"), [*pairwise(NAMES), ("editly_changi", "davis_paragliding")]
)
def test_two_real_clips_one_after_the_other_have_one_cut(shared, first, second):
    clips = [
        load(shared / "data" / "train_video" / f"{name}.mp4")[-12:] for name in (first, second)
    ]
    assert cuts(clips[0] + clips[1][:12]) == [12]
