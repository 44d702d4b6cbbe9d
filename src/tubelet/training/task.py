"""What the training loop asks of a training procedure: batches, and the losses of a batch."""

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
    """A training procedure: what the network sees, and how its results are judged.

    The loop does the rest: devices, number format, activation checkpointing, backward passes,
    optimizer, averaged weights, checkpoints and logs.

    A plain task yields once a step::

        def batch(self, step):
            lq, gt = self.crops.batch(step)
            return {"lq": lq, "gt": gt}

        def losses(self, model, batch, step):
            sr = model(batch["lq"]).float()
            yield {"pixel": l1(sr, batch["gt"])}
    """

    def batch(self, step: int) -> Batch:
        """Make the batch of a step, on the CPU.

        A pure function of the step, so that a run can resume anywhere. A second thread calls it,
        one or two steps ahead of `losses`.
        """
        ...

    def losses(self, model: nn.Module, batch: Batch, step: int) -> Iterator[Losses]:
        """Run the network on a batch, and yield the losses.

        Each `yield` is followed by a backward pass of the sum of its losses, which frees its graph
        before the next forward pass begins. The gradients of all passes add up; the optimizer steps
        once, after the last of them. A task whose batch serves several optimizer steps makes it the
        batch of as many steps (`clip, sample = divmod(step, samples)`), and may keep tensors
        without a graph from one step to the next, as long as runs are saved only between two clips.

        Args:
            model: the network in training mode, on the device of the batch.
            batch: of `batch(step)`, on the device that trains.
            step: number of the step, from 0 on.

        Yields:
            losses of a forward pass, at least once a step. It all runs under autocast when the
            settings ask for bf16; losses are to be computed from float32 (`sr.float()`), and any
            convolution or matrix product among them under `torch.autocast(..., enabled=False)`.
        """
        ...


def sum_losses(losses: Losses) -> Tensor:
    """Add the losses up, in their order."""
    first, *others = losses.values()
    total = first
    for loss in others:
        total = total + loss
    return total
