"""The optimizer and its parameter groups: when parameters are trained, and how fast."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast

import torch
from torch import nn

from tubelet.errors import ConfigError, require, suggest

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
    """Modules that are trained first, while all others are frozen, by their names in the
    network."""
    warmup_only_steps: int = 0
    """Steps at the start during which only warmup_only_modules are trained."""

    def __post_init__(self) -> None:
        require(len(self.betas) == 2, f"betas={self.betas} must be two numbers")
        are_decay_rates = all(0 <= beta < 1 for beta in self.betas)
        require(are_decay_rates, f"betas={self.betas} must be at least 0 and below 1")
        for name in ("weight_decay", "lr_multiplier", "freeze_steps", "warmup_only_steps"):
            value = getattr(self, name)
            if value < 0:
                raise ConfigError(f"{name}={value} must not be negative")


@dataclass(frozen=True, slots=True)
class _Group:
    """Key of a parameter group: its parameters share their learning rate and frozen steps."""

    has_low_lr: bool
    """Whether they belong to `low_lr_modules`."""
    is_warmup_only: bool
    """Whether they belong to `warmup_only_modules`."""

    def is_trained(self, step: int, settings: OptimizerSettings) -> bool:
        """Return whether the parameters are trained at a step."""
        if self.has_low_lr and step < settings.freeze_steps:
            return False
        # Without such modules there is no warm-up, whatever its length.
        has_warmup = bool(settings.warmup_only_modules)
        is_warmup = has_warmup and step < settings.warmup_only_steps
        return self.is_warmup_only or not is_warmup


class ParameterGroups:
    """The parameters of a network in groups, and their optimizer.

    Parameters are grouped by their learning rate and by the steps in which they are trained.

    Args:
        model: Network to train.
        settings: Settings of the optimizer.

    Attributes:
        optimizer: Optimizer with one parameter group for each combination of low learning rate and
            warm-up that occurs in the network.

    Raises:
        ConfigError: The network lacks a module that the settings name, or nothing would be trained.
    """

    def __init__(self, model: nn.Module, settings: OptimizerSettings) -> None:
        self._settings = settings
        low_lr = _parameters_of(model, settings.low_lr_modules)
        warmup_only = _parameters_of(model, settings.warmup_only_modules)
        parameters: dict[_Group, list[nn.Parameter]] = {}
        for parameter in model.parameters():
            group = _Group(parameter in low_lr, parameter in warmup_only)
            parameters.setdefault(group, []).append(parameter)
        # In the order of the optimizer's groups.
        self._groups = list(parameters)

        # The set of trained groups only changes at these steps.
        for step in (0, settings.freeze_steps, settings.warmup_only_steps):
            if not any(group.is_trained(step, settings) for group in self._groups):
                raise ConfigError(
                    f"no module would be trained at step {step}: "
                    "low_lr_modules and warmup_only_modules leave no other"
                )

        optimizer_class = torch.optim.Adam if settings.kind == "adam" else torch.optim.AdamW
        self.optimizer = optimizer_class(
            [{"params": group} for group in parameters.values()],
            betas=settings.betas,
            weight_decay=settings.weight_decay,
        )

    def prepare(self, step: int, lr: float) -> None:
        """Set the learning rate of each group, and freeze those that are not trained.

        Args:
            step: Step whose forward pass follows.
            lr: Learning rate of the schedule at this step.
        """
        groups = zip(self._groups, self.optimizer.param_groups, strict=True)
        for group, optimizer_group in groups:
            group_lr = lr
            if group.has_low_lr:
                group_lr = lr * self._settings.lr_multiplier
            optimizer_group["lr"] = group_lr
            # A frozen parameter has no gradient, and the optimizer skips it.
            is_trained = group.is_trained(step, self._settings)
            for parameter in optimizer_group["params"]:
                parameter.requires_grad_(is_trained)


def _parameters_of(model: nn.Module, names: tuple[str, ...]) -> set[nn.Parameter]:
    """Return the parameters of the modules with the given names."""
    modules: dict[str, nn.Module] = dict(cast(Any, model).named_modules())
    parameters: set[nn.Parameter] = set()
    for name in names:
        # "" is the name of the network itself.
        if not name or name not in modules:
            children = [child for child in modules if child and "." not in child]
            hint = suggest(
                name,
                modules,
                count=3,
                listing=", ".join(children),
            )
            raise ConfigError(f"{type(model).__name__} has no module {name!r}; {hint}")
        parameters.update(modules[name].parameters())
    return parameters
