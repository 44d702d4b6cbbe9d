"""Read a folder or printf pattern of images as a video of 25 frames per second."""

from __future__ import annotations

import dataclasses
import io
import re
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
from av.video.frame import VideoFrame

from tubelet.errors import InputError, error_text
from tubelet.video.container import describe, pick_video_stream, read_siting
from tubelet.video.info import VideoInfo

__all__ = ["IMAGE_SUFFIXES", "ImageFrames", "has_image_suffix", "list_images"]

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"})
# FFmpeg's default for images.
_RATE = Fraction(25)
_PATTERN = re.compile(r"%(?:0(\d+))?d")


class ImageFrames:
    """Decoder of a list of images; an image that cannot be decoded leaves a gap in time.

    Attributes:
        info: Description of the video. The first image is decoded for it.
        seeks_exactly: True, because no image depends on another.
    """

    seeks_exactly = True

    def __init__(self, source: str, paths: list[Path]) -> None:
        self._paths = paths
        self._failures: list[str] = []
        self._gaps = _describe_missing_numbers(source, paths)
        self._first_info: VideoInfo | None = None
        info = self._describe_first()
        if info is None:
            raise InputError(
                f"{source}: none of its {len(paths)} images can be decoded ({self._failures[0]})"
            )
        self.info = dataclasses.replace(
            info,
            source=source,
            time_base=1 / _RATE,
            average_rate=_RATE,
            duration_s=float(len(paths) / _RATE),
            frames_hint=len(paths),
            container="images",
            start_s=0.0,
        )

    def frames(self, start_tick: int | None) -> Iterator[VideoFrame]:
        """Yield the images from `start_tick` on; the pts is the index of an image."""
        self._failures.clear()
        yield from self._decode_from(start_tick or 0)

    def frames_from_keyframe(self, start_tick: int) -> Iterator[VideoFrame]:
        """Yield the images from `start_tick` on: every image is a keyframe."""
        return self.frames(start_tick)

    def problems(self, decoded: int, end_tick: int | None) -> list[str]:
        """Describe missing images and those that could not be decoded, one line each."""
        lines: list[str] = []
        if self._gaps:
            lines.append(self._gaps)
        if self._failures:
            count = f"{len(self._failures)} of {len(self._paths)}"
            lines.append(f"{count} images could not be decoded: {self._failures[0]}")
        return lines

    def close(self) -> None:
        """Do nothing: no file stays open between two images."""

    def _describe_first(self) -> VideoInfo | None:
        """Decode the first image that can be decoded, and return its description."""
        next(self._decode_from(0), None)
        return self._first_info

    def _decode_from(self, start: int) -> Iterator[VideoFrame]:
        """Decode the images from index `start` on, skipping those that cannot be decoded."""
        for index, path in enumerate(self._paths[start:], start):
            try:
                frame = self._decode_image(path)
            except (av.FFmpegError, OSError, StopIteration, InputError) as error:
                reason = error_text(error) or "no image in it"
                self._failures.append(f"{path.name}: {reason}")
                continue
            frame.pts = index
            frame.duration = 1
            yield frame

    def _decode_image(self, path: Path) -> VideoFrame:
        """Decode one image; the first one also describes the video."""
        # From memory, so that FFmpeg detects the format by the content, not by the name.
        data = io.BytesIO(path.read_bytes())
        with av.open(data, mode="r") as container:
            stream = pick_video_stream(container, str(path))
            siting = 0
            if self._first_info is None:
                # It must be read before the first packet is decoded.
                siting = read_siting(container, stream)
            frame = next(container.decode(stream))
            if self._first_info is None:
                self._first_info = describe(
                    container,
                    stream,
                    frame,
                    str(path),
                    siting=siting,
                )
            return frame


def has_image_suffix(path: Path) -> bool:
    """Return whether the name of a file ends as that of an image."""
    return path.suffix.lower() in IMAGE_SUFFIXES


def list_images(src: str) -> list[Path] | None:
    """List the images of a folder or a printf pattern, in order.

    Args:
        src: Folder, printf pattern such as frames/%05d.png, or one image.

    Returns:
        Paths of the images; None if `src` is none of the three.

    Raises:
        InputError: The folder has no images, or no file matches the pattern.
    """
    path = Path(src)
    if path.is_dir():
        return _images_of_folder(path, src)
    if path.exists():
        # One file: an image, or a video, which is not read here.
        if has_image_suffix(path):
            return [path]
        return None
    if not _PATTERN.search(path.name):
        return None
    by_number = _numbered_files(path)
    if not by_number:
        raise InputError(f"no file matches {src}")
    return [by_number[number] for number in sorted(by_number)]


def _images_of_folder(folder: Path, src: str) -> list[Path]:
    """List the images of a folder in natural order.

    Raises:
        InputError: The folder has no images.
    """
    images: list[Path] = []
    for path in folder.iterdir():
        if has_image_suffix(path) and path.is_file():
            images.append(path)
    if not images:
        suffixes = ", ".join(sorted(IMAGE_SUFFIXES))
        raise InputError(f"folder {src} has no images ({suffixes})")
    return sorted(images, key=lambda path: _natural_key(path.name))


def _natural_key(name: str) -> list[tuple[int, str]]:
    """Return a sort key in which 2.png is before 10.png."""
    key: list[tuple[int, str]] = []
    for piece in re.split(r"(\d+)", name):
        if piece.isdigit():
            key.append((int(piece), ""))
        else:
            key.append((-1, piece.lower()))
    return key


def _numbered_files(pattern: Path) -> dict[int, Path]:
    """Map numbers to the files that match a printf pattern in the last component of a path."""
    match = _PATTERN.search(pattern.name)
    if match is None or not pattern.parent.is_dir():
        return {}
    digits = match.group(1)
    # printf writes %d without leading zeros, and %05d with five digits or more.
    number = r"(0|[1-9]\d*)"
    if digits:
        number = rf"(\d{{{digits},}})"
    prefix = re.escape(pattern.name[: match.start()])
    suffix = re.escape(pattern.name[match.end() :])
    regex = re.compile(prefix + number + suffix)
    files: dict[int, Path] = {}
    for path in pattern.parent.iterdir():
        name_match = regex.fullmatch(path.name)
        if name_match:
            files[int(name_match.group(1))] = path
    return files


def _describe_missing_numbers(source: str, paths: list[Path]) -> str:
    """Describe in one line the numbers of a pattern that have no file; "" if there are none."""
    pattern = Path(source)
    if pattern.exists() or not _PATTERN.search(pattern.name):
        return ""
    numbers = sorted(_numbered_files(pattern))
    expected = numbers[-1] - numbers[0] + 1
    missing = expected - len(paths)
    if not missing:
        return ""
    present = set(numbers)
    first_missing = numbers[0]
    while first_missing in present:
        first_missing += 1
    return f"{missing} numbers of {source} are missing, the first is {first_missing}"
