"""Read from a file's header how many bytes the file should have; a shorter file was truncated."""

from __future__ import annotations

from pathlib import Path

__all__ = ["declared_bytes"]

_EBML_ID = b"\x1a\x45\xdf\xa3"
_SEGMENT_ID = b"\x18\x53\x80\x67"
_HEAD_BYTES = 4096
_RIFF_HEADER_BYTES = 8
_UNKNOWN_RIFF_SIZES = (0, 0xFFFFFFFF)


def declared_bytes(path: Path) -> int | None:
    """Read the size of a Matroska, WebM or AVI file from its first header.

    Args:
        path: Path of the file.

    Returns:
        Size in bytes; None for other formats, and where the header leaves the size open, as in live
        recordings.
    """
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    if head.startswith(b"RIFF"):
        size = int.from_bytes(head[4:8], "little")
        if size in _UNKNOWN_RIFF_SIZES:
            return None
        return _RIFF_HEADER_BYTES + size
    if not head.startswith(_EBML_ID):
        return None

    # Matroska is an EBML header followed by one segment, each an ID, a size and its content.
    size, start = _read_size(head, len(_EBML_ID))
    segment = start + (size or 0)
    if head[segment : segment + 4] != _SEGMENT_ID:
        return None
    size, start = _read_size(head, segment + 4)
    if size is None:
        return None
    return start + size


def _read_size(data: bytes, position: int) -> tuple[int | None, int]:
    """Decode an EBML size.

    The number of leading zero bits of the first byte is the number of bytes that follow it. A size
    of only ones is unknown.

    Args:
        data: Bytes of the file.
        position: Index of the first byte of the size.

    Returns:
        The size in bytes, None if unknown, and the index behind it.

    Source: RFC 8794, sections 4 and 6.
    """
    if position >= len(data) or not data[position]:
        return None, position
    length = 9 - data[position].bit_length()
    end = position + length
    # Each byte of the length costs one bit, for its leading zero or the marker.
    mask = (1 << 7 * length) - 1
    size = int.from_bytes(data[position:end], "big") & mask
    if size == mask:
        return None, end
    return size, end
