"""The frames of an evaluation clip: what the engine gets, and the original that each result is compared with.

where there is    the engine gets                      the original is
gt                gt, degraded as the protocol says    gt, cut at the right and below to a multiple of the scale
gt and lq         lq                                   gt, cut likewise if lq was made of the cut one
lq                lq                                   none
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
    """A clip that was looked at before anything runs.

    Attributes:
        name: of the clip.
        gt: the original; None where there is none.
        lq: the low-quality version; None where the protocol's degradation makes it.
        frames: how many will be restored; for a video file what its header says.
        width, height: of the images that are compared, pixels.
        scored: numbers of the frames that the protocol scores; None is all.
        fingerprint: of the names, sizes and times of change of its files.
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
    """What belongs to one result: the input (3, H, W), and the original (3, sH, sW) or None, both in [0, 1]."""

    lq: Tensor
    gt: Tensor | None


def inspect_clip(
    clip: EvalClip, protocol: MetricProtocol, *, max_frames: int | None = None
) -> InspectedClip:
    """Look whether a clip can be scored.

    Args:
        clip: where its files are.
        protocol: says how it is degraded and which frames count.
        max_frames: what comes later is left out.

    Raises:
        InputError: nothing can be decoded, or original and low-quality version differ in frames or size.
        RequestError: the protocol leaves out more frames than there are.
    """
    infos = {path: probe(path) for path in (clip.gt, clip.lq) if path is not None}
    counts = {
        path: _count(path, info, exact=protocol.drop_ends > 0 or protocol.frames == "middle")
        for path, info in infos.items()
    }
    if (
        clip.gt
        and clip.lq
        and _is_folder(clip.gt)
        and _is_folder(clip.lq)
        and counts[clip.gt] != counts[clip.lq]
    ):
        raise InputError(
            _counts_differ(clip.name, clip.gt, counts[clip.gt], clip.lq, counts[clip.lq])
        )
    width, height = _compared_size(clip, infos, protocol)
    frames = min(counts.values())
    frames = frames if max_frames is None else min(frames, max_frames)
    plain = protocol.frames == "all" and not protocol.drop_ends
    return InspectedClip(
        name=clip.name,
        gt=clip.gt,
        lq=clip.lq,
        frames=frames,
        width=width,
        height=height,
        scored=None if plain else protocol.scored_frames(frames),
        fingerprint=_fingerprint(list(infos)),
    )


class FramePairs:
    """Iterates once over the frames for the engine, and keeps of each what its result needs; a context manager.

    Attributes:
        busy_s: seconds spent on reading and degrading.
        frames: given so far.
    """

    def __init__(
        self, subject: InspectedClip, protocol: MetricProtocol, *, max_frames: int | None = None
    ) -> None:
        self.busy_s = 0.0
        self.frames = 0
        self._subject = subject
        self._protocol = protocol
        self._max_frames = max_frames
        self._waiting: deque[tuple[Tensor, Tensor | None]] = deque()
        self._readers: list[Reader] = []
        self._open = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def __iter__(self) -> Iterator[Frame]:
        """Yield the frames that the engine gets.

        Raises:
            InputError: a frame is missing or damaged, or original and low-quality version differ in number.
        """
        began_s = time.perf_counter()
        for lq, gt in self._matched():
            self.frames += 1
            self._waiting.append((lq.rgb, gt))
            self.busy_s += time.perf_counter() - began_s
            yield lq
            began_s = time.perf_counter()
        self.busy_s += time.perf_counter() - began_s
        if self._max_frames is None:
            for reader in self._readers:
                if reader.problems:
                    raise InputError(
                        f"{self._subject.name}: {reader.info.source}: {'; '.join(reader.problems)}"
                    )
        if not self.frames:
            raise InputError(f"{self._subject.name} has no image that can be decoded")

    def pop(self) -> FramePair:
        """Give what belongs to the next result, in the order of the frames."""
        lq, gt = self._waiting.popleft()
        return FramePair(lq, None if gt is None else gt.float() / 255)

    def _matched(self) -> Iterator[tuple[Frame, Tensor | None]]:
        """Yield inputs, each with its original as bytes."""
        subject = self._subject
        if subject.lq is None:
            assert subject.gt is not None
            yield from self._degraded(self._read(subject.gt))
        elif subject.gt is None:
            yield from ((frame, None) for frame in self._read(subject.lq))
        else:
            gts = (to_uint8(self._cut(frame.rgb)) for frame in self._read(subject.gt))
            for count, (lq, gt) in enumerate(zip_longest(self._read(subject.lq), gts)):
                if lq is None or gt is None:
                    longer, shorter = (
                        (subject.gt, subject.lq) if lq is None else (subject.lq, subject.gt)
                    )
                    raise InputError(
                        f"{subject.name}: {shorter} ends after {count} frames and {longer} goes on; "
                        "they must hold the same frames"
                    )
                yield lq, gt

    def _read(self, path: Path) -> Iterator[Frame]:
        reader = self._open.enter_context(
            open_reader(path, gamut="keep" if path == self._subject.lq else "clip")
        )
        self._readers.append(reader)
        return islice(reader, self._max_frames)

    def _cut(self, gt: Tensor) -> Tensor:
        return gt[..., : self._subject.height, : self._subject.width]

    def _degraded(self, frames: Iterable[Frame]) -> Iterator[tuple[Frame, Tensor]]:
        """Degrade as the protocol says; a preset that is drawn takes some frames at once, and draws by the name."""
        ahead: deque[Frame] = deque()

        def gts() -> Iterator[Tensor]:
            for frame in frames:
                gt = self._cut(frame.rgb)
                ahead.append(replace(frame, rgb=to_uint8(gt)))
                yield gt

        subject, protocol = self._subject, self._protocol
        size, seed = (subject.height, subject.width), clip_seed(subject.name, 0)
        preset = cast(Preset, protocol.degradation)
        for lq in degrade_frames(gts(), preset, size, scale=protocol.scale, seed=seed):
            frame = ahead.popleft()
            yield replace(frame, rgb=lq), frame.rgb


def _compared_size(
    clip: EvalClip, infos: dict[Path, VideoInfo], protocol: MetricProtocol
) -> tuple[int, int]:
    """Find the (width, height) at which results are compared.

    Raises:
        InputError: original and low-quality version do not fit, or nothing makes the low-quality one.
    """
    scale = protocol.scale
    gt, lq = (None if path is None else infos[path] for path in (clip.gt, clip.lq))
    if lq is None:
        if gt is None or protocol.degradation == "none":
            raise InputError(
                f"{clip.name} has no low-quality frames, and {protocol.name} makes none"
            )
        width, height = (n // scale * scale for n in (gt.width, gt.height))
        if not width or not height:
            raise InputError(
                f"{clip.name} is {gt.width}×{gt.height}, too small to be made {scale} times smaller"
            )
        return width, height
    if gt is None:
        return lq.width * scale, lq.height * scale
    for fits in (
        (gt.width // scale, gt.height // scale),
        (-(-gt.width // scale), -(-gt.height // scale)),
    ):
        if (lq.width, lq.height) == fits:
            return min(gt.width, lq.width * scale), min(gt.height, lq.height * scale)
    raise InputError(
        f"{clip.name}: {clip.lq} is {lq.width}×{lq.height} and {clip.gt} is {gt.width}×{gt.height}; "
        f"{protocol.name} wants {gt.width // scale}×{gt.height // scale}"
    )


def _count(path: Path, info: VideoInfo, *, exact: bool) -> int:
    """Count frames: images are counted, a video's header is believed unless it must be exact."""
    if _is_folder(path) or not exact:
        return info.frames_hint or 1
    with open_reader(path) as reader:
        return sum(1 for _ in reader)


def _is_folder(path: Path) -> bool:
    return path.is_dir()


def _counts_differ(name: str, gt: Path, gt_count: int, lq: Path, lq_count: int) -> str:
    return f"{name}: {gt} has {gt_count} frames and {lq} has {lq_count}; they must hold the same frames"


def _fingerprint(paths: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        for file in list_images(str(path)) or [path]:
            stat = file.stat()
            digest.update(f"{file.name}|{stat.st_size}|{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]
