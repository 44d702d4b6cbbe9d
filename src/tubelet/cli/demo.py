"""`tubelet demo`: make a clip, degrade it, restore it, and show the result beside the original."""

from __future__ import annotations

import math
import os
import struct
import sys
import tempfile
import time
import wave
import webbrowser
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from tubelet.cli.flags import flags_from, parse
from tubelet.cli.progress import show_progress
from tubelet.errors import ConfigError, RequestError
from tubelet.progress_display import clock
from tubelet.restore.settings import Result, UpscaleSettings

if TYPE_CHECKING:
    from torch import Tensor

    from tubelet.video.info import VideoInfo

__all__ = ["main"]

_SCALE = 4
_LQ_CRF, _GT_CRF = 20.0, 10.0
_MEASURE_EVERY = 4  # frames; enough for a mean, and the originals are kept in memory
_CHORD_HZ = (220.0, 277.18, 329.63)
_SAMPLES_A_SECOND = 48_000


@dataclass(frozen=True, kw_only=True)
class DemoFlags:
    """Make a short clip on the spot, shrink and compress it, upscale it, and show before and after."""

    folder: tyro.conf.Positional[Path] = Path("demo")
    """Where the clip, the result and the page go; those of an earlier demo are replaced. Default: demo."""
    model: str = "default"
    """Id of the model."""
    frames: int = 60
    """Length of the clip, at 25 frames a second."""


@dataclass(frozen=True, slots=True)
class _Files:
    """What the demo leaves in its folder."""

    original: Path
    lq: Path
    restored: Path
    page: Path


def main(args: Sequence[str]) -> int:
    """Run the verb."""
    command = flags_from(
        DemoFlags, aliases={"model": "-m"}, metavars={"folder": "FOLDER", "model": "ID"}
    )
    flags = parse(command, args, verb="demo")
    if not 4 <= flags.frames <= 1000:
        raise ConfigError(f"frames={flags.frames} must be between 4 and 1000")
    _demonstrate(flags.folder, flags.model, flags.frames)
    return 0


def _demonstrate(folder: Path, model: str, frames: int) -> None:
    from tubelet.evaluation.compare import write_compare_page
    from tubelet.restore.job import run

    began_s = time.monotonic()
    settings = UpscaleSettings(model=model, scale=_SCALE, overwrite=True)
    files = _prepare(folder)
    _say(f"drawing a clip of {frames} frames, shrinking it {_SCALE} times and compressing it …")
    truth = _make_clips(files, frames)
    _say("upscaling …")
    with show_progress("auto", label=files.lq.name, json_to=sys.stdout) as update:
        result = run(files.lq, files.restored, settings, on_progress=update)
    _say("comparing …")
    scores = _measure(files, truth)
    details = {
        "Model": result.model,
        "Time": f"{clock(result.elapsed_s)} for {result.frames} frames",
        "PSNR of luma": f"{scores[0]:.2f} dB; bicubic {scores[1]:.2f} dB",
    }
    write_compare_page(
        files.lq,
        files.restored,
        files.page,
        title="Tubelet demo",
        details=details,
        truth=files.original,
    )
    _report(files, result, scores, time.monotonic() - began_s)
    if _has_desktop():
        webbrowser.open(files.page.resolve().as_uri())


def _prepare(folder: Path) -> _Files:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RequestError(
            f"the folder {folder} cannot be made: {error.strerror}; name another"
        ) from error
    return _Files(
        original=folder / "street-original.mp4",
        lq=folder / "street-input.mp4",
        restored=folder / "street-restored.mp4",
        page=folder / "street.compare.html",
    )


def _make_clips(files: _Files, frames: int) -> dict[int, Tensor]:
    """Write the original and its degraded copy, both with audio; give some of the originals, as uint8."""
    from tubelet.degrade import degrade
    from tubelet.evaluation.scene import FRAME_RATE, SCENE_SIZE, draw_scene
    from tubelet.ops.pixels import to_uint8
    from tubelet.types import Frame
    from tubelet.video.writer import EncodeSettings, open_writer

    width, height = SCENE_SIZE
    truth: dict[int, Tensor] = {}
    with ExitStack() as stack:
        audio = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "tone.wav"
        _write_tone(audio, frames / FRAME_RATE)
        writers = [
            stack.enter_context(
                open_writer(
                    path,
                    like=_drawn_video(audio, width // shrink, height // shrink, frames),
                    width=width // shrink,
                    height=height // shrink,
                    settings=EncodeSettings(codec="h264", crf=crf),
                    overwrite=True,
                )
            )
            for path, shrink, crf in ((files.original, 1, _GT_CRF), (files.lq, _SCALE, _LQ_CRF))
        ]
        for t, gt in enumerate(draw_scene(frames)):
            lq = degrade(gt[None], "bi", scale=_SCALE)[0]
            for writer, rgb in zip(writers, (gt, lq), strict=True):
                writer.write(Frame(rgb, t, Fraction(1, FRAME_RATE), duration=1, index=t))
            if t % _MEASURE_EVERY == 0:
                truth[t] = to_uint8(gt)
    return truth


def _drawn_video(audio: Path, width: int, height: int, frames: int) -> VideoInfo:
    """Describe the drawn video, with the audio file as the source of its other streams."""
    from tubelet.evaluation.scene import FRAME_RATE
    from tubelet.video.info import ColorTags, VideoInfo

    return VideoInfo(
        source=str(audio),
        width=width,
        height=height,
        pix_fmt="yuv420p",
        bit_depth=8,
        color=ColorTags(
            matrix=1, primaries=1, transfer=1, full_range=False, siting=1
        ),  # BT.709, as tagged HD
        time_base=Fraction(1, FRAME_RATE),
        average_rate=Fraction(FRAME_RATE),
        duration_s=frames / FRAME_RATE,
        frames_hint=frames,
        container="wav",
        codec="rawvideo",
        video_index=-1,  # every stream of the source is audio
    )


def _write_tone(path: Path, seconds: float) -> None:
    """Write a soft chord that fades in and out, 16-bit mono."""
    count = round(seconds * _SAMPLES_A_SECOND)
    samples: list[int] = []
    for n in range(count):
        at_s = n / _SAMPLES_A_SECOND
        fade = min(1.0, at_s / 0.25, (seconds - at_s) / 0.25)
        level = sum(math.sin(math.tau * hz * at_s) for hz in _CHORD_HZ) / len(_CHORD_HZ)
        samples.append(round(6000 * fade * level))
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(_SAMPLES_A_SECOND)
        file.writeframes(struct.pack(f"<{count}h", *samples))


def _measure(files: _Files, truth: dict[int, Tensor]) -> tuple[float, float]:
    """Compute the mean Y-PSNR of the result and of the input enlarged with bicubic, dB."""
    from tubelet.evaluation.images import enlarge
    from tubelet.metrics.fidelity import psnr
    from tubelet.video.reader import open_reader

    sums = [0.0, 0.0]
    with open_reader(files.restored) as restored, open_reader(files.lq) as lq:
        for sr, before in zip(restored, lq, strict=True):
            if sr.index in truth:
                gt = truth[sr.index].float() / 255
                bicubic = enlarge(before.rgb, (gt.shape[-2], gt.shape[-1]))
                sums[0] += float(psnr(sr.rgb, gt))
                sums[1] += float(psnr(bicubic, gt))
    return sums[0] / len(truth), sums[1] / len(truth)


def _report(files: _Files, result: Result, scores: tuple[float, float], total_s: float) -> None:
    speed = f"{result.frames / result.elapsed_s:.1f} frames a second"
    _say(f"  input     {files.lq}")
    _say(f"  result    {files.restored}  {result.width}×{result.height}, {result.model}, {speed}")
    _say(f"  original  {files.original}")
    _say(f"  page      {files.page}  (open it in a browser)")
    gain = scores[0] - scores[1]
    _say(f"  PSNR of luma {scores[0]:.2f} dB, bicubic {scores[1]:.2f} dB ({gain:+.2f} dB)")
    _say(f"done in {clock(total_s)}. Now your own: tubelet upscale INPUT OUTPUT --compare")


def _has_desktop() -> bool:
    """Say whether opening a browser makes sense: a user at a terminal, with a screen, not an automaton."""
    if os.environ.get("CI") or not sys.stdout.isatty():
        return False
    if sys.platform in ("darwin", "win32"):
        return not os.environ.get("SSH_CONNECTION")
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
