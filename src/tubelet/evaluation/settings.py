"""Settings of an evaluation; the flags of `tubelet evaluate` are generated from them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tubelet.errors import ConfigError, require
from tubelet.types import Precision

__all__ = ["EvaluateSettings"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateSettings:
    """Settings of an evaluation."""

    metrics: tuple[str, ...] = ()
    """Metrics to compute, for example psnr-y ssim-y lpips; the first one ranks the models.
    Default: the metrics of the protocol."""
    metric_weights: Path | None = None
    """Weight file of a learned metric such as LPIPS, or the folder that holds it; for vmaf, a
    model file. Default: the cache of torch, else a download."""
    device: str = "auto"
    """Device that runs the model: auto, cpu, cuda, cuda:1 or mps. auto: the GPU if there is one."""
    precision: Precision | Literal["auto"] = "auto"
    """Floating-point format of the model. auto: fp16 on a CUDA GPU or bf16 on a CPU with fast
    bf16, where the model allows it; otherwise fp32."""
    tile: int | None = None
    """Side of the square tiles that a frame is cut into, in input pixels, 32 or more; 0 starts
    with whole frames. Default: chosen to fit the free memory."""
    max_frames: int | None = None
    """Score only the first N frames of each clip. The scores are then not comparable with
    published ones. Default: all frames."""
    showcases: int = 4
    """Number of clips whose crops and temporal profiles are shown in the report, 0 to 100."""
    fresh: bool = False
    """Measure all clips again instead of reusing the scores in --out."""

    def __post_init__(self) -> None:
        if self.max_frames is not None and self.max_frames < 1:
            raise ConfigError(f"max_frames={self.max_frames} must be 1 or more")
        require(
            0 <= self.showcases <= 100,
            f"showcases={self.showcases} must be between 0 and 100",
        )
