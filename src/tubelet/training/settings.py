"""The settings of the training loop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Literal, cast

from tubelet.errors import ConfigError
from tubelet.losses import LossName
from tubelet.training.optimizer import OptimizerSettings
from tubelet.training.schedule import ScheduleSettings

__all__ = ["LoopSettings", "result_settings"]

_WITHOUT_EFFECT = ("log_every", "save_every", "device", "activations")
"""Settings that leave the result as it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopSettings:
    """How long and how fast to learn."""

    FORMER_NAMES: ClassVar[Mapping[str, str]] = {"optimiser": "optimizer"}

    steps: int = 20_000
    """Updates in all."""
    lr: float = 1e-3
    """Peak learning rate."""
    lr_final: float = 1e-6
    """Learning rate at the end of a cosine or line."""
    warmup_steps: int = 100
    """Steps of the linear rise to the peak."""
    schedule: ScheduleSettings = field(default_factory=ScheduleSettings)
    """Learning-rate schedule."""
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    """Optimizer and parameter groups."""
    grad_clip: float = 1.0
    """Largest norm of the gradient; inf leaves it as it is."""
    ema: float = 0.999
    """Decay of the moving average of the weights, which is what gets evaluated and kept."""
    loss: LossName = "charbonnier"
    """Pixel loss. mse is what PSNR measures."""
    loss_eps: float = 1e-3
    """Width of the smooth part of Charbonnier, in units of the pixels; papers often state its
    square."""
    loss_reduction: Literal["mean", "sum"] = "mean"
    """Mean or sum of the loss over all numbers of a batch."""
    loss_on: Literal["rgb", "luma"] = "rgb"
    """Compare all channels, or luma alone, as benchmarks do and as suits a network that predicts
    luma."""
    log_every: int = 50
    """Steps between two log lines."""
    save_every: int = 500
    """Steps between two checkpoints, each evaluated."""
    device: str = "cpu"
    """Where to train."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Number format of the forward and backward pass; the weights stay fp32. bf16 is faster where
    the processor multiplies it (`tubelet doctor` says so)."""
    activations: Literal["keep", "recompute"] = "keep"
    """recompute: trunks are computed again in the backward pass, which takes a third more time and
    far less memory; no number changes."""
    seed: int = 0
    """Of the first weights and of all crops."""

    def __post_init__(self) -> None:
        if self.steps < 1 or self.log_every < 1 or self.save_every < 1:
            raise ConfigError("steps, log_every and save_every must be at least 1")
        if not (0 < self.lr_final <= self.lr) or not 0 <= self.ema < 1 or self.grad_clip <= 0:
            raise ConfigError("need 0 < lr_final ≤ lr, 0 ≤ ema < 1 and grad_clip > 0")
        if self.warmup_steps < 0 or not self.loss_eps > 0:
            raise ConfigError("need warmup_steps ≥ 0 and loss_eps > 0")


def result_settings(settings: LoopSettings) -> dict[str, Any]:
    """List the settings that change the result, nested ones as "schedule.kind"."""
    flat: dict[str, Any] = {}
    for name, value in asdict(settings).items():
        if isinstance(value, dict):
            nested = cast("dict[str, Any]", value)
            flat |= {f"{name}.{key}": inner for key, inner in nested.items()}
        elif name not in _WITHOUT_EFFECT:
            flat[name] = value
    return flat
