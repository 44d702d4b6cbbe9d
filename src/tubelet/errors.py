"""Errors, each with one line that says what was wrong, with what value, and what to do.

TubeletError               exit code of the command
 ├─ RequestError           2    the request makes no sense: a flag, a name, a path to write to
 │   └─ ConfigError        2    a configuration field: unknown key, wrong value
 ├─ InputError             3    the input is missing, is not a video, or cannot be decoded
 │   ├─ IncompleteError    3    the output holds all that could be decoded, and something was missing
 │   └─ CheckpointError    3    a weight file is not what it should be
 ├─ ResourceError          4    out of memory, of disk, or a device is absent
 └─ Cancelled            130    a caller stopped the run by its `CancelToken`
"""

from collections.abc import Iterable

__all__ = [
    "Cancelled",
    "CheckpointError",
    "ConfigError",
    "IncompleteError",
    "InputError",
    "RequestError",
    "ResourceError",
    "TubeletError",
    "suggest",
]


class TubeletError(Exception):
    """Base of every error that Tubelet raises on purpose; `str(error)` is one line for a user."""

    exit_code = 1


class RequestError(TubeletError):
    """What was asked for cannot be done: an unknown model, an existing output, flags that contradict."""

    exit_code = 2


class ConfigError(RequestError):
    """A configuration has an unknown key or a value out of range."""


class InputError(TubeletError):
    """The input is missing, empty, not a video, or cannot be decoded at all."""

    exit_code = 3


class IncompleteError(InputError):
    """The output was written with every frame that could be decoded, but part of the input was missing.

    Attributes:
        notes: what a user should know of the output, a line each, as in `Result`.
    """

    def __init__(self, message: str, *, notes: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.notes = notes


class CheckpointError(InputError):
    """A weight file is missing, damaged, or does not fit the architecture."""


class ResourceError(TubeletError):
    """Memory, disk or a device did not suffice."""

    exit_code = 4


class Cancelled(TubeletError):  # noqa: N818 - not an error: somebody wanted it
    """The run was stopped by its `CancelToken`; no unfinished output is left."""

    exit_code = 130


def suggest(name: str, known: Iterable[str], *, count: int = 1, listing: str = "") -> str:
    """Complete the line about an unknown name.

    Args:
        name: what was given.
        known: names that there are, in the order in which they are listed.
        count: the most suggestions.
        listing: of the known names, where they are too many to list them all.

    Returns:
        "did you mean a or b?" where some are near, otherwise "known are a, b, c".
    """
    import difflib  # only needed when something is wrong

    names = list(known)
    near = difflib.get_close_matches(name.lower(), names, n=count, cutoff=0.5)
    if near:
        return f"did you mean {' or '.join(near)}?"
    return f"known are {listing or ', '.join(names)}"
