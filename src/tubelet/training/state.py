"""The checkpoint of a training run: everything that a step changes, for an exact resume."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import nn

from tubelet.errors import CheckpointError
from tubelet.field_names import current_path
from tubelet.files import atomic_write
from tubelet.training.settings import LoopSettings, result_settings

__all__ = ["TrainingState", "check_same_run"]


@dataclass(frozen=True, slots=True)
class TrainingState:
    """What a run saves and resumes.

    Attributes:
        path: of the file.
        model: the network that learns.
        average: the moving average of its weights.
        optimizer: with its moments.
        settings: of the loop; a file of a run with others is refused.
    """

    path: Path
    model: nn.Module
    average: nn.Module
    optimizer: torch.optim.Optimizer
    settings: LoopSettings

    def save(self, step: int) -> None:
        """Write the state after so many steps."""
        state = {
            "step": step,
            "settings": result_settings(self.settings),
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        with atomic_write(self.path) as part:
            torch.save(state, part)

    def resume(self) -> int:
        """Load the file if there is one, and return the step to go on with.

        Raises:
            CheckpointError: it is damaged, or of a run with other settings or of another model.
        """
        if not self.path.is_file():
            return 0
        state = self._read()
        # A file of an older version has other names, and lacks the newer settings.
        written = {
            current_path(LoopSettings, name, quiet=True): value
            for name, value in state["settings"].items()
        }
        before = result_settings(LoopSettings()) | written
        check_same_run(self.path, before, result_settings(self.settings))
        try:
            self.model.load_state_dict(state["model"])
            self.average.load_state_dict(state["average"])
        except RuntimeError as error:
            raise CheckpointError(
                f"{self.path} holds another model; name another output folder"
            ) from error
        self.optimizer.load_state_dict(state.get("optimizer") or state["optimiser"])
        return int(state["step"])

    def _read(self) -> dict[str, Any]:
        try:
            return torch.load(self.path, weights_only=True, map_location=self.settings.device)
        except (RuntimeError, EOFError, LookupError, UnpicklingError) as error:
            raise CheckpointError(
                f"{self.path} is damaged; delete it to begin anew, or name another output folder"
            ) from error


def check_same_run(where: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Check that the run in a folder or file has the settings of this run.

    Raises:
        CheckpointError: one of them differs.
    """
    for name, value in now.items():
        if before.get(name) != value:
            raise CheckpointError(
                f"{where} is of a run with {name}={before.get(name)}, not {name}={value}; name another output folder"
            )
