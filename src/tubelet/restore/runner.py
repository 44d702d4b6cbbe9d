"""Runners: what computes the calls of a plan. Today a torch module; other backends keep the same protocol.

    frames of one call (1, T, 3, H, W) ── pad ── tiles ── model ── crop ── (1, T', 3, sH, sW)

The engine decides which frames a call sees, and the plan everything else. States and encodings are whole images, padded
as the plan says, so that the tiles may change between two calls.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn

from tubelet.layers.frozen import all_parameters
from tubelet.layers.inference import prepare_for_inference, use_backend
from tubelet.layers.recurrence import Edge
from tubelet.layers.store import FeatureLimits, FeatureStore
from tubelet.malloc import retain_freed_memory
from tubelet.models.architecture import Contract
from tubelet.models.contracts import Encoding, as_encoding, as_online, as_streaming, check_contract
from tubelet.ops.sizes import pad_to
from tubelet.restore.device import number_format
from tubelet.restore.memory import is_out_of_memory, peak_tensor_bytes
from tubelet.restore.plan import MemoryCost, Plan
from tubelet.restore.tiles import padded_size
from tubelet.restore.tiling import Hidden, run_tiled
from tubelet.types import Precision

__all__ = ["Encoding", "Runner", "TorchRunner"]

_WORKSPACE_FACTOR = 2.0
"""Memory inside convolutions and copies between layouts, which the probe does not see."""
_PROBE_PX = 64
_PROBE_FRAMES = 5
_STREAM_PROBE_PX = 32
"""Small: networks that stream are slow, and their memory is linear in the pixels."""
_STREAM_PROBE_FRAMES = 3


class Runner(Protocol):
    """Computes the calls of a plan.

    Attributes:
        contract: of the model; it says which of the methods may be called.
    """

    contract: Contract

    def memory_cost(self) -> MemoryCost:
        """Measure how much memory the model takes, on a small image."""
        ...

    def run(
        self,
        lq: Tensor,
        hidden: Hidden,
        plan: Plan,
        *,
        first_frame: int = 0,
        ends_scene: bool = True,
    ) -> tuple[Tensor, Hidden]:
        """Restore the frames of one call.

        Args:
            lq: (1, T, 3, H, W), of the plan's size, on any device.
            hidden: state of an online model; None at the start of a scene and for other kinds.
            plan: how to do it.
            first_frame: position of the first frame in its scene.
            ends_scene: whether the scene ends with the last frame.

        Returns:
            sr (1, T', 3, sH, sW), and the new state.
        """
        ...

    def stream(
        self, lq: Tensor, plan: Plan, *, first_frame: int = 0, ends_scene: bool = True
    ) -> Iterator[Tensor]:
        """Restore a window of a clip model that gives its frames one by one.

        Args:
            lq: (1, T, 3, H, W).
            plan: how to do it.
            first_frame: position of the first frame in its scene.
            ends_scene: whether the scene ends with the last frame.

        Yields:
            T' times (3, sH, sW), in order.
        """
        ...

    def encode(self, lq: Tensor, plan: Plan) -> Encoding:
        """Compute what a window model needs of one frame, lq (1, 1, 3, H, W), for every window that it is in."""
        ...

    def fuse(self, window: Sequence[Encoding], plan: Plan) -> Tensor:
        """Restore the middle frame from the encodings of its window: (1, 1, 3, sH, sW)."""
        ...


class TorchRunner:
    """Runs a torch module; it is moved to the device of the plan when a call needs it there.

    Args:
        model: the network, which keeps `contract`; it is prepared for inference, in place.
        contract: how it is run.
        device: where it computes.
        precision: number format inside it.

    Raises:
        ConfigError: the network lacks a method that its contract promises.
    """

    def __init__(
        self, model: nn.Module, contract: Contract, *, device: torch.device, precision: Precision
    ) -> None:
        retain_freed_memory()
        check_contract(model, contract)
        self.contract = contract
        self.device = device
        self.precision: Precision = precision
        # Once, in place, for every call on any device: a prepared layer looks at the size, device and
        # number format of its input. Whoever wants to train the network again calls `reference_form`.
        self._model = prepare_for_inference(_move(model.eval(), device))

    @torch.no_grad()
    def run(
        self,
        lq: Tensor,
        hidden: Hidden,
        plan: Plan,
        *,
        first_frame: int = 0,
        ends_scene: bool = True,
    ) -> tuple[Tensor, Hidden]:
        """Restore the frames of one call; see `Runner`."""
        self._follow(plan)
        lq = pad_to(lq.to(self.device), *plan.padded)
        if hidden is not None:
            hidden = tuple(state.to(self.device) for state in hidden)
        call = self.call
        if self.contract.streams:
            before, after = _edges(lq, first_frame, ends_scene)
            call = partial(self.call, before=before, after=after)
        sr, hidden = self._over_tiles(call, lq, hidden, plan, scale=self.contract.scale)
        return self._crop(sr, plan), hidden

    @torch.no_grad()
    def stream(
        self, lq: Tensor, plan: Plan, *, first_frame: int = 0, ends_scene: bool = True
    ) -> Iterator[Tensor]:
        """Restore a window frame by frame; see `Runner`."""
        self._follow(plan)
        lq = _channels_last(pad_to(lq.to(self.device), *plan.padded))
        before, after = _edges(lq, first_frame, ends_scene)
        store = FeatureStore(plan.features)
        results = iter(
            as_streaming(self._model).restore(lq, before=before, after=after, store=store)
        )
        while True:
            with self._number_format():
                sr = next(results, None)
            if sr is None:
                return
            yield self._crop(sr, plan)[0]

    @torch.no_grad()
    def encode(self, lq: Tensor, plan: Plan) -> Encoding:
        """Compute what a window model needs of one frame; see `Runner`."""
        self._follow(plan)
        lq = pad_to(lq.to(self.device), *plan.padded)

        def call(tile: Tensor, hidden: Hidden) -> tuple[Tensor, Hidden]:
            del hidden
            with self._number_format():
                encoding = as_encoding(self._model).encode(_channels_last(tile)[:, 0])
            return tile, encoding

        _, encoding = self._over_tiles(call, lq, None, plan, scale=1)
        assert encoding is not None
        return encoding

    @torch.no_grad()
    def fuse(self, window: Sequence[Encoding], plan: Plan) -> Tensor:
        """Restore the middle frame of a window; see `Runner`."""
        self._follow(plan)
        width = len(window[0])
        joined: list[Tensor] = []
        for encoding in window:
            joined += [part.to(self.device) for part in encoding]

        def call(tile: Tensor, hidden: Hidden) -> tuple[Tensor, Hidden]:
            del tile
            assert hidden is not None
            frames = [hidden[first : first + width] for first in range(0, len(hidden), width)]
            with self._number_format():
                return as_encoding(self._model).fuse(frames)[:, None], None

        # The tiles are cut out of the encodings; the image itself is only a stand-in for its size.
        lq = joined[0].new_empty(()).expand(1, 1, 1, *plan.padded)
        sr, _ = self._over_tiles(call, lq, tuple(joined), plan, scale=self.contract.scale)
        return self._crop(sr, plan)

    def call(self, lq: Tensor, hidden: Hidden, **edges: Edge) -> tuple[Tensor, Hidden]:
        """Run the network once, as on every tile: memory layout and number format are the engine's.

        Args:
            lq: (1, T, 3, h, w) on the device, of a size that the network takes.
            hidden: state of an online model, None at the start of a scene and for other kinds.
            edges: `before` and `after` of a streaming model.

        Returns:
            sr (1, T', 3, sh, sw), and the new state.
        """
        lq = _channels_last(lq)
        with self._number_format():
            if self.contract.temporal.kind == "online":
                sr, hidden = as_online(self._model).step(lq, hidden)
                return sr[:, None], hidden
            return self._model(lq, **edges), None

    @torch.no_grad()
    def memory_cost(self) -> MemoryCost:
        """Measure how much memory the model takes; see `Runner`."""
        try:
            # A small image has to take the memory that a large one takes for each of its pixels.
            with use_backend(self._model, "winograd"):
                if self.contract.streams:
                    return self._measure_stream()
                encoding_bytes = self._measure_encoding() if self.contract.encodes else 0.0
                return MemoryCost(
                    call_bytes_per_px=self._measure_call(), encoding_bytes_per_px=encoding_bytes
                )
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return MemoryCost(call_bytes_per_px=None)

    def _measure_call(self) -> float:
        """Measure a call whose results come all at once: bytes per lq pixel."""
        temporal = self.contract.temporal
        frames = {
            "frame": 1,
            "window": 2 * temporal.radius + 1,
            "online": 1 + temporal.lookahead,
            "clip": min(temporal.window_frames or _PROBE_FRAMES, _PROBE_FRAMES),
        }[temporal.kind]
        lq = self._probe_image(_PROBE_PX, frames)
        hidden: Hidden = None
        if temporal.kind == "online":
            # The second step is the one to measure: it has a state.
            _, hidden = self.call(lq, None)
        peak_bytes = peak_tensor_bytes(lambda: self.call(lq, hidden))
        pixels = math.prod(lq.shape[-2:])
        if temporal.kind == "clip":
            pixels *= frames
        return _WORKSPACE_FACTOR * max(peak_bytes, lq.nbytes) / pixels

    def _measure_encoding(self) -> float:
        """Measure what is kept of one frame of a window model: bytes per lq pixel."""
        lq = self._probe_image(_PROBE_PX, 1)
        with self._number_format():
            encoding = as_encoding(self._model).encode(_channels_last(lq)[:, 0])
        return sum(part.nbytes for part in encoding) / math.prod(lq.shape[-2:])

    def _measure_stream(self) -> MemoryCost:
        """Measure a model that gives frames one by one: its features lie in a file meanwhile, and are counted apart.

        A call whose results come all at once needs no measurement of its own, which would take seconds: it is a stream
        that keeps features and results in memory.
        """
        lq = _channels_last(self._probe_image(_STREAM_PROBE_PX, _STREAM_PROBE_FRAMES))
        store = FeatureStore(FeatureLimits(device_bytes=0, host_bytes=0))

        def run() -> None:
            with self._number_format():
                deque(as_streaming(self._model).restore(lq, store=store), maxlen=0)

        peak_bytes = peak_tensor_bytes(run)
        pixels = math.prod(lq.shape[-2:])
        stream_bytes = _WORKSPACE_FACTOR * peak_bytes / pixels
        feature_bytes = max(store.peak_bytes, lq.nbytes) / (_STREAM_PROBE_FRAMES * pixels)
        frame_bytes = 3 * lq.element_size() * (1 + self.contract.scale**2)
        return MemoryCost(
            # The work of one frame is spread over the frames of a short window.
            call_bytes_per_px=stream_bytes / _PROBE_FRAMES + feature_bytes + frame_bytes,
            stream_bytes_per_px=stream_bytes,
            feature_bytes_per_px=feature_bytes,
        )

    def _probe_image(self, side_px: int, num_frames: int) -> Tensor:
        height, width = padded_size(side_px, side_px, self.contract)
        return torch.zeros(1, num_frames, 3, height, width, device=self.device)

    def _follow(self, plan: Plan) -> None:
        """Move the network where the plan wants it."""
        self.precision = plan.precision
        device = torch.device(plan.device)
        if device != self.device:
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            self.device = device
            _move(self._model, device)

    def _number_format(self) -> torch.autocast:
        return number_format(self.device, self.precision)

    def _over_tiles(
        self,
        call: Callable[[Tensor, Hidden], tuple[Tensor, Hidden]],
        lq: Tensor,
        hidden: Hidden,
        plan: Plan,
        *,
        scale: int,
    ) -> tuple[Tensor, Hidden]:
        if len(plan.tiles) == 1:
            return call(lq, hidden)
        return run_tiled(
            call,
            lq,
            hidden,
            plan.tiles,
            scale=scale,
            size_multiple=self.contract.size_multiple,
        )

    def _crop(self, sr: Tensor, plan: Plan) -> Tensor:
        """Cut off the padding."""
        scale = self.contract.scale
        return sr[..., : plan.height * scale, : plan.width * scale]


def _edges(lq: Tensor, first_frame: int, ends_scene: bool) -> tuple[Edge, Edge]:
    """Tell a streaming model where in its scene a window (1, T, 3, H, W) lies; no states are known there."""
    before = Edge(frame_index=first_frame - 1)
    after = Edge() if ends_scene else Edge(frame_index=first_frame + lq.shape[1])
    return before, after


def _move(model: nn.Module, device: torch.device) -> nn.Module:
    """Move a network; 4-D weights become channels last, which CPUs and tensor cores convolve faster."""
    model = model.to(device)
    for parameter in all_parameters(model):
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return model


def _channels_last(lq: Tensor) -> Tensor:
    """Order (B, T, C, H, W) in memory so that any frame, or all frames as one batch, is channels last."""
    return lq.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
