"""Standard sets in small: the folders and frame counts of the real ones, with images of a few pixels."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

VID4_FRAMES = {"calendar": 41, "city": 34, "foliage": 49, "walk": 47}


def save_frames(
    folder: Path, count: int, size: tuple[int, int] = (16, 12), names: str = "{:08d}.png"
) -> Path:
    """Write `count` noisy images of `size` (width, height)."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(count)
    for number in range(count):
        pixels = rng.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / names.format(number), compress_level=0)
    return folder


def make_vid4(root: Path, layout: str = "GT/{}", clips: Iterable[str] = tuple(VID4_FRAMES)) -> Path:
    """Write Vid4 with its frame counts in a layout, for example "{}/truth"."""
    for clip in clips:
        save_frames(root / layout.format(clip), VID4_FRAMES[clip])
    return root
