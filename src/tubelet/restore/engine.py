"""The engine: restores a stream of frames as a plan says, scene by scene, in bounded memory.

    frames → scenes (cut detector) → neighborhoods or windows → runner (tiles, model) → frames

Every frame that comes in goes out once, in order, with its time. When memory runs out, the current call is done again
under `plan.smaller()`; the state of a recurrent model survives that.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import replace
from itertools import chain
from typing import TypeVar

import torch
from torch import Tensor, nn

from tubelet.errors import ResourceError
from tubelet.ops.resize import resample
from tubelet.restore.device import resolve_device, resolve_precision
from tubelet.restore.memory import is_out_of_memory, measure_budget
from tubelet.restore.plan import MemoryCost, Plan, plan_restoration
from tubelet.restore.rate import double_rate, require_space_time
from tubelet.restore.runner import Encoding, Runner, TorchRunner
from tubelet.restore.scene import SceneFrames
from tubelet.restore.settings import UpscaleSettings
from tubelet.restore.tiles import output_size
from tubelet.restore.tiling import Hidden
from tubelet.restore.windows import WindowCutter, neighborhoods, scenes
from tubelet.types import Frame, Precision
from tubelet.video.scenes import CutDetector
from tubelet.zoo.spec import ModelSpec

__all__ = ["Engine"]

T = TypeVar("T")
Encodings = dict[int, tuple[Frame, Encoding]]
"""By identity of the frame, which is kept so that no other frame can have the same identity."""


class Engine:
    """Restores frames with one model as the settings say; one stream at a time.

    Attributes:
        spec: the model's entry in the zoo.
        runner: computes its calls.
        notes: what a user should know of the run, a line each.
    """

    def __init__(
        self,
        spec: ModelSpec,
        model: nn.Module | Runner,
        settings: UpscaleSettings | None = None,
    ) -> None:
        """Prepare a model.

        Args:
            spec: its contract says how to call it.
            model: the network, which is moved to the device; or what runs it.
            settings: scale, height, fps, device, precision, tile and memory are used.

        Raises:
            ConfigError: the device's name, the precision or the frame rate does not fit this model.
            ResourceError: the device is absent.
        """
        settings = settings or UpscaleSettings()
        if settings.fps:
            require_space_time(spec, settings.fps)
        device = resolve_device(settings.device)
        precision = resolve_precision(settings.precision, spec, device)
        self.spec = spec
        if isinstance(model, nn.Module):
            model = TorchRunner(model, spec.contract, device=device, precision=precision)
        self.runner: Runner = model
        self.notes: list[str] = []
        self._settings = settings
        self._device = device
        self._precision: Precision = precision
        self._cost: MemoryCost | None = None
        self._plan: Plan | None = None

    @property
    def device(self) -> torch.device:
        """Where the model runs; it can become the CPU when memory runs out."""
        return self._device if self._plan is None else torch.device(self._plan.device)

    @property
    def precision(self) -> Precision:
        """Number format inside the model."""
        return self._precision if self._plan is None else self._plan.precision

    @property
    def doubles_rate(self) -> bool:
        """Whether a frame half-way follows every frame but the last."""
        return self._settings.fps is not None

    def output_size(self, width: int, height: int) -> tuple[int, int]:
        """Compute the output's (width, height) for an input of this size, pixels."""
        return output_size(
            width,
            height,
            native=self.spec.scale,
            scale=self._settings.scale,
            target_height=self._settings.height,
        )

    def plan(self, height: int, width: int) -> Plan:
        """Plan the restoration of frames of one size, from the memory that is free now.

        Args:
            height: of the input, pixels.
            width: of the input, pixels.
        """
        if self._cost is None:
            self._cost = self._measure_cost()
        cpu = torch.device("cpu")
        return plan_restoration(
            height,
            width,
            self.spec.contract,
            self._settings,
            budget=measure_budget(self._device, self._settings.memory),
            cost=self._cost,
            device=str(self._device),
            precision=self._precision,
            cpu_precision=resolve_precision("auto", self.spec, cpu),
        )

    def _measure_cost(self) -> MemoryCost:
        """Measure the model, unless the settings and the contract leave nothing to decide."""
        contract = self.spec.contract
        decides_window = contract.temporal.kind == "clip" and not contract.temporal.window_frames
        if self._settings.tile is None or decides_window or contract.encodes:
            return self.runner.memory_cost()
        return MemoryCost(call_bytes_per_px=None)

    def restore(
        self,
        frames: Iterable[Frame],
        *,
        starts_scene: Callable[[Tensor], bool] | None = None,
        plan: Plan | None = None,
    ) -> Iterator[Frame]:
        """Restore a stream of frames of one size.

        Args:
            frames: in presentation order.
            starts_scene: given each frame's rgb in order, tells whether a new scene starts with it; neighbors and state
                never cross such a cut. Default: a `CutDetector`.
            plan: how to do it; by default it is made for the first frame.

        Yields:
            As many frames, with the same times, or with those of `double_rate` where the settings ask for it; sizes
            from the plan, on the CPU. Values are not clipped: whoever rounds them to pixels does that.

        Raises:
            ResourceError: memory does not suffice for the smallest tile on the CPU.
        """
        stream = iter(frames)
        first = next(stream, None)
        if first is None:
            return
        self.follow(plan or self.plan(*first.rgb.shape[-2:]))
        stream = chain([first], stream)
        if self.spec.temporal.kind == "frame":
            yield from self.restore_scene(SceneFrames(stream))
            return
        detect = starts_scene or CutDetector().is_cut
        split = scenes(stream, lambda frame: detect(frame.rgb))
        parts = (self.restore_scene(SceneFrames(scene)) for scene in split)
        restored = chain.from_iterable(parts)
        yield from double_rate(restored) if self.doubles_rate else restored

    def follow(self, plan: Plan) -> None:
        """Take a plan for the scenes that follow."""
        self._plan = plan

    def restore_scene(self, scene: SceneFrames, hidden: Hidden = None) -> Generator[Frame, None, Hidden]:
        """Restore a scene, or a part of one.

        Args:
            scene: its frames, and which of them are wanted.
            hidden: state of an online model after the frame before the first one.

        Yields:
            The wanted frames; with a space-time model whose settings double the rate, each is followed by the one
            half-way to the next frame, at the same time.

        Returns:
            The state of an online model after the last wanted frame; None for other kinds.
        """
        if self.spec.temporal.kind == "clip":
            yield from self._restore_windows(scene)
            return None
        return (yield from self._restore_neighborhoods(scene, hidden))

    def _restore_neighborhoods(self, scene: SceneFrames, hidden: Hidden) -> Generator[Frame, None, Hidden]:
        """Restore each frame with those around it."""
        temporal = self.spec.temporal
        before = temporal.radius
        after = temporal.radius or temporal.lookahead
        encodings: Encodings = {}
        around = neighborhoods(scene, before=before, after=after)
        for position, window in enumerate(around, scene.first):
            if scene.is_behind(position):
                break
            if position < scene.start and temporal.kind != "online":
                continue
            sr, hidden = self._run(window, hidden, encodings)
            if position >= scene.start:
                yield self._finish(window[before], sr[0, 0])
        return hidden

    def _restore_windows(self, scene: SceneFrames) -> Iterator[Frame]:
        """Restore windows of a clip model.

        Results are counted in steps: a space-time model gives one at each frame and one between any two. When memory
        runs out, the next window is cut from the first result that is missing.
        """
        steps = 1 + self.spec.temporal.between_frames
        cutter = WindowCutter(scene)
        done = 0
        while True:
            plan = self._current
            assert plan.window is not None
            cut = cutter.cut(done // steps, size=plan.window.frames, overlap=plan.window.overlap)
            if cut is None:
                return
            window, span = cut
            is_last = span.keep_stop == span.stop
            results = self._window_results(window, plan, scene.first + span.start, is_last)
            try:
                for number, sr in enumerate(results, span.start * steps):
                    if not done <= number < span.keep_stop * steps:
                        continue
                    t, is_between = divmod(number, steps)
                    frame = self._finish(window[t - span.start], sr)
                    done = number + 1
                    if scene.wants(scene.first + t) and (plan.doubles_rate or not is_between):
                        yield frame
                done = span.keep_stop * steps
                continue
            except (RuntimeError, MemoryError) as error:
                reason = _out_of_memory(error)
            self._take_less_memory(reason)

    def _window_results(self, window: list[Frame], plan: Plan, first: int, is_last: bool) -> Iterator[Tensor]:
        """Yield the results (3, sH, sW) of a window, each as it is done where the model can."""
        if plan.features is not None:
            yield from self.runner.stream(_stack(window), plan, first_frame=first, ends_scene=is_last)
            return
        sr, _ = self.runner.run(_stack(window), None, plan, first_frame=first, ends_scene=is_last)
        yield from sr[0]

    def _run(self, window: tuple[Frame, ...], hidden: Hidden, encodings: Encodings) -> tuple[Tensor, Hidden]:
        """Restore the frame of a neighborhood.

        Args:
            window: the frame and those around it.
            hidden: state of an online model.
            encodings: of the frames of the last neighborhood; those of this one replace them.
        """

        def attempt(plan: Plan) -> tuple[Tensor, Hidden]:
            if not plan.keep_encodings:
                encodings.clear()
                return self.runner.run(_stack(window), hidden, plan)
            self._encode(window, encodings, plan)
            return self.runner.fuse([encodings[id(frame)][1] for frame in window], plan), None

        return self._with_less_memory(attempt)

    def _encode(self, window: tuple[Frame, ...], encodings: Encodings, plan: Plan) -> None:
        """Encode the frames that the last neighborhood did not have, and forget those that left."""
        present = {id(frame): frame for frame in window}
        for key in encodings.keys() - present.keys():
            del encodings[key]
        for key, frame in present.items():
            if key not in encodings:
                encodings[key] = frame, self.runner.encode(_stack([frame]), plan)

    @property
    def _current(self) -> Plan:
        assert self._plan is not None, "the engine follows no plan yet"
        return self._plan

    def _with_less_memory(self, call: Callable[[Plan], T]) -> T:
        """Do a call, under ever smaller plans until it succeeds."""
        while True:
            try:
                return call(self._current)
            except (RuntimeError, MemoryError) as error:
                reason = _out_of_memory(error)
            # Outside of the handler: its traceback would hold the tensors.
            self._take_less_memory(reason)

    def _take_less_memory(self, reason: str) -> None:
        """Go on with a smaller plan.

        Raises:
            ResourceError: there is none.
        """
        before = self._current
        after = before.smaller()
        if after is None:
            side_px = before.tile_px or max(before.height, before.width)
            raise ResourceError(
                f"out of memory with the smallest tile ({side_px} px): {reason}; "
                "close other programs or use a smaller model"
            )
        if before.device.startswith("cuda"):
            torch.cuda.empty_cache()
        self.notes.append(_descent_note(before, after))
        self._plan = after

    def _finish(self, source: Frame, sr: Tensor) -> Frame:
        """Bring a result (3, sH, sW) to the output's size, and give it the time of its source."""
        width, height = self._current.output
        alpha = None
        with torch.no_grad():
            sr = sr.float()
            if sr.shape[-2:] != (height, width):
                sr = resample(sr, (height, width))
            if source.alpha is not None:
                alpha = resample(source.alpha, (height, width)).clamp(0, 1)
        return replace(source, rgb=sr.cpu(), alpha=alpha)


def _out_of_memory(error: BaseException) -> str:
    """Return the message of an error that means that memory ran out, on one line; raise any other."""
    if not is_out_of_memory(error):
        raise error
    return " ".join(str(error).split()) or type(error).__name__


def _descent_note(before: Plan, after: Plan) -> str:
    if after.device != before.device:
        return f"out of memory on {before.device} with the smallest tile: continuing on the CPU"
    if before.window is not None and after.window is not None and before.window != after.window:
        return f"out of memory: continuing with {after.window.frames} frames at once"
    if after.tile_px != before.tile_px:
        return f"out of memory: continuing with tiles of {after.tile_px} px"
    return "out of memory: continuing without keeping what is computed of each frame"


def _stack(frames: Iterable[Frame]) -> Tensor:
    return torch.stack([frame.rgb for frame in frames])[None]  # (1, T, 3, H, W)
