import pytest
import torch

from tubelet.losses import LOSSES, charbonnier, end_point_error, l1, luma, mse


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


def test_luma_of_primaries_and_of_grey():
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
