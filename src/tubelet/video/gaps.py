"""Find frames lost in the middle of a damaged Matroska file.

FFmpeg resumes at the next cluster and reports the damage only in its log.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from av.packet import Packet

__all__ = ["GapDetector"]

# A generous bound for the headers of a block and of a cluster between two packets.
_MAX_HEADER_BYTES = 128
# Where more packets than this follow a jump, the bytes hold something else: alpha, unknown tracks.
_MAX_JUMPING_SHARE = 0.1


@dataclass(frozen=True, slots=True)
class _Gap:
    """Frames that are missing after a time."""

    at_s: float
    frames: int


class GapDetector:
    """Finds places where bytes were skipped and time is missing from the video as well.

    One sign without the other means nothing: bytes may also hold data that is not a packet, and a
    variable frame rate has gaps too. The detector must see all packets of the file, in file order.
    """

    def __init__(self, video_index: int, rate: Fraction) -> None:
        """Create a detector for one video stream.

        Args:
            video_index: Index of the video stream.
            rate: Frames per second of the stream.
        """
        self._video_index = video_index
        self._rate = rate
        self._end_byte: int | None = None
        self._last_s: Fraction | None = None
        self._has_jumped = False
        self._jumps = 0
        self._packets = 0
        self._gaps: list[_Gap] = []

    def add_packet(self, packet: Packet[Any]) -> None:
        """Examine the next packet of the file, of any stream."""
        start = packet.pos
        if start is not None and start >= 0:
            # The first packet defines the position and cannot jump.
            if self._end_byte is None:
                self._end_byte = start
            is_jump = start - self._end_byte > _MAX_HEADER_BYTES
            self._packets += 1
            self._jumps += is_jump
            self._has_jumped |= is_jump
            self._end_byte = max(self._end_byte, start + packet.size)
        if packet.stream_index != self._video_index or packet.pts is None:
            return

        # Bytes were skipped since the last packet of the video: is time missing too?
        time_s = packet.pts * Fraction(packet.time_base)
        if self._last_s is None:
            self._last_s = time_s
        if self._has_jumped:
            lost = round((time_s - self._last_s) * self._rate) - 1
            if lost > 0:
                self._gaps.append(_Gap(float(self._last_s), lost))
        self._has_jumped = False
        self._last_s = max(self._last_s, time_s)

    def report(self, start_s: float, end_s: float) -> str:
        """Describe the gaps before a time in one line.

        Args:
            start_s: Time that counts as 0 in the description, in seconds.
            end_s: Time from which gaps are ignored, in seconds.

        Returns:
            The description; "" if nothing is missing.
        """
        gaps = [gap for gap in self._gaps if gap.at_s < end_s]
        if not gaps or self._jumps > len(gaps) + _MAX_JUMPING_SHARE * self._packets:
            return ""
        count = sum(gap.frames for gap in gaps)
        first = f"{gaps[0].at_s - start_s:.2f} s"
        where = f"at {first}"
        if len(gaps) > 1:
            where = f"in {len(gaps)} places, first at {first}"
        return f"about {count} frames are missing {where}, where the file is damaged"
