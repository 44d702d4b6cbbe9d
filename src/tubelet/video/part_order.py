"""Check that the segments of a video arrive in order and were encoded alike."""

from __future__ import annotations

from tubelet.errors import InputError
from tubelet.video.encoder import PartHead, PartTail

__all__ = ["PartOrder"]

# H.265 NAL unit types of SEI messages: x265 writes its version and thread count into them.
_SEI_UNITS = (39, 40)
_START_CODE = b"\x00\x00\x00\x01"


class PartOrder:
    """Counter of the segments of one output that refuses those that do not fit."""

    def __init__(self, fingerprint: str) -> None:
        """Expect segment 0.

        Args:
            fingerprint: Fingerprint of the `OutputFormat` of all segments.
        """
        self._fingerprint = fingerprint
        self._first: PartHead | None = None
        self._next = 0
        self.frames = 0

    def begin(self, head: PartHead) -> None:
        """Accept the next segment.

        Raises:
            InputError: It is not the next segment, or was encoded differently from the previous
                ones.
        """
        name = f"segment {head.segment}"
        if head.segment != self._next:
            raise InputError(
                f"{name} came where segment {self._next} is due; pass all segments in order"
            )
        if head.fingerprint != self._fingerprint:
            raise InputError(f"{name} was encoded for another output; encode it again")
        first = self._first or head
        if head.clock != first.clock:
            raise InputError(f"{name} counts its time from another moment; encode it again")
        if _parameter_sets(head.extradata) != _parameter_sets(first.extradata):
            raise InputError(
                f"{name} has another codec header than segment 0, perhaps because another version "
                "of the encoder wrote it; encode all segments with the same version"
            )
        self._first = first
        self._next += 1

    def end(self, tail: PartTail) -> None:
        """Count the frames of a segment."""
        self.frames += tail.frames

    def finish(self) -> None:
        """Check that the output has frames.

        Raises:
            InputError: It has none.
        """
        if not self.frames:
            raise InputError("no frame was written, so there is no output")


def _parameter_sets(extradata: bytes) -> list[bytes]:
    """Extract the parameter sets from a codec header, without the SEI messages of x265."""
    if not extradata.startswith(_START_CODE):
        return [extradata]
    units = extradata.split(_START_CODE)[1:]
    return [unit for unit in units if unit and _h265_type(unit) not in _SEI_UNITS]


def _h265_type(unit: bytes) -> int:
    """Read the type of an H.265 NAL unit: bits 1 to 6 of its first byte."""
    return unit[0] >> 1 & 0x3F
