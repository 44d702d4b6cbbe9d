"""Copy titles, languages, flags and chapters from one container to another."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from av.container import InputContainer, OutputContainer

__all__ = ["copy_chapters", "copy_file_metadata", "copy_stream_metadata"]

# Tags that describe the old file rather than the video, by name or by the start of it.
_TECHNICAL = (
    "encoder",
    "major_brand",
    "minor_version",
    "compatible_brands",
    "vendor_id",
    "rotate",
    "duration",
)
_STATISTICS = ("bps", "number_of_frames", "number_of_bytes", "_statistics", "duration-", "encoder-")
# AV_DISPOSITION_*.
_DEFAULT = 1
_ATTACHED_PIC = 1 << 10
# Their muxers write no dispositions, or only the default flag.
_WITHOUT_FLAGS = ("mov", "avi", "mpegts")

# Keys that FFmpeg's mov muxer writes to the user data of a file; it silently drops all others.
_MP4_KEYS = frozenset(
    (
        "title",
        "artist",
        "album_artist",
        "composer",
        "album",
        "date",
        "comment",
        "genre",
        "copyright",
        "grouping",
        "lyrics",
        "description",
        "synopsis",
        "show",
        "episode_id",
        "network",
        "keywords",
        "episode_sort",
        "season_number",
        "media_type",
        "hd_video",
        "gapless_playback",
        "compilation",
        "track",
        "disc",
        "tmpo",
        "location",
        "creation_time",
        "encoding_tool",
        "timecode",
    )
)
_STREAM_KEYS = frozenset({"language", "title", "handler_name", "creation_time", "timecode"})
_TS_KEYS = frozenset({"service_name", "service_provider"})
_AVI_KEYS = frozenset(
    {"title", "artist", "comment", "copyright", "date", "genre", "album", "language", "track"}
)
# Keys by muxer; those that are not listed store any key.
_KEYS: Mapping[str, frozenset[str]] = {
    "mp4": _MP4_KEYS,
    "mov": _MP4_KEYS,
    "mpegts": _TS_KEYS,
    "avi": _AVI_KEYS,
    "gif": frozenset(),
    "yuv4mpegpipe": frozenset(),
}


def copy_file_metadata(source: InputContainer, target: OutputContainer, notes: list[str]) -> None:
    """Copy the tags of the file, and note those that the target cannot store."""
    tags = _relevant_tags(source.metadata)
    target.metadata.update(tags)
    muxer = target.format.name
    if muxer not in _KEYS:
        return
    dropped = sorted(key for key in tags if key.lower() not in _KEYS[muxer])
    if dropped:
        notes.append(f"tags of the file left out, {muxer} cannot store them: {', '.join(dropped)}")


def copy_stream_metadata(source: Any, target: Any) -> list[str]:
    """Copy language, title, other tags and flags of a stream.

    Returns:
        Names of the tags and flags that the target container drops.
    """
    muxer = target.container.format.name
    tags = _relevant_tags(source.metadata)
    if "name" in tags:
        # The mov demuxer returns the title as "name".
        tags.setdefault("title", tags.pop("name"))
    target.metadata.update(tags)
    target.disposition = int(source.disposition) & ~_ATTACHED_PIC
    dropped: list[str] = []
    if muxer in _KEYS:
        dropped += [key for key in tags if key.lower() not in _STREAM_KEYS]
    if muxer in _WITHOUT_FLAGS:
        flags = source.disposition & ~(_DEFAULT | _ATTACHED_PIC)
        dropped += [f"{flag.name} (flag)" for flag in flags]
    return sorted(dropped)


def copy_chapters(
    source: InputContainer,
    target: OutputContainer,
    origin: Fraction,
    span: Fraction | None,
) -> None:
    """Copy chapters, moved to the new origin and limited to the part that is written.

    Args:
        source: Container to read.
        target: Container to write, whose header is not yet written.
        origin: Time of the source that becomes 0, in seconds.
        span: Duration that is written, in seconds; None writes all.
    """
    chapters: list[Any] = []
    for chapter in source.chapters():
        tick = chapter["time_base"] or Fraction(1, 1000)
        start = chapter["start"] * tick - origin
        end = chapter["end"] * tick - origin
        if end <= 0 or (span is not None and start >= span):
            continue
        start = max(start, Fraction(0))
        if span is not None:
            end = min(end, span)
        moved: dict[str, Any] = dict(chapter)
        moved["time_base"] = tick
        moved["start"] = round(start / tick)
        moved["end"] = round(end / tick)
        chapters.append(moved)
    target.set_chapters(chapters)


def _relevant_tags(tags: Mapping[str, str]) -> dict[str, str]:
    """Return the tags that describe the video, not the old file."""
    relevant: dict[str, str] = {}
    for key, value in tags.items():
        name = key.lower()
        if name not in _TECHNICAL and not name.startswith(_STATISTICS):
            relevant[key] = value
    return relevant
