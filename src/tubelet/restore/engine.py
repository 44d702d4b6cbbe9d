"""The engine: restores a stream of frames as a plan says, scene by scene, in bounded memory.

    frames → scenes (cut detector) → neighborhoods or windows → runner (tiles, model) → frames

Every frame that comes in goes out once, in order, with its time. When memory runs out, the current call is done again
under `plan.smaller()`; the state of a recurrent model survives that.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from typing import TypeVar

import torch
from torch import Tensor, nn

from tubelet.errors import ResourceError
from tubelet.ops.resize import resample
from tubelet.restore.encodings import EncodingCache
from tubelet.restore.memory import is_out_of_memory
from tubelet.restore.plan import Plan
from tubelet.restore.planner import Planner
from tubelet.restore.rate import double_rate
from tubelet.restore.runner import Runner, TorchRunner
from tubelet.restore.scene import SceneFrames, scene_detector
from tubelet.restore.settings import UpscaleSettings
from tubelet.restore.tiling import Hidden
from tubelet.restore.windows import WindowCutter, neighborhoods, scenes
from tubelet.types import Frame, Precision
from tubelet.zoo.spec import ModelSpec

__all__ = ["Engine"]

T = TypeVar("T")


class Engine:
    """Restores frames with one model as the settings say; one stream at a time.

    Attributes:
        spec: the model's entry in the zoo.
        runner: computes its calls.
        notes: what a user should know of the run, a line each.
    """

    def __init__(
        self, spec: ModelSpec, model: nn.Module | Runner, settings: UpscaleSettings | None = None
    ) -> None:
        """Prepare a model.

        Args:
            spec: its contract says how to call it.
            model: the network, which is moved to the device; or what runs it.
            settings: see `Planner`, which also says what is refused.
        """
        self._planner = Planner(spec, settings or UpscaleSettings())
        if isinstance(model, nn.Module):
            device, precision = self._planner.device, self._planner.precision
            model = TorchRunner(model, spec.contract, device=device, precision=precision)
        self.spec = spec
        self.runner: Runner = model
        self.notes: list[str] = []
        self._plan: Plan | None = None

    @property
    def device(self) -> torch.device:
        """Where the model runs; it can become the CPU when memory runs out."""
        return self._planner.device if self._plan is None else torch.device(self._plan.device)

    @property
    def precision(self) -> Precision:
        """Number format inside the model."""
        return self._planner.precision if self._plan is None else self._plan.precision

    def plan(self, height: int, width: int) -> Plan:
        """Plan the restoration of frames of one size, for the memory that is free now."""
        return self._planner.plan(height, width, self.runner)

    def follow(self, plan: Plan) -> None:
        """Take a plan for all that follows."""
        self._plan = plan

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
                never cross such a cut. Default: `scene_detector`.
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
        detect = starts_scene or scene_detector(self.spec.contract)
        split = scenes(stream, lambda frame: detect(frame.rgb))
        parts = (self.restore_scene(SceneFrames(scene)) for scene in split)
        restored = chain.from_iterable(parts)
        yield from double_rate(restored) if self.current_plan.doubles_rate else restored

    def restore_scene(
        self, scene: SceneFrames, hidden: Hidden = None
    ) -> Generator[Frame, None, Hidden]:
        """Restore a scene, or a part of one.

        Args:
            scene: its frames, and which of them are wanted.
            hidden: state of an online model after the frame before the first one.

        Yields:
            The wanted frames; where the plan doubles the rate, each is followed by the one half-way to the next frame,
            at the same time.

        Returns:
            The state of an online model after the last wanted frame; None for other kinds.
        """
        if self.spec.temporal.kind == "clip":
            yield from self._restore_windows(scene)
            return None
        return (yield from self._restore_neighborhoods(scene, hidden))

    def _restore_neighborhoods(
        self, scene: SceneFrames, hidden: Hidden
    ) -> Generator[Frame, None, Hidden]:
        """Restore each frame with those around it."""
        temporal = self.spec.temporal
        before = temporal.radius
        after = temporal.radius or temporal.lookahead
        encodings = EncodingCache(self.runner)
        around = neighborhoods(scene, before=before, after=after)
        for position, window in enumerate(around, scene.first):
            if scene.is_behind(position):
                break
            is_context = position < scene.start
            if is_context and temporal.kind != "online":
                continue
            sr, hidden = self._run(window, hidden, encodings)
            if not is_context:
                yield _output_frame(window[before], sr[0, 0], self.current_plan)
        return hidden

    def _run(
        self, window: Sequence[Frame], hidden: Hidden, encodings: EncodingCache
    ) -> tuple[Tensor, Hidden]:
        def attempt(plan: Plan) -> tuple[Tensor, Hidden]:
            if plan.keep_encodings:
                return encodings.restore(window, plan), None
            encodings.clear()
            return self.runner.run(_stack(window), hidden, plan)

        return self._with_less_memory(attempt)

    def _restore_windows(self, scene: SceneFrames) -> Iterator[Frame]:
        """Restore windows of a clip model.

        Results are counted in steps: a space-time model gives one at each frame and one between any two. When memory
        runs out, the next window is cut from the first result that is missing.
        """
        steps = 1 + self.spec.temporal.between_frames
        cutter = WindowCutter(scene)
        done = 0
        while True:
            plan = self.current_plan
            assert plan.window is not None
            cut = cutter.cut(done // steps, size=plan.window.frames, overlap=plan.window.overlap)
            if cut is None or scene.is_behind(scene.first + done // steps):
                return
            window, span = cut
            is_last = span.keep_stop == span.stop and scene.reaches_end
            first = scene.first + span.start
            results = _window_results(self.runner, window, plan, first, is_last)
            try:
                for number, sr in enumerate(results, span.start * steps):
                    if not done <= number < span.keep_stop * steps:
                        continue
                    t, is_between = divmod(number, steps)
                    frame = _output_frame(window[t - span.start], sr, plan)
                    done = number + 1
                    if scene.wants(scene.first + t) and (plan.doubles_rate or not is_between):
                        yield frame
                done = span.keep_stop * steps
                continue
            except (RuntimeError, MemoryError) as error:
                reason = _out_of_memory(error)
            self._take_less_memory(reason)

    @property
    def current_plan(self) -> Plan:
        """The plan that is followed; it becomes smaller when memory runs out."""
        assert self._plan is not None, "the engine follows no plan yet"
        return self._plan

    def _with_less_memory(self, call: Callable[[Plan], T]) -> T:
        """Do a call, under ever smaller plans until it succeeds."""
        while True:
            try:
                return call(self.current_plan)
            except (RuntimeError, MemoryError) as error:
                reason = _out_of_memory(error)
            # Outside of the handler: its traceback would hold the tensors.
            self._take_less_memory(reason)

    def _take_less_memory(self, reason: str) -> None:
        """Go on with a smaller plan; ResourceError where there is none."""
        before = self.current_plan
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


def _window_results(
    runner: Runner, window: list[Frame], plan: Plan, first: int, ends_scene: bool
) -> Iterator[Tensor]:
    """Yield the results (3, sH, sW) of a window, each as it is done where the model can."""
    if plan.features is not None:
        yield from runner.stream(_stack(window), plan, first_frame=first, ends_scene=ends_scene)
        return
    sr, _ = runner.run(_stack(window), None, plan, first_frame=first, ends_scene=ends_scene)
    yield from sr[0]


def _output_frame(source: Frame, sr: Tensor, plan: Plan) -> Frame:
    """Bring a result (3, sH, sW) to the output's size, and give it the time of its source."""
    width, height = plan.output
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
        return f"out of memory on {before.device}: continuing on the CPU"
    if before.window is not None and after.window is not None and before.window != after.window:
        return f"out of memory: continuing with {after.window.frames} frames at once"
    if after.tile_px != before.tile_px:
        return f"out of memory: continuing with tiles of {after.tile_px} px"
    return "out of memory: continuing without keeping what is computed of each frame"


def _stack(frames: Iterable[Frame]) -> Tensor:
    return torch.stack([frame.rgb for frame in frames])[None]  # (1, T, 3, H, W)
