"""Train a network: schedule, gradient clipping, EMA, exact resume, TensorBoard and JSON lines.

    step ─ task.batch ─ to the device ─┐
      ┌────────────────────────────────┘
      ├ forward pass ─ losses ─ backward pass ┐  once per `yield` of the task
      ├───────────────────────────────────────┘
      └ clip the gradient ─ optimizer ─ average of the weights ─ log, checkpoint, scores

A batch is a pure function of its step, as are the random numbers of the network (stochastic depth),
and a checkpoint holds everything else that changes (weights, EMA, optimizer, step). So a run that
was killed and resumed gets the same numbers as one that was not.

A loss or a gradient that is not finite ends the run before it can change a weight; the batch is
saved, so that its cause can be looked for.
"""

from __future__ import annotations

import copy
import itertools
import math
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor, nn

from tubelet.errors import DivergedError
from tubelet.files import atomic_write
from tubelet.progress import CancelToken, OnProgress, Ticker
from tubelet.training.activation_checkpointing import activation_checkpointing
from tubelet.training.optimizer import ParameterGroups
from tubelet.training.run_log import Log, LossMeter, open_log
from tubelet.training.schedule import learning_rate
from tubelet.training.settings import LoopSettings
from tubelet.training.state import TrainingState
from tubelet.training.task import Batch, Losses, TrainingTask, sum_losses

__all__ = ["train"]

Evaluate = Callable[[nn.Module], dict[str, float]]

_PREFETCHED_BATCHES = 2
"""Number of batches that are prepared in advance."""


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
    """Train a network, or resume from the checkpoint in `out`.

    Args:
        model: Network to train.
        task: Batches and losses.
        settings: Settings of the loop.
        out: Folder of `state.pt`, `log.jsonl` and the TensorBoard events.
        evaluate: Computes scores of a model; called with the averaged weights at every checkpoint.
        on_log: Called with every log record.
        on_progress: Called in this thread after steps, up to ten times a second, and at the end.
        cancel: Stops the run after the current step; the next run resumes from the last checkpoint.

    Returns:
        The averaged model in evaluation mode, on the CPU.

    Raises:
        CheckpointError: `out` holds a checkpoint of another run (other settings or another model),
            or a damaged one.
        ConfigError: The settings of the optimizer name a module that the model does not have.
        DivergedError: A loss or a gradient is not finite; the last checkpoint is intact.
        Cancelled: `cancel` was cancelled.
    """
    # The network, the average of its weights, and their optimizer.
    device = torch.device(settings.device)
    model.to(device).train()
    average = copy.deepcopy(model).eval().requires_grad_(requires_grad=False)
    groups = ParameterGroups(model, settings.optimizer)

    # A run that was interrupted continues after its last checkpoint.
    out.mkdir(parents=True, exist_ok=True)
    state = TrainingState(out / "state.pt", model, average, groups.optimizer, settings)
    first_step = state.resume()

    forward_context = _forward_context(model, device, settings)
    trainer = _Trainer(model, average, task, groups, settings, forward_context)
    meter = LossMeter()
    ticker = Ticker(
        on_progress,
        unit="step",
        total=settings.steps,
        label=out.name,
        done=first_step,
        cancel=cancel,
    )
    with open_log(out, on_log) as log, _prefetch(task, first_step, settings.steps) as batches:
        start_s = time.monotonic()
        for step, batch in enumerate(batches, first_step):
            with _saves_diverged_batch(out, batch):
                losses = trainer.train_step(step, _to_device(batch, device))
            meter.add(losses)

            num_done = step + 1
            is_last = num_done == settings.steps
            if num_done % settings.log_every == 0 or is_last:
                s_per_step = (time.monotonic() - start_s) / (num_done - first_step)
                log(
                    {
                        "step": num_done,
                        **meter.take_means(),
                        "lr": _learning_rate(step, settings),
                        "s_per_step": s_per_step,
                        "eta_s": (settings.steps - num_done) * s_per_step,
                    }
                )
            # The checkpoint comes first: an evaluation that fails loses no step.
            if num_done % settings.save_every == 0 or is_last:
                state.save(num_done)
                if evaluate is not None:
                    log({"step": num_done, **evaluate(average)})
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
    """Trains the network step by step."""

    model: nn.Module
    average: nn.Module
    task: TrainingTask
    groups: ParameterGroups
    settings: LoopSettings
    forward_context: ForwardContext

    def train_step(self, step: int, batch: Batch) -> Losses:
        """Run one optimizer step on a batch, and return its detached losses.

        Raises:
            DivergedError: A loss or the gradient is not finite.
        """
        self.groups.prepare(step, _learning_rate(step, self.settings))
        self.groups.optimizer.zero_grad()
        _seed_step(self.settings.seed, step)
        losses = self._accumulate_gradients(step, batch)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.grad_clip)
        _check_finite(step, {"gradient norm": norm})
        self.groups.optimizer.step()
        # A smaller decay in the first steps: the average would retain the random weights otherwise.
        decay = min(self.settings.ema, (1 + step) / (10 + step))
        _update_average(self.average, self.model, decay)
        return losses

    def _accumulate_gradients(self, step: int, batch: Batch) -> Losses:
        """Run every forward pass of a step and its backward pass; their gradients add up.

        Returns:
            The detached losses; losses of the same name are summed over the passes.

        Raises:
            ValueError: The task yields no loss.
        """
        passes = iter(self.task.losses(self.model, batch, step))
        totals: dict[str, Tensor] = {}
        try:
            losses = self._run_pass(step, passes)
            while losses is not None:
                for name, loss in losses.items():
                    totals[name] = totals[name] + loss if name in totals else loss
                losses = self._run_pass(step, passes)
        finally:
            # After an error in a backward pass, the task waits in its `yield`: leave its contexts.
            if isinstance(passes, Generator):
                passes.close()
        if not totals:
            raise ValueError(f"{type(self.task).__name__}.losses yielded no loss at step {step}")
        return totals

    def _run_pass(self, step: int, passes: Iterator[Losses]) -> Losses | None:
        """Run a forward and a backward pass; return the detached losses.

        They are None if no pass is left. After the return nothing here references the graph, so its
        memory is free for the next pass.

        Raises:
            DivergedError: A loss is not finite.
        """
        with self.forward_context():
            losses = next(passes, None)
        if losses is None:
            return None
        # PyTorch's backward pass of grid_sample crashes the process where a flow is not a number.
        _check_finite(step, losses)
        sum_losses(losses).backward()
        return {name: loss.detach() for name, loss in losses.items()}


def _seed_step(seed: int, step: int) -> None:
    """Seed the random numbers of a step, such as those of stochastic depth."""
    sequence = np.random.SeedSequence((seed, step))
    torch.manual_seed(int(sequence.generate_state(1)[0]))


def _check_finite(step: int, scalars: Mapping[str, Tensor]) -> None:
    """Check numbers of a step before they can do harm.

    Raises:
        DivergedError: One is not finite.
    """
    for name, scalar in scalars.items():
        value = scalar.item()
        if not math.isfinite(value):
            raise DivergedError(
                f"the training diverged at step {step + 1}: {name} is {value}; train with a lower "
                "--loop.lr or --loop.grad-clip in another --out (checkpoints here are intact)"
            )


def _forward_context(
    model: nn.Module,
    device: torch.device,
    settings: LoopSettings,
) -> ForwardContext:
    """Build the context of every forward pass: number format and activation checkpointing."""
    is_bf16 = settings.precision == "bf16"
    recomputes = settings.activations == "recompute"

    # A context of contextlib can be entered once, so every pass makes a new one.

    @contextmanager
    def context() -> Generator[None]:
        checkpointing = activation_checkpointing(model) if recomputes else nullcontext()
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=is_bf16), checkpointing:
            yield

    return context


@contextmanager
def _saves_diverged_batch(out: Path, batch: Batch) -> Generator[None]:
    """Save the batch of a step that diverges in this context, and say where."""
    try:
        yield
    except DivergedError as error:
        # One file: a later divergence of the same run replaces it.
        path = out / "diverged-batch.safetensors"
        with atomic_write(path) as part:
            save_file({name: value.contiguous() for name, value in batch.items()}, part)
        raise DivergedError(f"{error}; its batch is in {path}") from None


def _to_device(batch: Batch, device: torch.device) -> Batch:
    return {name: tensor.to(device) for name, tensor in batch.items()}


@torch.no_grad()
def _update_average(
    average: nn.Module,
    model: nn.Module,
    decay: float,
) -> None:
    """Move the averaged weights towards those of the model."""
    # average ← decay · average + (1 - decay) · model
    # Not the state dicts: they list a tensor that is used in two places of the network twice.
    for mean, current in zip(_tensors(average), _tensors(model), strict=True):
        if mean.is_floating_point():
            mean.lerp_(current, 1 - decay)
        else:
            mean.copy_(current)


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    return itertools.chain(model.parameters(), model.buffers())


@contextmanager
def _prefetch(
    task: TrainingTask,
    first_step: int,
    num_steps: int,
) -> Generator[Iterator[Batch]]:
    """Prepare the next batches in a thread while the network trains on the current one."""

    def stream(pool: ThreadPoolExecutor) -> Iterator[Batch]:
        pending: deque[Future[Batch]] = deque()
        next_step = first_step
        for step in range(first_step, num_steps):
            # Before the wait for the current batch, so that the thread always has work.
            while next_step < num_steps and next_step <= step + _PREFETCHED_BATCHES:
                pending.append(pool.submit(task.batch, next_step))
                next_step += 1
            yield pending.popleft().result()

    # The cores are for the network.
    with ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        yield stream(pool)
