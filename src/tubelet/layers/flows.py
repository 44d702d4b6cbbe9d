"""Optical flow between the neighboring frames of a clip, each computed once."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from tubelet.layers.store import FeatureStore, Key

__all__ = ["ClipFlows"]


class ClipFlows:
    """The flows that the sweeps over a clip use, cached from their first use to their last.

    At frame t, a sweep of first order uses the flow to the frame before it; a sweep of second order
    also uses the flow from there to the frame before that.

    Args:
        estimate: Network that estimates the flow from its first argument to its second.
        frames: Frames (B, 3, H, W) by number, those of the edges included (see `clip_frames`).
        num_frames: T of the clip.
        store: Cache of the flows, under names that no sweep uses.
        sweeps: Number of sweeps in each direction.
        order: 1 or 2, of every sweep.
    """

    def __init__(
        self,
        estimate: Callable[[Tensor, Tensor], Tensor],
        frames: Mapping[int, Tensor],
        num_frames: int,
        store: FeatureStore,
        *,
        sweeps: int,
        order: int,
    ) -> None:
        self._estimate = estimate
        self._frames = frames
        self._num_frames = num_frames
        self._store = store
        self._sweeps = sweeps
        self._order = order
        # By flow: how often it will still be used.
        self._uses_left: dict[Key, int] = {}

    def between(self, t: int, other: int) -> Tensor:
        """Return the flow from a frame to a neighbor.

        Args:
            t: Number of the frame.
            other: Number of its neighbor, t - 1 or t + 1.

        Returns:
            (B, 2, H, W), pixels: displacement of each pixel of frame t to its position in `other`.
        """
        name = "flow to the next" if other > t else "flow to the last"
        key = (name, t)
        uses_left = self._uses_left.get(key, self._num_uses(t, other)) - 1
        self._uses_left[key] = uses_left
        if key in self._store:
            (flow,) = self._store.get(key) if uses_left else self._store.pop(key)
            return flow
        flow = self._estimate(self._frames[t], self._frames[other])
        if uses_left:
            self._store.append(key, flow)
        return flow

    def _num_uses(self, t: int, other: int) -> int:
        """Return how often all sweeps together use a flow."""
        uses = 0
        if 0 <= t < self._num_frames:
            uses += 1
        if self._order > 1:
            # Frame at which a sweep of second order uses it as its second flow.
            following = 2 * t - other
            if 0 <= following < self._num_frames:
                uses += 1
        return uses * self._sweeps
