import pytest
import torch

from tubelet.ops.resize import imresize, resample
from tubelet.zoo.baselines import BASELINES, Resample


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_bicubic_is_imresize(scale):
    lq = torch.rand(2, 3, 3, 37, 45)
    torch.testing.assert_close(Resample(scale)(lq), imresize(lq, scale), rtol=0, atol=1e-6)


def test_lanczos_keeps_fine_detail_better_than_bicubic():
    # A period of three pixels.
    wave = torch.sin(torch.arange(64) * 2 * torch.pi / 3).expand(1, 1, 3, 8, 64)
    truth = torch.sin((torch.arange(256) + 0.5 - 2) / 4 * 2 * torch.pi / 3)
    bicubic, lanczos = (
        Resample(4, kernel=kernel)(wave)[0, 0, 0, 16] for kernel in ("bicubic", "lanczos3")
    )
    error_bicubic, error_lanczos = ((sr - truth)[20:-20].abs().max() for sr in (bicubic, lanczos))
    assert 0.01 < error_lanczos < 0.7 * error_bicubic


@pytest.mark.parametrize("spec", BASELINES, ids=lambda spec: spec.id)
def test_output_pixels_see_no_further_than_the_halo(spec):
    lq = torch.zeros(1, 1, 3, 33, 33)
    lq[..., 16, 16] = 1
    touched = spec.build()(lq)[0, 0, 0].abs().sum(0).gt(1e-7).nonzero().flatten()
    assert touched.min() >= (16 - spec.contract.halo_px) * spec.scale
    assert touched.max() < (17 + spec.contract.halo_px) * spec.scale


def test_frames_in_channels_last_order_give_the_same():
    lq = torch.rand(1, 2, 3, 20, 30)
    reordered = lq.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
    assert torch.equal(Resample(4)(lq), Resample(4)(reordered))
    torch.testing.assert_close(resample(lq, (80, 120)), Resample(4)(reordered))
