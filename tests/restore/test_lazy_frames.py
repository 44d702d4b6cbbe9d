from fractions import Fraction

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tubelet.models import fast
from tubelet.models.architecture import Contract
from tubelet.restore.engine import Engine
from tubelet.restore.settings import UpscaleSettings
from tubelet.types import Frame, LazyFrame, Temporal
from tubelet.video.color import resolve_matrix, rgb_to_frame, rows_to_frame
from tubelet.video.info import ColorTags
from tubelet.zoo.catalog import find_model


def _frames(count: int, height: int = 45, width: int = 70) -> list[Frame]:
    torch.manual_seed(0)
    return [Frame(torch.rand(3, height, width), t, Fraction(1, 25), index=t) for t in range(count)]


def _engine(**settings: object) -> tuple[Engine, nn.Module]:
    spec = find_model("fast-x4-real")
    network = spec.build()
    options = UpscaleSettings(device="cpu", precision="fp32", **settings)  # pyright: ignore[reportArgumentType]
    return Engine(spec, network, options), network


@pytest.mark.parametrize("tile", [0, 32])
def test_a_frame_is_the_sum_of_the_enlarged_frame_and_the_detail(tile: int) -> None:
    engine, network = _engine(tile=tile)
    frames = _frames(3)
    restored = list(engine.restore(iter(frames), starts_scene=lambda _: False))
    with torch.no_grad():
        lq = torch.stack([frame.rgb for frame in frames])[None]
        expected = network(lq)[0]
    for frame, sr in zip(restored, expected, strict=True):
        assert isinstance(frame, LazyFrame)
        assert frame.size == (180, 280)
        torch.testing.assert_close(frame.rgb, sr, rtol=0, atol=2e-5)
        torch.testing.assert_close(frame.rows(50, 170), sr[:, 50:170], rtol=0, atol=2e-5)
    assert [frame.pts for frame in restored] == [0, 1, 2]


def test_another_output_size_is_resampled_from_the_sum() -> None:
    engine, _ = _engine(height=100)
    (frame,) = engine.restore(iter(_frames(1)), starts_scene=lambda _: False)
    assert not isinstance(frame, LazyFrame)
    assert frame.rgb.shape[1] == 100


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv444p10le", "rgb24"])
def test_strips_give_the_codes_of_the_whole_image(pix_fmt: str) -> None:
    engine, _ = _engine()
    (frame,) = engine.restore(iter(_frames(1, 90, 320)), starts_scene=lambda _: False)
    color = resolve_matrix(ColorTags(), 1280, 360)
    whole = rgb_to_frame(frame.rgb, None, pix_fmt=pix_fmt, color=color)
    strips = rows_to_frame(frame.rows, frame.size, None, pix_fmt=pix_fmt, color=color)
    for plane, expected in zip(strips.planes, whole.planes, strict=True):
        ours = torch.frombuffer(bytearray(plane), dtype=torch.uint8).int()
        theirs = torch.frombuffer(bytearray(expected), dtype=torch.uint8).int()
        # Products of other sizes are rounded differently, which the dither can turn into a code.
        assert ((ours - theirs).abs() > 0).float().mean() < 1e-4


def test_step_is_the_sum() -> None:
    torch.manual_seed(0)
    network = fast.FastVSR(fast.FastConfig(channels=8, num_blocks=1, output="rgb"))
    lq = torch.rand(1, 2, 3, 12, 14)
    detail, _ = network.step_detail(lq, None)
    sr, _ = network.step(lq, None)
    skip = functional.interpolate(lq[:, 0], scale_factor=4.0, mode="bilinear")
    assert detail.abs().max() > 1e-3
    torch.testing.assert_close(sr, skip + detail, rtol=0, atol=1e-6)


def test_only_online_networks_with_a_detail_have_a_skip() -> None:
    with pytest.raises(ValueError, match="for 'online' models"):
        Contract(scale=4, temporal=Temporal("frame"), skip="bilinear")

    class WithoutDetail(nn.Module):
        def step(self, lq: Tensor, hidden: object) -> tuple[Tensor, object]:
            return lq[:, 0], hidden

    spec = find_model("fast-x4-real")
    with pytest.raises(Exception, match="no method step_detail"):
        Engine(spec, WithoutDetail(), UpscaleSettings(device="cpu"))
