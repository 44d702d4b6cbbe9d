"""Small sets of clips for the tests of the evaluation: folders of frames that the tests make themselves."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from helpers.videos import image


def write_frames(
    folder: Path, count: int, *, size: tuple[int, int] = (64, 48), offset: int = 0
) -> Path:
    """Write `count` images of `size` (width, height), those of another `offset` are others."""
    folder.mkdir(parents=True)
    noise = np.random.default_rng(offset).integers(-6, 6, (size[1], size[0], 3))
    for t in range(count):
        pixels = np.clip(
            image(t + offset, *size).astype(int) + np.roll(noise, t, 1), 0, 255
        ).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{t:03d}.png")
    return folder


def read_frames(folder: Path) -> Tensor:
    """(T, 3, H, W) in [0, 1]."""
    frames = [np.asarray(Image.open(path)) for path in sorted(folder.glob("*.png"))]
    return torch.from_numpy(np.stack(frames)).movedim(-1, 1).float() / 255


def write_set(root: Path) -> Path:
    """Two clips, of six and of four frames."""
    write_frames(root / "a", 6)
    write_frames(root / "b", 4, offset=50)
    return root
