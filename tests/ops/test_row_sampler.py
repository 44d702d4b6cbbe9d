import pytest
import torch

from tubelet.ops.row_sampler import RowSampler, Strip, Taps


def _sampler(channels: int, groups: int, dtype: torch.dtype) -> RowSampler:
    """A sampler of a random image of 6×7 pixels."""
    taps = Taps((3, 3), (1, 1), (1, 1), (1, 1), groups, "zeros")
    like = torch.empty(0, dtype=dtype)
    sampler = RowSampler((channels, 6, 7), taps, (6, 7), like=like, strip_samples=9 * groups * 16)
    sampler.fill(torch.randn(channels, 6, 7, dtype=dtype))
    return sampler


@pytest.mark.parametrize(("groups", "heads"), [(1, 1), (2, 2), (2, 3)])
def test_a_sum_of_samples_is_that_of_the_stored_ones(groups: int, heads: int) -> None:
    torch.manual_seed(0)
    channels = groups * heads * 4
    sampler = _sampler(channels, groups, torch.float64)
    for pixels in sampler.strips():
        n = pixels.stop - pixels.start
        offset = 3 * torch.randn(n, 2 * 9 * groups, dtype=torch.float64)
        strip = Strip(offset, 1.0, None, None, None)
        factors = torch.randn(n, heads, 9 * groups, dtype=torch.float64)
        samples = sampler.sample(strip, pixels).view(n, groups * 9, heads, -1)
        expected = torch.einsum("nhs,nshc->nhc", factors, samples).flatten(1)
        torch.testing.assert_close(sampler.sum_samples(strip, pixels, factors), expected)


def test_strips_cover_all_pixels_once() -> None:
    sampler = _sampler(4, 1, torch.float32)
    pixels = [pixel for strip in sampler.strips() for pixel in range(42)[strip]]
    assert sampler.max_pixels == 16
    assert pixels == list(range(42))
