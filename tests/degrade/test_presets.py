from itertools import pairwise

import pytest
import torch

from helpers.recordings import recorded, recorded_input
from tubelet.degrade import PRESETS, degrade
from tubelet.degrade.blur import blur, gaussian_kernel, gaussian_taps
from tubelet.errors import ConfigError, ResourceError
from tubelet.evaluation.scene import draw_scene
from tubelet.metrics import psnr
from tubelet.ops import imresize
from tubelet.video.recode import recode


def _smooth_clip(frames: int = 6, height: int = 64, width: int = 96) -> torch.Tensor:
    """Smooth texture that drifts a pixel a frame."""
    torch.manual_seed(0)
    field = imresize(torch.rand(3, height // 8, width // 8), 8).clamp(0, 1)
    return torch.stack([field.roll(t, -1) for t in range(frames)])


@pytest.mark.parametrize("case", ["bd_degradation", "bd_degradation_mod"])
def test_bd_equals_its_recorded_variants(recordings, case):
    description, outputs = recorded(recordings, case)
    x = recorded_input(recordings, case, tuple(description["inputs"]["x"]))[None]
    variants = {
        "rsdn_rrn": blur(x, gaussian_taps(1.6, 13), stride=4),
        "tecogan_1.5": blur(x, gaussian_taps(1.5, 9), stride=4),
        "matlab_bd": blur(x, gaussian_taps(1.6, 12), stride=4, phase=1, edge="replicate"),
    }
    presets = {"rsdn_rrn": "bd", "tecogan_1.5": "bd-c", "matlab_bd": "bd-b"}
    for variant, expected in zip(description["variants"], outputs, strict=True):
        if variant["name"] in variants:
            torch.testing.assert_close(
                variants.pop(variant["name"])[0], expected, atol=1e-5, rtol=0
            )
            rounded = degrade(x, presets[variant["name"]])[0]
            assert (rounded - expected).abs().max() < 0.51 / 255
    assert not variants


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("scale", [2, 4])
def test_shape_range_and_replay(preset, scale):
    clip = _smooth_clip()
    lq = degrade(clip, preset, scale=scale, seed=3)
    assert lq.shape == (6, 3, 64 // scale, 96 // scale)
    torch.testing.assert_close((lq * 255).round() / 255, lq)
    assert torch.equal(lq, degrade(clip, preset, scale=scale, seed=3))
    min_psnr = 15 if preset == "second-order" else 25
    assert psnr(lq, imresize(clip, 1 / scale)).mean() > min_psnr  # still the same scene


def test_real_draws_differ_between_seeds_and_hold_for_the_clip():
    clip = _smooth_clip()
    results = [degrade(clip, "real", seed=seed) for seed in range(8)]
    assert all(not torch.equal(a, b) for a, b in pairwise(results))


def test_odd_sizes_pass_through_the_encoder():
    clip = _smooth_clip()[:, :, :, :90]
    for seed in range(12):
        assert degrade(clip, "real", seed=seed).shape == (6, 3, 16, 23)


@pytest.mark.parametrize("encoder", ["libx264", "libx265", "mpeg4"])
def test_recode_keeps_order_and_count(encoder):
    clip = torch.stack([torch.full((3, 32, 48), level / 20) for level in range(3, 13)])
    out = recode(clip, encoder, {})
    assert out.shape == clip.shape
    assert (out.mean((1, 2, 3)) - clip.mean((1, 2, 3))).abs().max() < 0.03


@pytest.fixture(scope="module")
def drawn() -> torch.Tensor:
    """The first frames of the drawn scene, a quarter as large."""
    return torch.stack([imresize(gt, 1 / 4).clamp(0, 1) for gt in draw_scene(6)])


@pytest.mark.parametrize("size", [(90, 160), (16, 24)])
@pytest.mark.parametrize("encoder", ["libx264", "libx265"])
def test_recode_replays_to_the_bit(encoder, size, drawn):
    scene = drawn[..., : size[0], : size[1]]
    clip = (
        scene + 0.05 * torch.randn(scene.shape, generator=torch.Generator().manual_seed(0))
    ).clamp(0, 1)
    first, *again = [recode(clip, encoder, {"crf": "24", "preset": "medium"}) for _ in range(8)]
    assert all(torch.equal(first, other) for other in again)


@pytest.mark.parametrize("encoder", ["libx264", "libx265", "mpeg4"])
def test_recode_takes_tiny_images(encoder):
    clip = _smooth_clip()[:, :, :15, :10]
    assert psnr(recode(clip, encoder, {}), clip).mean() > 20


def test_more_compression_loses_more():
    clip = _smooth_clip()
    fine, coarse = (recode(clip, "libx264", {"crf": crf}) for crf in ("10", "40"))
    assert psnr(fine, clip).mean() > psnr(coarse, clip).mean() + 3


def test_rotated_kernel_is_the_transposed_one():
    wide, tall = gaussian_kernel(2.0, 0.5, 0.0, 9), gaussian_kernel(2.0, 0.5, torch.pi / 2, 9)
    torch.testing.assert_close(wide.T, tall)
    assert wide.sum() == pytest.approx(1)
    assert wide[4, 0] > wide[0, 4]


def test_unknown_names_are_refused():
    with pytest.raises(ConfigError, match="known are bi, bi-u8"):
        degrade(_smooth_clip(), "bx")
    with pytest.raises(ResourceError, match="no encoder 'libx999'"):
        recode(_smooth_clip(), "libx999", {})
