"""Write frames as numbered PNG files: 8 bit, or 16 bit where the source has more."""

from __future__ import annotations

import contextlib
import secrets
import shutil
from pathlib import Path
from typing import Any

import av

from tubelet.errors import InputError
from tubelet.types import Frame
from tubelet.video.colour import rgb_to_frame
from tubelet.video.destination import FOLDER_NAMES, pictures_in
from tubelet.video.probe import ColourTags, VideoInfo
from tubelet.video.remux import describe_left_out
from tubelet.video.video_sink import write_errors

__all__ = ["ImageSink"]


class ImageSink:
    """Numbered pictures, in a hidden folder until all are there."""

    def __init__(self, dst: Path, *, is_pattern: bool, like: VideoInfo, size: tuple[int, int]) -> None:
        """Make the hidden folder.

        Args:
            dst: folder, or printf pattern of the files.
            is_pattern: `dst` is a pattern.
            like: the input.
            size: width and height of the output, pixels.
        """
        self._folder, self._names = (dst.parent, dst.name) if is_pattern else (dst, FOLDER_NAMES)
        self._part = self._folder.parent / f".{self._folder.name}.part-{secrets.token_hex(4)}"
        if is_pattern:
            self._part = self._folder / f".pictures.part-{secrets.token_hex(4)}"
        self._count = 0
        self._encoder: Any = av.CodecContext.create("png", "w")
        self._encoder.width, self._encoder.height = size
        self._encoder.pix_fmt = ("rgba" if like.has_alpha else "rgb") + (
            ("64be" if like.has_alpha else "48be") if like.bit_depth > 8 else ("" if like.has_alpha else "24")
        )
        self._encoder.time_base = like.time_base
        self._encoder.options = {"compression_level": "3", "pred": "sub"}
        self.notes = describe_left_out(like, "PNG pictures hold")
        with write_errors(str(dst)):
            self._part.mkdir()

    def write(self, frame: Frame) -> None:
        """Write one picture."""
        picture = rgb_to_frame(frame.rgb, frame.alpha, pix_fmt=self._encoder.pix_fmt, colour=ColourTags(matrix=0))
        picture.pts = self._count
        data = b"".join(bytes(packet) for packet in self._encoder.encode(picture))
        path = self._part / (self._names % self._count)
        with write_errors(path.name):
            path.write_bytes(data)
        self._count += 1

    def finish(self) -> None:
        """Put the pictures where they belong; older ones under the same pattern go."""
        if self._count == 0:
            raise InputError("no frame came to be written, so there is no output")
        with write_errors(str(self._folder)):
            if not self._folder.exists():
                self._part.rename(self._folder)
                return
            for old in pictures_in(self._folder, self._names):
                old.unlink()
            for picture in sorted(self._part.iterdir()):
                picture.replace(self._folder / picture.name)
            self._part.rmdir()

    def abort(self) -> None:
        """Remove what was written."""
        with contextlib.suppress(OSError):
            shutil.rmtree(self._part)
