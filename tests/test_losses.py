import pytest
import torch

from tubelet import metrics
from tubelet.losses import (
    LOSSES,
    charbonnier,
    encoder_distance,
    end_point_error,
    l1,
    l1_and_ssim,
    luma,
    mse,
    structural_similarity,
)


def test_values_of_a_known_error():
    gt = torch.zeros(2, 3, 4, 4)
    sr = torch.full_like(gt, 0.3)
    assert l1(sr, gt).item() == pytest.approx(0.3)
    assert mse(sr, gt).item() == pytest.approx(0.09)
    assert charbonnier(sr, gt, eps=0.4).item() == pytest.approx(0.5)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_gradients_are_finite_where_the_error_is_zero(loss):
    sr = torch.rand(1, 3, 4, 4, requires_grad=True)
    loss(sr, sr.detach()).backward()
    assert sr.grad.isfinite().all()


def test_luma_of_primaries_and_of_gray():
    primaries = torch.eye(3).reshape(3, 3, 1, 1)
    torch.testing.assert_close(luma(primaries).flatten(), torch.tensor([0.299, 0.587, 0.114]))
    assert luma(torch.full((2, 5, 3, 4, 4), 0.7)).shape == (2, 5, 1, 4, 4)
    torch.testing.assert_close(luma(torch.full((3, 1, 1), 0.7)).item(), 0.7)


def test_end_point_error():
    gt = torch.zeros(1, 2, 2, 2)
    flow = torch.zeros(1, 2, 2, 2)
    flow[0, :, 0, 0] = torch.tensor([3.0, 4.0])
    assert end_point_error(flow, gt).item() == pytest.approx(5 / 4)
    weight = torch.tensor([[2.0, 1.0], [1.0, 0.0]]).view(1, 1, 2, 2)
    assert end_point_error(flow, gt, weight=weight).item() == pytest.approx(10 / 4)
    assert end_point_error(flow, gt, weight=torch.zeros(1, 1, 2, 2)).item() == 0
    exact = torch.zeros(1, 2, 2, 2, requires_grad=True)
    end_point_error(exact, gt).backward()
    assert exact.grad.isfinite().all()


@pytest.fixture
def images():
    """Two pairs of 8-bit color images, (2, 3, 17, 23) in [0, 1]: sr is gt with noise."""
    generator = torch.Generator().manual_seed(0)
    gt = torch.rand(2, 3, 17, 23, generator=generator)
    sr = (gt + 0.2 * torch.randn(gt.shape, generator=generator)).clamp(0, 1)
    return (sr * 255).round() / 255, (gt * 255).round() / 255


def test_structural_similarity_is_that_of_the_metrics(images):
    sr, gt = images
    expected = metrics.ssim(sr, gt, channel="rgb").mean().item()
    assert 0.1 < expected < 0.95
    assert structural_similarity(sr, gt).item() == pytest.approx(expected, abs=1e-5)
    # A clip of the images.
    assert structural_similarity(sr[None], gt[None]).item() == pytest.approx(expected, abs=1e-5)
    assert structural_similarity(gt, gt).item() == pytest.approx(1)
    # Flat images: in float32 the variances are only rounding errors.
    flat = torch.full((1, 3, 11, 11), 0.9)
    assert structural_similarity(flat, flat + 1e-6).item() == pytest.approx(1, abs=1e-3)


def test_structural_similarity_keeps_full_precision_under_autocast(images):
    sr, gt = images
    expected = structural_similarity(sr, gt)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(structural_similarity(sr, gt), expected)


def test_structural_similarity_can_be_learned_from():
    generator = torch.Generator().manual_seed(0)
    gt = torch.rand(
        1,
        2,
        12,
        13,
        dtype=torch.float64,
        generator=generator,
    )
    sr = torch.rand(
        1,
        2,
        12,
        13,
        dtype=torch.float64,
        generator=generator,
    ).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: structural_similarity(x, gt), (sr,), atol=1e-6)
    before = structural_similarity(sr, gt)
    before.backward()
    assert structural_similarity(sr + sr.grad, gt) > before


def test_structural_similarity_refuses_what_is_below_its_window():
    with pytest.raises(ValueError, match="at least 11×11 pixels, got 12×10"):
        structural_similarity(torch.rand(3, 10, 12), torch.rand(3, 10, 12))


def test_mix_of_error_and_structure(images):
    sr, gt = images
    error = l1(sr, gt).item()
    structure = structural_similarity(sr, gt).item()
    assert l1_and_ssim(sr, gt, alpha=0.8).item() == pytest.approx(
        0.8 * error + 0.2 * (1 - structure)
    )
    assert l1_and_ssim(sr, gt, alpha=0.0).item() == pytest.approx(1 - structure)
    assert l1_and_ssim(sr, gt, alpha=1.0).item() == pytest.approx(error)


def test_distance_of_the_encoders():
    left, middle, right = (torch.full((1, 4, 2, 2), value) for value in (0.0, 1.0, 4.0))
    assert encoder_distance(left, middle, right, alpha=0.04).item() == pytest.approx(
        0.04 * 3 + 0.06 * 1
    )
    assert encoder_distance(left, middle, right, alpha=0.0).item() == pytest.approx(0.1 * 1)
