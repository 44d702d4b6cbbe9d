"""`tubelet demo`: generate a clip, degrade it, upscale it, and show it before and after."""

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
    from tubelet.video.writer import Writer

__all__ = ["main"]

_SCALE = 4
_LQ_CRF = 20.0
_GT_CRF = 10.0
# Every fourth frame is enough for a mean PSNR; the originals of these frames are kept in memory.
_MEASURE_INTERVAL = 4

# A Linux desktop sets at least one of these.
_SCREEN_VARIABLES = ("DISPLAY", "WAYLAND_DISPLAY")

# An A major chord: A3, C♯4, E4.
_CHORD_HZ = (220.0, 277.18, 329.63)
_SAMPLE_RATE_HZ = 48_000
_FADE_S = 0.25
# Of 32767; soft.
_AMPLITUDE = 6000

_EXAMPLES = """\
examples:
  tubelet demo
  tubelet demo tryout --model fast-x4-bi --frames 30
"""


@dataclass(frozen=True, kw_only=True)
class DemoFlags:
    """Generate a short clip, shrink and compress it, upscale it, and show it before and after."""

    folder: tyro.conf.Positional[Path] = Path("demo")
    """Folder of the clips and the page; files of an earlier demo are replaced. Default: demo."""
    model: str = "default"
    """Id of a model of scale 4, listed by `tubelet models`."""
    frames: int = 60
    """Number of frames of the clip, 4 to 1000, at 25 frames a second."""


@dataclass(frozen=True, slots=True)
class _Files:
    """Files that the demo writes."""

    original: Path
    lq: Path
    restored: Path
    page: Path


def main(args: Sequence[str]) -> int:
    """Run the verb."""
    metavars = {"folder": "[FOLDER]", "model": "ID", "frames": "N"}
    command = flags_from(DemoFlags, aliases={"model": "-m"}, metavars=metavars)
    flags: DemoFlags = parse(command, args, verb="demo", examples=_EXAMPLES)
    if not 4 <= flags.frames <= 1000:
        raise ConfigError(f"frames={flags.frames} must be between 4 and 1000")
    _demonstrate(flags.folder, flags.model, flags.frames)
    return 0


def _demonstrate(folder: Path, model: str, num_frames: int) -> None:
    from tubelet.evaluation.compare import write_compare_page
    from tubelet.restore.job import run

    start_s = time.monotonic()
    settings = UpscaleSettings(model=model, scale=_SCALE, overwrite=True)
    files = _make_folder(folder)
    _print(f"drawing a clip of {num_frames} frames, shrinking it {_SCALE}× and compressing it …")
    originals = _write_clips(files, num_frames)
    _print("upscaling …")
    with show_progress("auto", label=files.lq.name, json_to=sys.stdout) as update:
        result = run(files.lq, files.restored, settings, on_progress=update)
    _print("comparing …")
    psnr_db, bicubic_psnr_db = _measure(files, originals)
    details = {
        "Model": result.model,
        "Time": f"{clock(result.elapsed_s)} for {result.frames} frames",
        "PSNR of luma": f"{psnr_db:.2f} dB; bicubic {bicubic_psnr_db:.2f} dB",
    }
    write_compare_page(
        files.lq,
        files.restored,
        files.page,
        title="Tubelet demo",
        details=details,
        truth=files.original,
    )

    _print_files(files, result)
    gain_db = psnr_db - bicubic_psnr_db
    scores = f"{psnr_db:.2f} dB, bicubic {bicubic_psnr_db:.2f} dB ({gain_db:+.2f} dB)"
    _print(f"  PSNR of luma {scores}")
    duration = clock(time.monotonic() - start_s)
    _print(f"done in {duration}. Try your own video: tubelet upscale INPUT OUTPUT --compare")
    if _has_desktop():
        webbrowser.open(files.page.resolve().as_uri())


def _make_folder(folder: Path) -> _Files:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RequestError(
            f"cannot create the folder {folder}: {error.strerror}; choose another one"
        ) from error
    return _Files(
        original=folder / "street-original.mp4",
        lq=folder / "street-input.mp4",
        restored=folder / "street-restored.mp4",
        page=folder / "street.compare.html",
    )


def _write_clips(files: _Files, num_frames: int) -> dict[int, Tensor]:
    """Write the original clip and its low-quality copy, both with audio.

    Returns:
        The original frames that are measured later, by their index: (3, H, W), uint8.
    """
    from tubelet.degrade import degrade
    from tubelet.evaluation.scene import FRAME_RATE, SCENE_SIZE, draw_scene
    from tubelet.ops.pixels import to_uint8
    from tubelet.types import Frame
    from tubelet.video.writer import EncodeSettings, open_writer

    originals: dict[int, Tensor] = {}
    with ExitStack() as stack:
        audio = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "tone.wav"
        _write_tone(audio, num_frames / FRAME_RATE)

        def add_writer(path: Path, downscale: int, crf: float) -> Writer:
            width = SCENE_SIZE[0] // downscale
            height = SCENE_SIZE[1] // downscale
            writer = open_writer(
                path,
                like=_clip_info(audio, width, height, num_frames),
                width=width,
                height=height,
                settings=EncodeSettings(codec="h264", crf=crf),
                overwrite=True,
            )
            return stack.enter_context(writer)

        gt_writer = add_writer(files.original, 1, _GT_CRF)
        lq_writer = add_writer(files.lq, _SCALE, _LQ_CRF)
        time_base = Fraction(1, FRAME_RATE)
        for t, gt in enumerate(draw_scene(num_frames)):
            lq = degrade(gt[None], "bi", scale=_SCALE)[0]
            gt_writer.write(Frame(gt, t, time_base, duration=1, index=t))
            lq_writer.write(Frame(lq, t, time_base, duration=1, index=t))
            if t % _MEASURE_INTERVAL == 0:
                originals[t] = to_uint8(gt)
    return originals


def _clip_info(audio: Path, width: int, height: int, num_frames: int) -> VideoInfo:
    """Describe the drawn video; the audio file is the source of its other streams."""
    from tubelet.evaluation.scene import FRAME_RATE
    from tubelet.video.info import ColorTags, VideoInfo

    return VideoInfo(
        source=str(audio),
        width=width,
        height=height,
        pix_fmt="yuv420p",
        bit_depth=8,
        # BT.709 with limited range, the usual tags of HD video.
        color=ColorTags(matrix=1, primaries=1, transfer=1, full_range=False, siting=1),
        time_base=Fraction(1, FRAME_RATE),
        average_rate=Fraction(FRAME_RATE),
        duration_s=num_frames / FRAME_RATE,
        frames_hint=num_frames,
        container="wav",
        codec="rawvideo",
        # No stream of the source is video, so all of them are copied.
        video_index=-1,
    )


def _write_tone(path: Path, duration_s: float) -> None:
    """Write a soft chord that fades in and out, as 16-bit mono."""
    num_samples = round(duration_s * _SAMPLE_RATE_HZ)
    samples: list[int] = []
    for n in range(num_samples):
        time_s = n / _SAMPLE_RATE_HZ
        fade_in = time_s / _FADE_S
        fade_out = (duration_s - time_s) / _FADE_S
        level = sum(math.sin(math.tau * hz * time_s) for hz in _CHORD_HZ) / len(_CHORD_HZ)
        samples.append(round(_AMPLITUDE * min(1.0, fade_in, fade_out) * level))
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(_SAMPLE_RATE_HZ)
        file.writeframes(struct.pack(f"<{num_samples}h", *samples))


def _measure(files: _Files, originals: dict[int, Tensor]) -> tuple[float, float]:
    """Compute the mean Y-PSNR of the result and of the bicubic-upscaled input, in dB."""
    from tubelet.evaluation.images import enlarge
    from tubelet.metrics.fidelity import psnr
    from tubelet.video.reader import open_reader

    sr_sum = 0.0
    bicubic_sum = 0.0
    with open_reader(files.restored) as restored, open_reader(files.lq) as lq_frames:
        for sr, lq in zip(restored, lq_frames, strict=True):
            if sr.index not in originals:
                continue
            gt = originals[sr.index].float() / 255
            height, width = gt.shape[-2:]
            bicubic = enlarge(lq.rgb, (height, width))
            sr_sum += float(psnr(sr.rgb, gt))
            bicubic_sum += float(psnr(bicubic, gt))
    return sr_sum / len(originals), bicubic_sum / len(originals)


def _print_files(files: _Files, result: Result) -> None:
    size = f"{result.width}×{result.height}"
    fps = result.frames / result.elapsed_s
    _print(f"  input     {files.lq}")
    _print(f"  result    {files.restored}  {size}, {result.model}, {fps:.1f} frames a second")
    _print(f"  original  {files.original}")
    _print(f"  page      {files.page}  (open it in a browser)")


def _has_desktop() -> bool:
    """Return whether a browser can be opened: there is a screen, and a user at a terminal."""
    if os.environ.get("CI"):
        return False
    if not sys.stdout.isatty():
        return False
    if sys.platform in ("darwin", "win32"):
        return not os.environ.get("SSH_CONNECTION")
    return any(map(os.environ.get, _SCREEN_VARIABLES))


def _print(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
