"""Names of what verbs write, and refusing those that must not be written, before any work is done."""

from __future__ import annotations

from pathlib import Path

from tubelet.errors import RequestError

__all__ = ["companion", "refuse_existing"]


def companion(output: str, ending: str) -> Path:
    """Name the file beside an output: new.mp4 → new.compare.html, frames/%05d.png → frames.compare.html."""
    path = Path(output)
    if "%" in path.name:
        path = path.parent
    stem = path.stem or "images"  # the current folder has no name of its own
    return path.parent / f"{stem}{ending}"


def refuse_existing(
    path: Path, *, overwrite: bool, remedy: str = "give --overwrite to replace it"
) -> None:
    """Refuse a file that exists, or whose folder does not.

    Args:
        path: of the file to write.
        overwrite: an existing file may be replaced.
        remedy: what can be done about one that exists.

    Raises:
        RequestError: the file exists and may not be replaced, or its folder does not exist.
    """
    if path.exists() and not overwrite:
        raise RequestError(f"{path} exists; {remedy}")
    if not path.parent.is_dir():
        raise RequestError(f"the folder {path.parent} does not exist; make it first")
