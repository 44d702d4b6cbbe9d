"""Continue under a smaller plan when a call runs out of memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

from tubelet.errors import ResourceError
from tubelet.restore.memory import is_out_of_memory
from tubelet.restore.plan import Plan

__all__ = ["PlanFallback", "out_of_memory_reason"]

T = TypeVar("T")


class PlanFallback:
    """Holds the plan of a run, and replaces it with smaller ones when memory runs out.

    Args:
        plan: Plan to begin with.
        notes: List that gets a message for the user with every smaller plan.

    Attributes:
        plan: Plan to follow now.
    """

    def __init__(self, plan: Plan, notes: list[str]) -> None:
        self.plan = plan
        self._notes = notes
        if _tiles_change_result(plan):
            notes.append(_tiles_note(plan))

    def run(self, call: Callable[[Plan], T]) -> T:
        """Run a call, and repeat it under smaller and smaller plans until it fits into memory.

        Args:
            call: Function of the plan to follow. Errors other than out of memory are not caught.

        Returns:
            The result of the call.

        Raises:
            ResourceError: It does not fit under the smallest plan.
        """
        while True:
            try:
                return call(self.plan)
            except (RuntimeError, MemoryError) as error:
                reason = out_of_memory_reason(error)
            # Outside of the handler, where the traceback of the error no longer keeps the tensors
            # alive.
            self.reduce_memory(reason)

    def reduce_memory(self, reason: str) -> None:
        """Replace the plan with the next smaller one.

        Args:
            reason: Message of the out-of-memory error.

        Raises:
            ResourceError: There is no smaller plan.
        """
        smaller = self.plan.smaller()
        if smaller is None:
            side_px = self.plan.tile_px or max(self.plan.height, self.plan.width)
            raise ResourceError(
                f"out of memory with the smallest tile ({side_px} px): {reason}; "
                "close other programs or use a smaller model"
            )
        # Blocks that torch caches may not fit the sizes of the smaller plan.
        if self.plan.device.startswith("cuda"):
            torch.cuda.empty_cache()
        self._notes.append(_note(self.plan, smaller))
        # Said once, with the first tiles.
        if _tiles_change_result(smaller) and not _tiles_change_result(self.plan):
            self._notes.append(_tiles_note(smaller))
        self.plan = smaller


def out_of_memory_reason(error: BaseException) -> str:
    """Return the message of an out-of-memory error on one line; raise any other error again."""
    if not is_out_of_memory(error):
        raise error
    return " ".join(str(error).split()) or type(error).__name__


def _note(before: Plan, after: Plan) -> str:
    """Describe to the user how the run continues."""
    # A step of `Plan.smaller` changes the device, the windows, the tiles or the cache.
    if after.device != before.device:
        return f"out of memory on {before.device}: continuing on the CPU"
    if before.window is not None and after.window is not None and before.window != after.window:
        return f"out of memory: continuing with windows of {after.window.frames} frames"
    if after.tile_px != before.tile_px:
        return f"out of memory: continuing with {after.tile_px} px tiles"
    return "out of memory: continuing without the cache of frame encodings"


def _tiles_change_result(plan: Plan) -> bool:
    """Return whether a plan divides the images of a network that depends on the whole of them."""
    return plan.contract.sees_whole_image and len(plan.tiles) > 1


def _tiles_note(plan: Plan) -> str:
    return (
        f"the model sees the whole image, so tiles of {plan.tile_px} px change its result; "
        "more memory or --tile 0 avoids them"
    )
