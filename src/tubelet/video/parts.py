"""Store the packets of one segment in a file until all segments are joined.

Any process can encode any segment, in any order. `copy_part` then passes the packets to the output
as the encoder would have done. Packets stay exactly the same: no container rounds their times.

    8 bytes   signature
    ...       packets, each followed by its side data
    ...       index: JSON with the head, the tail, and size, times and flags of each packet
    8 bytes   length of the index, little endian
    8 bytes   signature

Only the version of Tubelet that wrote a file reads it; the format is not meant for other programs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from av.packet import Packet, PacketSideData

from tubelet.errors import InputError
from tubelet.video.destination import part_path, write_errors
from tubelet.video.encoder import PacketSink, PartHead, PartTail
from tubelet.video.output_format import OutputClock

__all__ = ["PartFile", "PartWriter", "copy_part", "open_part"]

_SIGNATURE = b"TBLTPRT1"
_LENGTH_BYTES = 8
_END_BYTES = _LENGTH_BYTES + len(_SIGNATURE)
# Side data with the transparency of VP9: PyAV's name of it, and its AV_PKT_DATA_* value.
_BLOCK_ADDITIONAL = "matroska_block_additional"
_BLOCK_ADDITIONAL_TYPE = 15


@dataclass(frozen=True, slots=True)
class _Entry:
    """Properties of one packet, stored as a row of the index in this order."""

    size: int
    side_size: int
    pts: int | None
    dts: int | None
    duration: int
    is_keyframe: bool


class PartWriter:
    """A `PacketSink` that writes a part file; a context manager.

    The file gets its name only after an exit without an error. It is then complete, even after a
    power failure.
    """

    def __init__(self, path: str | Path) -> None:
        """Create a writer; `begin` creates the file.

        Args:
            path: Path of the part file; an existing file is replaced.
        """
        self._path = Path(path)
        self._unfinished = part_path(self._path)
        self._file: IO[bytes] | None = None
        self._head: PartHead | None = None
        self._entries: list[_Entry] = []
        self._is_complete = False

    def begin(self, head: PartHead) -> None:
        """Start the segment.

        Raises:
            ResourceError: The file cannot be written.
        """
        self._head = head
        with write_errors(str(self._path)):
            self._file = self._unfinished.open("wb")
            self._file.write(_SIGNATURE)

    def put(self, packet: Packet[Any]) -> None:
        """Write the next packet, in decoding order."""
        side_data = b""
        if packet.has_sidedata(_BLOCK_ADDITIONAL):
            side_data = bytes(packet.get_sidedata(_BLOCK_ADDITIONAL))
        self._write(bytes(packet) + side_data)
        entry = _Entry(
            size=packet.size,
            side_size=len(side_data),
            pts=packet.pts,
            dts=packet.dts,
            duration=packet.duration or 0,
            is_keyframe=packet.is_keyframe,
        )
        self._entries.append(entry)

    def end(self, tail: PartTail) -> None:
        """Write the index."""
        assert self._head is not None, "begin comes first"
        index = {
            "head": _head_to_json(self._head),
            "tail": dataclasses.asdict(tail),
            "packets": [dataclasses.astuple(entry) for entry in self._entries],
        }
        text = json.dumps(index, separators=(",", ":")).encode()
        length = len(text).to_bytes(_LENGTH_BYTES, "little")
        self._write(text + length + _SIGNATURE)
        self._is_complete = True

    def __enter__(self) -> Self:
        """Return the writer."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Give the file its name, or remove it after an error."""
        if self._file is None:
            return
        try:
            if error is None and self._is_complete:
                self._publish(self._file)
        finally:
            self._file.close()
            with contextlib.suppress(OSError):
                self._unfinished.unlink(missing_ok=True)

    def _write(self, data: bytes) -> None:
        assert self._file is not None, "begin comes first"
        with write_errors(str(self._path)):
            self._file.write(data)

    def _publish(self, file: IO[bytes]) -> None:
        """Rename the file after its content has reached the disk."""
        with write_errors(str(self._path)):
            file.flush()
            os.fsync(file.fileno())
            file.close()
            self._unfinished.replace(self._path)


class PartFile:
    """An open part file whose index was read.

    Attributes:
        head: Properties known before the first packet; an output checks the fingerprint.
        tail: Properties known after the last packet.
    """

    def __init__(self, path: Path, head: PartHead, tail: PartTail, entries: list[_Entry]) -> None:
        """Wrap a file and its index; see `open_part`."""
        self.head = head
        self.tail = tail
        self._path = path
        self._entries = entries

    def packets(self) -> Iterator[Packet[Any]]:
        """Yield the packets, in decoding order.

        Raises:
            InputError: The file was changed after it was opened.
        """
        with self._path.open("rb") as file:
            file.seek(len(_SIGNATURE))
            for entry in self._entries:
                data = file.read(entry.size)
                side_data = file.read(entry.side_size)
                if len(side_data) != entry.side_size:
                    raise _damaged(self._path)
                yield self._packet(entry, data, side_data)

    def _packet(self, entry: _Entry, data: bytes, side_data: bytes) -> Packet[Any]:
        """Restore a packet with its times, flags and side data."""
        packet: Packet[Any] = Packet(data)
        packet.pts = entry.pts
        packet.dts = entry.dts
        packet.duration = entry.duration
        packet.time_base = self.head.clock.tick_s
        packet.is_keyframe = entry.is_keyframe
        if side_data:
            # The constructor is missing from the stubs.
            untyped: Any = PacketSideData
            extra = untyped(_BLOCK_ADDITIONAL_TYPE, len(side_data))
            extra.update(side_data)
            packet.set_sidedata(extra)
        return packet


def open_part(path: str | Path) -> PartFile:
    """Read the index of a part file.

    Args:
        path: Path of the part file.

    Raises:
        InputError: The file is missing or incomplete.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            index, data_bytes = _read_index(file)
        entries = [_Entry(*row) for row in index["packets"]]
        head = _head_from_json(index["head"])
        tail = _tail_from_json(index["tail"])
    except FileNotFoundError as error:
        raise InputError(f"no such part file: {path}") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(path) from error
    expected_bytes = sum(entry.size + entry.side_size for entry in entries)
    if expected_bytes != data_bytes:
        raise _damaged(path)
    return PartFile(path, head, tail, entries)


def copy_part(path: str | Path, sink: PacketSink) -> None:
    """Pass the packets of a part file to an output.

    Args:
        path: Path of the part file.
        sink: Destination of the segments of the video, in order.

    Raises:
        InputError: The file is missing or incomplete, or does not fit the output.
    """
    part = open_part(path)
    sink.begin(part.head)
    for packet in part.packets():
        sink.put(packet)
    sink.end(part.tail)


def _read_index(file: IO[bytes]) -> tuple[dict[str, Any], int]:
    """Read the index from the end of a file.

    Returns:
        The index, and the number of bytes of packets before it.

    Raises:
        ValueError: The index is missing.
    """
    index_end = file.seek(0, os.SEEK_END) - _END_BYTES
    file.seek(max(0, index_end))
    length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
    signature = file.read()
    data_bytes = index_end - length - len(_SIGNATURE)
    if signature != _SIGNATURE or data_bytes < 0:
        raise ValueError("no index at the end")
    file.seek(index_end - length)
    return json.loads(file.read(length)), data_bytes


def _head_to_json(head: PartHead) -> dict[str, Any]:
    return {
        "segment": head.segment,
        "fingerprint": head.fingerprint,
        "clock": head.clock.to_json(),
        "extradata": head.extradata.hex(),
    }


def _head_from_json(data: dict[str, Any]) -> PartHead:
    return PartHead(
        segment=data["segment"],
        fingerprint=data["fingerprint"],
        clock=OutputClock.from_json(data["clock"]),
        extradata=bytes.fromhex(data["extradata"]),
    )


def _tail_from_json(data: dict[str, Any]) -> PartTail:
    return PartTail(frames=data["frames"], end=data["end"], notes=tuple(data["notes"]))


def _damaged(path: Path) -> InputError:
    return InputError(
        f"part file {path} is damaged or incomplete; remove it and encode its segment again"
    )
