import pytest
import torch

from tubelet.training import LoopSettings, pixel_loss


@pytest.fixture
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(2, 3, 4, 4, generator=generator), torch.rand(2, 3, 4, 4, generator=generator)


def test_each_kind(pair):
    sr, gt = pair
    error = sr - gt
    expected = {
        "charbonnier": (error.square() + 0.01).sqrt().mean(),
        "l1": error.abs().mean(),
        "mse": error.square().mean(),
    }
    for name, value in expected.items():
        torch.testing.assert_close(pixel_loss(LoopSettings(loss=name, loss_eps=0.1))(sr, gt), value)


def test_the_sum_over_all_numbers(pair):
    sr, gt = pair
    settings = LoopSettings(loss="mse", loss_reduction="sum")
    torch.testing.assert_close(pixel_loss(settings)(sr, gt), (sr - gt).square().sum())


def test_luma_alone(pair):
    sr, gt = pair
    gray = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
    error = ((sr - gt) * gray).sum(1)
    torch.testing.assert_close(
        pixel_loss(LoopSettings(loss="mse", loss_on="luma"))(sr, gt), error.square().mean()
    )


def test_half_precision_is_compared_in_full(pair):
    sr, gt = pair
    loss = pixel_loss(LoopSettings(loss="l1", loss_on="luma"))
    assert torch.equal(loss(sr.bfloat16(), gt), loss(sr.bfloat16().float(), gt))
