"""Titles, languages, flags and chapters, from one container to another."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from av.container import InputContainer, OutputContainer

__all__ = ["copy_chapters", "copy_file_metadata", "copy_stream_metadata"]

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
_DEFAULT, _ATTACHED_PIC = 1, 1 << 10  # AV_DISPOSITION_*
_WITHOUT_FLAGS = ("mov", "avi", "mpegts")  # their muxers write no dispositions, or only the default

# What FFmpeg's mov muxer writes into the file's user data; other keys it drops without a word.
_MP4_KEYS = frozenset(
    {
        *(
            "title",
            "artist",
            "album_artist",
            "composer",
            "album",
            "date",
            "comment",
            "genre",
            "copyright",
        ),
        *(
            "grouping",
            "lyrics",
            "description",
            "synopsis",
            "show",
            "episode_id",
            "network",
            "keywords",
        ),
        *(
            "episode_sort",
            "season_number",
            "media_type",
            "hd_video",
            "gapless_playback",
            "compilation",
        ),
        *("track", "disc", "tmpo", "location", "creation_time", "encoding_tool", "timecode"),
    }
)
_STREAM_KEYS = frozenset({"language", "title", "handler_name", "creation_time", "timecode"})
_TS_KEYS = frozenset({"service_name", "service_provider"})
_AVI_KEYS = frozenset(
    {"title", "artist", "comment", "copyright", "date", "genre", "album", "language", "track"}
)
_KEYS: Mapping[str, frozenset[str]] = {
    "mp4": _MP4_KEYS,
    "mov": _MP4_KEYS,
    "mpegts": _TS_KEYS,
    "avi": _AVI_KEYS,
    "gif": frozenset(),
    "yuv4mpegpipe": frozenset(),
}


def copy_file_metadata(source: InputContainer, target: OutputContainer, notes: list[str]) -> None:
    """Copy the tags of the file, and note those that the target has no place for."""
    tags = _worth_copying(source.metadata)
    target.metadata.update(tags)
    known = _KEYS.get(target.format.name)
    lost = sorted(key for key in tags if known is not None and key.lower() not in known)
    if lost:
        notes.append(
            f"tags of the file left out, {target.format.name} has no place for them: {', '.join(lost)}"
        )


def copy_stream_metadata(source: Any, target: Any) -> list[str]:
    """Copy language, title, other tags and flags of a stream.

    Returns:
        Names of the tags and flags that the target container drops.
    """
    muxer = target.container.format.name
    tags = _worth_copying(source.metadata)
    if "name" in tags:  # what the mov demuxer calls the title that its muxer wrote
        tags.setdefault("title", tags.pop("name"))
    target.metadata.update(tags)
    target.disposition = int(source.disposition) & ~_ATTACHED_PIC
    lost = [key for key in tags if muxer in _KEYS and key.lower() not in _STREAM_KEYS]
    if muxer in _WITHOUT_FLAGS:
        flags = source.disposition & ~(_DEFAULT | _ATTACHED_PIC)
        lost += [f"{flag.name} (flag)" for flag in flags]
    return sorted(lost)


def copy_chapters(
    source: InputContainer, target: OutputContainer, origin: Fraction, span: Fraction | None
) -> None:
    """Copy chapters, moved to the new origin and limited to the part that is written.

    Args:
        source: to read from.
        target: to write to, its header not yet written.
        origin: time of the source, in seconds, that becomes 0.
        span: seconds that are written, None for all.
    """
    kept: list[Any] = []
    for chapter in source.chapters():
        tick = chapter["time_base"] or Fraction(1, 1000)
        start, end = chapter["start"] * tick - origin, chapter["end"] * tick - origin
        if end <= 0 or (span is not None and start >= span):
            continue
        start, end = max(start, Fraction(0)), end if span is None else min(end, span)
        kept.append(
            {**chapter, "time_base": tick, "start": round(start / tick), "end": round(end / tick)}
        )
    target.set_chapters(kept)


def _worth_copying(tags: Mapping[str, str]) -> dict[str, str]:
    """Leave out what describes the old file rather than the video."""
    return {
        key: value
        for key, value in tags.items()
        if key.lower() not in _TECHNICAL and not key.lower().startswith(_STATISTICS)
    }
