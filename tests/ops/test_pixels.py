import numpy as np
import torch

from tubelet.ops.pixels import quantize, to_image_array, to_uint8


def test_values_outside_go_to_the_ends_and_halves_to_the_even_neighbor() -> None:
    x = torch.tensor([-0.2, 0.0, 0.5 / 255, 1.5 / 255, 1.0, 1.3], dtype=torch.float64)
    assert to_uint8(x).tolist() == [0, 0, 0, 2, 255, 255]
    assert torch.equal(quantize(x) * 255, torch.tensor([0, 0, 0, 2, 255, 255], dtype=torch.float64))


def test_every_value_of_8_bit_comes_back() -> None:
    values = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(values.float() / 255), values)
    assert torch.equal(to_uint8(quantize(values.float() / 255)), values)


def test_an_image_array_has_its_channels_last() -> None:
    rgb = torch.rand(3, 4, 6)
    array = to_image_array(rgb)
    assert array.shape == (4, 6, 3)
    assert array.dtype == np.uint8
    assert array.flags.c_contiguous
    assert array[1, 2].tolist() == to_uint8(rgb)[:, 1, 2].tolist()
