"""How long a file says it is, in bytes: a shorter one was cut off, however little is missing."""

from __future__ import annotations

from pathlib import Path

__all__ = ["declared_bytes"]

_EBML, _SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"
_HEAD_BYTES = 4096
_UNKNOWN_RIFF = (0, 0xFFFFFFFF)


def declared_bytes(path: Path) -> int | None:
    """Read the length of a Matroska, WebM or AVI file from its first header.

    Args:
        path: of the file.

    Returns:
        The length, or None where the header leaves it open, as live recordings do.
    """
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    if head.startswith(b"RIFF"):
        size = int.from_bytes(head[4:8], "little")
        return None if size in _UNKNOWN_RIFF else 8 + size
    if not head.startswith(_EBML):
        return None
    length, start = _read_size(head, len(_EBML))
    segment = start + (length or 0)
    if head[segment : segment + 4] != _SEGMENT:
        return None
    length, start = _read_size(head, segment + 4)
    return None if length is None else start + length


def _read_size(data: bytes, at: int) -> tuple[int | None, int]:
    """Decode an EBML size: the leading zeros of the first byte count the bytes that follow; all ones: unknown.

    Source: RFC 8794, sections 4 and 6.
    """
    if at >= len(data) or not data[at]:
        return None, at
    count = 9 - data[at].bit_length()
    bits = int.from_bytes(data[at : at + count], "big") & ((1 << 7 * count) - 1)
    return (None if bits == (1 << 7 * count) - 1 else bits), at + count
