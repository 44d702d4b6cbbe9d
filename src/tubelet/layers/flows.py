"""Optical flow between the neighboring frames of a clip, each computed once."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from tubelet.layers.spynet import SpyNet
from tubelet.layers.store import FeatureStore, Key

__all__ = ["ClipFlows"]


class ClipFlows:
    """The flows that the sweeps over a clip ask for, kept from their first use to their last.

    A sweep of first order asks at frame t for the flow to the frame before it, one of second order
    also for the flow from there to the frame before that.

    Args:
        spynet: estimates them.
        frames: (B, 3, H, W) by their number, those of the edges included (see `clip_frames`).
        num_frames: T of the clip.
        store: keeps them, under names of their own.
        sweeps: how many sweeps there are in each direction.
        order: 1 or 2, of every sweep.
    """

    def __init__(
        self,
        spynet: SpyNet,
        frames: Mapping[int, Tensor],
        num_frames: int,
        store: FeatureStore,
        *,
        sweeps: int,
        order: int,
    ) -> None:
        self._spynet = spynet
        self._frames = frames
        self._num_frames = num_frames
        self._store = store
        self._sweeps = sweeps
        self._order = order
        self._uses_left: dict[Key, int] = {}

    def between(self, t: int, other: int) -> Tensor:
        """Return the flow (B, 2, H, W) from frame t to its neighbor: where t's pixels lie there."""
        key = ("flow to the next" if other > t else "flow to the last", t)
        left = self._uses_left.get(key, self._num_uses(t, other)) - 1
        self._uses_left[key] = left
        if key in self._store:
            (flow,) = self._store.get(key) if left else self._store.pop(key)
            return flow
        flow = self._spynet(self._frames[t], self._frames[other])
        if left:
            self._store.append(key, flow)
        return flow

    def _num_uses(self, t: int, other: int) -> int:
        """Count how often all sweeps together ask for a flow."""
        following = 2 * t - other  # frame at which a sweep of second order asks for it
        uses = int(0 <= t < self._num_frames)
        if self._order > 1:
            uses += 0 <= following < self._num_frames
        return uses * self._sweeps
