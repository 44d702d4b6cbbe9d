"""Counts of damage in one pass over a video, and checks whether its file was truncated."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from tubelet.video.container_size import declared_bytes
from tubelet.video.gaps import GapDetector
from tubelet.video.info import VideoInfo
from tubelet.video.y4m import ForwardOnly

__all__ = ["DecodeReport", "describe_ending"]

# Formats whose header states the duration of the video reliably.
_TRUSTED_DURATION = ("matroska,webm", "avi", "flv", "asf")
# The header of a complete file may state this much more than the frames last.
_MIN_GAP_S = Fraction(1, 2)


@dataclass(slots=True)
class DecodeReport:
    """Counts of one pass over a file.

    Attributes:
        packets: Packets read, without those that are only decoded and not shown.
        frames: Frames that the decoder returned.
        marked: Packets that the container marks as damaged.
        damaged: Packets that could not be decoded.
        concealed: Frames in which the decoder concealed errors.
        read_errors: Places where the file could not be read.
        reason: FFmpeg's message of the last error.
        last_dts: dts of the last packet.
        end_byte: Position in the file where the last packet ends.
        end_tick: Time at which the last frame ends, in ticks.
        gaps: Detector of missing frames in a Matroska file.
    """

    packets: int = 0
    frames: int = 0
    marked: int = 0
    damaged: int = 0
    concealed: int = 0
    read_errors: int = 0
    reason: str = ""
    last_dts: int | None = None
    end_byte: int = 0
    end_tick: int | None = None
    gaps: GapDetector | None = None

    @property
    def why(self) -> str:
        """The reason in parentheses, to be appended to a message; "" if there was no error."""
        if not self.reason:
            return ""
        return f" ({self.reason})"

    def count_packet(self, packet: Packet[Any]) -> None:
        """Count a packet that was read."""
        self.packets += not packet.is_discard
        self.marked += packet.is_corrupt
        start_byte = packet.pos or 0
        self.end_byte = start_byte + packet.size
        if packet.dts is not None:
            self.last_dts = packet.dts

    def count_frame(self, frame: VideoFrame) -> None:
        """Record where a decoded frame ends in time."""
        start = frame.pts
        if start is None:
            # AVI has no pts.
            start = frame.dts
        if start is not None:
            duration = frame.duration or 0
            self.end_tick = start + duration

    def has_reached(self, end_tick: int | None) -> bool:
        """Return whether the last frame ends at or after a pts; None is the end of the file."""
        if end_tick is None or self.end_tick is None:
            return False
        return self.end_tick >= end_tick

    def describe_damage(
        self,
        info: VideoInfo,
        end_tick: int | None,
        *,
        at_the_end: int,
    ) -> list[str]:
        """Describe the damage, one line for each kind.

        Args:
            info: Description of the video.
            end_tick: pts at which the caller stopped; None for the end of the file.
            at_the_end: 1 where the file was truncated. That also damages its last packet, which
                is then not reported a second time.
        """
        lines: list[str] = []
        if self.gaps:
            end_s = math.inf
            if end_tick is not None:
                end_s = float(end_tick * info.time_base)
            gap = self.gaps.report(info.start_s, end_s)
            if gap:
                lines.append(gap)
        # Each count, the number up to which it is not reported, and what it counts.
        counts = (
            (self.damaged, at_the_end, "damaged packets that could not be decoded", self.why),
            (
                self.marked,
                # Marked packets that also fail to decode are in the line above.
                max(self.damaged, at_the_end),
                "damaged packets that the container marks",
                "",
            ),
            (
                self.concealed,
                at_the_end,
                "damaged frames in which the decoder concealed errors",
                "",
            ),
            (self.read_errors, at_the_end, "places where the file could not be read", self.why),
        )
        for count, threshold, subject, reason in counts:
            if count > threshold:
                lines.append(f"{subject}: {count}{reason}")
        return lines


def describe_ending(
    report: DecodeReport,
    info: VideoInfo,
    container: InputContainer,
    stream: VideoStream,
    *,
    is_file: bool,
    decoded: int,
    end_tick: int | None,
) -> str:
    """Describe in one line how a video was truncated.

    Args:
        report: Counts of the pass that reached the end.
        info: Description of the video.
        container: Container that was read.
        stream: Stream that was decoded.
        is_file: The container is a file, not a pipe.
        decoded: Number of frames that were returned.
        end_tick: pts at which the caller stopped; None for the end of the file.

    Returns:
        The description; "" if the video is complete.
    """
    if report.has_reached(end_tick):
        return ""
    missing_bytes = 0
    if is_file:
        declared = declared_bytes(Path(info.source))
        if declared is not None:
            missing_bytes = max(0, declared - container.size)

    missing = _missing_frames(report, info, stream, end_tick, is_cut=missing_bytes > 0)
    if missing:
        total = decoded + missing
        counts = f"{decoded} of about {total} frames could be decoded"
        return f"the file ends early: {counts}{report.why}"
    if _ends_mid_frame(report, info, container):
        return f"the stream ends early, in the middle of a frame, after {decoded} complete ones"
    if missing_bytes:
        return f"the file is {missing_bytes} bytes shorter than its header states: truncated"
    return ""


def _missing_frames(
    report: DecodeReport,
    info: VideoInfo,
    stream: VideoStream,
    end_tick: int | None,
    *,
    is_cut: bool,
) -> int:
    """Estimate how many frames the header lists after the last one that was read."""
    # MP4 and MOV have an index of all frames, other formats state only a duration.
    has_index = info.container.startswith("mov")
    if has_index and report.last_dts is not None:
        return _count_later_entries(stream, report.last_dts, end_tick)
    rate = info.average_rate
    duration_s = info.duration_s
    if info.container not in _TRUSTED_DURATION:
        return 0
    # All three are needed to compare the declared end with the last frame.
    if not rate or not duration_s or report.end_tick is None:
        return 0
    declared_end_s = Fraction(duration_s) + Fraction(info.start_s)
    if end_tick is not None:
        declared_end_s = min(declared_end_s, end_tick * info.time_base)
    decoded_end_s = report.end_tick * info.time_base
    gap_s = declared_end_s - decoded_end_s
    # The header of a complete file may be a little off; in a truncated one every gap is real.
    tolerance_s = max(_MIN_GAP_S, 3 / rate)
    if not is_cut and gap_s <= tolerance_s:
        return 0
    return max(0, round(gap_s * rate))


def _count_later_entries(stream: VideoStream, last_dts: int, end_tick: int | None) -> int:
    """Count the entries of a stream's index after `last_dts` and before `end_tick`."""
    end = math.inf
    if end_tick is not None:
        end = end_tick
    return sum(last_dts < entry.timestamp < end for entry in stream.index_entries)


def _ends_mid_frame(report: DecodeReport, info: VideoInfo, container: InputContainer) -> bool:
    """Return whether a y4m stream ends within a frame, which FFmpeg drops without an error."""
    if info.container != "yuv4mpegpipe":
        return False
    pipe = getattr(container.file, "file", None)
    if isinstance(pipe, ForwardOnly):
        # A pipe has no size: take the number of bytes that were read.
        return pipe.total_bytes > report.end_byte
    return container.size > report.end_byte
