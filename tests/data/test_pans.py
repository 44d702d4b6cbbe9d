import numpy as np
import pytest
import torch
from torch import Tensor

from tubelet.data.pans import PanSettings, pan_over
from tubelet.errors import ConfigError


def _image(height: int, width: int) -> Tensor:
    """An image whose pixels show their row and column, in blocks of 2×2 that halving keeps."""
    y, x = torch.meshgrid(torch.arange(height // 2), torch.arange(width // 2), indexing="ij")
    rgb = torch.stack([y % 251, x % 251, y // 251 + 8 * (x // 251)]).byte()
    return rgb.repeat_interleave(2, 1).repeat_interleave(2, 2)


def _corners(frames: list[np.ndarray]) -> np.ndarray:
    """Row and column of the first pixel of every frame."""
    first = np.stack([frame[:, 0, 0] for frame in frames]).astype(int)
    return np.stack([first[:, 0] + 251 * (first[:, 2] % 8), first[:, 1] + 251 * (first[:, 2] // 8)])


def test_moves_by_a_whole_number_of_pixels_a_frame() -> None:
    speeds: list[tuple[int, int]] = []
    for seed in range(30):
        frames = pan_over(_image(1600, 2300), seed, PanSettings(frames=40, max_px=2, speed="whole"))
        assert len(frames) == 40
        assert frames[0].shape == (3, 640, 960)
        steps = np.diff(_corners(frames))
        assert (steps == steps[:, :1]).all()
        speeds.append((int(steps[0, 0]), int(steps[1, 0])))
    rows, columns = zip(*speeds, strict=True)
    assert set(rows) == set(columns) == {-2, -1, 0, 1, 2}


def test_stays_in_the_image_and_can_be_still() -> None:
    for seed in range(20):
        fast = pan_over(_image(1400, 2000), seed, PanSettings(frames=14, max_px=50))
        assert all(frame.shape == (3, 640, 960) for frame in fast)
        still = pan_over(_image(1600, 2300), seed, PanSettings(frames=3, max_px=0))
        assert not np.diff(_corners(still)).any()
    # No room to move.
    small = pan_over(_image(100, 100), 0, PanSettings(frames=3))
    assert small[0].shape == (3, 50, 50)


def test_other_clips_have_another_identity() -> None:
    # Clips that version 0.1 has cached are found again.
    assert PanSettings().identity == "14x(640, 960)"
    settings = [PanSettings(), PanSettings(frames=40), PanSettings(max_px=2)]
    settings.append(PanSettings(speed="whole"))
    assert len({pan.identity for pan in settings}) == 4
    with pytest.raises(ConfigError, match="need frames ≥ 1"):
        PanSettings(frames=0)
