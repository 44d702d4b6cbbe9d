"""Open an output that appears under its name only when it is complete."""

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

    The output gets its name only after an exit without an error; after an error nothing remains.

    Attributes:
        notes: Remarks for the user, one line each. Complete after the exit.
    """

    def __init__(self, muxer: _Muxer, unfinished: Path | None, final: Path | None) -> None:
        """Wrap an open muxer; see `open_output`.

        Args:
            muxer: Muxer that takes the packets.
            unfinished: File that the muxer writes; None where the muxer handles names itself.
            final: Name of the file once it is complete.
        """
        self._muxer = muxer
        self._unfinished = unfinished
        self._final = final
        self.notes = muxer.notes

    def begin(self, head: PartHead) -> None:
        """Start a segment.

        Raises:
            InputError: It is not the next segment, or was encoded differently.
        """
        self._muxer.begin(head)

    def put(self, packet: Packet[Any]) -> None:
        """Write the next packet of the segment, in decoding order."""
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
        """Finish the output, or remove it after an error."""
        if error is not None:
            self.discard()
            return
        self.finish()

    def finish(self) -> None:
        """Finish the output and give it its name.

        Raises:
            InputError: No frame was written.
            ResourceError: The disk is full, or the pipe was closed.
        """
        try:
            self._muxer.finish()
            if self._unfinished and self._final:
                with write_errors(str(self._final)):
                    self._unfinished.replace(self._final)
        except BaseException:
            self.discard()
            raise

    def discard(self) -> None:
        """Remove the unfinished output."""
        self._muxer.abort()
        if self._unfinished:
            self._unfinished.unlink(missing_ok=True)


def open_output(
    dst: str | Path,
    output_format: OutputFormat,
    *,
    like: VideoInfo,
    overwrite: bool = False,
) -> Output:
    """Open an output for the segments of a video.

    Args:
        dst: Video file, folder or printf pattern for PNGs, or "-" for y4m on stdout.
        output_format: Result of `choose_output_format` for the same destination.
        like: Description of the input, whose other streams are copied into the output.
        overwrite: Replace an existing output.

    Returns:
        An output, to be used in a `with` statement.

    Raises:
        RequestError: The output must not or cannot be written, or the encoder refuses the format.
        ResourceError: The encoder needs a device that is absent.
    """
    check_output(dst, source=like.source, overwrite=overwrite)
    kind = destination_kind(dst)
    if kind in ("folder", "pattern"):
        # Images have a hidden folder of their own until they are complete.
        muxer = ImageMuxer(Path(dst), output_format, is_pattern=kind == "pattern")
        return Output(muxer, None, None)
    if kind == "pipe":
        video_muxer = VideoMuxer(None, output_format, like=like, name="stdout")
        return Output(video_muxer, None, None)
    final = Path(dst)
    unfinished = part_path(final)
    video_muxer = VideoMuxer(unfinished, output_format, like=like, name=str(final))
    return Output(video_muxer, unfinished, final)
