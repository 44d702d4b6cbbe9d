"""The optimizer and its parameter groups: which parameters learn when, and how fast."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast

import torch
from torch import nn

from tubelet.errors import ConfigError, suggest

__all__ = ["OptimizerSettings", "ParameterGroups"]


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerSettings:
    """Optimizer, and modules with a separate learning rate or a separate start."""

    FORMER_NAMES: ClassVar[Mapping[str, str]] = {
        "slow": "low_lr_modules",
        "slow_factor": "lr_multiplier",
        "frozen_steps": "freeze_steps",
        "alone": "warmup_only_modules",
        "alone_steps": "warmup_only_steps",
    }

    kind: Literal["adam", "adamw"] = "adam"
    """adamw: Adam with decoupled weight decay."""
    betas: tuple[float, float] = (0.9, 0.99)
    """Decay rates of the moving averages of the gradient and of its square."""
    weight_decay: float = 0.0
    """Weight decay."""
    low_lr_modules: tuple[str, ...] = ()
    """Modules with a separate learning rate, by their names in the network, for example spynet."""
    lr_multiplier: float = 1.0
    """Multiplier of the learning rate of low_lr_modules."""
    freeze_steps: int = 0
    """Steps at the start during which low_lr_modules are frozen."""
    warmup_only_modules: tuple[str, ...] = ()
    """Modules that are trained first, while all others are frozen, by their names in the network."""
    warmup_only_steps: int = 0
    """Steps at the start during which only warmup_only_modules are trained."""

    def __post_init__(self) -> None:
        if (
            not (len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas))
            or self.weight_decay < 0
        ):
            raise ConfigError(f"{self}: need two betas of 0 ≤ beta < 1, and weight_decay ≥ 0")
        if self.lr_multiplier < 0 or self.freeze_steps < 0 or self.warmup_only_steps < 0:
            raise ConfigError(
                "lr_multiplier, freeze_steps and warmup_only_steps must not be negative"
            )


class ParameterGroups:
    """The parameters of a network, grouped by when they learn and how fast, and their optimizer.

    Args:
        model: the network.
        settings: see there.

    Attributes:
        optimizer: a group of parameters for each combination of the settings' parts.

    Raises:
        ConfigError: a part is not in the network, or nothing would learn.
    """

    def __init__(self, model: nn.Module, settings: OptimizerSettings) -> None:
        self._settings = settings
        slow = _parameters(model, settings.low_lr_modules)
        alone = _parameters(model, settings.warmup_only_modules)
        groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
        for parameter in model.parameters():
            groups.setdefault((parameter in slow, parameter in alone), []).append(parameter)
        self._kinds = list(groups)
        for step in (0, settings.freeze_steps, settings.warmup_only_steps):
            if not any(self._learns(step, *kind) for kind in self._kinds):
                raise ConfigError(
                    f"nothing would learn at step {step}: slow and alone leave no other part"
                )
        rule = torch.optim.Adam if settings.kind == "adam" else torch.optim.AdamW
        parameters = [{"params": group} for group in groups.values()]
        self.optimizer = rule(parameters, betas=settings.betas, weight_decay=settings.weight_decay)

    def prepare(self, step: int, lr: float) -> None:
        """Set which parameters learn at a step, and at which rate, before its forward pass."""
        for group, (slow, alone) in zip(self.optimizer.param_groups, self._kinds, strict=True):
            group["lr"] = lr * self._settings.lr_multiplier if slow else lr
            learns = self._learns(step, slow, alone)
            for parameter in group["params"]:
                parameter.requires_grad_(learns)

    def _learns(self, step: int, slow: bool, alone: bool) -> bool:
        is_frozen = slow and step < self._settings.freeze_steps
        others_learn_alone = (
            bool(self._settings.warmup_only_modules)
            and not alone
            and step < self._settings.warmup_only_steps
        )
        return not is_frozen and not others_learn_alone


def _parameters(model: nn.Module, parts: tuple[str, ...]) -> set[nn.Parameter]:
    modules: dict[str, nn.Module] = dict(cast(Any, model).named_modules())
    found: set[nn.Parameter] = set()
    for part in parts:
        if part not in modules or not part:
            children = [name for name in modules if name and "." not in name]
            hint = suggest(part, modules, count=3, listing=", ".join(children))
            raise ConfigError(f"{type(model).__name__} has no part {part!r}; {hint}")
        found.update(modules[part].parameters())
    return found
