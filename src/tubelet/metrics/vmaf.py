"""VMAF by an external ffmpeg that has libvmaf.

sr, gt (3, H, W) ── luma, stacked to one frame of 2H lines ── pipe ── ffmpeg: split, libvmaf
scores of all frames ── JSON file ── values
"""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import subprocess
import tempfile
import weakref
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tubelet.errors import InputError, ResourceError
from tubelet.metrics.fidelity import to_channel
from tubelet.metrics.meters import Reference, mean_of

__all__ = ["VmafMeter", "find_ffmpeg"]

# For the scores of the frames that are still in the filter.
_TIMEOUT_S = 600
# Files in the temporary folder.
_LOG = "vmaf.json"
_MODEL = "model.json"
_MESSAGES = "messages.txt"


def find_ffmpeg() -> str:
    """Find an ffmpeg with libvmaf in PATH.

    Raises:
        ResourceError: There is no ffmpeg, or it was built without libvmaf.
    """
    program = shutil.which("ffmpeg")
    if program is None:
        raise ResourceError("vmaf needs an ffmpeg with libvmaf; there is no ffmpeg in PATH")
    filters = subprocess.run(
        [program, "-hide_banner", "-filters"],
        capture_output=True,
        text=True,
        check=False,
    )
    if " libvmaf " not in filters.stdout:
        raise ResourceError(
            f"vmaf needs an ffmpeg with libvmaf; {program} was built without: "
            "put another first in PATH"
        )
    return program


class VmafMeter:
    """Meter of VMAF, which scores a clip against its reference.

    A frame and its reference are stacked and sent through one pipe; filters of ffmpeg cut them
    apart, so that neither input can wait for the other. VMAF uses only luma; it is BT.601, limited
    range, as in `psnr-y`.

    Args:
        border: Pixels cropped from each side.
        model: A model file (.json) of libvmaf; None: its default, vmaf_v0.6.1.

    Raises:
        ResourceError: There is no ffmpeg with libvmaf, or no such model file.
    """

    def __init__(self, *, border: int = 0, model: Path | None = None) -> None:
        self._program = find_ffmpeg()
        self._border = border
        self._model = model if model is not None and model.suffix == ".json" else None
        if self._model is not None and not self._model.is_file():
            raise ResourceError(f"vmaf needs its model file, and there is no {self._model}")
        self._reference = Reference("vmaf", required=True)
        # Started with the first frame, whose size it needs.
        self._process: subprocess.Popen[bytes] | None = None
        self._folder = Path()
        self._values: list[float] | None = None
        self._num_frames = 0

    def update(self, sr: Tensor, gt: Tensor | None) -> None:
        """Send the next frame."""
        if self._values is not None:
            raise RuntimeError("the scores were read already; make another meter")
        self._reference.check(sr, gt)
        assert gt is not None
        sr_luma = _luma(sr, self._border)
        gt_luma = _luma(gt, self._border)
        if self._process is None:
            height, width = sr_luma.shape
            self._process = self._start(width=width, height=height)

        # (2H, W); constant chroma makes it YUV.
        luma = torch.cat([sr_luma, gt_luma])
        chroma = torch.full_like(luma, 128)
        frame = torch.stack([luma, chroma, chroma])
        stdin: Any = self._process.stdin
        try:
            stdin.write(frame.numpy().tobytes())
        except (BrokenPipeError, ConnectionResetError) as error:
            raise self._failure() from error
        self._num_frames += 1

    def values(self) -> list[float]:
        """Return a score for each frame; ends the measurement."""
        if self._values is None:
            self._values = self._finish() if self._process is not None else []
        return list(self._values)

    def mean(self) -> float:
        """Return the mean over frames, which is libvmaf's pooled score."""
        return mean_of(self.values())

    def _start(self, *, width: int, height: int) -> subprocess.Popen[bytes]:
        """Start ffmpeg for frames of a size, in a temporary folder."""
        self._folder = Path(tempfile.mkdtemp(prefix="tubelet-vmaf-"))
        weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)

        options = f"log_fmt=json:log_path={_LOG}:n_threads={torch.get_num_threads()}"
        if self._model is not None:
            # By a plain name in its folder: nothing to escape in a filter's argument.
            shutil.copyfile(self._model, self._folder / _MODEL)
            options += f":model=path={_MODEL}"
        with (self._folder / _MESSAGES).open("wb") as messages:
            process = subprocess.Popen(
                self._command(width, height, options),
                cwd=self._folder,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=messages,
            )
        # Finalizers run last in, first out: the process ends before the folder is removed.
        weakref.finalize(self, _end, process)
        return process

    def _command(self, width: int, height: int, options: str) -> list[str]:
        """Return the command that reads stacked frames and compares their halves."""
        crop = f"crop={width}:{height}:0"
        graph = f"split[a][b];[a]{crop}:0[sr];[b]{crop}:{height}[gt];[sr][gt]libvmaf={options}"
        command = [self._program, "-hide_banner", "-loglevel", "error"]
        command += ["-f", "rawvideo", "-pix_fmt", "yuv444p", "-s", f"{width}x{2 * height}"]
        # The rate has no influence.
        command += ["-r", "25", "-i", "pipe:0"]
        command += ["-lavfi", graph, "-f", "null", "-"]
        return command

    def _finish(self) -> list[float]:
        """End the stream, wait for ffmpeg and read its scores."""
        process: Any = self._process
        try:
            process.stdin.close()
            exit_code = process.wait(timeout=_TIMEOUT_S)
        except BrokenPipeError as error:
            raise self._failure() from error
        except subprocess.TimeoutExpired as error:
            raise ResourceError(f"ffmpeg did not finish VMAF within {_TIMEOUT_S} s") from error
        log = self._folder / _LOG
        if exit_code != 0 or not log.is_file():
            raise self._failure()

        frames: list[Any] = json.loads(log.read_text("utf-8"))["frames"]
        if len(frames) != self._num_frames:
            raise ResourceError(
                f"ffmpeg scored {len(frames)} of {self._num_frames} frames with VMAF"
            )
        return [float(frame["metrics"].get("vmaf", math.nan)) for frame in frames]

    def _failure(self) -> ResourceError:
        """Return an error with the last message of ffmpeg."""
        text = (self._folder / _MESSAGES).read_text("utf-8", errors="replace")
        last_line = text.strip().split("\n")[-1]
        return ResourceError(f"ffmpeg could not compute VMAF: {last_line or 'it gave no reason'}")


def _luma(x: Tensor, border: int) -> Tensor:
    """Crop a frame (3, H, W) and convert it to 8-bit luma (H', W') on the CPU."""
    _, height, width = x.shape
    x = x[:, border : height - border, border : width - border]
    if not x.numel():
        raise InputError(f"vmaf: border={border} leaves nothing of the frame")
    return to_channel(x, "y")[0].round().byte().cpu()


def _end(process: subprocess.Popen[bytes]) -> None:
    """Stop the process of a meter that nobody uses any more."""
    process.kill()
    process.wait()
    if process.stdin is not None:
        # Closing writes buffered data, which has no reader any more.
        with contextlib.suppress(OSError):
            process.stdin.close()
