"""The plan of a restoration: every decision that is made before the first frame, as one value.

    input size, contract, settings, memory budget ── plan_restoration ── Plan
                                Plan.smaller() ── Plan that needs less memory ── … ── None

A plan is a pure function of its arguments. It is written to JSON and read back unchanged, so that
`--dry-run` can print it, a journal can store it, and another process can follow it.
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
"""Shortest window of a clip model whose contract sets no window length."""
MAX_WINDOW_FRAMES = 100
"""Longest window that is restored in one call."""
MAX_STREAMED_FRAMES = 3000
"""Longest window that is restored frame by frame: two minutes of video before the first result.
`upscale` stays far below it, because its segments are shorter."""
MAX_SEGMENT_FRAMES = 1000
"""Maximum length of a segment; a longer scene is split into several."""
MIN_SEGMENT_FRAMES = 100
"""Shorter scenes share a segment: each segment begins with a keyframe, so short segments make a
larger file."""
DEFAULT_OVERLAP_FRAMES = 8
"""Overlap of consecutive windows if the contract sets none."""
MAX_HOST_FEATURE_BYTES = 2**29
"""Features beyond it go to a file, which the operating system caches while memory is free."""
_DESCENT_STREAM_FRAMES = (64, MIN_WINDOW_FRAMES)
"""Window lengths that a streaming model tries when memory runs out. They are few because every try
restarts the window."""
_MIN_DESCENT_WINDOW_FRAMES = 4
"""Shortest window when memory runs out, for a clip model whose contract sets no window length."""
_FRAME_COPIES = 3
"""Copies of the frames of a window: decoded, stacked, and in the memory layout of the network."""
_FRAME_BYTES_PER_PX = 12
"""Three channels of float32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryBudget:
    """Number of bytes that a run may use, by kind of memory."""

    device_bytes: int
    """Memory of the device that computes."""
    host_bytes: int
    """Memory of the host; the same bytes as `device_bytes` if the CPU computes."""
    file_bytes: int = 0
    """Size of a temporary file."""
    folder: Path | None = None
    """Folder of that file; None is the system's folder for temporary files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryCost:
    """Memory use of a model in bytes per lq pixel, measured on a small image."""

    call_bytes_per_px: float | None
    """A call, per pixel of one image; for a clip model per pixel of each frame. None: even the
    small image did not fit, or nothing depends on the value."""
    stream_bytes_per_px: float = 0.0
    """A call that returns frames one by one, without the features it stores."""
    feature_bytes_per_px: float = 0.0
    """The features that such a call stores of each frame."""
    encoding_bytes_per_px: float = 0.0
    """The encoding of one frame of a window model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowPlan:
    """Window length and overlap of a clip model."""

    frames: int
    """Frames of a window."""
    overlap: int
    """Frames shared by consecutive windows; the seam is in the middle of the overlap."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How a video, or any stream of frames of one size, is restored."""

    height: int
    """Height of the input, pixels."""
    width: int
    """Width of the input, pixels."""
    padded: tuple[int, int]
    """Height and width of the padded input of the network, pixels."""
    output: tuple[int, int]
    """Width and height of the output, pixels."""
    doubles_rate: bool
    """Whether a frame is added half-way between any two frames."""
    contract: Contract
    """Contract of the model."""
    device: str
    """Device of the model."""
    precision: Precision
    """Number format inside the model."""
    cpu_precision: Precision
    """Number format inside the model after a fallback to the CPU."""
    tile_px: int
    """Side of a tile without its halo, lq pixels; 0 is the whole image."""
    requested_tile_px: int | None
    """Tile side in the settings; None derives it from the memory budget."""
    tiles: tuple[Tile, ...]
    """Tiles that cover the padded image."""
    window: WindowPlan | None = None
    """Windows of a clip model; None for the other kinds."""
    features: FeatureLimits | None = None
    """Memory limits for the features of a window if the model returns frames one by one; None: all
    frames of a window are returned at once."""
    keep_encodings: bool = False
    """Whether the engine caches the frame encodings of a window model."""
    segment_frames: int = MAX_SEGMENT_FRAMES
    """Maximum length of a segment; a longer scene is split into several."""
    min_segment_frames: int = MIN_SEGMENT_FRAMES
    """A segment ends at the first cut once it has this many frames."""
    budget: MemoryBudget
    """Memory that the plan was made for."""
    cost: MemoryCost
    """Memory use of the model."""

    @property
    def context_frames(self) -> tuple[int, int]:
        """Context frames before and after a segment whose ends are inside a scene."""
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
        """Estimated memory of the largest call on the device."""
        if self.features is not None and self.window is not None:
            return _stream_bytes(
                self.padded,
                self.window.frames,
                self.features,
                self.cost,
            )
        num_frames = 1 if self.window is None else self.window.frames
        # The tile in the middle is larger than those at the borders: it has a halo on all sides.
        largest_tile_px = max(tile.area_px for tile in self.tiles)
        total_bytes = largest_tile_px * num_frames * (self.cost.call_bytes_per_px or 1.0)
        if self.keep_encodings:
            total_bytes += _encoding_bytes(self.padded, self.contract, self.cost)
        return total_bytes

    def smaller(self) -> Plan | None:
        """Return the next plan to try when this one runs out of memory.

        The order of the whole descent:

        1. A model that returns frames one by one gets shorter windows, and then windows that are
           restored in one call.
        2. The tile side is halved, down to the smallest tile.
        3. Windows are halved.
        4. The frame encodings are no longer cached.
        5. The CPU takes over.

        Returns:
            A plan that needs less memory, or none on the accelerator; None if nothing is left to
            try.
        """
        for candidate in _descent(self):
            leaves_accelerator = candidate.device != self.device
            if leaves_accelerator or candidate.memory_bytes < self.memory_bytes:
                return candidate
        return None

    def to_json(self) -> str:
        """Write the plan as one line of JSON."""
        return json.dumps(to_plain(self))

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Read a plan that `to_json` wrote.

        Raises:
            ConfigError: The text is not a plan, or its values contradict each other.
        """
        try:
            data = json.loads(text)
        except (json.JSONDecodeError, RecursionError) as error:
            raise ConfigError(f"the plan is not JSON: {error}") from error
        plan = build(cls, data, "the plan")
        _check(plan)
        return plan


def _check(plan: Plan) -> None:
    """Check that the values of a plan are consistent, as those of `plan_restoration` are.

    Raises:
        ConfigError: They are not; the message names the field.
    """
    # A plan may have been edited by hand, or written by another version.
    counts = (
        plan.height,
        plan.width,
        *plan.output,
        plan.segment_frames,
        plan.min_segment_frames,
    )
    if min(counts) < 1:
        raise ConfigError("the plan: sizes and numbers of frames must be at least 1")
    if plan.tile_px < 0:
        raise ConfigError(f"the plan: tile_px={plan.tile_px} must be at least 0")

    # These values follow from others.
    padded = padded_size(plan.height, plan.width, plan.contract)
    if plan.padded != padded:
        raise ConfigError(
            f"the plan: padded={plan.padded} must be {padded}, as the contract requires"
        )
    tiles = tuple(plan_tiles(*padded, plan.tile_px, plan.contract))
    if plan.tiles != tiles:
        raise ConfigError(
            f"the plan: tiles do not cover the image as tile_px={plan.tile_px} requires; "
            "give --tile to the dry run instead of changing its plan"
        )
    if plan.precision not in plan.contract.precisions:
        raise ConfigError(f"the plan: precision={plan.precision} loses quality with this model")
    _check_temporal(plan)


def _check_temporal(plan: Plan) -> None:
    """Check that a plan fits the temporal kind of its contract; raise ConfigError otherwise."""
    contract = plan.contract
    temporal = contract.temporal
    window = plan.window
    has_window = window is not None
    needs_window = temporal.kind == "clip"
    if has_window != needs_window:
        raise ConfigError(f"the plan: window={window} does not fit a {temporal.kind!r} model")
    if window is not None and not 0 <= window.overlap < window.frames:
        raise ConfigError(f"the plan: window={window} must have 0 ≤ overlap < frames")

    # Fields that only some models support: (field, used by the plan, supported, those models).
    abilities = (
        (
            "features",
            plan.features is not None,
            contract.streams,
            "return frames one by one",
        ),
        (
            "keep_encodings",
            plan.keep_encodings,
            contract.encodes,
            "encode frames separately",
        ),
        (
            "doubles_rate",
            plan.doubles_rate,
            temporal.between_frames > 0,
            "return frames between two",
        ),
    )
    for field, is_used, is_supported, models in abilities:
        if is_used and not is_supported:
            raise ConfigError(f"the plan: {field} is for models that {models}")


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
    """Plan the restoration of frames of one size.

    Args:
        height: Height of the input, pixels.
        width: Width of the input, pixels.
        contract: Contract of the model.
        settings: Settings of the run, of which scale, height, fps and tile are used.
        budget: Memory that the run may use.
        cost: Memory use of the model.
        device: Device of the model.
        precision: Number format on that device.
        cpu_precision: Number format on the CPU, which takes over when another device runs out of
            memory.
    """
    output = output_size(
        width,
        height,
        native=contract.scale,
        scale=settings.scale,
        target_height=settings.height,
    )
    # Tiles and windows follow; until then the plan holds the whole image.
    untiled = Plan(
        height=height,
        width=width,
        padded=padded_size(height, width, contract),
        output=output,
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
    streamed = _plan_streamed(untiled)
    if streamed is not None:
        return streamed
    return _plan_batched(untiled, max_bytes=budget.device_bytes)


def _plan_streamed(plan: Plan) -> Plan | None:
    """Plan windows of whole images whose frames are returned one by one.

    Returns:
        None if the model cannot do it, tiles are requested, or the memory does not suffice.
    """
    contract = plan.contract
    cost = plan.cost
    budget = plan.budget
    has_fixed_window = contract.temporal.window_frames > 0
    if not contract.streams or has_fixed_window or plan.requested_tile_px:
        return None
    # None: even the probe ran out of memory.
    if cost.call_bytes_per_px is None:
        return None
    # The call needs half of the budget at the maximum.
    area_px = math.prod(plan.padded)
    if area_px * cost.stream_bytes_per_px > budget.device_bytes / 2:
        return None

    # Half of the budget is for features, a quarter is for the frames, and a quarter is spare.
    limits = _feature_limits(plan.device, budget)
    max_feature_bytes = (limits.device_bytes or 0) + (limits.host_bytes or 0) + budget.file_bytes
    frames_by_features = max_feature_bytes / (area_px * cost.feature_bytes_per_px)
    frame_bytes = _FRAME_COPIES * _FRAME_BYTES_PER_PX * area_px
    frames_by_memory = budget.device_bytes / 4 / frame_bytes
    num_frames = int(min(frames_by_features, frames_by_memory, MAX_STREAMED_FRAMES))
    if num_frames < MIN_WINDOW_FRAMES:
        return None
    return replace(
        _with_tile(plan, 0),
        window=_window(contract, num_frames),
        features=limits,
    )


def _plan_batched(plan: Plan, *, max_bytes: float) -> Plan:
    """Plan calls that return all their frames at once and, if possible, fit into `max_bytes`."""
    contract = plan.contract
    is_clip = contract.temporal.kind == "clip"
    # 0 selects the smallest tile if the memory use is not known.
    max_px = 0.0
    if plan.cost.call_bytes_per_px is not None:
        max_px = max_bytes / plan.cost.call_bytes_per_px

    num_frames = contract.temporal.window_frames if is_clip else 1
    if not num_frames:
        # As many untiled frames as fit; if those are few, MIN_WINDOW_FRAMES in tiles.
        fitting = int(max_px // math.prod(plan.padded))
        num_frames = min(max(fitting, MIN_WINDOW_FRAMES), MAX_WINDOW_FRAMES)

    tile_px = plan.requested_tile_px
    if tile_px is None:
        max_area_px = max_px / num_frames
        tile_px = choose_tile(plan.height, plan.width, contract, max_area_px=max_area_px)
    batched = replace(
        _with_tile(plan, tile_px),
        window=_window(contract, num_frames) if is_clip else None,
        features=None,
    )
    if not contract.encodes:
        return batched
    # The other half of the memory is for the calls.
    encoding_bytes = _encoding_bytes(plan.padded, contract, plan.cost)
    return replace(batched, keep_encodings=encoding_bytes <= max_bytes / 2)


def _descent(plan: Plan) -> Iterator[Plan]:
    """Yield the candidates of `Plan.smaller` in the order in which they are tried."""
    if plan.features is not None and plan.window is not None:
        for num_frames in _DESCENT_STREAM_FRAMES:
            if num_frames < plan.window.frames:
                yield replace(plan, window=_window(plan.contract, num_frames))
        batched = _plan_batched(plan, max_bytes=plan.memory_bytes / 2)
        yield batched
        yield from _descent(batched)
        return

    # Each step starts from the last plan of the step before.
    smallest = plan
    for candidate in _smaller_tiles(plan):
        smallest = candidate
        yield candidate
    for candidate in _shorter_windows(smallest):
        smallest = candidate
        yield candidate
    if plan.keep_encodings:
        yield replace(smallest, keep_encodings=False)
    if plan.device != "cpu":
        yield _on_cpu(smallest)


def _smaller_tiles(plan: Plan) -> Iterator[Plan]:
    """Halve the tile side repeatedly, down to the smallest tile."""
    min_side_px = max(MIN_TILE_PX, plan.contract.min_size_px)
    side_px = plan.tile_px or max(plan.height, plan.width)
    while side_px > min_side_px:
        side_px = max(min_side_px, math.ceil(side_px / 2))
        yield _with_tile(plan, side_px)


def _shorter_windows(plan: Plan) -> Iterator[Plan]:
    """Halve the window repeatedly, down to a few frames: seams are better than no result.

    A window length that the contract sets stays.
    """
    if plan.window is None or plan.contract.temporal.window_frames:
        return
    num_frames = plan.window.frames
    while num_frames > _MIN_DESCENT_WINDOW_FRAMES:
        num_frames = max(_MIN_DESCENT_WINDOW_FRAMES, num_frames // 2)
        yield replace(plan, window=_window(plan.contract, num_frames))


def _on_cpu(plan: Plan) -> Plan:
    """Move a plan to the CPU and the memory of the host."""
    call_bytes_per_px = plan.cost.call_bytes_per_px
    widens_numbers = plan.precision != "fp32" and plan.cpu_precision == "fp32"
    if call_bytes_per_px is not None and widens_numbers:
        # The cost was measured with 16-bit numbers.
        call_bytes_per_px *= 2
    moved = replace(
        plan,
        device="cpu",
        precision=plan.cpu_precision,
        budget=replace(plan.budget, device_bytes=plan.budget.host_bytes),
        cost=replace(plan.cost, call_bytes_per_px=call_bytes_per_px),
    )
    return _plan_batched(moved, max_bytes=plan.budget.host_bytes)


def _with_tile(plan: Plan, tile_px: int) -> Plan:
    """Return the plan with tiles of another size."""
    tiles = plan_tiles(*plan.padded, tile_px, plan.contract)
    return replace(plan, tile_px=tile_px, tiles=tuple(tiles))


def _window(contract: Contract, num_frames: int) -> WindowPlan:
    """Choose the overlap of windows of `num_frames`."""
    temporal = contract.temporal
    if temporal.window_frames:
        return WindowPlan(frames=num_frames, overlap=temporal.overlap_frames)
    overlap = temporal.overlap_frames or DEFAULT_OVERLAP_FRAMES
    return WindowPlan(frames=num_frames, overlap=min(overlap, num_frames // 2))


def _feature_limits(device: str, budget: MemoryBudget) -> FeatureLimits:
    """Limit the memory of the features of a window, by kind of memory."""
    half_bytes = budget.device_bytes // 2
    if device == "cpu":
        # Device and host share their memory.
        host_bytes = min(half_bytes, MAX_HOST_FEATURE_BYTES)
        return FeatureLimits(host_bytes=host_bytes, folder=budget.folder)
    host_bytes = min(budget.host_bytes // 2, MAX_HOST_FEATURE_BYTES)
    return FeatureLimits(
        device_bytes=half_bytes,
        host_bytes=host_bytes,
        folder=budget.folder,
    )


def _stream_bytes(
    padded: tuple[int, int],
    num_frames: int,
    limits: FeatureLimits,
    cost: MemoryCost,
) -> float:
    """Estimate the memory of a streamed window: the call, its features, and its frames."""
    area_px = math.prod(padded)
    call_bytes = area_px * cost.stream_bytes_per_px
    # Features over the limit are moved out of this memory.
    feature_bytes = area_px * num_frames * cost.feature_bytes_per_px
    max_feature_bytes = limits.device_bytes or limits.host_bytes or 0
    frame_bytes = _FRAME_COPIES * _FRAME_BYTES_PER_PX * area_px * num_frames
    return call_bytes + min(feature_bytes, max_feature_bytes) + frame_bytes


def _encoding_bytes(
    padded: tuple[int, int],
    contract: Contract,
    cost: MemoryCost,
) -> float:
    """Compute the memory of the encodings of a window: whole images, however they are tiled."""
    num_frames = 2 * contract.temporal.radius + 1
    return num_frames * math.prod(padded) * cost.encoding_bytes_per_px
