"""The windows of a clip model: their length, and how they are joined.

    overlap      frames    0 ────────────── 8 ────────────── 16
                 window 1  |──── given out ─────┤ · · |
                 window 2              | · · ├──── given out ─────┤ · · |
    look-ahead   window 1  |──── given out ─────┤ · · · · |
                 window 2                       |──── given out ─────┤ · · · · |

Windows that overlap know nothing of each other: results change in the middle of the overlap. A
window with look-ahead begins at the seam, and continues from the states there (`boundary.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

from tubelet.errors import ConfigError
from tubelet.models.architecture import Contract

__all__ = ["DEFAULT_OVERLAP_FRAMES", "WindowPlan", "check_window", "plan_window"]

DEFAULT_OVERLAP_FRAMES = 8
"""Overlap of consecutive windows if the contract sets none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowPlan:
    """Length of the windows of a clip model, and how they are joined."""

    frames: int
    """Number of frames of a window, with its overlap or look-ahead."""
    overlap: int = 0
    """Number of frames that consecutive windows share. Results change from one window to the next
    in the middle of the overlap."""
    lookahead: int | None = None
    """Number of frames that a window sees after those that it gives out, if windows continue from
    the states of the one before. None: they overlap."""

    @property
    def continues(self) -> bool:
        """Whether a window continues from the states of the one before."""
        return self.lookahead is not None

    @property
    def context_frames(self) -> tuple[int, int]:
        """Number of frames that a window sees before and after those that it gives out."""
        if self.lookahead is not None:
            return 0, self.lookahead
        return self.overlap // 2, (self.overlap + 1) // 2

    @property
    def step(self) -> int:
        """Number of frames that a window inside a scene gives out."""
        return self.frames - sum(self.context_frames)


def plan_window(contract: Contract, num_frames: int) -> WindowPlan:
    """Plan windows of at most `num_frames` frames: choose their overlap, or their look-ahead."""
    temporal = contract.temporal
    if contract.continues:
        multiple = contract.frame_multiple
        # More than half would see more frames ahead than it gives out.
        lookahead = min(contract.lookahead_frames, num_frames // 2) // multiple * multiple
        step = (num_frames - lookahead) // multiple * multiple
        return WindowPlan(frames=step + lookahead, lookahead=lookahead)
    if temporal.window_frames:
        return WindowPlan(frames=num_frames, overlap=temporal.overlap_frames)
    overlap = temporal.overlap_frames or DEFAULT_OVERLAP_FRAMES
    # More than half would make three windows overlap.
    return WindowPlan(frames=num_frames, overlap=min(overlap, num_frames // 2))


def check_window(window: WindowPlan, contract: Contract) -> None:
    """Check that windows follow one another without a gap.

    Raises:
        ConfigError: They do not, or the model cannot continue from states.
    """
    if window.overlap < 0 or window.step < 1:
        raise ConfigError(f"the plan: window={window} must have 0 ≤ overlap < frames")
    if window.lookahead is None:
        return
    if not contract.continues:
        raise ConfigError(
            "the plan: window.lookahead must be null: this model cannot continue from states"
        )
    min_lookahead = contract.temporal.between_frames
    if window.overlap or window.lookahead < min_lookahead:
        raise ConfigError(
            f"the plan: window={window} must have overlap=0 and lookahead ≥ {min_lookahead}"
        )
    multiple = contract.frame_multiple
    if window.step % multiple or window.lookahead % multiple:
        raise ConfigError(
            f"the plan: window={window} must have frames and lookahead in multiples of {multiple}"
        )
