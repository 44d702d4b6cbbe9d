import weakref
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from tubelet.layers.frames import stack_frames


@pytest.mark.parametrize("gradients", [True, False])
def test_equals_stack(gradients: bool) -> None:
    frames = list(torch.rand(3, 2, 4, 5, 6))
    with torch.set_grad_enabled(gradients):
        assert torch.equal(stack_frames(iter(frames), 3), torch.stack(frames, 1))


def test_frames_are_freed_as_they_come() -> None:
    alive: list[weakref.ref[Tensor]] = []

    def frames() -> Iterator[Tensor]:
        for _ in range(6):
            assert sum(reference() is not None for reference in alive) == 0
            frame = torch.rand(1, 3, 4, 5)
            alive.append(weakref.ref(frame))
            yield frame
            del frame

    with torch.no_grad():
        assert stack_frames(frames(), 6).shape == (1, 6, 3, 4, 5)


def test_gradients_pass() -> None:
    frames = [torch.rand(1, 3, 2, 2, requires_grad=True) for _ in range(3)]
    stack_frames(frames, 3).sum().backward()
    assert all(frame.grad is not None for frame in frames)
