"""Clips of the studies of LRTI-VSR: real ones, noisy pans, and clips of unrelated frames.

real        the frames of a video
pans        a window that moves slowly over one frame of a video, or is still; noise on lq that
is independent from frame to frame: a long memory can average it away
unrelated   every frame from another place of another video, with the same noise: there is
nothing to remember

video, one cell in eight       ┌──┬──┬──┬──┐
frames of an unrelated clip    │  │ 7│  │  │      cells do not overlap, no cell occurs twice,
are cells of all videos        ├──┼──┼──┼──┤      and neighbors are from different videos
│  │  │31│  │
└──┴──┴──┴──┘
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from tubelet.data import CachedClip
from tubelet.degrade import degrade
from tubelet.errors import InputError
from tubelet.ops.pixels import to_uint8

__all__ = ["ClipKind", "ClipSettings", "StudyClips", "split_clips"]

ClipKind = Literal["real", "pans", "unrelated"]
Pixels = NDArray[np.uint8]

_SCALE = 4
_NOISE_STD = 10.0
"""Standard deviation of the noise, in code values of 8 bits."""
_NOISE_VARIANTS = 4
"""Draws of the noise for each training clip."""
_MAX_SPEED_PX = 2
"""Maximum speed of a pan, whole pixels of gt per frame: half a pixel of lq."""
_PANS_PER_VIDEO = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipSettings:
    """Size of the clips of a study.

    Attributes:
        frames: Frames of a clip.
        window_px: Side of pans and unrelated frames, pixels of gt.
        score_px: Maximum side of the part of a held-out video that is scored, its center.
        held_out: Number of videos that are scored and not trained on.
    """

    frames: int
    window_px: int
    score_px: int
    held_out: int


@dataclass(frozen=True, slots=True)
class StudyClips:
    """Clips to train on, and held-out ones to score.

    Attributes:
        train: Training clips.
        held_out: Clips of other videos, of the same kind; they have one low-quality version.
    """

    train: list[CachedClip]
    held_out: list[CachedClip]

    def of_kind(self, kind: ClipKind, settings: ClipSettings) -> StudyClips:
        """Make clips of a kind from these videos.

        Raises:
            InputError: The videos are too small for the window, or have too few cells.
        """
        if kind == "real":
            scored = [_center(clip, settings.score_px) for clip in self.held_out]
            return StudyClips(self.train, scored)

        if kind == "pans":
            return StudyClips(
                _pans(self.train, settings, _PANS_PER_VIDEO, _NOISE_VARIANTS),
                _pans(self.held_out, settings, 1, 1),
            )
        return StudyClips(
            _unrelated(self.train, settings, _NOISE_VARIANTS),
            _unrelated(self.held_out, settings, 1),
        )


def split_clips(clips: Iterable[CachedClip], settings: ClipSettings) -> StudyClips:
    """Hold out the videos with the lowest SHA-256 of their name.

    A video is thus held out or trained on whatever other folders are given with it.

    Args:
        clips: Videos; those with too few frames are not used.
        settings: Frames of a clip, and the number of held-out videos.

    Raises:
        InputError: Too few videos are long enough.
    """
    found = list(clips)
    usable = [clip for clip in found if len(clip.gt) >= settings.frames]
    if len(usable) <= settings.held_out:
        raise InputError(
            f"{len(usable)} of {len(found)} clips have {settings.frames} frames; the study needs "
            f"{settings.held_out} of them for the scores and others to train on: add clips to "
            "--data"
        )
    usable.sort(key=lambda clip: hashlib.sha256(clip.name.encode()).hexdigest())
    held_out = usable[: settings.held_out]
    train = sorted(usable[settings.held_out :], key=lambda clip: clip.name)
    return StudyClips(train, held_out)


def _center(clip: CachedClip, max_px: int) -> CachedClip:
    """Crop a clip to its center, and take its first low-quality version."""
    lq_px = max_px // _SCALE
    height, width = clip.lqs[0].shape[-2:]
    top = max(0, height - lq_px) // 2
    left = max(0, width - lq_px) // 2
    bottom = min(height, top + lq_px)
    right = min(width, left + lq_px)
    s = _SCALE
    gt = clip.gt[..., s * top : s * bottom, s * left : s * right]
    lq = clip.lqs[0][..., top:bottom, left:right]
    return CachedClip(clip.name, gt, (lq,))


def _pans(
    videos: Sequence[CachedClip],
    settings: ClipSettings,
    per_video: int,
    variants: int,
) -> list[CachedClip]:
    """Pan over frames of every video that are evenly spread in time."""
    clips: list[CachedClip] = []
    for video in videos:
        _check_size(video, settings)
        for number in range(per_video):
            name = f"{video.name}-pan{number}"
            rng = _random_numbers(name)
            frame = np.asarray(video.gt[number * len(video.gt) // per_video])
            clips.append(_noisy_clip(name, _pan(frame, settings, rng), rng, variants))
    return clips


def _pan(frame: Pixels, settings: ClipSettings, rng: np.random.Generator) -> Pixels:
    """Move a window over a frame (3, H, W) at constant velocity: (T, 3, h, w)."""
    tops = _positions(frame.shape[1] - settings.window_px, settings.frames, rng)
    lefts = _positions(frame.shape[2] - settings.window_px, settings.frames, rng)
    windows: list[Pixels] = []
    for top, left in zip(tops, lefts, strict=True):
        windows.append(_window(frame, top, left, settings.window_px))
    return np.stack(windows)


def _positions(room: int, num_frames: int, rng: np.random.Generator) -> list[int]:
    """Draw the positions of a window along one axis, 0 … `room`, for every frame."""
    max_speed = min(_MAX_SPEED_PX, room // max(1, num_frames - 1))
    speed = int(rng.integers(-max_speed, max_speed, endpoint=True))
    distance = speed * (num_frames - 1)
    first = int(rng.integers(max(0, -distance), min(room, room - distance), endpoint=True))
    return [first + speed * t for t in range(num_frames)]


def _unrelated(
    videos: Sequence[CachedClip],
    settings: ClipSettings,
    variants: int,
) -> list[CachedClip]:
    """Make as many clips as there are videos; every frame is another cell of the videos.

    Raises:
        InputError: The videos have fewer cells than a clip has frames.
    """
    cells: list[tuple[int, int, int]] = []
    for index, video in enumerate(videos):
        _check_size(video, settings)
        height, width = video.gt.shape[-2:]
        for top in range(0, height - settings.window_px + 1, settings.window_px):
            for left in range(0, width - settings.window_px + 1, settings.window_px):
                cells.append((index, top, left))
    if len(cells) < settings.frames:
        raise InputError(
            f"clips of {settings.frames} unrelated frames need as many different parts of "
            f"{settings.window_px}×{settings.window_px} pixels; {len(videos)} videos have "
            f"{len(cells)}: add clips to --data"
        )

    clips: list[CachedClip] = []
    for number in range(len(videos)):
        name = f"unrelated{number}-{videos[number].name}"
        rng = _random_numbers(name)
        frames: list[Pixels] = []
        for index, top, left in _draw_cells(cells, settings.frames, rng):
            gt = videos[index].gt
            frame = np.asarray(gt[int(rng.integers(len(gt)))])
            frames.append(_window(frame, top, left, settings.window_px))
        clips.append(_noisy_clip(name, np.stack(frames), rng, variants))
    return clips


def _draw_cells(
    cells: Sequence[tuple[int, int, int]],
    num_frames: int,
    rng: np.random.Generator,
) -> list[tuple[int, int, int]]:
    """Draw different cells (video, top, left), neighbors from different videos where possible."""
    order: list[int] = rng.permutation(len(cells)).tolist()
    left = [cells[index] for index in order]
    drawn = [left.pop()]
    while len(drawn) < num_frames:
        last_video = drawn[-1][0]
        others = [cell for cell in left if cell[0] != last_video]
        chosen = (others or left)[0]
        left.remove(chosen)
        drawn.append(chosen)
    return drawn


def _noisy_clip(
    name: str,
    gt: Pixels,
    rng: np.random.Generator,
    variants: int,
) -> CachedClip:
    """Degrade a clip (T, 3, H, W), with several independent draws of noise."""
    degraded = degrade(torch.from_numpy(gt).float() / 255, "bi-u8", scale=_SCALE)
    clean = to_uint8(degraded).numpy().astype(np.float32)
    lqs: list[Pixels] = []
    for _ in range(variants):
        noise = rng.normal(0, _NOISE_STD, clean.shape)
        lqs.append((clean + noise).round().clip(0, 255).astype(np.uint8))
    return CachedClip(name, gt, tuple(lqs))


def _check_size(video: CachedClip, settings: ClipSettings) -> None:
    """Check that a window fits into a video.

    Raises:
        InputError: It does not.
    """
    height, width = video.gt.shape[-2:]
    if min(height, width) < settings.window_px:
        raise InputError(
            f"clip {video.name} is {width}×{height} pixels; the study needs "
            f"{settings.window_px} on both sides"
        )


def _window(frame: Pixels, top: int, left: int, size: int) -> Pixels:
    return frame[:, top : top + size, left : left + size]


def _random_numbers(name: str) -> np.random.Generator:
    """Seed by a name, so that a clip does not depend on the other clips."""
    return np.random.default_rng(zlib.crc32(name.encode()))
