"""Checks that the segments of one video come in their order and were encoded alike."""

from __future__ import annotations

from tubelet.errors import InputError
from tubelet.video.encoder import PartHead, PartTail

__all__ = ["PartOrder"]

_SEI_UNITS = (39, 40)  # types of H.265 NAL units: here, a text with the version and threads of x265
_START_CODE = b"\x00\x00\x00\x01"


class PartOrder:
    """Counts the segments of one output, and refuses those that do not fit."""

    def __init__(self, fingerprint: str) -> None:
        """Prepare.

        Args:
            fingerprint: of the `OutputFormat` that all must have.
        """
        self._fingerprint = fingerprint
        self._first: PartHead | None = None
        self._next = 0
        self.frames = 0

    def begin(self, head: PartHead) -> None:
        """Accept the next segment.

        Raises:
            InputError: it is not the one that is due, or was encoded in another way than those
                before.
        """
        name = f"segment {head.segment}"
        if head.segment != self._next:
            raise InputError(
                f"{name} came where segment {self._next} is due; give all in their order"
            )
        if head.fingerprint != self._fingerprint:
            raise InputError(f"{name} was encoded for another output; encode it again")
        first = self._first or head
        if head.clock != first.clock:
            raise InputError(f"{name} counts its time from another moment; encode it again")
        if _parameter_sets(head.extradata) != _parameter_sets(first.extradata):
            raise InputError(
                f"{name} has another codec header than segment 0, as of another version of the "
                "encoder; encode all with the same"
            )
        self._first = first
        self._next += 1

    def end(self, tail: PartTail) -> None:
        """Count the frames of a segment."""
        self.frames += tail.frames

    def finish(self) -> None:
        """Refuse an output without a frame.

        Raises:
            InputError: there is none.
        """
        if not self.frames:
            raise InputError("no frame came to be written, so there is no output")


def _parameter_sets(extradata: bytes) -> list[bytes]:
    """Give what a decoder needs of a codec header: not the text in which x265 names its threads."""
    if not extradata.startswith(_START_CODE):
        return [extradata]
    units = extradata.split(_START_CODE)[1:]
    return [unit for unit in units if unit and _h265_type(unit) not in _SEI_UNITS]


def _h265_type(unit: bytes) -> int:
    return unit[0] >> 1 & 0x3F
