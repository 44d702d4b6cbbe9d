"""Compare what is on the disk with what a standard set must hold."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image, UnidentifiedImageError

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

_SAME_DB = 50.0  # a fraction of a code value: the same rule, rounded otherwise


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipReport:
    """One clip.

    Attributes:
        split: part of the set.
        name: of the clip.
        path: of the good clip, or of the only one; None where it is missing.
        frames: how many there are; None where only decoding would tell.
        size: (width, height), pixels; None where no frame can be read.
        lq: degradations whose low-quality version is there too.
        problems: what is wrong, a line each.
    """

    split: str
    name: str
    path: Path | None
    frames: int | None = None
    size: tuple[int, int] | None = None
    lq: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return what JSON can hold."""
        values = dataclasses.asdict(self)
        return {**values, "path": None if self.path is None else str(self.path)}


@dataclass(frozen=True, slots=True, kw_only=True)
class SetReport:
    """One set.

    Attributes:
        name: of the set, or "folder".
        title: for a user.
        folder: where it was found.
        expected: number of clips that it has; None for any folder.
        clips: all that were looked for.
        problems: of the whole set, a line each.
        notes: what its low-quality clips were made by, a line each.
    """

    name: str
    title: str
    folder: Path
    expected: int | None
    clips: tuple[ClipReport, ...]
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return what JSON can hold."""
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
        """Number of clips that are there."""
        return sum(clip.path is not None for clip in self.clips)

    @property
    def is_complete(self) -> bool:
        """Nothing is missing and nothing wrong."""
        return not self.problems and not any(clip.problems for clip in self.clips)


def sets_in(root: Path) -> list[Dataset]:
    """List the standard sets of which something lies in a folder.

    Raises:
        InputError: there is no such folder.
    """
    if not root.is_dir():
        raise InputError(f"no such folder: {root}")
    return [dataset for dataset in DATASETS if _has_any(dataset, root)]


def check_set(
    dataset: Dataset,
    root: Path,
    *,
    every_frame: bool = False,
    on_progress: OnProgress | None = None,
    cancel: CancelToken | None = None,
) -> SetReport:
    """Look for every clip of a set, count its frames and measure them.

    Args:
        dataset: what to look for.
        root: folder of the set, or one that holds it.
        every_frame: decode every image instead of reading the size of the first.
        on_progress: called at most ten times a second and at the end.
        cancel: stops after the clip that it is at.

    Raises:
        InputError: there is no such folder.
        Cancelled: `cancel` was cancelled.
    """
    folder = set_folder(dataset, root)
    expected = sum(split.count for split in dataset.splits)
    ticker = Ticker(on_progress, unit="clip", total=expected, label=dataset.title, cancel=cancel)
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
            pair = next(
                ((c.gt, c.lq[preset]) for c in found if c.gt is not None and preset in c.lq), None
            )
            if pair is not None:
                _compare(preset, *pair, problems, notes)
        if len(found) != split.count:
            problems.append(f"{split.name}: {len(found)} clips instead of {split.count}")
    ticker.finish()
    return SetReport(
        name=dataset.name,
        title=dataset.title,
        folder=folder,
        expected=expected,
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
        root: folder of clips.
        every_frame: as in `check_set`.
        on_progress: as in `check_set`.
        cancel: as in `check_set`.

    Raises:
        InputError: there is none.
        Cancelled: `cancel` was cancelled.
    """
    found = find_folder_clips(root)
    ticker = Ticker(on_progress, unit="clip", total=len(found), label=root.name, cancel=cancel)
    clips: list[ClipReport] = []
    for clip in found:
        if clip.gt is not None:
            report = ClipReport(split="", name=clip.name, path=clip.gt)
            clips.append(_described(report, clip.gt, ClipFacts(), every_frame))
        ticker.tick()
    ticker.finish()
    return SetReport(
        name="folder", title="folder of clips", folder=root, expected=None, clips=tuple(clips)
    )


def _has_any(dataset: Dataset, root: Path) -> bool:
    """Say whether a clip of the set is there, by more than a number that any folder might have for a name."""
    folder = set_folder(dataset, root)
    is_named = folder.name.lower() in dataset.folders
    for split in dataset.splits:
        if not is_named and not split.clips and not split.list_file:
            continue
        try:
            found = find_split(dataset, split, root)
        except InputError:  # the list of its clips is missing: it is not here
            continue
        for clip in found:
            places = [place for place in (clip.gt, *clip.lq.values()) if place is not None]
            if any(
                is_named or place.parent != folder or not place.name.isdigit() for place in places
            ):
                return True
    return False


def _check_clip(split: DatasetSplit, clip: FoundClip, every_frame: bool) -> ClipReport:
    path = clip.gt if split.gt else clip.lq.get("none")
    report = ClipReport(
        split=split.name, name=clip.name, path=path, lq=tuple(p for p in clip.lq if p != "none")
    )
    if path is None:
        return _with(report, problems=("missing",))
    report = _described(report, path, clip.facts, every_frame)
    uneven = [
        f"{preset}: {count_frames(place)} low-quality frames, not {report.frames}"
        for preset, place in clip.lq.items()
        if count_frames(place) != report.frames
    ]
    return _with(report, problems=(*report.problems, *uneven))


def _compare(preset: str, gt: Path, lq: Path, problems: list[str], notes: list[str]) -> None:
    """Say which degradation the low-quality clips of a set were made by: names of folders do not always tell."""
    try:
        likeness = identify_degradation(gt, lq)
    except InputError as error:
        problems.append(str(error))
        return
    if not likeness:
        return
    best = next(iter(likeness))
    told = ", ".join(f"{name} {value:.1f} dB" for name, value in likeness.items())
    if best == preset or likeness.get(preset, 0) > _SAME_DB:
        notes.append(f"{lq} is {preset}: {told}")
    else:
        problems.append(f"{lq} is taken for {preset}, but nearest is {best}: {told}")


def identify_degradation(gt: Path, lq: Path) -> dict[str, float]:
    """Compare the first low-quality frame of a clip with what each benchmark degradation makes of the good one.

    Args:
        gt: folder of frames, video or image.
        lq: the same, smaller.

    Returns:
        Degradation → PSNR of RGB, dB, at most 99, the nearest first; empty where the sizes do not fit a whole scale.

    Raises:
        InputError: one of them cannot be decoded.
    """
    good, low = (torch.from_numpy(read_clip(path, max_frames=1)).float() / 255 for path in (gt, lq))
    scale = good.shape[-2] // low.shape[-2]
    if (
        scale < 2
        or good.shape[-1] // scale != low.shape[-1]
        or good.shape[-2] // scale != low.shape[-2]
    ):
        return {}
    good = good[..., : low.shape[-2] * scale, : low.shape[-1] * scale]
    presets: list[Preset] = [
        p for p in PRESETS if p not in RANDOM_PRESETS and not (p == "bd-b" and scale % 2)
    ]
    made = {
        preset: psnr(degrade(good, preset, scale=scale), low, channel="rgb").item()
        for preset in presets
    }
    return dict(
        sorted(
            ((name, min(value, 99.0)) for name, value in made.items()), key=lambda item: -item[1]
        )
    )


def _described(report: ClipReport, path: Path, facts: ClipFacts, every_frame: bool) -> ClipReport:
    images = list_images(str(path))
    if images is None:
        try:
            info = probe(path)
        except InputError as error:
            return _with(report, problems=(str(error),))
        return _with(report, frames=info.frames_hint, size=(info.width, info.height))
    problems = list(_wrong_count(len(images), facts))
    sizes = list(_sizes(images if every_frame else images[:1], every_frame, problems))
    size = sizes[0] if sizes else None
    odd = [other for other in sizes if other != size]
    if odd and size:
        problems.append(f"{len(odd)} frames are not {size[0]}x{size[1]}")
    if size and facts.size and size != facts.size:
        problems.append(f"{size[0]}x{size[1]} instead of {facts.size[0]}x{facts.size[1]}")
    return _with(report, frames=len(images), size=size, problems=tuple(problems))


def _wrong_count(count: int, facts: ClipFacts) -> Iterator[str]:
    if facts.frames is not None and count != facts.frames:
        yield f"{count} frames instead of {facts.frames}"
    if facts.frames_max is not None and count > facts.frames_max:
        yield f"{count} frames, more than {facts.frames_max}"


def _sizes(images: Sequence[Path], decode: bool, problems: list[str]) -> Iterator[tuple[int, int]]:
    for path in images:
        try:
            with Image.open(path) as image:
                if decode:
                    image.load()
                yield image.size
        except (OSError, UnidentifiedImageError, SyntaxError) as error:
            problems.append(f"{path.name} cannot be read: {error}")


def _with(report: ClipReport, **changes: Any) -> ClipReport:
    return dataclasses.replace(report, **changes)
