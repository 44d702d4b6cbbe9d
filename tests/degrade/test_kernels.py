import math

import pytest
import torch

from tubelet.degrade.blur import gaussian_kernel
from tubelet.degrade.kernels import shaped_kernel, sinc_kernel


def test_the_gaussian_is_that_of_blur():
    torch.testing.assert_close(
        shaped_kernel("gaussian", 2, 0.7, 0.4, 1.0, 13), gaussian_kernel(2, 0.7, 0.4, 13)
    )
    torch.testing.assert_close(
        shaped_kernel("generalized", 2, 0.7, 0.4, 1.0, 13), gaussian_kernel(2, 0.7, 0.4, 13)
    )


@pytest.mark.parametrize("shape", ["generalized", "plateau"])
@pytest.mark.parametrize("beta", [0.5, 1.7])
def test_profiles_against_their_formulas(shape, beta):
    kernel = shaped_kernel(shape, 1.5, 1.5, 0.3, beta, 9)
    q = 4 / 1.5**2  # two pixels from the middle
    value = math.exp(-(q**beta) / 2) if shape == "generalized" else 1 / (1 + q**beta)
    assert kernel.sum() == pytest.approx(1)
    assert (kernel[4, 6] / kernel[4, 4]).item() == pytest.approx(value)
    torch.testing.assert_close(kernel, kernel.flip(0, 1))


def test_turning_by_a_right_angle_transposes():
    wide, tall = (shaped_kernel("plateau", 3, 1, angle, 1.5, 11) for angle in (0.0, math.pi / 2))
    torch.testing.assert_close(wide.T, tall)
    assert wide[5, 0] > wide[0, 5]


def test_sinc_passes_low_and_stops_high_frequencies():
    kernel = sinc_kernel(math.pi / 2, 21)
    assert kernel.sum() == pytest.approx(1)
    x = torch.arange(21, dtype=torch.float64) - 10
    passed, stopped = ((kernel * torch.cos(omega * x)).sum().abs().item() for omega in (0.4, 2.8))
    assert passed > 0.9
    assert stopped < 0.05
    assert kernel.min() < 0  # it rings
