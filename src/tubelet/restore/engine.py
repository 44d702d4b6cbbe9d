"""The engine: runs any model of the zoo over a stream of frames, scene by scene, in bounded memory.

    frames → scenes (cut detector) → neighbourhoods or windows → tiles → model → frames

Every frame that comes in goes out once, in order, with its time. When memory runs out, the current call is
done again with tiles of half the side, at last on the CPU; the state of a recurrent model survives both (see
`tiling`).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from tubelet.errors import ResourceError
from tubelet.layers.convolution import convolving
from tubelet.layers.frozen import all_parameters
from tubelet.layers.store import FeatureLimits, feature_limits, measure_features
from tubelet.ops.resize import resample
from tubelet.restore.device import number_format, resolve_device, resolve_precision
from tubelet.restore.memory import (
    free_bytes,
    is_out_of_memory,
    keep_freed,
    peak_tensor_bytes,
    plan_features,
    spare_bytes,
)
from tubelet.restore.plan import (
    MIN_TILE_PX,
    align_windows,
    choose_tile,
    neighbourhoods,
    output_size,
    padded_size,
    plan_tiles,
    scenes,
    windows,
)
from tubelet.restore.rate import double_rate, require_space_time
from tubelet.restore.settings import UpscaleSettings
from tubelet.restore.tiling import Hidden, run_tiled
from tubelet.types import Frame, Precision
from tubelet.video.scenes import CutDetector
from tubelet.zoo.spec import ModelSpec

__all__ = ["Engine", "Layout"]

_MARGIN = 2.0  # work space inside convolutions and copies between layouts, which the probe does not see
_SHARE = 0.5  # of the free memory; the rest is for queues, the encoder and others
_PROBE_PX = 64
_PROBE_FRAMES = 5
_STREAM_PROBE_PX, _STREAM_PROBE_FRAMES = 32, 3  # these networks are slow, and their memory is simple
_LEAST_WINDOW, _MOST_WINDOW = 16, 100  # frames, for clip models without a window of their own
_MOST_FRAMES = 3000  # where they give frames back one by one: two minutes before the first result
_OVERLAP = 8  # frames that windows share, where the model does not say
_COPIES = 3  # of the frames of a window: as they came, as one tensor, in the layout of the network


@dataclass(frozen=True, slots=True)
class Layout:
    """What memory decides, before the first frame.

    Attributes:
        tile_px: side of the part that a tile keeps, lq pixels; 0 is the whole picture.
        window_frames: frames of a call (clip models); 0 for the other kinds.
        overlap_frames: that consecutive windows share (clip models).
        features: where the features of a clip lie, for models that give it back frame by frame; None for the others.
    """

    tile_px: int
    window_frames: int = 0
    overlap_frames: int = 0
    features: FeatureLimits | None = None


class Engine:
    """Runs one model as the settings say; one stream at a time.

    Attributes:
        spec: the model's entry in the zoo.
        device: where it runs; can become the CPU when memory runs out.
        precision: number format inside the model.
        notes: what a person should know of the run, a line each.
    """

    def __init__(self, spec: ModelSpec, model: nn.Module, settings: UpscaleSettings | None = None) -> None:
        """Prepare a model.

        Args:
            spec: tells how to call it.
            model: the network; it is moved to the device.
            settings: its scale, height, fps, device, precision and tile are used.

        Raises:
            ConfigError: the device's name, the precision or the frame rate makes no sense for this model.
            ResourceError: the device is absent.
        """
        settings = settings or UpscaleSettings()
        if settings.fps:
            require_space_time(spec, settings.fps)
        self.spec = spec
        self.device = resolve_device(settings.device)
        self.precision: Precision = resolve_precision(settings.precision, spec, self.device)
        self.notes: list[str] = []
        keep_freed()
        self._settings = settings
        self._model: Any = _move(model.eval(), self.device)
        self._layout = Layout(0)

    @property
    def doubles_rate(self) -> bool:
        """Whether a frame half-way follows every frame but the last."""
        return self._settings.fps is not None

    def output_size(self, width: int, height: int) -> tuple[int, int]:
        """Compute the output's (width, height) for an input of this size, pixels."""
        asked = self._settings
        return output_size(width, height, native=self.spec.scale, scale=asked.scale, target_height=asked.height)

    def plan(self, height: int, width: int) -> Layout:
        """Decide tiles and windows from the memory that is free now.

        Args:
            height: of the input, pixels.
            width: of the input, pixels.
        """
        temporal = self.spec.temporal
        fixed_frames = temporal.window_frames if temporal.kind == "clip" else 1
        if self._settings.tile is not None and fixed_frames:
            return self._windowed(self._settings.tile, temporal.window_frames)
        return self._plan_stream(height, width) or self._plan_calls(height, width)

    def _windowed(self, tile_px: int, frames: int, features: FeatureLimits | None = None) -> Layout:
        """Decide what windows share."""
        temporal = self.spec.temporal
        overlap = temporal.overlap_frames
        if not temporal.window_frames:
            overlap = min(overlap or _OVERLAP, frames // 2)
        return Layout(tile_px, frames, align_windows(frames, overlap, temporal.start_multiple), features)

    def _plan_calls(self, height: int, width: int) -> Layout:
        """Plan calls whose results come all at once."""
        temporal = self.spec.temporal
        fixed_frames = temporal.window_frames if temporal.kind == "clip" else 1
        budget = _SHARE * free_bytes(self.device)
        frame_px = budget / self._bytes_per_px  # lq pixels of all frames of a call
        frames = fixed_frames or int(frame_px // math.prod(padded_size(height, width, self.spec.contract)))
        frames = frames if fixed_frames else min(max(frames, _LEAST_WINDOW), _MOST_WINDOW)
        tile_px = self._settings.tile
        if tile_px is None:
            tile_px = choose_tile(height, width, self.spec.contract, max_area_px=frame_px / frames)
        if temporal.kind != "clip":
            return Layout(tile_px)
        return self._windowed(tile_px, frames)

    def _plan_stream(self, height: int, width: int) -> Layout | None:
        """Plan whole scenes of untiled pictures; None where the model or the memory does not allow it."""
        temporal = self.spec.temporal
        streams = self.spec.contract.streams and not temporal.window_frames
        if not streams or self._settings.tile:
            return None
        budget = _SHARE * free_bytes(self.device)
        pixels = math.prod(padded_size(height, width, self.spec.contract))
        call_bytes, feature_bytes = (pixels * cost for cost in self._stream_bytes_per_px)
        if call_bytes > budget / 2:
            return None
        limits = plan_features(self.device, budget / 2)
        room = sum(filter(None, (limits.device_bytes, limits.host_bytes))) + spare_bytes(limits.folder)
        frames = min(room / feature_bytes, budget / 4 / (_COPIES * 12 * pixels), _MOST_FRAMES)
        if frames < _LEAST_WINDOW:
            return None
        return self._windowed(0, int(frames), limits)

    def restore(
        self, frames: Iterable[Frame], *, starts_scene: Callable[[Tensor], bool] | None = None
    ) -> Iterator[Frame]:
        """Enlarge a stream of frames of one size.

        Args:
            frames: in presentation order.
            starts_scene: given each frame's rgb in order, tells whether a new scene starts with it;
                neighbours and state never cross such a cut. Default: a `CutDetector`.

        Yields:
            As many frames, with the same times, or with those of `double_rate` where the settings ask for it; sizes
            from `output_size`, on the CPU. Values are not clipped: whoever rounds them to pixels does that.

        Raises:
            ResourceError: memory does not suffice for the smallest tile on the CPU.
        """
        stream = iter(frames)
        first = next(stream, None)
        if first is None:
            return
        self._layout = self.plan(*first.rgb.shape[-2:])
        stream = chain([first], stream)
        if self.spec.temporal.kind == "frame":
            yield from self._restore_scene(stream)
            return
        detect = starts_scene or CutDetector().is_cut
        split = scenes(stream, lambda frame: detect(frame.rgb))
        restored = chain.from_iterable(map(self._restore_scene, split))
        yield from double_rate(restored) if self.doubles_rate else restored

    def _restore_scene(self, scene: Iterable[Frame]) -> Iterator[Frame]:
        temporal = self.spec.temporal
        if temporal.kind == "clip":
            yield from self._restore_windows(scene)
            return
        hidden: Hidden = None
        before, after = temporal.radius, temporal.radius or temporal.lookahead
        for around in neighbourhoods(scene, before=before, after=after):
            sr, hidden = self._run(around, hidden)
            yield self._finish(around[before], sr[0, 0])

    def _restore_windows(self, scene: Iterable[Frame]) -> Iterator[Frame]:
        size, overlap = self._layout.window_frames, self._layout.overlap_frames
        steps = 1 + self.spec.temporal.between_frames  # results from one frame to the next
        for window, span in windows(scene, size=size, overlap=overlap, multiple=self.spec.temporal.start_multiple):
            for number, sr in enumerate(self._run_window(window)):
                t, is_between = divmod(number, steps)
                if span.keep_start <= span.start + t < span.keep_stop and (not is_between or self.doubles_rate):
                    yield self._finish(window[t], sr)

    def _run_window(self, window: list[Frame]) -> Iterator[Tensor]:
        """Yield the results (3, sH, sW) of a window, each as it is done where the model can."""
        done = 0
        if self._layout.features is not None:
            try:
                for sr in self._stream(window):
                    yield sr
                    done += 1
                return
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            self._layout = self._plan_calls(*window[0].rgb.shape[-2:])
            self.notes.append(f"memory ran out; went on with {self._layout.window_frames} frames at once")
        size, overlap = self._layout.window_frames, self._layout.overlap_frames
        steps = 1 + self.spec.temporal.between_frames
        for part, span in windows(window, size=size, overlap=overlap, multiple=self.spec.temporal.start_multiple):
            for number, sr in enumerate(self._run(part, None)[0][0], span.start * steps):
                if max(done, span.keep_start * steps) <= number < span.keep_stop * steps:
                    yield sr

    @torch.no_grad()
    def _stream(self, window: list[Frame]) -> Iterator[Tensor]:
        height, width = window[0].rgb.shape[-2:]
        lq = _channels_last(_pad(_stack(window).to(self.device), *padded_size(height, width, self.spec.contract)))
        results = iter(self._model.restore(lq))
        while True:
            with self._number_format(), feature_limits(self._layout.features or FeatureLimits()):
                sr = next(results, None)
            if sr is None:
                return
            yield sr[0, :, : height * self.spec.scale, : width * self.spec.scale]

    def _run(self, frames: Iterable[Frame], hidden: Hidden) -> tuple[Tensor, Hidden]:
        """Call the model, with less memory until it succeeds: sr (1, T', 3, sH, sW) and the new state."""
        clip = _stack(frames)
        while True:
            try:
                return self._attempt(clip, hidden)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                reason = " ".join(str(error).split())
            self._descend(clip, reason)  # outside of the handler: the traceback would hold the tensors

    @torch.no_grad()
    def _attempt(self, clip: Tensor, hidden: Hidden) -> tuple[Tensor, Hidden]:
        height, width = clip.shape[-2:]
        lq = _pad(clip.to(self.device), *padded_size(height, width, self.spec.contract))
        hidden = hidden and tuple(state.to(self.device) for state in hidden)
        tiles = plan_tiles(lq.shape[-2], lq.shape[-1], self._layout.tile_px, self.spec.contract)
        if len(tiles) == 1:
            sr, hidden = self.call(lq, hidden)
        else:
            scale, multiple = self.spec.scale, self.spec.contract.size_multiple
            sr, hidden = run_tiled(self.call, lq, hidden, tiles, scale=scale, size_multiple=multiple)
        return sr[..., : height * self.spec.scale, : width * self.spec.scale], hidden

    def call(self, lq: Tensor, hidden: Hidden) -> tuple[Tensor, Hidden]:
        """Run the network once, as it is run on every tile: layout and number format are the engine's.

        Args:
            lq: (1, T, 3, h, w) on the device, of a size that the network takes.
            hidden: state of an online model, None at the start of a scene and for other kinds.

        Returns:
            sr (1, T', 3, sh, sw), and the new state.
        """
        lq = _channels_last(lq)
        with self._number_format():
            if self.spec.temporal.kind == "online":
                sr, hidden = self._model.step(lq, hidden)
                return sr[:, None], hidden
            return self._model(lq), None

    def _number_format(self) -> torch.autocast:
        return number_format(self.device, self.precision)

    def _finish(self, source: Frame, sr: Tensor) -> Frame:
        """Bring a result (3, sH, sW) to its size, and give it the time of its source."""
        width, height = self.output_size(source.rgb.shape[-1], source.rgb.shape[-2])
        alpha = None
        with torch.no_grad():
            sr = sr.float()
            if sr.shape[-2:] != (height, width):
                sr = resample(sr, (height, width))
            if source.alpha is not None:
                alpha = resample(source.alpha, (height, width)).clamp(0, 1)
        return replace(source, rgb=sr.cpu(), alpha=alpha)

    def _descend(self, clip: Tensor, reason: str) -> None:
        """Take less memory: tiles of half the side, then the CPU.

        Raises:
            ResourceError: there is nothing left to try.
        """
        height, width = clip.shape[-2:]
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        least = max(MIN_TILE_PX, self.spec.contract.min_size_px)
        side = self._layout.tile_px or max(height, width)
        if side > least:
            self._layout = replace(self._layout, tile_px=max(least, math.ceil(side / 2)))
            self.notes.append(f"memory ran out; went on with tiles of {self._layout.tile_px} pixels")
            return
        if self.device.type == "cpu":
            raise ResourceError(
                f"memory ran out with the smallest tile ({side} pixels): {reason}; "
                "close other programs or use a smaller model"
            )
        self.notes.append(f"memory of {self.device} ran out with the smallest tile; went on with the CPU")
        self.device = torch.device("cpu")
        self.precision = resolve_precision("auto", self.spec, self.device)
        _move(self._model, self.device)
        for name in ("_bytes_per_px", "_stream_bytes_per_px"):
            vars(self).pop(name, None)  # it was measured on the other device
        self._layout = replace(self._layout, tile_px=self.plan(height, width).tile_px)

    @cached_property
    def _bytes_per_px(self) -> float:
        """Estimate memory per lq pixel of all frames of a call, from a call on a small picture."""
        temporal = self.spec.temporal
        frames = {
            "frame": 1,
            "window": 2 * temporal.radius + 1,
            "online": 1 + temporal.lookahead,
            "clip": min(temporal.window_frames or _PROBE_FRAMES, _PROBE_FRAMES),
        }[temporal.kind]
        height, width = padded_size(_PROBE_PX, _PROBE_PX, self.spec.contract)
        lq = torch.zeros(1, frames, 3, height, width, device=self.device)
        try:
            with torch.inference_mode(), convolving("as large"):
                hidden = self.call(lq, None)[1] if temporal.kind == "online" else None
                peak = peak_tensor_bytes(lambda: self.call(lq, hidden))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return math.inf  # not even this fits: begin with the smallest tile, and descend from there
        pixels = height * width * (frames if temporal.kind == "clip" else 1)
        return _MARGIN * max(peak, lq.nbytes) / pixels

    @cached_property
    def _stream_bytes_per_px(self) -> tuple[float, float]:
        """Estimate memory per lq pixel of a call that keeps no features, and of the features of one frame."""
        height, width = padded_size(_STREAM_PROBE_PX, _STREAM_PROBE_PX, self.spec.contract)
        lq = _channels_last(torch.zeros(1, _STREAM_PROBE_FRAMES, 3, height, width, device=self.device))

        def run() -> None:
            with self._number_format(), feature_limits(FeatureLimits(device_bytes=0, host_bytes=0)):
                deque(self._model.restore(lq), maxlen=0)

        with torch.inference_mode(), convolving("as large"), measure_features() as features:
            call_bytes = peak_tensor_bytes(run)
        pixels = height * width
        return _MARGIN * call_bytes / pixels, max(features.peak_bytes, lq.nbytes) / (_STREAM_PROBE_FRAMES * pixels)


def _move(model: nn.Module, device: torch.device) -> nn.Module:
    """Move a network; 4-D weights become channels last, which CPUs and tensor cores convolve faster."""
    model = model.to(device)
    for parameter in all_parameters(model):
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return model


def _stack(frames: Iterable[Frame]) -> Tensor:
    return torch.stack([frame.rgb for frame in frames])[None]  # (1, T, 3, H, W)


def _channels_last(lq: Tensor) -> Tensor:
    """Order (B, T, C, H, W) in memory so that any frame, or all frames as one batch, is channels last."""
    return lq.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)


def _pad(lq: Tensor, height: int, width: int) -> Tensor:
    """Extend (1, T, C, H, W) to the right and below: mirrored if large enough, otherwise repeated."""
    down, across = height - lq.shape[-2], width - lq.shape[-1]
    if not down and not across:
        return lq
    mode = "reflect" if down < lq.shape[-2] and across < lq.shape[-1] else "replicate"
    return F.pad(lq[0], (0, across, 0, down), mode=mode)[None]
