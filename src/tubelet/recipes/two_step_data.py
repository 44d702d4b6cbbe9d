"""Samples for two-step: crops of three frames, split by video, and what the frozen image model makes of them.

clip ─ its first 25 frames ─ 23 triplets ─ a crop of each ─┬ lq (3, 3, p, p): the frame between its two neighbors
                                                           └ gt (3, sp, sp): of the frame
lq of the frame ─ frozen image model, once ─ hq (3, sp, sp), kept in a memory-mapped file

Source: two-step video super-resolution, Sec. IV-A: 25 consecutive frames of a video, 8:1:1 by video.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.lib.format import open_memmap
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from tubelet.data import CachedClip, Crops, CropSettings
from tubelet.downloads import file_lock
from tubelet.errors import ConfigError, InputError
from tubelet.layers.inference import prepare_for_inference, reference_form
from tubelet.ops.pixels import to_uint8
from tubelet.ops.sizes import round_up
from tubelet.progress import CancelToken
from tubelet.zoo.bases import fingerprint
from tubelet.zoo.opened_model import OpenedModel

__all__ = [
    "HeldOutCrops",
    "Samples",
    "TrainingCrops",
    "TripletSettings",
    "VideoSplit",
    "enlarge",
    "frozen_outputs",
    "split_videos",
    "usable_clips",
]

_FROZEN_BATCH = 16  # crops that the image model enlarges at once


@dataclass(frozen=True, slots=True, kw_only=True)
class TripletSettings:
    """Number and size of the training crops; all of them are drawn before the training starts."""

    patch_px: int = 64
    """Side of the low-quality crop, pixels."""
    frames_per_video: int = 25
    """Frames used of each video, from its start; the first and the last are only neighbors."""
    crops_per_triplet: int = 1
    """Crops drawn of each triplet of frames, each with a random position, flip and time
    direction."""
    seed: int = 0
    """Seed of the crops. Runs that differ only in `loop.seed` share the results of the image
    model."""

    def __post_init__(self) -> None:
        if self.patch_px < 1 or self.crops_per_triplet < 1 or self.frames_per_video < 3:
            raise ConfigError(
                f"{self}: need patch_px ≥ 1, crops_per_triplet ≥ 1 and frames_per_video ≥ 3"
            )


class VideoSplit(NamedTuple):
    """Clips by what they are for; no video is in two parts."""

    training: list[CachedClip]
    validation: list[CachedClip]
    test: list[CachedClip]


def split_videos(clips: Sequence[CachedClip]) -> VideoSplit:
    """Split clips 8:1:1 by the names of their videos: the same names give the same parts, in whatever order.

    Raises:
        InputError: fewer than three videos.
    """
    names = sorted(
        {clip.name for clip in clips}, key=lambda name: hashlib.sha256(name.encode()).digest()
    )
    if len(names) < 3:
        raise InputError(
            f"{len(names)} videos are too few: one part is trained on, two are held out; give 3 or more"
        )
    held = max(1, round(len(names) / 10))

    def clips_of(part: Sequence[str]) -> list[CachedClip]:
        return [clip for clip in clips if clip.name in part]

    return VideoSplit(
        training=clips_of(names[2 * held :]),
        validation=clips_of(names[:held]),
        test=clips_of(names[held : 2 * held]),
    )


class Samples(Protocol):
    """A fixed list of crops."""

    @property
    def size_px(self) -> int:
        """Side of a crop, lq pixels."""
        ...

    def __len__(self) -> int: ...

    def sample(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Cut one out: lq (3, 3, p, p) of consecutive frames, and gt (3, sp, sp) of the middle one."""
        ...

    def describe(self) -> dict[str, Any]:
        """Tell all that the crops depend on, in what JSON can hold."""
        ...


class TrainingCrops:
    """A random crop of every triplet of every video, drawn once and for all.

    Args:
        clips: to train on; those with fewer than three frames, or smaller than the crop, are left out.
        scale: factor between lq and gt.
        settings: of the crops.

    Raises:
        InputError: no clip is left.
    """

    def __init__(self, clips: Sequence[CachedClip], scale: int, settings: TripletSettings) -> None:
        self._scale = scale
        self._settings = settings
        self._crops = CropSettings(batch=1, frames=3, patch_px=settings.patch_px)
        self._clips = usable_clips(clips, settings.patch_px)
        last = settings.frames_per_video
        self._places = [
            (clip, start)
            for clip in self._clips
            for start in range(min(len(clip.gt), last) - 2)
            for _ in range(settings.crops_per_triplet)
        ]

    @property
    def size_px(self) -> int:
        """Side of a crop, lq pixels."""
        return self._settings.patch_px

    def __len__(self) -> int:
        return len(self._places)

    def sample(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """See `Samples`; the index is also that of the draw."""
        clip, start = self._places[index]
        frames = slice(start, start + 3)
        triplet = CachedClip(clip.name, clip.gt[frames], tuple(lq[frames] for lq in clip.lqs))
        lq, gt = Crops([triplet], self._scale, self._crops, self._settings.seed).sample(index)
        return lq, gt[1]

    def describe(self) -> dict[str, Any]:
        """See `Samples`."""
        return {"kind": "training", "scale": self._scale, **asdict(self._settings)} | _identity(
            self._clips
        )


class HeldOutCrops:
    """The middle of held-out videos, as it is: for scores.

    Args:
        clips: held out; those with fewer than three frames, or smaller than the crop, are left out.
        scale: factor between lq and gt.
        size_px: side of the crop, lq pixels.
        frames: restored frames of each video, from the first that has a neighbor on.

    Raises:
        InputError: no clip is left.
    """

    def __init__(
        self, clips: Sequence[CachedClip], scale: int, *, size_px: int, frames: int
    ) -> None:
        self._scale = scale
        self.size_px = size_px
        self._clips = usable_clips(clips, size_px)
        self._places = [
            (clip, t) for clip in self._clips for t in range(min(len(clip.gt) - 2, frames))
        ]

    @property
    def names(self) -> list[str]:
        """Name of the video of every sample."""
        return [clip.name for clip, _ in self._places]

    def __len__(self) -> int:
        return len(self._places)

    def sample(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """See `Samples`."""
        clip, start = self._places[index]
        lq = clip.lqs[0]
        size = self.size_px
        s = self._scale
        top, left = ((n - size) // 2 for n in lq.shape[-2:])
        gt = clip.gt[start + 1, :, top * s : (top + size) * s, left * s : (left + size) * s]
        return np.array(lq[start : start + 3, :, top : top + size, left : left + size]), np.array(
            gt
        )

    def describe(self) -> dict[str, Any]:
        """See `Samples`."""
        places = {
            "kind": "held out",
            "scale": self._scale,
            "size_px": self.size_px,
            "samples": len(self),
        }
        return places | _identity(self._clips)


def usable_clips(clips: Sequence[CachedClip], size_px: int) -> list[CachedClip]:
    """Take the clips of three frames and more that are at least as large as a crop, `size_px` at low quality.

    Raises:
        InputError: there is none.
    """
    found = [clip for clip in clips if len(clip.gt) >= 3 and min(clip.lqs[0].shape[-2:]) >= size_px]
    if not found:
        names = ", ".join(clip.name for clip in clips[:3])
        raise InputError(
            f"none of {len(clips)} clips ({names}, …) has three frames of {size_px} px on both sides at low quality; "
            "give larger ones, or lower crops.patch_px and score_px"
        )
    return found


def _identity(clips: Sequence[CachedClip]) -> dict[str, Any]:
    """Tell clips by their names, shapes and three frames of each degraded version."""
    digest = hashlib.sha256()
    for clip in clips:
        digest.update(f"{clip.name} {clip.gt.shape}".encode())
        for lq in clip.lqs:
            digest.update(np.ascontiguousarray(lq[[0, len(lq) // 2, -1]]).tobytes())
    return {"videos": len(clips), "content": digest.hexdigest()}


def frozen_outputs(
    samples: Samples,
    model: OpenedModel,
    folder: Path,
    *,
    device: str = "cpu",
    cancel: CancelToken | None = None,
) -> NDArray[np.uint8]:
    """Let the image model enlarge the middle frame of every sample, once; what is there already is only opened.

    Args:
        samples: crops.
        model: frozen.
        folder: of the files, which several runs can share; their names come from all that the model and the crops
            depend on.
        device: where the model runs.
        cancel: stops after the batch that it is at.

    Returns:
        (N, 3, sp, sp) uint8, memory-mapped. A run that was stopped goes on where it was.

    Raises:
        Cancelled: `cancel` was cancelled.
    """
    identity = json.dumps(
        {"model": fingerprint(model), "samples": samples.describe()}, sort_keys=True
    )
    path = folder / f"{hashlib.sha256(identity.encode()).hexdigest()[:16]}.npy"
    folder.mkdir(parents=True, exist_ok=True)
    with file_lock(path.with_suffix(".lock")):
        try:
            return np.load(path, mmap_mode="r")
        except (OSError, ValueError, EOFError):  # not there yet, or damaged
            _compute(samples, model, path, device, cancel or CancelToken())
    return np.load(path, mmap_mode="r")


def _compute(
    samples: Samples, model: OpenedModel, path: Path, device: str, cancel: CancelToken
) -> None:
    part = path.with_suffix(".part")
    count = path.with_suffix(".count")
    done = _read_count(count) if part.is_file() else 0
    side = samples.size_px * model.spec.scale
    shape = (len(samples), 3, side, side)
    out = open_memmap(
        part, mode="r+" if done else "w+", dtype=np.uint8, shape=None if done else shape
    )
    network = prepare_for_inference(model.network.to(device))
    for start in range(done, len(samples), _FROZEN_BATCH):
        stop = min(start + _FROZEN_BATCH, len(samples))
        lq = np.stack([samples.sample(index)[0][1] for index in range(start, stop)])
        hq = enlarge(model, torch.from_numpy(lq).to(device).float() / 255)
        out[start:stop] = to_uint8(hq).cpu().numpy()
        out.flush()
        count.write_text(str(stop))
        cancel.raise_if_cancelled()
    reference_form(network.cpu())
    part.replace(path)
    count.unlink(missing_ok=True)


@torch.inference_mode()
def enlarge(model: OpenedModel, lq: Tensor) -> Tensor:
    """Enlarge images of any size, each by itself: (B, 3, H, W) → (B, 3, sH, sW), clipped to [0, 1]."""
    contract = model.spec.contract
    height, width = lq.shape[-2:]
    below = round_up(max(height, contract.min_size_px), contract.size_multiple) - height
    right = round_up(max(width, contract.min_size_px), contract.size_multiple) - width
    padded = functional.pad(lq, (0, right, 0, below), mode="replicate") if below or right else lq
    sr = model.network(padded[:, None])[:, 0]
    return sr[..., : contract.scale * height, : contract.scale * width].clamp(0, 1)


def _read_count(path: Path) -> int:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # the run was stopped before, or while it was written
        return 0
