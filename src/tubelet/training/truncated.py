"""Truncated back-propagation: short samples that continue from the states of a long clip.

    long clip    all sweeps run over T frames, once, without a graph and without restoring frames;
                 the states at the edges of its N samples are kept: ●

                 0 … ● ●  s … s+L-1  ● ● … T-1
                    before └ sample ┘ after

    sample n     restore the L frames from the states before and after them ── loss ── gradient ──
                 step of the optimizer

A network learns to use states that have seen the whole clip, at the cost of a short one: gradients
flow through L frames, and only these need memory. The states of a clip are not computed again after
a step, so those of the last sample are N - 1 steps old.

Source: LRTI-VSR, Sec. 2.2 and Algorithm 1.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from itertools import product
from typing import Literal

import torch
from torch import Tensor, nn

from tubelet.layers.recurrence import Edge, Past
from tubelet.layers.store import FeatureLimits, FeatureStore
from tubelet.models.architecture import Contract
from tubelet.models.contracts import RecurrentModel, as_recurrent
from tubelet.ops.pixels import to_float
from tubelet.training.long_clips import Samples
from tubelet.training.restoration import RestorationLoss
from tubelet.training.task import Batch, Losses

__all__ = ["LongPass", "StateKey", "TruncatedTask", "record_states"]

LongPass = Literal["eval", "train"]

StateKey = tuple[str, int]
"""Name of a sweep, and the moment of a state in the long clip: its frame, unless the network
inserts frames or has a state for several."""


class TruncatedTask:
    """Trains on samples of long clips that continue from the states at their edges.

    Args:
        samples: Samples of long clips.
        loss: Loss of a sample.
        contract: Contract of the network, which has `edge_states`.
        long_pass: Mode of the network while it computes the states of a long clip. "eval" turns
            stochastic depth off.
        limits: Memory for the features of a long clip between its sweeps.
    """

    def __init__(
        self,
        samples: Samples,
        loss: RestorationLoss,
        contract: Contract,
        *,
        long_pass: LongPass = "eval",
        limits: FeatureLimits | None = None,
    ) -> None:
        self._samples = samples
        self._loss = loss
        self._contract = contract
        self._long_pass = long_pass
        self._limits = limits
        # States at the edges of the samples of the current long clip.
        self._states: dict[StateKey, Tensor] = {}

    def batch(self, step: int) -> Batch:
        """Cut out the sample of a step and its surroundings.

        Returns:
            "lq" and "gt" of the sample, see `Samples.cut`; "before" and "after", (B, n, 3, h, w):
            the frames of its edges, nearest first; "clip", (B, T, 3, h, w), only with the first
            sample of a long clip.
        """
        lq, _ = self._samples.long_clip(step)
        before, after = self._edge_frames(step)
        batch = self._samples.cut(step)
        batch["before"] = to_float(lq[:, list(before)])
        batch["after"] = to_float(lq[:, list(after)])
        if self._samples.begins_clip(step):
            batch["clip"] = to_float(lq)
        return batch

    def losses(self, model: nn.Module, batch: Batch, step: int) -> Iterator[Losses]:
        """Restore the sample from the states at its edges, and compare it with gt.

        The first sample of a long clip is preceded by the pass over the clip.
        """
        if self._samples.begins_clip(step):
            # The old states go first, to free their memory.
            self._states = {}
            self._states = self._run_long_clip(model, batch["clip"], step)
        before, after = self._edges(batch, step)
        yield self._loss(model, batch["lq"], batch["gt"], before, after)

    def _run_long_clip(self, model: nn.Module, lq: Tensor, step: int) -> dict[StateKey, Tensor]:
        """Compute the states at the edges of all samples of a long clip, (B, T, 3, h, w)."""
        # Samples may share states.
        wanted: set[StateKey] = set()
        for sample_step in range(step, step + self._samples.sampling.samples):
            before, after = self._state_keys(sample_step)
            wanted.update(before, after)

        # The mode does not stay changed, even if the network fails.
        network = as_recurrent(model)
        was_training = model.training
        model.train(self._long_pass == "train")
        try:
            return record_states(network, lq, wanted, self._limits)
        finally:
            model.train(was_training)

    def _edge_frames(self, step: int) -> tuple[range, range]:
        """Return the frames of both edges of a sample, nearest first; fewer near the clip's end."""
        span = self._samples.span(step)
        count = self._contract.edge_frames
        before = range(span.start)[::-1]
        after = range(span.stop, self._samples.sampling.clip)
        return before[:count], after[:count]

    def _state_keys(self, step: int) -> tuple[list[StateKey], list[StateKey]]:
        """List the states in both edges of a sample; those of each sweep have the nearest first."""
        span = self._samples.span(step)
        last_frame = self._samples.sampling.clip - 1
        before = range(self._moment(span.start))[::-1]
        after = range(self._moment(span.stop - 1) + 1, self._moment(last_frame) + 1)
        states = self._contract.edge_states
        nearest_before = before[: states.order]
        nearest_after = after[: states.order]
        return (
            list(product(states.before, nearest_before)),
            list(product(states.after, nearest_after)),
        )

    def _moment(self, frame: int) -> int:
        """Return the number of the state at a frame of a long clip."""
        return frame * self._samples.frame_step // self._contract.frame_multiple

    def _edges(self, batch: Batch, step: int) -> tuple[Edge, Edge]:
        """Build both edges of a sample."""
        frames_before, frames_after = self._edge_frames(step)
        keys_before, keys_after = self._state_keys(step)
        return (
            self._edge(batch["before"], frames_before, keys_before),
            self._edge(batch["after"], frames_after, keys_after),
        )

    def _edge(self, lq: Tensor, frames: range, keys: list[StateKey]) -> Edge:
        """Build an edge of the frames (B, n, 3, h, w) with these numbers, and of states."""
        if not frames:
            # The long clip ends here.
            return Edge()
        hidden: dict[str, Past] = {}
        # The keys of each sweep have the nearest state first, as an edge does.
        for name, moment in keys:
            past = hidden.get(name, ())
            hidden[name] = (*past, self._states[name, moment])
        return Edge(lq.unbind(1), hidden, frames[0])


@torch.no_grad()
def record_states(
    network: RecurrentModel,
    lq: Tensor,
    wanted: Collection[StateKey],
    limits: FeatureLimits | None = None,
) -> dict[StateKey, Tensor]:
    """Run all sweeps of a network over a clip, and keep some of its states.

    Nothing is restored, and no graph is built.

    Args:
        network: Network with boundary states.
        lq: Low-quality clip, (B, T, 3, H, W); it is treated as a whole video.
        wanted: States to keep.
        limits: Memory for features between the sweeps; None: the default limits.

    Returns:
        The wanted states, which have no gradient.

    Raises:
        ValueError: The network did not compute a wanted state.
    """
    states: dict[StateKey, Tensor] = {}

    def keep(sweep: str, moment: int, state: Tensor) -> None:
        if (sweep, moment) in wanted:
            states[sweep, moment] = state

    with FeatureStore(limits) as store:
        # The features of a frame are only needed to restore it.
        for _ in network.propagate(lq, on_state=keep, store=store):
            pass

    missing = sorted(set(wanted) - states.keys())
    if missing:
        raise ValueError(f"{type(network).__name__} computed no state for {missing}")
    return states
