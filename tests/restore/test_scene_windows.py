"""Windows that continue from states: the whole scene, but for the end of what each looks ahead."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from helpers.toy_models import (
    FORWARD,
    FRAME,
    PAIRS,
    RECURRENT,
    build,
    clip_of,
    cuts_at,
    direct,
    frames_of,
)
from helpers.videos import image
from helpers.zoo_configs import TINY, architecture_of
from tubelet.layers.recurrence import Edge
from tubelet.models import basicvsr_pp, ovsr
from tubelet.models.architecture import Contract
from tubelet.restore.engine import Engine
from tubelet.restore.memory import peak_tensor_bytes
from tubelet.restore.plan import MemoryCost, Plan
from tubelet.restore.runner import TorchRunner
from tubelet.restore.settings import UpscaleSettings
from tubelet.restore.window_plan import WindowPlan
from tubelet.types import Frame
from tubelet.zoo.architectures import ARCHITECTURES
from tubelet.zoo.spec import ModelSpec

IDS: Any = {"ids": lambda spec: spec.id if isinstance(spec, ModelSpec) else None}
NEVER = cuts_at()
COST = MemoryCost(call_bytes_per_px=100.0, stream_bytes_per_px=100.0, feature_bytes_per_px=10.0)


@pytest.fixture(autouse=True)
def unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole images, whatever memory they take: to measure it takes longer than these tests."""
    monkeypatch.setattr(TorchRunner, "memory_cost", lambda _: COST)


def engine_of(spec: ModelSpec, model: nn.Module | None = None, **settings: Any) -> Engine:
    settings = {"device": "cpu", "precision": "fp32", **settings}
    return Engine(spec, model or build(spec), UpscaleSettings(**settings))


def plan_of(engine: Engine, clip: Tensor, window: WindowPlan | None, **fields: Any) -> Plan:
    plan = replace(engine.plan(*clip.shape[-2:]), **fields)
    return plan if window is None else replace(plan, window=window)


def restored(engine: Engine, clip: Tensor, window: WindowPlan | None, *cuts: int) -> Tensor:
    frames = engine.restore(
        frames_of(clip), plan=plan_of(engine, clip, window), starts_scene=cuts_at(*cuts)
    )
    return torch.stack([frame.rgb for frame in frames])


def worst_psnr(sr: Tensor, expected: Tensor) -> float:
    error = (sr - expected).square().mean((1, 2, 3)).max()
    return float(-10 * error.clamp_min(1e-16).log10())


def moving_clip(num_frames: int, height: int, width: int) -> Tensor:
    clip = torch.stack([torch.from_numpy(image(t, width, height)) for t in range(num_frames)])
    return clip.permute(0, 3, 1, 2).float() / 255


# Every network of the zoo that hands over states.


@dataclass(frozen=True)
class Case:
    """A network with random weights."""

    name: str
    config: Any
    size: tuple[int, int] = (18, 21)

    @property
    def contract(self) -> Contract:
        contract = architecture_of(self.name).contract(self.config)
        assert contract is not None
        return contract

    def build(self) -> tuple[ModelSpec, nn.Module]:
        torch.manual_seed(0)
        network = architecture_of(self.name).build(self.config).eval()
        for name, parameter in network.named_parameters():
            if "offset" in name:
                nn.init.normal_(parameter, std=0.05)
        return replace(FRAME, id=self.name, contract=self.contract, build=lambda: network), network


def _cases() -> Iterator[Case]:
    for architecture in ARCHITECTURES:
        config = TINY.get(architecture.name)
        contract = None if config is None else architecture.contract(config)
        if contract is not None and contract.edge_frames:
            yield Case(architecture.name, config)
    full = basicvsr_pp.BasicVSRPlusPlusConfig(channels=8, num_blocks=1, groups=2, input="full")
    yield Case("BasicVSRPlusPlus", full, size=(38, 42))
    local = replace(TINY["OVSR"], kind="local")
    assert isinstance(local, ovsr.OVSRConfig)
    yield Case("OVSR", local)


CASES = list(_cases())


def every_case(*quick: str) -> Any:
    """Run a test for all cases; those whose ids do not begin with one of these names are slow."""
    cases: list[Any] = []
    for case in CASES:
        case_id = f"{case.name}-{case.size[0]}"
        marks = [] if case_id.startswith(quick) else pytest.mark.slow
        cases.append(pytest.param(case, id=case_id, marks=marks))
    return pytest.mark.parametrize("case", cases)


@every_case("BasicVSR", "RealBasicVSR", "IconVSR", "OVSR", "ZoomingSlowMo")
@pytest.mark.parametrize("is_streamed", [True, False])
def test_windows_that_see_the_rest_of_the_scene_give_the_whole_scene(
    case: Case, is_streamed: bool
) -> None:
    """So nothing is lost at a seam; windows of one frame are shorter than what an edge holds."""
    spec, network = case.build()
    num_frames = 5 if case.contract.temporal.between_frames else 7
    clip = moving_clip(num_frames, *case.size)
    engine = engine_of(spec, network)
    plan = plan_of(engine, clip, None)
    if not is_streamed:
        plan = replace(plan, features=None)
    with torch.no_grad():
        whole = list(
            engine.runner.restore_window(
                clip[None], plan, before=Edge(), after=Edge(), num_frames=num_frames
            )
        )

    edge, out, start = Edge(), [], 0

    def window(num_frames: int) -> Iterator[Tensor]:
        nonlocal edge
        edge = yield from engine.runner.restore_window(
            clip[None, start:], plan, before=edge, after=Edge(), num_frames=num_frames
        )

    for stop in (1, 2, 4, num_frames):
        out += window(stop - start)
        start = stop
        assert edge.frame_index == stop - 1
    torch.testing.assert_close(torch.stack(out), torch.stack(whole), rtol=0, atol=1e-5)
    assert torch.stack(whole).std() > 1e-3


@every_case("BasicVSR-", "OVSR")
def test_no_seam_shows_at_the_look_ahead_of_the_contract(case: Case) -> None:
    spec, network = case.build()
    lookahead = case.contract.lookahead_frames
    clip = moving_clip(2 * lookahead + 8, *case.size)
    engine = engine_of(spec, network)
    sr = restored(engine, clip, WindowPlan(frames=lookahead + 4, lookahead=lookahead))
    whole = restored(engine, clip, WindowPlan(frames=len(clip), lookahead=lookahead))
    assert worst_psnr(sr, whole) > 50


def test_forward_states_are_those_of_the_whole_scene_bit_for_bit() -> None:
    spec, network = CASES[0].build()
    assert spec.id == "BasicVSR"
    clip = moving_clip(11, 18, 21)
    engine = engine_of(spec, network)

    def forward_states(window: WindowPlan) -> list[Tensor]:
        states: list[Tensor] = []
        restore = network.restore

        def recording(lq: Tensor, *, on_state: Callable[[str, int, Tensor], None], **edges: Any):
            def observe(name: str, t: int, state: Tensor) -> None:
                on_state(name, t, state)
                if name == "forward":
                    states.append(state.clone())

            return restore(lq, on_state=observe, **edges)

        network.restore = recording
        restored(engine, clip, window)
        network.restore = restore
        return states

    windows = forward_states(WindowPlan(frames=4, lookahead=1))
    whole = forward_states(WindowPlan(frames=11, lookahead=1))
    assert len(windows) == len(whole) == 11
    assert all(map(torch.equal, windows, whole))


def test_states_beat_an_overlap_that_takes_more_time() -> None:
    """A frame is seen by 1.5 windows with states, and by 1.8 windows that overlap."""
    spec, network = CASES[0].build()
    clip = moving_clip(15, 18, 21)
    engine = engine_of(spec, network)
    whole = restored(engine, clip, WindowPlan(frames=15, lookahead=3))
    continued = restored(engine, clip, WindowPlan(frames=9, lookahead=3))
    overlapping = restored(engine, clip, WindowPlan(frames=9, overlap=4))
    assert worst_psnr(continued, whole) > worst_psnr(overlapping, whole) + 1


def test_memory_is_returned_after_every_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the heap keeps holes between what one window hands to the next, and grows."""
    returned: list[int] = []
    num_done = 0
    monkeypatch.setattr(
        "tubelet.restore.engine.return_freed_memory", lambda: returned.append(num_done)
    )
    engine = engine_of(RECURRENT)
    clip = clip_of(10, 8, 8)
    window = WindowPlan(frames=5, overlap=0, lookahead=1)
    plan = plan_of(engine, clip, window)
    for _ in engine.restore(frames_of(clip), plan=plan, starts_scene=NEVER):
        num_done += 1
    assert returned == [4, 8, 10]


def test_look_ahead_frames_are_not_reconstructed() -> None:
    spec, network = CASES[0].build()
    clip = moving_clip(12, 18, 21)
    engine = engine_of(spec, network)
    calls = {"backward_trunk": 0, "forward_trunk": 0, "conv_last": 0}

    def count(name: str) -> None:
        calls[name] += 1

    for name in calls:
        getattr(network, name).register_forward_hook(lambda *_, name=name: count(name))
    restored(engine, clip, WindowPlan(frames=6, lookahead=2))
    # Windows of 0 to 5, 4 to 9 and 8 to 11: the last one sees the end of the scene.
    assert calls["backward_trunk"] == 6 + 6 + 4
    assert calls["forward_trunk"] == 12
    assert calls["conv_last"] in (0, 12)  # 0: fused with other layers
    assert engine.notes == []


@pytest.mark.parametrize("is_streamed", [True, False])
@pytest.mark.parametrize("spec", [RECURRENT, PAIRS], **IDS)
def test_windows_begin_at_the_seam_with_states(spec: ModelSpec, is_streamed: bool) -> None:
    model, clip = build(spec), clip_of(19)
    engine = engine_of(spec, model)
    plan = plan_of(engine, clip, WindowPlan(frames=8, lookahead=2))
    if not is_streamed:
        plan = replace(plan, features=None)
    sr = torch.stack(
        [f.rgb for f in engine.restore(frames_of(clip), plan=plan, starts_scene=cuts_at(13))]
    )
    # Frames 0 to 7, 6 to 12, and after the cut 13 to 18; pairs are filled up.
    assert model.calls == ([8, 8, 6] if spec is PAIRS else [8, 7, 6])
    expected = torch.cat([direct_of(spec, clip[:13]), direct_of(spec, clip[13:])])
    assert worst_psnr(sr, expected) > 30
    torch.testing.assert_close(sr[6:], expected[6:], rtol=0, atol=1e-5)


def direct_of(spec: ModelSpec, clip: Tensor) -> Tensor:
    """Restore a scene in one call; a frame that lacks for a pair is a repetition of the last."""
    missing = -len(clip) % spec.contract.frame_multiple
    filled = torch.cat([clip, *[clip[-1:]] * missing])
    return direct(spec, build(spec), filled)[: len(clip)]


@pytest.mark.parametrize("size", [(70, 100), (41, 37)])
@pytest.mark.parametrize("spec", [RECURRENT, FORWARD], **IDS)
def test_tiles_crop_the_states_of_the_whole_image(spec: ModelSpec, size: tuple[int, int]) -> None:
    clip = clip_of(12, *size)
    window = WindowPlan(frames=5, lookahead=2)
    untiled = restored(engine_of(spec, tile=0), clip, window)
    tiled = restored(engine_of(spec, tile=32), clip, window)
    torch.testing.assert_close(tiled, untiled, rtol=0, atol=1e-5)


@every_case("OVSR", "IconVSR", "BasicVSRPlusPlus-38")
def test_states_of_any_size_are_cut_into_tiles(case: Case) -> None:
    """Both see the rest of the scene, so they differ by rounding only."""
    spec, network = case.build()
    clip = moving_clip(4, 35, 70)[None]
    engine = engine_of(spec, network, tile=64)
    plan = engine.plan(35, 70)
    assert len(plan.tiles) > 1
    run = engine.runner.restore_window
    with torch.no_grad():
        whole = list(run(clip, plan, before=Edge(), after=Edge(), num_frames=4))

    edge, out = Edge(), []

    def window(start: int, num_frames: int) -> Iterator[Tensor]:
        nonlocal edge
        lq = clip[:, start:]
        edge = yield from run(lq, plan, before=edge, after=Edge(), num_frames=num_frames)

    out += window(0, 2)
    out += window(2, 2)
    # Near the seam of two tiles, a tile sees less of the states than of its own.
    assert worst_psnr(torch.stack(out), torch.stack(whole)) > 60


def test_tiles_continue_from_a_whole_image_and_the_other_way_round() -> None:
    """As when memory runs out: the states are whole images, whatever the tiles."""
    clip = clip_of(12, 70, 100)
    engine = engine_of(FORWARD, tile=0)
    whole = plan_of(engine, clip, WindowPlan(frames=5, lookahead=2))
    tiled = plan_of(
        engine_of(FORWARD, tile=32), clip, WindowPlan(frames=5, lookahead=2), features=None
    )
    assert len(tiled.tiles) > 1
    edge, out = Edge(), []

    def window(start: int, plan: Plan) -> Iterator[Tensor]:
        nonlocal edge
        after = Edge(frame_index=start + 6)
        edge = yield from engine.runner.restore_window(
            clip[None, start : start + 6], plan, before=edge, after=after, num_frames=3
        )

    for start, plan in ((0, whole), (3, tiled), (6, whole)):
        out += window(start, plan)
    expected = direct(FORWARD, build(FORWARD), clip)[:9]
    torch.testing.assert_close(torch.stack(out), expected, rtol=0, atol=1e-5)


class FailsOnce(nn.Module):
    """Runs out of memory at one of its results, if the clip is longer than some frames."""

    def __init__(self, model: nn.Module, at: int, max_frames: int) -> None:
        super().__init__()
        self.model, self.at, self.max_frames = model, at, max_frames
        self.num_results = 0

    def restore(self, lq: Tensor, **edges: Any) -> Iterator[Tensor]:
        for sr in self.model.restore(lq, **edges):
            if self.num_results == self.at and lq.shape[1] > self.max_frames:
                raise MemoryError
            self.num_results += 1
            yield sr

    def propagate(self, lq: Tensor, **edges: Any) -> Iterator[object]:
        return self.model.propagate(lq, **edges)


@pytest.mark.parametrize("at", [0, 3, 30, 52, 60, 73])
@pytest.mark.parametrize("max_frames", [16, 8])
def test_when_memory_runs_out_the_states_are_kept(at: int, max_frames: int) -> None:
    """The network has no backward sweep, so any lost state or frame would show."""
    clip = clip_of(80, 8, 8)
    model = FailsOnce(build(FORWARD), at, max_frames)
    engine = engine_of(FORWARD, model)
    out = list(engine.restore(frames_of(clip), starts_scene=cuts_at()))
    assert [frame.index for frame in out] == list(range(80))
    expected = direct(FORWARD, build(FORWARD), clip)
    torch.testing.assert_close(torch.stack([f.rgb for f in out]), expected, rtol=0, atol=1e-5)
    assert engine.notes[0] == "out of memory: continuing with windows of 16 frames"
    assert engine.notes[1:] == (
        ["out of memory: continuing with windows of 8 frames"] if max_frames == 8 else []
    )


def test_states_of_another_device_are_converted() -> None:
    engine = engine_of(FORWARD)
    runner = engine.runner
    assert isinstance(runner, TorchRunner)
    state = torch.zeros(1, 2, 3, 4, dtype=torch.float16)
    assert runner._load_state(state) is state
    runner.device = torch.device("meta")
    assert runner._load_state(state).dtype == torch.float32


# Any number of frames, any windows.

settings.register_profile("tubelet", deadline=None, max_examples=60, derandomize=True)
settings.load_profile("tubelet")

windows = st.tuples(st.integers(1, 9), st.integers(0, 5))


@given(
    num_frames=st.integers(1, 24),
    window=windows,
    cuts=st.sets(st.integers(1, 23), max_size=3),
    group=st.sampled_from((1, 2)),
)
def test_any_windows_give_the_frames_of_the_whole_scene(
    num_frames: int, window: tuple[int, int], cuts: set[int], group: int
) -> None:
    """The backward sweep has no effect here: so every frame must be exact, and each comes once."""
    step, lookahead = window
    spec = FORWARD if group == 1 else PAIRS
    model, clip = build(spec), clip_of(num_frames, 8, 8)
    if spec is PAIRS:
        nn.init.zeros_(model.backward_body.weight)
        nn.init.zeros_(model.backward_body.bias)
    engine = engine_of(spec, model)
    plan = WindowPlan(frames=group * (step + lookahead), lookahead=group * lookahead)
    sr = restored(engine, clip, plan, *cuts)

    starts = [0, *sorted(cut for cut in cuts if cut < num_frames), num_frames]
    expected: list[Tensor] = []
    for start, stop in pairwise(starts):
        scene = clip[start:stop]
        filled = torch.cat([scene, *[scene[-1:]] * (-len(scene) % group)])
        expected.append(direct(spec, model, filled)[: stop - start])
    torch.testing.assert_close(sr, torch.cat(expected), rtol=0, atol=1e-5)


def test_memory_does_not_grow_with_the_scene() -> None:
    engine = engine_of(RECURRENT)
    plan = plan_of(engine, clip_of(1, 16, 16), None)
    assert plan.window == WindowPlan(frames=60, lookahead=6)

    def peak_bytes(num_frames: int) -> int:
        def run() -> None:
            frames = (
                Frame(torch.rand(3, 16, 16), t, frames_of(clip_of(1))[0].time_base)
                for t in range(num_frames)
            )
            for _ in engine.restore(frames, plan=plan, starts_scene=lambda _: False):
                pass

        return peak_tensor_bytes(run)

    assert peak_bytes(300) <= 1.05 * peak_bytes(60)
