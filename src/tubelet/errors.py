"""Errors for users: each message is one line with the problem, the value and the remedy.

TubeletError               exit code of the command
 ├─ RequestError           2    the request makes no sense: a flag, a name, an output path
 │   └─ ConfigError        2    a configuration field: unknown key, wrong value
 ├─ InputError             3    the input is missing, is not a video, or cannot be decoded
 │   ├─ IncompleteError    3    the output is complete up to damage or gaps of the input
 │   └─ CheckpointError    3    a weight file is missing, damaged, or does not fit
 ├─ ResourceError          4    out of memory or disk space, or a device is not available
 ├─ DivergedError          5    a training reached losses or gradients that are not finite
 └─ Cancelled            130    a caller stopped the run with its `CancelToken`
"""

from collections.abc import Iterable

__all__ = [
    "Cancelled",
    "CheckpointError",
    "ConfigError",
    "DivergedError",
    "IncompleteError",
    "InputError",
    "RequestError",
    "ResourceError",
    "TubeletError",
    "error_text",
    "require",
    "suggest",
]

_MIN_SIMILARITY = 0.5
"""Suggested names have at least this ratio of `difflib`, from 0 to 1."""


class TubeletError(Exception):
    """Base class of all intended errors; `str(error)` is one line for the user."""

    exit_code = 1


class RequestError(TubeletError):
    """The request is invalid: an unknown model, an existing output, contradicting flags."""

    exit_code = 2


class ConfigError(RequestError):
    """A configuration has an unknown key or a value out of range."""


class InputError(TubeletError):
    """The input is missing, empty, not a video, or cannot be decoded at all."""

    exit_code = 3


class IncompleteError(InputError):
    """The input was damaged or incomplete; the output has every frame that could be decoded.

    Attributes:
        notes: Messages for the user about the output, one line each, as in `Result`.
    """

    def __init__(self, message: str, *, notes: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.notes = notes


class CheckpointError(InputError):
    """A weight file is missing, damaged, or does not fit the architecture."""


class ResourceError(TubeletError):
    """Memory, disk space or a device did not suffice."""

    exit_code = 4


class DivergedError(TubeletError):
    """A training step had a loss or a gradient that is not finite; it changed no weights."""

    exit_code = 5


class Cancelled(TubeletError):  # noqa: N818 - not an error: somebody wanted it
    """The run was stopped with its `CancelToken`; no unfinished output is left."""

    exit_code = 130


def require(condition: bool, message: str) -> None:
    """Refuse a configuration that does not meet a condition.

    Raises:
        ConfigError: The condition is false.
    """
    if not condition:
        raise ConfigError(message)


def error_text(error: object) -> str:
    """Return the message of an error, without the number and the path that `str` may add."""
    # Errors of the operating system and of FFmpeg store the message separately.
    system_message = getattr(error, "strerror", None)
    return str(system_message or error)


def suggest(
    name: str,
    known: Iterable[str],
    *,
    count: int = 1,
    listing: str = "",
) -> str:
    """Return the second half of a message about an unknown name.

    Args:
        name: Unknown name.
        known: Known names, in the order in which they are listed.
        count: Maximum number of suggestions.
        listing: Text to list instead of the known names if they are too many.

    Returns:
        "did you mean a or b?" if some names are similar, otherwise "known are a, b, c".
    """
    # Imported here because it is only needed for messages.
    import difflib

    names = list(known)
    similar = difflib.get_close_matches(
        name.lower(),
        names,
        n=count,
        cutoff=_MIN_SIMILARITY,
    )
    if similar:
        return f"did you mean {' or '.join(similar)}?"
    return f"known are {listing or ', '.join(names)}"
