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

__all__ = ["recode"]


def recode(clip: Tensor, encoder: str, options: Mapping[str, str], *, rate: int = 25) -> Tensor:
    """Pass a clip through a lossy encoder and its decoder.

    Args:
        clip: (T, 3, H, W) in [0, 1].
        encoder: FFmpeg's name of it, for example libx264; it must take yuv420p.
        options: FFmpeg's options of the encoder, for example {"crf": "28"}.
        rate: frames a second, which the rate control reckons with.

    Returns:
        (T, 3, H, W) in [0, 1], multiples of 1/255.

    Raises:
        ResourceError: this build of FFmpeg has no such encoder.
    """
    height, width = clip.shape[-2:]
    even = torch.nn.functional.pad(clip, (0, width % 2, 0, height % 2), mode="replicate")
    try:
        context = cast(Any, av.CodecContext.create(encoder, "w"))
    except (av.FFmpegError, ValueError) as error:
        raise ResourceError(f"FFmpeg has no encoder {encoder!r}; install PyAV from PyPI, which has it") from error
    context.width, context.height = even.shape[-1], even.shape[-2]
    context.pix_fmt, context.time_base, context.framerate = "yuv420p", Fraction(1, rate), rate
    context.thread_count = 1
    context.options = _safe(encoder, options, min(even.shape[-2:]))
    packets: list[Any] = []
    pixels = (even.movedim(1, -1) * 255).round().byte().contiguous().numpy()  # (T, H, W, 3)
    for pts, picture in enumerate(pixels):
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
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


def _safe(encoder: str, options: Mapping[str, str], side_px: int) -> dict[str, str]:
    """x265's cutree writes beyond its buffers in pictures of less than a coding tree unit: leave it out there."""
    safe = dict(options)
    if encoder == "libx265" and side_px < 64:
        safe["x265-params"] = ":".join(filter(None, [safe.get("x265-params"), "cutree=0"]))
    return safe


def _decoder(encoder: str) -> str:
    return {"libx264": "h264", "libx265": "hevc"}.get(encoder, encoder)
