"""A clip inside a video: with the states at its edges every recurrent network gives the frames of the whole video."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from itertools import combinations
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tubelet.layers.recurrence import Edge, EdgeStates, Past
from tubelet.layers.store import FeatureStore
from tubelet.models import (
    basicvsr,
    basicvsr_pp,
    iart,
    iconvsr,
    lrti_vsr,
    mia_vsr,
    ovsr,
    psrt,
    realbasicvsr,
    rvrt,
    tmnet,
    zooming_slow_mo,
)
from tubelet.models.architecture import Architecture
from tubelet.zoo.architectures import ARCHITECTURES


@dataclass(frozen=True)
class Case:
    """A recurrent network, and what an edge of it holds.

    Attributes:
        name: of the case.
        architecture: of the network.
        config: its smallest one.
        forward: sweeps whose states the edge before a clip holds.
        backward: sweeps whose states the edge after a clip holds.
        order: how many states of each.
        num_frames: of the video.
        size: height and width of the video.
        between: moments between two frames.
        step_frames: frames of a step, if a step has more than one; moments are steps then.
        options: further arguments of the network.
        sees_frames: whether the frames of an edge matter, besides the states.
        frame_change: change of these frames that must matter; large where flows are rounded.
        flow_px: scale of the flows, pixels.
    """

    name: str
    architecture: Architecture
    config: Any
    forward: tuple[str, ...] = ("forward",)
    backward: tuple[str, ...] = ("backward",)
    order: int = 1
    num_frames: int = 6
    size: tuple[int, int] = (7, 9)
    between: int = 0
    step_frames: int = 1
    options: Callable[[], dict[str, Any]] = dict
    sees_frames: bool = True
    frame_change: float = 1e-2
    flow_px: float = 3

    @property
    def spans(self) -> list[tuple[int, int]]:
        """Every clip of the video in whole steps: start, and the frame after its last."""
        starts = range(0, self.num_frames, self.step_frames)
        return list(combinations([*starts, self.num_frames], 2))

    @property
    def edge_frames(self) -> int:
        return self.architecture.contract(self.config).edge_frames  # type: ignore[union-attr]


_GRID = {
    "forward": ("forward_1", "forward_2"),
    "backward": ("backward_1", "backward_2"),
    "order": 2,
}
_TINY_PP = basicvsr_pp.BasicVSRPlusPlusConfig(channels=4, num_blocks=1, groups=2)
_TINY_ICON = iconvsr.IconVSRConfig(
    channels=4, num_blocks=1, groups=2, temporal_padding=1, keyframe_stride=2
)
_TINY_REAL = realbasicvsr.RealBasicVSRConfig(channels=4, num_blocks=1, num_cleaning_blocks=1)
_TINY_CHAIN: dict[str, Any] = {
    "channels": 8,
    "depths": (2,),
    "num_heads": (2,),
    "window": 4,
    "mid_channels": 4,
    "hr_channels": 4,
}
_PATCHES = {**_GRID, "frame_change": 10.0, "flow_px": 6.0}
_TINY_IART = iart.IARTConfig(**_TINY_CHAIN)
_TINY_PSRT = psrt.PSRTConfig(**_TINY_CHAIN)
_TINY_MIA = mia_vsr.MIAVSRConfig(**_TINY_CHAIN, use_mask=False)
_TINY_LRTI = lrti_vsr.LRTIVSRConfig(**_TINY_CHAIN)
_TINY_OVSR = ovsr.OVSRConfig(channels=4, num_precursor_blocks=1, num_successor_blocks=1)
_TINY_RVRT = rvrt.RVRTConfig(
    channels=4,
    num_blocks=(1, 1, 1),
    depths=(2, 2, 2),
    num_heads=(1, 2, 1),
    window=4,
    groups=4,
    attention_heads=4,
)
_RVRT = {
    "forward": ("forward_1", "forward_1/key", "forward_2", "forward_2/key"),
    "backward": ("backward_1", "backward_1/key", "backward_2", "backward_2/key"),
    "step_frames": 2,
}
_TINY_ZSM = zooming_slow_mo.ZoomingSlowMoConfig(
    channels=4, groups=2, num_front_blocks=1, num_back_blocks=1
)
_TINY_TMNET = tmnet.TMNetConfig(groups=1, num_front_blocks=0, num_back_blocks=0)

CASES = {
    case.name: case
    for case in (
        Case("basicvsr", basicvsr.ARCHITECTURE, basicvsr.BasicVSRConfig(channels=4, num_blocks=1)),
        Case("basicvsr_pp", basicvsr_pp.ARCHITECTURE, _TINY_PP, **_GRID),
        Case(
            "basicvsr_pp full",
            basicvsr_pp.ARCHITECTURE,
            replace(_TINY_PP, input="full"),
            **_GRID,
            size=(20, 12),
        ),
        Case("iconvsr", iconvsr.ARCHITECTURE, _TINY_ICON),
        Case(
            "iconvsr wide",
            iconvsr.ARCHITECTURE,
            replace(_TINY_ICON, temporal_padding=2, keyframe_stride=1),
        ),
        Case("realbasicvsr", realbasicvsr.ARCHITECTURE, _TINY_REAL),
        Case(
            "realbasicvsr thrice",
            realbasicvsr.ARCHITECTURE,
            _TINY_REAL,
            options=lambda: {"cleanings": torch.tensor([3, 2])},
        ),
        Case("psrt", psrt.ARCHITECTURE, _TINY_PSRT, **_PATCHES),
        Case("iart", iart.ARCHITECTURE, _TINY_IART, **_GRID),
        Case("mia_vsr", mia_vsr.ARCHITECTURE, _TINY_MIA, **_PATCHES),
        Case("lrti_vsr", lrti_vsr.ARCHITECTURE, _TINY_LRTI, **_PATCHES),
        Case("ovsr global", ovsr.ARCHITECTURE, _TINY_OVSR, ("successor",), ("precursor",)),
        Case(
            "ovsr local",
            ovsr.ARCHITECTURE,
            replace(_TINY_OVSR, kind="local"),
            ("successor", "precursor"),
            ("precursor",),
        ),
        Case("rvrt", rvrt.ARCHITECTURE, _TINY_RVRT, **_RVRT, num_frames=8),
        Case("rvrt odd", rvrt.ARCHITECTURE, _TINY_RVRT, **_RVRT, num_frames=5),
        Case(
            "zooming_slow_mo",
            zooming_slow_mo.ARCHITECTURE,
            _TINY_ZSM,
            num_frames=4,
            size=(8, 12),
            between=1,
            sees_frames=False,
        ),
        Case("tmnet", tmnet.ARCHITECTURE, _TINY_TMNET, num_frames=3, size=(4, 8), between=1),
        Case(
            "tmnet times",
            tmnet.ARCHITECTURE,
            _TINY_TMNET,
            size=(4, 8),
            between=2,
            options=lambda: {"times": [0.3, 0.6]},
        ),
    )
}


class SmallFlow(nn.Module):
    """Stands in for SpyNet, which would take most of the time: flows of a pixel or so, by two convolutions."""

    def __init__(self, flow_px: float) -> None:
        super().__init__()
        self.flow_px = flow_px
        self.body = nn.Sequential(
            nn.Conv2d(6, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 2, 3, padding=1)
        )

    def forward(self, ref: Tensor, supp: Tensor) -> Tensor:
        return self.flow_px * self.body(torch.cat([ref, supp], 1))


class Recorder:
    """Keeps the states that a network shows, by sweep and moment.

    Args:
        cut_outside: moments outside of which states let no gradient through.
    """

    def __init__(self, cut_outside: slice | None = None) -> None:
        self.states: dict[tuple[str, int], Tensor] = {}
        self._inside = cut_outside

    def __call__(self, sweep: str, moment: int, state: Tensor) -> None:
        self.states[sweep, moment] = state
        if self._inside is not None and not self._inside.start <= moment < self._inside.stop:
            state.register_hook(torch.zeros_like)


def build(case: Case) -> nn.Module:
    """Make a network in float64 whose alignments move: their last offset convolutions start at zero."""
    torch.manual_seed(0)
    network = case.architecture.build(case.config)
    for module in list(network.modules()):
        if hasattr(module, "spynet"):
            module.spynet = SmallFlow(case.flow_px)
    network.double().eval()
    for name, parameter in network.named_parameters():
        if "conv_offset" in name and name.endswith("weight"):
            nn.init.normal_(parameter, std=0.1)
        if parameter.ndim == 4 and "spynet" not in name:
            parameter.data *= 1.5  # states that reach far
    return network


def video_of(case: Case) -> Tensor:
    """(2, T, 3, H, W)."""
    generator = torch.Generator().manual_seed(1)
    return torch.rand(2, case.num_frames, 3, *case.size, generator=generator, dtype=torch.float64)


def restore(case: Case, network: nn.Module, lq: Tensor, **arguments: Any) -> Tensor:
    """Restore a clip, and cut nothing out of an autograd graph."""
    return torch.stack(list(network.restore(lq, **arguments, **case.options())), 1)  # type: ignore[operator]


def edges_of(
    case: Case, video: Tensor, states: dict[tuple[str, int], Tensor], start: int, stop: int
) -> tuple[Edge, Edge]:
    """Make both edges of frames start … stop - 1 of a video from the states that were recorded over the video."""
    before, after = range(start)[::-1], range(stop, case.num_frames)
    if case.between:
        # States are those at the frames of the edge; a space-time network has one, at the moment next to the clip.
        step = 1 + case.between
        earlier = [step * start - 1][: len(before)]
        later = [step * (stop - 1) + 1][: len(after)]
    else:
        earlier = [t // case.step_frames for t in before[:: case.step_frames]]
        later = [t // case.step_frames for t in after[:: case.step_frames]]
    return (
        _edge(case, video, states, before, earlier, case.forward),
        _edge(case, video, states, after, later, case.backward),
    )


def _edge(
    case: Case,
    video: Tensor,
    states: dict[tuple[str, int], Tensor],
    frames: range,
    moments: list[int],
    sweeps: tuple[str, ...],
) -> Edge:
    if not frames:
        return Edge()
    hidden = {
        name: tuple(states[name, m].detach() for m in moments[: case.order]) for name in sweeps
    }
    return Edge(tuple(video[:, t] for t in frames[: case.edge_frames]), hidden, frames[0])


@cache
def whole(name: str) -> tuple[nn.Module, Tensor, Tensor, dict[tuple[str, int], Tensor]]:
    """Restore the whole video: network, video, sr and states."""
    case, recorder = CASES[name], Recorder()
    network, video = build(case), video_of(case)
    with torch.no_grad():
        sr = restore(case, network, video, on_state=recorder)
    return network, video, sr, recorder.states


def steps_of(case: Case, start: int, stop: int) -> slice:
    """Where the states of frames start … stop - 1 lie among those of the video."""
    if case.step_frames == 1:
        return moments_of(case, start, stop)
    return slice(start // case.step_frames, -(-stop // case.step_frames))


def moments_of(case: Case, start: int, stop: int) -> slice:
    """Where the results of frames start … stop - 1 lie among those of the video."""
    step = 1 + case.between
    return slice(step * start, step * (stop - 1) + 1)


# TMNet with times of its own takes as long as all the others together; without, it is among the quick ones.
QUICK_AND_SLOW = [
    pytest.param(name, marks=pytest.mark.slow) if name == "tmnet times" else name for name in CASES
]


@pytest.mark.parametrize("name", QUICK_AND_SLOW)
def test_every_clip_of_a_film_gives_the_frames_of_the_film(name: str) -> None:
    case, (network, video, sr, states) = CASES[name], whole(name)
    assert sr.std() > 1e-3
    for start, stop in case.spans:
        before, after = edges_of(case, video, states, start, stop)
        with torch.no_grad():
            part = network(video[:, start:stop], before, after, **case.options())
        torch.testing.assert_close(part, sr[:, moments_of(case, start, stop)], rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", CASES)
def test_a_clip_records_the_states_of_the_film(name: str) -> None:
    case, (network, video, _, states) = CASES[name], whole(name)
    margin = case.step_frames
    start, stop = margin, (case.num_frames - 1) // margin * margin
    before, after = edges_of(case, video, states, start, stop)
    recorder = Recorder()
    with torch.no_grad():
        for _ in network.propagate(
            video[:, start:stop], before=before, after=after, on_state=recorder, **case.options()
        ):
            pass
    steps = steps_of(case, start, stop)
    assert {sweep for sweep, _ in recorder.states} == {*case.forward, *case.backward}
    count = steps.stop - steps.start
    assert len(recorder.states) == len({*case.forward, *case.backward}) * count
    for (sweep, moment), state in recorder.states.items():
        torch.testing.assert_close(state, states[sweep, steps.start + moment], rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    "name", ["basicvsr", "basicvsr_pp", "iconvsr", "ovsr local", "rvrt", "zooming_slow_mo"]
)
def test_in_single_precision_and_channels_last(name: str) -> None:
    case = CASES[name]
    network = build(case).float().to(memory_format=torch.channels_last)
    video = video_of(case).float().permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
    recorder = Recorder()
    with torch.no_grad():
        sr = restore(case, network, video, on_state=recorder)
        for start, stop in [(0, 2), (2, case.num_frames), (case.step_frames, 2 * case.step_frames)]:
            before, after = edges_of(case, video, recorder.states, start, stop)
            part = restore(case, network, video[:, start:stop], before=before, after=after)
            torch.testing.assert_close(
                part, sr[:, moments_of(case, start, stop)], rtol=0, atol=1e-5
            )


def parameter_gradients(network: nn.Module, sr: Tensor, start: int) -> dict[str, Tensor]:
    """Return the gradients of a loss in which every pixel has a weight of its own, which its video tells."""
    generator = torch.Generator().manual_seed(start)
    weights = torch.rand(sr.shape, generator=generator, dtype=sr.dtype)
    network.zero_grad()
    (sr * weights).sum().backward()
    return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


# Clips back-propagated in float64 take TMNet as long as all the others together.
WITH_GRADIENTS = [
    pytest.param(name, False, marks=pytest.mark.slow) if name.startswith("tmnet") else (name, False)
    for name in CASES
]
WITH_FROZEN_FLOW = [(name, True) for name in ("basicvsr", "basicvsr_pp", "iconvsr", "realbasicvsr")]
ONE_CLIP = (
    "iart",
    "iconvsr wide",
    "mia_vsr",
    "psrt",
    "rvrt",
    "rvrt odd",
    "zooming_slow_mo",
    "tmnet",
)
"""The slow ones back-propagate a single clip, which has both edges."""


@pytest.mark.parametrize(("name", "frozen"), [*WITH_GRADIENTS, *WITH_FROZEN_FLOW])
def test_gradients_are_those_of_the_film_cut_at_the_edges(name: str, frozen: bool) -> None:
    case, (_, video, _, _) = CASES[name], whole(name)
    network = build(case)
    flow = [part for part, _ in network.named_parameters() if "spynet" in part]
    assert flow or not frozen
    for part, parameter in network.named_parameters():
        parameter.requires_grad_(not (frozen and part in flow))
    first, second = case.step_frames, 2 * case.step_frames
    spans = [(first, second)]
    if name not in ONE_CLIP:
        spans += [(0, 2), (first, case.num_frames)]
    for start, stop in spans:
        inside = moments_of(case, start, stop)
        recorder = Recorder(cut_outside=steps_of(case, start, stop))
        full = restore(case, network, video, on_state=recorder)[:, inside]
        expected = parameter_gradients(network, full, start)
        before, after = edges_of(case, video, recorder.states, start, stop)
        part = network(video[:, start:stop], before, after, **case.options())
        actual = parameter_gradients(network, part, start)
        unused = {n for n, g in expected.items() if not g.any()}
        assert actual.keys() | unused == expected.keys() | unused
        for parameter, gradient in actual.items():
            scale = expected[parameter].abs().max().clamp(min=1)
            torch.testing.assert_close(
                gradient / scale, expected[parameter] / scale, rtol=0, atol=1e-8
            )


@pytest.mark.parametrize("name", CASES)
def test_every_map_of_an_edge_matters(name: str) -> None:
    case, (network, video, _, states) = CASES[name], whole(name)
    start, stop = (2, 4) if case.num_frames > 4 else (1, 2)
    edges = edges_of(case, video, states, start, stop)

    def run(*given: Edge) -> Tensor:
        with torch.no_grad():
            return network(video[:, start:stop], *given, **case.options())

    sr = run(*edges)
    changed = 0
    for side in (0, 1):
        for other in _perturbed(edges[side], case):
            given = list(edges)
            given[side] = other
            assert (run(*given) - sr).abs().max() > 1e-9
            changed += 1
    assert changed >= len(case.forward) * case.order + len(case.backward) * case.order


def _perturbed(edge: Edge, case: Case) -> list[Edge]:
    """Change one map of an edge, each in turn."""
    generator = torch.Generator().manual_seed(3)

    def moved(x: Tensor, change: float = 1e-2) -> Tensor:
        return x + change * torch.randn(x.shape, generator=generator, dtype=x.dtype)

    others: list[Edge] = []
    for name, states in edge.hidden.items():
        for i, state in enumerate(states):
            changed = (*states[:i], moved(state), *states[i + 1 :])
            others.append(replace(edge, hidden={**edge.hidden, name: changed}))
    # IconVSR looks at the frames near a key frame alone.
    near = 1 if case.architecture is iconvsr.ARCHITECTURE else len(edge.frames)
    for i, frame in enumerate(edge.frames[:near] if case.sees_frames else ()):
        other = moved(frame, case.frame_change)
        others.append(replace(edge, frames=(*edge.frames[:i], other, *edge.frames[i + 1 :])))
    return others


def test_the_order_of_the_states_matters() -> None:
    case, (network, video, sr, states) = CASES["basicvsr_pp"], whole("basicvsr_pp")
    before, after = edges_of(case, video, states, 2, 4)
    for sweep in before.hidden:
        swapped = replace(before, hidden={**before.hidden, sweep: before.hidden[sweep][::-1]})
        with torch.no_grad():
            assert (network(video[:, 2:4], swapped, after) - sr[:, 2:4]).abs().max() > 1e-6


# The single frame after an odd video stands for two: a second one is not further out.
@pytest.mark.parametrize("name", [name for name in CASES if name != "rvrt odd"])
def test_what_lies_further_out_changes_nothing(name: str) -> None:
    case, (network, video, _, states) = CASES[name], whole(name)
    start, stop = (2, 4) if case.num_frames > 4 else (1, 2)
    before, after = edges_of(case, video, states, start, stop)
    noise = torch.rand_like(video[:, 0])

    def widened(edge: Edge) -> Edge:
        hidden: dict[str, Past] = {
            sweep: (*past, torch.rand_like(past[0])) for sweep, past in edge.hidden.items()
        }
        return Edge((*edge.frames, noise), hidden, edge.frame_index)

    with torch.no_grad():
        sr = network(video[:, start:stop], before, after, **case.options())
        assert torch.equal(
            network(video[:, start:stop], widened(before), widened(after), **case.options()), sr
        )


@pytest.mark.parametrize("name", CASES)
def test_the_contract_says_which_states_an_edge_needs(name: str) -> None:
    case = CASES[name]
    contract = case.architecture.contract(case.config)
    expected = EdgeStates(before=case.forward, after=case.backward, order=case.order)
    assert contract is not None
    assert contract.edge_states == expected


def test_a_film_in_windows_goes_on_from_what_was_given_out() -> None:
    """Two frames a window, with one more ahead, whose last sweep and image are never computed."""
    case, (network, video, sr, states) = CASES["basicvsr"], whole("basicvsr")
    before, store, out = Edge(), FeatureStore(), []
    with torch.no_grad():
        for start in range(0, case.num_frames, 2):
            recorder, stop = Recorder(), min(start + 3, case.num_frames)
            after = Edge() if stop == case.num_frames else Edge(frame_index=stop)
            stream = network.restore(
                video[:, start:stop], before=before, after=after, on_state=recorder, store=store
            )  # type: ignore[operator]
            out += [next(stream), next(stream)]
            stream.close()
            assert ("forward", 2) not in recorder.states
            assert len(store) == 0
            state = recorder.states["forward", 1]
            assert torch.equal(state, states["forward", start + 1])
            before = Edge((video[:, start + 1],), {"forward": (state,)}, start + 1)
    # The end of the video is known to the last window alone; the others approximate what comes after them.
    torch.testing.assert_close(out[-1], sr[:, -1], rtol=0, atol=1e-10)
    assert 0 < (torch.stack(out, 1) - sr).abs().max() < 0.1 * sr.std()


def test_every_streaming_network_is_here() -> None:
    streaming = set()
    for architecture in ARCHITECTURES:
        contract = architecture.contract(architecture.config())
        # TTVSR keeps a state for every key frame, so it has no constant states at its edges.
        if contract is not None and contract.streams and architecture.name != "TTVSR":
            streaming.add(architecture.name)
    assert streaming == {case.architecture.name for case in CASES.values()}
