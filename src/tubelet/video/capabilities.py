"""What the FFmpeg inside PyAV can do here."""

from __future__ import annotations

import os
from fractions import Fraction
from typing import Any, cast

import av

from tubelet.video.codecs import CODECS

__all__ = ["encoder_works", "library_versions", "working_codecs"]

_NOT_CHOSEN = ("gif", "rawvideo")  # these follow from the container


def library_versions() -> dict[str, str]:
    """Read the versions of PyAV and of its FFmpeg libraries."""
    libraries = {
        name: ".".join(map(str, version)) for name, version in sorted(av.library_versions.items())
    }
    return {"PyAV": av.__version__, **libraries}


def encoder_works(name: str) -> bool:
    """Say whether an encoder exists and opens: a hardware encoder can be built in and have no hardware.

    Args:
        name: FFmpeg's name of a video encoder, for example libx264.
    """
    os.environ.setdefault("SVT_LOG", "1")  # SVT-AV1 prints its settings on stderr otherwise
    try:
        context = cast(Any, av.CodecContext.create(name, "w"))
        formats: list[str] = [layout.name for layout in av.Codec(name, "w").video_formats or ()]
        context.width, context.height = 256, 256
        context.pix_fmt = "yuv420p" if "yuv420p" in formats else formats[0]
        context.time_base = Fraction(1, 25)
        if name == "libx265":
            context.options = {"x265-params": "log-level=none"}
        context.open()
    except (av.FFmpegError, ValueError, IndexError):
        return False
    return True


def working_codecs() -> dict[str, bool]:
    """Say for each codec that `--codec` takes whether its encoder works here."""
    return {
        name: encoder_works(spec.encoder)
        for name, spec in CODECS.items()
        if name not in _NOT_CHOSEN
    }
