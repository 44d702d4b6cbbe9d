"""Find the clips of a standard set, or of any folder, below a root that the user names.

The root is the set's own folder (with GT/, or train_sharp/, or the clips themselves) or one that holds it under a
usual name. What is missing is named, with the places where it was looked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tubelet.data.cache import VIDEO_SUFFIXES
from tubelet.data.catalog import ClipFacts, Dataset, DatasetSplit, find_dataset
from tubelet.errors import InputError
from tubelet.metrics.protocols import MetricProtocol
from tubelet.video.sequence import IMAGE_SUFFIXES

__all__ = [
    "EvalClip",
    "FoundClip",
    "count_frames",
    "find_clips",
    "find_folder_clips",
    "find_set_clips",
    "find_split",
    "find_training_clips",
    "set_folder",
]

_LQ_SCALE = 4  # of the low-quality clips that come with a set


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalClip:
    """A clip to score a model on.

    Attributes:
        name: unique within the set, fit for a file name.
        gt: folder of frames or video file of the good clip; None where there is none.
        lq: the same of the low-quality clip; None: it is made from `gt` by the degradation of the protocol.
    """

    name: str
    gt: Path | None
    lq: Path | None


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundClip:
    """A clip of a standard set, as far as it is there.

    Attributes:
        name: as the set names it.
        facts: what it must be.
        gt: folder of frames, or an image; None where it is missing.
        lq: degradation → low-quality version that came with the set.
    """

    name: str
    facts: ClipFacts
    gt: Path | None
    lq: dict[str, Path] = field(default_factory=dict[str, Path])


def find_clips(protocol: MetricProtocol, root: Path) -> list[EvalClip]:
    """Find the clips that a protocol scores.

    Low-quality clips that came with the set are used where their convention is that of the protocol and every clip has
    one. Good clips are given whole: whoever degrades them crops height and width to multiples of the scale first.

    Args:
        protocol: see `tubelet.metrics.protocols`.
        root: folder of the set, or one that holds it.

    Returns:
        In the order of the set.

    Raises:
        InputError: clips or frames are missing; the line says which, and where they were looked for.
    """
    if protocol.dataset == "folder":
        return find_folder_clips(root)
    dataset = find_dataset(protocol.dataset)
    found = [clip for split in dataset.splits for clip in find_split(dataset, split, root)]
    if protocol.clips is not None:
        found = [clip for clip in found if clip.name in protocol.clips]
    _refuse_missing(dataset, protocol, found, root)
    own = protocol.degradation if protocol.scale == _LQ_SCALE else ""
    has_lq = all(own in clip.lq for clip in found)
    clips = [
        EvalClip(name=_file_name(c.name), gt=c.gt, lq=c.lq[own] if has_lq else None) for c in found
    ]
    for clip in clips:
        _refuse_uneven(dataset, clip)
    return clips


def find_training_clips(name: str, root: Path, *, degradation: str = "bi-u8") -> list[EvalClip]:
    """Find the clips or images of a set that are trained on: its splits "train" and "val", never a test set.

    Args:
        name: of a standard set: reds (the 266 clips that are not REDS4), vimeo90k, div2k, flickr2k.
        root: folder of the set, or one that holds it.
        degradation: of the low-quality versions, which are given where they came with the set.

    Raises:
        RequestError: there is no such set.
        InputError: nothing is found, or the set is one for tests.
    """
    dataset = find_dataset(name)
    splits = [split for split in dataset.splits if split.name != "test"]
    if not splits:
        raise InputError(f"{dataset.title} is a test set; nothing of it may be trained on")
    found = [
        clip
        for split in splits
        for clip in _named_apart(dataset, split, root, degradation)
        if clip.gt is not None
    ]
    if not found:
        raise InputError(_nowhere(dataset, root))
    return found


def find_set_clips(dataset: Dataset, root: Path) -> list[EvalClip]:
    """Find all good clips of a set that are there, of every split.

    Raises:
        InputError: there is none.
    """
    found = [
        clip
        for split in dataset.splits
        for clip in _named_apart(dataset, split, root)
        if clip.gt is not None
    ]
    if not found:
        raise InputError(_nowhere(dataset, root))
    return found


def find_folder_clips(root: Path) -> list[EvalClip]:
    """Find the clips of any folder: videos, folders of frames, or the frames of one clip.

    Raises:
        InputError: the folder is missing or empty.
    """
    if not root.is_dir():
        raise InputError(f"no such folder of clips: {root}")
    entries = sorted(path for path in root.iterdir() if not path.name.startswith("."))
    clips = [path for path in entries if path.suffix.lower() in VIDEO_SUFFIXES and path.is_file()]
    clips += [path for path in entries if path.is_dir() and count_frames(path)]
    if not clips and count_frames(root):
        clips = [root]
    if not clips:
        raise InputError(f"no video and no folder of frames in {root}; a clip is one or the other")
    clips.sort()
    stems = [path.stem for path in clips]
    names = [path.stem if stems.count(path.stem) == 1 else path.name for path in clips]
    return [EvalClip(name=name, gt=path, lq=None) for name, path in zip(names, clips, strict=True)]


def find_split(dataset: Dataset, split: DatasetSplit, root: Path) -> list[FoundClip]:
    """Look for every clip of a part of a set.

    Returns:
        All that the set has, in its order, those that are missing too (gt None and no lq). Where the set's clips have
        no fixed names, those that are found.

    Raises:
        InputError: the root is missing, or the file that lists the clips.
    """
    base = set_folder(dataset, root)
    names = _names(dataset, split, base)
    clips: list[FoundClip] = []
    for name in names:
        lq = {
            preset: place
            for preset, patterns in split.lq.items()
            if (place := _first(base, patterns, split, name))
        }
        clips.append(
            FoundClip(
                name=name, facts=split.facts_of(name), gt=_first(base, split.gt, split, name), lq=lq
            )
        )
    return clips


def set_folder(dataset: Dataset, root: Path) -> Path:
    """Choose, of the root and its folders with a usual name of the set, the one with most of the set's clips.

    Raises:
        InputError: the root is missing.
    """
    if not root.is_dir():
        raise InputError(f"no such folder: {root}")
    bases = [
        root,
        *sorted(p for p in root.iterdir() if p.is_dir() and p.name.lower() in dataset.folders),
    ]
    return max(
        bases, key=lambda base: (_presence(dataset, base), base.name.lower() in dataset.folders)
    )


def count_frames(path: Path) -> int:
    """Count the images of a folder, 1 for an image, 0 for anything else."""
    if path.is_dir():
        return sum(
            p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith(".")
            for p in path.iterdir()
        )
    return int(path.is_file() and path.suffix.lower() in IMAGE_SUFFIXES)


def _named_apart(
    dataset: Dataset, split: DatasetSplit, root: Path, degradation: str = ""
) -> list[EvalClip]:
    """Give the clips of a split; their names begin with its own where two splits count from the same number."""
    before = f"{split.name}_" if split.shift else ""
    return [
        EvalClip(name=before + _file_name(clip.name), gt=clip.gt, lq=clip.lq.get(degradation))
        for clip in find_split(dataset, split, root)
    ]


def _presence(dataset: Dataset, base: Path) -> int:
    """Count a sample of the set's clips that are there."""
    count = 0
    for split in dataset.splits:
        patterns = [*split.gt, *(pattern for patterns in split.lq.values() for pattern in patterns)]
        if split.list_file:
            count += (base / split.list_file).is_file()
        elif split.clips:
            sample = split.clips[:: max(1, len(split.clips) // 8)]
            count += sum(_first(base, patterns, split, name) is not None for name in sample)
        else:
            count += len(_discover(dataset, split, base))
    return count


def _names(dataset: Dataset, split: DatasetSplit, base: Path) -> Sequence[str]:
    if not split.list_file:
        return split.clips or _discover(dataset, split, base)
    path = base / split.list_file
    if not path.is_file():
        raise InputError(
            f"{dataset.title} needs {path}, which names its clips; it comes with the set"
        )
    return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def _discover(dataset: Dataset, split: DatasetSplit, base: Path) -> list[str]:
    """Take the clips of the first layout that is there; plain folders count only below the set's own name."""
    for pattern in split.gt:
        before, _, after = pattern.partition("{clip}")
        folder = base / before
        if not folder.is_dir() or (
            pattern == "{clip}" and base.name.lower() not in dataset.folders
        ):
            continue
        names = [
            p.name
            for p in sorted(folder.iterdir())
            if p.is_dir() and count_frames(folder / (p.name + after))
        ]
        if names:
            return names
    return []


def _first(base: Path, patterns: Sequence[str], split: DatasetSplit, name: str) -> Path | None:
    shifted = f"{int(name) + split.shift:0{len(name)}d}" if split.shift else name
    places = (base / pattern.format(clip=name, shifted=shifted) for pattern in patterns)
    return next((place for place in places if count_frames(place)), None)


def _refuse_missing(
    dataset: Dataset, protocol: MetricProtocol, found: list[FoundClip], root: Path
) -> None:
    """Refuse a set of which clips or frames are missing: its mean would not be the protocol's number."""
    only_lq = protocol.degradation == "none"
    places = {clip.name: clip.lq.get("none") if only_lq else clip.gt for clip in found}
    missing = [name for name, place in places.items() if place is None]
    if len(missing) == len(places):
        raise InputError(_nowhere(dataset, root))
    expected = len(protocol.clips or ()) or sum(split.count for split in dataset.splits)
    if missing or len(places) != expected:
        named = f"; {_shortened(missing)} missing" if missing else ""
        raise InputError(
            f"{dataset.title} has {expected} clips, but {set_folder(dataset, root)} has {len(places) - len(missing)}"
            f"{named}; `tubelet data check --set {dataset.name}` tells more"
        )
    for clip in found:
        place = places[clip.name]
        wanted, have = clip.facts.frames, count_frames(place) if place else 0
        if wanted is not None and have != wanted:
            raise InputError(
                f"{dataset.title} {clip.name} has {wanted} frames, but {place} has {have}; get it again"
            )


def _shortened(names: Sequence[str]) -> str:
    return (
        ", ".join(names)
        if len(names) <= 5
        else f"{', '.join(names[:4])} and {len(names) - 4} more are"
    )


def _refuse_uneven(dataset: Dataset, clip: EvalClip) -> None:
    """Refuse a low-quality clip that has not as many frames as the good one."""
    if clip.gt is None or clip.lq is None:
        return
    good, low = count_frames(clip.gt), count_frames(clip.lq)
    if good != low:
        raise InputError(
            f"{dataset.title} {clip.name}: {clip.gt} has {good} frames, but {clip.lq} has {low}; get both again"
        )


def _nowhere(dataset: Dataset, root: Path) -> str:
    patterns = [
        pattern for split in dataset.splits for pattern in (split.gt or split.lq.get("none", ()))
    ]
    folders = ", ".join(
        pattern.replace("{clip}", "…") for pattern in patterns if "{shifted}" not in pattern
    )
    return f"{dataset.title} is not in {root}: looked there and in folders named {dataset.folders[0]} for {folders}"


def _file_name(name: str) -> str:
    return name.replace("/", "_")
