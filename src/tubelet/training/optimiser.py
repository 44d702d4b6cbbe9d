"""Which parameters learn when, and how fast."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import nn

from tubelet.errors import ConfigError

__all__ = ["Learner", "OptimiserSettings"]


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimiserSettings:
    """Rule of the updates, and parts of the network that learn otherwise than the rest."""

    kind: Literal["adam", "adamw"] = "adam"
    """adamw: weights decay by themselves, not through the gradient."""
    betas: tuple[float, float] = (0.9, 0.99)
    """Decay of the averages of the gradient and of its square."""
    weight_decay: float = 0.0
    """Pull of the weights to zero."""
    slow: tuple[str, ...] = ()
    """Parts with a rate of their own, by their names in the network, for example spynet."""
    slow_factor: float = 1.0
    """Their rate over that of the others."""
    frozen_steps: int = 0
    """So many steps they stay as they are at first."""
    alone: tuple[str, ...] = ()
    """Parts that learn alone at first, by their names in the network."""
    alone_steps: int = 0
    """For so many steps."""

    def __post_init__(self) -> None:
        if not (len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas)) or self.weight_decay < 0:
            raise ConfigError(f"{self}: need two betas of 0 ≤ beta < 1, and weight_decay ≥ 0")
        if self.slow_factor < 0 or self.frozen_steps < 0 or self.alone_steps < 0:
            raise ConfigError("slow_factor, frozen_steps and alone_steps must not be negative")


class Learner:
    """An optimiser whose parameters wait, and move, as the settings say.

    Args:
        model: the network.
        settings: see there.

    Attributes:
        optimiser: a group of parameters for each of the settings' parts.

    Raises:
        ConfigError: a part is not in the network, or nothing would learn.
    """

    def __init__(self, model: nn.Module, settings: OptimiserSettings) -> None:
        self._settings = settings
        slow, alone = _parameters(model, settings.slow), _parameters(model, settings.alone)
        groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
        for parameter in model.parameters():
            groups.setdefault((parameter in slow, parameter in alone), []).append(parameter)
        self._kinds = list(groups)
        for step in (0, settings.frozen_steps, settings.alone_steps):
            if not any(self._learns(step, *kind) for kind in self._kinds):
                raise ConfigError(f"nothing would learn at step {step}: slow and alone leave no other part")
        rule = torch.optim.Adam if settings.kind == "adam" else torch.optim.AdamW
        parameters = [{"params": group} for group in groups.values()]
        self.optimiser = rule(parameters, betas=settings.betas, weight_decay=settings.weight_decay)

    def prepare(self, step: int, lr: float) -> None:
        """Set who learns at a step, and at which rate, before its forward pass."""
        for group, (slow, alone) in zip(self.optimiser.param_groups, self._kinds, strict=True):
            group["lr"] = lr * self._settings.slow_factor if slow else lr
            learns = self._learns(step, slow, alone)
            for parameter in group["params"]:
                parameter.requires_grad_(learns)

    def _learns(self, step: int, slow: bool, alone: bool) -> bool:
        waits = slow and step < self._settings.frozen_steps
        others = bool(self._settings.alone) and not alone and step < self._settings.alone_steps
        return not waits and not others


def _parameters(model: nn.Module, parts: tuple[str, ...]) -> set[nn.Parameter]:
    modules: dict[str, nn.Module] = dict(cast(Any, model).named_modules())
    found: set[nn.Parameter] = set()
    for part in parts:
        if part not in modules or not part:
            children = [name for name in modules if name and "." not in name]
            near = difflib.get_close_matches(part, modules, n=3) or children
            raise ConfigError(f"{type(model).__name__} has no part {part!r}; it has {', '.join(near)}")
        found.update(modules[part].parameters())
    return found
