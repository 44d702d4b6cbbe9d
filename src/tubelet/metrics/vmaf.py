"""VMAF through an external ffmpeg that has libvmaf: frames go down one pipe, scores come back in a file."""

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

_WAIT_S = 600  # for the scores of the frames that the filter still holds
_LOG, _MODEL, _MESSAGES = "vmaf.json", "model.json", "messages.txt"


def find_ffmpeg() -> str:
    """Find an ffmpeg with libvmaf in PATH.

    Raises:
        ResourceError: there is no ffmpeg, or it was built without libvmaf.
    """
    program = shutil.which("ffmpeg")
    if program is None:
        raise ResourceError("vmaf needs an ffmpeg with libvmaf; there is no ffmpeg in PATH")
    done = subprocess.run(
        [program, "-hide_banner", "-filters"], capture_output=True, text=True, check=False
    )
    if " libvmaf " not in done.stdout:
        raise ResourceError(
            f"vmaf needs an ffmpeg with libvmaf; {program} was built without: put another first in PATH"
        )
    return program


class VmafMeter:
    """Scores a clip with VMAF, frame and reference side by side.

    Both images of a moment go stacked through one pipe and are cut apart by ffmpeg's filters, so that neither side
    can wait for the other. Only luma counts for VMAF; it is BT.601, limited range, as in `psnr-y`.

    Args:
        border: pixels cropped from each side.
        model: a model file (.json) of libvmaf; None for its default, vmaf_v0.6.1.

    Raises:
        ResourceError: there is no ffmpeg with libvmaf, or no such model file.
    """

    def __init__(self, *, border: int = 0, model: Path | None = None) -> None:
        self._program = find_ffmpeg()
        self._border = border
        self._model = model if model is not None and model.suffix == ".json" else None
        if self._model is not None and not self._model.is_file():
            raise ResourceError(f"vmaf needs its model file, and there is no {self._model}")
        self._reference = Reference("vmaf", required=True)
        self._process: subprocess.Popen[bytes] | None = None
        self._folder = Path()
        self._values: list[float] | None = None
        self._frames = 0

    def update(self, sr: Tensor, gt: Tensor | None) -> None:
        """Send the next frame."""
        if self._values is not None:
            raise RuntimeError("the scores were read already; make another meter")
        self._reference.check(sr, gt)
        assert gt is not None
        planes = [_luma(x, self._border) for x in (sr, gt)]
        if self._process is None:
            self._process = self._start(width=planes[0].shape[1], height=planes[0].shape[0])
        luma = torch.cat(planes)
        chroma = torch.full_like(luma, 128)
        stream: Any = self._process.stdin
        try:
            stream.write(torch.stack([luma, chroma, chroma]).numpy().tobytes())
        except (BrokenPipeError, ConnectionResetError) as error:
            raise self._failure() from error
        self._frames += 1

    def values(self) -> list[float]:
        """Return a score for each frame; ends the measurement."""
        if self._values is None:
            self._values = self._finish() if self._process is not None else []
        return list(self._values)

    def mean(self) -> float:
        """Return the mean over frames, which is libvmaf's pooled score."""
        return mean_of(self.values())

    def _start(self, *, width: int, height: int) -> subprocess.Popen[bytes]:
        self._folder = Path(tempfile.mkdtemp(prefix="tubelet-vmaf-"))
        weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        options = f"log_fmt=json:log_path={_LOG}:n_threads={torch.get_num_threads()}"
        if (
            self._model is not None
        ):  # by a plain name in its folder: nothing to escape in a filter's argument
            shutil.copyfile(self._model, self._folder / _MODEL)
            options += f":model=path={_MODEL}"
        half = f"crop={width}:{height}:0"
        graph = f"split[a][b];[a]{half}:0[sr];[b]{half}:{height}[gt];[sr][gt]libvmaf={options}"
        source = [
            "-f",
            "rawvideo",
            "-pix_fmt",
            "yuv444p",
            "-s",
            f"{width}x{2 * height}",
            "-r",
            "25",
            "-i",
            "pipe:0",
        ]
        command = [
            self._program,
            "-hide_banner",
            "-loglevel",
            "error",
            *source,
            "-lavfi",
            graph,
            "-f",
            "null",
            "-",
        ]
        with (self._folder / _MESSAGES).open("wb") as messages:
            process = subprocess.Popen(
                command,
                cwd=self._folder,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=messages,
            )
        weakref.finalize(
            self, _end, process
        )  # finalizers run last in, first out: the folder goes last
        return process

    def _finish(self) -> list[float]:
        process: Any = self._process
        try:
            process.stdin.close()
            code = process.wait(timeout=_WAIT_S)
        except BrokenPipeError as error:
            raise self._failure() from error
        except subprocess.TimeoutExpired as error:
            raise ResourceError(f"ffmpeg did not finish VMAF within {_WAIT_S} s") from error
        log = self._folder / _LOG
        if code != 0 or not log.is_file():
            raise self._failure()
        frames: list[Any] = json.loads(log.read_text("utf-8"))["frames"]
        if len(frames) != self._frames:
            raise ResourceError(f"ffmpeg scored {len(frames)} of {self._frames} frames with VMAF")
        return [float(frame["metrics"].get("vmaf", math.nan)) for frame in frames]

    def _failure(self) -> ResourceError:
        said = (self._folder / _MESSAGES).read_text("utf-8", errors="replace").strip().split("\n")
        return ResourceError(f"ffmpeg could not compute VMAF: {said[-1] or 'it gave no reason'}")


def _luma(x: Tensor, border: int) -> Tensor:
    x = x[:, border : x.shape[1] - border, border : x.shape[2] - border]
    if not x.numel():
        raise InputError(f"vmaf: border={border} leaves nothing of the frame")
    return to_channel(x, "y")[0].round().byte().cpu()


def _end(process: subprocess.Popen[bytes]) -> None:
    """Stop what nobody waits for any more."""
    process.kill()
    process.wait()
    if process.stdin is not None:
        with contextlib.suppress(OSError):  # what was not yet written has no reader any more
            process.stdin.close()
