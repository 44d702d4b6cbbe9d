"""Optical flow between the neighbouring frames of a clip, each computed once.

A clip that runs back to its start, as training and evaluation extend short clips, meets the same two pictures twice:
the flow from t to t-1 is the one that went from T-1-t to T-t.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tubelet.layers.spynet import SpyNet
from tubelet.layers.store import FeatureStore, Key

__all__ = ["ClipFlows", "is_mirrored"]


class ClipFlows:
    """The flows of a clip, kept from their first use to their last.

    Args:
        spynet: estimates them.
        frames: T of (B, 3, H, W).
        store: keeps them, under names of their own.
        uses: how often each is asked for, at most.
        mirrored: whether the clip runs back to its start; see `is_mirrored`.
    """

    def __init__(
        self, spynet: SpyNet, frames: Sequence[Tensor], store: FeatureStore, *, uses: int, mirrored: bool
    ) -> None:
        self._spynet = spynet
        self._frames = frames
        self._store = store
        self._mirrored = mirrored
        self._uses = 2 * uses if mirrored else uses
        self._left: dict[Key, int] = {}

    def between(self, t: int, other: int) -> Tensor:
        """Return the flow (B, 2, H, W) from frame t to the frame before or after it: where t's pixels lie there."""
        if self._mirrored and other < t:
            last = len(self._frames) - 1
            t, other = last - t, last - other
        key = ("flow to the next" if other > t else "flow to the last", t)
        left = self._left[key] = self._left.get(key, self._uses) - 1
        if key in self._store:
            (flow,) = self._store.get(key) if left else self._store.pop(key)
            return flow
        flow = self._spynet(self._frames[t], self._frames[other])
        if left:
            self._store.append(key, flow)
        return flow


def is_mirrored(clip: Tensor) -> bool:
    """Tell whether a clip (B, T, C, H, W) of an even number of frames runs back to its start."""
    half, odd = divmod(clip.shape[1], 2)
    return not odd and all(torch.equal(clip[:, t], clip[:, -1 - t]) for t in range(half))
