"""Assign decoding times to packets of several encoders, as if one encoder had made them all."""

from __future__ import annotations

import heapq
from typing import Any

from av.packet import Packet

__all__ = ["DecodingOrder"]


class DecodingOrder:
    """Assigns dts to packets by the rule of x264 and x265, over the whole video.

    Let D be `depth`, the maximum number of frames by which a packet precedes its turn, and
    P[0] < P[1] < ... the presentation times of the video. Packet i is decoded at P[i - D]. The
    first D packets are decoded before P[0], by as much as P[D] is after it: at
    P[i] - (P[D] - P[0]). So every packet is decoded no later than its frame is shown, and the
    joints between segments are not visible. A single encoder gives the same times. Where a video
    is too short for the rule, the packets keep their times.

    Example, D = 2, a segment of three frames and one of two:
        packets, pts   0  80  40  |  120 160
        dts          -80 -40   0  |   40  80
    """

    def __init__(self, depth: int) -> None:
        """Start a new video.

        Args:
            depth: Frames by which a packet may precede its turn; 0 where packets are in order.
        """
        self._depth = depth
        # Heap of presentation times that are not yet in their final order.
        self._pending_pts: list[int] = []
        # The first presentation times in order, until D + 1 of them are certain.
        self._first_pts: list[int] = []
        # Packets held back until then.
        self._waiting: list[Packet[Any]] = []
        self._is_started = False

    def put(self, packet: Packet[Any]) -> list[Packet[Any]]:
        """Add the next packet in decoding order, and return those whose dts is now certain."""
        if packet.pts is None:
            return [packet]
        heapq.heappush(self._pending_pts, packet.pts)
        if self._is_started:
            packet.dts = heapq.heappop(self._pending_pts)
            return [packet]
        self._waiting.append(packet)
        # No later packet can be shown before the earliest of D + 1 pending times.
        if len(self._pending_pts) > self._depth:
            self._first_pts.append(heapq.heappop(self._pending_pts))
        if len(self._first_pts) > self._depth:
            return self._start()
        return []

    def flush(self) -> list[Packet[Any]]:
        """Return the remaining packets at the end of the video."""
        if self._is_started:
            return []
        while self._pending_pts:
            self._first_pts.append(heapq.heappop(self._pending_pts))
        if len(self._first_pts) > self._depth:
            return self._start()
        return self._separate_dts()

    def _start(self) -> list[Packet[Any]]:
        """Set the dts of the packets that were held back."""
        lead = self._first_pts[self._depth] - self._first_pts[0]
        for index, packet in enumerate(self._waiting):
            if index < self._depth:
                packet.dts = self._first_pts[index] - lead
            else:
                packet.dts = self._first_pts[index - self._depth]
        self._is_started = True
        return self._take_waiting()

    def _separate_dts(self) -> list[Packet[Any]]:
        """Keep the dts of the encoders, moved only where they do not increase."""
        last: int | None = None
        for packet in self._waiting:
            if last is not None and (packet.dts is None or packet.dts <= last):
                packet.dts = last + 1
            last = packet.dts
        return self._take_waiting()

    def _take_waiting(self) -> list[Packet[Any]]:
        ready = self._waiting
        self._waiting = []
        return ready
