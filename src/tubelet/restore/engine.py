"""The engine: restores a stream of frames scene by scene, in bounded memory, following a plan.

    frames → scenes (cut detector) → neighborhoods or windows → runner (tiles, model) → frames

Every input frame is output once, in order, with its time. When a call runs out of memory, the
engine repeats it under `plan.smaller()`; the state of a recurrent model is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain

import torch
from torch import Tensor, nn

from tubelet.ops.resize import resample
from tubelet.restore.encodings import EncodingCache
from tubelet.restore.fallback import PlanFallback, out_of_memory_reason
from tubelet.restore.plan import Plan
from tubelet.restore.planner import Planner
from tubelet.restore.rate import double_rate
from tubelet.restore.runner import Runner, TorchRunner
from tubelet.restore.scene import SceneFrames, scene_detector
from tubelet.restore.settings import UpscaleSettings
from tubelet.restore.tiles import TileSpan
from tubelet.restore.tiling import Hidden
from tubelet.restore.windows import WindowCutter, neighborhoods, scenes
from tubelet.types import Frame, Precision
from tubelet.video.enlarged import EnlargedFrame, Rows
from tubelet.zoo.spec import ModelSpec

__all__ = ["Engine"]


class Engine:
    """Restores streams of frames with one model, one stream at a time.

    Attributes:
        spec: Entry of the model in the zoo.
        runner: Backend that computes the calls of the model.
        notes: Messages for the user about this run, one line each.
    """

    def __init__(
        self,
        spec: ModelSpec,
        model: nn.Module | Runner,
        settings: UpscaleSettings | None = None,
    ) -> None:
        """Prepare a model for inference.

        Args:
            spec: Entry of the model in the zoo; its contract determines how the model is called.
            model: Network, which is moved to the device, or the runner of another backend.
            settings: Settings of the run; `Planner` lists those it uses and the errors.
        """
        self._planner = Planner(spec, settings or UpscaleSettings())
        if isinstance(model, nn.Module):
            model = TorchRunner(
                model,
                spec.contract,
                device=self._planner.device,
                precision=self._planner.precision,
            )
        self.spec = spec
        self.runner: Runner = model
        self.notes: list[str] = []
        self._fallback: PlanFallback | None = None

    @property
    def device(self) -> torch.device:
        """Device of the model; it becomes the CPU when an accelerator runs out of memory."""
        if self._fallback is None:
            return self._planner.device
        return torch.device(self._fallback.plan.device)

    @property
    def precision(self) -> Precision:
        """Number format inside the model."""
        if self._fallback is None:
            return self._planner.precision
        return self._fallback.plan.precision

    @property
    def current_plan(self) -> Plan:
        """Plan that the engine follows; a smaller one replaces it when memory runs out."""
        return self._current_fallback.plan

    @property
    def _current_fallback(self) -> PlanFallback:
        assert self._fallback is not None, "the engine follows no plan yet"
        return self._fallback

    def plan(self, height: int, width: int) -> Plan:
        """Plan the restoration of frames of one size within the memory that is free now."""
        return self._planner.plan(height, width, self.runner)

    def follow(self, plan: Plan) -> None:
        """Use a plan for all frames from now on."""
        self._fallback = PlanFallback(plan, self.notes)

    def restore(
        self,
        frames: Iterable[Frame],
        *,
        starts_scene: Callable[[Tensor], bool] | None = None,
        plan: Plan | None = None,
    ) -> Iterator[Frame]:
        """Restore a stream of frames of one size.

        Args:
            frames: Frames in presentation order.
            starts_scene: Called with the rgb of each frame in order; returns True if the frame
                starts a new scene. Neighbors and state never cross a cut. Default:
                `scene_detector`.
            plan: Plan to follow; by default it is made for the first frame.

        Yields:
            One frame per input frame with the same time, or the frames of `double_rate` if the
            settings double the rate. Frames have the output size of the plan, are on the CPU, and
            their values are not clipped: the writer clips them when it rounds to pixels.

        Raises:
            ResourceError: Memory does not suffice for the smallest tile on the CPU.
        """
        stream = iter(frames)
        first = next(stream, None)
        if first is None:
            return
        # The plan depends on the frame size, which is known from the first frame on.
        height, width = first.rgb.shape[-2:]
        self.follow(plan or self.plan(height, width))

        detect_cut = starts_scene or scene_detector(self.spec.contract)
        split = scenes(chain([first], stream), lambda frame: detect_cut(frame.rgb))
        restored: Iterator[Frame] = chain.from_iterable(
            self.restore_scene(SceneFrames(scene)) for scene in split
        )
        if self.current_plan.doubles_rate:
            restored = double_rate(restored)
        yield from restored

    def restore_scene(
        self, scene: SceneFrames, hidden: Hidden = None
    ) -> Generator[Frame, None, Hidden]:
        """Restore a scene, or a section of one with its context.

        Args:
            scene: Output frames and context frames.
            hidden: State of an online model after the frame that precedes the first one.

        Yields:
            The restored output frames. If the plan doubles the rate, each frame is followed by the
            one half-way to its successor, with the same time.

        Returns:
            State of an online model after the last output frame; None for other kinds.
        """
        if self.spec.temporal.kind == "clip":
            yield from self._restore_windows(scene)
            return None
        return (yield from self._restore_neighborhoods(scene, hidden))

    def _restore_neighborhoods(
        self, scene: SceneFrames, hidden: Hidden
    ) -> Generator[Frame, None, Hidden]:
        """Restore each frame from itself and its neighbors (frame, window and online models)."""
        temporal = self.spec.temporal
        before = temporal.radius
        after = temporal.radius or temporal.lookahead
        encodings = EncodingCache(self.runner)
        windows = neighborhoods(scene, before=before, after=after)
        for position, window in enumerate(windows, scene.first):
            if scene.is_past_output(position):
                break
            is_context = position < scene.start
            # Only the state of an online model depends on the results of context frames.
            if is_context and temporal.kind != "online":
                continue
            if self.spec.contract.skip:
                frame, hidden = self._enlarge(window[before], window, hidden)
            else:
                sr, hidden = self._run_neighborhood(window, hidden, encodings)
                frame = replace(window[before], rgb=sr[0, 0])
            if not is_context:
                yield _output_frame(window[before], frame, self.current_plan)
        return hidden

    def _enlarge(
        self, source: Frame, window: Sequence[Frame], hidden: Hidden
    ) -> tuple[Frame, Hidden]:
        """Enlarge a frame by interpolation, and add the detail of an online model, if it is one."""
        contract = self.spec.contract
        assert contract.skip
        height, width = source.size
        size = (height * contract.scale, width * contract.scale)
        if not contract.has_detail:
            return EnlargedFrame(source, size, contract.skip), None

        def attempt(plan: Plan) -> tuple[Rows, Hidden]:
            return self.runner.run_detail(_stack(window), hidden, plan)

        detail_rows, hidden = self._current_fallback.run(attempt)
        frame = EnlargedFrame(
            source,
            size,
            contract.skip,
            detail_rows=detail_rows,
            detail_channels=contract.detail_channels,
        )
        return frame, hidden

    def _run_neighborhood(
        self, window: Sequence[Frame], hidden: Hidden, encodings: EncodingCache
    ) -> tuple[Tensor, Hidden]:
        """Restore the center frame of a neighborhood; return it with the new state."""

        def attempt(plan: Plan) -> tuple[Tensor, Hidden]:
            if plan.keep_encodings:
                return encodings.restore(window, plan), None
            encodings.clear()
            return self.runner.run(_stack(window), hidden, plan)

        return self._current_fallback.run(attempt)

    def _restore_windows(self, scene: SceneFrames) -> Iterator[Frame]:
        """Restore a scene window by window (clip models).

        A space-time model also returns a result between any two frames, so results are numbered:
        result n belongs to frame n // results_per_frame. When memory runs out, the next window is
        cut from the first missing result on.
        """
        results_per_frame = 1 + self.spec.temporal.between_frames
        cutter = WindowCutter(scene)
        num_done = 0
        while True:
            plan = self.current_plan
            assert plan.window is not None
            next_frame = num_done // results_per_frame
            cut = cutter.cut(next_frame, size=plan.window.frames, overlap=plan.window.overlap)
            # The cutter reads the frames, and only then the scene knows where its output stops.
            if cut is None or scene.is_past_output(scene.first + next_frame):
                return
            window, span = cut
            try:
                for number, frame in _window_frames(
                    self.runner, window, span, scene, plan, num_done
                ):
                    num_done = number + 1
                    t, offset = divmod(number, results_per_frame)
                    is_at_output_rate = offset == 0 or plan.doubles_rate
                    if is_at_output_rate and scene.is_output(scene.first + t):
                        yield frame
                num_done = span.keep_stop * results_per_frame
                continue
            except (RuntimeError, MemoryError) as error:
                reason = out_of_memory_reason(error)
            # Outside of the handler: the traceback of its error would keep the tensors alive.
            self._current_fallback.reduce_memory(reason)


def _window_frames(
    runner: Runner,
    window: list[Frame],
    span: TileSpan,
    scene: SceneFrames,
    plan: Plan,
    num_done: int,
) -> Iterator[tuple[int, Frame]]:
    """Yield the frames of a window with their numbers, without those in the overlaps."""
    results_per_frame = 1 + plan.contract.temporal.between_frames
    first_number = span.start * results_per_frame
    stop_number = span.keep_stop * results_per_frame
    results = _window_results(runner, window, span, scene, plan)
    for number, sr in enumerate(results, first_number):
        if num_done <= number < stop_number:
            t = number // results_per_frame
            source = window[t - span.start]
            yield number, _output_frame(source, replace(source, rgb=sr), plan)


def _window_results(
    runner: Runner,
    window: list[Frame],
    span: TileSpan,
    scene: SceneFrames,
    plan: Plan,
) -> Iterator[Tensor]:
    """Yield the results (3, sH, sW) of a window, one by one as they are ready if the model can."""
    first_frame = scene.first + span.start
    ends_scene = span.keep_stop == span.stop and scene.reaches_end
    # The stacked frames get no name here, so that the runner can free them after padding.
    if plan.is_streamed:
        yield from runner.stream(
            _stack(window),
            plan,
            first_frame=first_frame,
            ends_scene=ends_scene,
        )
        return
    sr, _ = runner.run(
        _stack(window),
        None,
        plan,
        first_frame=first_frame,
        ends_scene=ends_scene,
    )
    yield from sr[0]


def _output_frame(source: Frame, restored: Frame, plan: Plan) -> Frame:
    """Resize a restored frame, and the transparency of its source, to the output size.

    Args:
        source: Frame that was restored.
        restored: Result of the model, sH × sW; it gets the transparency.
        plan: Plan of the restoration.
    """
    width, height = plan.output
    with torch.no_grad():
        if source.alpha is not None:
            restored.alpha = resample(source.alpha, (height, width)).clamp(0, 1)
        if isinstance(restored, EnlargedFrame) and restored.size == (height, width):
            return restored
        sr = restored.rgb.float()
        if sr.shape[-2:] != (height, width):
            sr = resample(sr, (height, width))
    return replace(source, rgb=sr.cpu(), alpha=restored.alpha)


def _stack(frames: Iterable[Frame]) -> Tensor:
    return torch.stack([frame.rgb for frame in frames])[None]  # (1, T, 3, H, W)
