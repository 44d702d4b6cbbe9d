"""Describe how pixel formats store their samples, and view the components of a decoded frame.

A *component* is one of Y, U, V or R, G, B, or alpha. Every 8- to 16-bit format whose samples are
whole bytes or 16-bit words is read and written through strided views. The other formats (palettes,
packed bits, Bayer, floats) are first converted by libswscale to the planar format with the same
depth and subsampling.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import numpy as np
from av.video.frame import VideoFrame
from numpy.typing import NDArray

__all__ = ["PixelLayout", "component_views", "layout_of", "to_viewable"]


class Component(NamedTuple):
    """Position of a component's samples in a frame.

    Attributes:
        plane: Index of the plane.
        offset: Index of the first sample in a row.
        step: Samples from one to the next.
    """

    plane: int
    offset: int
    step: int


_PLANAR_YUV = re.compile(r"yuv(j?)(a?)(420|422|444|440|411|410)p(\d*)(le|be)?")
_PLANAR_RGB = re.compile(r"gbr(a?)p(\d*)(le|be)?")
_GRAY = re.compile(r"gray(\d*)(le|be)?")
_GRAY_ALPHA = re.compile(r"ya(8|16)(le|be)?")
# nv12 and its relatives have 8 bits; p010, p210, p416, ... have 10 to 16.
_SEMI_PLANAR_8_BIT = re.compile(r"nv(12|21|16|24|42)")
_SEMI_PLANAR_DEEP = re.compile(r"p([024])(10|12|16)(le|be)")
_PACKED_RGB = ("rgb24", "bgr24", "rgba", "bgra", "argb", "abgr", "rgb0", "bgr0", "0rgb", "0bgr")
_PACKED_DEEP_RGB = re.compile(r"(rgb|bgr|rgba|bgra)(48|64)(le|be)")
# Offsets of Y, U and V among the four samples of two pixels.
_PACKED_YUV = {"yuyv422": (0, 1, 3), "uyvy422": (1, 0, 2), "yvyu422": (0, 3, 1)}

# log2 of the horizontal and the vertical subsampling.
_SHIFTS = {
    "420": (1, 1),
    "422": (1, 0),
    "444": (0, 0),
    "440": (0, 1),
    "411": (2, 0),
    "410": (2, 2),
}
_SAMPLINGS = {shifts: name for name, shifts in _SHIFTS.items()}
# Subsampling by the number in nv12, nv21, ... and by the first digit in p010, p210, p410.
_NV_SAMPLING = {"12": "420", "21": "420", "16": "422", "24": "444", "42": "444"}
_P_SAMPLING = {"0": "420", "2": "422", "4": "444"}

# Depths that the planar formats of libswscale exist in. Those with alpha and 4:4:0 have no 14 bit.
_PLANAR_DEPTHS = (8, 10, 12, 14, 16)
_PLANAR_DEPTHS_WITHOUT_14 = (8, 10, 12, 16)
# Families of planar formats by whether they have alpha. Gray with alpha has none: it becomes RGB.
_RGB_FAMILIES = {False: "gbrp", True: "gbrap"}
_GRAY_FAMILIES = {False: "gray", True: "gbrap"}
_YUV_PREFIXES = {False: "yuv", True: "yuva"}


@dataclass(frozen=True, slots=True)
class PixelLayout:
    """Positions of the components of a pixel format.

    Attributes:
        kind: Color model of the components.
        bits: Bits of a component.
        components: Positions of Y, U, V or R, G, B or the gray value, then of alpha if there is
            one.
        has_alpha: The last component is alpha.
        dtype: NumPy's name of a sample, with byte order.
        shift_x: log2 of the horizontal chroma subsampling.
        shift_y: log2 of the vertical chroma subsampling.
        padding_bits: Unused low bits of a sample (p010 has ten bits at the top of sixteen).
        is_full_range: The format itself implies full range (yuvj420p, RGB).
    """

    kind: Literal["yuv", "rgb", "gray"]
    bits: int
    components: tuple[Component, ...]
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
    """Look up a pixel format by FFmpeg's name; None if its components cannot be viewed."""
    for parse in (_planar_yuv, _planar_rgb, _gray, _semi_planar, _packed):
        layout = parse(pix_fmt)
        if layout is not None:
            return layout
    return None


def to_viewable(frame: VideoFrame) -> tuple[VideoFrame, PixelLayout]:
    """Return a frame with a layout, converted by libswscale if the format cannot be viewed.

    The conversion keeps depth, subsampling and range: samples are only moved. Palettes become
    gbrap, floats 16 bit.
    """
    layout = layout_of(frame.format.name)
    if layout is not None:
        return frame, layout
    name = _nearest_planar(frame)
    converted = frame.reformat(
        format=name,
        src_color_range=frame.color_range,
        dst_color_range=frame.color_range,
    )
    layout = layout_of(name)
    assert layout is not None, name
    return converted, layout


def component_views(frame: VideoFrame, layout: PixelLayout) -> list[NDArray[Any]]:
    """View each component of a frame.

    Returns:
        Arrays (H, W), or (h, w) for subsampled chroma, in the order of `layout.components`. Writing
        to them changes the frame.
    """
    planes = [_plane_rows(plane, layout.dtype) for plane in frame.planes]
    views: list[NDArray[Any]] = []
    for index, (plane, offset, step) in enumerate(layout.components):
        width = frame.width
        height = frame.height
        if layout.kind == "yuv" and index in (1, 2):
            # Chroma sizes are rounded up.
            width = -(-width // (1 << layout.shift_x))
            height = -(-height // (1 << layout.shift_y))
        rows = planes[plane][:height]
        # The end of a row may be padding.
        samples = rows[:, offset::step]
        views.append(samples[:, :width])
    return views


def _plane_rows(plane: Any, dtype: str) -> NDArray[Any]:
    """View a plane as rows of samples, including the padding at their ends."""
    samples = np.frombuffer(plane, dtype)
    stride = abs(int(plane.line_size)) // samples.itemsize
    rows = samples.reshape(-1, stride)
    if plane.line_size < 0:
        # The image is stored bottom up.
        rows = rows[::-1]
    return rows


def _depth(digits: str) -> int:
    return int(digits) if digits else 8


def _dtype(bits: int, endian: str | None) -> str:
    if bits <= 8:
        return "u1"
    return ">u2" if endian == "be" else "<u2"


def _planar_yuv(name: str) -> PixelLayout | None:
    match = _PLANAR_YUV.fullmatch(name)
    if match is None:
        return None
    full_range, alpha, sampling, digits, endian = match.groups()
    bits = _depth(digits)
    shift_x, shift_y = _SHIFTS[sampling]
    planes = range(4 if alpha else 3)
    return PixelLayout(
        kind="yuv",
        bits=bits,
        components=tuple(Component(plane, 0, 1) for plane in planes),
        has_alpha=bool(alpha),
        dtype=_dtype(bits, endian),
        shift_x=shift_x,
        shift_y=shift_y,
        is_full_range=bool(full_range),
    )


def _planar_rgb(name: str) -> PixelLayout | None:
    match = _PLANAR_RGB.fullmatch(name)
    if match is None:
        return None
    alpha, digits, endian = match.groups()
    bits = _depth(digits)
    # The planes are G, B, R and alpha.
    planes = (2, 0, 1, 3) if alpha else (2, 0, 1)
    return PixelLayout(
        kind="rgb",
        bits=bits,
        components=tuple(Component(plane, 0, 1) for plane in planes),
        has_alpha=bool(alpha),
        dtype=_dtype(bits, endian),
        is_full_range=True,
    )


def _gray(name: str) -> PixelLayout | None:
    match = _GRAY.fullmatch(name)
    components = (Component(0, 0, 1),)
    has_alpha = False
    if match is None:
        match = _GRAY_ALPHA.fullmatch(name)
        components = (Component(0, 0, 2), Component(0, 1, 2))
        has_alpha = True
    if match is None:
        return None
    digits, endian = match.groups()
    bits = _depth(digits)
    return PixelLayout(
        kind="gray",
        bits=bits,
        components=components,
        has_alpha=has_alpha,
        dtype=_dtype(bits, endian),
    )


def _semi_planar(name: str) -> PixelLayout | None:
    # One plane of Y, one of U and V interleaved; nv21 and nv42 have V before U.
    u_offset = 0
    bits = 8
    endian = None
    match_8_bit = _SEMI_PLANAR_8_BIT.fullmatch(name)
    match_deep = _SEMI_PLANAR_DEEP.fullmatch(name)
    if match_8_bit is not None:
        number = match_8_bit.group(1)
        u_offset = 1 if number in ("21", "42") else 0
        sampling = _NV_SAMPLING[number]
    elif match_deep is not None:
        digit, digits, endian = match_deep.groups()
        bits = int(digits)
        sampling = _P_SAMPLING[digit]
    else:
        return None
    shift_x, shift_y = _SHIFTS[sampling]
    return PixelLayout(
        kind="yuv",
        bits=bits,
        components=(
            Component(0, 0, 1),
            Component(1, u_offset, 2),
            Component(1, 1 - u_offset, 2),
        ),
        dtype=_dtype(bits, endian),
        shift_x=shift_x,
        shift_y=shift_y,
        padding_bits=16 - bits if bits > 8 else 0,
    )


def _packed(name: str) -> PixelLayout | None:
    if name in _PACKED_YUV:
        y_offset, u_offset, v_offset = _PACKED_YUV[name]
        return PixelLayout(
            kind="yuv",
            bits=8,
            components=(
                Component(0, y_offset, 2),
                Component(0, u_offset, 4),
                Component(0, v_offset, 4),
            ),
            shift_x=1,
        )
    match = _PACKED_DEEP_RGB.fullmatch(name)
    if match is not None:
        letters = match.group(1)
        bits = 16
        dtype = _dtype(bits, match.group(3))
    elif name in _PACKED_RGB:
        letters = name.removesuffix("24")
        bits = 8
        dtype = "u1"
    else:
        return None
    # The letters give the order of the components in memory; 0 is padding.
    components: list[Component] = []
    for letter in "rgba":
        if letter not in letters:
            continue
        offset = letters.index(letter)
        components.append(Component(0, offset, len(letters)))
    return PixelLayout(
        kind="rgb",
        bits=bits,
        components=tuple(components),
        has_alpha="a" in letters,
        dtype=dtype,
        is_full_range=True,
    )


def _nearest_planar(frame: VideoFrame) -> str:
    """Name the planar format that holds everything that a frame's format does."""
    pix_fmt = frame.format
    if pix_fmt.has_palette:
        return "gbrap"
    components = pix_fmt.components
    bits = max(component.bits for component in components)
    num_alpha = sum(component.is_alpha for component in components)
    has_alpha = num_alpha > 0
    is_gray = len(components) - num_alpha == 1

    if pix_fmt.is_rgb or pix_fmt.is_bayer:
        family = _RGB_FAMILIES[has_alpha]
    elif is_gray:
        family = _GRAY_FAMILIES[has_alpha]
    else:
        family = f"{_YUV_PREFIXES[has_alpha]}{_sampling(frame)}p"

    depths = _PLANAR_DEPTHS
    if has_alpha or family == "yuv440p":
        depths = _PLANAR_DEPTHS_WITHOUT_14
    sufficient_depths = [depth for depth in depths if depth >= bits]
    depth = min(sufficient_depths, default=16)
    if depth == 8:
        return family
    return f"{family}{depth}le"


def _sampling(frame: VideoFrame) -> str:
    """Name the chroma subsampling of a frame, such as 420, by the size of its chroma."""
    pix_fmt = frame.format
    chroma = next((c for c in pix_fmt.components if c.is_chroma), None)
    if chroma is None:
        # PyAV marks no component of 4:4:4 as chroma.
        return "444"
    shift_x = round(np.log2(pix_fmt.width / chroma.width))
    shift_y = round(np.log2(pix_fmt.height / chroma.height))
    return _SAMPLINGS.get((shift_x, shift_y), "444")
