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
    """The state of a run that is saved and resumed.

    Attributes:
        path: Path of the checkpoint.
        model: Network that is trained.
        average: Moving average of its weights.
        optimizer: Optimizer with its moments.
        settings: Settings of the loop; the checkpoint of a run with other settings is refused.
    """

    path: Path
    model: nn.Module
    average: nn.Module
    optimizer: torch.optim.Optimizer
    settings: LoopSettings

    def save(self, step: int) -> None:
        """Write the state after a number of steps."""
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
        """Load the checkpoint if there is one, and return the next step.

        Raises:
            CheckpointError: The checkpoint is damaged, or of a run with other settings or another
                model.
        """
        if not self.path.is_file():
            return 0
        state = self._read()

        # A checkpoint of an older version uses former names, and lacks settings that were added.
        saved_settings = result_settings(LoopSettings())
        for name, value in state["settings"].items():
            saved_settings[current_path(LoopSettings, name, quiet=True)] = value
        check_same_run(self.path, saved_settings, result_settings(self.settings))

        try:
            self.model.load_state_dict(state["model"])
            self.average.load_state_dict(state["average"])
        except RuntimeError as error:
            raise CheckpointError(
                f"{self.path} holds another model; name another output folder"
            ) from error
        # Version 0.1 wrote "optimiser".
        self.optimizer.load_state_dict(state.get("optimizer") or state["optimiser"])
        return int(state["step"])

    def _read(self) -> dict[str, Any]:
        try:
            return torch.load(self.path, weights_only=True, map_location=self.settings.device)
        except (RuntimeError, EOFError, LookupError, UnpicklingError) as error:
            raise CheckpointError(
                f"{self.path} is damaged; delete it to begin anew, or name another output folder"
            ) from error


def check_same_run(
    where: Path,
    before: Mapping[str, Any],
    now: Mapping[str, Any],
) -> None:
    """Check that the run in a folder or file has the settings of this run.

    Args:
        where: Folder or file, for the message.
        before: Settings of the run that wrote it.
        now: Settings of this run.

    Raises:
        CheckpointError: A setting differs.
    """
    for name, value in now.items():
        saved_value = before.get(name)
        if saved_value != value:
            raise CheckpointError(
                f"{where} is of a run with {name}={saved_value}, not {name}={value}; "
                "name another output folder"
            )
