"""Restore the frames of a window model, each encoded once although it is in several windows."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from tubelet.restore.plan import Plan
from tubelet.restore.runner import Encoding, Runner
from tubelet.types import Frame, Precision

__all__ = ["EncodingCache"]


class EncodingCache:
    """Holds the encodings of the frames of one window: 2 · radius + 1 of them.

    Args:
        runner: encodes and fuses.
    """

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        # By identity of the frame, which is kept so that no other frame can have the same identity.
        self._held: dict[int, tuple[Frame, Encoding]] = {}
        self._made_by: tuple[str, Precision] | None = None

    def clear(self) -> None:
        """Forget everything."""
        self._held.clear()

    def restore(self, window: Sequence[Frame], plan: Plan) -> Tensor:
        """Restore the middle frame of a window: (1, 1, 3, sH, sW).

        Args:
            window: frames in order; the ends of a scene repeat a frame.
            plan: how to do it.
        """
        made_by = (plan.device, plan.precision)
        if self._made_by != made_by:
            # Encodings of another device or number format do not go together with new ones.
            self.clear()
            self._made_by = made_by
        present = {id(frame): frame for frame in window}
        for key in self._held.keys() - present.keys():
            del self._held[key]
        for key, frame in present.items():
            if key not in self._held:
                lq = frame.rgb[None, None]  # (1, 1, 3, H, W)
                self._held[key] = frame, self._runner.encode(lq, plan)
        encodings = [self._held[id(frame)][1] for frame in window]
        return self._runner.fuse(encodings, plan)
