from itertools import pairwise
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from helpers.chain_networks import SmallFlow, small_clip
from tubelet.layers.chain import CHAIN_SWEEPS, Caches, SweepChain, chain_by_patches
from tubelet.layers.patch_align import align_patches
from tubelet.layers.recurrence import Edge
from tubelet.layers.store import FeatureLimits, FeatureStore, Key
from tubelet.ops.warp import backward_warp

SecondFrame = Literal["repeat", "zeros"]


class _Sweep(nn.Module):
    """Stands in for a transformer: a convolution of all three features."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(12, 4, 3, padding=1)

    def forward(self, current: Tensor, newer: Tensor, older: Tensor) -> Tensor:
        return self.conv(torch.cat([current, newer, older], 1)).tanh() + current


class _Parts(nn.Module):
    """What a network gives to the chain."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.extract = nn.Conv2d(3, 4, 3, padding=1)
        self.flow = SmallFlow()
        self.sweeps = nn.ModuleDict({name: _Sweep() for name in CHAIN_SWEEPS})
        self.double()

    def chain(self, second_frame: SecondFrame = "repeat") -> SweepChain:
        return chain_by_patches(self.extract, self.flow, self.sweeps, second_frame)  # type: ignore[arg-type]


def _plainly(parts: _Parts, lq: Tensor, second_frame: SecondFrame) -> list[list[Tensor]]:
    """The drawing of the module, one frame after the other: the states of every sweep, in the order of the frames."""
    frames = lq.unbind(1)
    feats = [parts.extract(frame) for frame in frames]
    result: list[list[Tensor]] = []
    for name in CHAIN_SWEEPS:
        step = -1 if "backward" in name else 1
        order = list(range(len(frames)))[::step]
        flows = [parts.flow(frames[t], frames[last]) for last, t in pairwise(order)]
        states: list[Tensor] = []
        for i, t in enumerate(order):
            newer = older = feats[t]
            if i > 0:
                newer = align_patches(states[-1], flows[i - 1])
                older = newer if second_frame == "repeat" else torch.zeros_like(newer)
            if i > 1:
                both = flows[i - 1] + backward_warp(flows[i - 2], flows[i - 1])
                older = align_patches(states[-2], both)
            states.append(parts.sweeps[name](feats[t], newer, older))
        feats = states[::step]
        result.append(feats)
    return result


@pytest.mark.parametrize("second_frame", ["repeat", "zeros"])
@pytest.mark.parametrize("frames", [1, 2, 3, 5])
def test_equals_the_drawing(frames: int, second_frame: SecondFrame) -> None:
    parts, lq = _Parts(), small_clip(frames=frames, size=(17, 20))
    seen: dict[tuple[str, int], Tensor] = {}
    with torch.no_grad():
        expected = _plainly(parts, lq, second_frame)
        chain = parts.chain(second_frame)
        result = list(
            chain.propagate(lq, on_state=lambda name, t, state: seen.update({(name, t): state}))
        )
    assert [t for t, _ in result] == list(range(frames))
    assert len(seen) == 4 * frames
    for t, state in result:
        torch.testing.assert_close(state, expected[-1][t], rtol=0, atol=1e-12)
        for name, states in zip(CHAIN_SWEEPS, expected, strict=True):
            torch.testing.assert_close(seen[name, t], states[t], rtol=0, atol=1e-12)


def test_each_flow_is_computed_once_and_without_gradient() -> None:
    parts, lq = _Parts(), small_clip(frames=5)
    parts.extract.requires_grad_(False)
    states = [state for _, state in parts.chain().propagate(lq)]
    assert parts.flow.calls == 2 * 4
    sum(state.sum() for state in states).backward()
    assert all(p.grad is None for p in parts.flow.parameters())
    assert all(p.grad.any() for p in parts.sweeps.parameters())


def test_only_states_that_are_still_needed_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    parts, lq = _Parts(), small_clip(frames=4)
    most = 0
    append = FeatureStore.append

    def watched(store: FeatureStore, key: Key, feat: Tensor) -> None:
        nonlocal most
        append(store, key, feat)
        kept = [k for k in range(4) if k in store]
        most = max(most, len(kept))
        assert all(len(store.get(k)) == 1 for k in kept)

    monkeypatch.setattr(FeatureStore, "append", watched)
    store = FeatureStore()
    with torch.no_grad():
        for _ in parts.chain().propagate(lq, store=store):
            pass
    assert most == 4
    assert len(store) == 0


def test_stored_features_change_no_bit() -> None:
    parts, lq = _Parts(), small_clip()
    with torch.no_grad():
        expected = [state for _, state in parts.chain().propagate(lq)]
        store = FeatureStore(FeatureLimits(host_bytes=2000))
        for t, state in parts.chain().propagate(lq, store=store):
            assert torch.equal(state, expected[t])


def test_caches_go_from_frame_to_frame_and_across_edges() -> None:
    """A sweep that counts the frames since its start, and shows the count."""

    def refine(
        name: str, current: Tensor, newer: Tensor, older: Tensor, caches: Caches
    ) -> tuple[Tensor, Caches]:
        count = caches["count"] + 1 if caches else torch.ones(())
        return current, {"count": count}

    def no_flow(frame: Tensor, other: Tensor) -> Tensor:
        return torch.zeros_like(frame[:, :2])

    def stay(state: Tensor, flow: Tensor, current: Tensor) -> Tensor:
        return state

    chain = SweepChain(
        extract=lambda frame: frame,
        estimate_flow=no_flow,
        align=stay,
        refine=refine,
        second_frame="repeat",
    )
    lq = small_clip(frames=3)
    hidden = {"forward_1": (lq[:, 0],), "forward_1/count": (torch.tensor(7.0),)}
    before = Edge((lq[:, 0],), hidden, frame_index=6)
    seen: dict[tuple[str, int], float] = {}

    def record(name: str, t: int, state: Tensor) -> None:
        if name.endswith("/count"):
            seen[name, t] = float(state)

    for _ in chain.propagate(lq, before=before, on_state=record):
        pass
    assert [seen["backward_1/count", t] for t in range(3)] == [3, 2, 1]
    assert [seen["forward_1/count", t] for t in range(3)] == [8, 9, 10]
    assert [seen["forward_2/count", t] for t in range(3)] == [1, 2, 3]
