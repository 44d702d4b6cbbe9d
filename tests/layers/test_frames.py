import weakref
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from tubelet.layers.frames import stack_frames


@pytest.mark.parametrize("gradients", [True, False])
def test_equals_stack(gradients: bool) -> None:
    frames = [frame.requires_grad_(gradients) for frame in torch.rand(3, 2, 4, 5, 6)]
    assert torch.equal(stack_frames(iter(frames), 3), torch.stack(frames, 1))


def test_takes_the_layout_of_another_clip() -> None:
    # Every frame is channels last.
    like = torch.empty(2, 3, 5, 6, 4).permute(0, 1, 4, 2, 3)
    clip = stack_frames(iter(torch.rand(3, 2, 4, 5, 6)), 3, like=like)
    assert clip.stride() == like.stride()


def test_frames_are_freed_as_they_come() -> None:
    alive: list[weakref.ref[Tensor]] = []

    def frames() -> Iterator[Tensor]:
        for _ in range(6):
            assert sum(reference() is not None for reference in alive) == 0
            frame = torch.rand(1, 3, 4, 5)
            alive.append(weakref.ref(frame))
            yield frame
            del frame

    assert stack_frames(frames(), 6).shape == (1, 6, 3, 4, 5)


def test_gradients_pass() -> None:
    frames = [torch.rand(1, 3, 2, 2, requires_grad=True) for _ in range(3)]
    stack_frames(frames, 3).sum().backward()
    assert all(frame.grad is not None for frame in frames)
