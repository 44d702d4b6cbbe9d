"""The plan of a restoration: everything that is decided before the first frame, as one value.

    input size, model's contract, settings, memory budget ── plan_restoration ── Plan
                                                 Plan.smaller() ── Plan that needs less memory ── … ── None

A plan is a pure function of its arguments. It is written to JSON and read back equal, so that `--dry-run` can
print it, a journal can keep it, and another process can follow it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from tubelet.errors import ConfigError
from tubelet.layers.store import FeatureLimits
from tubelet.models.architecture import Contract
from tubelet.plain_data import build, to_plain
from tubelet.restore.settings import UpscaleSettings
from tubelet.restore.tiles import (
    MIN_TILE_PX,
    Tile,
    choose_tile,
    output_size,
    padded_size,
    plan_tiles,
)
from tubelet.types import Precision

__all__ = ["MemoryBudget", "MemoryCost", "Plan", "WindowPlan", "plan_restoration"]

MIN_WINDOW_FRAMES = 16
"""Shortest window of a clip model that names none."""
MAX_WINDOW_FRAMES = 100
"""Longest window whose results come all at once."""
MAX_STREAMED_FRAMES = 3000
"""Longest window whose results come one by one: two minutes of video before the first result. `upscale` stays far below
it, since its segments are shorter."""
MAX_SEGMENT_FRAMES = 1000
"""A longer scene is restored in several segments."""
MIN_SEGMENT_FRAMES = 100
"""Shorter scenes share a segment: each begins with a keyframe, and short segments make a larger file."""
DEFAULT_OVERLAP_FRAMES = 8
"""Frames that windows share where the contract names none."""
MAX_HOST_FEATURE_BYTES = 2**29
"""Features beyond it go to a file, which the system keeps in memory as long as nobody else needs it."""
_DESCENT_STREAM_FRAMES = (64, MIN_WINDOW_FRAMES)
"""Windows that a streaming model tries when memory runs out. Few: every try begins the window anew."""
_MIN_DESCENT_WINDOW_FRAMES = 4
"""Shortest window of such a model when memory runs out."""
_FRAME_COPIES = 3
"""Of the frames of a window: as they came, as one tensor, and in the layout of the network."""
_FRAME_BYTES_PER_PX = 12
"""Three channels of float32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryBudget:
    """How many bytes a run may take, and where."""

    device_bytes: int
    """On the device that computes."""
    host_bytes: int
    """In the memory of the host: the same bytes where the CPU computes."""
    file_bytes: int = 0
    """In a temporary file."""
    folder: Path | None = None
    """Of that file; None is the system's folder for temporary files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryCost:
    """How much memory a model takes, in bytes per lq pixel, as measured on a small image."""

    call_bytes_per_px: float | None
    """Of a call: per pixel of one image, for a clip model per pixel of each of its frames. None: even the small
    image did not fit, or nothing depends on it."""
    stream_bytes_per_px: float = 0.0
    """Of a call that gives frames one by one, without the features that it keeps."""
    feature_bytes_per_px: float = 0.0
    """Of the features that such a call keeps of each frame."""
    encoding_bytes_per_px: float = 0.0
    """Of what a window model computes of each frame by itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowPlan:
    """How many frames a clip model sees at once."""

    frames: int
    """Frames of a window."""
    overlap: int
    """Frames that consecutive windows share; the seam lies in their middle."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How a video, or any stream of frames of one size, is restored."""

    height: int
    """Of the input, pixels."""
    width: int
    """Of the input, pixels."""
    padded: tuple[int, int]
    """Height and width that the network gets, pixels."""
    output: tuple[int, int]
    """Width and height of the output, pixels."""
    doubles_rate: bool
    """Whether a frame half-way follows every frame but the last."""
    contract: Contract
    """What the model needs."""
    device: str
    """Where the model computes."""
    precision: Precision
    """Number format inside the model."""
    cpu_precision: Precision
    """The same, where the CPU has to take over."""
    tile_px: int
    """Side of the part that a tile keeps, lq pixels; 0 is the whole image."""
    requested_tile_px: int | None
    """The same, as the settings ask for it; None leaves it to the memory."""
    tiles: tuple[Tile, ...]
    """They cover the padded image."""
    window: WindowPlan | None = None
    """Of a clip model; None for the other kinds."""
    features: FeatureLimits | None = None
    """Where the features of a window lie, for a model that gives frames one by one; None: all at once."""
    keep_encodings: bool = False
    """Whether the engine keeps what a window model computes of each frame by itself."""
    segment_frames: int = MAX_SEGMENT_FRAMES
    """Most frames of a segment; a longer scene has several."""
    min_segment_frames: int = MIN_SEGMENT_FRAMES
    """A segment ends at the first cut from this many frames on."""
    budget: MemoryBudget
    """Memory that the plan was made for."""
    cost: MemoryCost
    """Memory that the model takes."""

    @property
    def context_frames(self) -> tuple[int, int]:
        """Frames before and after a segment that are restored with it, where its ends lie inside a scene."""
        temporal = self.contract.temporal
        match temporal.kind:
            case "frame":
                return 0, 0
            case "window":
                return temporal.radius, temporal.radius
            case "online":
                return self.contract.warmup_frames, temporal.lookahead
            case "clip":
                warmup = max(self.contract.warmup_frames, temporal.overlap_frames)
                return warmup, warmup

    @property
    def memory_bytes(self) -> float:
        """Estimate what the largest call takes on the device."""
        if self.features is not None and self.window is not None:
            return _stream_bytes(self.padded, self.window.frames, self.features, self.cost)
        frames = 1 if self.window is None else self.window.frames
        largest_px = max(tile.area_px for tile in self.tiles)
        total = largest_px * frames * (self.cost.call_bytes_per_px or 1.0)
        if self.keep_encodings:
            total += _encoding_bytes(self.padded, self.contract, self.cost)
        return total

    def smaller(self) -> Plan | None:
        """Plan the same with less memory: this is the whole descent when memory runs out.

        First a model that gives frames one by one gets shorter windows, then windows whose results come all at once.
        Tiles shrink to half their side, down to the smallest; then windows shrink; then the encodings of frames are no
        longer kept; at last the CPU takes over.

        Returns:
            A plan that needs less memory, or none on the accelerator; None where there is nothing left to try.
        """
        for candidate in self._descent():
            leaves_accelerator = candidate.device != self.device
            if leaves_accelerator or candidate.memory_bytes < self.memory_bytes:
                return candidate
        return None

    def to_json(self) -> str:
        """Write the plan as one line of JSON."""
        return json.dumps(to_plain(self))

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Read a plan back.

        Raises:
            ConfigError: the text is not a plan, or its values contradict each other.
        """
        try:
            data = json.loads(text)
        except (json.JSONDecodeError, RecursionError) as error:
            raise ConfigError(f"the plan is not JSON: {error}") from error
        plan = build(cls, data, "the plan")
        _check(plan)
        return plan

    def _descent(self) -> Iterator[Plan]:
        """Yield plans in the order in which they are tried."""
        if self.features is not None and self.window is not None:
            for frames in _DESCENT_STREAM_FRAMES:
                if frames < self.window.frames:
                    yield replace(self, window=_window(self.contract, frames))
            batched = _plan_batched(self, max_bytes=self.memory_bytes / 2)
            yield batched
            yield from batched._descent()
            return
        smallest = self
        least_px = max(MIN_TILE_PX, self.contract.min_size_px)
        side_px = self.tile_px or max(self.height, self.width)
        while side_px > least_px:
            side_px = max(least_px, math.ceil(side_px / 2))
            smallest = _with_tile(self, side_px)
            yield smallest
        for shorter in _shorter_windows(smallest):
            smallest = shorter
            yield smallest
        if self.keep_encodings:
            yield replace(smallest, keep_encodings=False)
        if self.device != "cpu":
            yield _on_cpu(smallest)


def _check(plan: Plan) -> None:
    """See that the values of a plan fit each other, as those of `plan_restoration` do.

    Raises:
        ConfigError: they do not; the line names one.
    """
    if min(plan.height, plan.width, *plan.output, plan.segment_frames, plan.min_segment_frames) < 1:
        raise ConfigError("the plan: sizes and numbers of frames must be at least 1")
    if plan.tile_px < 0:
        raise ConfigError(f"the plan: tile_px={plan.tile_px} must be at least 0")
    padded = padded_size(plan.height, plan.width, plan.contract)
    if plan.padded != padded:
        raise ConfigError(
            f"the plan: padded={plan.padded} must be {padded}, which the contract asks for"
        )
    if plan.tiles != tuple(plan_tiles(*padded, plan.tile_px, plan.contract)):
        raise ConfigError(
            f"the plan: tiles do not cover the image as tile_px={plan.tile_px} asks for; "
            "give --tile to the dry run instead of changing its plan"
        )
    if plan.precision not in plan.contract.precisions:
        raise ConfigError(f"the plan: precision={plan.precision} loses quality with this model")
    _check_time(plan)


def _check_time(plan: Plan) -> None:
    """See that a plan is for the temporal kind of its contract; ConfigError where it is not."""
    temporal = plan.contract.temporal
    if (plan.window is not None) != (temporal.kind == "clip"):
        raise ConfigError(f"the plan: window={plan.window} does not fit a {temporal.kind!r} model")
    if plan.window is not None and not 0 <= plan.window.overlap < plan.window.frames:
        raise ConfigError(
            f"the plan: window={plan.window} must have an overlap from 0 on, below its frames"
        )
    if plan.features is not None and not plan.contract.streams:
        raise ConfigError("the plan: features are for models that give frames one by one")
    if plan.keep_encodings and not plan.contract.encodes:
        raise ConfigError("the plan: keep_encodings is for models that encode each frame by itself")
    if plan.doubles_rate and not temporal.between_frames:
        raise ConfigError("the plan: doubles_rate is for models that give frames between two")


def plan_restoration(
    height: int,
    width: int,
    contract: Contract,
    settings: UpscaleSettings,
    *,
    budget: MemoryBudget,
    cost: MemoryCost,
    device: str,
    precision: Precision,
    cpu_precision: Precision = "fp32",
) -> Plan:
    """Decide how frames of one size are restored.

    Args:
        height: of the input, pixels.
        width: of the input, pixels.
        contract: of the model.
        settings: scale, height, fps and tile are read.
        budget: memory that may be taken.
        cost: memory that the model takes.
        device: where it computes.
        precision: number format there.
        cpu_precision: number format on the CPU, which takes over when the memory of another device runs out.
    """
    whole = Plan(
        height=height,
        width=width,
        padded=padded_size(height, width, contract),
        output=output_size(
            width,
            height,
            native=contract.scale,
            scale=settings.scale,
            target_height=settings.height,
        ),
        doubles_rate=settings.fps is not None,
        contract=contract,
        device=device,
        precision=precision,
        cpu_precision=cpu_precision,
        tile_px=0,
        requested_tile_px=settings.tile,
        tiles=(),
        budget=budget,
        cost=cost,
    )
    streamed = _plan_streamed(whole)
    if streamed is not None:
        return streamed
    return _plan_batched(whole, max_bytes=budget.device_bytes)


def _plan_streamed(whole: Plan) -> Plan | None:
    """Plan scenes of whole images whose results come one by one.

    Returns:
        None where the model cannot do it, tiles are asked for, or the memory does not suffice.
    """
    contract, cost, budget = whole.contract, whole.cost, whole.budget
    temporal = contract.temporal
    if not contract.streams or temporal.window_frames or whole.requested_tile_px:
        return None
    if cost.call_bytes_per_px is None:
        return None
    area_px = math.prod(whole.padded)
    if area_px * cost.stream_bytes_per_px > budget.device_bytes / 2:
        return None

    # A quarter of the budget is for the frames, a quarter is spare, the rest is for features.
    limits = _feature_limits(whole.device, budget)
    held_bytes = (limits.device_bytes or 0) + (limits.host_bytes or 0) + budget.file_bytes
    frames_by_features = held_bytes / (area_px * cost.feature_bytes_per_px)
    frame_bytes = _FRAME_COPIES * _FRAME_BYTES_PER_PX * area_px
    frames_by_memory = budget.device_bytes / 4 / frame_bytes
    frames = int(min(frames_by_features, frames_by_memory, MAX_STREAMED_FRAMES))
    if frames < MIN_WINDOW_FRAMES:
        return None
    return replace(_with_tile(whole, 0), window=_window(contract, frames), features=limits)


def _plan_batched(plan: Plan, *, max_bytes: float) -> Plan:
    """Plan calls whose results come all at once, and that take `max_bytes` if that is possible."""
    contract = plan.contract
    temporal = contract.temporal
    is_clip = temporal.kind == "clip"
    max_px = 0.0
    if plan.cost.call_bytes_per_px is not None:
        max_px = max_bytes / plan.cost.call_bytes_per_px

    frames = temporal.window_frames if is_clip else 1
    if not frames:
        # As many whole frames as fit; where those are few, tiles instead.
        fitting = int(max_px // math.prod(plan.padded))
        frames = min(max(fitting, MIN_WINDOW_FRAMES), MAX_WINDOW_FRAMES)

    tile_px = plan.requested_tile_px
    if tile_px is None:
        tile_px = choose_tile(plan.height, plan.width, contract, max_area_px=max_px / frames)
    batched = replace(
        _with_tile(plan, tile_px),
        window=_window(contract, frames) if is_clip else None,
        features=None,
    )
    if not contract.encodes:
        return batched
    encoding_bytes = _encoding_bytes(plan.padded, contract, plan.cost)
    return replace(batched, keep_encodings=encoding_bytes <= max_bytes / 2)


def _shorter_windows(plan: Plan) -> Iterator[Plan]:
    """Halve the window of a clip model that names none, down to a few frames: seams are better than no result."""
    if plan.window is None or plan.contract.temporal.window_frames:
        return
    frames = plan.window.frames
    while frames > _MIN_DESCENT_WINDOW_FRAMES:
        frames = max(_MIN_DESCENT_WINDOW_FRAMES, frames // 2)
        yield replace(plan, window=_window(plan.contract, frames))


def _on_cpu(plan: Plan) -> Plan:
    """Plan the same on the CPU, in the memory of the host."""
    call_bytes = plan.cost.call_bytes_per_px
    if call_bytes is not None and plan.precision != "fp32" and plan.cpu_precision == "fp32":
        call_bytes *= 2
    moved = replace(
        plan,
        device="cpu",
        precision=plan.cpu_precision,
        budget=replace(plan.budget, device_bytes=plan.budget.host_bytes),
        cost=replace(plan.cost, call_bytes_per_px=call_bytes),
    )
    return _plan_batched(moved, max_bytes=plan.budget.host_bytes)


def _with_tile(plan: Plan, tile_px: int) -> Plan:
    """Plan the same with tiles of another size."""
    tiles = plan_tiles(*plan.padded, tile_px, plan.contract)
    return replace(plan, tile_px=tile_px, tiles=tuple(tiles))


def _window(contract: Contract, frames: int) -> WindowPlan:
    """Decide how many frames consecutive windows share."""
    temporal = contract.temporal
    if temporal.window_frames:
        return WindowPlan(frames=frames, overlap=temporal.overlap_frames)
    overlap = temporal.overlap_frames or DEFAULT_OVERLAP_FRAMES
    return WindowPlan(frames=frames, overlap=min(overlap, frames // 2))


def _feature_limits(device: str, budget: MemoryBudget) -> FeatureLimits:
    """Bound the memory that the features of a window take, by place."""
    half_bytes = budget.device_bytes // 2
    if device == "cpu":
        host_bytes = min(half_bytes, MAX_HOST_FEATURE_BYTES)
        return FeatureLimits(host_bytes=host_bytes, folder=budget.folder)
    host_bytes = min(budget.host_bytes // 2, MAX_HOST_FEATURE_BYTES)
    return FeatureLimits(device_bytes=half_bytes, host_bytes=host_bytes, folder=budget.folder)


def _stream_bytes(
    padded: tuple[int, int], frames: int, limits: FeatureLimits, cost: MemoryCost
) -> float:
    """Estimate what a streamed window takes: the call, its features in memory, and its frames."""
    area_px = math.prod(padded)
    features_bytes = area_px * frames * cost.feature_bytes_per_px
    bound_bytes = limits.device_bytes or limits.host_bytes or 0
    frames_bytes = _FRAME_COPIES * _FRAME_BYTES_PER_PX * area_px * frames
    return area_px * cost.stream_bytes_per_px + min(features_bytes, bound_bytes) + frames_bytes


def _encoding_bytes(padded: tuple[int, int], contract: Contract, cost: MemoryCost) -> float:
    """Compute what the encodings of all frames of a window take: whole images, whatever the tiles."""
    num_frames = 2 * contract.temporal.radius + 1
    return num_frames * math.prod(padded) * cost.encoding_bytes_per_px
