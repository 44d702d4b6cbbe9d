"""The interface of a training procedure: its batches, and the losses of a batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol

from torch import Tensor, nn

__all__ = ["Batch", "Losses", "TrainingTask", "sum_losses"]

Batch = Mapping[str, Tensor]
"""The tensors of one step, by name."""
Losses = Mapping[str, Tensor]
"""Scalar losses by name, each with its weight applied; their sum is minimized."""


class TrainingTask(Protocol):
    """A training procedure: the inputs of the network, and the losses of its results.

    The loop does everything else: devices, number format, activation checkpointing, backward
    passes, optimizer, averaged weights, checkpoints and logs.

    A simple task yields once per step::

        def batch(self, step):
            lq, gt = self.crops.batch(step)
            return {"lq": lq, "gt": gt}

        def losses(self, model, batch, step):
            sr = model(batch["lq"]).float()
            yield {"pixel": l1(sr, batch["gt"])}
    """

    def batch(self, step: int) -> Batch:
        """Make the batch of a step, on the CPU.

        It must be a pure function of the step, so that a run can resume anywhere. A second thread
        calls it, one or two steps before `losses`.
        """
        ...

    def losses(
        self,
        model: nn.Module,
        batch: Batch,
        step: int,
    ) -> Iterator[Losses]:
        """Run the network on a batch, and yield the losses.

        After each `yield` the loop runs the backward pass of the sum of the losses, which frees the
        graph before the next forward pass begins. The gradients of all passes add up; the optimizer
        steps once, after the last pass.

        If one batch serves several optimizer steps, `batch` returns it for each of these steps
        (`clip, sample = divmod(step, samples)`). The task may store tensors without a graph from
        one step to the next, as long as runs are saved only between two clips. `TruncatedTask` does
        this.

        Args:
            model: Network in training mode, on the device of the batch.
            batch: Result of `batch(step)`, on the training device.
            step: Number of the step, from 0.

        Yields:
            Losses of a forward pass, once or more per step. The code runs under autocast if the
            settings select bf16: compute losses from float32 (`sr.float()`), and any convolution or
            matrix product among them under `torch.autocast(..., enabled=False)`.
        """
        ...


def sum_losses(losses: Losses) -> Tensor:
    """Add up the losses in their order."""
    first, *others = losses.values()
    total = first
    for loss in others:
        total = total + loss
    return total
