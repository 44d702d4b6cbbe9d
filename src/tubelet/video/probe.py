"""Describe a video without decoding more than its first frame."""

from __future__ import annotations

from pathlib import Path

from tubelet.errors import InputError
from tubelet.video.info import VideoInfo
from tubelet.video.reader import open_reader

__all__ = ["probe"]


def probe(src: str | Path) -> VideoInfo:
    """Describe a video by its header and its first frame.

    Args:
        src: a file, an image folder or a printf pattern. A pipe ("-") cannot be probed without
            using it up: `open_reader("-").info` describes it.

    Raises:
        InputError: there is nothing that can be decoded.
    """
    if str(src) == "-":
        raise InputError("a pipe would be used up by a probe; use open_reader and read .info")
    with open_reader(src) as reader:
        return reader.info
