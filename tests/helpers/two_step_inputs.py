"""Inputs of the tests of two-step: clips to train on, and an image model to freeze."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tubelet.models.srvgg import SRVGGConfig, SRVGGNetCompact
from tubelet.zoo.checkpoint import save_checkpoint


@pytest.fixture
def gratings(tmp_path) -> Path:
    """A folder with three clips of five frames, 36×48: gratings that move."""
    y, x = np.mgrid[:36, :48]
    for number, name in enumerate(("one", "two", "three")):
        folder = tmp_path / "clips" / name
        folder.mkdir(parents=True)
        for t in range(5):
            pixels = 255 * (np.sin((x + t) / (4 + number)) * np.sin((y - t) / 5) > 0)
            image = np.stack([pixels, 255 - pixels, pixels // 2], -1).astype(np.uint8)
            Image.fromarray(image).save(folder / f"{t}.png")
    return tmp_path / "clips"


@pytest.fixture
def image_model(tmp_path) -> str:
    """A checkpoint of a small network of single frames."""
    torch.manual_seed(3)
    save_checkpoint(
        tmp_path / "image.safetensors",
        SRVGGNetCompact(SRVGGConfig(scale=2, channels=4, num_blocks=1)),
        {},
    )
    return str(tmp_path / "image.safetensors")
