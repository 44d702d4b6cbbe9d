"""Images of a clip for the report: regions chosen in the original, in bounded memory."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from tubelet.evaluation.showcase import (
    BICUBIC,
    ORIGINAL,
    CropCollector,
    find_image,
    image_path,
)
from tubelet.ops.resize import resample


def frame(number: int, size: tuple[int, int] = (200, 300)) -> torch.Tensor:
    """Flat but for a noisy square, whose level encodes the frame's number."""
    rgb = torch.full((3, 200, 300), number / 255)
    rgb[:, 40:120, 160:260] += 0.3 * torch.rand(
        3, 80, 100, generator=torch.Generator().manual_seed(0)
    )
    return rgb.clamp(0, 1)[:, : size[0], : size[1]]


def test_regions_depend_on_the_original_only(tmp_path: Path) -> None:
    showcases = []
    for name, result in (("good", frame(9)), ("noise", torch.rand(3, 200, 300))):
        collector = CropCollector(0)
        collector.add(0, sr=result, gt=frame(9), lq=None)
        collector.save(tmp_path, "clip", name)
        showcases.append(collector.showcase)
    assert showcases[0] == showcases[1]
    (x, y, width, height), *_ = showcases[0].crops
    assert x < 260
    assert x + width > 160
    assert y < 120
    assert y + height > 40
    saved = np.asarray(Image.open(image_path(tmp_path, "clip", "good", 0)))
    np.testing.assert_array_equal(
        saved, np.asarray(Image.open(image_path(tmp_path, "clip", ORIGINAL, 0)))
    )


def test_without_an_original_the_result_and_the_input_are_shown(tmp_path: Path) -> None:
    collector = CropCollector(1)
    lq = resample(frame(3), (50, 75)).clamp(0, 1)
    for number in range(3):
        collector.add(number, sr=frame(number), gt=None, lq=lq)
    collector.save(tmp_path, "clip", "model")
    assert collector.showcase is not None
    assert collector.showcase.frame == 1
    names = {path.name for path in (tmp_path / "images" / "clip").iterdir()}
    assert names == {
        "model.0.png",
        "model.1.png",
        "model.profile.png",
        f"{BICUBIC}.0.png",
        f"{BICUBIC}.1.png",
    }
    profile = np.asarray(Image.open(image_path(tmp_path, "clip", "model", "profile")))
    assert profile.shape == (collector.showcase.column[2], 3, 3)


def test_a_long_clip_has_the_columns_of_its_first_frames(tmp_path: Path) -> None:
    collector = CropCollector(8, max_columns=5)
    for number in range(9):
        collector.add(number, sr=frame(number, (48, 64)), gt=frame(number, (48, 64)), lq=None)
    collector.save(tmp_path, "clip", "model")
    profile = np.asarray(Image.open(image_path(tmp_path, "clip", "model", "profile")))
    assert profile.shape[1] == 5
    assert collector.showcase is not None
    assert collector.showcase.frame == 8


def test_an_image_of_the_former_folder_is_found_if_there_is_no_new_one(tmp_path: Path) -> None:
    assert find_image(tmp_path, "clip", "model", 0) is None
    former = tmp_path / "pictures" / "clip" / "model.0.png"
    former.parent.mkdir(parents=True)
    former.touch()
    assert find_image(tmp_path, "clip", "model", 0) == former
    new = image_path(tmp_path, "clip", "model", 0)
    new.parent.mkdir(parents=True)
    new.touch()
    assert find_image(tmp_path, "clip", "model", 0) == new


def test_an_image_smaller_than_a_crop_is_taken_whole() -> None:
    collector = CropCollector(0)
    collector.add(0, sr=frame(0, (48, 64)), gt=None, lq=None)
    assert collector.showcase is not None
    assert collector.showcase.crops == ((0, 0, 64, 48),)
