"""Damage in the middle of a Matroska file: FFmpeg goes on at the next cluster, and says so only in its log."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from av.packet import Packet

__all__ = ["GapDetector"]

_HEADERS_BYTES = 128  # of a block and of a cluster, generously
_USUAL_SHARE = 0.1  # where so many packets follow a jump, it is something else: alpha beside them, unknown tracks


@dataclass(frozen=True, slots=True)
class _Hole:
    at_s: float
    frames: int


class GapDetector:
    """Finds places where bytes were jumped over and time is missing from the video at once.

    Either alone means nothing: bytes also hold what is not a packet, and a variable frame rate has gaps of its
    own. All packets of the file must be shown to it, in the order of the file.
    """

    def __init__(self, video_index: int, rate: Fraction) -> None:
        """Prepare.

        Args:
            video_index: index of the video stream.
            rate: its frames a second.
        """
        self._video_index = video_index
        self._rate = rate
        self._end_byte: int | None = None
        self._last_s: Fraction | None = None
        self._jumped = False
        self._jumps = self._packets = 0
        self._holes: list[_Hole] = []

    def note(self, packet: Packet[Any]) -> None:
        """Look at the next packet of the file."""
        start = packet.pos
        if start is not None and start >= 0:
            jumped = self._end_byte is not None and start - self._end_byte > _HEADERS_BYTES
            self._packets, self._jumps = self._packets + 1, self._jumps + jumped
            self._jumped |= jumped
            self._end_byte = max(self._end_byte or 0, start + packet.size)
        if packet.stream_index != self._video_index or packet.pts is None:
            return
        time_s = packet.pts * Fraction(packet.time_base)
        if self._jumped and self._last_s is not None:
            lost = round((time_s - self._last_s) * self._rate) - 1
            if lost > 0:
                self._holes.append(_Hole(float(self._last_s), lost))
        self._jumped = False
        self._last_s = time_s if self._last_s is None else max(self._last_s, time_s)

    def report(self, start_s: float, end_s: float) -> str:
        """Say how much is missing before `end_s` and where, "" for nothing; what is said counts from `start_s`."""
        holes = [hole for hole in self._holes if hole.at_s < end_s]
        if not holes or self._jumps > len(holes) + _USUAL_SHARE * self._packets:
            return ""
        count, at = sum(hole.frames for hole in holes), f"{holes[0].at_s - start_s:.2f} s"
        places = f"at {at}" if len(holes) == 1 else f"in {len(holes)} places, first at {at}"
        return f"about {count} frames are missing {places}, where the file is damaged"
