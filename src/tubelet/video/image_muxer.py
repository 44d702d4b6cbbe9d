"""Write packets that are images to numbered files."""

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
        notes: Remarks for the user, one line each.
    """

    def __init__(self, dst: Path, output_format: OutputFormat, *, is_pattern: bool) -> None:
        """Create the hidden folder.

        Args:
            dst: Folder, or printf pattern of the files.
            output_format: Format in which the images are encoded.
            is_pattern: `dst` is a pattern.
        """
        self.notes: list[str] = list(output_format.encoding.notes)
        token = secrets.token_hex(4)
        if is_pattern:
            self._folder = dst.parent
            self._names = dst.name
            self._hidden = dst.parent / f".images.part-{token}"
        else:
            self._folder = dst
            self._names = FOLDER_NAMES
            self._hidden = dst.parent / f".{dst.name}.part-{token}"
        self._parts = PartOrder(output_format.fingerprint)
        self._count = 0
        with write_errors(str(dst)):
            self._hidden.mkdir()

    def begin(self, head: PartHead) -> None:
        """Start a segment; the numbers of its images continue those of the previous one.

        Raises:
            InputError: It is not the next segment, or was encoded differently.
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
        """Move the images to their folder, and remove older ones that match the same pattern.

        Raises:
            InputError: No frame was written.
            ResourceError: The folder cannot be written.
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
        """Remove the images written so far."""
        with contextlib.suppress(OSError):
            shutil.rmtree(self._hidden)
