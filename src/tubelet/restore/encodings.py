"""Restore the frames of a window model with one encoding per frame, shared by all its windows."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from tubelet.restore.plan import Plan
from tubelet.restore.runner import Encoding, Runner
from tubelet.types import Frame, Precision

__all__ = ["EncodingCache"]


class EncodingCache:
    """Caches the encodings of the 2 · radius + 1 frames of one window.

    Args:
        runner: Encodes frames and fuses windows.
    """

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        # By identity of the frame. The frame is stored, too, so that its identity is not reused.
        self._encodings: dict[int, tuple[Frame, Encoding]] = {}
        self._number_format: tuple[str, Precision] | None = None

    def clear(self) -> None:
        """Drop all encodings."""
        self._encodings.clear()

    def restore(self, window: Sequence[Frame], plan: Plan) -> Tensor:
        """Restore the center frame of a window: (1, 1, 3, sH, sW).

        Args:
            window: Frames in order; a frame is repeated at the ends of a scene.
            plan: Plan to follow.
        """
        number_format = (plan.device, plan.precision)
        if self._number_format != number_format:
            # Encodings of another device or precision cannot be fused with new ones.
            self.clear()
            self._number_format = number_format

        # Drop the encodings of frames that left the window.
        window_frames = {id(frame): frame for frame in window}
        for key in self._encodings.keys() - window_frames.keys():
            del self._encodings[key]

        # Usually only the last frame of the window is new.
        for key, frame in window_frames.items():
            if key not in self._encodings:
                lq = frame.rgb[None, None]  # (1, 1, 3, H, W)
                self._encodings[key] = (frame, self._runner.encode(lq, plan))
        encodings = [self._encodings[id(frame)][1] for frame in window]
        return self._runner.fuse(encodings, plan)
