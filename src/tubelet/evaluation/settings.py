"""`EvaluateSettings`: what a user may ask of an evaluation; the command's flags come from here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tubelet.errors import ConfigError
from tubelet.types import Precision

__all__ = ["EvaluateSettings"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateSettings:
    """How to run an evaluation."""

    metrics: tuple[str, ...] = ()
    """Names of metrics; the first ranks the models. Default: those of the protocol."""
    metric_weights: Path | None = None
    """Weight file of a metric that is a network. Default: the places that its package looks at."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps, ..."""
    precision: Precision | Literal["auto"] = "auto"
    """Number format. auto: as upscaling chooses it for the model and the device."""
    tile: int | None = None
    """Side of square tiles in input pixels; 0 begins with the whole image. Default: from what memory is free."""
    max_frames: int | None = None
    """Look at no more than the first N frames of each clip. The numbers are then not those of the protocol."""
    showcases: int = 4
    """Of how many clips to keep crops and temporal profiles for the report."""
    fresh: bool = False
    """Measure again what was measured before."""

    def __post_init__(self) -> None:
        if self.max_frames is not None and self.max_frames < 1:
            raise ConfigError(f"max_frames={self.max_frames} must be 1 or more")
        if not 0 <= self.showcases <= 100:
            raise ConfigError(f"showcases={self.showcases} must be between 0 and 100")
