"""Decoding times for packets that several encoders made, as if one had made them all."""

from __future__ import annotations

import heapq
from typing import Any

from av.packet import Packet

__all__ = ["DecodingOrder"]


class DecodingOrder:
    """Gives packets their dts by the rule of x264 and x265, over the whole video.

    Let D be `depth`, the most frames by which a packet comes before its turn, and P[0] < P[1] < ...
    the presentation times of the video. Packet i is decoded at P[i - D]. The first D packets are
    decoded before P[0], by as much as P[D] comes after it: at P[i] - (P[D] - P[0]). So every packet
    is decoded at or before the time of its frame, and the joints between segments look like any
    other place. One encoder alone gives the same times; where a video is too short for the rule,
    they stay.

    Example, D = 2, a segment of three frames and one of two:
        packets, pts   0  80  40  |  120 160
        dts          -80 -40   0  |   40  80
    """

    def __init__(self, depth: int) -> None:
        """Prepare.

        Args:
            depth: frames by which a packet may come before its turn, 0 where packets come in order.
        """
        self._depth = depth
        self._later: list[int] = []  # heap of presentation times whose place is not known yet
        self._times: list[int] = []  # presentation times in order, until D + 1 of them are known
        self._waiting: list[Packet[Any]] = []  # packets until then
        self._is_started = False

    def put(self, packet: Packet[Any]) -> list[Packet[Any]]:
        """Take the next packet in the order of decoding; return those whose dts is known now."""
        if packet.pts is None:
            return [packet]
        heapq.heappush(self._later, packet.pts)
        if self._is_started:
            packet.dts = heapq.heappop(self._later)
            return [packet]
        self._waiting.append(packet)
        if len(self._later) > self._depth:
            self._times.append(heapq.heappop(self._later))
        return self._start() if len(self._times) > self._depth else []

    def flush(self) -> list[Packet[Any]]:
        """Return what is left at the end."""
        if self._is_started:
            return []
        while self._later:
            self._times.append(heapq.heappop(self._later))
        if len(self._times) > self._depth:
            return self._start()
        return self._keep_own()

    def _start(self) -> list[Packet[Any]]:
        """Set the dts of the packets that waited."""
        first = self._times[0]
        lead = self._times[self._depth] - first
        for number, packet in enumerate(self._waiting):
            if number < self._depth:
                packet.dts = self._times[number] - lead
            else:
                packet.dts = self._times[number - self._depth]
        ready, self._waiting = self._waiting, []
        self._is_started = True
        return ready

    def _keep_own(self) -> list[Packet[Any]]:
        """Keep the times of the encoders, which only must increase."""
        last: int | None = None
        for packet in self._waiting:
            if last is not None and (packet.dts is None or packet.dts <= last):
                packet.dts = last + 1
            last = packet.dts
        ready, self._waiting = self._waiting, []
        return ready
