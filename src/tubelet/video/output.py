"""An output that appears only when it is whole: a container, a folder of images or a pipe."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from av.packet import Packet

from tubelet.video.destination import check_output, destination_kind, part_path, write_errors
from tubelet.video.encoder import PartHead, PartTail
from tubelet.video.image_muxer import ImageMuxer
from tubelet.video.info import VideoInfo
from tubelet.video.muxer import VideoMuxer
from tubelet.video.output_format import OutputFormat

__all__ = ["Output", "open_output"]


class _Muxer(Protocol):
    notes: list[str]

    def begin(self, head: PartHead) -> None: ...
    def put(self, packet: Packet[Any]) -> None: ...
    def end(self, tail: PartTail) -> None: ...
    def finish(self) -> None: ...
    def abort(self) -> None: ...


class Output:
    """A `PacketSink` for all segments of a video, in order; a context manager.

    The output has its name only after a clean exit; after an error nothing is left.

    Attributes:
        notes: what a user should know, a line each; complete after the exit.
    """

    def __init__(self, muxer: _Muxer, part: Path | None, final: Path | None) -> None:
        """Wrap an open muxer; `open_output` does it.

        Args:
            muxer: where packets go.
            part: the unfinished file, None where the muxer itself sees to names.
            final: the name that it gets.
        """
        self._muxer = muxer
        self._part = part
        self._final = final
        self.notes = muxer.notes

    def begin(self, head: PartHead) -> None:
        """Start a segment.

        Raises:
            InputError: it is not the one that is due, or is encoded in another way.
        """
        self._muxer.begin(head)

    def put(self, packet: Packet[Any]) -> None:
        """Take the next packet of the segment, in the order of decoding."""
        self._muxer.put(packet)

    def end(self, tail: PartTail) -> None:
        """End the segment."""
        self._muxer.end(tail)

    def __enter__(self) -> Self:
        """Return the output."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Finish the output, or remove it if anything went wrong."""
        if error is not None:
            self.discard()
            return
        self.finish()

    def finish(self) -> None:
        """Finish the output and give it its name.

        Raises:
            InputError: no frame came.
            ResourceError: the disk is full, or the pipe was closed.
        """
        try:
            self._muxer.finish()
            if self._part and self._final:
                with write_errors(str(self._final)):
                    self._part.replace(self._final)
        except BaseException:
            self.discard()
            raise

    def discard(self) -> None:
        """Remove what was written."""
        self._muxer.abort()
        if self._part:
            self._part.unlink(missing_ok=True)


def open_output(
    dst: str | Path,
    form: OutputFormat,
    *,
    like: VideoInfo,
    overwrite: bool = False,
) -> Output:
    """Open an output for the segments of a video.

    Args:
        dst: a video file, a folder or printf pattern for PNGs, or "-" for y4m on stdout.
        form: as `choose_output_format` gives it for the same destination.
        like: the input, whose other streams are copied beside the video.
        overwrite: replace an existing output.

    Returns:
        An output, to be used in a `with` statement.

    Raises:
        RequestError: the output must not or cannot be written, or the encoder refuses the format.
        ResourceError: the encoder needs a device that is absent.
    """
    check_output(dst, source=like.source, overwrite=overwrite)
    kind = destination_kind(dst)
    if kind in ("folder", "pattern"):
        return Output(ImageMuxer(Path(dst), form, is_pattern=kind == "pattern"), None, None)
    final = None if kind == "pipe" else Path(dst)
    part = part_path(final) if final else None
    name = "stdout" if final is None else str(final)
    return Output(VideoMuxer(part, form, like=like, name=name), part, final)
