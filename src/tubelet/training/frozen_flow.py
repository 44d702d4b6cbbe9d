"""Samples of long clips with a SpyNet that is not trained: each flow is estimated once.

    long pass    flows between all neighbors of the clip ── estimated, kept
    sample n     flows between neighbors of the same clip ── looked up

SpyNet takes most of the forward pass of a small network, and a sample has the frames of its long
clip, whose flows are known.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial

from torch import Tensor, nn

from tubelet.layers.forward import replaced_forward
from tubelet.layers.spynet import SpyNet
from tubelet.training.long_clips import Samples
from tubelet.training.task import Batch, Losses, TrainingTask

__all__ = ["FrozenFlowTask"]


class FrozenFlowTask:
    """Runs another task, and estimates the flow between two frames of a long clip only once.

    The results are the same, as long as SpyNet does not change and no gradient flows through it to
    its frames, as it would to a network that cleans them.

    Args:
        task: Task of these samples.
        samples: Samples of long clips.
    """

    def __init__(self, task: TrainingTask, samples: Samples) -> None:
        self._task = task
        self._samples = samples
        # By SpyNet and frames of the current long clip.
        self._flows: dict[tuple[int, bytes, bytes], Tensor] = {}

    def batch(self, step: int) -> Batch:
        """Return the batch of the task."""
        return self._task.batch(step)

    def losses(self, model: nn.Module, batch: Batch, step: int) -> Iterator[Losses]:
        """Yield the losses of the task."""
        if self._samples.begins_clip(step):
            self._flows.clear()
        with self._remembered_flows(model):
            yield from self._task.losses(model, batch, step)

    def _remembered_flows(self, model: nn.Module) -> AbstractContextManager[None]:
        """Let every SpyNet of a network look its flows up."""
        spynets = [module for module in model.modules() if isinstance(module, SpyNet)]
        remembered: dict[nn.Module, Callable[..., Tensor]] = {}
        for number, spynet in enumerate(spynets):
            remembered[spynet] = partial(self._flow, number, spynet.forward)
        return replaced_forward(remembered)

    def _flow(
        self,
        number: int,
        estimate: Callable[[Tensor, Tensor], Tensor],
        ref: Tensor,
        supp: Tensor,
    ) -> Tensor:
        """Return the flow from `ref` to `supp`, (B, 2, H, W), by the SpyNet of a number."""
        key = (number, _digest(ref), _digest(supp))
        if key not in self._flows:
            self._flows[key] = estimate(ref, supp)
        return self._flows[key]


def _digest(frame: Tensor) -> bytes:
    """Identify a frame by its values: samples have copies of the frames of their long clip."""
    values = frame.detach().cpu().contiguous().numpy()
    return hashlib.blake2b(values.tobytes(), digest_size=16).digest()
