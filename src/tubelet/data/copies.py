"""Write low-quality copies of clips: a folder of images for each clip, or a lossless video.

    copies/
      degradation.json      preset, scale, seed; a run with other values is refused
      calendar/0001.png     named as the frames of the source

The folder of a clip gets its name only when it is complete, so that a run that was stopped resumes
with the clip that was being written.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import zlib
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from tubelet.data.datasets import EvalClip, count_frames
from tubelet.degrade import (
    PRESETS,
    RANDOM_PRESETS,
    DegradationRecipe,
    Preset,
    degrade_frames,
    stream_recipe,
)
from tubelet.errors import ConfigError, IncompleteError, InputError, RequestError, require
from tubelet.files import atomic_write
from tubelet.ops.pixels import quantize, to_image_array
from tubelet.progress import CancelToken, OnProgress, Ticker
from tubelet.types import Frame
from tubelet.video.codecs import EncodeSettings
from tubelet.video.destination import write_errors
from tubelet.video.info import VideoInfo
from tubelet.video.probe import probe
from tubelet.video.reader import Reader, open_reader
from tubelet.video.sequence import list_images
from tubelet.video.writer import open_writer

__all__ = [
    "Degradation",
    "clip_seed",
    "lossless",
    "write_clips",
    "write_image",
    "write_images",
    "write_video",
]

_NO_PIXELS = torch.empty(3, 0, 0)
_RECORD_FILE = "degradation.json"
# Containers that are encoded with x264.
_X264_SUFFIXES = (".mp4", ".m4v", ".mov", ".ts")
# zlib level: half the time of the default, and 3 % larger files.
_PNG_COMPRESS_LEVEL = 3
_MAX_SCALE = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Degradation:
    """Degradation of a clip.

    Attributes:
        preset: Name of the degradation.
        scale: Downscaling factor, 1 to 16.
        seed: Seed of the random presets.
        recipe: Random steps to replay, instead of drawing them from the seed.
    """

    preset: Preset = "bi"
    scale: int = 4
    seed: int = 0
    recipe: DegradationRecipe | None = None

    def __post_init__(self) -> None:
        require(
            self.preset in PRESETS,
            f"unknown degradation {self.preset!r}; known are {', '.join(PRESETS)}",
        )
        require(
            1 <= self.scale <= _MAX_SCALE,
            f"scale={self.scale} must be between 1 and {_MAX_SCALE}",
        )
        if self.preset == "bd-b" and self.scale % 2:
            raise ConfigError(
                f"bd-b samples the centers of blocks with an even side, not scale={self.scale}; "
                "use 2 or 4"
            )

    def stream(self, frames: Iterator[Tensor], size: tuple[int, int]) -> Iterator[Tensor]:
        """Degrade frames (3, H, W); `size` is (H, W), a multiple of the scale."""
        if self.recipe is not None:
            return stream_recipe(frames, self.recipe, size)
        return degrade_frames(frames, self.preset, size, scale=self.scale, seed=self.seed)


def clip_seed(name: str, seed: int) -> int:
    """Return the seed of a clip, which depends on its name but not on the other clips."""
    return zlib.crc32(name.encode()) + seed


def write_clips(
    clips: Sequence[EvalClip],
    out: Path,
    degradation: Degradation,
    *,
    on_progress: OnProgress | None = None,
    cancel: CancelToken | None = None,
) -> int:
    """Write a folder of images for every clip; existing folders are skipped.

    Args:
        clips: Clips with ground truth.
        out: Folder of the copies, which is created if it is missing.
        degradation: Degradation. Its seed is combined with the name of each clip; a recipe is
            replayed equally on all clips.
        on_progress: Called up to ten times a second and at the end.
        cancel: Stops after the current frame; finished clips are kept.

    Returns:
        Number of clips that were written now.

    Raises:
        RequestError: The folder has other contents, or copies of another degradation.
        InputError: A clip cannot be decoded.
        Cancelled: `cancel` was cancelled.
    """
    _check_or_write_record(out, degradation)
    missing: list[EvalClip] = []
    sources: list[Path] = []
    for clip in clips:
        if (out / clip.name).exists():
            continue
        missing.append(clip)
        if clip.gt is not None:
            sources.append(clip.gt)
    ticker = Ticker(on_progress, unit="frame", total=_expected_frames(sources), cancel=cancel)
    for clip in missing:
        if clip.gt is None:
            raise InputError(f"{clip.name} has no ground truth to degrade")
        ticker.label = clip.name
        seed = clip_seed(clip.name, degradation.seed)
        clip_degradation = dataclasses.replace(degradation, seed=seed)
        _write_folder(clip.gt, out / clip.name, clip_degradation, ticker)
    ticker.finish()
    return len(missing)


def write_images(
    src: Path | str,
    dst: Path,
    degradation: Degradation,
    *,
    on_progress: OnProgress | None = None,
    cancel: CancelToken | None = None,
) -> int:
    """Write the degraded frames of a clip as 8-bit PNGs.

    Args:
        src: Video, folder or printf pattern of images.
        dst: Folder. If it exists, its PNGs are replaced. Images keep the names of the source; the
            frames of a video are numbered.
        degradation: Degradation of the frames.
        on_progress: Called up to ten times a second and at the end.
        cancel: Stops after the current frame; nothing is written then.

    Returns:
        Number of frames.

    Raises:
        InputError: The source cannot be decoded completely: the copy would lack frames.
        Cancelled: `cancel` was cancelled.
    """
    total = _expected_frames([Path(src)])
    ticker = Ticker(on_progress, unit="frame", total=total, label=dst.name, cancel=cancel)
    _write_folder(src, dst, degradation, ticker)
    ticker.finish()
    return ticker.done


def _write_folder(src: Path | str, dst: Path, degradation: Degradation, ticker: Ticker) -> None:
    """Write a folder of images, completely or not at all."""
    part = dst.with_name(f".{dst.name}.part")
    # A run that was killed can have left one.
    shutil.rmtree(part, ignore_errors=True)
    images = list_images(str(src))
    try:
        with open_reader(src) as reader, write_errors(str(dst)):
            part.mkdir()
            first_done = ticker.done
            for frame in _degraded(reader, degradation):
                stem = images[frame.pts].stem if images else f"{frame.index:08d}"
                _save(part / f"{stem}.png", frame.rgb)
                ticker.tick(time_s=frame.time_s)
            if reader.problems or ticker.done == first_done:
                problems = "; ".join(reader.problems) or "no frame can be decoded"
                raise InputError(f"{src}: {problems}")
            _move_into_place(part, dst)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def write_image(src: Path, dst: Path, degradation: Degradation) -> None:
    """Write one degraded image as an 8-bit PNG.

    Raises:
        InputError: The source cannot be decoded.
    """
    with open_reader(src) as reader, write_errors(str(dst)), atomic_write(dst) as part:
        frame = next(_degraded(reader, degradation), None)
        if frame is None:
            problems = "; ".join(reader.problems) or "it cannot be decoded"
            raise InputError(f"{src}: {problems}")
        _save(part, frame.rgb)


def write_video(
    src: Path | str,
    dst: Path,
    degradation: Degradation,
    *,
    encode: EncodeSettings,
    overwrite: bool,
    on_progress: OnProgress | None = None,
    cancel: CancelToken | None = None,
) -> list[str]:
    """Write the degraded frames of a clip as a video; times and other streams are kept.

    Args:
        src: Video, folder or printf pattern of images.
        dst: Video file.
        degradation: Degradation of the frames.
        encode: Encoder settings. `lossless(dst)` keeps all values, if the container can.
        overwrite: Replace an existing file.
        on_progress: Called up to ten times a second and at the end.
        cancel: Stops after the current frame; nothing is written then.

    Returns:
        Notes for the user, a line each.

    Raises:
        IncompleteError: The video was written, but a part of the source could not be decoded.
        Cancelled: `cancel` was cancelled.
    """
    total = _expected_frames([Path(src)])
    ticker = Ticker(on_progress, unit="frame", total=total, label=dst.name, cancel=cancel)
    with open_reader(src) as reader:
        info = _as_written(reader.info, dst)
        writer = open_writer(
            dst,
            like=info,
            width=info.width // degradation.scale,
            height=info.height // degradation.scale,
            settings=encode,
            overwrite=overwrite,
        )
        with writer:
            for frame in _degraded(reader, degradation):
                writer.write(frame)
                ticker.tick(time_s=frame.time_s)
    ticker.finish()
    if reader.problems:
        problems = "; ".join(reader.problems)
        raise IncompleteError(f"{dst} was written, but {src} is damaged: {problems}")
    return writer.notes + _loss_notes(dst)


def _expected_frames(sources: Sequence[Path]) -> int | None:
    """Add up the frames of folders, images and videos; None if the number of one is unknown.

    The frames of a video are taken from its header.
    """
    total = 0
    for source in sources:
        num_frames = count_frames(source)
        if not num_frames and source.is_file():
            num_frames = probe(source).frames_hint
        if not num_frames:
            return None
        total += num_frames
    return total


def _loss_notes(dst: Path) -> list[str]:
    """Describe how a container changes the values, if it does."""
    suffix = dst.suffix.lower()
    if suffix == ".mkv":
        return []
    if suffix in (*_X264_SUFFIXES, ".avi"):
        loss = "converts color to YCbCr, often with chroma at half the resolution"
    else:
        loss = "is lossy"
    return [f"{suffix} {loss}; use .mkv or a folder to keep all values"]


def lossless(dst: Path) -> EncodeSettings:
    """Choose the encoder with the smallest loss in a container.

    FFV1 in .mkv and .avi, H.264 without quantization in .mp4, .m4v, .mov and .ts, otherwise the
    default of the container.
    """
    suffix = dst.suffix.lower()
    if suffix in (".mkv", ".avi"):
        return EncodeSettings(codec="ffv1")
    if suffix in _X264_SUFFIXES:
        return EncodeSettings(codec="h264", crf=0)
    return EncodeSettings()


def _degraded(reader: Reader, degradation: Degradation) -> Iterator[Frame]:
    """Yield the degraded frames of a clip with the times of the original ones."""
    info = reader.info
    scale = degradation.scale
    height = info.height // scale * scale
    width = info.width // scale * scale
    if min(height, width) < scale:
        raise InputError(
            f"{info.source} is {info.width}x{info.height} pixels, too small for scale 1/{scale}"
        )
    # A degradation may read several frames before it yields the first one, for example to
    # compress them as a video. The times of these frames are kept here.
    pending: deque[Frame] = deque()

    def cropped_frames() -> Iterator[Tensor]:
        for frame in reader:
            # 8 bits, as if read from images: all sources give the same results.
            rgb = quantize(frame.rgb[:, :height, :width])
            # Without its pixels, so that a waiting frame needs no memory.
            pending.append(dataclasses.replace(frame, rgb=_NO_PIXELS, alpha=None))
            yield rgb

    for lq in degradation.stream(cropped_frames(), (height, width)):
        frame = pending.popleft()
        frame.rgb = lq
        yield frame


def _as_written(info: VideoInfo, dst: Path) -> VideoInfo:
    """Describe the source as 8 bit without transparency, and as RGB if the container allows it."""
    info = dataclasses.replace(info, bit_depth=8, has_alpha=False, hdr=None)
    if dst.suffix.lower() == ".mkv":
        # FFV1 in .mkv stores RGB without loss.
        return dataclasses.replace(info, is_rgb=True, pix_fmt="gbrp")
    return info


def _save(path: Path, rgb: Tensor) -> None:
    image = Image.fromarray(to_image_array(rgb))
    image.save(path, "PNG", compress_level=_PNG_COMPRESS_LEVEL)


def _move_into_place(part: Path, dst: Path) -> None:
    """Rename a finished folder, or replace the images in an existing folder by its images."""
    if not dst.exists():
        part.rename(dst)
        return
    for old in dst.glob("*.png"):
        old.unlink()
    for image in part.iterdir():
        image.replace(dst / image.name)


def _check_or_write_record(out: Path, degradation: Degradation) -> None:
    """Record the degradation in a new folder, or check that an existing folder has the same."""
    record = {
        "preset": degradation.preset,
        "edition": RANDOM_PRESETS.get(degradation.preset, 1),
        "scale": degradation.scale,
        "seed": degradation.seed,
        "recipe": None if degradation.recipe is None else str(degradation.recipe),
    }
    path = out / _RECORD_FILE
    if path.is_file():
        # A damaged file is treated as that of another degradation.
        with contextlib.suppress(ValueError):
            existing = json.loads(path.read_text(encoding="utf-8"))
            if existing == record:
                return
        raise RequestError(
            f"{out} has copies of another degradation ({path}); choose another folder"
        )
    if out.is_dir() and any(out.iterdir()):
        raise RequestError(f"{out} is not empty, and has no copies; choose another folder")
    with write_errors(str(out)):
        out.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as part:
            part.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
