"""Encode and decode a short clip in memory: the compression of a real encoder, for training data."""

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


def recode(clip: Tensor, encoder: str, options: Mapping[str, str], *, rate: int = 25) -> Tensor:
    """Pass a clip through a lossy encoder and its decoder.

    Args:
        clip: (T, 3, H, W) in [0, 1].
        encoder: FFmpeg's name of it, for example libx264; it must take yuv420p.
        options: FFmpeg's options of the encoder, for example {"crf": "28"}.
        rate: frames a second, which the rate control reckons with.

    Returns:
        (T, 3, H, W) in [0, 1], multiples of 1/255; the same to the bit in every run of the same FFmpeg. Sides of less
        than 64 px are padded to it on the way.

    Raises:
        ResourceError: this build of FFmpeg has no such encoder.
    """
    height, width = clip.shape[-2:]
    right, below = (max(n + n % 2, X265_BLOCK_PX) - n for n in (width, height))
    even = torch.nn.functional.pad(clip, (0, right, 0, below), mode="replicate")
    try:
        context = cast(Any, av.CodecContext.create(encoder, "w"))
    except (av.FFmpegError, ValueError) as error:
        raise ResourceError(
            f"FFmpeg has no encoder {encoder!r}; install PyAV from PyPI, which has it"
        ) from error
    context.width, context.height = even.shape[-1], even.shape[-2]
    context.pix_fmt, context.time_base, context.framerate = "yuv420p", Fraction(1, rate), rate
    context.thread_count = 1
    context.options = _replayable(encoder, options, min(even.shape[-2:]))
    packets: list[Any] = []
    pixels = (even.movedim(1, -1) * 255).round().byte().contiguous().numpy()  # (T, H, W, 3)
    for pts, image in enumerate(pixels):
        frame = av.VideoFrame.from_ndarray(image, format="rgb24")
        frame.pts = pts
        packets += context.encode(frame)
    packets += context.encode(None)

    decoder = cast(Any, av.CodecContext.create(_decoder(encoder), "r"))
    decoder.thread_count = 1
    if context.extradata:
        decoder.extradata = context.extradata
    frames = [frame for packet in [*packets, None] for frame in decoder.decode(packet)]
    decoded = np.stack([frame.to_ndarray(format="rgb24") for frame in frames])[:, :height, :width]
    return torch.from_numpy(decoded).movedim(-1, 1).float() / 255


def _replayable(encoder: str, options: Mapping[str, str], side_px: int) -> dict[str, str]:
    """Leave out what reads memory that was never written, so that two runs differ by a few code values.

    That is mbtree in x264, and an image that is one row or column of coding tree units in x265.
    """
    if encoder == "libx264":
        extra = ("x264-params", "mbtree=0")
    elif encoder == "libx265" and side_px <= X265_BLOCK_PX:
        extra = ("x265-params", f"ctu={X265_BLOCK_PX // 2}")
    else:
        return dict(options)
    name, value = extra
    return {**options, name: ":".join(filter(None, [options.get(name), value]))}


def _decoder(encoder: str) -> str:
    return {"libx264": "h264", "libx265": "hevc"}.get(encoder, encoder)
