"""Restore a scene window by window, as clip models need it."""

from __future__ import annotations

from collections.abc import Generator, Iterator

import torch
from torch import Tensor

from tubelet.layers.recurrence import Edge
from tubelet.restore.plan import Plan
from tubelet.restore.runner import Runner
from tubelet.restore.scene import SceneFrames
from tubelet.restore.tiles import TileSpan
from tubelet.restore.windows import WindowCutter
from tubelet.types import Frame

__all__ = ["SceneWindows"]


class SceneWindows:
    """The windows of a scene, each of which may follow another plan.

    A space-time model also returns a result between any two frames, so results are numbered:
    result n belongs to frame n // results_per_frame.

    Args:
        scene: Output frames and context frames.
        runner: Runner of a clip model.
        edge: Edge before the first frame, if it is known from a section of the same scene.

    Attributes:
        edge: Edge before the next window, if windows continue from states. It stays the same when a
            window fails: then the window can be restored under another plan.
    """

    def __init__(self, scene: SceneFrames, runner: Runner, edge: Edge | None = None) -> None:
        self.edge = edge or Edge(frame_index=scene.first - 1)
        self._scene = scene
        self._runner = runner
        self._results_per_frame = 1 + runner.contract.temporal.between_frames
        self._cutter: WindowCutter[Frame] = WindowCutter(scene)
        # Number of results that were yielded.
        self._num_done = 0
        # The window that was cut last, and its position.
        self._frames: list[Frame] = []
        self._span = TileSpan(0, 0, 0, 0)

    def cut(self, plan: Plan) -> bool:
        """Cut the next window, or the last one again if it failed.

        Returns:
            False if all output frames are restored.
        """
        assert plan.window is not None
        next_frame = self._num_done // self._results_per_frame
        if plan.window.continues:
            # Not the first missing result: the states belong to the start of the window.
            next_frame = self.edge.frame_index + 1 - self._scene.first
        cut = self._cutter.cut(next_frame, plan.window)
        # The cutter reads the frames, and only then the scene knows where its output stops.
        if cut is None or self._scene.is_past_output(self._scene.first + next_frame):
            return False
        self._frames, self._span = cut
        return True

    def restore(self, plan: Plan) -> Iterator[tuple[Frame, Tensor]]:
        """Restore the window that was cut.

        Args:
            plan: Plan that it was cut for.

        Yields:
            The output frames and their results (3, sH, sW). If the plan doubles the rate, each
            frame comes twice: its second result is the one half-way to the next frame.
        """
        span = self._span
        first_number = span.start * self._results_per_frame
        for number, sr in enumerate(self._results(plan), first_number):
            # Results in the overlap, or of a window that failed, were yielded before.
            if number < self._num_done:
                continue
            t, offset = divmod(number, self._results_per_frame)
            is_at_output_rate = offset == 0 or plan.doubles_rate
            if is_at_output_rate and self._scene.is_output(self._scene.first + t):
                yield self._frames[t - span.start], sr
            self._num_done = number + 1
        # The last frame of a scene has no result after it. A window that replaces a longer one may
        # end before the results that the longer one had yielded.
        self._num_done = max(self._num_done, span.keep_stop * self._results_per_frame)

    def _results(self, plan: Plan) -> Generator[Tensor]:
        """Yield the results of the window; at its end, move the edge there."""
        assert plan.window is not None
        scene = self._scene
        span = self._span
        before = self.edge
        if not plan.window.continues:
            before = Edge(frame_index=scene.first + span.start - 1)
        after = Edge(frame_index=scene.first + span.stop)
        if span.keep_stop == span.stop and scene.reaches_end:
            after = Edge()
        # Frames after the output are look-ahead.
        stop = span.keep_stop
        if scene.stop is not None:
            stop = min(stop, scene.stop - scene.first)
        # The stacked frames get no name, so that the runner can free them after padding.
        self.edge = yield from self._runner.restore_window(
            self._stacked_frames(),
            plan,
            before=before,
            after=after,
            num_frames=stop - span.start,
        )

    def _stacked_frames(self) -> Tensor:
        """Stack the frames: (1, T, 3, H, W), T a multiple of what the model takes."""
        images = [frame.rgb for frame in self._frames]
        # Only the end of a scene can lack frames.
        num_missing = -len(images) % self._runner.contract.frame_multiple
        images += images[-1:] * num_missing
        return torch.stack(images)[None]
