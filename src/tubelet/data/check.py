"""Compare the files of a standard dataset with its expected contents."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from tubelet.data.cache import read_clip
from tubelet.data.catalog import DATASETS, ClipFacts, Dataset, DatasetSplit
from tubelet.data.datasets import FoundClip, count_frames, find_folder_clips, find_split, set_folder
from tubelet.degrade import PRESETS, RANDOM_PRESETS, Preset, degrade
from tubelet.errors import InputError
from tubelet.metrics import psnr
from tubelet.progress import CancelToken, OnProgress, Ticker
from tubelet.video.probe import probe
from tubelet.video.sequence import list_images

__all__ = [
    "ClipReport",
    "SetReport",
    "check_folder",
    "check_set",
    "identify_degradation",
    "sets_in",
]

# Above it, the difference is a fraction of a code value: the same filter, rounded differently.
_SAME_DEGRADATION_DB = 50.0
# Instead of the infinite PSNR of equal frames.
_MAX_PSNR_DB = 99.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipReport:
    """Result of the check of one clip.

    Attributes:
        split: Split of the dataset.
        name: Name of the clip.
        path: Ground truth, or the only version; None if it is missing.
        frames: Number of frames; None if it is only known after decoding.
        size: (width, height), pixels; None if no frame can be read.
        lq: Degradations with an existing low-quality version.
        problems: Problems, a line each.
    """

    split: str
    name: str
    path: Path | None
    frames: int | None = None
    size: tuple[int, int] | None = None
    lq: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return the report as values of JSON."""
        values = dataclasses.asdict(self)
        if self.path is not None:
            values["path"] = str(self.path)
        return values


@dataclass(frozen=True, slots=True, kw_only=True)
class SetReport:
    """Result of the check of one dataset.

    Attributes:
        name: Name of the dataset, or "folder".
        title: Name for a user.
        folder: Folder of the dataset.
        expected: Expected number of clips; None for an arbitrary folder.
        clips: Reports of all expected clips.
        problems: Problems of the dataset as a whole, a line each.
        notes: Recognized degradations of its low-quality clips, a line each.
    """

    name: str
    title: str
    folder: Path
    expected: int | None
    clips: tuple[ClipReport, ...]
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return the report as values of JSON."""
        return {
            "set": self.name,
            "folder": str(self.folder),
            "expected": self.expected,
            "found": self.found,
            "complete": self.is_complete,
            "problems": list(self.problems),
            "notes": list(self.notes),
            "clips": [clip.as_dict() for clip in self.clips],
        }

    @property
    def found(self) -> int:
        """Number of existing clips."""
        return sum(clip.path is not None for clip in self.clips)

    @property
    def is_complete(self) -> bool:
        """Whether no clip is missing and there are no problems."""
        problems = list(self.problems)
        for clip in self.clips:
            # A missing clip is one of its own problems.
            problems += clip.problems
        return not problems


def sets_in(root: Path) -> list[Dataset]:
    """List the standard datasets that are in a folder, completely or in part.

    Raises:
        InputError: There is no such folder.
    """
    if not root.is_dir():
        raise InputError(f"no such folder: {root}")
    return [dataset for dataset in DATASETS if _has_any_clip(dataset, root)]


def check_set(
    dataset: Dataset,
    root: Path,
    *,
    every_frame: bool = False,
    on_progress: OnProgress | None = None,
    cancel: CancelToken | None = None,
) -> SetReport:
    """Look for every clip of a dataset, and check its number of frames and their size.

    Args:
        dataset: Dataset to check.
        root: Folder of the dataset, or folder that contains it.
        every_frame: Decode every image, instead of reading the size of the first one of a clip.
        on_progress: Called up to ten times a second and at the end.
        cancel: Stops after the current clip.

    Raises:
        InputError: There is no such folder.
        Cancelled: `cancel` was cancelled.
    """
    folder = set_folder(dataset, root)
    num_expected = sum(split.count for split in dataset.splits)
    ticker = Ticker(
        on_progress,
        unit="clip",
        total=num_expected,
        label=dataset.title,
        cancel=cancel,
    )
    clips: list[ClipReport] = []
    problems: list[str] = []
    notes: list[str] = []
    for split in dataset.splits:
        try:
            found = find_split(dataset, split, root)
        except InputError as error:
            problems.append(str(error))
            continue
        for clip in found:
            clips.append(_check_clip(split, clip, every_frame))
            ticker.tick()
        for preset in split.lq:
            _check_degradation(preset, found, problems, notes)
        if len(found) != split.count:
            problems.append(f"{split.name}: {len(found)} clips instead of {split.count}")
    ticker.finish()
    return SetReport(
        name=dataset.name,
        title=dataset.title,
        folder=folder,
        expected=num_expected,
        clips=tuple(clips),
        problems=tuple(problems),
        notes=tuple(notes),
    )


def check_folder(
    root: Path,
    *,
    every_frame: bool = False,
    on_progress: OnProgress | None = None,
    cancel: CancelToken | None = None,
) -> SetReport:
    """Describe the clips of any folder.

    Args:
        root: Folder of clips.
        every_frame: As in `check_set`.
        on_progress: As in `check_set`.
        cancel: As in `check_set`.

    Raises:
        InputError: There are no clips.
        Cancelled: `cancel` was cancelled.
    """
    found = find_folder_clips(root)
    ticker = Ticker(on_progress, unit="clip", total=len(found), label=root.name, cancel=cancel)
    clips: list[ClipReport] = []
    for clip in found:
        if clip.gt is not None:
            report = ClipReport(split="", name=clip.name, path=clip.gt)
            clips.append(_with_frames(report, clip.gt, ClipFacts(), every_frame))
        ticker.tick()
    ticker.finish()
    return SetReport(
        name="folder",
        title="folder of clips",
        folder=root,
        expected=None,
        clips=tuple(clips),
    )


def _has_any_clip(dataset: Dataset, root: Path) -> bool:
    """Return whether a clip of a dataset exists.

    A clip that is only a folder with a number, such as 000, is not enough: it can be of any other
    dataset. The name of its parent folder must then be that of the dataset.
    """
    folder = set_folder(dataset, root)
    has_usual_name = folder.name.lower() in dataset.folders
    splits = dataset.splits
    if not has_usual_name:
        # Without known clips, any folder of frames would be a clip of the split.
        splits = [split for split in splits if split.clips or split.list_file]
    for split in splits:
        try:
            found = find_split(dataset, split, root)
        except InputError:
            # The list of its clips is missing, so the split is not here.
            continue
        for path in _existing_paths(found):
            is_only_number = path.parent == folder and path.name.isdigit()
            if has_usual_name or not is_only_number:
                return True
    return False


def _existing_paths(clips: Sequence[FoundClip]) -> list[Path]:
    """List the existing versions of clips, ground truth and low quality."""
    paths: list[Path] = []
    for clip in clips:
        if clip.gt is not None:
            paths.append(clip.gt)
        paths += clip.lq.values()
    return paths


def _check_clip(split: DatasetSplit, clip: FoundClip, every_frame: bool) -> ClipReport:
    path = clip.gt
    # A split without ground truth has only real low-quality clips, listed as "none".
    if not split.gt:
        path = clip.lq.get("none")
    # "none" is no degradation.
    degradations = [preset for preset in clip.lq if preset != "none"]
    report = ClipReport(
        split=split.name,
        name=clip.name,
        path=path,
        lq=tuple(degradations),
    )
    if path is None:
        return dataclasses.replace(report, problems=("missing",))
    report = _with_frames(report, path, clip.facts, every_frame)
    problems = list(report.problems)
    for preset, lq in clip.lq.items():
        lq_frames = count_frames(lq)
        if lq_frames != report.frames:
            problems.append(f"{preset}: {lq_frames} low-quality frames, not {report.frames}")
    return dataclasses.replace(report, problems=tuple(problems))


def _check_degradation(
    preset: str, clips: Sequence[FoundClip], problems: list[str], notes: list[str]
) -> None:
    """Check the degradation of the low-quality clips of a folder, by the first one.

    The name of a folder is not enough: datasets use the same names for different degradations.
    """
    for clip in clips:
        if clip.gt is not None and preset in clip.lq:
            break
    else:
        return
    gt = clip.gt
    lq = clip.lq[preset]
    try:
        psnrs_db = identify_degradation(gt, lq)
    except InputError as error:
        problems.append(str(error))
        return
    if not psnrs_db:
        return
    best = next(iter(psnrs_db))
    texts: list[str] = []
    for name, value in psnrs_db.items():
        texts.append(f"{name} {value:.1f} dB")
    values = ", ".join(texts)
    # Two similar filters can both be within rounding errors; then the expected one is accepted.
    is_within_rounding = psnrs_db.get(preset, 0) > _SAME_DEGRADATION_DB
    if best == preset or is_within_rounding:
        notes.append(f"{lq} is {preset}: {values}")
    else:
        problems.append(f"{lq} is expected to be {preset}, but nearest is {best}: {values}")


def identify_degradation(gt: Path, lq: Path) -> dict[str, float]:
    """Compare the first frame of a low-quality clip with the benchmark degradations of its gt.

    Args:
        gt: Folder of frames, video or image.
        lq: The same, smaller.

    Returns:
        RGB-PSNR by degradation, in dB up to 99, the highest first; empty if the ratio of the sizes
        is not an integer scale.

    Raises:
        InputError: One of the clips cannot be decoded.
    """
    gt_frame = _read_first_frame(gt)
    lq_frame = _read_first_frame(lq)
    gt_height, gt_width = gt_frame.shape[-2:]
    lq_height, lq_width = lq_frame.shape[-2:]
    scale = gt_height // lq_height
    if scale < 2:
        return {}
    # Benchmarks crop to a multiple of the scale.
    cropped_size = (gt_height // scale, gt_width // scale)
    if cropped_size != (lq_height, lq_width):
        return {}
    gt_frame = gt_frame[..., : lq_height * scale, : lq_width * scale]
    psnrs_db: dict[str, float] = {}
    for preset in _comparable_presets(scale):
        degraded = degrade(gt_frame, preset, scale=scale)
        value = psnr(degraded, lq_frame, channel="rgb").item()
        psnrs_db[preset] = min(value, _MAX_PSNR_DB)
    ranking = sorted(psnrs_db.items(), key=lambda item: -item[1])
    return dict(ranking)


def _read_first_frame(path: Path) -> Tensor:
    """Read the first frame of a clip: (1, 3, H, W), float32 in [0, 1]."""
    return torch.from_numpy(read_clip(path, max_frames=1)).float() / 255


def _comparable_presets(scale: int) -> list[Preset]:
    """List the degradations that are not random and that support a scale."""
    excluded = set(RANDOM_PRESETS)
    has_odd_scale = scale % 2 == 1
    if has_odd_scale:
        # Its definition needs an even scale.
        excluded.add("bd-b")
    return [preset for preset in PRESETS if preset not in excluded]


def _with_frames(report: ClipReport, path: Path, facts: ClipFacts, every_frame: bool) -> ClipReport:
    """Add the number and the size of the frames to a report, and compare them with the facts."""
    images = list_images(str(path))
    if images is None:
        return _with_probed_video(report, path)
    problems = list(_count_problems(len(images), facts))
    checked_images = images
    if not every_frame:
        checked_images = images[:1]
    sizes = list(_sizes(checked_images, every_frame, problems))
    if not sizes:
        return dataclasses.replace(
            report,
            frames=len(images),
            size=None,
            problems=tuple(problems),
        )

    # All frames have to be as large as the first one, and that as large as in the dataset.
    size = sizes[0]
    width, height = size
    num_different = len(sizes) - sizes.count(size)
    if num_different:
        problems.append(f"{num_different} frames are not {width}x{height}")
    if facts.size and size != facts.size:
        expected_width, expected_height = facts.size
        problems.append(f"{width}x{height} instead of {expected_width}x{expected_height}")
    return dataclasses.replace(
        report,
        frames=len(images),
        size=size,
        problems=tuple(problems),
    )


def _with_probed_video(report: ClipReport, path: Path) -> ClipReport:
    try:
        info = probe(path)
    except InputError as error:
        return dataclasses.replace(report, problems=(str(error),))
    return dataclasses.replace(
        report,
        frames=info.frames_hint,
        size=(info.width, info.height),
    )


def _count_problems(num_frames: int, facts: ClipFacts) -> Iterator[str]:
    # A dataset may give neither the number of frames nor their maximum.
    if facts.frames not in (None, num_frames):
        yield f"{num_frames} frames instead of {facts.frames}"
    if facts.frames_max is not None and num_frames > facts.frames_max:
        yield f"{num_frames} frames, more than {facts.frames_max}"


def _sizes(images: Sequence[Path], decode: bool, problems: list[str]) -> Iterator[tuple[int, int]]:
    """Yield the sizes of images; add those that cannot be read to the problems."""
    for path in images:
        try:
            with Image.open(path) as image:
                if decode:
                    image.load()
                yield image.size
        except (OSError, UnidentifiedImageError, SyntaxError) as error:
            problems.append(f"{path.name} cannot be read: {error}")
