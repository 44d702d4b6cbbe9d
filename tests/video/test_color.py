import subprocess

import av
import numpy as np
import pytest
import torch

from helpers.videos import FFMPEG, needs_ffmpeg
from tubelet.errors import RequestError
from tubelet.video.chroma import downsample_chroma, upsample_chroma
from tubelet.video.color import frame_to_rgb, resolve_matrix, rgb_to_frame
from tubelet.video.info import ColorTags
from tubelet.video.layout import component_views, layout_of

BT709, BT601, BT2020 = ColorTags(matrix=1), ColorTags(matrix=6), ColorTags(matrix=9)
PLANAR = ["yuv420p", "yuv422p", "yuv444p", "yuv440p", "yuv411p", "yuv410p"]
PLANAR += ["yuv420p10le", "yuv422p12le", "yuv444p16le", "yuv420p10be", "yuva420p"]
OTHERS = [
    "nv12",
    "nv21",
    "nv16",
    "p010le",
    "p016le",
    "yuyv422",
    "uyvy422",
    "gray",
    "gray10le",
    "ya8",
    "ya16le",
]
OTHERS += ["gbrp", "gbrp12le", "rgb24", "bgr24", "rgba", "bgra", "argb", "rgb48le", "rgba64be"]
EXOTIC = ["pal8", "rgb565le", "rgb8", "y210le", "vuya", "gbrpf32le", "monob", "xv30le"]
FFMPEG_MATRICES = [(1, "bt709"), (6, "smpte170m"), (9, "bt2020"), (4, "fcc"), (7, "smpte240m")]


def frame_of(pix_fmt, values, size=(64, 48)):
    """Create a frame with these values in its components; a number fills one."""
    frame = av.VideoFrame(*size, pix_fmt)
    layout = layout_of(pix_fmt)
    for view, value in zip(component_views(frame, layout), values, strict=True):
        view[:] = value
    return frame


def codes_of(frame):
    return [view.astype(int) for view in component_views(frame, layout_of(frame.format.name))]


def in_gamut_frame(pix_fmt, size, seed=0):
    """Create a frame of random codes that any matrix and interpolation maps to [0, 1]."""
    layout = layout_of(pix_fmt)
    rng = np.random.default_rng(seed)
    unit = 1 << (layout.bits - 8)
    frame = av.VideoFrame(*size, pix_fmt)
    for number, view in enumerate(component_views(frame, layout)):
        is_chroma = layout.kind == "yuv" and number in (1, 2)
        low, high = (118, 139) if is_chroma else (90, 170)
        view[:] = rng.integers(low * unit, high * unit, view.shape) << layout.padding_bits
    return frame


# White, black and the primaries in BT.601, BT.709 and BT.2020, at 8 bit and limited range.
CODES = [
    (BT709, (235, 128, 128), (1, 1, 1)),
    (BT709, (16, 128, 128), (0, 0, 0)),
    (BT709, (63, 102, 240), (1, 0, 0)),
    (BT709, (173, 42, 26), (0, 1, 0)),
    (BT709, (32, 240, 118), (0, 0, 1)),
    (BT601, (81, 90, 240), (1, 0, 0)),
    (BT601, (145, 54, 34), (0, 1, 0)),
    (BT601, (41, 240, 110), (0, 0, 1)),
    (BT2020, (74, 97, 240), (1, 0, 0)),
    (ColorTags(matrix=4), (82, 90, 240), (1, 0, 0)),
    (ColorTags(matrix=7), (62, 102, 240), (1, 0, 0)),
    (ColorTags(matrix=8), (71, 72, 240), (1, 0, 0)),
    (ColorTags(matrix=8), (126, 240, 128), (0, 1, 0)),
]


@pytest.mark.parametrize(("color", "codes", "rgb"), CODES)
def test_matrices_agree_with_the_standards(color, codes, rgb):
    got, _ = frame_to_rgb(frame_of("yuv444p", codes), color)
    assert got[:, 5, 5].tolist() == pytest.approx(rgb, abs=0.006)
    solid = torch.tensor(rgb, dtype=torch.float32)[:, None, None].expand(3, 48, 64)
    back = codes_of(rgb_to_frame(solid, None, pix_fmt="yuv444p", color=color))
    assert [plane.mean() for plane in back] == pytest.approx(codes, abs=0.7)


def test_full_range():
    full = ColorTags(matrix=1, full_range=True)
    got, _ = frame_to_rgb(frame_of("yuv444p", (255, 128, 128)), full)
    assert torch.allclose(got, torch.ones(3, 48, 64))
    assert torch.allclose(frame_to_rgb(frame_of("yuvj444p", (255, 128, 128)), BT709)[0], got)
    dark, _ = frame_to_rgb(frame_of("yuv444p", (51, 128, 128)), full)
    assert dark[0, 0, 0] == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("pix_fmt", "white"), [("yuv444p10le", 940), ("yuv444p12le", 3760), ("yuv444p16le", 60160)]
)
def test_depths(pix_fmt, white):
    middle = 1 << (layout_of(pix_fmt).bits - 1)
    got, _ = frame_to_rgb(frame_of(pix_fmt, (white, middle, middle)), BT709)
    assert got.min() == pytest.approx(1, abs=1e-6)


def test_gray_is_full_range_unless_tagged():
    untagged, _ = frame_to_rgb(frame_of("gray", [51]), ColorTags())
    assert untagged.max() == pytest.approx(0.2)
    limited, _ = frame_to_rgb(frame_of("gray", [235]), ColorTags(full_range=False))
    assert limited.min() == pytest.approx(1)


def test_untagged_matrix_follows_the_size():
    assert resolve_matrix(ColorTags(), 1279, 719).matrix == 6
    assert resolve_matrix(ColorTags(), 1280, 10).matrix == 1
    assert resolve_matrix(ColorTags(), 10, 720).matrix == 1
    assert resolve_matrix(ColorTags(matrix=0), 10, 10).matrix == 6
    assert resolve_matrix(BT2020, 10, 10).matrix == 9


def test_out_of_gamut_is_clipped_or_kept():
    frame = frame_of("yuv444p", (40, 16, 240))
    clipped, _ = frame_to_rgb(frame, BT601)
    kept, _ = frame_to_rgb(frame, BT601, gamut="keep")
    assert clipped.min() == 0
    assert kept.min() < -0.5
    assert torch.equal(kept.clamp(0, 1), clipped)


def test_values_without_a_code_are_clamped():
    wild = torch.tensor([9.0, -9.0, 9.0])[:, None, None].expand(3, 48, 64)
    for pix_fmt, top in (("yuv444p", 255), ("gbrp10le", 1023), ("yuv420p16le", 65535)):
        planes = codes_of(rgb_to_frame(wild, None, pix_fmt=pix_fmt, color=BT709))
        assert max(plane.max() for plane in planes) == top
        assert min(plane.min() for plane in planes) == 0


@pytest.mark.parametrize("pix_fmt", PLANAR + OTHERS)
@pytest.mark.parametrize("siting", [0, 2, 3])
def test_with_the_gamut_kept_any_code_comes_back(pix_fmt, siting):
    layout = layout_of(pix_fmt)
    frame = av.VideoFrame(51, 37, pix_fmt)
    rng = np.random.default_rng(0)
    for view in component_views(frame, layout):
        view[:] = rng.integers(0, layout.max_code + 1, view.shape) << layout.padding_bits
    for color in (ColorTags(1, siting=siting), ColorTags(9, full_range=True, siting=siting)):
        rgb, alpha = frame_to_rgb(frame, color, gamut="keep")
        back = rgb_to_frame(rgb, alpha, pix_fmt=pix_fmt, color=color)
        for before, after in zip(codes_of(frame), codes_of(back), strict=True):
            assert np.array_equal(before, after)


@pytest.mark.parametrize("pix_fmt", PLANAR + OTHERS)
@pytest.mark.parametrize("size", [(64, 48), (51, 37), (2, 3), (1, 1)])
def test_round_trip_gives_back_every_code(pix_fmt, size):
    frame = in_gamut_frame(pix_fmt, size)
    for siting in range(7):
        for matrix in (1, 6, 8, 9):
            for full_range in (False, True):
                color = ColorTags(matrix=matrix, full_range=full_range, siting=siting)
                rgb, alpha = frame_to_rgb(frame, color)
                back = rgb_to_frame(rgb, alpha, pix_fmt=pix_fmt, color=color)
                for before, after in zip(codes_of(frame), codes_of(back), strict=True):
                    assert np.array_equal(before, after), (siting, matrix, full_range)


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv420p10le", "yuv444p"])
def test_round_trip_of_all_legal_luma(pix_fmt):
    layout = layout_of(pix_fmt)
    unit = 1 << (layout.bits - 8)
    ramp = np.resize(np.arange(16 * unit, 235 * unit + 1), (48, 64))
    frame = frame_of(pix_fmt, (ramp, 128 * unit, 128 * unit))
    rgb, _ = frame_to_rgb(frame, BT709)
    assert np.array_equal(codes_of(rgb_to_frame(rgb, None, pix_fmt=pix_fmt, color=BT709))[0], ramp)


@pytest.mark.parametrize("location", [0, 1, 2, 3, 4])
def test_siting_places_chroma_where_the_standard_says(location):
    """A linear ramp of chroma, sampled at the sited positions, becomes a ramp at every pixel."""
    # From the even luma sample to the chroma sample, in luma pixels.
    shift_x = 0.5 if location in (2, 4) else 0.0
    shift_y = 0.0 if location in (3, 4) else 0.5
    x, y = np.arange(32) * 2 + shift_x, np.arange(24) * 2 + shift_y
    ramp = 60 + x[None] * 1.0 + y[:, None] * 0.75
    out = torch.empty(1, 48, 64)
    sitings = ("center" if shift_x else "cosited", "center" if shift_y else "cosited")
    upsample_chroma(
        torch.tensor(ramp, dtype=torch.float32)[None], out, shifts=(1, 1), sitings=sitings
    )
    expected = 60 + np.arange(64)[None] * 1.0 + np.arange(48)[:, None] * 0.75
    assert np.allclose(out[0, 2:-2, 2:-2], expected[2:-2, 2:-2], atol=1e-3)
    assert np.allclose(downsample_chroma(out, shifts=(1, 1), sitings=sitings)[0], ramp, atol=1e-3)
    frame = frame_of("yuv420p", (128, np.round(ramp), 128))
    blue = frame_to_rgb(frame, ColorTags(matrix=1, siting=location))[0][2]
    other = frame_to_rgb(frame, ColorTags(matrix=1, siting=2 if location != 2 else 1))[0][2]
    assert not torch.allclose(blue, other)


def test_downsampling_does_not_alias():
    """Stripes of one pixel become gray at half the resolution, not a color."""
    stripes = torch.zeros(2, 48, 64)
    stripes[..., ::2] = 1
    for siting in ("cosited", "center"):
        low = downsample_chroma(stripes, shifts=(1, 0), sitings=(siting, "center"))
        assert torch.allclose(low[..., 2:-2], torch.full_like(low[..., 2:-2], 0.5))


def test_dither_is_the_same_in_every_frame_and_exact_on_average():
    level = 100.3 / 219  # between two codes
    rgb = torch.full((3, 48, 64), level)
    first = codes_of(rgb_to_frame(rgb, None, pix_fmt="yuv420p", color=BT709))[0]
    second = codes_of(rgb_to_frame(rgb, None, pix_fmt="yuv420p", color=BT709))[0]
    assert np.array_equal(first, second)
    assert set(np.unique(first)) == {116, 117}
    assert first.mean() == pytest.approx(116.3, abs=1 / 64)


@pytest.mark.parametrize(
    "pix_fmt", ["yuv444p", "yuv444p10le", "yuv444p12le", "rgb24", "gbrp10le", "gray"]
)
def test_dither_leaves_whole_codes_alone(pix_fmt):
    layout = layout_of(pix_fmt)
    full = ColorTags(matrix=1, full_range=True)
    for code in (0, 1, 77, 128, layout.max_code - 1, layout.max_code):
        rgb = torch.full((3, 16, 16), code / layout.max_code)
        assert (codes_of(rgb_to_frame(rgb, None, pix_fmt=pix_fmt, color=full))[0] == code).all()


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv410p", "yuv444p10le", "gbrp", "gray"])
@pytest.mark.parametrize("siting", [1, 2, 3])
def test_strips_do_not_show(monkeypatch, pix_fmt, siting):
    rgb = torch.rand(3, 117, 53, generator=torch.Generator().manual_seed(0))
    color = ColorTags(matrix=1, siting=siting)
    whole = codes_of(rgb_to_frame(rgb, None, pix_fmt=pix_fmt, color=color))
    monkeypatch.setattr("tubelet.video.color.STRIP_PX", 1)
    strips = codes_of(rgb_to_frame(rgb, None, pix_fmt=pix_fmt, color=color))
    for one, other in zip(whole, strips, strict=True):
        assert np.abs(one - other).max() <= 1  # sums may be rounded in another order
        assert (one != other).mean() < 1e-3


def test_alpha_goes_both_ways():
    alpha = torch.linspace(0, 1, 256).repeat(16, 1)[None]
    rgb = torch.rand(3, 16, 256)
    for pix_fmt in ("rgba", "yuva420p", "gbrap"):
        got = frame_to_rgb(rgb_to_frame(rgb, alpha, pix_fmt=pix_fmt, color=BT709), BT709)[1]
        assert torch.allclose(got, alpha, atol=1e-5)
    opaque = frame_to_rgb(rgb_to_frame(rgb, None, pix_fmt="rgba", color=BT709), BT709)[1]
    assert (opaque == 1).all()


def test_tags_are_set_on_the_frame():
    tags = ColorTags(matrix=9, primaries=9, transfer=16, full_range=False, siting=1)
    frame = rgb_to_frame(torch.rand(3, 4, 4), None, pix_fmt="yuv420p10le", color=tags)
    assert frame.colorspace == 9
    assert frame.color_primaries == 9
    assert frame.color_trc == 16
    assert frame.color_range == 1
    assert rgb_to_frame(torch.rand(3, 4, 4), None, pix_fmt="rgb24", color=tags).colorspace == 0


def test_formats_that_cannot_be_written_are_refused():
    with pytest.raises(RequestError, match="monow"):
        rgb_to_frame(torch.rand(3, 4, 4), None, pix_fmt="monow", color=BT709)


@pytest.mark.parametrize("pix_fmt", EXOTIC)
def test_exotic_formats_are_read(pix_fmt):
    y, x = np.mgrid[0:48, 0:64]
    rgb24 = np.stack([x * 4, y * 5, 255 - x * 4], -1).astype(np.uint8)
    source = av.VideoFrame.from_ndarray(rgb24, format="rgb24")
    try:
        frame = source.reformat(format="rgb8" if pix_fmt == "pal8" else pix_fmt, dst_colorspace=1)
    except (av.FFmpegError, ValueError) as error:
        pytest.skip(f"libswscale cannot make {pix_fmt}: {error}")
    rgb, _ = frame_to_rgb(frame, BT709)
    assert rgb.shape == (3, 48, 64)
    if pix_fmt not in ("monob", "pal8", "rgb8"):
        assert np.abs(rgb.permute(1, 2, 0).numpy() - rgb24 / 255).mean() < 0.03


@needs_ffmpeg
@pytest.mark.parametrize(("matrix", "name"), FFMPEG_MATRICES)
@pytest.mark.parametrize("range_name", ["tv", "pc"])
def test_ffmpeg_converts_the_same(matrix, name, range_name):
    """RGB of 8-bit 4:4:4 against libswscale's precise path: within one code, 66 % identical."""
    frame = in_gamut_frame("yuv444p", (64, 48))
    raw = b"".join(plane.astype(np.uint8).tobytes() for plane in codes_of(frame))
    flags = "accurate_rnd+full_chroma_int+bitexact"
    scale = f"scale=in_color_matrix={name}:in_range={range_name}:flags={flags}"
    source = "-f rawvideo -pix_fmt yuv444p -s 64x48 -i -"
    target = f"-vf {scale} -pix_fmt rgb24 -f rawvideo -"
    command = [FFMPEG, *f"-v error {source} {target}".split()]
    result = subprocess.run(command, input=raw, capture_output=True, check=True).stdout
    reference = np.frombuffer(result, np.uint8).reshape(48, 64, 3).astype(int)
    rgb, _ = frame_to_rgb(frame, ColorTags(matrix=matrix, full_range=range_name == "pc"))
    ours = np.round(rgb.permute(1, 2, 0).numpy() * 255).astype(int)
    assert np.abs(ours - reference).max() <= 1
    assert (ours == reference).mean() > 0.66
