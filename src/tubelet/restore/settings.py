"""Settings of an upscaling run, from which the flags of the command derive, and its result."""

from __future__ import annotations

from collections.abc import Callable
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

_REQUIREMENTS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "scale": (
        lambda scale: scale not in (2, 3, 4),
        "2, 3 or 4; for other sizes give height",
    ),
    "height": (
        lambda height_px: not _MIN_HEIGHT_PX <= height_px <= _MAX_HEIGHT_PX,
        f"between {_MIN_HEIGHT_PX} and {_MAX_HEIGHT_PX} pixels",
    ),
    "fps": (
        lambda fps: fps != "x2",
        "x2, twice the frame rate of the input: no model supports another rate",
    ),
    "start": (lambda start_s: start_s < 0, "0 or more seconds"),
    "duration": (lambda duration_s: duration_s <= 0, "more than 0 seconds"),
    "tile": (
        lambda tile_px: tile_px != 0 and tile_px < _MIN_TILE_PX,
        f"0 (none) or at least {_MIN_TILE_PX} input pixels",
    ),
    "memory": (lambda memory_gib: memory_gib <= 0, "more than 0 GiB"),
    "crf": (lambda crf: not 0 <= crf <= _MAX_CRF, f"between 0 and {_MAX_CRF}"),
}
"""Setting → test for an invalid value, and what the error message requires."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UpscaleSettings:
    """Settings of an upscaling run."""

    model: str = "default"
    """Model id, listed by `tubelet models`, or path of a checkpoint. `default` is a small and
    fast model trained for real-world video, in the variant that fits the scale."""
    adapter: Path | None = None
    """Checkpoint of adapters for --model, from `tubelet train pfvsr`. Without --model, the image
    model that the file names is used."""
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
        if self.scale is not None and self.height is not None:
            raise ConfigError(
                f"scale={self.scale} and height={self.height} contradict; give one of the two"
            )
        for field, (is_invalid, requirement) in _REQUIREMENTS.items():
            value = getattr(self, field)
            # None is the default of each of these settings.
            if value is not None and is_invalid(value):
                raise ConfigError(f"{field}={value} must be {requirement}")


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
