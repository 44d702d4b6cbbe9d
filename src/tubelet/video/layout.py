"""Where the samples of a pixel format lie, and views of a decoded frame's components.

A *component* is one of Y, U, V or R, G, B, or alpha. Every 8- to 16-bit format whose samples are whole bytes
or 16-bit words is read and written through strided views; the rest (palettes, packed bits, Bayer, floats) is
first converted by libswscale to the planar format with the same depth and subsampling.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from av.video.frame import VideoFrame
from numpy.typing import NDArray

__all__ = ["PixelLayout", "component_views", "layout_of", "to_known_layout"]

Place = tuple[int, int, int]  # plane, first sample, samples from one to the next

_PLANAR_YUV = re.compile(r"yuv(j?)(a?)(420|422|444|440|411|410)p(\d*)(le|be)?")
_PLANAR_RGB = re.compile(r"gbr(a?)p(\d*)(le|be)?")
_GRAY = re.compile(r"gray(\d*)(le|be)?")
_SEMI_PLANAR = re.compile(r"(?:(nv)(12|21|16|24|42)|p([024])(10|12|16)(le|be))")
_SHIFTS = {"420": (1, 1), "422": (1, 0), "444": (0, 0), "440": (0, 1), "411": (2, 0), "410": (2, 2)}
_PACKED_YUV: dict[str, tuple[Place, ...]] = {
    "yuyv422": ((0, 0, 2), (0, 1, 4), (0, 3, 4)),
    "uyvy422": ((0, 1, 2), (0, 0, 4), (0, 2, 4)),
    "yvyu422": ((0, 0, 2), (0, 3, 4), (0, 1, 4)),
}
_PACKED_RGB = ("rgb24", "bgr24", "rgba", "bgra", "argb", "abgr", "rgb0", "bgr0", "0rgb", "0bgr")
_PACKED_DEEP_RGB = re.compile(r"(rgb|bgr|rgba|bgra)(48|64)(le|be)")
_GRAY_ALPHA = re.compile(r"ya(8|16)(le|be)?")


@dataclass(frozen=True, slots=True)
class PixelLayout:
    """Where the components of a pixel format lie.

    Attributes:
        kind: what the components mean.
        bits: bits of a component.
        places: of Y, U, V or R, G, B or the gray value, then of alpha if there is one.
        has_alpha: the last place is alpha.
        dtype: NumPy's name of a sample, with byte order.
        shift_x: log2 of the chroma subsampling across.
        shift_y: log2 of the chroma subsampling down.
        padding_bits: unused low bits of a sample (p010 keeps ten bits at the top of sixteen).
        is_full_range: the format itself says full range (yuvj420p, RGB).
    """

    kind: Literal["yuv", "rgb", "gray"]
    bits: int
    places: tuple[Place, ...]
    has_alpha: bool = False
    dtype: str = "u1"
    shift_x: int = 0
    shift_y: int = 0
    padding_bits: int = 0
    is_full_range: bool = False

    @property
    def max_code(self) -> int:
        """Largest code value."""
        return (1 << self.bits) - 1


@lru_cache(maxsize=256)
def layout_of(pix_fmt: str) -> PixelLayout | None:
    """Look up a pixel format by FFmpeg's name; None if it has no layout that can be viewed."""
    for parse in (_planar_yuv, _planar_rgb, _gray, _semi_planar, _packed):
        layout = parse(pix_fmt)
        if layout is not None:
            return layout
    return None


def to_known_layout(frame: VideoFrame) -> tuple[VideoFrame, PixelLayout]:
    """Give the frame itself, or its conversion by libswscale where its format cannot be viewed.

    The conversion keeps depth, subsampling and range: samples are only moved. Palettes become gbrap, floats
    16 bit.
    """
    layout = layout_of(frame.format.name)
    if layout is not None:
        return frame, layout
    name = _nearest_planar(frame)
    converted = frame.reformat(
        format=name, src_color_range=frame.color_range, dst_color_range=frame.color_range
    )
    layout = layout_of(name)
    assert layout is not None, name
    return converted, layout


def component_views(frame: VideoFrame, layout: PixelLayout) -> list[NDArray[Any]]:
    """View each component of a frame.

    Returns:
        In the order of `layout.places`, arrays (H, W), or (h, w) for subsampled chroma; what is written to
        them is written to the frame.
    """
    rows = [_plane_rows(plane, layout.dtype) for plane in frame.planes]
    views: list[NDArray[Any]] = []
    for number, (plane, first, step) in enumerate(layout.places):
        is_chroma = layout.kind == "yuv" and number in (1, 2)
        width = -(-frame.width // (1 << layout.shift_x)) if is_chroma else frame.width
        height = -(-frame.height // (1 << layout.shift_y)) if is_chroma else frame.height
        views.append(rows[plane][:height, first::step][:, :width])
    return views


def _plane_rows(plane: Any, dtype: str) -> NDArray[Any]:
    samples = np.frombuffer(plane, dtype)
    stride = abs(int(plane.line_size)) // samples.itemsize
    rows = samples.reshape(-1, stride)
    return rows[::-1] if plane.line_size < 0 else rows  # stored from the bottom up


def _depth(digits: str) -> int:
    return int(digits) if digits else 8


def _dtype(bits: int, endian: str | None) -> str:
    return "u1" if bits <= 8 else (">u2" if endian == "be" else "<u2")


def _planar_yuv(name: str) -> PixelLayout | None:
    match = _PLANAR_YUV.fullmatch(name)
    if match is None:
        return None
    full, alpha, sampling, digits, endian = match.groups()
    bits = _depth(digits)
    shift_x, shift_y = _SHIFTS[sampling]
    return PixelLayout(
        kind="yuv",
        bits=bits,
        places=tuple((plane, 0, 1) for plane in range(4 if alpha else 3)),
        has_alpha=bool(alpha),
        dtype=_dtype(bits, endian),
        shift_x=shift_x,
        shift_y=shift_y,
        is_full_range=bool(full),
    )


def _planar_rgb(name: str) -> PixelLayout | None:
    match = _PLANAR_RGB.fullmatch(name)
    if match is None:
        return None
    alpha, digits, endian = match.groups()
    bits = _depth(digits)
    places: tuple[Place, ...] = ((2, 0, 1), (0, 0, 1), (1, 0, 1), (3, 0, 1))
    return PixelLayout(
        kind="rgb",
        bits=bits,
        places=places if alpha else places[:3],
        has_alpha=bool(alpha),
        dtype=_dtype(bits, endian),
        is_full_range=True,
    )


def _gray(name: str) -> PixelLayout | None:
    plain, with_alpha = _GRAY.fullmatch(name), _GRAY_ALPHA.fullmatch(name)
    match = plain or with_alpha
    if match is None:
        return None
    bits = _depth(match.group(1))
    places: tuple[Place, ...] = ((0, 0, 2), (0, 1, 2)) if with_alpha else ((0, 0, 1),)
    return PixelLayout(
        kind="gray",
        bits=bits,
        places=places,
        has_alpha=with_alpha is not None,
        dtype=_dtype(bits, match.group(2)),
    )


def _semi_planar(name: str) -> PixelLayout | None:
    match = _SEMI_PLANAR.fullmatch(name)
    if match is None:
        return None
    _, nv, sampling, digits, endian = match.groups()
    v_first = nv in ("21", "42")
    shift_x, shift_y = {"16": (1, 0), "24": (0, 0), "42": (0, 0), "2": (1, 0), "4": (0, 0)}.get(
        nv or sampling, (1, 1)
    )
    bits = _depth(digits or "")
    return PixelLayout(
        kind="yuv",
        bits=bits,
        places=((0, 0, 1), (1, int(v_first), 2), (1, int(not v_first), 2)),
        dtype=_dtype(bits, endian),
        shift_x=shift_x,
        shift_y=shift_y,
        padding_bits=16 - bits if bits > 8 else 0,
    )


def _packed(name: str) -> PixelLayout | None:
    if name in _PACKED_YUV:
        return PixelLayout(kind="yuv", bits=8, places=_PACKED_YUV[name], shift_x=1)
    deep = _PACKED_DEEP_RGB.fullmatch(name)
    if deep is None and name not in _PACKED_RGB:
        return None
    order = deep.group(1) if deep else name.removesuffix("24")
    letters = "rgba" if "a" in order else "rgb"
    return PixelLayout(
        kind="rgb",
        bits=16 if deep else 8,
        places=tuple((0, order.index(letter), len(order)) for letter in letters),
        has_alpha="a" in order,
        dtype=_dtype(16, deep.group(3)) if deep else "u1",
        is_full_range=True,
    )


def _nearest_planar(frame: VideoFrame) -> str:
    layout = frame.format
    parts = layout.components
    bits = 8 if layout.has_palette else max(part.bits for part in parts)
    suffix = "" if bits <= 8 else f"{next((b for b in (10, 12, 14) if b >= bits), 16)}le"
    alpha = layout.has_palette or any(part.is_alpha for part in parts)
    chroma = next((part for part in parts if part.is_chroma), None)
    if layout.is_rgb or layout.has_palette or layout.is_bayer:
        return f"gbr{'a' if alpha else ''}p{suffix.replace('14', '16') if alpha else suffix}"
    if sum(not part.is_alpha for part in parts) == 1:
        return f"gray{suffix}" if not alpha else f"gbrap{suffix.replace('14', '16')}"
    sampling = "444"  # for which PyAV calls no component chroma
    if chroma is not None:
        shifts = (
            round(np.log2(layout.width / chroma.width)),
            round(np.log2(layout.height / chroma.height)),
        )
        sampling = next((name for name, value in _SHIFTS.items() if value == shifts), "444")
    deep = suffix.replace("14", "16") if alpha or sampling == "440" else suffix
    return f"yuv{'a' if alpha else ''}{sampling}p{deep}"
