"""A y4m stream on a pipe, opened for reading without seeking."""

from __future__ import annotations

from collections.abc import Callable
from typing import IO

import av
from av.container import InputContainer

from tubelet.errors import InputError

__all__ = ["ForwardOnly", "open_y4m_pipe"]

_MAGIC = b"YUV4MPEG2 "
_BUFFER_BYTES = 1 << 20


class ForwardOnly:
    """A byte stream that can only be read on; `head` was taken from it already.

    Attributes:
        total_bytes: that were read so far.
    """

    def __init__(self, read: Callable[[int], bytes], head: bytes) -> None:
        self._read = read
        self._head = head
        self.total_bytes = 0

    def read(self, size: int) -> bytes:
        """Read up to `size` bytes; none at the end."""
        data, self._head = self._head[:size], self._head[size:]
        data = data or self._read(size)
        self.total_bytes += len(data)
        return data


def open_y4m_pipe(stream: IO[bytes] | None = None) -> InputContainer:
    """Open a y4m stream.

    Args:
        stream: where it comes from; standard input by default.

    Raises:
        InputError: nothing comes, or it is not y4m.
    """
    source = _standard_input() if stream is None else stream
    read = getattr(source, "read1", source.read)  # what is there, without waiting for a full buffer
    head = _read_exactly(source, len(_MAGIC))
    if not head:
        raise InputError(
            "nothing came on standard input; pipe y4m into it: ffmpeg -i FILE -f yuv4mpegpipe -"
        )
    if head != _MAGIC:
        raise InputError(
            f"standard input is not y4m (it begins with {head!r}); pipe: ffmpeg -i FILE -f yuv4mpegpipe -"
        )
    try:
        return av.open(
            ForwardOnly(read, head), mode="r", format="yuv4mpegpipe", buffer_size=_BUFFER_BYTES
        )
    except (av.FFmpegError, OSError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"the y4m stream on standard input cannot be read: {reason}") from error


def _standard_input() -> IO[bytes]:
    """Open it without a buffer: a thread that waits in a buffered one keeps the interpreter from ending."""
    try:
        return open(0, "rb", buffering=0, closefd=False)
    except OSError as error:
        raise InputError(f"standard input cannot be read: {error.strerror}") from error


def _read_exactly(source: IO[bytes], size: int) -> bytes:
    data = b""
    while len(data) < size and (more := source.read(size - len(data))):
        data += more
    return data
