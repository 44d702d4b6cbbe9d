"""What one pass over a video met: damage, and an end that comes too early."""

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

_TRUSTED_DURATION = ("matroska,webm", "avi", "flv", "asf")  # formats whose header is to be trusted
_MIN_GAP_S = Fraction(1, 2)  # a header may promise so much more than there is


@dataclass(slots=True)
class DecodeReport:
    """Counts of one pass over a file.

    Attributes:
        packets: packets that were read and are to be shown.
        frames: frames that the decoder gave.
        marked: packets that the container marks as damaged.
        damaged: packets that could not be decoded.
        concealed: frames that the decoder patched.
        read_errors: places where the file could not be read.
        reason: what FFmpeg said of the last error.
        last_dts: of the last packet.
        end_byte: where the last packet ends in the file.
        end_tick: where the last frame ends in time.
        holes: finder of jumps in a Matroska file.
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
    holes: GapDetector | None = None

    @property
    def why(self) -> str:
        """The reason in brackets, to end a line with."""
        return f" ({self.reason})" if self.reason else ""

    def count_packet(self, packet: Packet[Any]) -> None:
        """Count a packet that was read."""
        self.packets += not packet.is_discard
        self.marked += packet.is_corrupt
        self.end_byte = (packet.pos or 0) + packet.size
        if packet.dts is not None:
            self.last_dts = packet.dts

    def count_shown(self, frame: VideoFrame) -> None:
        """Note where a frame ends in time; AVI has no pts."""
        shown = frame.pts if frame.pts is not None else frame.dts
        if shown is not None:
            self.end_tick = shown + (frame.duration or 0)

    def has_reached(self, end_tick: int | None) -> bool:
        """Say whether the last frame ends at or behind a pts; None is the end of the file."""
        return end_tick is not None and self.end_tick is not None and self.end_tick >= end_tick

    def describe_damage(
        self,
        info: VideoInfo,
        end_tick: int | None,
        *,
        at_the_end: int,
    ) -> list[str]:
        """Say what was damaged, a line each.

        Args:
            info: of the video.
            end_tick: pts at which the caller stopped, None for the end of the file.
            at_the_end: 1 where the file was cut off, which damages its last packet too: that was
                said already.
        """
        lines: list[str] = []
        if self.holes:
            end_s = math.inf if end_tick is None else float(end_tick * info.time_base)
            hole = self.holes.report(info.start_s, end_s)
            lines += [hole] if hole else []
        if self.damaged > at_the_end:
            lines.append(f"damaged packets that could not be decoded: {self.damaged}{self.why}")
        if self.marked > max(self.damaged, at_the_end):
            lines.append(f"damaged packets that the container marks: {self.marked}")
        if self.concealed > at_the_end:
            lines.append(f"damaged frames that the decoder patched: {self.concealed}")
        if self.read_errors > at_the_end:
            lines.append(f"places where the file could not be read: {self.read_errors}{self.why}")
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
    """Say whether a video ends before it should, "" where it does not.

    Args:
        report: of the pass that came to the end.
        info: of the video.
        container: that was read.
        stream: that was decoded.
        is_file: the container is a file, not a pipe.
        decoded: frames that were handed out.
        end_tick: pts at which the caller stopped, None for the end of the file.
    """
    if report.has_reached(end_tick):
        return ""
    declared = declared_bytes(Path(info.source)) if is_file else None
    cut_bytes = 0 if declared is None else max(0, declared - container.size)
    missing = _missing_frames(report, info, stream, end_tick, is_cut=cut_bytes > 0)
    if missing:
        total = decoded + missing
        counts = f"{decoded} of about {total} frames could be decoded"
        return f"the file ends early: {counts}{report.why}"
    if _has_rest(report, info, container):
        return f"the stream ends early, in the middle of a frame, after {decoded} whole ones"
    if cut_bytes:
        return f"the file is {cut_bytes} bytes shorter than it says, so its end is missing"
    return ""


def _missing_frames(
    report: DecodeReport,
    info: VideoInfo,
    stream: VideoStream,
    end_tick: int | None,
    *,
    is_cut: bool,
) -> int:
    """Estimate how many frames the header promises after the last that was read."""
    if info.container.startswith("mov") and report.last_dts is not None:
        times = [entry.timestamp for entry in stream.index_entries]
        later = [time for time in times if time > report.last_dts]
        return sum(end_tick is None or time < end_tick for time in later)
    rate, duration_s = info.average_rate, info.duration_s
    if info.container not in _TRUSTED_DURATION or not rate or not duration_s:
        return 0
    if report.end_tick is None:
        return 0
    promised_s = Fraction(duration_s) + Fraction(info.start_s)
    if end_tick is not None:
        promised_s = min(promised_s, end_tick * info.time_base)
    gap_s = promised_s - report.end_tick * info.time_base
    is_sure = is_cut or gap_s > max(_MIN_GAP_S, 3 / rate)
    return max(0, round(gap_s * rate)) if is_sure else 0


def _has_rest(report: DecodeReport, info: VideoInfo, container: InputContainer) -> bool:
    """Tell whether a y4m stream was cut within a frame, which FFmpeg leaves out without a word."""
    if info.container != "yuv4mpegpipe":
        return False
    pipe = getattr(container.file, "file", None)
    total_bytes = pipe.total_bytes if isinstance(pipe, ForwardOnly) else container.size
    return total_bytes > report.end_byte
