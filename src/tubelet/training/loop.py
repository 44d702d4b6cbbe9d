"""Train a model: schedule, gradient clipping, EMA, exact resume, TensorBoard and JSON lines.

A batch is a function of its step, and a checkpoint holds all else that changes (weights, EMA, optimiser, step), so a
run that was killed goes on to the same numbers as one that was not.
"""

from __future__ import annotations

import copy
import itertools
import json
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tubelet.errors import CheckpointError, ConfigError
from tubelet.losses import LOSSES, LossName, charbonnier, luma
from tubelet.training.optimiser import Learner, OptimiserSettings
from tubelet.training.recompute import Recompute
from tubelet.training.schedule import ScheduleSettings, learning_rate

__all__ = ["Criterion", "LoopSettings", "pixel_loss", "train"]

Batches = Callable[[int], tuple[Tensor, Tensor]]
Evaluate = Callable[[nn.Module], dict[str, float]]
Log = Callable[[dict[str, Any]], None]
Criterion = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopSettings:
    """How long and how fast to learn."""

    steps: int = 20_000
    """Updates in all."""
    lr: float = 1e-3
    """Peak learning rate."""
    lr_final: float = 1e-6
    """Learning rate at the end of a cosine or line."""
    warmup_steps: int = 100
    """Steps of the linear rise to the peak."""
    schedule: ScheduleSettings = field(default_factory=ScheduleSettings)
    """How the rate falls."""
    optimiser: OptimiserSettings = field(default_factory=OptimiserSettings)
    """Who learns when, and how fast."""
    grad_clip: float = 1.0
    """Largest norm of the gradient; inf leaves it as it is."""
    ema: float = 0.999
    """Decay of the moving average of the weights, which is what gets evaluated and kept."""
    loss: LossName = "charbonnier"
    """Pixel loss. mse is what PSNR measures."""
    loss_eps: float = 1e-3
    """Width of the smooth part of Charbonnier, in units of the pixels; papers often state its square."""
    loss_reduction: Literal["mean", "sum"] = "mean"
    """Mean or sum of the loss over all numbers of a batch."""
    loss_on: Literal["rgb", "luma"] = "rgb"
    """Compare all channels, or luma alone, as benchmarks do and as suits a network that predicts luma."""
    log_every: int = 50
    """Steps between two log lines."""
    save_every: int = 500
    """Steps between two checkpoints, each evaluated."""
    device: str = "cpu"
    """Where to train."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Number format of the forward and backward pass; the weights stay fp32. bf16 is faster where the processor
    multiplies it (`tubelet doctor` says so)."""
    activations: Literal["keep", "recompute"] = "keep"
    """recompute: trunks are computed again in the backward pass, which takes a third more time and far less memory; no
    number changes."""
    seed: int = 0
    """Of the first weights and of all crops."""

    def __post_init__(self) -> None:
        if self.steps < 1 or self.log_every < 1 or self.save_every < 1:
            raise ConfigError("steps, log_every and save_every must be at least 1")
        if not (0 < self.lr_final <= self.lr) or not 0 <= self.ema < 1 or self.grad_clip <= 0:
            raise ConfigError("need 0 < lr_final ≤ lr, 0 ≤ ema < 1 and grad_clip > 0")
        if self.warmup_steps < 0 or not self.loss_eps > 0:
            raise ConfigError("need warmup_steps ≥ 0 and loss_eps > 0")


def train(
    model: nn.Module,
    batches: Batches,
    settings: LoopSettings,
    out: Path,
    *,
    criterion: Criterion | None = None,
    evaluate: Evaluate | None = None,
    on_log: Log | None = None,
) -> nn.Module:
    """Train, or go on where the last checkpoint in `out` stands.

    Args:
        model: forward maps lq (B, T, 3, H, W) to sr.
        batches: step → (lq, gt), a pure function.
        settings: see there.
        out: folder of `state.pt`, `log.jsonl` and the TensorBoard events.
        criterion: (sr, gt, lq) → loss; default: the loss that the settings name, of sr and gt.
        evaluate: scores of a model, computed with the averaged weights at every checkpoint.
        on_log: called with every log line.

    Returns:
        the averaged model, in evaluation mode, on the CPU.

    Raises:
        CheckpointError: `out` holds a checkpoint of other steps, of another seed or model, or a damaged one.
        ConfigError: the optimiser's settings name a part that the model does not have.
    """
    device = torch.device(settings.device)
    model.to(device).train()
    average = copy.deepcopy(model).eval().requires_grad_(requires_grad=False)
    learner = Learner(model, settings.optimiser)
    optimiser = learner.optimiser
    state_file = out / "state.pt"
    out.mkdir(parents=True, exist_ok=True)
    first = _resume(state_file, model, average, optimiser, settings)
    criterion = criterion or pixel_loss(settings)
    forgetting = Recompute(model) if settings.activations == "recompute" else nullcontext()
    recent: list[Tensor] = []
    with _logger(out, on_log) as log, _prefetch(batches, first, settings.steps) as stream:
        start = time.monotonic()
        for step, (lq, gt) in enumerate(stream, first):
            learner.prepare(step, lr := learning_rate(step, settings))
            lq, gt = lq.to(device), gt.to(device)
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=settings.precision == "bf16"), forgetting:
                sr = model(lq)
            loss = criterion(sr.float(), gt, lq)
            _descend(model, optimiser, loss, grad_clip=settings.grad_clip)
            _update_average(average, model, min(settings.ema, (1 + step) / (10 + step)))
            recent.append(loss.detach())
            done = step + 1
            if done % settings.log_every == 0 or done == settings.steps:
                per_step = (time.monotonic() - start) / (done - first)
                value = torch.stack(recent).mean().item()
                eta_s = (settings.steps - done) * per_step
                log({"step": done, "loss": value, "lr": lr, "s_per_step": per_step, "eta_s": eta_s})
                recent.clear()
            if done % settings.save_every == 0 or done == settings.steps:
                _save(state_file, model, average, optimiser, done, settings)
                if evaluate is not None:
                    log({"step": done, **evaluate(average)})
    return average.cpu()


def pixel_loss(settings: LoopSettings) -> Criterion:
    """Make the loss that the settings name; it leaves lq out of account."""
    mean = partial(charbonnier, eps=settings.loss_eps) if settings.loss == "charbonnier" else LOSSES[settings.loss]

    def loss(sr: Tensor, gt: Tensor, lq: Tensor) -> Tensor:
        del lq
        if settings.loss_on == "luma":
            sr, gt = luma(sr), luma(gt)
        return mean(sr, gt) * sr.numel() if settings.loss_reduction == "sum" else mean(sr, gt)

    return loss


def _descend(model: nn.Module, optimiser: torch.optim.Optimizer, loss: Tensor, *, grad_clip: float) -> None:
    optimiser.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), grad_clip)
    optimiser.step()


@torch.no_grad()
def _update_average(average: nn.Module, model: nn.Module, decay: float) -> None:
    # Not the state dicts: what has two places in the network would be there twice.
    for kept, new in zip(_tensors(average), _tensors(model), strict=True):
        if kept.is_floating_point():
            kept.lerp_(new, 1 - decay)
        else:
            kept.copy_(new)


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    return itertools.chain(model.parameters(), model.buffers())


def _save(
    path: Path,
    model: nn.Module,
    average: nn.Module,
    optimiser: torch.optim.Optimizer,
    step: int,
    settings: LoopSettings,
) -> None:
    state = {
        "step": step,
        "settings": result_settings(settings),
        "model": model.state_dict(),
        "average": average.state_dict(),
        "optimiser": optimiser.state_dict(),
    }
    part = path.with_suffix(".part")
    torch.save(state, part)
    part.replace(path)


def result_settings(settings: LoopSettings) -> dict[str, Any]:
    """Name the settings that change the result."""
    numbers = asdict(settings)
    for name in ("log_every", "save_every", "device", "activations"):
        del numbers[name]
    for name in ("schedule", "optimiser"):
        numbers |= {f"{name}.{key}": value for key, value in numbers.pop(name).items()}
    return numbers


def check_same_run(where: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """See that the settings of the run that is at a place are those of now.

    Raises:
        CheckpointError: one of them is another.
    """
    for name, value in now.items():
        if before.get(name) != value:
            raise CheckpointError(
                f"{where} is of a run with {name}={before.get(name)}, not {name}={value}; name another output folder"
            )


def _resume(
    path: Path, model: nn.Module, average: nn.Module, optimiser: torch.optim.Optimizer, settings: LoopSettings
) -> int:
    """Load the state if there is one; returns the step to go on with."""
    if not path.is_file():
        return 0
    try:
        state = torch.load(path, weights_only=True, map_location=settings.device)
    except (RuntimeError, EOFError, LookupError, UnpicklingError) as error:
        raise CheckpointError(f"{path} is damaged; delete it to begin anew, or name another output folder") from error
    before = result_settings(LoopSettings()) | state["settings"]  # a state of an older version lacks the newer settings
    check_same_run(path, before, result_settings(settings))
    try:
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
    except RuntimeError as error:
        raise CheckpointError(f"{path} holds another model; name another output folder") from error
    optimiser.load_state_dict(state["optimiser"])
    return int(state["step"])


@contextmanager
def _prefetch(batches: Batches, first: int, last: int) -> Generator[Iterator[tuple[Tensor, Tensor]]]:
    """Prepare the next batches in a thread while the current one trains."""

    def stream(pool: ThreadPoolExecutor) -> Iterator[tuple[Tensor, Tensor]]:
        waiting = [pool.submit(batches, step) for step in range(first, min(first + 2, last))]
        for step in range(first, last):
            current = waiting.pop(0)
            if step + 2 < last:
                waiting.append(pool.submit(batches, step + 2))
            yield current.result()

    with ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        yield stream(pool)


@contextmanager
def _logger(out: Path, on_log: Log | None) -> Generator[Log]:
    """Append to log.jsonl, and to TensorBoard where it is installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:  # the [train] extra is absent; the JSON lines say the same
        board = None
    else:
        board = SummaryWriter(str(out))
    with (out / "log.jsonl").open("a", encoding="utf-8") as file:

        def log(record: dict[str, Any]) -> None:
            file.write(json.dumps(record) + "\n")
            file.flush()
            if board is not None:
                for name, value in record.items():
                    if name != "step":
                        board.add_scalar(name, value, record["step"])
            if on_log is not None:
                on_log(record)

        try:
            yield log
        finally:
            if board is not None:
                board.close()
