"""The log of a training run: JSON lines, TensorBoard, and mean losses between two lines."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tubelet.training.task import Losses, sum_losses

__all__ = ["Log", "LossMeter", "open_log"]

Log = Callable[[dict[str, Any]], None]
"""Writes a record: "step", and any other numbers by name."""


class LossMeter:
    """Averages the losses of the steps since the last log line."""

    def __init__(self) -> None:
        self._values: dict[str, list[Tensor]] = {}

    def add(self, losses: Losses) -> None:
        """Add the losses of a step, which must be detached."""
        self._append("loss", sum_losses(losses))
        for name, value in losses.items():
            self._append(f"loss/{name}", value)

    def take_means(self) -> dict[str, float]:
        """Return the mean of the sum as "loss" and of each loss as "loss/NAME", and start again."""
        means: dict[str, float] = {}
        for name, values in self._values.items():
            means[name] = torch.stack(values).mean().item()
        self._values.clear()
        return means

    def _append(self, name: str, value: Tensor) -> None:
        # Tensors are collected, because .item() in every step would wait for the GPU.
        self._values.setdefault(name, []).append(value)


@contextmanager
def open_log(out: Path, on_log: Log | None) -> Generator[Log]:
    """Append records to log.jsonl, and to TensorBoard if it is installed.

    Args:
        out: Folder of the files.
        on_log: Also called with every record.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        # The [train] extra is not installed; the JSON lines hold the same numbers.
        board = None
    else:
        board = SummaryWriter(str(out))
    with (out / "log.jsonl").open("a", encoding="utf-8") as file:

        def log(record: dict[str, Any]) -> None:
            file.write(json.dumps(record) + "\n")
            # A killed run keeps its log.
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
