"""What a model costs: parameters, FLOPs, memory and the time of a frame, measured as the engine runs it.

    models → an Engine each → calls that count FLOPs and memory → timed calls in turns → Report

A model's figures are those of one call of its network, over the frames that this call gives:

    kind     frames in            frames out
    frame    1                    1
    window   2·radius + 1         1
    online   1 + lookahead        1, with the state of the step before
    clip     `frames`             as many

FLOPs follow `torch.utils.flop_counter`: a multiplication and an addition are two. Convolutions, matrix products and
attention count; activations, resampling and warping do not. Papers often print multiply-adds, half as many, as FLOPs.
"""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from tubelet.errors import ConfigError, ResourceError
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
    "run_alone",
]

_CLIP_FRAMES = 16  # for clip models that take any number: the engine's smallest window
_MIN_TIMES = 3  # a median of fewer says nothing
_PROBE_PX = 64
_SIDES_PX = range(8, 16385)
_CHILD = (
    "import sys; from tubelet.evaluation.cost import run_alone; run_alone(sys.argv[1], sys.argv[2])"
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
        if not 1 <= self.runs <= 100_000:
            raise ConfigError(f"runs={self.runs} must be between 1 and 100000")
        if not 0 <= self.warmup <= 100_000:
            raise ConfigError(f"warmup={self.warmup} must be between 0 and 100000")
        if not self.max_seconds > 0:
            raise ConfigError(f"max_seconds={self.max_seconds} must be more than 0")

    @property
    def width(self) -> int:
        """Of the input, pixels."""
        return _parse_size(self.size)[0]

    @property
    def height(self) -> int:
        """Of the input, pixels."""
        return _parse_size(self.size)[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What one model costs.

    Attributes:
        model: its name.
        architecture: class of the network.
        kind: how it sees time, see `tubelet.types.Temporal`.
        scale: factor of the output size.
        precision: number format that it ran in.
        width, height: of the image that the network got, pixels; above the asked size where the network needs that.
        frames_in: frames that a call sees.
        frames_out: frames that a call gives.
        parameters: numbers in the network that training sets.
        flops: of a frame of output.
        peak_bytes: weights, input, state, and the most that lives at once in a call, on the device.
        process_bytes: peak resident set of a process that runs the model alone; None where not asked for.
        times_s: of the timed calls, in their order, each divided by `frames_out`.
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
        """Times of a frame, seconds, below which a tenth and nine tenths of the calls lie."""
        times_s = (
            self.times_s * 2 if len(self.times_s) == 1 else self.times_s
        )  # quantiles asks for two
        deciles = statistics.quantiles(times_s, n=10, method="inclusive")
        return deciles[0], deciles[-1]


@dataclass(frozen=True, slots=True)
class Failure:
    """A model whose measurement ran out of memory.

    Attributes:
        model: its name.
        reason: one line for a user.
    """

    model: str
    reason: str


@dataclass(frozen=True, slots=True)
class CostReport:
    """What `measure_costs` found.

    Attributes:
        machine: where.
        settings: how.
        costs: of the models that could be measured, in the order asked.
        failures: the others.
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
    """Measure models one beside the other: their timed calls take turns, so that a busy moment falls on all.

    Args:
        models: what to measure; a network is moved to the device.
        settings: how to measure.
        on_progress: called whenever something else begins; the label says what.
        cancel: stops the measurement after the call that it is at.

    Raises:
        ConfigError: the device's name or the precision makes no sense for one of the models.
        ResourceError: the device is absent.
        Cancelled: `cancel` was cancelled.
    """
    settings = settings or CostSettings()
    turns = settings.warmup + settings.runs
    ticker = Ticker(on_progress, unit="call", total=len(models) * (1 + turns), cancel=cancel)
    device = resolve_device(settings.device)
    failures: list[Failure] = []

    def sift(subjects: Iterable[_Subject], work: Callable[[_Subject], None]) -> list[_Subject]:
        """Keep those whose work did not run out of memory."""
        done = [(subject, _try(subject, work)) for subject in subjects]
        failures.extend(failure for _, failure in done if failure)
        return [subject for subject, failure in done if not failure]

    def examine(subject: _Subject) -> None:
        _begin(ticker, f"{subject.name}: FLOPs and memory")
        subject.examine()
        ticker.tick()

    def time_once(subject: _Subject, turn: int) -> None:
        subject.take_turn(warm=turn < settings.warmup)
        ticker.tick()

    subjects = [_Subject(model, settings) for model in models]
    subjects = sift(subjects, _Subject.load)
    subjects = sift(subjects, examine)
    for turn in range(turns):
        _begin(ticker, f"timing, turn {turn + 1} of {turns}")
        subjects = sift(subjects, partial(time_once, turn=turn))
    ticker.finish()
    costs = tuple(subject.cost() for subject in subjects)
    return CostReport(describe_machine(device), settings, costs, tuple(failures))


def _begin(ticker: Ticker, label: str) -> None:
    ticker.label = label
    ticker.report()


class _Subject:
    """A model under measurement: its engine, its input, its state, and its figures so far."""

    def __init__(self, model: OpenedModel, settings: CostSettings) -> None:
        self.name = model.name
        self.spec = model.spec
        self._model = model.network
        self._settings = settings
        self.device = resolve_device(settings.device)
        self.height, self.width = padded_size(settings.height, settings.width, self.spec.contract)
        self._frames_in = _frames_in(self.spec.temporal, settings.frames)
        self._frames_out = 0
        self._hidden: tuple[Tensor, ...] | None = None
        self._flops = self._peak_bytes = 0
        self._process_bytes: int | None = None
        self._times_s: list[float] = []
        self._spent_s = 0.0

    def load(self) -> None:
        """Move the network to the device."""
        precision = resolve_precision(self._settings.precision, self.spec, self.device)
        self._runner = TorchRunner(
            self._model, self.spec.contract, device=self.device, precision=precision
        )

    def examine(self) -> None:
        """Count FLOPs and memory of a call that has a state already."""
        self._refuse_hopeless()
        self._lq = self._noise(self.height, self.width)
        self._call()
        self._flops = count_flops(self._model, self._call)
        resident = [*all_tensors(self._model), self._lq, *(self._hidden or ())]
        self._peak_bytes = sum(tensor.nbytes for tensor in resident) + peak_bytes(
            self._call, self.device
        )
        if self._settings.process_memory:
            self._process_bytes = _process_bytes(self.name, self._settings)

    def take_turn(self, *, warm: bool) -> None:
        """Time one call, unless this model had its share of time."""
        least = 0 if warm else _MIN_TIMES
        if self._spent_s > self._settings.max_seconds and len(self._times_s) >= least:
            return
        _synchronize(self.device)
        start_s = time.perf_counter()
        self._call()
        _synchronize(self.device)
        call_s = time.perf_counter() - start_s
        self._spent_s += call_s
        if not warm:
            self._times_s.append(call_s / self._frames_out)

    def cost(self) -> Cost:
        """Sum up."""
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

    def run(self, calls: int) -> None:
        """Call the network, with nothing measured."""
        self._lq = self._noise(self.height, self.width)
        for _ in range(calls):
            self._call()

    def _call(self) -> None:
        sr, self._hidden = self._run(self._lq, self._hidden)
        self._frames_out = sr.shape[1]

    @torch.no_grad()
    def _run(
        self, lq: Tensor, hidden: tuple[Tensor, ...] | None
    ) -> tuple[Tensor, tuple[Tensor, ...] | None]:
        return self._runner.call(lq, hidden)

    def _noise(self, height: int, width: int) -> Tensor:
        lq = torch.rand(
            1, self._frames_in, 3, height, width, generator=torch.Generator().manual_seed(0)
        )
        return lq.to(self.device)

    def _refuse_hopeless(self) -> None:
        """Refuse a call that a small image foretells not to fit: systems kill processes rather than say no."""
        height, width = padded_size(_PROBE_PX, _PROBE_PX, self.spec.contract)
        area = self.height * self.width / (height * width)
        if self.device.type == "cuda" or area <= 1:
            return
        lq = self._noise(height, width)
        hidden = self._run(lq, None)[1]
        with use_backend(self._model, "winograd"):
            needed = area * peak_tensor_bytes(lambda: self._run(lq, hidden))
        free = free_bytes(self.device)
        if needed > free:
            raise ResourceError(
                f"a call needs about {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free"
            )


def run_alone(name: str, settings: str) -> None:
    """Run a model in this process, and print the most memory that the process had, in bytes.

    Args:
        name: for `open_model`.
        settings: fields of `CostSettings` as JSON.
    """
    subject = _Subject(open_model(name), CostSettings(**json.loads(settings)))
    subject.load()
    subject.run(_MIN_TIMES)
    sys.stdout.write(f"{peak_resident_bytes()}\n")


def _try(subject: _Subject, work: Callable[[_Subject], None]) -> Failure | None:
    """Do the work; where memory runs out, say so instead of raising."""
    try:
        work(subject)
    except (RuntimeError, MemoryError, ResourceError) as error:
        if isinstance(error, ResourceError):
            reason = str(error)
        elif is_out_of_memory(error):
            reason = ". ".join(
                " ".join(str(error).split()).split(". ")[:2]
            )  # torch goes on about its settings
        else:
            raise
    else:
        return None
    if (
        subject.device.type == "cuda"
    ):  # outside of the handler: the traceback would hold the tensors
        torch.cuda.empty_cache()
    return Failure(
        subject.name,
        f"memory does not suffice for {subject.width}x{subject.height}: {reason}; try a smaller --size",
    )


def _parse_size(size: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d{1,6})[x×](\d{1,6})", size.strip().lower())
    sides = (int(found[1]), int(found[2])) if found else ()
    if not sides or any(side not in _SIDES_PX for side in sides):
        limits = f"{_SIDES_PX.start} to {_SIDES_PX.stop - 1}"
        raise ConfigError(
            f"size={size!r} must be width x height in pixels, {limits} each, for example 320x180"
        )
    return sides[0], sides[1]


def _frames_in(temporal: Temporal, asked: int | None) -> int:
    if temporal.kind == "clip":
        most = temporal.window_frames or asked or _CLIP_FRAMES
        return min(asked or most, most)
    return 1 + 2 * temporal.radius + temporal.lookahead


def _process_bytes(name: str, settings: CostSettings) -> int:
    """Run a model in a process of its own: the most memory that it had.

    Raises:
        ResourceError: the process did not come to its end.
    """
    child = [sys.executable, "-c", _CHILD, name, json.dumps(asdict(settings))]
    done = subprocess.run(child, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["killed"])[-1]
        raise ResourceError(f"its own process ended with {done.returncode} ({last})")
    return int(done.stdout.split()[-1])


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
