"""Report which encoders work in the FFmpeg that PyAV contains."""

from __future__ import annotations

import os
from fractions import Fraction
from typing import Any, cast

import av

from tubelet.video.codecs import CODECS

__all__ = ["encoder_works", "library_versions", "working_codecs"]

# Codecs that a user cannot choose, because they follow from the container.
_NOT_CHOSEN = ("gif", "rawvideo")
# Large enough for every encoder.
_TRIAL_SIZE_PX = 256


def library_versions() -> dict[str, str]:
    """Read the versions of PyAV and of its FFmpeg libraries."""
    versions = {"PyAV": av.__version__}
    for name, version in sorted(av.library_versions.items()):
        versions[name] = ".".join(map(str, version))
    return versions


def encoder_works(name: str) -> bool:
    """Return whether an encoder exists and opens.

    A hardware encoder may be part of FFmpeg although its hardware is absent.

    Args:
        name: FFmpeg's name of a video encoder, for example libx264.
    """
    # Keeps SVT-AV1 from printing its settings on stderr.
    os.environ.setdefault("SVT_LOG", "1")
    try:
        context = cast(Any, av.CodecContext.create(name, "w"))
        video_formats = av.Codec(name, "w").video_formats or ()
        formats: list[str] = [pix_fmt.name for pix_fmt in video_formats]
        context.width = _TRIAL_SIZE_PX
        context.height = _TRIAL_SIZE_PX
        context.pix_fmt = "yuv420p" if "yuv420p" in formats else formats[0]
        context.time_base = Fraction(1, 25)
        if name == "libx265":
            context.options = {"x265-params": "log-level=none"}
        context.open()
    except (av.FFmpegError, ValueError, IndexError):
        return False
    return True


def working_codecs() -> dict[str, bool]:
    """Return for each codec of `--codec` whether its encoder works here."""
    codecs: dict[str, bool] = {}
    for name, spec in CODECS.items():
        if name not in _NOT_CHOSEN:
            codecs[name] = encoder_works(spec.encoder)
    return codecs
