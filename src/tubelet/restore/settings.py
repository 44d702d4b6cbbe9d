"""Settings of an upscaling run, from which the flags of the command derive, and its result."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tubelet.errors import ConfigError
from tubelet.types import Precision

__all__ = ["Result", "UpscaleSettings"]

_MIN_HEIGHT_PX = 16
_MAX_HEIGHT_PX = 16384
# Equal to tiles.MIN_TILE_PX, whose import would load torch before the flags are parsed.
_MIN_TILE_PX = 32
_MAX_CRF = 63


@dataclass(frozen=True, slots=True, kw_only=True)
class UpscaleSettings:
    """Settings of an upscaling run."""

    model: str = "default"
    """Model id, listed by `tubelet models`, or path of a checkpoint. `default` is a small and
    fast model trained for real-world video, in the variant that fits the scale."""
    scale: Literal[2, 3, 4] | None = None
    """Upscaling factor. Default: the scale of the model. For another scale, the result of the
    model is resized."""
    height: int | None = None
    """Height of the output in pixels, for example 1080; the aspect ratio is kept. Cannot be
    combined with --scale."""
    fps: Literal["x2"] | None = None
    """x2 doubles the frame rate: the model also generates the frame halfway between each pair of
    frames, which needs a space-time model such as Zooming Slow-Mo. Audio and duration do not
    change. Default: the frame rate of the input."""
    codec: Literal[
        "auto", "h264", "hevc", "av1", "vp9", "ffv1", "prores", "h264_nvenc", "hevc_nvenc"
    ] = "auto"
    """Video codec. auto: H.264 for 8-bit video, HEVC for higher bit depths; VP9 or AV1 in .webm."""
    crf: float | None = None
    """Constant rate factor of the encoder, 0 to 51 (63 for AV1 and VP9); lower means better
    quality and a larger file. Default: 16 for H.264, 18 for HEVC, 24 for AV1, 20 for VP9."""
    preset: str | None = None
    """Speed preset of the encoder, for example veryfast or slow; slower presets make smaller
    files. Default: superfast for H.264, ultrafast for HEVC."""
    start: float | None = None
    """Start at this time of the input, in seconds. Default: 0."""
    duration: float | None = None
    """Process this many seconds of the input. Default: all of it."""
    device: str = "auto"
    """Device that runs the model: auto, cpu, cuda, cuda:1 or mps. auto: the GPU if there is one."""
    precision: Precision | Literal["auto"] = "auto"
    """Floating-point format of the model. auto: fp16 on a CUDA GPU or bf16 on a CPU with fast
    bf16, where the model allows it; otherwise fp32."""
    tile: int | None = None
    """Side of the square tiles that a frame is cut into, in input pixels, 32 or more; 0 starts
    with whole frames. Default: chosen to fit the free memory."""
    memory: float | None = None
    """Memory that the model may use, in GiB. Default: half of the free memory."""
    overwrite: bool = False
    """Replace the output if it exists."""

    def __post_init__(self) -> None:
        self._check_size()
        self._check_time()
        if self.tile is not None and self.tile != 0 and self.tile < _MIN_TILE_PX:
            raise ConfigError(
                f"tile={self.tile} must be 0 (none) or at least {_MIN_TILE_PX} input pixels"
            )
        if self.memory is not None and self.memory <= 0:
            raise ConfigError(f"memory={self.memory} must be more than 0 GiB")
        if self.crf is not None and not 0 <= self.crf <= _MAX_CRF:
            raise ConfigError(f"crf={self.crf} must be between 0 and {_MAX_CRF}")

    def _check_size(self) -> None:
        if self.scale is not None and self.height is not None:
            raise ConfigError(
                f"scale={self.scale} and height={self.height} contradict; give one of the two"
            )
        if self.scale not in (None, 2, 3, 4):
            raise ConfigError(f"scale={self.scale} must be 2, 3 or 4; for other sizes give height")
        if self.height is not None and not _MIN_HEIGHT_PX <= self.height <= _MAX_HEIGHT_PX:
            raise ConfigError(
                f"height={self.height} must be between {_MIN_HEIGHT_PX} and {_MAX_HEIGHT_PX} pixels"
            )

    def _check_time(self) -> None:
        if self.fps not in (None, "x2"):
            raise ConfigError(
                f"fps={self.fps} must be x2, twice the frame rate of the input: "
                "no model supports another rate"
            )
        if self.start is not None and self.start < 0:
            raise ConfigError(f"start={self.start} must be 0 or more seconds")
        if self.duration is not None and self.duration <= 0:
            raise ConfigError(f"duration={self.duration} must be more than 0 seconds")


@dataclass(frozen=True, slots=True)
class Result:
    """Summary of an upscaling run.

    Attributes:
        path: Path of the output; None if it was written to a pipe.
        model: Id of the model.
        frames: Number of frames written.
        width, height: Size of the output, pixels.
        elapsed_s: Wall-clock seconds.
        notes: Messages for the user, one line each (a converted subtitle, a guessed color matrix).
    """

    path: Path | None
    model: str
    frames: int
    width: int
    height: int
    elapsed_s: float
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return the content of the last event of `--progress json`."""
        return {
            "output": None if self.path is None else str(self.path),
            "model": self.model,
            "frames": self.frames,
            "width": self.width,
            "height": self.height,
            "elapsed_s": round(self.elapsed_s, 3),
            "fps": round(self.frames / self.elapsed_s, 3),
            "notes": list(self.notes),
        }
