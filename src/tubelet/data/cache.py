"""Decode every clip of a folder once into memory-mapped arrays, and its degraded versions beside it.

    cache/
      <name>-<key>/gt.npy               (T, 3, H, W) uint8
      <name>-<key>/<preset>-x4-0.npy    (T, 3, H/4, W/4) uint8

A clip is a video file, a folder of frames, or a single image, which becomes a clip by a camera that pans over it.
The key is made of the source's path, size and time, so a changed source is decoded again.
"""

from __future__ import annotations

import hashlib
import random
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.lib.format import open_memmap
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from tubelet.degrade import RANDOM_PRESETS, Preset, degrade
from tubelet.errors import InputError
from tubelet.files import atomic_write
from tubelet.ops.pixels import to_uint8
from tubelet.progress import CancelToken
from tubelet.video.reader import open_reader
from tubelet.video.sequence import IMAGE_SUFFIXES

__all__ = ["VIDEO_SUFFIXES", "CachedClip", "prepare_clips", "read_clip"]

VIDEO_SUFFIXES = frozenset({".mp4", ".mkv", ".mov", ".webm", ".avi", ".m4v", ".y4m", ".ts"})
_MAX_FRAMES = 300  # of one source; a video gives a sample, not the whole
_SIZE_MULTIPLE = 12  # the scales 2, 3 and 4 divide it
_PAN_FRAMES = 14
_PAN_SIZE = (640, 960)  # height, width of a clip made from an image


@dataclass(frozen=True, slots=True)
class CachedClip:
    """A decoded clip with its degraded versions, all (T, 3, H, W) uint8, memory-mapped."""

    name: str
    gt: NDArray[np.uint8]
    lqs: tuple[NDArray[np.uint8], ...]


def prepare_clips(
    roots: Sequence[Path],
    cache: Path,
    *,
    preset: Preset,
    scale: int,
    variants: int = 1,
    cancel: CancelToken | None = None,
) -> Iterator[CachedClip]:
    """Find, decode and degrade all clips below some folders; what is in the cache already is only opened.

    Args:
        roots: folders of video files, of images, or of folders of frames.
        cache: where the arrays go.
        preset: degradation of the low-quality versions.
        scale: their factor.
        variants: how many low-quality versions, seeded 0, 1, ..., of a random preset.
        cancel: stops before the next array is made; those that are there are kept.

    Yields:
        one clip after another, in the order of their names.

    Raises:
        InputError: a root is missing or holds no clip, or a clip cannot be decoded.
        Cancelled: `cancel` was cancelled.
    """
    cancel = cancel or CancelToken()
    sources = [source for root in roots for source in _find_sources(root)]
    for source in sources:
        cancel.raise_if_cancelled()
        folder = cache / f"{source.stem}-{_key(source)}"
        gt = _stored(folder / "gt.npy")
        if gt is None:
            gt = _store(folder / "gt.npy", _decode(source))
        lqs: list[NDArray[np.uint8]] = []
        edition = RANDOM_PRESETS.get(preset)
        for seed in range(variants if edition else 1):
            recipe = f"{preset}.{edition}" if edition else preset
            path = folder / f"{recipe}-x{scale}-{seed}.npy"
            lq = _stored(path)
            if lq is None:
                cancel.raise_if_cancelled()
                clip = torch.from_numpy(np.array(gt)).float() / 255
                unique = zlib.crc32(source.name.encode()) + seed  # another draw for every clip
                lq = _store(path, to_uint8(degrade(clip, preset, scale=scale, seed=unique)).numpy())
            lqs.append(lq)
        yield CachedClip(source.stem, gt, tuple(lqs))


def _find_sources(root: Path) -> list[Path]:
    if not root.is_dir():
        raise InputError(f"no such folder of clips: {root}")
    entries = sorted(root.iterdir())
    found = [
        p for p in entries if p.suffix.lower() in VIDEO_SUFFIXES | IMAGE_SUFFIXES or p.is_dir()
    ]
    if not found:
        raise InputError(f"no video, image or folder of frames in {root}")
    return found


def _key(source: Path) -> str:
    files = (
        list(source.iterdir()) if source.is_dir() else [source]
    )  # a folder does not tell of a replaced image
    stats = [file.stat() for file in files]
    size, time = (
        sum(stat.st_size for stat in stats),
        max((stat.st_mtime_ns for stat in stats), default=0),
    )
    identity = f"{source.resolve()}|{len(files)}|{size}|{time}"
    if source.suffix.lower() in IMAGE_SUFFIXES:
        identity += f"|{_PAN_FRAMES}x{_PAN_SIZE}"
    return hashlib.sha256(identity.encode()).hexdigest()[:12]


def read_clip(source: Path, *, max_frames: int, size_multiple: int = 1) -> NDArray[np.uint8]:
    """Decode a video, an image or a folder of frames.

    Args:
        source: its path.
        max_frames: where to stop.
        size_multiple: height and width are cropped to multiples of it, at the right and below.

    Returns:
        (T, 3, H, W) uint8.

    Raises:
        InputError: there is nothing that can be decoded.
    """
    with open_reader(source) as reader:
        frames = [to_uint8(frame.rgb).numpy() for frame in islice(reader, max_frames)]
    return _cropped(frames, size_multiple)


def _cropped(frames: Sequence[NDArray[np.uint8]], multiple: int) -> NDArray[np.uint8]:
    height, width = (n // multiple * multiple for n in frames[0].shape[-2:])
    return np.stack([frame[:, :height, :width] for frame in frames])


def _decode(source: Path) -> NDArray[np.uint8]:
    """Decode to (T, 3, H, W); an image becomes a clip."""
    if source.suffix.lower() not in IMAGE_SUFFIXES:
        return read_clip(source, max_frames=_MAX_FRAMES, size_multiple=_SIZE_MULTIPLE)
    image = torch.from_numpy(read_clip(source, max_frames=1)[0])
    return _cropped(_pan(image, seed=zlib.crc32(source.name.encode())), _SIZE_MULTIPLE)


def _pan(image: Tensor, seed: int) -> list[NDArray[np.uint8]]:
    """Move a window over an image, halved first to be free of its coding noise, at whole pixels a frame."""
    half = (
        functional.interpolate(image[None].float(), scale_factor=0.5, mode="area")[0].round().byte()
    )
    height, width = (min(size, n) for size, n in zip(_PAN_SIZE, half.shape[-2:], strict=True))
    rng = random.Random(seed)
    frames: list[NDArray[np.uint8]] = []
    room = (half.shape[-2] - height, half.shape[-1] - width)
    speed = [rng.uniform(-1, 1) * min(6.0, r / _PAN_FRAMES) for r in room]
    start = [r / 2 - v * _PAN_FRAMES / 2 for r, v in zip(room, speed, strict=True)]
    for t in range(_PAN_FRAMES):
        y, x = (round(s + v * t) for s, v in zip(start, speed, strict=True))
        frames.append(half[:, y : y + height, x : x + width].numpy())
    return frames


def _stored(path: Path) -> NDArray[np.uint8] | None:
    return np.load(path, mmap_mode="r") if path.is_file() else None


def _store(path: Path, array: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Write whole or not at all, and open it memory-mapped."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as part:
        out = open_memmap(part, mode="w+", dtype=np.uint8, shape=array.shape)
        out[:] = array
        out.flush()
    return np.load(path, mmap_mode="r")
