"""Write frames with their times into a file, a folder of images or a pipe."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Self

from tubelet.errors import InputError
from tubelet.types import Frame
from tubelet.video.codecs import EncodeSettings
from tubelet.video.destination import check_output
from tubelet.video.encoder import VideoEncoder
from tubelet.video.info import VideoInfo
from tubelet.video.output import Output, open_output
from tubelet.video.output_format import OutputFormat, choose_output_format

__all__ = ["EncodeSettings", "Writer", "check_output", "open_writer"]

_DEFAULTS = EncodeSettings()


class Writer:
    """Takes frames in presentation order; the output has its name only after a clean exit.

    It is one encoder for the whole video and the output that takes its packets. Whoever restores a
    video in segments uses the two apart.

    Attributes:
        notes: what a user should know, a line each; complete after the exit.
    """

    def __init__(self, output: Output, form: OutputFormat) -> None:
        """Wrap an open output; `open_writer` does it.

        Args:
            output: where packets go.
            form: how frames are encoded.
        """
        self._output = output
        self._form = form
        self._encoder: VideoEncoder | None = None
        self.notes = output.notes

    def write(self, frame: Frame) -> None:
        """Write one frame.

        Args:
            frame: rgb of the size that the writer was opened for.

        Raises:
            RequestError: the frame has another size.
            ResourceError: the disk is full, or the pipe was closed.
        """
        if self._encoder is None:
            clock = self._form.clock(frame.pts * frame.time_base)
            self._encoder = VideoEncoder(self._form, clock, self._output)
        self._encoder.write(frame)

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
            self._output.discard()
            return
        try:
            if self._encoder is None:
                raise InputError("no frame came to be written, so there is no output")
            self._encoder.finish()
        except BaseException:
            self._output.discard()
            raise
        self._output.finish()


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
        like: the input: its color, times, and the streams that are copied beside the video.
        width: of the output, pixels.
        height: of the output, pixels.
        settings: of the encoder.
        start_s: where the reader was told to start; the output begins at 0 then.
        duration_s: after how much the reader was told to stop; audio stops there too.
        overwrite: replace an existing output.

    Returns:
        A writer, to be used in a `with` statement.

    Raises:
        RequestError: the output must not or cannot be written, or the codec does not fit.
        ResourceError: an encoder is missing.
    """
    check_output(dst, source=like.source, overwrite=overwrite)
    form = choose_output_format(
        dst,
        like=like,
        width=width,
        height=height,
        settings=settings,
        start_s=start_s,
        duration_s=duration_s,
    )
    return Writer(open_output(dst, form, like=like, overwrite=overwrite), form)
