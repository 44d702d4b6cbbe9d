"""Convert decoded frames to R'G'B' float in [0, 1] and back, as their color tags specify.

Matrix: by the tag. If it is absent, or RGB for a format that is not RGB: BT.709 from 1280 pixels of
width or 720 of height, otherwise BT.601. Matrices without a linear form (constant luminance, ICtCp,
...) are replaced by BT.2020 non-constant luminance in both directions: the input of the model is
then approximate, and the output is coded as the source was.

Range: by the tag. If it is absent, YCbCr is limited (yuvj* full) and gray is full. RGB is always
full, as in FFmpeg.

Codes of colors outside R'G'B' [0, 1] (footroom, headroom, saturated chroma at the wrong luma) are
common in compressed video. `gamut="clip"` clamps them, which also moves the chroma of pixels that
share a sample with one. `gamut="keep"` leaves them slightly outside [0, 1], and then *every* code
is restored exactly: the filters of `chroma` are exact inverses, and the dither leaves whole numbers
unchanged. Writing clamps to the range of codes.

Dither: ordered (Bayer 8x8), the same in every frame, less than one code value. 16-bit output is
rounded.
"""

from __future__ import annotations

import dataclasses
from fractions import Fraction
from functools import lru_cache
from typing import Any, Literal, NewType

import av
import numpy as np
import torch
from av.video.frame import VideoFrame
from numpy.typing import NDArray
from torch import Tensor

from tubelet.errors import RequestError
from tubelet.types import Frame
from tubelet.video.chroma import Subsampling, downsample_chroma, sitings_of, upsample_chroma
from tubelet.video.enlarged import EnlargedFrame, YccRows
from tubelet.video.info import ColorTags
from tubelet.video.layout import PixelLayout, component_views, layout_of, to_viewable

__all__ = [
    "STRIP_PX",
    "Gamut",
    "ResolvedColor",
    "frame_to_rgb",
    "resolve_matrix",
    "rgb_to_frame",
    "to_video_frame",
]

Gamut = Literal["clip", "keep"]
ResolvedColor = NewType("ResolvedColor", ColorTags)
"""Color tags with a definite matrix, as `resolve_matrix` returns them."""

# Luma weights of red and blue by AVCOL_SPC_*. Source: ITU-T H.273, table 4.
_LUMA_WEIGHTS = {
    1: (0.2126, 0.0722),
    4: (0.30, 0.11),
    5: (0.299, 0.114),
    6: (0.299, 0.114),
    7: (0.212, 0.087),
    9: (0.2627, 0.0593),
}
# AVCOL_SPC_*.
_RGB = 0
_BT709 = 1
_UNSPECIFIED = 2
_RESERVED = 3
_SMPTE170M = 6
_YCGCO = 8
_BT2020 = 9
_UNRESOLVED = (_RGB, _UNSPECIFIED, _RESERVED)
_HD_WIDTH = 1280
_HD_HEIGHT = 720
STRIP_PX = 1 << 18
"""Pixels of a strip: one float plane of it is 1 MiB."""
# Rows: complete dither cells even in chroma that is subsampled by four.
_STRIP_STEP = 32
_DITHER_CELL = 8
# Above the largest dither threshold, 127/128.
_DITHER_MARGIN = 0.99


def resolve_matrix(color: ColorTags, width: int, height: int) -> ResolvedColor:
    """Replace an absent matrix by the usual one for the size of the *source*.

    Args:
        color: Color tags of the source.
        width: Width of the source, pixels.
        height: Height of the source, pixels.

    Returns:
        Tags for `frame_to_rgb` and `rgb_to_frame`. Headers are written with the tags of the source.
    """
    if color.matrix not in _UNRESOLVED:
        return ResolvedColor(color)
    is_hd = width >= _HD_WIDTH or height >= _HD_HEIGHT
    matrix = _BT709 if is_hd else _SMPTE170M
    return ResolvedColor(dataclasses.replace(color, matrix=matrix))


def frame_to_rgb(
    frame: VideoFrame, color: ResolvedColor, *, gamut: Gamut = "clip"
) -> tuple[Tensor, Tensor | None]:
    """Convert a decoded frame to R'G'B'.

    Args:
        frame: Frame of any software pixel format.
        color: Color tags, resolved for the size of the source.
        gamut: "clip" clamps rgb to [0, 1]; "keep" leaves values outside, so that nothing is lost.

    Returns:
        rgb (3, H, W) and alpha (1, H, W) or None, float32 in [0, 1].
    """
    frame, layout = to_viewable(frame)
    views = component_views(frame, layout)
    shape = (frame.height, frame.width)
    unit = 1 / layout.max_code
    alpha = None
    if layout.has_alpha:
        alpha = _load_new(views[-1:], shape).mul_(unit)
    if layout.kind == "rgb":
        rgb = _load_new(views[:3], shape).mul_(unit)
        return rgb, alpha
    full_range = _is_full_range(layout, color)
    if layout.kind == "gray":
        black, luma_span, _ = _code_range(layout.bits, full_range)
        codes = _load_new(views[:1], shape)
        gray = codes.sub_(black).mul_(1 / luma_span)
        rgb = _apply_gamut(gray, gamut).expand(3, -1, -1)
        return rgb.contiguous(), alpha

    # YCbCr: codes of full-size luma and chroma in one tensor (3, H, W).
    ycc = _load_new(views[:1], shape, channels=3)
    if layout.shift_x or layout.shift_y:
        chroma = _load_new(views[1:3], views[1].shape)
        upsample_chroma(
            chroma,
            ycc[1:],
            shifts=(layout.shift_x, layout.shift_y),
            sitings=sitings_of(color.siting),
        )
    else:
        _load(views[1:3], ycc[1:])
    decode, bias = _decoding(
        color.matrix,
        layout.bits,
        full_range,
        layout.padding_bits,
    )
    codes = ycc.view(3, -1)
    rgb = torch.addmm(bias, decode, codes).view(3, *shape)
    return _apply_gamut(rgb, gamut), alpha


def rgb_to_frame(
    rgb: Tensor,
    alpha: Tensor | None,
    *,
    pix_fmt: str,
    color: ResolvedColor,
) -> VideoFrame:
    """Convert R'G'B' to a video frame, dithered; see `to_video_frame`.

    Args:
        rgb: (3, H, W). Values outside [0, 1] are written as far as there are codes for them.
        alpha: (1, H, W) in [0, 1]; None is opaque.
        pix_fmt: See `to_video_frame`.
        color: See `to_video_frame`.
    """
    frame = Frame(rgb, 0, Fraction(1), alpha=alpha)
    return to_video_frame(frame, pix_fmt=pix_fmt, color=color)


def to_video_frame(frame: Frame, *, pix_fmt: str, color: ResolvedColor) -> VideoFrame:
    """Convert a frame to the pixel format of a video, dithered.

    Args:
        frame: Frame, read a few rows at a time. Its alpha is ignored if `pix_fmt` has none.
        pix_fmt: Any planar, semi-planar or packed format of 8- to 16-bit samples.
        color: Color tags, resolved for the size of the source; also set on the video frame. RGB
            formats use no matrix.

    Returns:
        A new video frame without pts.

    Raises:
        RequestError: `pix_fmt` cannot be written.
    """
    layout = layout_of(pix_fmt)
    if layout is None:
        raise RequestError(
            f"pixel format {pix_fmt!r} cannot be written; use for example yuv420p or yuv420p10le"
        )
    height, width = frame.size
    image = av.VideoFrame(width, height, pix_fmt)
    views = component_views(image, layout)
    if layout.has_alpha:
        if frame.alpha is None:
            opacity = torch.ones(height, width)
        else:
            opacity = frame.alpha.detach().to("cpu", torch.float32)[0]
        _store(opacity * layout.max_code, views[-1], layout, 0)

    ycc_rows: YccRows | None = None
    if layout.kind != "rgb":
        ycc_rows = _ycc_rows(frame, layout, color)
    # Strip by strip: intermediate results stay in the cache.
    num_rows = _rows_per_strip(layout, color, width, height)
    for top in range(0, height, num_rows):
        stop = min(top + num_rows, height)
        strip_views: list[NDArray[Any]] = []
        for index, view in enumerate(views):
            strip_views.append(_strip_of_view(view, index, layout, top, num_rows))
        if ycc_rows is None:
            strip = _float_rows(frame, top, stop)
            for channel in range(3):
                codes = strip[channel] * layout.max_code
                _store(codes, strip_views[channel], layout, channel)
        else:
            luma, chroma = ycc_rows(top, stop)
            _store_ycc(luma, chroma, strip_views, layout, color)
    _set_tags(image, layout, color)
    return image


def _float_rows(frame: Frame, start: int, stop: int) -> Tensor:
    """Read rows of a frame, (3, rows, W), in full precision and laid out by planes."""
    rows = frame.rows(start, stop)
    return rows.detach().to(device="cpu", dtype=torch.float32).contiguous()


def _apply_gamut(rgb: Tensor, gamut: Gamut) -> Tensor:
    return rgb.clamp_(0, 1) if gamut == "clip" else rgb


def _is_full_range(layout: PixelLayout, color: ColorTags) -> bool:
    if layout.is_full_range:
        return True
    # Without a tag, gray is full and YCbCr is limited.
    if layout.kind == "gray":
        return color.full_range is not False
    return bool(color.full_range)


def _code_range(bits: int, full_range: bool) -> tuple[float, float, float]:
    """Return the code of black, and the code spans of luma [0, 1] and chroma [-0.5, 0.5]."""
    if full_range:
        max_code = float((1 << bits) - 1)
        return 0.0, max_code, max_code
    unit = float(1 << (bits - 8))
    return 16 * unit, 219 * unit, 224 * unit


def _rgb_to_ycc(matrix: int) -> NDArray[np.float64]:
    """Build the 3x3 matrix from R'G'B' to Y' in [0, 1] and Cb, Cr (or Cg, Co) in [-0.5, 0.5]."""
    if matrix == _YCGCO:
        return np.array(
            [
                [0.25, 0.5, 0.25],
                [-0.25, 0.5, -0.25],
                [0.5, 0.0, -0.5],
            ]
        )
    if matrix in _UNRESOLVED:
        raise ValueError(f"color matrix {matrix} has no equation; call resolve_matrix first")
    red, blue = _LUMA_WEIGHTS.get(matrix, _LUMA_WEIGHTS[_BT2020])
    # Y' = Kr R' + (1 - Kr - Kb) G' + Kb B'
    # Cb = (B' - Y') / (2 - 2 Kb), Cr = (R' - Y') / (2 - 2 Kr)
    luma = np.array([red, 1 - red - blue, blue])
    cb = (np.array([0, 0, 1]) - luma) / (2 * (1 - blue))
    cr = (np.array([1, 0, 0]) - luma) / (2 * (1 - red))
    return np.stack([luma, cb, cr])


@lru_cache(maxsize=32)
def _decoding(matrix: int, bits: int, full_range: bool, padding_bits: int) -> tuple[Tensor, Tensor]:
    """Build the matrix (3, 3) and the bias (3, 1) from codes to R'G'B'."""
    black, luma_span, chroma_span = _code_range(bits, full_range)
    spans = np.array([luma_span, chroma_span, chroma_span])
    chroma_zero = float(1 << (bits - 1))
    zero = np.array([black, chroma_zero, chroma_zero])
    decode = np.linalg.inv(_rgb_to_ycc(matrix)) / spans
    bias = -(decode @ zero)
    # Samples with padding are codes shifted to the top of a 16-bit word.
    scaled = decode / (1 << padding_bits)
    decode_tensor = torch.tensor(scaled, dtype=torch.float32)
    bias_tensor = torch.tensor(bias[:, None], dtype=torch.float32)
    return decode_tensor, bias_tensor


@lru_cache(maxsize=32)
def _encoding(matrix: int, bits: int, full_range: bool) -> Tensor:
    """Build the matrix (3, 3) from R'G'B' to codes, without the offsets."""
    _, luma_span, chroma_span = _code_range(bits, full_range)
    spans = np.array([[luma_span], [chroma_span], [chroma_span]])
    return torch.tensor(_rgb_to_ycc(matrix) * spans, dtype=torch.float32)


def _load(views: list[NDArray[Any]], out: Tensor) -> None:
    """Copy components into the channels of a float tensor."""
    for view, target in zip(views, out.numpy(), strict=True):
        np.copyto(target, view, casting="unsafe")


def _load_new(
    views: list[NDArray[Any]],
    shape: tuple[int, ...],
    channels: int | None = None,
) -> Tensor:
    """Copy components into the first channels of a new float tensor (channels, *shape)."""
    out = torch.empty(channels or len(views), *shape)
    _load(views, out[: len(views)])
    return out


def _rows_per_strip(layout: PixelLayout, color: ColorTags, width: int, height: int) -> int:
    """Choose how many rows to convert at once, so that a strip fits into the cache."""
    if layout.shift_y and sitings_of(color.siting)[1] == "cosited":
        # The vertical filter needs rows beyond the edge of a strip.
        return height
    num_steps = STRIP_PX // width // _STRIP_STEP
    return max(_STRIP_STEP, num_steps * _STRIP_STEP)


def _strip_of_view(
    view: NDArray[Any],
    index: int,
    layout: PixelLayout,
    top: int,
    num_rows: int,
) -> NDArray[Any]:
    """Return the rows of a component that belong to a strip of luma rows."""
    is_chroma = layout.kind == "yuv" and index in (1, 2)
    shift = layout.shift_y if is_chroma else 0
    # The end is rounded up.
    end = -(-(top + num_rows) >> shift)
    return view[top >> shift : end]


def _ycc_rows(frame: Frame, layout: PixelLayout, color: ColorTags) -> YccRows:
    """Return a function that computes rows of a frame in Y'CbCr, or in gray."""
    full_range = _is_full_range(layout, color)
    encode = _encoding(color.matrix, layout.bits, full_range)
    if isinstance(frame, EnlargedFrame):
        _, luma_span, _ = _code_range(layout.bits, full_range)
        subsampling = None
        if layout.kind != "gray":
            shifts = (layout.shift_x, layout.shift_y)
            subsampling = Subsampling(shifts, sitings_of(color.siting))
        rows = frame.ycc_rows(encode, luma_span, subsampling)
        if rows is not None:
            return rows

    def compute_rows(start: int, stop: int) -> tuple[Tensor, Tensor | None]:
        return _rgb_to_codes(_float_rows(frame, start, stop), encode, layout, color)

    return compute_rows


def _rgb_to_codes(
    rgb: Tensor,
    encode: Tensor,
    layout: PixelLayout,
    color: ColorTags,
) -> tuple[Tensor, Tensor | None]:
    """Convert a strip (3, h, W) to codes of luma and subsampled chroma, without their offsets."""
    pixels = rgb.view(3, -1)
    luma = torch.mv(pixels.t(), encode[0]).view(rgb.shape[1:])
    if layout.kind == "gray":
        return luma, None

    sitings = sitings_of(color.siting)
    shift_y = layout.shift_y
    if shift_y and sitings[1] == "center":
        # The mean of two rows commutes with the matrix: taking it first halves the work.
        rgb = _mean_of_row_pairs(rgb)
        shift_y -= 1
    pixels = rgb.view(3, -1)
    # (2, h, W)
    full = torch.mm(encode[1:], pixels).view(2, *rgb.shape[1:])
    shifts = (layout.shift_x, shift_y)
    return luma, downsample_chroma(full, shifts=shifts, sitings=sitings)


def _store_ycc(
    luma: Tensor,
    chroma: Tensor | None,
    views: list[NDArray[Any]],
    layout: PixelLayout,
    color: ColorTags,
) -> None:
    """Write the codes of a strip, to which the offsets are added, to the views."""
    black, _, _ = _code_range(layout.bits, _is_full_range(layout, color))
    _store(luma, views[0], layout, 0, offset=black)
    if chroma is None:
        return
    chroma_zero = float(1 << (layout.bits - 1))
    _store(chroma[0], views[1], layout, 1, offset=chroma_zero)
    _store(chroma[1], views[2], layout, 2, offset=chroma_zero)


def _mean_of_row_pairs(rgb: Tensor) -> Tensor:
    """Average rows 0 and 1, 2 and 3, ...; a last row without partner stays."""
    height, width = rgb.shape[-2:]
    mean = rgb.new_empty(3, (height + 1) // 2, width)
    num_pairs = height // 2
    even_rows = rgb[:, 0 : 2 * num_pairs : 2]
    odd_rows = rgb[:, 1::2]
    torch.add(even_rows, odd_rows, out=mean[:, :num_pairs])
    mean[:, :num_pairs].mul_(0.5)
    if height % 2:
        mean[:, -1] = rgb[:, -1]
    return mean


def _store(
    values: Tensor,
    view: NDArray[Any],
    layout: PixelLayout,
    channel: int,
    *,
    offset: float = 0.0,
) -> None:
    """Dither values and write the codes: add thresholds, clamp, truncate.

    Args:
        values: Exact code values without the offset, (H, W); overwritten.
        view: Component of the frame, (H, W).
        layout: Layout of the frame.
        channel: Index of the component, which selects the dither pattern.
        offset: Code of zero.
    """
    height, width = values.shape
    if layout.bits >= 16:
        values.add_(offset + 0.5).clamp_(0, layout.max_code + 0.5)
    else:
        thresholds = _thresholds(width, channel, offset)
        # Rows in complete dither cells, then the remaining rows.
        cell_rows = height - height % _DITHER_CELL
        cells = values[:cell_rows].view(-1, _DITHER_CELL, width)
        cells.add_(thresholds)
        values[cell_rows:].add_(thresholds[: height - cell_rows])
        values.clamp_(0, layout.max_code + _DITHER_MARGIN)
    if layout.padding_bits:
        values.floor_().mul_(1 << layout.padding_bits)
    np.copyto(view, values.numpy(), casting="unsafe")


@lru_cache(maxsize=32)
def _thresholds(width: int, channel: int, offset: float) -> Tensor:
    """Build (8, width) Bayer thresholds, 1/128 to 127/128, mirrored by channel, plus the offset."""
    # The recursive definition of Bayer's matrix: 1x1, 2x2, 4x4, 8x8.
    order = np.zeros((1, 1))
    for _ in range(3):
        quarter = 4 * order
        order = np.block(
            [
                [quarter, quarter + 2],
                [quarter + 3, quarter + 1],
            ]
        )
    cell = (order + 0.5) / 64
    if channel == 1:
        cell = cell[:, ::-1]
    elif channel == 2:
        cell = cell[::-1]
    num_cells = -(-width // _DITHER_CELL)
    tiled = np.tile(cell, (1, num_cells))[:, :width]
    return torch.tensor(tiled + offset, dtype=torch.float32)


def _set_tags(frame: VideoFrame, layout: PixelLayout, color: ColorTags) -> None:
    frame.colorspace = _RGB if layout.kind == "rgb" else color.matrix
    frame.color_primaries = color.primaries
    frame.color_trc = color.transfer
    # AVCOL_RANGE_*: 0 unspecified, 1 limited, 2 full.
    if layout.is_full_range:
        frame.color_range = 2
    elif color.full_range is None:
        frame.color_range = 0
    else:
        frame.color_range = 1 + int(color.full_range)
