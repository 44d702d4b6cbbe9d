"""Write frames with their times to a file, a folder of images or a pipe."""

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
    """Writer of frames in presentation order; a context manager.

    The output gets its name only after an exit without an error. A writer joins one encoder for the
    whole video with the output that takes its packets. To encode a video in segments, use
    `VideoEncoder` and `open_output` directly.

    Attributes:
        notes: Remarks for the user, one line each. Complete after the exit.
    """

    def __init__(self, output: Output, output_format: OutputFormat) -> None:
        """Wrap an open output; see `open_writer`.

        Args:
            output: Output that takes the packets.
            output_format: Format in which frames are encoded.
        """
        self._output = output
        self._format = output_format
        self._encoder: VideoEncoder | None = None
        self.notes = output.notes

    def write(self, frame: Frame) -> None:
        """Write one frame.

        Args:
            frame: Frame of the size that the writer was opened for.

        Raises:
            RequestError: The frame has another size.
            ResourceError: The disk is full, or the pipe was closed.
        """
        if self._encoder is None:
            # The clock of the output starts at the first frame.
            clock = self._format.clock(frame.pts * frame.time_base)
            self._encoder = VideoEncoder(self._format, clock, self._output)
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
        """Finish the output, or remove it after an error."""
        if error is not None:
            self._output.discard()
            return
        try:
            if self._encoder is None:
                raise InputError("no frame was written, so there is no output")
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
    """Open an output for frames that are made from the video `like`.

    Args:
        dst: Video file, folder or printf pattern for PNGs, or "-" for y4m on stdout.
        like: Description of the input, which gives the color, the times, and the streams to copy.
        width: Width of the output, pixels.
        height: Height of the output, pixels.
        settings: Settings of the encoder.
        start_s: `start_s` of the reader; the output then begins at 0.
        duration_s: `duration_s` of the reader; audio stops there too.
        overwrite: Replace an existing output.

    Returns:
        A writer, to be used in a `with` statement.

    Raises:
        RequestError: The output must not or cannot be written, or the codec does not fit.
        ResourceError: An encoder is missing.
    """
    check_output(dst, source=like.source, overwrite=overwrite)
    output_format = choose_output_format(
        dst,
        like=like,
        width=width,
        height=height,
        settings=settings,
        start_s=start_s,
        duration_s=duration_s,
    )
    output = open_output(dst, output_format, like=like, overwrite=overwrite)
    return Writer(output, output_format)
