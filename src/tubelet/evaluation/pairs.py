"""Frames of an evaluation clip: the input of the engine, and the original to compare with.

clip has      input of the engine                       original
gt            gt, degraded as the protocol specifies    gt, cropped to a multiple of the scale
gt and lq     lq                                        gt, cropped if lq was made from a cropped gt
lq            lq                                        none

A crop removes columns at the right and rows at the bottom.
"""

from __future__ import annotations

import hashlib
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import islice, zip_longest
from pathlib import Path
from typing import Self, cast

from torch import Tensor

from tubelet.data.copies import clip_seed
from tubelet.data.datasets import EvalClip
from tubelet.degrade import Preset, degrade_frames
from tubelet.errors import InputError
from tubelet.metrics.protocols import MetricProtocol
from tubelet.ops.pixels import to_uint8
from tubelet.types import Frame
from tubelet.video.info import VideoInfo
from tubelet.video.probe import probe
from tubelet.video.reader import Reader, open_reader
from tubelet.video.sequence import list_images

__all__ = ["FramePair", "FramePairs", "InspectedClip", "inspect_clip"]


@dataclass(frozen=True, slots=True, kw_only=True)
class InspectedClip:
    """A clip whose files were checked before the evaluation starts.

    Attributes:
        name: Name of the clip.
        gt: Original frames; None where there are none.
        lq: Low-quality frames; None where the protocol's degradation creates them.
        frames: Number of frames to restore; for a video file, the number in its header.
        width, height: Size of the compared images, pixels.
        scored: Indices of the frames that the protocol scores; None is all.
        fingerprint: Hash of the names, sizes and modification times of the clip's files.
    """

    name: str
    gt: Path | None
    lq: Path | None
    frames: int
    width: int
    height: int
    scored: range | None
    fingerprint: str


@dataclass(frozen=True, slots=True)
class FramePair:
    """One input frame and its original.

    Attributes:
        lq: Low-quality frame, (3, H, W), in [0, 1].
        gt: Original frame, (3, sH, sW), in [0, 1]; None where there is none.
    """

    lq: Tensor
    gt: Tensor | None


def inspect_clip(
    clip: EvalClip,
    protocol: MetricProtocol,
    *,
    max_frames: int | None = None,
) -> InspectedClip:
    """Check that a clip can be scored, and find its size and number of frames.

    Args:
        clip: Files of the clip.
        protocol: Defines the degradation and the frames that are scored.
        max_frames: Upper limit on the number of frames; later ones are ignored.

    Raises:
        InputError: Nothing can be decoded, or the original and the low-quality version differ in
            their number of frames or do not fit in size.
        RequestError: The protocol excludes more frames than there are.
    """
    scores_all_frames = protocol.frames == "all" and not protocol.drop_ends
    infos: dict[Path, VideoInfo] = {}
    for path in (clip.gt, clip.lq):
        if path is not None:
            infos[path] = probe(path)
    counts: dict[Path, int] = {}
    for path, info in infos.items():
        # Which frames are the last or the middle ones depends on their exact number.
        counts[path] = _count_frames(path, info, exact=not scores_all_frames)
    if clip.gt is not None and clip.lq is not None:
        _check_folder_counts(clip.name, clip.gt, clip.lq, counts)
    width, height = _compared_size(clip, infos, protocol)
    frames = min(counts.values())
    if max_frames is not None:
        frames = min(frames, max_frames)
    return InspectedClip(
        name=clip.name,
        gt=clip.gt,
        lq=clip.lq,
        frames=frames,
        width=width,
        height=height,
        scored=None if scores_all_frames else protocol.scored_frames(frames),
        fingerprint=_fingerprint(list(infos)),
    )


class FramePairs:
    """Iterates once over the input frames of the engine, and queues each with its original.

    The engine may read some frames ahead of its results, so pairs wait until `pop` returns them,
    in the order of the frames. The object is a context manager that closes the files.

    Attributes:
        busy_s: Seconds spent on reading and degrading.
        frames: Number of frames yielded so far.
    """

    def __init__(
        self,
        clip: InspectedClip,
        protocol: MetricProtocol,
        *,
        max_frames: int | None = None,
    ) -> None:
        self.busy_s = 0.0
        self.frames = 0
        self._clip = clip
        self._protocol = protocol
        self._max_frames = max_frames
        self._waiting: deque[tuple[Tensor, Tensor | None]] = deque()
        self._readers: list[Reader] = []
        self._open_files = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._open_files.close()

    def __iter__(self) -> Iterator[Frame]:
        """Yield the input frames of the engine.

        Raises:
            InputError: A frame is missing or damaged, or the original and the low-quality version
                differ in their number of frames.
        """
        # The clock runs while this generator works, and stops while the engine has the frame.
        started_s = time.perf_counter()
        for lq, gt in self._input_and_gt():
            self.frames += 1
            self._waiting.append((lq.rgb, gt))
            self.busy_s += time.perf_counter() - started_s
            yield lq
            started_s = time.perf_counter()
        self.busy_s += time.perf_counter() - started_s
        # Readers know all damage only at the end, which they do not reach with a limit of frames.
        if self._max_frames is None:
            self._check_readers()
        if not self.frames:
            raise InputError(f"{self._clip.name} has no image that can be decoded")

    def pop(self) -> FramePair:
        """Remove the oldest pair from the queue and return it."""
        lq, gt = self._waiting.popleft()
        if gt is None:
            return FramePair(lq, None)
        return FramePair(lq, gt.float() / 255)

    def _check_readers(self) -> None:
        for reader in self._readers:
            if reader.problems:
                problems = "; ".join(reader.problems)
                raise InputError(f"{self._clip.name}: {reader.info.source}: {problems}")

    def _input_and_gt(self) -> Iterator[tuple[Frame, Tensor | None]]:
        """Yield each input frame with its original, (3, H, W), as uint8 to save memory."""
        clip = self._clip
        if clip.lq is None:
            assert clip.gt is not None
            yield from self._degrade(self._read(clip.gt))
        elif clip.gt is None:
            for frame in self._read(clip.lq):
                yield frame, None
        else:
            yield from self._read_both(clip.lq, clip.gt)

    def _read(self, path: Path) -> Iterator[Frame]:
        # Values outside of [0, 1] are legal in the engine's input; originals are degraded as images
        # are, whose values are in [0, 1].
        gamut = "keep" if path == self._clip.lq else "clip"
        reader = self._open_files.enter_context(open_reader(path, gamut=gamut))
        self._readers.append(reader)
        return islice(reader, self._max_frames)

    def _read_both(
        self,
        lq_path: Path,
        gt_path: Path,
    ) -> Iterator[tuple[Frame, Tensor]]:
        """Read the low-quality and the original frames of a clip side by side.

        Raises:
            InputError: One of them has more frames.
        """
        gt_frames = self._read(gt_path)
        lq_frames = self._read(lq_path)
        for count, (lq, gt) in enumerate(zip_longest(lq_frames, gt_frames)):
            if lq is None:
                raise self._too_short(lq_path, gt_path, count)
            if gt is None:
                raise self._too_short(gt_path, lq_path, count)
            yield lq, to_uint8(self._crop(gt.rgb))

    def _too_short(self, shorter: Path, longer: Path, num_frames: int) -> InputError:
        return InputError(
            f"{self._clip.name}: {shorter} ends after {num_frames} frames, "
            f"but {longer} has more; they must have the same frames"
        )

    def _crop(self, gt: Tensor) -> Tensor:
        return gt[..., : self._clip.height, : self._clip.width]

    def _degrade(
        self,
        frames: Iterable[Frame],
    ) -> Iterator[tuple[Frame, Tensor]]:
        """Degrade originals with the protocol's preset, seeded with the name of the clip."""
        # A random preset reads several frames before it yields the first one.
        originals: deque[Frame] = deque()

        def cropped_originals() -> Iterator[Tensor]:
            for frame in frames:
                gt = self._crop(frame.rgb)
                originals.append(replace(frame, rgb=to_uint8(gt)))
                yield gt

        lq_frames = degrade_frames(
            cropped_originals(),
            cast(Preset, self._protocol.degradation),
            (self._clip.height, self._clip.width),
            scale=self._protocol.scale,
            seed=clip_seed(self._clip.name, 0),
        )
        for lq in lq_frames:
            original = originals.popleft()
            yield replace(original, rgb=lq), original.rgb


def _compared_size(
    clip: EvalClip,
    infos: dict[Path, VideoInfo],
    protocol: MetricProtocol,
) -> tuple[int, int]:
    """Find the (width, height) at which results are compared, pixels.

    Raises:
        InputError: The original and the low-quality version do not fit in size, or there is no
            low-quality version and the protocol does not create one.
    """
    scale = protocol.scale
    gt = None if clip.gt is None else infos[clip.gt]
    lq = None if clip.lq is None else infos[clip.lq]

    # Only the original: it is cropped to a multiple of the scale before it is degraded.
    if lq is None:
        if gt is None or protocol.degradation == "none":
            raise InputError(
                f"{clip.name} has no low-quality frames, and {protocol.name} makes none"
            )
        width = gt.width // scale * scale
        height = gt.height // scale * scale
        if not width or not height:
            raise InputError(
                f"{clip.name} is {gt.width}×{gt.height}, too small to be made {scale} times smaller"
            )
        return width, height

    # Only the low-quality version.
    if gt is None:
        return lq.width * scale, lq.height * scale

    # Both: sets round the size of their low-quality version down or up.
    lq_size = (lq.width, lq.height)
    rounded_down = (gt.width // scale, gt.height // scale)
    rounded_up = (-(-gt.width // scale), -(-gt.height // scale))
    if lq_size in (rounded_down, rounded_up):
        width = min(gt.width, lq.width * scale)
        height = min(gt.height, lq.height * scale)
        return width, height
    raise InputError(
        f"{clip.name}: {clip.lq} is {lq.width}×{lq.height} "
        f"and {clip.gt} is {gt.width}×{gt.height}; "
        f"{protocol.name} needs {gt.width // scale}×{gt.height // scale}"
    )


def _count_frames(path: Path, info: VideoInfo, *, exact: bool) -> int:
    """Count the frames of a folder or video; `exact` decodes a video to verify its header."""
    must_decode = exact and not path.is_dir()
    if not must_decode:
        return info.frames_hint or 1
    with open_reader(path) as reader:
        return sum(1 for _ in reader)


def _check_folder_counts(
    name: str,
    gt: Path,
    lq: Path,
    counts: dict[Path, int],
) -> None:
    """Check that two folders have the same number of frames.

    The header of a video can be wrong, so videos are checked while they are read.

    Raises:
        InputError: The numbers differ.
    """
    are_folders = gt.is_dir() and lq.is_dir()
    if are_folders and counts[gt] != counts[lq]:
        raise InputError(
            f"{name}: {gt} has {counts[gt]} frames and {lq} has {counts[lq]}; "
            "they must have the same frames"
        )


def _fingerprint(paths: list[Path]) -> str:
    """Hash the names, sizes and modification times of files, and of the images in folders."""
    digest = hashlib.sha256()
    for path in paths:
        for file in list_images(str(path)) or [path]:
            stat = file.stat()
            digest.update(f"{file.name}|{stat.st_size}|{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]
