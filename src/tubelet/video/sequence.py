"""A folder or printf pattern of images, read as a video of 25 frames a second."""

from __future__ import annotations

import dataclasses
import io
import re
from collections.abc import Iterator
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
from av.video.frame import VideoFrame

from tubelet.errors import InputError
from tubelet.video.container import describe, pick_video_stream, read_siting
from tubelet.video.info import VideoInfo

__all__ = ["IMAGE_SUFFIXES", "ImageFrames", "list_images"]

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"})
_RATE = Fraction(25)  # FFmpeg's default for images
_PATTERN = re.compile(r"%(?:0(\d+))?d")


class ImageFrames:
    """Decodes images one after the other; an image that cannot be decoded leaves a gap in time.

    Attributes:
        info: description of the video; the first image was decoded for it.
        seeks_exactly: true, each image stands for itself.
    """

    seeks_exactly = True

    def __init__(self, source: str, paths: list[Path]) -> None:
        self._paths = paths
        self._bad: list[str] = []
        self._gaps = _missing_numbers(source, paths)
        self._first: VideoInfo | None = None
        first = self._describe_first()
        if first is None:
            raise InputError(
                f"{source}: none of its {len(paths)} images can be decoded ({self._bad[0]})"
            )
        self.info = dataclasses.replace(
            first,
            source=source,
            time_base=1 / _RATE,
            average_rate=_RATE,
            duration_s=float(len(paths) / _RATE),
            frames_hint=len(paths),
            container="images",
            start_s=0.0,
        )

    def frames(self, start_tick: int | None) -> Iterator[VideoFrame]:
        """Yield the images from `start_tick` on; pts counts images."""
        self._bad.clear()
        yield from self._decoded(start_tick or 0)

    def frames_from_keyframe(self, start_tick: int) -> Iterator[VideoFrame]:
        """Yield the images from `start_tick` on: each stands for itself."""
        return self.frames(start_tick)

    def problems(self, decoded: int, end_tick: int | None) -> list[str]:
        """Say what could not be decoded."""
        found = [self._gaps] if self._gaps else []
        if self._bad:
            found.append(
                f"{len(self._bad)} of {len(self._paths)} images could not be decoded: {self._bad[0]}"
            )
        return found

    def close(self) -> None:
        """Nothing stays open between two images."""

    def _describe_first(self) -> VideoInfo | None:
        next(self._decoded(0), None)
        return self._first

    def _decoded(self, start: int) -> Iterator[VideoFrame]:
        for number, path in enumerate(self._paths[start:], start):
            try:
                with av.open(
                    io.BytesIO(path.read_bytes()), mode="r"
                ) as container:  # by content, not by name
                    stream = pick_video_stream(container, str(path))
                    siting = 0 if self._first else read_siting(container, stream)
                    frame = next(container.decode(stream))
                    self._first = self._first or describe(
                        container, stream, frame, str(path), siting=siting
                    )
            except (av.FFmpegError, OSError, StopIteration, InputError) as error:
                reason = getattr(error, "strerror", None) or str(error) or "no image in it"
                self._bad.append(f"{path.name}: {reason}")
                continue
            frame.pts, frame.duration = number, 1
            yield frame


def list_images(src: str) -> list[Path] | None:
    """List the images that `src` means, in order.

    Args:
        src: a folder, a printf pattern such as frames/%05d.png, or one image.

    Returns:
        Their paths; None where `src` is none of the three.

    Raises:
        InputError: a folder without images, or a pattern that no file matches.
    """
    path = Path(src)
    if path.is_dir():
        images = [p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file()]
        if not images:
            raise InputError(f"folder {src} has no images ({', '.join(sorted(IMAGE_SUFFIXES))})")
        return sorted(images, key=lambda p: _natural(p.name))
    if path.exists():
        return [path] if path.suffix.lower() in IMAGE_SUFFIXES else None
    if not _PATTERN.search(path.name):
        return None
    numbers = _numbered(path)
    if not numbers:
        raise InputError(f"no file matches {src}")
    return [numbers[number] for number in sorted(numbers)]


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort key in which 2.png comes before 10.png."""
    return [
        (int(part), "") if part.isdigit() else (-1, part.lower())
        for part in re.split(r"(\d+)", name)
    ]


def _numbered(pattern: Path) -> dict[int, Path]:
    """Map numbers to the files that a printf pattern in the last part of a path matches."""
    match = _PATTERN.search(pattern.name)
    if match is None or not pattern.parent.is_dir():
        return {}
    digits = match.group(1)
    number = rf"(\d{{{digits},}})" if digits else r"(0|[1-9]\d*)"
    regex = re.compile(
        re.escape(pattern.name[: match.start()]) + number + re.escape(pattern.name[match.end() :])
    )
    found = ((regex.fullmatch(p.name), p) for p in pattern.parent.iterdir())
    return {int(hit.group(1)): p for hit, p in found if hit}


def _missing_numbers(source: str, paths: list[Path]) -> str:
    pattern = Path(source)
    if pattern.exists() or not _PATTERN.search(pattern.name):
        return ""
    numbers = sorted(_numbered(pattern))
    missing = numbers[-1] - numbers[0] + 1 - len(paths)
    if not missing:
        return ""
    first = next(a + 1 for a, b in pairwise(numbers) if b > a + 1)
    return f"{missing} numbers of {source} are missing, the first is {first}"
