"""Second-order propagation in a chain of four sweeps, each of which refines the result of the last.

    g(t) = extract lq(t)                                                             (B, C, H, W)
    four sweeps over the clip: backward_1, forward_1, backward_2, forward_2
      sweep s at frame t; t' and t'' are the frames that it visited before, t' last
        current = state of the sweep before s at frame t; g(t) for backward_1
        flow_1  = flow t → t'
        flow_2  = flow_1 + warp(flow t' → t'', flow_1)
        newer   = align h_s(t') by flow_1
        older   = align h_s(t'') by flow_2
        h_s(t)  = refine_s(current, newer, older)                                    (B, C, H, W)

At the first frame that a sweep visits, newer and older are current; at the second, older is newer
or zero, see `SweepChain.second_frame`. Unlike in the grid of BasicVSR++, nothing is concatenated.

Source: the propagation of PSRT (Shi et al., NeurIPS 2022), which IART, MIA-VSR and LRTI-VSR share;
order and flows: Chan et al. (BasicVSR++), CVPR 2022, Sec. 3.1 and 3.2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from tubelet.layers.flows import ClipFlows
from tubelet.layers.patch_align import align_patches
from tubelet.layers.recurrence import Edge, EdgeStates, Past, StateObserver, clip_frames, sweep
from tubelet.layers.spynet import SpyNet
from tubelet.layers.store import FeatureStore, open_store
from tubelet.ops.warp import backward_warp

__all__ = [
    "CHAIN_STATES",
    "CHAIN_SWEEPS",
    "Caches",
    "SecondFrame",
    "SweepChain",
    "chain_by_patches",
]

CHAIN_SWEEPS = ("backward_1", "forward_1", "backward_2", "forward_2")
"""Names of the sweeps, in the order in which they run."""

CHAIN_STATES = EdgeStates(
    before=("forward_1", "forward_2"),
    after=("backward_1", "backward_2"),
    order=2,
)
"""States in the edges of a clip, for the contract of a network without caches."""

SecondFrame = Literal["repeat", "zeros"]
"""What stands for the older state at the second frame of a sweep: the newer one, or zeros."""

Caches = dict[str, Tensor]
"""Tensors that a sweep keeps from one frame to the next besides its state, by name; most networks
have none, and none exist before the first frame of a sweep."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepChain:
    """What a network contributes to the chain; see the drawing at the top of this file."""

    extract: Callable[[Tensor], Tensor]
    """Maps a frame (B, 3, H, W) to its features g, (B, C, H, W)."""
    estimate_flow: Callable[[Tensor, Tensor], Tensor]
    """Maps two frames (B, 3, H, W) to the flow from the first to the second, (B, 2, H, W)."""
    align: Callable[[Tensor, Tensor, Tensor], Tensor]
    """Moves a state to the current frame; takes the state (B, C, H, W), the flow from the current
    frame to that of the state (B, 2, H, W), and the features `current` (B, C, H, W)."""
    refine: Callable[[str, Tensor, Tensor, Tensor, Caches], tuple[Tensor, Caches]]
    """Computes a state; takes the name of the sweep, current, newer and older (B, C, H, W), and the
    caches of the frame before, out of which it may take tensors to free them early. Returns the
    state (B, C, H, W) and the caches of this frame."""
    second_frame: SecondFrame
    """What stands for `older` at the second frame of a sweep: `newer`, or zeros."""

    def propagate(
        self,
        lq: Tensor,
        *,
        before: Edge = Edge(),
        after: Edge = Edge(),
        on_state: StateObserver | None = None,
        store: FeatureStore | None = None,
    ) -> Iterator[tuple[int, Tensor]]:
        """Run the four sweeps over a clip.

        Args:
            lq: Low-quality clip, (B, T, 3, H, W).
            before: Two frames before the clip and the states of both forward sweeps at them; fewer
                near the start of the video. The cache `name` of a sweep is its state
                "sweep/name" at the nearest frame.
            after: Two frames after the clip and the states of both backward sweeps, in the same
                way.
            on_state: Callback for every state, (B, C, H, W), and every cache of the four sweeps.
            store: Store for the states and flows between the sweeps.

        Yields:
            The index t of each frame in order, and its state of the last sweep, (B, C, H, W).
        """
        num_frames = lq.shape[1]
        frames = clip_frames(lq, before, after)
        with open_store(store) as features:
            flows = ClipFlows(
                self.estimate_flow,
                frames,
                num_frames,
                features,
                sweeps=2,
                order=2,
            )

            def extract(t: int) -> Tensor:
                return self.extract(lq[:, t])

            def take(t: int) -> Tensor:
                (state,) = features.pop(t)
                return state

            # Each sweep replaces the features of a frame by its state.
            load = extract
            for name in CHAIN_SWEEPS[:-1]:
                edge = after if name.startswith("backward") else before
                for t, state in self._sweep(name, num_frames, edge, flows, load, on_state):
                    features.append(t, state)
                    # Only the store and the sweep may hold states.
                    del state
                load = take

            # The last sweep completes frames in order.
            yield from self._sweep(CHAIN_SWEEPS[-1], num_frames, before, flows, load, on_state)

    def _sweep(
        self,
        name: str,
        num_frames: int,
        edge: Edge,
        flows: ClipFlows,
        load: Callable[[int], Tensor],
        on_state: StateObserver | None,
    ) -> Iterator[tuple[int, Tensor]]:
        """Run one sweep over the clip.

        Args:
            name: Name of the sweep.
            num_frames: Number of frames T of the clip.
            edge: Frames, states and caches before the first frame that the sweep visits.
            flows: Optical flow between the frames of the clip.
            load: Returns the features `current` of frame t, (B, C, H, W).
            on_state: Callback for every state and cache.

        Yields:
            The index t of each frame and its state, (B, C, H, W).
        """
        step = -1 if name.startswith("backward") else 1
        caches = _edge_caches(edge, name)

        def advance(t: int, past: Past) -> Tensor:
            nonlocal caches
            current = load(t)
            # Flows from the current frame to the last one, and from there to the one before.
            hops: list[Tensor] = []
            for i in range(len(past)):
                start = t - i * step
                hops.append(flows.between(start, start - step))

            newer, older = self._align_past(current, past, hops)
            state, caches = self.refine(name, current, newer, older, caches)
            if on_state is not None:
                for cache_name, cache in caches.items():
                    on_state(f"{name}/{cache_name}", t, cache)
            return state

        return sweep(
            name,
            num_frames,
            step=step,
            edge=edge,
            order=2,
            advance=advance,
            on_state=on_state,
        )

    def _align_past(
        self,
        current: Tensor,
        past: Past,
        hops: list[Tensor],
    ) -> tuple[Tensor, Tensor]:
        """Align the last two states with the current frame, or replace those that do not exist.

        Args:
            current: Features of the current frame, (B, C, H, W).
            past: States of the last frame and of the one before it, (B, C, H, W) each; fewer at the
                end of the video where the sweep starts.
            hops: Flow from the current frame to the last one, and from the last one to the one
                before it, (B, 2, H, W) each; as many as there are states.

        Returns:
            `newer` and `older`, (B, C, H, W) each.
        """
        if not past:
            return current, current

        flow_1 = hops[0]
        newer = self.align(past[0], flow_1, current)
        if len(past) == 1:
            older = newer if self.second_frame == "repeat" else torch.zeros_like(newer)
            return newer, older

        # The second hop is read at the position to which the first one leads.
        flow_2 = flow_1 + backward_warp(hops[1], flow_1)
        return newer, self.align(past[1], flow_2, current)


def _edge_caches(edge: Edge, sweep_name: str) -> Caches:
    """Return the caches of a sweep at the frame nearest to the clip."""
    prefix = f"{sweep_name}/"
    caches: Caches = {}
    for name, states in edge.hidden.items():
        if name.startswith(prefix) and states:
            caches[name.removeprefix(prefix)] = states[0]
    return caches


def chain_by_patches(
    extract: nn.Module,
    spynet: SpyNet,
    sweeps: nn.ModuleDict,
    second_frame: SecondFrame,
) -> SweepChain:
    """Describe a chain with patch alignment and without caches.

    Args:
        extract: See `SweepChain`.
        spynet: Network that estimates the flow. It gets no gradient: positions that are rounded to
            pixels do not change with the flow.
        sweeps: By the name of the sweep: maps current, newer and older (B, C, H, W) to the state.
        second_frame: See `SweepChain`.
    """

    @torch.no_grad()
    def estimate_flow(frame: Tensor, other: Tensor) -> Tensor:
        return spynet(frame, other)

    def align(state: Tensor, flow: Tensor, current: Tensor) -> Tensor:
        return align_patches(state, flow)

    def refine(
        name: str,
        current: Tensor,
        newer: Tensor,
        older: Tensor,
        caches: Caches,
    ) -> tuple[Tensor, Caches]:
        return sweeps[name](current, newer, older), caches

    return SweepChain(
        extract=extract,
        estimate_flow=estimate_flow,
        align=align,
        refine=refine,
        second_frame=second_frame,
    )
