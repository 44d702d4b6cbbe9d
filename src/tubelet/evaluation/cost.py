"""Cost of a model: parameters, FLOPs, memory and the time of a frame, as the engine runs it.

    models → an Engine each → calls that count FLOPs and memory → timed calls in turns → Report

The cost of a model is that of one call of its network, divided by the frames of output:

    kind     frames of input      frames of output
    frame    1                    1
    window   2·radius + 1         1
    online   1 + lookahead        1, with the state of the previous step
    clip     `frames`             as many

FLOPs follow `torch.utils.flop_counter`: a multiplication and an addition are two. Convolutions,
matrix products and attention are counted; activations, resampling and warping are not. Papers often
print multiply-adds, half as many, as FLOPs.
"""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from tubelet.errors import ConfigError, ResourceError, require
from tubelet.evaluation.counting import count_flops, peak_bytes
from tubelet.evaluation.machine import Machine, describe_machine, peak_resident_bytes
from tubelet.layers.frozen import all_tensors
from tubelet.layers.inference import use_backend
from tubelet.progress import CancelToken, OnProgress, Ticker
from tubelet.restore.device import resolve_device, resolve_precision
from tubelet.restore.memory import free_bytes, is_out_of_memory, peak_tensor_bytes
from tubelet.restore.runner import TorchRunner
from tubelet.restore.tiles import padded_size
from tubelet.types import Precision, Temporal
from tubelet.zoo.opening import OpenedModel, open_model
from tubelet.zoo.spec import count_parameters

__all__ = [
    "Cost",
    "CostReport",
    "CostSettings",
    "Failure",
    "measure_costs",
    "print_process_memory",
]

_CLIP_FRAMES = 16
"""Frames of a clip model that takes any number: the engine's smallest window."""
_MIN_TIMES = 3
"""Timed calls of a slow model; the median of fewer would not be reliable."""
_PROBE_PX = 64
_SIDES_PX = range(8, 16385)
_CHILD_CODE = (
    "import sys; from tubelet.evaluation.cost import print_process_memory; "
    "print_process_memory(sys.argv[1], sys.argv[2])"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CostSettings:
    """Settings of a cost measurement."""

    size: str = "320x180"
    """Width and height of the input in pixels. 320x180 is the size in the tables of papers."""
    frames: int | None = None
    """Frames per call of a clip model, 1 to 1000, limited by the window of the model. Default:
    the window of the model, or 16."""
    device: str = "auto"
    """Device that runs the model: auto, cpu, cuda, cuda:1 or mps. auto: the GPU if there is one."""
    precision: Precision | Literal["auto"] = "auto"
    """Floating-point format of the model. auto: fp16 on a CUDA GPU or bf16 on a CPU with fast
    bf16, where the model allows it; otherwise fp32."""
    runs: int = 30
    """Timed calls of each model."""
    warmup: int = 3
    """Calls of each model before the timed ones."""
    max_seconds: float = 60.0
    """Stop timing a model after this many seconds, once it has 3 timed calls."""
    process_memory: bool = False
    """Also run each model in a separate process and report its peak memory (resident set)."""

    def __post_init__(self) -> None:
        _parse_size(self.size)
        if self.frames is not None and not 1 <= self.frames <= 1000:
            raise ConfigError(f"frames={self.frames} must be between 1 and 1000")
        require(1 <= self.runs <= 100_000, f"runs={self.runs} must be between 1 and 100000")
        require(0 <= self.warmup <= 100_000, f"warmup={self.warmup} must be between 0 and 100000")
        require(self.max_seconds > 0, f"max_seconds={self.max_seconds} must be more than 0")

    @property
    def width(self) -> int:
        """Width of the input, pixels."""
        return _parse_size(self.size)[0]

    @property
    def height(self) -> int:
        """Height of the input, pixels."""
        return _parse_size(self.size)[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Cost of one model.

    Attributes:
        model: Name of the model.
        architecture: Class of the network.
        kind: Temporal kind of the network, see `tubelet.types.Temporal`.
        scale: Upscaling factor.
        precision: Number format that it ran in.
        width, height: Size of the network's input, pixels; larger than requested if the network
            needs a multiple of some size.
        frames_in: Frames of input per call.
        frames_out: Frames of output per call.
        parameters: Number of trained parameters.
        flops: FLOPs per frame of output.
        peak_bytes: Memory on the device: weights, input, state, and the peak inside a call.
        process_bytes: Peak resident set of a process that runs only this model; None if it was not
            requested.
        times_s: Times of the timed calls in their order, divided by `frames_out`.
    """

    model: str
    architecture: str
    kind: str
    scale: int
    precision: Precision
    width: int
    height: int
    frames_in: int
    frames_out: int
    parameters: int
    flops: float
    peak_bytes: int
    process_bytes: int | None
    times_s: tuple[float, ...]

    @property
    def median_s(self) -> float:
        """Median time of a frame, seconds."""
        return statistics.median(self.times_s)

    @property
    def spread_s(self) -> tuple[float, float]:
        """10th and 90th percentile of the time of a frame, seconds."""
        times_s = self.times_s
        if len(times_s) == 1:
            # `quantiles` needs two values.
            times_s = times_s * 2
        deciles = statistics.quantiles(times_s, n=10, method="inclusive")
        return deciles[0], deciles[-1]


@dataclass(frozen=True, slots=True)
class Failure:
    """A model that could not be measured because memory ran out.

    Attributes:
        model: Name of the model.
        reason: One line for a user.
    """

    model: str
    reason: str


@dataclass(frozen=True, slots=True)
class CostReport:
    """Costs of several models, and the conditions of the measurement.

    Attributes:
        machine: Machine of the measurement.
        settings: Settings of the measurement.
        costs: Costs of the models that could be measured, in the requested order.
        failures: The other models.
    """

    machine: Machine
    settings: CostSettings
    costs: tuple[Cost, ...]
    failures: tuple[Failure, ...]


def measure_costs(
    models: Sequence[OpenedModel],
    settings: CostSettings | None = None,
    *,
    on_progress: OnProgress | None = None,
    cancel: CancelToken | None = None,
) -> CostReport:
    """Measure the costs of models, whose timed calls take turns.

    So a moment in which the machine is busy affects all models alike.

    Args:
        models: Models to measure; their networks are moved to the device.
        settings: Settings of the measurement.
        on_progress: Called at the start of each stage, which the label names.
        cancel: Stops the measurement after the current call.

    Raises:
        ConfigError: The device's name or the precision is not valid for one of the models.
        ResourceError: The device is absent.
        Cancelled: `cancel` was cancelled.
    """
    settings = settings or CostSettings()
    device = resolve_device(settings.device)
    num_turns = settings.warmup + settings.runs
    ticker = Ticker(
        on_progress,
        unit="call",
        total=len(models) * (1 + num_turns),
        cancel=cancel,
    )
    group = _Group(models, settings)

    def count(measurement: _Measurement) -> None:
        ticker.label = f"{measurement.name}: FLOPs and memory"
        ticker.report()
        measurement.count()
        ticker.tick()

    def time_call(measurement: _Measurement, *, warmup: bool) -> None:
        measurement.time_call(warmup=warmup)
        ticker.tick()

    # A model that runs out of memory in a stage takes no part in the later ones.
    group.run(_Measurement.load)
    group.run(count)
    for turn in range(num_turns):
        ticker.label = f"timing, turn {turn + 1} of {num_turns}"
        ticker.report()
        group.run(partial(time_call, warmup=turn < settings.warmup))
    ticker.finish()
    return CostReport(
        machine=describe_machine(device),
        settings=settings,
        costs=tuple(measurement.cost() for measurement in group.measurements),
        failures=tuple(group.failures),
    )


class _Measurement:
    """Measurement of one model: its network, input and state, and the numbers so far."""

    def __init__(self, model: OpenedModel, settings: CostSettings) -> None:
        self.name = model.name
        self.spec = model.spec
        self.device = resolve_device(settings.device)
        self.height, self.width = padded_size(settings.height, settings.width, self.spec.contract)
        self._model = model.network
        self._settings = settings
        self._frames_in = _num_input_frames(self.spec.temporal, settings.frames)
        self._frames_out = 0
        self._hidden: tuple[Tensor, ...] | None = None
        self._flops = 0
        self._peak_bytes = 0
        self._process_bytes: int | None = None
        self._times_s: list[float] = []
        self._spent_s = 0.0

    def load(self) -> None:
        """Move the network to the device.

        Raises:
            ConfigError, ResourceError: The network cannot run in the precision.
        """
        precision = resolve_precision(self._settings.precision, self.spec, self.device)
        self._runner = TorchRunner(
            self._model,
            self.spec.contract,
            device=self.device,
            precision=precision,
        )

    def count(self) -> None:
        """Count the FLOPs and memory of a call.

        Raises:
            ResourceError: Memory does not suffice.
        """
        self._check_memory()
        self._lq = self._random_input(self.height, self.width)
        # The first call of an online model has no state yet; the second one is measured.
        self._call()
        self._flops = count_flops(self._model, self._call)
        # Memory that stays between calls, and the peak inside a call on top of it.
        resident = [*all_tensors(self._model), self._lq, *(self._hidden or ())]
        resident_bytes = sum(tensor.nbytes for tensor in resident)
        self._peak_bytes = resident_bytes + peak_bytes(self._call, self.device)
        if self._settings.process_memory:
            self._process_bytes = _measure_process_bytes(self.name, self._settings)

    def time_call(self, *, warmup: bool) -> None:
        """Time one call, unless this model has used up its time.

        Args:
            warmup: Whether the time is only counted towards the limit.
        """
        min_times = 0 if warmup else _MIN_TIMES
        time_is_up = self._spent_s > self._settings.max_seconds
        if time_is_up and len(self._times_s) >= min_times:
            return
        # GPUs run asynchronously: wait for earlier work, and for that of the call.
        _synchronize(self.device)
        started_s = time.perf_counter()
        self._call()
        _synchronize(self.device)
        call_s = time.perf_counter() - started_s
        self._spent_s += call_s
        if not warmup:
            self._times_s.append(call_s / self._frames_out)

    def run(self, calls: int) -> None:
        """Call the network without measuring."""
        self._lq = self._random_input(self.height, self.width)
        for _ in range(calls):
            self._call()

    def cost(self) -> Cost:
        """Summarize the measurement."""
        return Cost(
            model=self.name,
            architecture=self.spec.architecture,
            kind=self.spec.temporal.kind,
            scale=self.spec.scale,
            precision=self._runner.precision,
            width=self.width,
            height=self.height,
            frames_in=self._frames_in,
            frames_out=self._frames_out,
            parameters=count_parameters(self._model),
            flops=self._flops / self._frames_out,
            peak_bytes=self._peak_bytes,
            process_bytes=self._process_bytes,
            times_s=tuple(self._times_s),
        )

    def _call(self) -> None:
        sr, self._hidden = self._run_network(self._lq, self._hidden)
        self._frames_out = sr.shape[1]

    @torch.no_grad()
    def _run_network(
        self,
        lq: Tensor,
        hidden: tuple[Tensor, ...] | None,
    ) -> tuple[Tensor, tuple[Tensor, ...] | None]:
        return self._runner.call(lq, hidden)

    def _random_input(self, height: int, width: int) -> Tensor:
        """Create an input, (1, T, 3, H, W); drawn on the CPU, so that it is the same everywhere."""
        generator = torch.Generator().manual_seed(0)
        lq = torch.rand(1, self._frames_in, 3, height, width, generator=generator)
        return lq.to(self.device)

    def _check_memory(self) -> None:
        """Estimate the memory of a call on the CPU from a call with a small image.

        Operating systems end a process that needs too much memory, without an error to catch.

        Raises:
            ResourceError: Memory does not suffice.
        """
        height, width = padded_size(_PROBE_PX, _PROBE_PX, self.spec.contract)
        area_ratio = self.height * self.width / (height * width)
        if self.device.type == "cuda" or area_ratio <= 1:
            return
        lq = self._random_input(height, width)
        # With the state of a first call, as in all later ones.
        hidden = self._run_network(lq, None)[1]
        with use_backend(self._model, "winograd"):
            probe_bytes = peak_tensor_bytes(lambda: self._run_network(lq, hidden))
        needed_bytes = area_ratio * probe_bytes
        available_bytes = free_bytes(self.device)
        if needed_bytes > available_bytes:
            raise ResourceError(
                f"a call needs about {needed_bytes / 1e9:.1f} GB, "
                f"and {available_bytes / 1e9:.1f} GB are free"
            )


class _Group:
    """Models that are measured together; one that runs out of memory leaves the group.

    Attributes:
        measurements: The models that can still be measured.
        failures: The models that left.
    """

    def __init__(
        self,
        models: Sequence[OpenedModel],
        settings: CostSettings,
    ) -> None:
        self.measurements = [_Measurement(model, settings) for model in models]
        self.failures: list[Failure] = []

    def run(self, stage: Callable[[_Measurement], None]) -> None:
        """Run a stage of the measurement for each model in the group."""
        remaining: list[_Measurement] = []
        for measurement in self.measurements:
            failure = _run_stage(measurement, stage)
            if failure is None:
                remaining.append(measurement)
            else:
                self.failures.append(failure)
        self.measurements = remaining


def _run_stage(
    measurement: _Measurement,
    stage: Callable[[_Measurement], None],
) -> Failure | None:
    """Run a stage of the measurement; return a failure if memory runs out."""
    try:
        stage(measurement)
    except ResourceError as error:
        reason = str(error)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        # The first two sentences; torch continues with advice on its settings.
        sentences = " ".join(str(error).split()).split(". ")
        reason = ". ".join(sentences[:2])
    else:
        return None
    # Not inside the handler, where the traceback still holds the tensors of the call.
    if measurement.device.type == "cuda":
        torch.cuda.empty_cache()
    return Failure(
        measurement.name,
        f"memory does not suffice for {measurement.width}x{measurement.height}: {reason}; "
        "try a smaller --size",
    )


def print_process_memory(name: str, settings: str) -> None:
    """Run a model in this process, and print the peak memory of the process in bytes.

    Args:
        name: Name of the model, as for `open_model`.
        settings: Fields of `CostSettings` as JSON.
    """
    measurement = _Measurement(open_model(name), CostSettings(**json.loads(settings)))
    measurement.load()
    measurement.run(_MIN_TIMES)
    sys.stdout.write(f"{peak_resident_bytes()}\n")


def _measure_process_bytes(name: str, settings: CostSettings) -> int:
    """Run a model in a separate process, and return the peak memory of that process.

    Raises:
        ResourceError: The process failed.
    """
    command = [sys.executable, "-c", _CHILD_CODE, name, json.dumps(asdict(settings))]
    child = subprocess.run(command, check=False, capture_output=True, text=True)
    if child.returncode != 0:
        error_lines = child.stderr.strip().splitlines() or ["killed"]
        raise ResourceError(
            f"its separate process ended with {child.returncode} ({error_lines[-1]})"
        )
    # Libraries may print before.
    return int(child.stdout.split()[-1])


def _parse_size(size: str) -> tuple[int, int]:
    """Read "WIDTHxHEIGHT".

    Raises:
        ConfigError: It is not of this form, or a side is out of range.
    """
    match = re.fullmatch(r"(\d{1,6})[x×](\d{1,6})", size.strip().lower())
    if match is not None:
        width = int(match[1])
        height = int(match[2])
        if width in _SIDES_PX and height in _SIDES_PX:
            return width, height
    raise ConfigError(
        f"size={size!r} must be width x height in pixels, "
        f"{_SIDES_PX.start} to {_SIDES_PX.stop - 1} each, for example 320x180"
    )


def _num_input_frames(temporal: Temporal, requested: int | None) -> int:
    """Compute the number of input frames of a call.

    Args:
        temporal: Temporal properties of the model.
        requested: Frames for a clip model, limited to its window; None is its window.
    """
    if temporal.kind != "clip":
        return 1 + 2 * temporal.radius + temporal.lookahead
    window_frames = temporal.window_frames
    if not window_frames:
        # The model takes a scene of any length.
        return requested or _CLIP_FRAMES
    return min(requested or window_frames, window_frames)


def _synchronize(device: torch.device) -> None:
    """Wait for the operations of a GPU, which run asynchronously."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
