"""Encode and decode a short clip in memory, to add real compression artifacts to training data."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any, cast

import av
import numpy as np
import torch
from torch import Tensor

from tubelet.errors import ResourceError
from tubelet.video.codecs import X265_BLOCK_PX

__all__ = ["recode"]

# FFmpeg's decoder by the name of an encoder; others have the same name.
_DECODERS = {"libx264": "h264", "libx265": "hevc"}


def recode(clip: Tensor, encoder: str, options: Mapping[str, str], *, rate: int = 25) -> Tensor:
    """Pass a clip through a lossy encoder and its decoder.

    Args:
        clip: (T, 3, H, W) in [0, 1].
        encoder: FFmpeg's name of the encoder, for example libx264; it must accept yuv420p.
        options: Options of the encoder, for example {"crf": "28"}.
        rate: Frames per second, as assumed by the rate control.

    Returns:
        (T, 3, H, W) in [0, 1], multiples of 1/255. Every run with the same FFmpeg gives identical
        bits. Sides shorter than 64 px are padded for the encoder.

    Raises:
        ResourceError: This build of FFmpeg has no such encoder.
    """
    height, width = clip.shape[-2:]
    padding = (0, _padding_px(width), 0, _padding_px(height))
    padded = torch.nn.functional.pad(clip, padding, mode="replicate")
    # (T, H, W, 3)
    channels_last = padded.movedim(1, -1)
    pixels = (channels_last * 255).round().byte().contiguous().numpy()

    packets, extradata = _encode(pixels, encoder, options, rate)
    images = _decode(packets, _DECODERS.get(encoder, encoder), extradata)
    decoded = np.stack(images)[:, :height, :width]
    recoded = torch.from_numpy(decoded).movedim(-1, 1)
    return recoded.float() / 255


def _encode(
    pixels: np.ndarray,
    encoder: str,
    options: Mapping[str, str],
    rate: int,
) -> tuple[list[Any], bytes | None]:
    """Encode images (T, H, W, 3) uint8.

    Returns:
        The packets and the header of the codec.
    """
    try:
        context = cast(Any, av.CodecContext.create(encoder, "w"))
    except (av.FFmpegError, ValueError) as error:
        raise ResourceError(
            f"FFmpeg has no encoder {encoder!r}; install PyAV from PyPI, which has it"
        ) from error
    height, width = pixels.shape[1:3]
    context.width = width
    context.height = height
    context.pix_fmt = "yuv420p"
    context.time_base = Fraction(1, rate)
    context.framerate = rate
    # The result would depend on the number of threads.
    context.thread_count = 1
    context.options = _deterministic_options(encoder, options, min(height, width))
    packets: list[Any] = []
    for pts, image in enumerate(pixels):
        frame = av.VideoFrame.from_ndarray(image, format="rgb24")
        frame.pts = pts
        packets += context.encode(frame)
    packets += context.encode(None)
    return packets, context.extradata


def _decode(packets: list[Any], decoder: str, extradata: bytes | None) -> list[np.ndarray]:
    """Decode packets to images (H, W, 3) uint8."""
    context = cast(Any, av.CodecContext.create(decoder, "r"))
    context.thread_count = 1
    if extradata:
        context.extradata = extradata
    images: list[np.ndarray] = []
    # None flushes the decoder.
    for packet in [*packets, None]:
        for frame in context.decode(packet):
            images.append(frame.to_ndarray(format="rgb24"))
    return images


def _padding_px(size: int) -> int:
    """Return how many pixels make a side even and no shorter than a block of x265."""
    even = size + size % 2
    return max(even, X265_BLOCK_PX) - size


def _deterministic_options(
    encoder: str, options: Mapping[str, str], side_px: int
) -> dict[str, str]:
    """Disable features that read uninitialized memory, so that two runs give the same codes.

    In x264 that is mbtree, in x265 an image with a single row or column of coding tree units.
    """
    if encoder == "libx264":
        name = "x264-params"
        value = "mbtree=0"
    elif encoder == "libx265" and side_px <= X265_BLOCK_PX:
        name = "x265-params"
        value = f"ctu={X265_BLOCK_PX // 2}"
    else:
        return dict(options)
    current = options.get(name)
    if current:
        value = f"{current}:{value}"
    return {**options, name: value}
