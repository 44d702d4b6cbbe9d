"""Write low-quality copies of clips: as images, a folder for each clip, or as a lossless video.

    copies/
      degradation.json      preset, scale, seed; another run with other values is refused
      calendar/0001.png     named as the frames of the source

A clip has its name only when it is whole, so a run that was stopped goes on with the clip it was at.
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
from tubelet.errors import ConfigError, IncompleteError, InputError, RequestError
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

_NOTHING = torch.empty(3, 0, 0)
_MARKER = "degradation.json"
_X264 = (".mp4", ".m4v", ".mov", ".ts")
_PNG_LEVEL = 3  # of zlib: half the time of the default, 3 % larger


@dataclass(frozen=True, slots=True, kw_only=True)
class Degradation:
    """What is done to a clip.

    Attributes:
        preset: name of the degradation.
        scale: factor by which the copies are smaller, 1 to 16.
        seed: of the random presets.
        recipe: drawn steps to replay instead of drawing from the seed.
    """

    preset: Preset = "bi"
    scale: int = 4
    seed: int = 0
    recipe: DegradationRecipe | None = None

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise ConfigError(
                f"unknown degradation {self.preset!r}; known are {', '.join(PRESETS)}"
            )
        if not 1 <= self.scale <= 16:
            raise ConfigError(f"scale={self.scale} must be between 1 and 16")
        if self.preset == "bd-b" and self.scale % 2:
            raise ConfigError(
                f"bd-b samples the centers of blocks, which scale={self.scale} has not; take 2 or 4"
            )

    def stream(self, frames: Iterator[Tensor], size: tuple[int, int]) -> Iterator[Tensor]:
        """Degrade frames (3, H, W) of a `size` (H, W) that the scale divides."""
        if self.recipe is not None:
            return stream_recipe(frames, self.recipe, size)
        return degrade_frames(frames, self.preset, size, scale=self.scale, seed=self.seed)


def clip_seed(name: str, seed: int) -> int:
    """Make the seed of a clip: another for every name, the same whatever else lies beside it."""
    return zlib.crc32(name.encode()) + seed


def write_clips(
    clips: Sequence[EvalClip],
    out: Path,
    degradation: Degradation,
    *,
    on_progress: OnProgress | None = None,
    cancel: CancelToken | None = None,
) -> int:
    """Write a folder of images for every clip; those that are there are left.

    Args:
        clips: with good versions.
        out: folder of the copies; made where it is missing.
        degradation: its seed becomes another for every clip, except that a recipe is replayed on all alike.
        on_progress: called at most ten times a second and at the end.
        cancel: stops after the frame that is written; finished clips are kept.

    Returns:
        Number of clips that were made now.

    Raises:
        RequestError: the folder holds something else, or copies of another degradation.
        InputError: a clip cannot be decoded.
        Cancelled: `cancel` was cancelled.
    """
    _claim(out, degradation)
    missing = [clip for clip in clips if not (out / clip.name).exists()]
    sources = [clip.gt for clip in missing if clip.gt is not None]
    ticker = Ticker(on_progress, unit="frame", total=_expected_frames(sources), cancel=cancel)
    for clip in missing:
        if clip.gt is None:
            raise InputError(f"{clip.name} has no good version to degrade")
        ticker.label = clip.name
        own = dataclasses.replace(degradation, seed=clip_seed(clip.name, degradation.seed))
        _write_folder(clip.gt, out / clip.name, own, ticker)
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
        src: video, folder or printf pattern of images.
        dst: folder; of one that exists, the PNGs are replaced. Images keep the names of the source's, frames of a
            video are numbered.
        degradation: what to do.
        on_progress: called at most ten times a second and at the end.
        cancel: stops after the frame that is written; nothing is left.

    Returns:
        Number of frames.

    Raises:
        InputError: the source cannot be decoded, or not all of it: a copy would lack frames.
        Cancelled: `cancel` was cancelled.
    """
    total = _expected_frames([Path(src)])
    ticker = Ticker(on_progress, unit="frame", total=total, label=dst.name, cancel=cancel)
    _write_folder(src, dst, degradation, ticker)
    ticker.finish()
    return ticker.done


def _write_folder(src: Path | str, dst: Path, degradation: Degradation, ticker: Ticker) -> None:
    """Write a folder of images, whole or not at all."""
    part = dst.with_name(f".{dst.name}.part")
    shutil.rmtree(part, ignore_errors=True)  # of a run that was killed
    images = list_images(str(src))
    try:
        with open_reader(src) as reader, write_errors(str(dst)):
            part.mkdir()
            done_before = ticker.done
            for frame in _degraded(reader, degradation):
                stem = images[frame.pts].stem if images else f"{frame.index:08d}"
                _save(part / f"{stem}.png", frame.rgb)
                ticker.tick(time_s=frame.time_s)
            if reader.problems or ticker.done == done_before:
                raise InputError(
                    f"{src}: {'; '.join(reader.problems) or 'no frame can be decoded'}"
                )
            _put(part, dst)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def write_image(src: Path, dst: Path, degradation: Degradation) -> None:
    """Write one degraded image as an 8-bit PNG.

    Raises:
        InputError: the source cannot be decoded.
    """
    with open_reader(src) as reader, write_errors(str(dst)), atomic_write(dst) as part:
        frame = next(_degraded(reader, degradation), None)
        if frame is None:
            raise InputError(f"{src}: {'; '.join(reader.problems) or 'it cannot be decoded'}")
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
    """Write the degraded frames of a clip as a video, with their times, audio and the rest of the source.

    Args:
        src: video, folder or printf pattern of images.
        dst: video file.
        degradation: what to do.
        encode: `lossless(dst)` keeps every value as far as the container can.
        overwrite: replace an existing file.
        on_progress: called at most ten times a second and at the end.
        cancel: stops after the frame that is written; nothing is left.

    Returns:
        What a user should know, a line each.

    Raises:
        IncompleteError: the video was written, but part of the source could not be decoded.
        Cancelled: `cancel` was cancelled.
    """
    total = _expected_frames([Path(src)])
    ticker = Ticker(on_progress, unit="frame", total=total, label=dst.name, cancel=cancel)
    with open_reader(src) as reader:
        info = _as_written(reader.info, dst)
        height, width = (n // degradation.scale for n in (info.height, info.width))
        with open_writer(
            dst, like=info, width=width, height=height, settings=encode, overwrite=overwrite
        ) as writer:
            for frame in _degraded(reader, degradation):
                writer.write(frame)
                ticker.tick(time_s=frame.time_s)
    ticker.finish()
    if reader.problems:
        raise IncompleteError(
            f"{dst} was written, but {src} is damaged: {'; '.join(reader.problems)}"
        )
    return writer.notes + _losses(dst)


def _expected_frames(sources: Sequence[Path]) -> int | None:
    """Add up the frames of folders, images and videos, these by their headers; None where one does not tell."""
    total = 0
    for source in sources:
        frames = count_frames(source)
        if not frames and source.is_file():
            frames = probe(source).frames_hint
        if not frames:
            return None
        total += frames
    return total


def _losses(dst: Path) -> list[str]:
    suffix = dst.suffix.lower()
    if suffix == ".mkv":
        return []
    what = (
        "holds color at half the resolution or through a matrix"
        if suffix in (*_X264, ".avi")
        else "is lossy"
    )
    return [f"{suffix} {what}; .mkv or a folder keeps every value"]


def lossless(dst: Path) -> EncodeSettings:
    """Choose the encoder that loses least in a container: FFV1 in .mkv and .avi, else H.264 without quantization."""
    if dst.suffix.lower() in (".mkv", ".avi"):
        return EncodeSettings(codec="ffv1")
    if dst.suffix.lower() in _X264:
        return EncodeSettings(codec="h264", crf=0)
    return EncodeSettings()


def _degraded(reader: Reader, degradation: Degradation) -> Iterator[Frame]:
    """Pair degraded images, which may come in parts, with the times of their frames."""
    scale = degradation.scale
    height, width = (n // scale * scale for n in (reader.info.height, reader.info.width))
    if min(height, width) < scale:
        raise InputError(
            f"{reader.info.source} is {reader.info.width}x{reader.info.height}, too small for 1/{scale}"
        )
    waiting: deque[Frame] = deque()

    def cropped() -> Iterator[Tensor]:
        for frame in reader:
            rgb = quantize(
                frame.rgb[:, :height, :width]
            )  # as if read from images, whatever the source
            waiting.append(
                dataclasses.replace(frame, rgb=_NOTHING, alpha=None)
            )  # a view would keep the image
            yield rgb

    for lq in degradation.stream(cropped(), (height, width)):
        frame = waiting.popleft()
        frame.rgb = lq
        yield frame


def _as_written(info: VideoInfo, dst: Path) -> VideoInfo:
    """Describe the source as 8 bit without transparency, and as RGB where the container holds RGB without loss."""
    rgb = {"is_rgb": True, "pix_fmt": "gbrp"} if dst.suffix.lower() == ".mkv" else {}
    return dataclasses.replace(info, bit_depth=8, has_alpha=False, hdr=None, **rgb)


def _save(path: Path, rgb: Tensor) -> None:
    Image.fromarray(to_image_array(rgb)).save(path, "PNG", compress_level=_PNG_LEVEL)


def _put(part: Path, dst: Path) -> None:
    """Give a finished folder its name, or put its images in place of those that are there."""
    if not dst.exists():
        part.rename(dst)
        return
    for old in dst.glob("*.png"):
        old.unlink()
    for image in part.iterdir():
        image.replace(dst / image.name)


def _claim(out: Path, degradation: Degradation) -> None:
    """Mark a folder as that of one degradation, or see that it is."""
    record = {
        "preset": degradation.preset,
        "edition": RANDOM_PRESETS.get(degradation.preset, 1),
        "scale": degradation.scale,
        "seed": degradation.seed,
        "recipe": None if degradation.recipe is None else str(degradation.recipe),
    }
    marker = out / _MARKER
    if marker.is_file():
        with contextlib.suppress(ValueError):
            before = json.loads(marker.read_text(encoding="utf-8"))
            if before == record:
                return
        raise RequestError(
            f"{out} holds copies of another degradation ({marker}); choose another folder"
        )
    if out.is_dir() and any(out.iterdir()):
        raise RequestError(f"{out} is not empty and not a folder of copies; choose another folder")
    with write_errors(str(out)):
        out.mkdir(parents=True, exist_ok=True)
        with atomic_write(marker) as part:
            part.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
