"""Runners call the model as a plan requires: `TorchRunner` calls a torch module.

    frames of one call (1, T, 3, H, W) ── pad ── tiles ── model ── crop ── (1, T', 3, sH, sW)

    T, T'    frames of the call, and results: T' is 1 for the center frame of a neighborhood, and
             for clip models T, or 2 T - 1 if they also return a frame between any two
    s        upscaling factor of the model

The engine chooses the frames of a call, and the plan everything else. States and encodings are
whole images of the padded size, so that the tiles may change between two calls.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Generator, Sequence
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn

from tubelet.layers.frames import stack_frames
from tubelet.layers.frozen import all_parameters
from tubelet.layers.inference import prepare_for_inference, use_backend
from tubelet.layers.recurrence import Edge
from tubelet.layers.store import FeatureLimits, FeatureStore
from tubelet.malloc import retain_freed_memory
from tubelet.models.architecture import Contract
from tubelet.models.contracts import (
    Encoding,
    as_detail,
    as_encoding,
    as_online,
    as_streaming,
    check_contract,
)
from tubelet.ops.sizes import pad_to, round_up
from tubelet.restore.boundary import BoundaryRecorder, edge_tensors, with_tensors
from tubelet.restore.device import number_format
from tubelet.restore.memory import is_out_of_memory, peak_tensor_bytes
from tubelet.restore.plan import MemoryCost, Plan
from tubelet.restore.tiles import padded_size
from tubelet.restore.tiling import Hidden, run_tiled
from tubelet.types import Precision
from tubelet.video.enlarged import Rows

__all__ = ["PROBE_PX", "Encoding", "Runner", "TorchRunner"]

# The probe is a call on a small image, which measures the memory use of a model.
_WORKSPACE_FACTOR = 2.0
"""Margin for work space of convolutions and copies between memory layouts, which the probe does
not measure."""
PROBE_PX = 64
"""Side of the image in a batched probe."""
_PROBE_FRAMES = 5
"""Maximum number of frames in a batched probe of a clip model."""
_STREAM_PROBE_PX = 32
"""Side of the image in a streamed probe. Small because streaming networks are slow, and their
memory is linear in the pixels."""
_STREAM_PROBE_FRAMES = 3
"""Minimum number of frames in a streamed probe."""
_DEVICE_STRIP_ROWS = 512
"""Rows of a detail that are computed at once on an accelerator."""


class Runner(Protocol):
    """Calls a model as a plan requires.

    Attributes:
        contract: Contract of the model; it determines which of the methods may be called.
        num_weights: Number of weights of the model.
    """

    contract: Contract
    num_weights: int

    def memory_cost(self) -> MemoryCost:
        """Measure the memory use of the model on a small image."""
        ...

    def run(
        self,
        lq: Tensor,
        hidden: Hidden,
        plan: Plan,
    ) -> tuple[Tensor, Hidden]:
        """Restore one frame: all kinds but clip models.

        Args:
            lq: The frame with its neighbors, (1, T, 3, H, W), of the size in the plan, on any
                device.
            hidden: State of an online model; None at the start of a scene and for other kinds.
            plan: Plan to follow.

        Returns:
            sr (1, 1, 3, sH, sW), and the new state of an online model; None for other kinds.
        """
        ...

    def run_detail(self, lq: Tensor, hidden: Hidden, plan: Plan) -> tuple[Rows, Hidden]:
        """Compute the detail of one frame: an online model with a `skip`.

        Args:
            lq: See `run`.
            hidden: See `run`.
            plan: See `run`.

        Returns:
            A function that returns rows of the detail, (1 or 3, rows, sW), on the CPU; any thread
            may call it, until the network moves to another device. And the new state.
        """
        ...

    def restore_window(
        self,
        lq: Tensor,
        plan: Plan,
        *,
        before: Edge,
        after: Edge,
        num_frames: int,
    ) -> Generator[Tensor, None, Edge]:
        """Restore the first frames of a window: a clip model.

        Args:
            lq: Frames, (1, T, 3, H, W), of the size in the plan, on any device.
            plan: Plan to follow.
            before: Edge before the window: its position in the scene and, if windows continue from
                states, what the window before returned.
            after: Edge after the window; empty if the scene ends with it.
            num_frames: Number of frames to restore, at most T. The others are look-ahead, whose
                last sweep and reconstruction are not computed if the model streams.

        Yields:
            Results (3, sH, sW) in order, those half-way to the next frame included: one by one as
            they are finished if the plan is streamed.

        Returns:
            The edge before the frame that follows the restored ones.
        """
        ...

    def encode(self, lq: Tensor, plan: Plan) -> Encoding:
        """Encode one frame, lq (1, 1, 3, H, W), once for all neighborhoods that contain it."""
        ...

    def fuse(self, window: Sequence[Encoding], plan: Plan) -> Tensor:
        """Restore the center frame, (1, 1, 3, sH, sW), from the encodings of its neighborhood."""
        ...


class TorchRunner:
    """Runs a torch module, and moves it to the device of the plan when necessary.

    Args:
        model: Network that fulfills `contract`; it is prepared for inference, in place.
        contract: Contract of the network.
        device: Device of the network until a plan moves it.
        precision: Number format inside the network until a plan changes it.

    Raises:
        ConfigError: The network lacks a method that its contract promises.
    """

    def __init__(
        self,
        model: nn.Module,
        contract: Contract,
        *,
        device: torch.device,
        precision: Precision,
    ) -> None:
        retain_freed_memory()
        check_contract(model, contract)
        self.contract = contract
        self.device = device
        self.precision: Precision = precision
        # This is done once, and holds for calls on any device: a prepared layer chooses its
        # algorithm by the size, device and number format of its input. To train the network again,
        # call `reference_form`.
        self._model = prepare_for_inference(_move(model.eval(), device))
        self.num_weights = sum(parameter.numel() for parameter in all_parameters(model))

    @torch.no_grad()
    def run(
        self,
        lq: Tensor,
        hidden: Hidden,
        plan: Plan,
    ) -> tuple[Tensor, Hidden]:
        """Restore one frame; see `Runner`."""
        lq, hidden = self._load(lq, hidden, plan)
        sr, hidden = self._call_on_tiles(
            self.call,
            lq,
            hidden,
            plan,
            scale=self.contract.scale,
        )
        return self._crop(sr, plan), hidden

    @torch.no_grad()
    def run_detail(self, lq: Tensor, hidden: Hidden, plan: Plan) -> tuple[Rows, Hidden]:
        """Compute the detail of one frame; see `Runner`.

        On the CPU, the last layers wait until rows are read. So they run in the thread of the
        encoder, in the cache of its core, while the next step begins.
        """
        lq, hidden = self._load(lq, hidden, plan)

        def call(tile: Tensor, hidden: Hidden) -> tuple[Tensor, Hidden]:
            network = as_detail(self._model)
            with self._number_format():
                features, hidden = network.step_features(_channels_last(tile), hidden)
            return tile, (features, *hidden)

        # As in `encode`, the features are returned as a state.
        _, states = self._call_on_tiles(
            call,
            lq,
            hidden,
            plan,
            scale=1,
        )
        assert states is not None
        features, *hidden_states = states
        compute_rows = partial(self._detail_rows, features, plan)
        if self.device.type == "cpu":
            return compute_rows, tuple(hidden_states)

        # Strip by strip, because the last layers have the largest tensors.
        strips: list[Tensor] = []
        height = plan.height * self.contract.scale
        for top in range(0, height, _DEVICE_STRIP_ROWS):
            stop = min(top + _DEVICE_STRIP_ROWS, height)
            strips.append(compute_rows(top, stop).cpu())
        return partial(_rows_of, torch.cat(strips, 1)), tuple(hidden_states)

    @torch.no_grad()
    def _detail_rows(self, features: Tensor, plan: Plan, start: int, stop: int) -> Tensor:
        """Compute rows of the detail, (1 or 3, stop - start, sW), from features of the image."""
        scale = self.contract.scale
        halo_px = self.contract.detail_halo_px
        height = features.shape[-2]
        # Rows of the features that the rows of the detail can see.
        top = max(0, start // scale - halo_px)
        bottom = min(height, -(-stop // scale) + halo_px)
        # Not the current format of the runner: another thread may read rows after it has changed.
        with number_format(features.device, plan.precision):
            detail = as_detail(self._model).detail(features[:, :, top:bottom])
        offset = top * scale
        return self._crop(detail[0, :, start - offset : stop - offset], plan)

    def restore_window(
        self,
        lq: Tensor,
        plan: Plan,
        *,
        before: Edge,
        after: Edge,
        num_frames: int,
    ) -> Generator[Tensor, None, Edge]:
        """Restore the first frames of a window; see `Runner`."""
        lq, states = self._load(lq, edge_tensors(before), plan)
        assert states is not None
        before = with_tensors(before, states)
        restore = self._stream_window if plan.is_streamed else self._restore_whole_window
        # Not a generator, which would keep the frames in their original layout until it ends.
        return restore(_channels_last(lq), before, after, num_frames, plan)

    @torch.no_grad()
    def _stream_window(
        self,
        lq: Tensor,
        before: Edge,
        after: Edge,
        num_frames: int,
        plan: Plan,
    ) -> Generator[Tensor, None, Edge]:
        """Restore a window as whole images, one result after the other."""
        with BoundaryRecorder(self.contract, num_frames, plan.features) as recorder:
            results = iter(
                as_streaming(self._model).restore(
                    lq,
                    before=before,
                    after=after,
                    on_state=recorder.observe,
                    store=FeatureStore(plan.features),
                )
            )
            for _ in range(self._num_results(lq, num_frames)):
                # Autocast ends before each `yield`: the code of the caller must not run under it.
                with self._number_format():
                    sr = next(results)
                yield self._crop(sr, plan)[0]
            return recorder.next_edge(lq, before)

    @torch.no_grad()
    def _restore_whole_window(
        self,
        lq: Tensor,
        before: Edge,
        after: Edge,
        num_frames: int,
        plan: Plan,
    ) -> Generator[Tensor, None, Edge]:
        """Restore a window in one call, or tile by tile in one call for each."""
        # Its tensors are those of the last tile.
        tile_edge = Edge()

        def call(tile: Tensor, hidden: Hidden) -> tuple[Tensor, Hidden]:
            nonlocal tile_edge
            tile_before = with_tensors(before, hidden or ())
            sr, tile_edge = self._call_clip(tile, tile_before, after, num_frames)
            return sr, edge_tensors(tile_edge)

        sr, states = self._call_on_tiles(
            call,
            lq,
            edge_tensors(before),
            plan,
            scale=self.contract.scale,
        )
        yield from self._crop(sr, plan)[0]
        return with_tensors(tile_edge, states or ())

    def _call_clip(
        self,
        lq: Tensor,
        before: Edge,
        after: Edge,
        num_frames: int,
    ) -> tuple[Tensor, Edge]:
        """Restore the first frames of a clip: (1, T', 3, sh, sw), and the edge that follows."""
        lq = _channels_last(lq)
        num_results = self._num_results(lq, num_frames)
        with BoundaryRecorder(self.contract, num_frames) as recorder, self._number_format():
            if self.contract.streams:
                results = as_streaming(self._model).restore(
                    lq,
                    before=before,
                    after=after,
                    on_state=recorder.observe,
                )
                sr = stack_frames(results, num_results)
            else:
                sr = self._model(lq)[:, :num_results]
            return sr, recorder.next_edge(lq, before)

    def _num_results(self, lq: Tensor, num_frames: int) -> int:
        """Count the results for the first frames of a clip, (1, T, 3, H, W)."""
        results_per_frame = 1 + self.contract.temporal.between_frames
        num_all = (lq.shape[1] - 1) * results_per_frame + 1
        return min(num_frames * results_per_frame, num_all)

    @torch.no_grad()
    def encode(self, lq: Tensor, plan: Plan) -> Encoding:
        """Encode one frame of a window model; see `Runner`."""
        self._follow(plan)
        lq = pad_to(lq.to(self.device), *plan.padded)

        def call(tile: Tensor, hidden: Hidden) -> tuple[Tensor, Hidden]:
            del hidden
            with self._number_format():
                encoding = as_encoding(self._model).encode(_channels_last(tile)[:, 0])
            return tile, encoding

        # Tiles of a state are assembled into whole images. The encoding is returned as a state, so
        # that the same happens to it.
        _, encoding = self._call_on_tiles(
            call,
            lq,
            None,
            plan,
            scale=1,
        )
        assert encoding is not None
        return encoding

    @torch.no_grad()
    def fuse(self, window: Sequence[Encoding], plan: Plan) -> Tensor:
        """Restore the center frame of a window; see `Runner`."""
        self._follow(plan)
        # A state is cut into tiles. The encodings of all frames are passed as one state, so that
        # the same happens to them.
        num_tensors = len(window[0])
        joined: list[Tensor] = []
        for encoding in window:
            joined += [tensor.to(self.device) for tensor in encoding]

        def call(tile: Tensor, hidden: Hidden) -> tuple[Tensor, Hidden]:
            del tile
            assert hidden is not None
            # Regroup the tensors by frame.
            encodings = [
                hidden[first : first + num_tensors] for first in range(0, len(hidden), num_tensors)
            ]
            with self._number_format():
                return as_encoding(self._model).fuse(encodings)[:, None], None

        # Only the size of lq is used: one number, expanded to an image without more memory.
        lq = joined[0].new_empty(()).expand(1, 1, 1, *plan.padded)
        sr, _ = self._call_on_tiles(
            call,
            lq,
            tuple(joined),
            plan,
            scale=self.contract.scale,
        )
        return self._crop(sr, plan)

    def call(
        self,
        lq: Tensor,
        hidden: Hidden,
    ) -> tuple[Tensor, Hidden]:
        """Call the network once, for a tile or a whole image, in its layout and number format.

        Args:
            lq: Frames, (1, T, 3, h, w), on the device, of a size that the network accepts.
            hidden: State of an online model; None at the start of a scene and for other kinds.

        Returns:
            sr (1, T', 3, sh, sw), and the new state of an online model; None for other kinds.
        """
        lq = _channels_last(lq)
        with self._number_format():
            if self.contract.temporal.kind == "online":
                sr, hidden = as_online(self._model).step(lq, hidden)
                return sr[:, None], hidden
            return self._model(lq), None

    @torch.no_grad()
    def memory_cost(self) -> MemoryCost:
        """Measure the memory use of the model; see `Runner`."""
        try:
            # Large images use Winograd convolutions, so the small probe image has to use them, too.
            with use_backend(self._model, "winograd"):
                if self.contract.streams:
                    return self._measure_stream()
                encoding_bytes = self._measure_encoding() if self.contract.encodes else 0.0
                return MemoryCost(
                    call_bytes_per_px=self._measure_call(),
                    encoding_bytes_per_px=encoding_bytes,
                )
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return MemoryCost(call_bytes_per_px=None)

    def _measure_call(self) -> float:
        """Measure a batched call: bytes per input pixel, and for clip models per frame."""
        temporal = self.contract.temporal
        num_frames_by_kind = {
            "frame": 1,
            "window": 2 * temporal.radius + 1,
            "online": 1 + temporal.lookahead,
            "clip": min(temporal.window_frames or _PROBE_FRAMES, _PROBE_FRAMES),
        }
        num_frames = num_frames_by_kind[temporal.kind]
        lq = self._probe_image(PROBE_PX, num_frames)
        hidden: Hidden = None
        if temporal.kind == "online":
            # The first step has no state, so the second one is measured.
            _, hidden = self.call(lq, None)
        peak_bytes = peak_tensor_bytes(lambda: self.call(lq, hidden))
        pixels = math.prod(lq.shape[-2:])
        if temporal.kind == "clip":
            pixels *= num_frames
        return _WORKSPACE_FACTOR * max(peak_bytes, lq.nbytes) / pixels

    def _measure_encoding(self) -> float:
        """Measure the encoding of one frame of a window model: bytes per input pixel."""
        lq = self._probe_image(PROBE_PX, 1)
        with self._number_format():
            encoding = as_encoding(self._model).encode(_channels_last(lq)[:, 0])
        encoding_bytes = sum(tensor.nbytes for tensor in encoding)
        return encoding_bytes / math.prod(lq.shape[-2:])

    def _measure_stream(self) -> MemoryCost:
        """Measure a streamed call, and derive the cost of a batched one from it.

        Meanwhile the features go to a file and are counted separately. A batched call does the same
        work and keeps features and results in memory; its cost is the sum, because another
        measurement would take seconds.
        """
        num_frames = round_up(_STREAM_PROBE_FRAMES, self.contract.frame_multiple)
        lq = _channels_last(self._probe_image(_STREAM_PROBE_PX, num_frames))
        store = FeatureStore(FeatureLimits(device_bytes=0, host_bytes=0))

        def run() -> None:
            # The states for the next window stay in memory, and are counted.
            with BoundaryRecorder(self.contract, num_frames) as recorder, self._number_format():
                results = as_streaming(self._model).restore(
                    lq,
                    on_state=recorder.observe,
                    store=store,
                )
                # Exhaust the results without keeping them.
                deque(results, maxlen=0)

        peak_bytes = peak_tensor_bytes(run)
        pixels = math.prod(lq.shape[-2:])
        stream_bytes = _WORKSPACE_FACTOR * peak_bytes / pixels
        feature_bytes = max(store.peak_bytes, lq.nbytes) / (num_frames * pixels)
        # One frame of lq and one of sr, per input pixel.
        frame_bytes = 3 * lq.element_size() * (1 + self.contract.scale**2)
        return MemoryCost(
            # The work of one frame is spread over the frames of a short window.
            call_bytes_per_px=stream_bytes / _PROBE_FRAMES + feature_bytes + frame_bytes,
            stream_bytes_per_px=stream_bytes,
            feature_bytes_per_px=feature_bytes,
        )

    def _probe_image(self, side_px: int, num_frames: int) -> Tensor:
        height, width = padded_size(side_px, side_px, self.contract)
        return torch.zeros(
            1,
            num_frames,
            3,
            height,
            width,
            device=self.device,
        )

    def _follow(self, plan: Plan) -> None:
        """Adopt the precision of a plan, and move the network to its device."""
        self.precision = plan.precision
        device = torch.device(plan.device)
        if device != self.device:
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            self.device = device
            _move(self._model, device)

    def _load(self, lq: Tensor, hidden: Hidden, plan: Plan) -> tuple[Tensor, Hidden]:
        """Follow a plan: pad the frames, and bring them and the state to its device."""
        self._follow(plan)
        lq = pad_to(lq.to(self.device), *plan.padded)
        if hidden is not None:
            hidden = tuple(map(self._load_state, hidden))
        return lq, hidden

    def _load_state(self, state: Tensor) -> Tensor:
        if state.device == self.device:
            return state
        # After a fallback, in the one number format that any device and precision takes.
        return state.to(self.device, torch.float32)

    def _number_format(self) -> torch.autocast:
        return number_format(self.device, self.precision)

    def _call_on_tiles(
        self,
        call: Callable[[Tensor, Hidden], tuple[Tensor, Hidden]],
        lq: Tensor,
        hidden: Hidden,
        plan: Plan,
        *,
        scale: int,
    ) -> tuple[Tensor, Hidden]:
        """Run a call on the whole image if the plan has one tile, otherwise tile by tile."""
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
        """Remove the result of the padding, at the bottom and at the right."""
        scale = self.contract.scale
        return sr[..., : plan.height * scale, : plan.width * scale]


def _rows_of(image: Tensor, start: int, stop: int) -> Tensor:
    return image[:, start:stop]


def _move(model: nn.Module, device: torch.device) -> nn.Module:
    """Move a network to a device, and lay out its 4-D weights channels last.

    CPUs and tensor cores convolve channels-last weights faster.
    """
    model = model.to(device)
    for parameter in all_parameters(model):
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return model


def _channels_last(lq: Tensor) -> Tensor:
    """Lay out (B, T, C, H, W) in memory as (B, T, H, W, C).

    Then any frame, and all frames as one batch, are channels last.
    """
    contiguous = lq.permute(0, 1, 3, 4, 2).contiguous()  # (B, T, H, W, C)
    return contiguous.permute(0, 1, 4, 2, 3)  # (B, T, C, H, W)
