"""Settings of the training loop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Literal, cast

from tubelet.errors import ConfigError, require
from tubelet.losses import LossName
from tubelet.training.optimizer import OptimizerSettings
from tubelet.training.schedule import ScheduleSettings

__all__ = ["LoopSettings", "result_settings"]

_WITHOUT_EFFECT = ("log_every", "save_every", "device", "activations")
"""Settings that do not change the result of a run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopSettings:
    """Settings of the training loop: steps, learning rate, loss and device."""

    FORMER_NAMES: ClassVar[Mapping[str, str]] = {"optimiser": "optimizer"}

    steps: int = 20_000
    """Number of optimizer steps."""
    lr: float = 1e-3
    """Peak learning rate."""
    lr_final: float = 1e-6
    """Final learning rate of the schedules cosine, restarts and linear."""
    warmup_steps: int = 100
    """Steps of the linear warmup to the peak learning rate."""
    schedule: ScheduleSettings = field(default_factory=ScheduleSettings)
    """Learning-rate schedule."""
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    """Optimizer and parameter groups."""
    grad_clip: float = 1.0
    """Maximum gradient norm; inf turns clipping off."""
    ema: float = 0.999
    """Decay of the exponential moving average of the weights, which is evaluated and saved."""
    loss: LossName = "charbonnier"
    """Pixel loss. mse is the loss that PSNR measures."""
    loss_eps: float = 1e-3
    """Epsilon of the Charbonnier loss, in pixel values of [0, 1]; papers often state its square."""
    loss_reduction: Literal["mean", "sum"] = "mean"
    """Mean or sum of the loss over all values of a batch."""
    loss_on: Literal["rgb", "luma"] = "rgb"
    """Compute the loss on RGB, or on luma as benchmarks do; luma suits a network that predicts
    luma."""
    log_every: int = 50
    """Steps between log lines."""
    save_every: int = 500
    """Steps between checkpoints; each is evaluated."""
    device: str = "cpu"
    """Device to train on: auto, cpu, cuda, cuda:1 or mps."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Floating-point format of the forward and backward pass; the weights stay fp32. bf16 is
    faster on processors with bf16 instructions, which `tubelet doctor` reports."""
    activations: Literal["keep", "recompute"] = "keep"
    """recompute: recompute the activations of the trunks in the backward pass, which takes a
    third more time and much less memory; the results are identical."""
    seed: int = 0
    """Seed of the initial weights and of all crops."""

    def __post_init__(self) -> None:
        min_count = min(self.steps, self.log_every, self.save_every)
        require(min_count >= 1, "steps, log_every and save_every must be at least 1")
        is_falling = 0 < self.lr_final <= self.lr
        is_average = 0 <= self.ema < 1
        if not is_falling or not is_average or self.grad_clip <= 0:
            raise ConfigError("need 0 < lr_final ≤ lr, 0 ≤ ema < 1 and grad_clip > 0")
        require(
            self.warmup_steps >= 0 and self.loss_eps > 0,
            "need warmup_steps ≥ 0 and loss_eps > 0",
        )


def result_settings(settings: LoopSettings) -> dict[str, Any]:
    """Return the settings that change the result of a run; nested names are "schedule.kind"."""
    flat: dict[str, Any] = {}
    for name, value in asdict(settings).items():
        if isinstance(value, dict):
            for key, nested_value in cast("dict[str, Any]", value).items():
                flat[f"{name}.{key}"] = nested_value
        elif name not in _WITHOUT_EFFECT:
            flat[name] = value
    return flat
