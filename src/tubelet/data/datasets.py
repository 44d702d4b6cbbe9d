"""Find the clips of a standard dataset, or of any folder, below a root folder.

The root is the folder of the dataset (with GT/, or train_sharp/, or the clips themselves), or a
folder that contains it under a usual name. Errors name the missing clips and the searched folders.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tubelet.data.cache import VIDEO_SUFFIXES
from tubelet.data.catalog import ClipFacts, Dataset, DatasetSplit, find_dataset
from tubelet.errors import InputError
from tubelet.metrics.protocols import MetricProtocol
from tubelet.video.sequence import has_image_suffix

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

# Scale of the low-quality clips that are published with a dataset.
_LQ_SCALE = 4
# Number of clips that are looked for to choose a folder; a dataset can have 64 000.
_SAMPLE_CLIPS = 8
# Of more missing clips, only the first four are named.
_MAX_NAMES = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalClip:
    """A clip to score a model on.

    Attributes:
        name: Unique name within the dataset, usable as a file name.
        gt: Folder of frames or video file of the ground truth; None if there is none.
        lq: The same of the low-quality clip; None if it is made from `gt` by the degradation of
            the protocol.
    """

    name: str
    gt: Path | None
    lq: Path | None


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundClip:
    """A clip of a standard dataset, with the files that exist of it.

    Attributes:
        name: Name in the dataset.
        facts: Expected length and size.
        gt: Folder of frames, or an image; None if it is missing.
        lq: Low-quality versions that were published with the dataset, by degradation.
    """

    name: str
    facts: ClipFacts
    gt: Path | None
    lq: dict[str, Path] = field(default_factory=dict[str, Path])


def find_clips(protocol: MetricProtocol, root: Path) -> list[EvalClip]:
    """Find the clips that a protocol scores.

    Published low-quality clips are used if their degradation is that of the protocol and every clip
    has one. Ground truth is returned uncropped: before it is degraded, height and width must be
    cropped to multiples of the scale.

    Args:
        protocol: See `tubelet.metrics.protocols`.
        root: Folder of the dataset, or folder that contains it.

    Returns:
        The clips in the order of the dataset.

    Raises:
        InputError: Clips or frames are missing; the message names them and the searched folders.
    """
    if protocol.dataset == "folder":
        return find_folder_clips(root)
    dataset = find_dataset(protocol.dataset)
    found: list[FoundClip] = []
    for split in dataset.splits:
        found += find_split(dataset, split, root)
    if protocol.clips is not None:
        found = [clip for clip in found if clip.name in protocol.clips]
    _refuse_missing(dataset, protocol, found, root)

    # All scores of a protocol come from the same source of low-quality clips: published ones if
    # every clip has one at this scale, otherwise the degradation of the protocol.
    has_published_lq = all(protocol.degradation in clip.lq for clip in found)
    uses_published_lq = has_published_lq and protocol.scale == _LQ_SCALE
    clips: list[EvalClip] = []
    for clip in found:
        lq = None
        if uses_published_lq:
            lq = clip.lq[protocol.degradation]
        eval_clip = EvalClip(
            name=_file_name(clip.name),
            gt=clip.gt,
            lq=lq,
        )
        _refuse_different_lengths(dataset, eval_clip)
        clips.append(eval_clip)
    return clips


def find_training_clips(name: str, root: Path, *, degradation: str = "bi-u8") -> list[EvalClip]:
    """Find the training clips or images of a dataset: its splits "train" and "val", never "test".

    Args:
        name: Name of a standard dataset: reds (the 266 clips that are not REDS4), vimeo90k, div2k,
            flickr2k.
        root: Folder of the dataset, or folder that contains it.
        degradation: Degradation of the low-quality versions, which are returned if they were
            published with the dataset.

    Raises:
        RequestError: There is no such dataset.
        InputError: Nothing is found, or the dataset has only test clips.
    """
    dataset = find_dataset(name)
    splits = [split for split in dataset.splits if split.name != "test"]
    if not splits:
        raise InputError(f"{dataset.title} is a test set; its clips must not be trained on")
    return _find_gt_clips(dataset, splits, root, degradation)


def find_set_clips(dataset: Dataset, root: Path) -> list[EvalClip]:
    """Find all existing clips of a dataset that have ground truth, of every split.

    Raises:
        InputError: There is none.
    """
    return _find_gt_clips(dataset, dataset.splits, root, degradation="")


def _find_gt_clips(
    dataset: Dataset, splits: Sequence[DatasetSplit], root: Path, degradation: str
) -> list[EvalClip]:
    clips: list[EvalClip] = []
    for split in splits:
        # Two splits may count from the same number; the prefix keeps their names different.
        prefix = ""
        if split.shift:
            prefix = f"{split.name}_"
        for clip in find_split(dataset, split, root):
            if clip.gt is None:
                continue
            eval_clip = EvalClip(
                name=prefix + _file_name(clip.name),
                gt=clip.gt,
                lq=clip.lq.get(degradation),
            )
            clips.append(eval_clip)
    if not clips:
        raise InputError(_not_found_message(dataset, root))
    return clips


def find_folder_clips(root: Path) -> list[EvalClip]:
    """Find the clips of any folder: videos, folders of frames, or the frames of one clip.

    Raises:
        InputError: The folder is missing or empty.
    """
    if not root.is_dir():
        raise InputError(f"no such folder of clips: {root}")
    paths = sorted(filter(_is_clip, root.iterdir()))
    if not paths:
        # The folder itself may be the frames of one clip.
        if not count_frames(root):
            raise InputError(
                f"no video and no folder of frames in {root}; a clip is one or the other"
            )
        paths = [root]

    num_clips_by_stem = Counter(path.stem for path in paths)
    clips: list[EvalClip] = []
    for path in paths:
        name = path.stem
        # The suffix is part of the name only where it distinguishes two clips.
        if num_clips_by_stem[name] > 1:
            name = path.name
        clips.append(EvalClip(name=name, gt=path, lq=None))
    return clips


def _is_clip(path: Path) -> bool:
    """Return whether a path is a video or a folder of frames that is not hidden."""
    if path.name.startswith("."):
        return False
    if path.is_dir():
        return count_frames(path) > 0
    has_video_suffix = path.suffix.lower() in VIDEO_SUFFIXES
    return has_video_suffix and path.is_file()


def find_split(dataset: Dataset, split: DatasetSplit, root: Path) -> list[FoundClip]:
    """Look for every clip of a split.

    Returns:
        All clips of the split in its order, including missing ones (gt is None and lq is empty).
        If the clips of the dataset have no fixed names, only the existing ones.

    Raises:
        InputError: The root is missing, or the file that lists the clips.
    """
    base = set_folder(dataset, root)
    clips: list[FoundClip] = []
    for name in _clip_names(dataset, split, base):
        lqs: dict[str, Path] = {}
        for preset, patterns in split.lq.items():
            lq = _find_path(base, patterns, split, name)
            if lq is not None:
                lqs[preset] = lq
        gt = _find_path(base, split.gt, split, name)
        clips.append(FoundClip(name=name, facts=split.facts_of(name), gt=gt, lq=lqs))
    return clips


def set_folder(dataset: Dataset, root: Path) -> Path:
    """Choose the folder with the highest number of clips of a dataset.

    Candidates are the root, and the folders in it that have a usual name of the dataset. If the
    numbers are equal, a folder with a usual name is preferred.

    Raises:
        InputError: The root is missing.
    """
    if not root.is_dir():
        raise InputError(f"no such folder: {root}")
    candidates = [root]
    folders = filter(Path.is_dir, root.iterdir())
    for folder in sorted(folders):
        if _has_usual_name(dataset, folder):
            candidates.append(folder)

    def preference(base: Path) -> tuple[int, bool]:
        num_clips = _count_sample(dataset, base)
        return num_clips, _has_usual_name(dataset, base)

    return max(candidates, key=preference)


def _has_usual_name(dataset: Dataset, folder: Path) -> bool:
    return folder.name.lower() in dataset.folders


def count_frames(path: Path) -> int:
    """Count the images of a folder; return 1 for an image, and 0 for anything else."""
    if not path.is_dir():
        return int(has_image_suffix(path) and path.is_file())
    count = 0
    for file in path.iterdir():
        # Hidden files are no frames: macOS writes "._0001.png" next to "0001.png".
        if file.name.startswith("."):
            continue
        count += has_image_suffix(file)
    return count


def _count_sample(dataset: Dataset, base: Path) -> int:
    """Count the existing clips in a sample of a dataset."""
    count = 0
    for split in dataset.splits:
        if split.list_file:
            # The file lists all clips of the split, so it counts as one.
            count += (base / split.list_file).is_file()
            continue
        if not split.clips:
            count += len(_discover(dataset, split, base))
            continue

        # Any version of a clip counts, ground truth or low quality.
        patterns = list(split.gt)
        for lq_patterns in split.lq.values():
            patterns += lq_patterns
        step = max(1, len(split.clips) // _SAMPLE_CLIPS)
        for name in split.clips[::step]:
            path = _find_path(base, patterns, split, name)
            count += path is not None
    return count


def _clip_names(dataset: Dataset, split: DatasetSplit, base: Path) -> Sequence[str]:
    """List the clips of a split: known names, those of its list file, or the existing folders."""
    if not split.list_file:
        return split.clips or _discover(dataset, split, base)
    path = base / split.list_file
    if not path.is_file():
        raise InputError(
            f"{dataset.title} needs {path}, which lists its clips; it is part of the download"
        )
    lines = path.read_text(encoding="utf-8").splitlines()
    names = map(str.strip, lines)
    # Blank lines name no clip.
    return list(filter(None, names))


def _discover(dataset: Dataset, split: DatasetSplit, base: Path) -> list[str]:
    """List the clips of the first layout that exists.

    Without a subfolder such as GT/, any folder of frames would be a clip. This layout is accepted
    only in a folder with a usual name of the dataset.
    """
    for pattern in split.gt:
        any_folder_matches = pattern == "{clip}"
        if any_folder_matches and not _has_usual_name(dataset, base):
            continue
        # In a layout such as GT/{clip}/frames, the clips are the folders in GT that have frames.
        prefix, _, suffix = pattern.partition("{clip}")
        folder = base / prefix
        if not folder.is_dir():
            continue
        names: list[str] = []
        clip_folders = filter(Path.is_dir, folder.iterdir())
        for clip_folder in sorted(clip_folders):
            frames_path = folder / (clip_folder.name + suffix)
            if count_frames(frames_path):
                names.append(clip_folder.name)
        if names:
            return names
    return []


def _find_path(base: Path, patterns: Sequence[str], split: DatasetSplit, name: str) -> Path | None:
    """Return the first path with images that a clip has by one of the patterns."""
    shifted_name = name
    if split.shift:
        shifted_name = f"{int(name) + split.shift:0{len(name)}d}"
    for pattern in patterns:
        path = base / pattern.format(clip=name, shifted=shifted_name)
        if count_frames(path):
            return path
    return None


def _refuse_missing(
    dataset: Dataset, protocol: MetricProtocol, found: list[FoundClip], root: Path
) -> None:
    """Refuse a dataset with missing clips or frames: its mean would not be that of the protocol."""
    # Without a degradation, a protocol scores the published clips themselves.
    only_lq = protocol.degradation == "none"
    paths: dict[str, Path | None] = {}
    for clip in found:
        path = clip.gt
        if only_lq:
            path = clip.lq.get("none")
        paths[clip.name] = path
    missing = [name for name, path in paths.items() if path is None]
    num_existing = len(paths) - len(missing)
    if num_existing == 0:
        raise InputError(_not_found_message(dataset, root))

    num_expected = sum(split.count for split in dataset.splits)
    if protocol.clips:
        num_expected = len(protocol.clips)
    # A clip can also be absent from the list of the dataset, and then has no name here.
    if missing or num_existing != num_expected:
        base = set_folder(dataset, root)
        names = ""
        if missing:
            names = f"; missing: {_shortened(missing)}"
        raise InputError(
            f"{dataset.title} has {num_expected} clips, but {base} has {num_existing}{names}; "
            f"run `tubelet data check --set {dataset.name}` for details"
        )
    for clip in found:
        path = paths[clip.name]
        assert path is not None
        _refuse_missing_frames(dataset, clip, path)


def _refuse_missing_frames(dataset: Dataset, clip: FoundClip, path: Path) -> None:
    """Refuse a clip with another number of frames than that of the dataset, if that is known."""
    expected = clip.facts.frames
    if expected is None:
        return
    num_frames = count_frames(path)
    if num_frames != expected:
        raise InputError(
            f"{dataset.title} {clip.name} has {expected} frames, "
            f"but {path} has {num_frames}; get it again"
        )


def _shortened(names: Sequence[str]) -> str:
    if len(names) <= _MAX_NAMES:
        return ", ".join(names)
    return f"{', '.join(names[:4])} and {len(names) - 4} more"


def _refuse_different_lengths(dataset: Dataset, clip: EvalClip) -> None:
    """Refuse a low-quality clip with another number of frames than its ground truth."""
    if clip.gt is None or clip.lq is None:
        return
    gt_frames = count_frames(clip.gt)
    lq_frames = count_frames(clip.lq)
    if gt_frames != lq_frames:
        raise InputError(
            f"{dataset.title} {clip.name}: {clip.gt} has {gt_frames} frames, "
            f"but {clip.lq} has {lq_frames}; get both again"
        )


def _not_found_message(dataset: Dataset, root: Path) -> str:
    folders: list[str] = []
    for split in dataset.splits:
        patterns = split.gt or split.lq.get("none", ())
        for pattern in patterns:
            if "{shifted}" in pattern:
                continue
            folder = pattern.replace("{clip}", "…")
            folders.append(folder)
    return (
        f"{dataset.title} is not in {root}: searched it, and the folder {dataset.folders[0]} in "
        f"it, for {', '.join(folders)}"
    )


def _file_name(name: str) -> str:
    return name.replace("/", "_")
