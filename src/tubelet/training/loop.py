"""Train a network: schedule, gradient clipping, EMA, exact resume, TensorBoard and JSON lines.

    step ─ task.batch ─ to the device ─┐
      ┌────────────────────────────────┘
      ├ forward pass ─ losses ─ backward pass ┐  as often as the task yields
      ├───────────────────────────────────────┘
      └ clip the gradient ─ optimizer ─ average of the weights ─ log, checkpoint, scores

A batch is a function of its step, and a checkpoint holds all else that changes (weights, EMA,
optimizer, step), so a run that was killed goes on to the same numbers as one that was not.
"""

from __future__ import annotations

import copy
import itertools
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from tubelet.progress import CancelToken, OnProgress, Ticker
from tubelet.training.activation_checkpointing import ActivationCheckpointing
from tubelet.training.optimizer import ParameterGroups
from tubelet.training.run_log import Log, LossMeter, open_log
from tubelet.training.schedule import learning_rate
from tubelet.training.settings import LoopSettings
from tubelet.training.state import TrainingState
from tubelet.training.task import Batch, Losses, TrainingTask, sum_losses

__all__ = ["train"]

Evaluate = Callable[[nn.Module], dict[str, float]]


def train(
    model: nn.Module,
    task: TrainingTask,
    settings: LoopSettings,
    out: Path,
    *,
    evaluate: Evaluate | None = None,
    on_log: Log | None = None,
    on_progress: OnProgress | None = None,
    cancel: CancelToken | None = None,
) -> nn.Module:
    """Train, or go on where the last checkpoint in `out` stands.

    Args:
        model: the network that learns.
        task: its batches and losses.
        settings: see there.
        out: folder of `state.pt`, `log.jsonl` and the TensorBoard events.
        evaluate: scores of a model, computed with the averaged weights at every checkpoint.
        on_log: called with every log line.
        on_progress: called in this thread after steps, at most ten times a second, and at the end.
        cancel: stops the run after the step that it is at; it goes on from its last checkpoint.

    Returns:
        the averaged model, in evaluation mode, on the CPU.

    Raises:
        CheckpointError: `out` holds a checkpoint of other steps, of another seed or model, or a
            damaged one.
        ConfigError: the optimizer's settings name a part that the model does not have.
        Cancelled: `cancel` was cancelled.
    """
    device = torch.device(settings.device)
    model.to(device).train()
    average = copy.deepcopy(model).eval().requires_grad_(requires_grad=False)
    groups = ParameterGroups(model, settings.optimizer)
    out.mkdir(parents=True, exist_ok=True)
    state = TrainingState(out / "state.pt", model, average, groups.optimizer, settings)
    first = state.resume()
    forward_context = _forward_context(model, device, settings)
    trainer = _Trainer(model, average, task, groups, settings, forward_context)
    meter = LossMeter()
    ticker = Ticker(
        on_progress,
        unit="step",
        total=settings.steps,
        label=out.name,
        done=first,
        cancel=cancel,
    )
    with open_log(out, on_log) as log, _prefetch(task, first, settings.steps) as batches:
        start = time.monotonic()
        for step, batch in enumerate(batches, first):
            meter.add(trainer.train_step(step, _to_device(batch, device)))
            done = step + 1
            is_last = done == settings.steps
            if done % settings.log_every == 0 or is_last:
                rate = _learning_rate(step, settings)
                per_step = (time.monotonic() - start) / (done - first)
                times = {"s_per_step": per_step, "eta_s": (settings.steps - done) * per_step}
                log({"step": done, **meter.take_means(), "lr": rate, **times})
            if done % settings.save_every == 0 or is_last:
                state.save(done)
                if evaluate is not None:
                    log({"step": done, **evaluate(average)})
            ticker.tick()
    ticker.finish()
    return average.cpu()


def _learning_rate(step: int, settings: LoopSettings) -> float:
    return learning_rate(
        step,
        settings.schedule,
        steps=settings.steps,
        lr=settings.lr,
        lr_final=settings.lr_final,
        warmup_steps=settings.warmup_steps,
    )


ForwardContext = Callable[[], AbstractContextManager[object]]


@dataclass(frozen=True, slots=True)
class _Trainer:
    """What a step of training works with."""

    model: nn.Module
    average: nn.Module
    task: TrainingTask
    groups: ParameterGroups
    settings: LoopSettings
    forward_context: ForwardContext

    def train_step(self, step: int, batch: Batch) -> Losses:
        """Learn from a batch, and return its losses without their graph."""
        self.groups.prepare(step, _learning_rate(step, self.settings))
        self.groups.optimizer.zero_grad()
        losses = self._accumulate_gradients(step, batch)
        nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.grad_clip)
        self.groups.optimizer.step()
        # Early on, the average forgets faster: it would keep the random weights otherwise.
        decay = min(self.settings.ema, (1 + step) / (10 + step))
        _update_average(self.average, self.model, decay)
        return losses

    def _accumulate_gradients(self, step: int, batch: Batch) -> Losses:
        """Run every forward pass of a step, each followed by its backward pass; gradients add up.

        Returns:
            the losses without their graph; those of one name are summed over the passes.

        Raises:
            ValueError: the task yields no loss.
        """
        passes = iter(self.task.losses(self.model, batch, step))
        totals: dict[str, Tensor] = {}
        while (losses := _run_pass(passes, self.forward_context)) is not None:
            for name, loss in losses.items():
                totals[name] = totals[name] + loss if name in totals else loss
        if not totals:
            raise ValueError(f"{type(self.task).__name__}.losses yielded no loss at step {step}")
        return totals


def _run_pass(passes: Iterator[Losses], forward_context: ForwardContext) -> Losses | None:
    """Run a forward and a backward pass; return the losses, or None where no pass is left.

    On return nothing here holds the graph, so its memory is free for the next pass.
    """
    with forward_context():
        losses = next(passes, None)
    if losses is None:
        return None
    sum_losses(losses).backward()
    return {name: loss.detach() for name, loss in losses.items()}


def _forward_context(
    model: nn.Module, device: torch.device, settings: LoopSettings
) -> ForwardContext:
    """Make the context of every forward pass: its number format, and activation checkpointing."""
    is_bf16 = settings.precision == "bf16"
    checkpointing = nullcontext()
    if settings.activations == "recompute":
        checkpointing = ActivationCheckpointing(model)

    @contextmanager
    def context() -> Generator[None]:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=is_bf16), checkpointing:
            yield

    return context


def _to_device(batch: Batch, device: torch.device) -> Batch:
    return {name: tensor.to(device) for name, tensor in batch.items()}


@torch.no_grad()
def _update_average(average: nn.Module, model: nn.Module, decay: float) -> None:
    # Not the state dicts: they list a tensor that has two places in the network twice.
    for kept, new in zip(_tensors(average), _tensors(model), strict=True):
        if kept.is_floating_point():
            kept.lerp_(new, 1 - decay)
        else:
            kept.copy_(new)


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    return itertools.chain(model.parameters(), model.buffers())


@contextmanager
def _prefetch(task: TrainingTask, first: int, last: int) -> Generator[Iterator[Batch]]:
    """Prepare the next batches in a thread while the current one trains."""

    def stream(pool: ThreadPoolExecutor) -> Iterator[Batch]:
        waiting = [pool.submit(task.batch, step) for step in range(first, min(first + 2, last))]
        for step in range(first, last):
            current = waiting.pop(0)
            if step + 2 < last:
                waiting.append(pool.submit(task.batch, step + 2))
            yield current.result()

    with ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        yield stream(pool)
