import math
import sys

import pytest
import torch
from torch.nn import functional

from tubelet.errors import InputError, ResourceError
from tubelet.metrics import make_meter
from tubelet.metrics.temporal import occlusion_mask, warp

cv2 = pytest.importorskip("cv2", reason="OpenCV is in the extra [metrics]")
FRAMES = 5
HEIGHT = 48
WIDTH = 64


@pytest.fixture(scope="module")
def image() -> torch.Tensor:
    """A smooth random image, larger than the frames that are cut from it."""
    coarse = torch.rand(1, 3, 20, 24, generator=torch.Generator().manual_seed(0))
    return functional.interpolate(coarse, (HEIGHT + 16, WIDTH + 16), mode="bicubic")[0].clamp(
        0.1, 0.9
    )


def cut(image: torch.Tensor, step: int) -> torch.Tensor:
    """A clip whose camera moves `step` pixels a frame to the right."""
    return torch.stack(
        [image[:, 4 : 4 + HEIGHT, t * step : t * step + WIDTH] for t in range(FRAMES)]
    )


def noise(amount: float) -> torch.Tensor:
    return amount * torch.randn(
        FRAMES, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(1)
    )


def measure(name: str, sr: torch.Tensor, gt: torch.Tensor | None = None, border: int = 0) -> float:
    meter = make_meter(name, border=border)
    for t, frame in enumerate(sr):
        meter.update(frame, None if gt is None else gt[t])
    values = meter.values()
    assert len(values) == len(sr)
    assert math.isnan(values[0])
    return meter.mean()


def test_independent_noise_flickers_and_frozen_noise_does_not(image):
    still = cut(image, 0)
    assert measure("flicker", still + noise(0.03)[:1], still) == 0
    # The luma of independent R, G, B noise of σ, in levels of 255.
    expected = 0.03 * math.hypot(65.481, 128.553, 24.966)
    assert measure("flicker", still + noise(0.03), still) == pytest.approx(expected, rel=0.05)


def test_flicker_measures_only_static_regions(image):
    moving = cut(image, 2)
    still = cut(image, 0)
    assert math.isnan(measure("flicker", moving, moving))
    half = torch.cat([still[..., : WIDTH // 2], moving[..., WIDTH // 2 :]], -1)
    spoiled = half.clone()
    spoiled[..., WIDTH // 2 :] += noise(0.2)[..., WIDTH // 2 :]
    # In levels: only the few pixels at the border between the halves.
    assert measure("flicker", spoiled, half) < 1.5
    # The reference is static: wrong motion counts.
    assert measure("flicker", half, still, border=WIDTH // 2 - 8 if HEIGHT > WIDTH else 0) > 1


def test_a_shift_by_one_pixel_has_hardly_any_warping_error(image):
    shifted = cut(image, 1)
    unaligned = (shifted[1:] - shifted[:-1]).square().sum(1).mean().item()
    assert measure("warp-error", shifted, shifted) < 0.01 * unaligned
    # Without a reference, the flow is that of the clip itself.
    assert measure("warp-error", shifted) < 0.01 * unaligned
    assert measure("warp-error", cut(image, 0), cut(image, 0)) == pytest.approx(0, abs=1e-9)


def test_warping_error_is_the_squared_color_difference(image):
    still = cut(image, 0)
    jumping = still + torch.tensor([0.0, 26 / 255, 0, 26 / 255, 0])[:, None, None, None]
    levels = ((jumping * 255).round() - (still * 255).round()).unique()
    assert levels.max() == 26
    assert measure("warp-error", jumping.clamp(0, 1), still, border=3) == pytest.approx(
        3 * (26 / 255) ** 2, rel=0.03
    )


def test_hidden_pixels_and_edges_of_motion_do_not_count():
    forward = torch.zeros(2, 20, 30)
    forward[0] = 3
    backward = -forward
    visible = occlusion_mask(forward, backward)
    assert visible[:, :27].all()
    # They leave the image.
    assert not visible[:, 27:].any()
    # These pixels of the next frame came from elsewhere.
    backward[0, 5:8, 5:8] = 0
    assert (occlusion_mask(forward, backward) != visible).nonzero().tolist() == [
        [y, x] for y in (5, 6, 7) for x in (5, 6, 7)
    ]
    forward[:, 10:] = 0
    edge = occlusion_mask(forward, -forward)
    assert not edge[9, :].any()
    assert edge[8, :27].all()
    assert edge[10:, :].all()


def test_warp_samples_where_flow_points():
    x = torch.arange(12.0).reshape(1, 3, 4)
    flow = torch.stack([torch.full((3, 4), 1.0), torch.zeros(3, 4)])
    assert torch.allclose(warp(x, flow)[0, 0], torch.tensor([1.0, 2, 3, 3]))
    assert torch.allclose(warp(x, flow.flip(0) / 2)[0, :, 0], torch.tensor([2.0, 6, 8]))


def test_tof_is_the_length_of_the_difference_of_motion(image):
    assert measure("tof", cut(image, 1), cut(image, 1)) == 0
    assert measure("tof", cut(image, 0), cut(image, 1), border=8) == pytest.approx(1, abs=0.15)
    assert measure("tof", cut(image, 1), cut(image, 2), border=8) == pytest.approx(1, abs=0.25)


def test_a_border_of_tof_does_not_count(image):
    still = cut(image, 0)
    torn = still.clone()
    torn[1::2, :, :4] = 0.5
    assert measure("tof", torn, still, border=20) < 0.2 * measure("tof", torn, still)


def test_missing_references_and_small_frames_are_one_line(image):
    for name in ("tof", "flicker"):
        with pytest.raises(InputError, match=f"{name}, frame 0 has no reference"):
            make_meter(name).update(image, None)
    with pytest.raises(InputError, match="warp-error: frames of 12×12 are too small"):
        make_meter("warp-error").update(image[:, :12, :12], None)
    meter = make_meter("warp-error")
    meter.update(image, image)
    with pytest.raises(InputError, match="frame 1 has no reference"):
        meter.update(image, None)


def test_without_opencv_one_line_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    for name in ("tof", "warp-error"):
        with pytest.raises(
            ResourceError, match=rf"{name} needs OpenCV .* pip install 'tubelet\[metrics\]'"
        ):
            make_meter(name)
    # It needs no flow.
    make_meter("flicker")
