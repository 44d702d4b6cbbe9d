"""Describe a video after decoding only its first frame."""

from __future__ import annotations

from pathlib import Path

from tubelet.errors import InputError
from tubelet.video.info import VideoInfo
from tubelet.video.reader import open_reader

__all__ = ["probe"]


def probe(src: str | Path) -> VideoInfo:
    """Describe a video by its header and its first frame.

    Args:
        src: File, image folder or printf pattern. A pipe ("-") cannot be probed, because that
            would consume it; use `open_reader("-").info`.

    Raises:
        InputError: The input is missing or cannot be decoded.
    """
    if str(src) == "-":
        raise InputError("a probe would consume the pipe; use open_reader and read .info")
    with open_reader(src) as reader:
        return reader.info
