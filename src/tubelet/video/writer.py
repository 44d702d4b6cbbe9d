"""Frames with their times into a file, a folder of pictures or a pipe, beside all else of the source."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from tubelet.errors import RequestError
from tubelet.types import Frame
from tubelet.video.codecs import EncodeSettings
from tubelet.video.destination import check_output, destination_kind, part_path
from tubelet.video.image_sink import ImageSink
from tubelet.video.probe import VideoInfo
from tubelet.video.video_sink import VideoSink, write_errors

__all__ = ["EncodeSettings", "Writer", "check_output", "open_writer"]

_DEFAULTS = EncodeSettings()


class _Sink(Protocol):
    notes: list[str]

    def write(self, frame: Frame) -> None: ...
    def finish(self) -> None: ...
    def abort(self) -> None: ...


class Writer:
    """Takes frames in presentation order; the output has its name only after a clean exit.

    Attributes:
        notes: what a person should know, a line each; complete after the exit.
    """

    def __init__(self, sink: _Sink, size: tuple[int, int], part: Path | None, final: Path | None) -> None:
        """Wrap an open sink; `open_writer` does it.

        Args:
            sink: where frames go.
            size: width and height that frames must have, pixels.
            part: the unfinished file, None where the sink itself sees to names.
            final: the name that it gets.
        """
        self._sink = sink
        self._size = size
        self._part = part
        self._final = final
        self.notes = sink.notes

    def write(self, frame: Frame) -> None:
        """Write one frame.

        Args:
            frame: rgb of the size that the writer was opened for.

        Raises:
            RequestError: the frame has another size.
            ResourceError: the disk is full, or the pipe was closed.
        """
        height, width = frame.rgb.shape[-2:]
        if (width, height) != self._size:
            raise RequestError(
                f"frame {frame.index} is {width}x{height}, but the output was opened for "
                f"{self._size[0]}x{self._size[1]}"
            )
        self._sink.write(frame)

    def __enter__(self) -> Self:
        """Return the writer."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Finish the output, or remove it if anything went wrong."""
        if error is not None:
            self._discard()
            return
        try:
            self._sink.finish()
            if self._part and self._final:
                with write_errors(str(self._final)):
                    self._part.replace(self._final)
        except BaseException:
            self._discard()
            raise

    def _discard(self) -> None:
        self._sink.abort()
        if self._part:
            self._part.unlink(missing_ok=True)


def open_writer(
    dst: str | Path,
    *,
    like: VideoInfo,
    width: int,
    height: int,
    settings: EncodeSettings = _DEFAULTS,
    start_s: float = 0.0,
    duration_s: float | None = None,
    overwrite: bool = False,
) -> Writer:
    """Open an output for frames that come from `like`.

    Args:
        dst: a video file, a folder or printf pattern for PNGs, or "-" for y4m on stdout.
        like: the input: its colour, times, and the streams that are copied beside the video.
        width: of the output, pixels.
        height: of the output, pixels.
        settings: of the encoder.
        start_s: where the reader was told to start; the output begins at 0 then.
        duration_s: after how much the reader was told to stop; sound stops there too.
        overwrite: replace an existing output.

    Returns:
        A writer, to be used in a `with` statement.

    Raises:
        RequestError: the output must not or cannot be written, or the codec does not fit.
        ResourceError: an encoder is missing.
    """
    check_output(dst, source=like.source, overwrite=overwrite)
    kind, size = destination_kind(dst), (width, height)
    if kind in ("folder", "pattern"):
        sink = ImageSink(Path(dst), is_pattern=kind == "pattern", like=like, size=size)
        return Writer(sink, size, None, None)
    final = None if kind == "pipe" else Path(dst)
    part = part_path(final) if final else None
    video = VideoSink(
        part,
        name="stdout" if final is None else str(final),
        suffix=final.suffix.lower() if final else ".y4m",
        like=like,
        size=size,
        settings=settings,
        cut=(start_s, duration_s),
    )
    return Writer(video, size, part, final)
