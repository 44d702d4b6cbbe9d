import copy
import pickle
from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from av.video.frame import VideoFrame
from torch import Tensor, nn
from torch.nn import functional

from tubelet.models import fast
from tubelet.models.architecture import Contract
from tubelet.restore.engine import Engine
from tubelet.restore.settings import UpscaleSettings
from tubelet.types import Frame, Temporal
from tubelet.video.color import resolve_matrix, rgb_to_frame, to_video_frame
from tubelet.video.enlarged import EnlargedFrame
from tubelet.video.info import ColorTags
from tubelet.video.layout import component_views, layout_of
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
        assert isinstance(frame, EnlargedFrame)
        assert frame.size == (180, 280)
        torch.testing.assert_close(frame.rgb, sr, rtol=0, atol=2e-5)
        torch.testing.assert_close(frame.rows(50, 170), sr[:, 50:170], rtol=0, atol=2e-5)
    assert [frame.pts for frame in restored] == [0, 1, 2]


def test_another_output_size_is_resampled_from_the_sum() -> None:
    engine, _ = _engine(height=100)
    (frame,) = engine.restore(iter(_frames(1)), starts_scene=lambda _: False)
    assert not isinstance(frame, EnlargedFrame)
    assert frame.rgb.shape[1] == 100


def _codes(frame: VideoFrame, pix_fmt: str) -> list[Tensor]:
    layout = layout_of(pix_fmt)
    assert layout is not None
    return [torch.from_numpy(view.astype("int32")) for view in component_views(frame, layout)]


# Locations of chroma samples (AVCHROMA_LOC_*): left, center, topleft.
@pytest.mark.parametrize("siting", [1, 2, 3])
@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv411p", "yuv444p10le", "gray", "rgb24"])
@pytest.mark.parametrize("model", ["fast-x4-real", "bicubic-x3"])
def test_strips_give_the_codes_of_the_whole_image(model: str, pix_fmt: str, siting: int) -> None:
    spec = find_model(model)
    engine = Engine(spec, spec.build(), UpscaleSettings(device="cpu", precision="fp32"))
    # Odd sizes: the last chroma sample has no partner. Wide enough for several strips.
    (source,) = _frames(1, 131, 683)
    (frame,) = engine.restore(iter([source]), starts_scene=lambda _: False)
    assert isinstance(frame, EnlargedFrame)
    height, width = frame.size
    color = resolve_matrix(ColorTags(siting=siting), width, height)
    expected = rgb_to_frame(frame.rgb, None, pix_fmt=pix_fmt, color=color)
    strips = to_video_frame(frame, pix_fmt=pix_fmt, color=color)
    pairs = zip(_codes(strips, pix_fmt), _codes(expected, pix_fmt), strict=True)
    for ours, theirs in pairs:
        # Sums in another order are rounded differently, which the dither can turn into a code.
        assert (ours - theirs).abs().max() <= 1
        assert ((ours - theirs).abs() > 0).float().mean() < 1e-4


def test_a_changed_copy_is_a_plain_frame() -> None:
    engine, _ = _engine()
    (frame,) = engine.restore(iter(_frames(1)), starts_scene=lambda _: False)
    image = torch.zeros(3, 180, 280)
    changed = replace(frame, rgb=image)
    assert type(changed) is Frame
    assert changed.rgb is image
    later = replace(frame, pts=7)
    assert (later.pts, later.index, later.time_base) == (7, frame.index, frame.time_base)
    assert torch.equal(later.rgb, frame.rgb)


def test_copies_have_the_image() -> None:
    engine, _ = _engine()
    (frame,) = engine.restore(iter(_frames(1)), starts_scene=lambda _: False)
    for twin in (copy.deepcopy(frame), pickle.loads(pickle.dumps(frame))):
        assert type(twin) is Frame
        assert torch.equal(twin.rgb, frame.rgb)
        assert twin.pts == frame.pts


def test_rows_are_computed_in_the_format_of_their_plan() -> None:
    engine, _ = _engine()
    (frame,) = engine.restore(iter(_frames(1)), starts_scene=lambda _: False)
    expected = frame.rgb
    engine.follow(replace(engine.current_plan, precision="bf16"))
    list(engine.restore(iter(_frames(1)), plan=engine.current_plan))
    assert torch.equal(frame.rgb, expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_frames_in_another_format_are_interpolated(dtype: torch.dtype) -> None:
    spec = find_model("bicubic-x2")
    engine = Engine(spec, spec.build(), UpscaleSettings(device="cpu"))
    image = torch.full((3, 20, 30), 0.5, dtype=dtype)
    (frame,) = engine.restore([Frame(image, 0, Fraction(1, 25))])
    color = resolve_matrix(ColorTags(), 60, 40)
    luma, *_ = _codes(to_video_frame(frame, pix_fmt="yuv444p", color=color), "yuv444p")
    assert (luma == 126).logical_or(luma == 125).all()


def test_three_channels_of_detail_are_converted_like_an_image() -> None:
    torch.manual_seed(0)
    (source,) = _frames(1, 32, 40)
    detail = torch.rand(3, 64, 80) - 0.5
    frame = EnlargedFrame(
        source,
        (64, 80),
        "bilinear",
        detail_rows=lambda start, stop: detail[:, start:stop],
        detail_channels=3,
    )
    color = resolve_matrix(ColorTags(), 80, 64)
    expected = rgb_to_frame(frame.rgb, None, pix_fmt="yuv420p", color=color)
    strips = to_video_frame(frame, pix_fmt="yuv420p", color=color)
    for ours, theirs in zip(_codes(strips, "yuv420p"), _codes(expected, "yuv420p"), strict=True):
        assert torch.equal(ours, theirs)


def test_step_is_the_sum() -> None:
    torch.manual_seed(0)
    network = fast.FastVSR(fast.FastConfig(channels=8, num_blocks=1, output="rgb"))
    lq = torch.rand(1, 2, 3, 12, 14)
    features, _ = network.step_features(lq, None)
    detail = network.detail(features)
    sr, _ = network.step(lq, None)
    skip = functional.interpolate(lq[:, 0], scale_factor=4.0, mode="bilinear")
    assert detail.abs().max() > 1e-3
    torch.testing.assert_close(sr, skip + detail, rtol=0, atol=1e-6)


def test_a_skip_is_for_interpolation_and_for_online_networks_with_a_detail() -> None:
    Contract(scale=4, temporal=Temporal("frame"), skip="bilinear")
    with pytest.raises(ValueError, match="for 'online' models"):
        Contract(scale=4, temporal=Temporal("window", radius=1), skip="bilinear")

    class WithoutDetail(nn.Module):
        def step(self, lq: Tensor, hidden: object) -> tuple[Tensor, object]:
            return lq[:, 0], hidden

    spec = find_model("fast-x4-real")
    with pytest.raises(Exception, match="no method step_features"):
        Engine(spec, WithoutDetail(), UpscaleSettings(device="cpu"))
