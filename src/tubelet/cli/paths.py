"""Paths of the files that verbs write, checked before any work is done."""

from __future__ import annotations

from pathlib import Path

from tubelet.errors import RequestError

__all__ = ["companion", "refuse_existing"]


def companion(output: str, ending: str) -> Path:
    """Return the path of a file next to an output.

    Examples: new.mp4 → new.compare.html, frames/%05d.png → frames.compare.html.
    """
    path = Path(output)
    if "%" in path.name:
        path = path.parent
    # The current folder, ".", has an empty stem.
    stem = path.stem or "images"
    return path.parent / f"{stem}{ending}"


def refuse_existing(
    path: Path, *, overwrite: bool, remedy: str = "give --overwrite to replace it"
) -> None:
    """Refuse a path where a file exists already, or whose folder does not exist.

    Args:
        path: File to write.
        overwrite: Allow replacing an existing file.
        remedy: Advice for the error about an existing file.

    Raises:
        RequestError: The file exists and must not be replaced, or its folder does not exist.
    """
    if path.exists() and not overwrite:
        raise RequestError(f"{path} exists; {remedy}")
    if not path.parent.is_dir():
        raise RequestError(f"the folder {path.parent} does not exist; create it first")
