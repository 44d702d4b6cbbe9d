"""Write packets that are images into numbered files, as a muxer writes others into a container."""

from __future__ import annotations

import contextlib
import secrets
import shutil
from pathlib import Path
from typing import Any

from av.packet import Packet

from tubelet.video.destination import FOLDER_NAMES, images_in, write_errors
from tubelet.video.encoder import PartHead, PartTail
from tubelet.video.output_format import OutputFormat
from tubelet.video.part_order import PartOrder

__all__ = ["ImageMuxer"]


class ImageMuxer:
    """A `PacketSink` that writes each packet as an image, in a hidden folder until all are there.

    Attributes:
        notes: what a user should know, a line each.
    """

    def __init__(self, dst: Path, form: OutputFormat, *, is_pattern: bool) -> None:
        """Make the hidden folder.

        Args:
            dst: folder, or printf pattern of the files.
            form: how the images are encoded.
            is_pattern: `dst` is a pattern.
        """
        self.notes: list[str] = list(form.encoding.notes)
        if is_pattern:
            self._folder, self._names = dst.parent, dst.name
            self._hidden = self._folder / f".images.part-{secrets.token_hex(4)}"
        else:
            self._folder, self._names = dst, FOLDER_NAMES
            self._hidden = dst.parent / f".{dst.name}.part-{secrets.token_hex(4)}"
        self._parts = PartOrder(form.fingerprint)
        self._count = 0
        with write_errors(str(dst)):
            self._hidden.mkdir()

    def begin(self, head: PartHead) -> None:
        """Start a segment; its images go on counting where the last one ended.

        Raises:
            InputError: it is not the one that is due, or is encoded in another way.
        """
        self._parts.begin(head)

    def put(self, packet: Packet[Any]) -> None:
        """Write one image."""
        path = self._hidden / (self._names % self._count)
        with write_errors(path.name):
            path.write_bytes(bytes(packet))
        self._count += 1

    def end(self, tail: PartTail) -> None:
        """End the segment."""
        self._parts.end(tail)

    def finish(self) -> None:
        """Put the images where they belong; older ones under the same pattern go.

        Raises:
            InputError: no frame came.
            ResourceError: the folder cannot be written.
        """
        self._parts.finish()
        with write_errors(str(self._folder)):
            if not self._folder.exists():
                self._hidden.rename(self._folder)
                return
            for old in images_in(self._folder, self._names):
                old.unlink()
            for image in sorted(self._hidden.iterdir()):
                image.replace(self._folder / image.name)
            self._hidden.rmdir()

    def abort(self) -> None:
        """Remove what was written."""
        with contextlib.suppress(OSError):
            shutil.rmtree(self._hidden)
