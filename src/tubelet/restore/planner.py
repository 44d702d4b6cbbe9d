"""Make plans for a model: from its measured memory, and from the memory that is free."""

from __future__ import annotations

import torch

from tubelet.restore.device import resolve_device, resolve_precision
from tubelet.restore.memory import measure_budget
from tubelet.restore.plan import MemoryCost, Plan, plan_restoration
from tubelet.restore.rate import require_space_time
from tubelet.restore.runner import Runner
from tubelet.restore.settings import UpscaleSettings
from tubelet.types import Precision
from tubelet.zoo.spec import ModelSpec

__all__ = ["Planner"]


class Planner:
    """Plans restorations with one model, as the settings say.

    Args:
        spec: the model's entry in the zoo.
        settings: scale, height, fps, device, precision, tile and memory are used.

    Attributes:
        device: where the model is to run.
        precision: number format there.

    Raises:
        ConfigError: the device's name, the precision or the frame rate does not fit this model.
        ResourceError: the device is absent.
    """

    def __init__(self, spec: ModelSpec, settings: UpscaleSettings) -> None:
        if settings.fps:
            require_space_time(spec, settings.fps)
        self.device = resolve_device(settings.device)
        self.precision: Precision = resolve_precision(settings.precision, spec, self.device)
        self._spec = spec
        self._settings = settings
        self._cost: MemoryCost | None = None

    def plan(self, height: int, width: int, runner: Runner) -> Plan:
        """Plan the restoration of frames of one size, for the memory that is free now.

        Args:
            height: of the input, pixels.
            width: of the input, pixels.
            runner: is measured, once.
        """
        if self._cost is None:
            self._cost = self._measure(runner)
        cpu = torch.device("cpu")
        return plan_restoration(
            height,
            width,
            self._spec.contract,
            self._settings,
            budget=measure_budget(self.device, self._settings.memory),
            cost=self._cost,
            device=str(self.device),
            precision=self.precision,
            cpu_precision=resolve_precision("auto", self._spec, cpu),
        )

    def _measure(self, runner: Runner) -> MemoryCost:
        """Measure the model, unless settings and contract leave nothing to decide."""
        contract = self._spec.contract
        is_clip = contract.temporal.kind == "clip"
        decides_window = is_clip and not contract.temporal.window_frames
        if self._settings.tile is None or decides_window or contract.encodes:
            return runner.memory_cost()
        return MemoryCost(call_bytes_per_px=None)
