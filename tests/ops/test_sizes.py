import pytest
import torch

from tubelet.ops.sizes import pad_to, round_up


@pytest.mark.parametrize(
    ("value", "multiple", "expected"), [(0, 4, 0), (1, 4, 4), (4, 4, 4), (5, 4, 8), (7, 1, 7)]
)
def test_round_up(value: int, multiple: int, expected: int) -> None:
    assert round_up(value, multiple) == expected


@pytest.mark.parametrize("leading", [(1,), (2, 3)])
def test_large_images_are_mirrored(leading: tuple[int, ...]) -> None:
    x = torch.rand(*leading, 3, 4, 5)
    padded = pad_to(x, 6, 8)
    assert padded.shape == (*leading, 3, 6, 8)
    assert torch.equal(padded[..., :4, :5], x)
    assert torch.equal(padded[..., 4:, :5], x[..., [2, 1], :])
    assert torch.equal(padded[..., :4, 5:], x[..., [3, 2, 1]])


def test_small_images_are_repeated() -> None:
    x = torch.rand(1, 3, 2, 5)
    assert torch.equal(pad_to(x, 4, 5)[..., 2:, :], x[..., [1, 1], :])


def test_an_image_of_the_right_size_is_not_copied() -> None:
    x = torch.rand(1, 3, 4, 5)
    assert pad_to(x, 4, 5) is x
