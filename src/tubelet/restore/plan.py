"""The plan of a restoration: how it is carried out, decided before the first frame.

    input size, contract, settings ──┐
    memory budget, memory cost ──────┼── plan_restoration ── Plan
    device, precision ───────────────┘
                  Plan.smaller() ── Plan for less memory, or for the CPU ── … ── None

`plan_restoration` is pure: equal arguments give equal plans. A plan is written to JSON and read
back unchanged, so that `--dry-run` can print it, a journal can store it, and another process can
follow it.

Terms:

    contract    everything that the engine must know about a model to run it (`Contract`)
    window      consecutive frames that a clip model restores together
    batched     a call returns all its frames at once, and may run tile by tile
    streamed    a clip model returns the frames of a window one by one, as whole images
    features    tensors that a streamed call stores of each frame, between its passes over a window
    encoding    tensors that a window model computes from one frame, for all neighborhoods with it
    halo        border of a tile that the model reads, and whose results are dropped
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
from tubelet.restore.window_plan import WindowPlan, check_window, plan_window
from tubelet.types import Precision

__all__ = ["MemoryBudget", "MemoryCost", "Plan", "WindowPlan", "plan_restoration"]

MIN_WINDOW_FRAMES = 16
"""Shortest window that is planned at the start, if the contract sets no length. Shorter ones are
tried only when memory runs out."""
MAX_WINDOW_FRAMES = 100
"""Longest batched window."""
MAX_STREAMED_FRAMES = 3000
"""Longest streamed window of windows that overlap. The whole window is read before its first frame
is returned: 3000 frames are two minutes at 25 fps. Segments of `upscale` end at 1000 frames."""
MAX_CONTINUED_FRAMES = 60
"""Longest window that continues from states, look-ahead included: with 8 frames of look-ahead, it
adds 6 to 10 % to the work. Memory, disk space and the delay of the first frame grow with it."""
MAX_SEGMENT_FRAMES = 1000
"""Maximum length of a segment; a longer scene is divided into several."""
MIN_SEGMENT_FRAMES = 100
"""A segment ends only at cuts after this many frames: each one begins with a keyframe, so short
segments make the file larger."""
MAX_HOST_FEATURE_BYTES = 2**29
"""Maximum host memory for features. The rest goes to a file; little is lost, as the system caches
the file in free memory."""
_FALLBACK_STREAMED_FRAMES = (64, MIN_WINDOW_FRAMES)
"""Lengths of streamed windows that are tried when memory runs out. They are few because every try
restarts the window."""
_MIN_FALLBACK_WINDOW_FRAMES = 4
"""Shortest batched window when memory runs out, if the contract sets no length."""
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
    """Memory of the host. If the CPU computes, this is the same memory as `device_bytes`, not
    additional memory."""
    file_bytes: int = 0
    """Maximum size of the temporary file for features; 0: no file."""
    folder: Path | None = None
    """Folder of that file; None: the folder of the system for temporary files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryCost:
    """Memory use of a model in bytes per input pixel, measured on a small image."""

    call_bytes_per_px: float | None
    """Peak of one batched call; for a clip model also divided by its number of frames. None: not
    measured, because the plan does not depend on it or because the small image did not fit."""
    stream_bytes_per_px: float = 0.0
    """Peak of one streamed call, without the features that it stores."""
    feature_bytes_per_px: float = 0.0
    """Features that a streamed call stores of each frame; more than 0 for a measured model that can
    stream."""
    encoding_bytes_per_px: float = 0.0
    """Encoding of one frame by a window model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How a video, or any stream of frames of one size, is restored."""

    height: int
    """Height of the input, pixels."""
    width: int
    """Width of the input, pixels."""
    padded: tuple[int, int]
    """Size of the padded input of the network as (height, width), pixels."""
    output: tuple[int, int]
    """Size of the output as (width, height), pixels: the reverse order of `padded`."""
    doubles_rate: bool
    """Whether a frame is added half-way between every two consecutive frames."""
    contract: Contract
    """Contract of the model."""
    device: str
    """Device of the model."""
    precision: Precision
    """Number format inside the model."""
    cpu_precision: Precision
    """Number format inside the model after a fallback to the CPU."""
    tile_px: int
    """Side of a tile without its halo, input pixels; 0: the whole image."""
    requested_tile_px: int | None
    """Tile side in the settings. None: derived from the budget; 0: whole image."""
    tiles: tuple[Tile, ...]
    """Tiles that cover the padded image."""
    window: WindowPlan | None = None
    """Windows of a clip model. None for the other kinds, also for window models, which see a
    neighborhood of each frame."""
    features: FeatureLimits | None = None
    """Memory limits for the features of a streamed window. None: the calls are batched."""
    keep_encodings: bool = False
    """Whether the engine caches the encodings of a window model."""
    segment_frames: int = MAX_SEGMENT_FRAMES
    """Maximum number of frames of a segment; a longer scene is divided into several segments."""
    min_segment_frames: int = MIN_SEGMENT_FRAMES
    """Number of frames after which a cut ends the segment."""
    budget: MemoryBudget
    """Memory that the plan was made for."""
    cost: MemoryCost
    """Memory use of the model."""

    @property
    def is_streamed(self) -> bool:
        """Whether the frames of a window are returned one by one; otherwise calls are batched."""
        return self.features is not None

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
    def carries_state(self) -> bool:
        """Whether the state of a recurrent model can pass from one segment to the next."""
        if self.window is not None:
            return self.window.continues
        return self.contract.temporal.kind == "online"

    @property
    def context_frames_with_state(self) -> tuple[int, int]:
        """Context frames before and after a segment that continues from a state."""
        if self.window is not None:
            # As inside the segment, so that its end changes no frame.
            return self.window.context_frames
        return 0, self.contract.temporal.lookahead

    @property
    def segment_step(self) -> int:
        """A segment that ends inside a scene ends at a multiple of this number of its frames."""
        if self.window is None or not self.window.continues:
            return 1
        if self.window.step > self.segment_frames:
            return self.contract.frame_multiple
        # Windows end where a segment does, so they are the same in segments of any length.
        return self.window.step

    @property
    def memory_bytes(self) -> float:
        """Estimated memory of the largest call on the device."""
        if self.is_streamed:
            return _streamed_bytes(self)
        num_frames = 1 if self.window is None else self.window.frames
        # Tiles at the borders of the image are smaller: they have no halo outside of it.
        largest_area_px = max(tile.area_px for tile in self.tiles)
        # Unknown: any constant will do to compare plans.
        bytes_per_px = self.cost.call_bytes_per_px or 1.0
        total_bytes = largest_area_px * num_frames * bytes_per_px
        if self.keep_encodings:
            total_bytes += _encoding_bytes(self)
        return total_bytes

    def smaller(self) -> Plan | None:
        """Return the next plan to try when this one runs out of memory.

        Repeated calls take these steps, in order:

        1. Streamed windows: 64, 16 frames, then batched.
        2. The tile side is halved, also of a requested tile.
        3. Batched windows are halved, unless the contract sets their length.
        4. Encodings are not cached.
        5. The CPU takes over, and 2 to 4 repeat there.

        Returns:
            The next plan: it needs less memory on the same device, or runs on the CPU. None if
            there is no further plan.
        """
        for candidate in _fallback_plans(self):
            # Memory of two devices cannot be compared.
            changes_device = candidate.device != self.device
            if changes_device or candidate.memory_bytes < self.memory_bytes:
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
        _check_consistent(plan)
        return plan


def _check_consistent(plan: Plan) -> None:
    """Check that the values of a plan are consistent, as those of `plan_restoration` are.

    Raises:
        ConfigError: They are not; the message names the field.
    """
    # A plan may have been edited by hand, or written by another version.
    min_values = {
        "height": plan.height,
        "width": plan.width,
        "output": min(plan.output),
        "segment_frames": plan.segment_frames,
        "min_segment_frames": plan.min_segment_frames,
    }
    for field, min_value in min_values.items():
        if min_value < 1:
            raise ConfigError(f"the plan: {field}={getattr(plan, field)} must be at least 1")
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
            f"the plan: tiles do not match tile_px={plan.tile_px}; "
            "to change the tile size, repeat the dry run with --tile"
        )
    precisions = plan.contract.precisions
    if plan.precision not in precisions:
        raise ConfigError(
            f"the plan: precision={plan.precision} loses quality with this model; "
            f"use one of {', '.join(precisions)}"
        )
    _check_temporal(plan)


def _check_temporal(plan: Plan) -> None:
    """Check that a plan fits the temporal kind of its contract; raise ConfigError otherwise."""
    contract = plan.contract
    kind = contract.temporal.kind
    window = plan.window
    if window is None and kind == "clip":
        raise ConfigError("the plan: a clip model needs window, with frames and overlap")
    if window is not None and kind != "clip":
        raise ConfigError(
            f"the plan: only clip models have window; it must be null for this {kind} model"
        )
    if window is not None:
        check_window(window, contract)

    # Fields that only some models support: (used by the plan, supported, message).
    abilities = (
        (
            plan.is_streamed,
            contract.streams,
            "features must be null: this model cannot stream",
        ),
        (
            plan.keep_encodings,
            contract.encodes,
            "keep_encodings must be false: this model does not encode frames separately",
        ),
        (
            plan.doubles_rate,
            contract.temporal.between_frames > 0,
            "doubles_rate must be false: this model returns no frames between two",
        ),
    )
    for is_used, is_supported, message in abilities:
        if is_used and not is_supported:
            raise ConfigError(f"the plan: {message}")


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

    Streamed windows are preferred: they are longer and need no tiles, so they have fewer seams.

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

    Returns:
        A plan for the budget. It may exceed a small budget: tiles and windows have minimum sizes.
    """
    output = output_size(
        width,
        height,
        native=contract.scale,
        scale=settings.scale,
        target_height=settings.height,
    )
    # Without tiles and windows, which one of the two functions below adds.
    common = Plan(
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
    streamed = _plan_streamed(common)
    if streamed is not None:
        return streamed
    return _plan_batched(common, max_bytes=budget.device_bytes)


def _plan_streamed(plan: Plan) -> Plan | None:
    """Plan streamed windows.

    Returns:
        None if the model cannot stream, tiles are requested, or the memory does not suffice.
    """
    contract = plan.contract
    cost = plan.cost
    budget = plan.budget
    has_fixed_window = contract.temporal.window_frames > 0
    if not contract.streams or has_fixed_window or plan.requested_tile_px:
        return None
    # Not measured: a small image did not fit, so the whole image does not fit either.
    if cost.call_bytes_per_px is None:
        return None

    # Up to 1/2 of the budget is for the call, 1/2 for features and 1/4 for the frames. The sum may
    # exceed the budget, because the cost of the call has a margin of 2 (`runner.py`), and by
    # default only half of the free memory is budgeted. If memory runs out all the same, `smaller`
    # shortens the window.
    area_px = math.prod(plan.padded)
    if area_px * cost.stream_bytes_per_px > budget.device_bytes / 2:
        return None
    limits = _feature_limits(plan.device, budget)
    max_feature_bytes = (limits.device_bytes or 0) + (limits.host_bytes or 0) + budget.file_bytes
    frames_by_features = max_feature_bytes / (area_px * cost.feature_bytes_per_px)
    frame_bytes = _FRAME_COPIES * _FRAME_BYTES_PER_PX * area_px
    frames_by_memory = budget.device_bytes / 4 / frame_bytes
    max_frames = MAX_CONTINUED_FRAMES if contract.continues else MAX_STREAMED_FRAMES
    num_frames = int(min(frames_by_features, frames_by_memory, max_frames))
    if num_frames < MIN_WINDOW_FRAMES:
        return None
    return replace(
        _with_tile(plan, 0),
        window=plan_window(contract, num_frames),
        features=limits,
    )


def _plan_batched(plan: Plan, *, max_bytes: float) -> Plan:
    """Plan batched calls that, if possible, fit into `max_bytes`."""
    contract = plan.contract
    is_clip = contract.temporal.kind == "clip"
    # Area of all frames of a call together. If the memory use is unknown, 0 selects the smallest
    # tile.
    max_area_px = 0.0
    if plan.cost.call_bytes_per_px is not None:
        max_area_px = max_bytes / plan.cost.call_bytes_per_px

    num_frames = contract.temporal.window_frames if is_clip else 1
    if not num_frames:
        # As many untiled frames as fit; if those are few, MIN_WINDOW_FRAMES in tiles.
        num_fitting = int(max_area_px // math.prod(plan.padded))
        max_frames = MAX_CONTINUED_FRAMES if contract.continues else MAX_WINDOW_FRAMES
        num_frames = min(max(num_fitting, MIN_WINDOW_FRAMES), max_frames)

    tile_px = plan.requested_tile_px
    if tile_px is None:
        tile_px = choose_tile(
            plan.height,
            plan.width,
            contract,
            max_area_px=max_area_px / num_frames,
        )
    batched = replace(
        _with_tile(plan, tile_px),
        window=plan_window(contract, num_frames) if is_clip else None,
        features=None,
    )
    if not contract.encodes:
        return batched
    # Cache the encodings only if they take at most half of `max_bytes`; the tile was chosen without
    # counting them.
    return replace(batched, keep_encodings=_encoding_bytes(plan) <= max_bytes / 2)


def _fallback_plans(plan: Plan) -> Iterator[Plan]:
    """Yield the candidates of `Plan.smaller` in the order in which they are tried."""
    if plan.is_streamed:
        assert plan.window is not None
        for num_frames in _FALLBACK_STREAMED_FRAMES:
            if num_frames < plan.window.frames:
                yield replace(plan, window=plan_window(plan.contract, num_frames))
        # The estimate was too low: aim at half of it.
        batched = _plan_batched(plan, max_bytes=plan.memory_bytes / 2)
        yield batched
        yield from _fallback_plans(batched)
        return

    # Tiles, windows and encodings build on each other; the CPU plan is made anew for the memory of
    # the host.
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
        yield _on_cpu(plan)


def _smaller_tiles(plan: Plan) -> Iterator[Plan]:
    """Yield plans with ever smaller tiles: the side is halved, down to the smallest tile."""
    min_side_px = max(MIN_TILE_PX, plan.contract.min_size_px)
    side_px = plan.tile_px or max(plan.height, plan.width)
    while side_px > min_side_px:
        side_px = max(min_side_px, math.ceil(side_px / 2))
        yield _with_tile(plan, side_px)


def _shorter_windows(plan: Plan) -> Iterator[Plan]:
    """Yield plans with ever shorter windows, down to a few frames: seams are better than no result.

    A length set by the contract is not changed.
    """
    if plan.window is None or plan.contract.temporal.window_frames:
        return
    num_frames = plan.window.frames
    while num_frames > _MIN_FALLBACK_WINDOW_FRAMES:
        num_frames = max(_MIN_FALLBACK_WINDOW_FRAMES, num_frames // 2)
        yield replace(plan, window=plan_window(plan.contract, num_frames))


def _on_cpu(plan: Plan) -> Plan:
    """Plan the same restoration anew for the CPU, within the host memory.

    It is batched: streamed plans were already tried before smaller tiles.
    """
    cost = plan.cost
    widens_numbers = plan.precision != "fp32" and plan.cpu_precision == "fp32"
    if widens_numbers:
        # The cost was measured with 16-bit numbers. Batched plans do not use the other two costs.
        if cost.call_bytes_per_px is not None:
            cost = replace(cost, call_bytes_per_px=2 * cost.call_bytes_per_px)
        cost = replace(cost, encoding_bytes_per_px=2 * cost.encoding_bytes_per_px)
    cpu_plan = replace(
        plan,
        device="cpu",
        precision=plan.cpu_precision,
        budget=replace(plan.budget, device_bytes=plan.budget.host_bytes),
        cost=cost,
    )
    return _plan_batched(cpu_plan, max_bytes=plan.budget.host_bytes)


def _with_tile(plan: Plan, tile_px: int) -> Plan:
    """Return the plan with tiles of another size."""
    tiles = plan_tiles(*plan.padded, tile_px, plan.contract)
    return replace(plan, tile_px=tile_px, tiles=tuple(tiles))


def _feature_limits(device: str, budget: MemoryBudget) -> FeatureLimits:
    """Limit the memory of the features of a window, by kind of memory."""
    half_bytes = budget.device_bytes // 2
    if device == "cpu":
        # Device and host share their memory, so there is no separate device limit.
        host_bytes = min(half_bytes, MAX_HOST_FEATURE_BYTES)
        return FeatureLimits(host_bytes=host_bytes, folder=budget.folder)
    host_bytes = min(budget.host_bytes // 2, MAX_HOST_FEATURE_BYTES)
    return FeatureLimits(
        device_bytes=half_bytes,
        host_bytes=host_bytes,
        folder=budget.folder,
    )


def _streamed_bytes(plan: Plan) -> float:
    """Estimate the device memory of a streamed window: the call, its features, and its frames."""
    assert plan.window is not None
    assert plan.features is not None
    area_px = math.prod(plan.padded)
    window_px = area_px * plan.window.frames
    call_bytes = area_px * plan.cost.stream_bytes_per_px
    # Features over the limit are moved to the host, or to a file.
    feature_bytes = window_px * plan.cost.feature_bytes_per_px
    max_feature_bytes = plan.features.device_bytes or plan.features.host_bytes or 0
    frame_bytes = _FRAME_COPIES * _FRAME_BYTES_PER_PX * window_px
    return call_bytes + min(feature_bytes, max_feature_bytes) + frame_bytes


def _encoding_bytes(plan: Plan) -> float:
    """Compute the memory of the encodings of a neighborhood: whole images, even with tiles."""
    num_frames = 2 * plan.contract.temporal.radius + 1
    return num_frames * math.prod(plan.padded) * plan.cost.encoding_bytes_per_px
