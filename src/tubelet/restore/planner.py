"""Make plans for a model from its measured memory use and the memory that is free."""

from __future__ import annotations

import torch

from tubelet.errors import ConfigError
from tubelet.restore.device import resolve_device, resolve_precision
from tubelet.restore.memory import measure_budget
from tubelet.restore.plan import MemoryCost, Plan, plan_restoration
from tubelet.restore.rate import require_space_time
from tubelet.restore.runner import Runner
from tubelet.restore.settings import UpscaleSettings
from tubelet.restore.tiles import output_size
from tubelet.types import Precision
from tubelet.zoo.spec import ModelSpec

__all__ = ["Planner", "check_plan"]


class Planner:
    """Plans restorations with one model under fixed settings.

    Args:
        spec: Entry of the model in the zoo.
        settings: Settings, of which scale, height, fps, device, precision, tile and memory are
            used.

    Attributes:
        device: Device on which the model is to run.
        precision: Number format on that device.

    Raises:
        ConfigError: The device name, the precision or the frame rate does not fit this model.
        ResourceError: The device is not available.
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
        """Plan the restoration of frames of one size within the memory that is free now.

        Args:
            height: Height of the input, pixels.
            width: Width of the input, pixels.
            runner: Runner of the model. Its memory use is measured at the first call, and holds
                for all sizes.
        """
        if self._cost is None:
            self._cost = self._measure_cost(runner)
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

    def _measure_cost(self, runner: Runner) -> MemoryCost:
        """Measure the memory use of the model, if the plan depends on it.

        A measurement takes up to several seconds.
        """
        contract = self._spec.contract
        is_clip = contract.temporal.kind == "clip"
        needs_tile = self._settings.tile is None
        needs_window = is_clip and not contract.temporal.window_frames
        # Models that encode frames: the plan decides whether the encodings are cached.
        if needs_tile or needs_window or contract.encodes:
            return runner.memory_cost()
        return MemoryCost(call_bytes_per_px=None)


def check_plan(
    plan: Plan,
    spec: ModelSpec,
    settings: UpscaleSettings,
    width: int,
    height: int,
) -> None:
    """Check that an existing plan fits this input, model and machine, and agrees with the settings.

    Args:
        plan: Plan to be followed.
        spec: Entry of the model in the zoo.
        settings: Settings of the run. Those left at their defaults agree with any plan.
        width: Width of the input, pixels.
        height: Height of the input, pixels.

    Raises:
        ConfigError: The plan does not fit; the message names the contradiction.
        ResourceError: The device of the plan is not available.
    """
    if (plan.width, plan.height) != (width, height):
        raise ConfigError(
            f"the plan is for {plan.width}x{plan.height}, but the input is {width}x{height}; "
            "make one for this input with --dry-run --json"
        )
    if plan.contract != spec.contract:
        raise ConfigError(
            f"the plan was not made for the model {spec.id}: their contracts differ; "
            "use the model of the plan, or make a plan for this one with --dry-run --json"
        )
    # Raises an error if this machine does not have the device.
    resolve_device(plan.device)
    contradictions = _contradictions(plan, spec, settings)
    if contradictions:
        name = contradictions[0]
        raise ConfigError(
            f"{name}={getattr(settings, name)} contradicts the plan; "
            "leave it out, or make a plan with it"
        )


def _contradictions(plan: Plan, spec: ModelSpec, settings: UpscaleSettings) -> list[str]:
    """List the settings that differ from the plan; settings at their defaults never do."""
    # The plan stores the output size, not the scale or height from which it follows.
    size = output_size(
        plan.width,
        plan.height,
        native=spec.scale,
        scale=settings.scale,
        target_height=settings.height,
    )
    differs = {
        "scale": settings.scale is not None and size != plan.output,
        "height": settings.height is not None and size != plan.output,
        "fps": settings.fps is not None and not plan.doubles_rate,
        "tile": settings.tile not in (None, plan.requested_tile_px),
        "precision": settings.precision not in ("auto", plan.precision),
    }
    if settings.device != "auto":
        differs["device"] = str(resolve_device(settings.device)) != plan.device
    if settings.memory is not None:
        memory_bytes = int(settings.memory * 2**30)
        differs["memory"] = memory_bytes != plan.budget.device_bytes
    return [name for name, is_different in differs.items() if is_different]
