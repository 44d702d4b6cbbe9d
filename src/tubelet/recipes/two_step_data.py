"""Samples for two-step: crops of three frames, split by video, and the image model's results.

clip ─ its first 25 frames ─ 23 triplets ─ a crop of each ─┬ lq (3, 3, p, p): frame and neighbors
                                                           └ gt (3, sp, sp): target of the frame
lq of the frame ─ frozen image model, once ─ hq (3, sp, sp), cached in a memory-mapped file

Source: two-step video super-resolution, Sec. IV-A: 25 consecutive frames of a video, split 8:1:1 by
video.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Sequence
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
from tubelet.errors import InputError, require
from tubelet.files import file_lock
from tubelet.layers.inference import prepare_for_inference, reference_form
from tubelet.ops.pixels import to_uint8
from tubelet.ops.sizes import round_up
from tubelet.progress import CancelToken
from tubelet.zoo.bases import fingerprint
from tubelet.zoo.opened_model import OpenedModel

__all__ = [
    "HeldOutCrops",
    "Pixels",
    "Samples",
    "TrainingCrops",
    "TripletSettings",
    "VideoSplit",
    "enlarge",
    "frozen_outputs",
    "split_videos",
    "usable_clips",
]

Pixels = NDArray[np.uint8]

_IMAGE_MODEL_BATCH = 16
"""Crops per call of the image model."""


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
        has_crops = min(self.patch_px, self.crops_per_triplet) >= 1
        has_triplets = self.frames_per_video >= 3
        require(
            has_crops and has_triplets,
            f"{self}: need patch_px ≥ 1, crops_per_triplet ≥ 1 and frames_per_video ≥ 3",
        )


class VideoSplit(NamedTuple):
    """Clips for training, validation and test; all clips of a video are in the same part."""

    training: list[CachedClip]
    validation: list[CachedClip]
    test: list[CachedClip]


def split_videos(clips: Sequence[CachedClip]) -> VideoSplit:
    """Split clips 8:1:1 by the names of their videos, independently of their order.

    Raises:
        InputError: There are fewer than three videos.
    """
    # The order of the hashes is random, but the same in every run.
    names = sorted({clip.name for clip in clips}, key=_hash_name)
    if len(names) < 3:
        raise InputError(
            f"{len(names)} videos are too few: training, validation and test need at least one "
            "each; give 3 or more"
        )
    num_held_out = max(1, round(len(names) / 10))
    validation_names = names[:num_held_out]
    test_names = names[num_held_out : 2 * num_held_out]
    training_names = names[2 * num_held_out :]
    return VideoSplit(
        training=_clips_named(training_names, clips),
        validation=_clips_named(validation_names, clips),
        test=_clips_named(test_names, clips),
    )


def _hash_name(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


def _clips_named(names: Collection[str], clips: Sequence[CachedClip]) -> list[CachedClip]:
    return [clip for clip in clips if clip.name in names]


class Samples(Protocol):
    """A fixed list of crops."""

    @property
    def size_px(self) -> int:
        """Side of a low-quality crop, pixels."""
        ...

    def __len__(self) -> int: ...

    def sample(self, index: int) -> tuple[Pixels, Pixels]:
        """Cut out a crop.

        Returns:
            lq of three consecutive frames, (3, 3, p, p), and gt of the middle one, (3, sp, sp).
        """
        ...

    def describe(self) -> dict[str, Any]:
        """Return everything that the crops depend on, as JSON data."""
        ...


class TrainingCrops:
    """Random crops of all triplets of frames, the same in every epoch.

    Args:
        clips: Clips to train on; those with fewer than three frames, or smaller than the crop, are
            not used.
        scale: Factor between lq and gt.
        settings: Number and size of the crops.

    Raises:
        InputError: No clip can be used.
    """

    def __init__(self, clips: Sequence[CachedClip], scale: int, settings: TripletSettings) -> None:
        self._scale = scale
        self._settings = settings
        self._crops = CropSettings(batch=1, frames=3, patch_px=settings.patch_px)
        self._clips = usable_clips(clips, settings.patch_px)
        # Clip and index of the first frame of the triplet, of every sample.
        self._triplets: list[tuple[CachedClip, int]] = []
        for clip in self._clips:
            num_frames = min(len(clip.gt), settings.frames_per_video)
            for start in range(num_frames - 2):
                self._triplets += [(clip, start)] * settings.crops_per_triplet

    @property
    def size_px(self) -> int:
        """Side of a low-quality crop, pixels."""
        return self._settings.patch_px

    def __len__(self) -> int:
        return len(self._triplets)

    def sample(self, index: int) -> tuple[Pixels, Pixels]:
        """Cut out a crop; see `Samples`. The index also determines the random draw."""
        clip, start = self._triplets[index]
        frames = slice(start, start + 3)
        lqs = tuple(lq[frames] for lq in clip.lqs)
        triplet = CachedClip(clip.name, clip.gt[frames], lqs)
        crops = Crops([triplet], self._scale, self._crops, self._settings.seed)
        lq, gt = crops.sample(index)
        return lq, gt[1]

    def describe(self) -> dict[str, Any]:
        """Return everything that the crops depend on; see `Samples`."""
        settings = {"kind": "training", "scale": self._scale, **asdict(self._settings)}
        return settings | _identity(self._clips)


class HeldOutCrops:
    """The central region of held-out videos, without augmentation, for scores.

    Args:
        clips: Held-out clips; those with fewer than three frames, or smaller than the crop, are
            not used.
        scale: Factor between lq and gt.
        size_px: Side of the low-quality crop.
        frames: Maximum number of restored frames of each video, starting with its second frame.

    Raises:
        InputError: No clip can be used.
    """

    def __init__(
        self, clips: Sequence[CachedClip], scale: int, *, size_px: int, frames: int
    ) -> None:
        self._scale = scale
        self.size_px = size_px
        self._clips = usable_clips(clips, size_px)
        # Clip and index of the first frame of the triplet, of every sample.
        self._triplets: list[tuple[CachedClip, int]] = []
        for clip in self._clips:
            num_triplets = min(len(clip.gt) - 2, frames)
            for start in range(num_triplets):
                self._triplets.append((clip, start))

    @property
    def names(self) -> list[str]:
        """Name of the video of every sample."""
        return [clip.name for clip, _ in self._triplets]

    def __len__(self) -> int:
        return len(self._triplets)

    def sample(self, index: int) -> tuple[Pixels, Pixels]:
        """Cut out a crop; see `Samples`."""
        clip, start = self._triplets[index]
        lq = clip.lqs[0]
        size = self.size_px
        scale = self._scale
        height, width = lq.shape[-2:]
        top = (height - size) // 2
        left = (width - size) // 2
        lq_crop = lq[start : start + 3, :, top : top + size, left : left + size]
        rows = slice(top * scale, (top + size) * scale)
        columns = slice(left * scale, (left + size) * scale)
        gt_crop = clip.gt[start + 1, :, rows, columns]
        return np.array(lq_crop), np.array(gt_crop)

    def describe(self) -> dict[str, Any]:
        """Return everything that the crops depend on; see `Samples`."""
        settings = {
            "kind": "held out",
            "scale": self._scale,
            "size_px": self.size_px,
            "samples": len(self),
        }
        return settings | _identity(self._clips)


def usable_clips(clips: Sequence[CachedClip], size_px: int) -> list[CachedClip]:
    """Return the clips with three frames or more that are not smaller than a low-quality crop.

    Args:
        clips: Clips to choose from.
        size_px: Side of the low-quality crop.

    Raises:
        InputError: There is none.
    """
    usable: list[CachedClip] = []
    for clip in clips:
        min_side_px = min(clip.lqs[0].shape[-2:])
        if len(clip.gt) >= 3 and min_side_px >= size_px:
            usable.append(clip)
    if not usable:
        names = ", ".join(clip.name for clip in clips[:3])
        raise InputError(
            f"none of {len(clips)} clips ({names}, …) has three frames of {size_px} px on both "
            "sides at low quality; give larger ones, or lower crops.patch_px and score_px"
        )
    return usable


def _identity(clips: Sequence[CachedClip]) -> dict[str, Any]:
    """Return the number of clips and a hash of their names, shapes and pixels."""
    digest = hashlib.sha256()
    for clip in clips:
        digest.update(f"{clip.name} {clip.gt.shape}".encode())
        for lq in clip.lqs:
            # Three frames identify a clip; hashing all of them would read the whole cache.
            examples = lq[[0, len(lq) // 2, -1]]
            digest.update(np.ascontiguousarray(examples).tobytes())
    return {"videos": len(clips), "content": digest.hexdigest()}


def frozen_outputs(
    samples: Samples,
    model: OpenedModel,
    folder: Path,
    *,
    device: str = "cpu",
    cancel: CancelToken | None = None,
) -> Pixels:
    """Upscale the middle frame of every sample with the image model, or open cached results.

    An interrupted computation resumes where it stopped.

    Args:
        samples: Crops.
        model: Frozen image model.
        folder: Folder of the cache, which several runs can share: the name of a file is a hash of
            everything that the model and the crops depend on.
        device: Device that the model runs on.
        cancel: Stops the computation after the current batch.

    Returns:
        (N, 3, sp, sp) uint8, memory-mapped.

    Raises:
        Cancelled: `cancel` was cancelled.
    """
    identity = json.dumps(
        {"model": fingerprint(model), "samples": samples.describe()}, sort_keys=True
    )
    digest = hashlib.sha256(identity.encode()).hexdigest()
    path = folder / f"{digest[:16]}.npy"
    folder.mkdir(parents=True, exist_ok=True)
    with file_lock(path.with_suffix(".lock")):
        try:
            return np.load(path, mmap_mode="r")
        except (OSError, ValueError, EOFError):
            # The file does not exist yet, or is damaged.
            _compute_outputs(samples, model, path, device, cancel or CancelToken())
    return np.load(path, mmap_mode="r")


def _compute_outputs(
    samples: Samples, model: OpenedModel, path: Path, device: str, cancel: CancelToken
) -> None:
    """Upscale all samples into a partial file, and rename it when it is complete."""
    part = path.with_suffix(".part")
    # Number of finished samples in the partial file.
    count_file = path.with_suffix(".count")
    num_done = _read_count(count_file) if part.is_file() else 0
    if num_done:
        out = open_memmap(part, mode="r+", dtype=np.uint8)
    else:
        side = samples.size_px * model.spec.scale
        shape = (len(samples), 3, side, side)
        out = open_memmap(part, mode="w+", dtype=np.uint8, shape=shape)

    network = prepare_for_inference(model.network.to(device))
    for start in range(num_done, len(samples), _IMAGE_MODEL_BATCH):
        stop = min(start + _IMAGE_MODEL_BATCH, len(samples))
        frames: list[Pixels] = []
        for index in range(start, stop):
            lq_triplet, _ = samples.sample(index)
            frames.append(lq_triplet[1])
        lq = torch.from_numpy(np.stack(frames)).to(device).float() / 255
        hq = enlarge(model, lq)
        out[start:stop] = to_uint8(hq).cpu().numpy()
        # The count must not be ahead of the pixels on the disk.
        out.flush()
        count_file.write_text(str(stop))
        cancel.raise_if_cancelled()
    reference_form(network.cpu())
    part.replace(path)
    count_file.unlink(missing_ok=True)


@torch.inference_mode()
def enlarge(model: OpenedModel, lq: Tensor) -> Tensor:
    """Upscale single images of any size with an image model.

    Args:
        model: Image model.
        lq: (B, 3, H, W) in [0, 1].

    Returns:
        (B, 3, sH, sW), clipped to [0, 1].
    """
    contract = model.spec.contract
    height, width = lq.shape[-2:]
    bottom = round_up(max(height, contract.min_size_px), contract.size_multiple) - height
    right = round_up(max(width, contract.min_size_px), contract.size_multiple) - width
    if bottom or right:
        lq = functional.pad(lq, (0, right, 0, bottom), mode="replicate")
    # An image model takes clips: (B, 1, 3, H, W).
    sr = model.network(lq[:, None])[:, 0]
    sr_height = contract.scale * height
    sr_width = contract.scale * width
    return sr[..., :sr_height, :sr_width].clamp(0, 1)


def _read_count(path: Path) -> int:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        # The run stopped before the count was written, or while it was written.
        return 0
