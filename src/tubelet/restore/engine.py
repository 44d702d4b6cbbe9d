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

from tubelet.layers.recurrence import Edge
from tubelet.malloc import return_freed_memory
from tubelet.ops.resize import resample
from tubelet.restore.encodings import EncodingCache
from tubelet.restore.fallback import PlanFallback, out_of_memory_reason
from tubelet.restore.plan import Plan
from tubelet.restore.planner import Planner
from tubelet.restore.rate import double_rate
from tubelet.restore.runner import Runner, TorchRunner
from tubelet.restore.scene import SceneFrames, scene_detector
from tubelet.restore.scene_windows import SceneWindows
from tubelet.restore.settings import UpscaleSettings
from tubelet.restore.tiling import Hidden
from tubelet.restore.windows import neighborhoods, scenes
from tubelet.types import Frame, Precision
from tubelet.video.enlarged import EnlargedFrame, Rows
from tubelet.zoo.spec import ModelSpec

__all__ = ["Engine", "SceneState"]

SceneState = Hidden | Edge
"""State of a recurrent model between two sections of a scene: that of an online model, or the edge
before the next window of a clip model. None where it is not known, and for other kinds."""


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
        self, scene: SceneFrames, state: SceneState = None
    ) -> Generator[Frame, None, SceneState]:
        """Restore a scene, or a section of one with its context.

        Args:
            scene: Output frames and context frames.
            state: State of a recurrent model after the frame that precedes the first one; None at
                the start of a scene, or where it is not known.

        Yields:
            The restored output frames. If the plan doubles the rate, each frame is followed by the
            one half-way to its successor, with the same time.

        Returns:
            State of a recurrent model after the last output frame, for the section that follows;
            None for other kinds.
        """
        if self.spec.temporal.kind == "clip":
            assert not isinstance(state, tuple)
            return (yield from self._restore_windows(scene, state))
        assert not isinstance(state, Edge)
        return (yield from self._restore_neighborhoods(scene, state))

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

    def _restore_windows(
        self, scene: SceneFrames, edge: Edge | None
    ) -> Generator[Frame, None, Edge]:
        """Restore a scene window by window (clip models), and return the edge after it.

        When memory runs out, the window is restored again under a smaller plan, from its states.
        """
        windows = SceneWindows(scene, self.runner, edge)
        while windows.cut(self.current_plan):
            plan = self.current_plan
            try:
                for source, sr in windows.restore(plan):
                    yield _output_frame(source, replace(source, rgb=sr), plan)
                # What the next window keeps would lie between freed blocks of this one.
                return_freed_memory()
                continue
            except (RuntimeError, MemoryError) as error:
                reason = out_of_memory_reason(error)
            # Outside of the handler: the traceback of its error would keep the tensors alive.
            self._current_fallback.reduce_memory(reason)
        return windows.edge


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
