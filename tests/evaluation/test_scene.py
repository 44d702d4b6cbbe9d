"""The scene of the demo: reproducible, moving, and without aliasing."""

from itertools import islice

import pytest
import torch

from tubelet.evaluation.scene import SCENE_SIZE, draw_scene


@pytest.fixture(scope="module")
def frames() -> torch.Tensor:
    return torch.stack(list(islice(draw_scene(60), 3)))


def test_size_and_values(frames: torch.Tensor) -> None:
    assert frames.shape == (3, 3, SCENE_SIZE[1], SCENE_SIZE[0])
    assert frames.dtype == torch.float32
    levels = frames * 255
    torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-4)
    assert frames.std() > 0.15


def test_it_moves_a_little_everywhere(frames: torch.Tensor) -> None:
    change = (frames[1] - frames[0]).abs().mean(0)
    assert change.mean() > 0.01
    blocks = torch.nn.functional.avg_pool2d(change[None, None], 180)[0, 0]
    assert (blocks > 0.0005).all()


def test_it_is_the_same_every_time(frames: torch.Tensor) -> None:
    again = next(iter(draw_scene(1)))
    torch.testing.assert_close(again, frames[0], rtol=0, atol=0)
