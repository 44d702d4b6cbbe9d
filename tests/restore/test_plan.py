import json
import re
from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path

import pytest

from tubelet.errors import ConfigError
from tubelet.layers.recurrence import EdgeStates
from tubelet.models.architecture import Contract
from tubelet.restore.plan import MemoryBudget, MemoryCost, Plan, WindowPlan, plan_restoration
from tubelet.restore.settings import UpscaleSettings
from tubelet.restore.tiles import plan_tiles
from tubelet.types import Temporal

CONTRACTS = {
    "frame": Contract(scale=4, temporal=Temporal("frame"), halo_px=10),
    "coarse": Contract(
        scale=2, temporal=Temporal("frame"), halo_px=30, size_multiple=16, min_size_px=64
    ),
    "window": Contract(scale=4, temporal=Temporal("window", radius=2), halo_px=20),
    "encodes": Contract(scale=4, temporal=Temporal("window", radius=2), halo_px=48, encodes=True),
    "online": Contract(scale=3, temporal=Temporal("online", lookahead=1), halo_px=8),
    "clip": Contract(
        scale=4, temporal=Temporal("clip", window_frames=7, overlap_frames=2), halo_px=16
    ),
    "scene": Contract(scale=4, temporal=Temporal("clip"), halo_px=32),
    "stream": Contract(scale=4, temporal=Temporal("clip"), halo_px=128, streams=True),
    "states": Contract(
        scale=4,
        temporal=Temporal("clip"),
        halo_px=64,
        streams=True,
        edge_frames=2,
        edge_states=EdgeStates(before=("forward",), order=2),
    ),
    "pairs": Contract(
        scale=4,
        temporal=Temporal("clip"),
        halo_px=64,
        streams=True,
        edge_frames=2,
        edge_states=EdgeStates(before=("forward",)),
        lookahead_frames=5,
        frame_multiple=2,
    ),
}
COST = MemoryCost(
    call_bytes_per_px=20_000.0,
    stream_bytes_per_px=9_000.0,
    feature_bytes_per_px=512.0,
    encoding_bytes_per_px=672.0,
)
SIZES = [(16, 16), (48, 64), (90, 160), (333, 77), (720, 1280), (2160, 3840)]
BUDGETS = [2**20, 2**28, 2**33, 2**37]


def plan_of(
    kind: str,
    size: tuple[int, int] = (90, 160),
    budget_bytes: int = 2**33,
    *,
    device: str = "cpu",
    cost: MemoryCost = COST,
    **settings,
) -> Plan:
    budget = MemoryBudget(device_bytes=budget_bytes, host_bytes=2**34, file_bytes=2**36)
    contract = CONTRACTS[kind]
    if device != "cpu":
        contract = replace(contract, precisions=("fp32", "fp16"))
    return plan_restoration(
        *size,
        contract,
        UpscaleSettings(**settings),
        budget=budget,
        cost=cost,
        device=device,
        precision="fp32" if device == "cpu" else "fp16",
    )


@pytest.mark.parametrize("kind", CONTRACTS)
@pytest.mark.parametrize("device", ["cpu", "cuda:1"])
def test_a_plan_survives_json(kind, device):
    plan = plan_of(kind, device=device, scale=2)
    plan = replace(plan, budget=replace(plan.budget, folder=Path("/tmp/x")))
    text = plan.to_json()
    assert "\n" not in text
    assert json.loads(text)["contract"]["temporal"]["kind"] == plan.contract.temporal.kind
    again = Plan.from_json(text)
    assert again == plan
    assert hash(again) == hash(plan)
    if (smaller := plan.smaller()) is not None:
        assert again.smaller() == smaller


def test_text_that_is_no_plan_is_refused_in_one_line():
    with pytest.raises(ConfigError, match="not JSON"):
        Plan.from_json("{")
    with pytest.raises(ConfigError, match="unknown key 'tile'"):
        Plan.from_json('{"tile": 3}')


@pytest.mark.parametrize(
    ("kind", "changes", "words"),
    [
        ("frame", {"padded": [64]}, "has 1 values; it must have 2"),
        ("frame", {"padded": [32, 32]}, "padded=(32, 32) must be (90, 160)"),
        ("frame", {"output": [1, 2, 3]}, "has 3 values"),
        ("frame", {"tiles": []}, "tiles do not match tile_px=0"),
        ("frame", {"tile_px": 32}, "tiles do not match tile_px=32; to change"),
        ("frame", {"segment_frames": 0}, "segment_frames=0 must be at least 1"),
        ("frame", {"output": [0, 8]}, "output=(0, 8) must be at least 1"),
        ("frame", {"precision": "fp16"}, "loses quality with this model; use one of fp32"),
        ("frame", {"keep_encodings": True}, "keep_encodings must be false"),
        ("frame", {"doubles_rate": True}, "doubles_rate must be false"),
        ("frame", {"window": {"frames": 5, "overlap": 1}}, "only clip models have window"),
        ("scene", {"window": None}, "a clip model needs window"),
        ("scene", {"window": {"frames": 4, "overlap": 4}}, "must have 0 ≤ overlap < frames"),
        ("scene", {"window": {"frames": 4, "lookahead": 1}}, "cannot continue from states"),
        ("pairs", {"window": {"frames": 5, "lookahead": 2}}, "in multiples of 2"),
        ("scene", {"features": {}}, "features must be null: this model cannot stream"),
    ],
)
def test_a_plan_whose_values_contradict_each_other_is_refused(kind, changes, words):
    data = json.loads(plan_of(kind).to_json()) | changes
    with pytest.raises(ConfigError, match=re.escape(words)) as caught:
        Plan.from_json(json.dumps(data))
    assert "\n" not in str(caught.value)


def test_a_plan_that_is_nested_without_end_is_refused():
    with pytest.raises(ConfigError, match="not JSON"):
        Plan.from_json("[" * 100_000)


def test_a_plan_is_a_pure_function_of_its_arguments():
    for kind, size in product(CONTRACTS, SIZES):
        assert plan_of(kind, size) == plan_of(kind, size)


@pytest.mark.parametrize("kind", CONTRACTS)
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_fallback_ends_and_every_step_needs_less_memory(kind, device):
    unknown = replace(COST, call_bytes_per_px=None)
    sizes = SIZES[:-1]  # the largest is cut into thousands of tiles, again and again
    for size, budget, (scale, cost) in product(sizes, BUDGETS, ((None, COST), (2, unknown))):
        plan = plan_of(kind, size, budget, device=device, scale=scale, cost=cost)
        steps = [plan]
        while (smaller := steps[-1].smaller()) is not None:
            steps.append(smaller)
            assert len(steps) < 40
        for before, after in pairwise(steps):
            moved = before.device != "cpu" and after.device == "cpu"
            assert moved or (
                after.device == before.device and after.memory_bytes < before.memory_bytes
            )
            assert (after.height, after.width, after.output) == (*size, plan.output)
        last = steps[-1]
        assert last.device == "cpu"
        assert not last.keep_encodings
        if not last.is_streamed:
            # No smaller tile would see less.
            min_px = max(32, CONTRACTS[kind].min_size_px)
            tiles = plan_tiles(*last.padded, min_px, last.contract)
            assert max(tile.area_px for tile in tiles) >= max(tile.area_px for tile in last.tiles)


@pytest.mark.parametrize("kind", CONTRACTS)
def test_a_plan_keeps_to_its_budget_where_the_smallest_tile_does(kind):
    for size, budget in product(SIZES, BUDGETS):
        plan = plan_of(kind, size, budget)
        if plan.tile_px > 64 or not plan.tile_px:
            # Windows have at least 16 frames, and tiles at least 32 pixels, whatever the budget.
            short_window = plan.window is not None and plan.window.frames <= 16
            assert plan.memory_bytes <= 1.5 * budget or short_window or budget == 2**20


def test_more_memory_never_gives_smaller_tiles():
    for kind, size in product(CONTRACTS, SIZES):
        plans = [plan_of(kind, size, budget) for budget in BUDGETS]
        sides = [min(plan.tile_px or max(size), max(size)) for plan in plans]
        assert sides == sorted(sides)


def test_a_stream_that_does_not_fit_gets_shorter_windows_and_then_tiles():
    plans = [plan_of("stream", (720, 1280), 2**35)]
    while (smaller := plans[-1].smaller()) is not None:
        plans.append(smaller)
    streamed = [plan for plan in plans if plan.is_streamed]
    windows = [plan.window.frames for plan in streamed if plan.window is not None]
    assert windows[1:] == [64, 16]
    assert streamed == plans[:3]
    assert plans[3].tile_px > 0


def test_windows_that_continue_from_states_are_short_and_look_ahead():
    cost = replace(COST, call_bytes_per_px=500.0)
    plan = plan_of("states", (180, 320), 2**37, cost=cost)
    assert plan.is_streamed
    assert plan.window == WindowPlan(frames=60, lookahead=8)
    assert plan_of("states", (180, 320), 2**37, tile=64).window == plan.window
    windows = [plan.window]
    while (smaller := plan.smaller()) is not None:
        plan = smaller
        if plan.window != windows[-1]:
            windows.append(plan.window)
    # A window never looks ahead further than it gives out.
    assert windows == [
        WindowPlan(frames=60, lookahead=8),
        WindowPlan(frames=16, lookahead=8),
        WindowPlan(frames=17, lookahead=8),  # batched
        WindowPlan(frames=8, lookahead=4),
        WindowPlan(frames=4, lookahead=2),
    ]


@pytest.mark.parametrize(
    ("kind", "carries_state", "context", "step"),
    [
        ("frame", False, (0, 0), 1),
        ("online", True, (0, 1), 1),
        ("stream", False, None, 1),
        ("states", True, (0, 8), 52),
    ],
)
def test_segments_that_continue_from_a_state_need_less_context(kind, carries_state, context, step):
    plan = plan_of(kind, budget_bytes=2**37)
    assert plan.carries_state == carries_state
    assert plan.segment_step == step
    if context is not None:
        assert plan.context_frames_with_state == context


def test_segments_shorter_than_a_window_may_end_anywhere_between_states():
    plan = plan_of("pairs", budget_bytes=2**37)
    assert plan.window == WindowPlan(frames=60, lookahead=4)
    assert plan.segment_step == 56
    assert replace(plan, segment_frames=55).segment_step == 2


def test_frames_of_a_window_model_are_encoded_once_where_memory_allows():
    assert plan_of("encodes", (180, 320), 2**33).keep_encodings
    assert not plan_of("encodes", (2160, 3840), 2**33).keep_encodings
    assert not plan_of("window", (180, 320), 2**33).keep_encodings


def test_requested_tiles_are_used_and_rule_out_streaming():
    plan = plan_of("stream", (720, 1280), 2**37, tile=256)
    assert plan.tile_px == 256
    assert not plan.is_streamed
    assert plan_of("stream", (720, 1280), 2**37, tile=0).is_streamed


def test_the_cpu_takes_over_at_the_tile_that_its_own_memory_allows():
    plan = plan_of("frame", (720, 1280), 2**28, device="cuda:0")
    while plan.device != "cpu":
        smaller = plan.smaller()
        assert smaller is not None
        plan = smaller
    assert plan.tile_px > 32
    assert plan.precision == "fp32"
    # Half-precision numbers become twice as large.
    assert plan.cost.call_bytes_per_px == 40_000


def test_encodings_need_twice_the_memory_on_a_cpu_that_computes_in_fp32():
    # In fp16 the encodings of 5 frames would take 6.4 GiB, less than half of the 16 GiB of the host.
    size = (720, 1280)
    cost = replace(COST, encoding_bytes_per_px=1500.0)
    plan = plan_of("encodes", size, 2**33, device="cuda:0", cost=cost)
    while plan.device != "cpu":
        smaller = plan.smaller()
        assert smaller is not None
        plan = smaller
    assert plan.cost.encoding_bytes_per_px == 3000
    assert not plan.keep_encodings


@pytest.mark.parametrize(
    ("kind", "context"),
    [
        ("frame", (0, 0)),
        ("window", (2, 2)),
        ("online", (16, 1)),
        ("scene", (16, 16)),
        ("states", (16, 16)),
    ],
)
def test_segments_inside_a_scene_come_with_context(kind, context):
    assert plan_of(kind).context_frames == context


@pytest.mark.parametrize(
    ("device", "budget", "expected"),
    [("cpu", 2**26, (None, 2**25)), ("cpu", 2**40, (None, 2**29)), ("cuda", 2**33, (2**32, 2**29))],
)
def test_features_are_bounded_on_the_device_and_on_the_host(device, budget, expected):
    features = plan_of(
        "stream", (90, 160), budget, device=device, cost=replace(COST, stream_bytes_per_px=1)
    ).features
    assert features is not None
    assert (features.device_bytes, features.host_bytes) == expected
