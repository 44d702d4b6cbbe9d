"""Cache of training clips: decoded and degraded once, stored as memory-mapped arrays.

    cache/
      <name>-<key>/gt.npy               (T, 3, H, W) uint8
      <name>-<key>/<preset>-x4-0.npy    (T, 3, H/4, W/4) uint8

A clip is a video file, a folder of frames, or a single image, over which a virtual camera pans. The
key is a hash of the path, size and modification time of the source, so that a changed source is
decoded again.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from tubelet.data.pans import PanSettings, pan_over
from tubelet.degrade import RANDOM_PRESETS, Preset, degrade
from tubelet.errors import InputError
from tubelet.files import atomic_write, file_lock
from tubelet.ops.pixels import to_uint8
from tubelet.progress import CancelToken
from tubelet.video.reader import open_reader
from tubelet.video.sequence import IMAGE_SUFFIXES, has_image_suffix

__all__ = ["VIDEO_SUFFIXES", "CachedClip", "prepare_clips", "read_clip"]

VIDEO_SUFFIXES = frozenset({".mp4", ".mkv", ".mov", ".webm", ".avi", ".m4v", ".y4m", ".ts"})
_CLIP_SUFFIXES = VIDEO_SUFFIXES | IMAGE_SUFFIXES
# Frames used of one source: a long video contributes a sample.
_MAX_FRAMES = 300
# Divisible by the scales 2, 3 and 4.
_SIZE_MULTIPLE = 12


@dataclass(frozen=True, slots=True)
class CachedClip:
    """A decoded clip and its degraded versions, all (T, 3, H, W) uint8, memory-mapped."""

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
    pan: PanSettings | None = None,
    cancel: CancelToken | None = None,
) -> Iterator[CachedClip]:
    """Decode and degrade all clips in some folders; clips in the cache are only opened.

    Args:
        roots: Folders of video files, of images, or of folders of frames.
        cache: Folder of the arrays.
        preset: Degradation of the low-quality versions.
        scale: Downscaling factor of the low-quality versions.
        variants: Number of low-quality versions of a random preset, with the seeds 0, 1, ...
        pan: Length and speed of clips made of images; None: the default settings.
        cancel: Stops before the next array is made; finished arrays are kept.

    Yields:
        The clips, sorted by name within each folder.

    Raises:
        InputError: A root is missing or has no clips, or a clip cannot be decoded.
        Cancelled: `cancel` was cancelled.
    """
    cancel = cancel or CancelToken()
    pan = pan or PanSettings()
    # All folders are checked before the first clip is decoded.
    sources: list[Path] = []
    for root in roots:
        sources += _find_sources(root)
    # A random preset has an edition, which changes when the same seed gives other results.
    edition = RANDOM_PRESETS.get(preset)
    version = f"{preset}.{edition}" if edition else preset
    num_variants = variants if edition else 1

    for source in sources:
        cancel.raise_if_cancelled()
        folder = cache / f"{source.stem}-{_key(source, pan)}"
        gt = _open(folder / "gt.npy")
        if gt is None:
            gt = _store(folder / "gt.npy", _decode(source, pan))
        lqs: list[NDArray[np.uint8]] = []
        for variant in range(num_variants):
            path = folder / f"{version}-x{scale}-{variant}.npy"
            lq = _open(path)
            if lq is None:
                cancel.raise_if_cancelled()
                clip = torch.from_numpy(np.array(gt)).float() / 255
                # Every clip is degraded differently.
                seed = zlib.crc32(source.name.encode()) + variant
                degraded = degrade(clip, preset, scale=scale, seed=seed)
                lq = _store(path, to_uint8(degraded).numpy())
            lqs.append(lq)
        yield CachedClip(source.stem, gt, tuple(lqs))


def _find_sources(root: Path) -> list[Path]:
    if not root.is_dir():
        raise InputError(f"no such folder of clips: {root}")
    sources: list[Path] = []
    for path in sorted(root.iterdir()):
        has_clip_suffix = path.suffix.lower() in _CLIP_SUFFIXES
        if has_clip_suffix or path.is_dir():
            sources.append(path)
    if not sources:
        raise InputError(f"no video, image or folder of frames in {root}")
    return sources


def _key(source: Path, pan: PanSettings) -> str:
    """Hash the identity of a source: path, number of files, size and modification time."""
    # The time of a folder does not change when an image in it is replaced.
    files = list(source.iterdir()) if source.is_dir() else [source]
    size_bytes = 0
    time_ns = 0
    for file in files:
        stat = file.stat()
        size_bytes += stat.st_size
        time_ns = max(time_ns, stat.st_mtime_ns)
    identity = f"{source.resolve()}|{len(files)}|{size_bytes}|{time_ns}"
    if has_image_suffix(source):
        identity += f"|{pan.identity}"
    return hashlib.sha256(identity.encode()).hexdigest()[:12]


def read_clip(source: Path, *, max_frames: int, size_multiple: int = 1) -> NDArray[np.uint8]:
    """Decode a video, an image or a folder of frames.

    Args:
        source: Path of the clip.
        max_frames: Number of frames after which decoding stops.
        size_multiple: Height and width are cropped to a multiple of it, at the right and bottom.

    Returns:
        (T, 3, H, W) uint8.

    Raises:
        InputError: Nothing can be decoded.
    """
    frames: list[NDArray[np.uint8]] = []
    with open_reader(source) as reader:
        for frame in islice(reader, max_frames):
            frames.append(to_uint8(frame.rgb).numpy())
    return _stack_cropped(frames, size_multiple)


def _stack_cropped(frames: Sequence[NDArray[np.uint8]], multiple: int) -> NDArray[np.uint8]:
    height, width = frames[0].shape[-2:]
    height = height // multiple * multiple
    width = width // multiple * multiple
    return np.stack([frame[:, :height, :width] for frame in frames])


def _decode(source: Path, pan: PanSettings) -> NDArray[np.uint8]:
    """Decode a source to (T, 3, H, W); an image becomes a clip."""
    if not has_image_suffix(source):
        return read_clip(source, max_frames=_MAX_FRAMES, size_multiple=_SIZE_MULTIPLE)
    image = torch.from_numpy(read_clip(source, max_frames=1)[0])
    seed = zlib.crc32(source.name.encode())
    return _stack_cropped(pan_over(image, seed, pan), _SIZE_MULTIPLE)


def _open(path: Path) -> NDArray[np.uint8] | None:
    return np.load(path, mmap_mode="r") if path.is_file() else None


def _store(path: Path, array: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Write an array completely or not at all, and open it memory-mapped."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Another process may make the same array.
    with file_lock(path.with_suffix(".lock")):
        if not path.is_file():
            with atomic_write(path) as part:
                out = open_memmap(part, mode="w+", dtype=np.uint8, shape=array.shape)
                out[:] = array
                out.flush()
    return np.load(path, mmap_mode="r")
