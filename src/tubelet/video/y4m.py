"""Open a y4m stream on a pipe for reading without seeking."""

from __future__ import annotations

from collections.abc import Callable
from typing import IO

import av
from av.container import InputContainer

from tubelet.errors import InputError, error_text

__all__ = ["ForwardOnly", "open_y4m_pipe"]

_MAGIC = b"YUV4MPEG2 "
_BUFFER_BYTES = 1 << 20
_EXAMPLE = "ffmpeg -i FILE -f yuv4mpegpipe -"


class ForwardOnly:
    """A byte stream that can be read but not seeked.

    Attributes:
        total_bytes: Number of bytes read so far.
    """

    def __init__(self, read: Callable[[int], bytes], head: bytes) -> None:
        """Wrap a read function.

        Args:
            read: Returns up to the given number of bytes; none at the end.
            head: Bytes that were already read, and are returned first.
        """
        self._read = read
        self._head = head
        self.total_bytes = 0

    def read(self, size: int) -> bytes:
        """Read up to `size` bytes; none at the end."""
        data = self._head[:size]
        self._head = self._head[size:]
        data = data or self._read(size)
        self.total_bytes += len(data)
        return data


def open_y4m_pipe(stream: IO[bytes] | None = None) -> InputContainer:
    """Open a y4m stream.

    Args:
        stream: Stream to read; None is standard input.

    Raises:
        InputError: The stream is empty, or it is not y4m.
    """
    source = _standard_input() if stream is None else stream
    # read1 returns the bytes that are available, without waiting for a full buffer.
    read = getattr(source, "read1", source.read)
    head = _read_exactly(source, len(_MAGIC))
    if not head:
        raise InputError(f"standard input is empty; pipe y4m into it: {_EXAMPLE}")
    if head != _MAGIC:
        raise InputError(f"standard input is not y4m (it begins with {head!r}); pipe: {_EXAMPLE}")
    try:
        return av.open(
            ForwardOnly(read, head),
            mode="r",
            format="yuv4mpegpipe",
            buffer_size=_BUFFER_BYTES,
        )
    except (av.FFmpegError, OSError) as error:
        reason = error_text(error)
        raise InputError(f"the y4m stream on standard input cannot be read: {reason}") from error


def _standard_input() -> IO[bytes]:
    """Open standard input unbuffered.

    A thread that waits in a buffered reader would keep the interpreter from exiting.
    """
    try:
        return open(0, "rb", buffering=0, closefd=False)
    except OSError as error:
        raise InputError(f"standard input cannot be read: {error.strerror}") from error


def _read_exactly(source: IO[bytes], size: int) -> bytes:
    """Read `size` bytes, fewer only at the end of the stream."""
    data = b""
    while len(data) < size:
        chunk = source.read(size - len(data))
        if not chunk:
            break
        data += chunk
    return data
