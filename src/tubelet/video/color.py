"""Decoded frames to R'G'B' float in [0, 1] and back, by the tags: matrix, range, chroma siting, dither.

Matrix: by the tag. Absent, or RGB on a format that is not: BT.709 from 1280 pixels of width or 720 of height,
otherwise BT.601. Those without a linear form (constant luminance, ICtCp, ...) use BT.2020 non-constant
luminance in both directions: what the model sees is then approximate, what is written is coded as the source
was.

Range: by the tag; absent, YCbCr is limited (yuvj* full), gray is full. RGB is always full, as FFmpeg has it.

Codes of colors outside R'G'B' [0, 1] (footroom, headroom, saturated chroma at the wrong luma) are common in
compressed video. `gamut="clip"` clamps them, which also moves the chroma of the pixels that share a sample
with one; `gamut="keep"` leaves them a little outside [0, 1], and then *every* code comes back as it was: the
filters of `chroma` are exact inverses, and the dither leaves whole numbers alone. Writing clamps to the codes
there are.

Dither: ordered (Bayer 8×8), the same in every frame, less than one code value. Sixteen-bit output is rounded.
"""

from __future__ import annotations

import dataclasses
from functools import lru_cache
from typing import Any, Literal, NewType

import av
import numpy as np
import torch
from av.video.frame import VideoFrame
from numpy.typing import NDArray
from torch import Tensor

from tubelet.errors import RequestError
from tubelet.video.chroma import downsample_chroma, sitings_of, upsample_chroma
from tubelet.video.info import ColorTags
from tubelet.video.layout import PixelLayout, component_views, layout_of, to_known_layout

__all__ = ["Gamut", "ResolvedColor", "frame_to_rgb", "resolve_matrix", "rgb_to_frame"]

Gamut = Literal["clip", "keep"]
ResolvedColor = NewType("ResolvedColor", ColorTags)
"""Tags whose matrix is known, as `resolve_matrix` gives them."""

_LUMA_WEIGHTS = {  # AVCOL_SPC_*: red and blue, from ITU-T H.273, table 4
    1: (0.2126, 0.0722),
    4: (0.30, 0.11),
    5: (0.299, 0.114),
    6: (0.299, 0.114),
    7: (0.212, 0.087),
    9: (0.2627, 0.0593),
}
_RGB, _BT709, _UNSPECIFIED, _RESERVED, _SMPTE170M, _YCGCO, _BT2020 = 0, 1, 2, 3, 6, 8, 9
_UNRESOLVED = (_RGB, _UNSPECIFIED, _RESERVED)
_STRIP_PX = 1 << 18  # 1 MiB a float plane
_STRIP_STEP = 32  # rows: whole dither cells in chroma that is subsampled four times
_DITHER_MARGIN = 0.99  # above the largest threshold, 127/128


def resolve_matrix(color: ColorTags, width: int, height: int) -> ResolvedColor:
    """Replace an absent matrix by the one that the size of the *source* suggests; leave the other tags.

    Args:
        color: tags of the source.
        width: of the source, pixels.
        height: of the source, pixels.

    Returns:
        Tags for `frame_to_rgb` and `rgb_to_frame`; headers are written by the source's own tags.
    """
    if color.matrix not in _UNRESOLVED:
        return ResolvedColor(color)
    matrix = _BT709 if width >= 1280 or height >= 720 else _SMPTE170M
    return ResolvedColor(dataclasses.replace(color, matrix=matrix))


def frame_to_rgb(
    frame: VideoFrame, color: ResolvedColor, *, gamut: Gamut = "clip"
) -> tuple[Tensor, Tensor | None]:
    """Convert a decoded frame.

    Args:
        frame: of any software pixel format.
        color: tags, resolved by the size of the source.
        gamut: "clip" clamps rgb to [0, 1]; "keep" leaves what lies outside, so that nothing is lost.

    Returns:
        rgb (3, H, W) and alpha (1, H, W) or None, float32 in [0, 1].
    """
    frame, layout = to_known_layout(frame)
    views = component_views(frame, layout)
    shape = (frame.height, frame.width)
    alpha = None
    if layout.has_alpha:
        alpha = _loaded(views[-1:], shape).mul_(1 / layout.max_code)
    if layout.kind == "rgb":
        return _loaded(views[:3], shape).mul_(1 / layout.max_code), alpha
    full_range = _is_full_range(layout, color)
    if layout.kind == "gray":
        offset, span, _ = _code_range(layout.bits, full_range)
        gray = _loaded(views[:1], shape).sub_(offset).mul_(1 / span)
        return _clipped(gray, gamut).expand(3, -1, -1).contiguous(), alpha
    ycc = _loaded(views[:1], shape, channels=3)
    if layout.shift_x or layout.shift_y:
        chroma = _loaded(views[1:3], views[1].shape)
        shifts = (layout.shift_x, layout.shift_y)
        upsample_chroma(chroma, ycc[1:], shifts=shifts, sitings=sitings_of(color.siting))
    else:
        _load(views[1:3], ycc[1:])
    decode, bias = _decoding(color.matrix, layout.bits, full_range, layout.padding_bits)
    rgb = torch.addmm(bias, decode, ycc.view(3, -1)).view(3, *shape)
    return _clipped(rgb, gamut), alpha


def rgb_to_frame(
    rgb: Tensor, alpha: Tensor | None, *, pix_fmt: str, color: ResolvedColor
) -> VideoFrame:
    """Convert back, dithered.

    Args:
        rgb: (3, H, W); what lies outside [0, 1] is written as far as there are codes for it.
        alpha: (1, H, W) in [0, 1]; None is opaque. Left out where `pix_fmt` has none.
        pix_fmt: any planar, semi-planar or packed format of 8- to 16-bit samples.
        color: tags, resolved by the size of the source; also set on the frame. A format of RGB uses no matrix.

    Returns:
        A new frame without pts.

    Raises:
        RequestError: `pix_fmt` is not one that can be written.
    """
    layout = layout_of(pix_fmt)
    if layout is None:
        raise RequestError(
            f"pixel format {pix_fmt!r} cannot be written; use for example yuv420p or yuv420p10le"
        )
    rgb = rgb.detach().to(device="cpu", dtype=torch.float32).contiguous()
    height, width = rgb.shape[-2:]
    frame = av.VideoFrame(width, height, pix_fmt)
    views = component_views(frame, layout)
    if layout.has_alpha:
        opaque = (
            torch.ones(height, width)
            if alpha is None
            else alpha.detach().to("cpu", torch.float32)[0]
        )
        _store(opaque * layout.max_code, views[-1], layout, 0)
    rows = _strip_rows(layout, color, width, height)
    for top in range(0, height, rows):
        strip = rgb[:, top : top + rows]
        parts = [_rows_of(view, number, layout, top, rows) for number, view in enumerate(views)]
        if layout.kind == "rgb":
            for channel in range(3):
                _store(strip[channel] * layout.max_code, parts[channel], layout, channel)
        else:
            _store_ycc(strip, parts, layout, color)
    _tag(frame, layout, color)
    return frame


def _clipped(rgb: Tensor, gamut: Gamut) -> Tensor:
    return rgb.clamp_(0, 1) if gamut == "clip" else rgb


def _is_full_range(layout: PixelLayout, color: ColorTags) -> bool:
    if layout.is_full_range:
        return True
    return color.full_range is not False if layout.kind == "gray" else bool(color.full_range)


def _code_range(bits: int, full_range: bool) -> tuple[float, float, float]:
    """Give the code of black, the codes from black to white, and the codes of the chroma from -0.5 to 0.5."""
    if full_range:
        top = float((1 << bits) - 1)
        return 0.0, top, top
    unit = float(1 << (bits - 8))
    return 16 * unit, 219 * unit, 224 * unit


def _rgb_to_ycc(matrix: int) -> NDArray[np.float64]:
    """Build the 3×3 matrix from R'G'B' to Y' in [0, 1] and Cb, Cr (or Cg, Co) in [-0.5, 0.5]."""
    if matrix == _YCGCO:
        return np.array([[0.25, 0.5, 0.25], [-0.25, 0.5, -0.25], [0.5, 0.0, -0.5]])
    if matrix in _UNRESOLVED:
        raise ValueError(f"color matrix {matrix} has no equation; call resolve_matrix first")
    red, blue = _LUMA_WEIGHTS.get(matrix, _LUMA_WEIGHTS[_BT2020])
    luma = np.array([red, 1 - red - blue, blue])
    cb = (np.array([0, 0, 1]) - luma) / (2 * (1 - blue))
    cr = (np.array([1, 0, 0]) - luma) / (2 * (1 - red))
    return np.stack([luma, cb, cr])


@lru_cache(maxsize=32)
def _decoding(matrix: int, bits: int, full_range: bool, padding_bits: int) -> tuple[Tensor, Tensor]:
    """Build matrix (3, 3) and bias (3, 1) from codes to R'G'B'."""
    black, luma_span, chroma_span = _code_range(bits, full_range)
    spans = np.array([luma_span, chroma_span, chroma_span])
    zero = np.array([black, float(1 << (bits - 1)), float(1 << (bits - 1))])
    decode = np.linalg.inv(_rgb_to_ycc(matrix)) / spans
    bias = -(decode @ zero)
    scaled = decode / (1 << padding_bits)
    return torch.tensor(scaled, dtype=torch.float32), torch.tensor(
        bias[:, None], dtype=torch.float32
    )


@lru_cache(maxsize=32)
def _encoding(matrix: int, bits: int, full_range: bool) -> Tensor:
    """Build the matrix (3, 3) from R'G'B' to codes, without the offsets."""
    _, luma_span, chroma_span = _code_range(bits, full_range)
    return torch.tensor(
        _rgb_to_ycc(matrix) * np.array([[luma_span], [chroma_span], [chroma_span]]),
        dtype=torch.float32,
    )


def _load(views: list[NDArray[Any]], out: Tensor) -> None:
    for view, target in zip(views, out.numpy(), strict=True):
        np.copyto(target, view, casting="unsafe")


def _loaded(
    views: list[NDArray[Any]], shape: tuple[int, ...], channels: int | None = None
) -> Tensor:
    """Copy components into the first channels of a new float tensor (channels, *shape)."""
    out = torch.empty(channels or len(views), *shape)
    _load(views, out[: len(views)])
    return out


def _strip_rows(layout: PixelLayout, color: ColorTags, width: int, height: int) -> int:
    """Choose how many rows to convert at once: strips stay in the cache and need no fresh memory."""
    if layout.shift_y and sitings_of(color.siting)[1] == "cosited":
        return height  # the filter down reaches over the edge of a strip
    return max(_STRIP_STEP, _STRIP_PX // width // _STRIP_STEP * _STRIP_STEP)


def _rows_of(
    view: NDArray[Any], number: int, layout: PixelLayout, top: int, rows: int
) -> NDArray[Any]:
    shift = layout.shift_y if layout.kind == "yuv" and number in (1, 2) else 0
    return view[top >> shift : -(-(top + rows) >> shift)]  # the end is rounded up


def _store_ycc(
    rgb: Tensor, views: list[NDArray[Any]], layout: PixelLayout, color: ColorTags
) -> None:
    full_range = _is_full_range(layout, color)
    black, _, _ = _code_range(layout.bits, full_range)
    encode = _encoding(color.matrix, layout.bits, full_range)
    luma = torch.mv(rgb.view(3, -1).t(), encode[0]).view(rgb.shape[1:])
    _store(luma, views[0], layout, 0, offset=black)
    if layout.kind == "gray":
        return
    sitings, (shift_x, shift_y) = sitings_of(color.siting), (layout.shift_x, layout.shift_y)
    if (
        shift_y and sitings[1] == "center"
    ):  # the mean of two rows commutes with the matrix: half the work
        rgb, shift_y = _mean_of_rows(rgb), shift_y - 1
    full = torch.mm(encode[1:], rgb.view(3, -1)).view(2, *rgb.shape[1:])
    chroma = downsample_chroma(full, shifts=(shift_x, shift_y), sitings=sitings)
    middle = float(1 << (layout.bits - 1))
    for number in (1, 2):
        _store(chroma[number - 1], views[number], layout, number, offset=middle)


def _mean_of_rows(rgb: Tensor) -> Tensor:
    height, width = rgb.shape[-2:]
    mean = rgb.new_empty(3, (height + 1) // 2, width)
    pairs = height // 2
    torch.add(rgb[:, 0 : 2 * pairs : 2], rgb[:, 1::2], out=mean[:, :pairs])
    mean[:, :pairs].mul_(0.5)
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
    """Dither `values` (H, W), which is used up, and write the codes: add thresholds, clamp, truncate."""
    height, width = values.shape
    if layout.bits >= 16:
        values.add_(offset + 0.5).clamp_(0, layout.max_code + 0.5)
    else:
        thresholds = _thresholds(width, channel, offset)
        whole = height - height % 8
        values[:whole].view(-1, 8, width).add_(thresholds)
        values[whole:].add_(thresholds[: height - whole])
        values.clamp_(0, layout.max_code + _DITHER_MARGIN)
    if layout.padding_bits:
        values.floor_().mul_(1 << layout.padding_bits)
    np.copyto(view, values.numpy(), casting="unsafe")


@lru_cache(maxsize=32)
def _thresholds(width: int, channel: int, offset: float) -> Tensor:
    """Build (8, width) Bayer thresholds, 1/128 to 127/128, mirrored by channel, plus the offset."""
    order = np.zeros((1, 1))
    for _ in range(3):
        order = np.block([[4 * order, 4 * order + 2], [4 * order + 3, 4 * order + 1]])
    cell = (order + 0.5) / 64
    cell = (cell, cell[:, ::-1], cell[::-1])[channel]
    tiled = np.tile(cell, (1, -(-width // 8)))[:, :width]
    return torch.tensor(tiled + offset, dtype=torch.float32)


def _tag(frame: VideoFrame, layout: PixelLayout, color: ColorTags) -> None:
    frame.colorspace = _RGB if layout.kind == "rgb" else color.matrix
    frame.color_primaries = color.primaries
    frame.color_trc = color.transfer
    if layout.is_full_range:
        frame.color_range = 2
    else:
        frame.color_range = 0 if color.full_range is None else 1 + int(color.full_range)
