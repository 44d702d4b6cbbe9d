"""Where an output goes: what kind it is, whether it may be written, and its name until it is whole."""

from __future__ import annotations

import contextlib
import errno
import re
import secrets
from collections.abc import Generator
from pathlib import Path
from typing import Literal

import av

from tubelet.errors import InputError, RequestError, ResourceError
from tubelet.video.codecs import CONTAINERS
from tubelet.video.sequence import list_images

__all__ = [
    "FOLDER_NAMES",
    "DestinationKind",
    "check_output",
    "destination_kind",
    "images_in",
    "part_path",
    "write_errors",
]

DestinationKind = Literal["file", "folder", "pattern", "pipe"]

FOLDER_NAMES = "%08d.png"
"""Pattern of the images where a folder is named."""
_PATTERN = re.compile(r"%0?(\d*)d")
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def destination_kind(dst: str | Path) -> DestinationKind:
    """Tell a video file from a folder of images, a printf pattern of images and a pipe.

    Args:
        dst: what a user typed.

    Returns:
        "pipe" for "-"; "pattern" where the name has a `%05d`; "folder" for an existing folder, a trailing
        slash or a name without extension; otherwise "file".

    Raises:
        RequestError: there is no name, or its extension is not one that Tubelet writes.
    """
    text = str(dst)
    if text == "-":
        return "pipe"
    if not text:
        raise RequestError(
            "the output has no name; give a file such as new.mp4, a folder, or - for y4m on stdout"
        )
    path = Path(text)
    if _PATTERN.search(path.name):
        if path.suffix.lower() != ".png":
            raise RequestError(f"images are written as PNG: let {path.name!r} end in .png")
        return "pattern"
    if text.endswith("/") or path.is_dir() or not path.suffix:
        return "folder"
    if path.suffix.lower() not in CONTAINERS:
        known = " ".join(CONTAINERS)
        raise RequestError(
            f"unknown output extension {path.suffix!r}; known are {known}, a folder or a pattern such as "
            "frames/%05d.png for images, and - for y4m on stdout"
        )
    return "file"


def check_output(dst: str | Path, *, source: str | Path, overwrite: bool) -> None:
    """Refuse an output that cannot or must not be written, before any work is done.

    Args:
        dst: file, folder, printf pattern, or "-".
        source: the input, which must not be the same file.
        overwrite: an existing output may be replaced.

    Raises:
        RequestError: it exists, is the input itself, lies in a missing or unwritable folder, or has an
            unknown extension.
    """
    kind = destination_kind(dst)
    if kind == "pipe":
        return
    path = Path(dst)
    _refuse_source(path, source)
    if kind in ("folder", "pattern"):
        folder, names = (path.parent, path.name) if kind == "pattern" else (path, FOLDER_NAMES)
        _refuse_source_images(path, source, folder, names)
    if kind == "file":
        if path.is_symlink() and not path.exists():
            raise RequestError(
                f"{path} is a symbolic link to nothing; remove it or choose another name"
            )
        if path.exists() and not path.is_file():
            raise RequestError(f"{path} is not a regular file; choose another name")
        taken = path.exists()
    elif kind == "folder":
        if path.exists() and not path.is_dir():
            raise RequestError(f"{path} is a file, not a folder for images")
        taken = path.is_dir() and any(path.iterdir())
    else:
        taken = any(path.parent.glob(_PATTERN.sub("*", path.name)))
    if taken and not overwrite:
        raise RequestError(f"{path} exists; choose another name or allow overwriting (--overwrite)")
    _try_folder(path.parent, path)


def part_path(path: Path) -> Path:
    """Make up the hidden name next to `path` that the output has until it is whole."""
    return path.with_name(f".{path.stem}.part-{secrets.token_hex(4)}{path.suffix}")


@contextlib.contextmanager
def write_errors(name: str) -> Generator[None]:
    """Turn the errors of writing into one line for a user.

    Args:
        name: of the output.

    Raises:
        ResourceError: disk full, pipe closed, or whatever the system said.
    """
    try:
        yield
    except (av.FFmpegError, OSError) as error:
        if error.errno in _NO_SPACE:
            raise ResourceError(
                f"no space left for {name}; free some or choose another disk"
            ) from error
        if error.errno == errno.EPIPE:
            raise ResourceError("the program that reads the output has closed the pipe") from error
        raise ResourceError(f"{name} could not be written: {error.strerror or error}") from error


def images_in(folder: Path, names: str) -> list[Path]:
    """List the files of a folder that have a name of a printf pattern."""
    if not folder.is_dir():
        return []
    before, digits, after = _PATTERN.split(names, maxsplit=1)
    regex = re.compile(rf"{re.escape(before)}\d{{{digits or 1},}}{re.escape(after)}")
    return [path for path in folder.iterdir() if regex.fullmatch(path.name)]


def _refuse_source(path: Path, source: str | Path) -> None:
    if str(source) == "-":
        return
    origin = Path(source)
    try:
        same = origin.exists() and path.exists() and path.samefile(origin)
    except OSError:
        same = False
    if same or path.absolute() == origin.absolute():
        raise RequestError(f"output {path} is the input itself; choose another name")


def _refuse_source_images(path: Path, source: str | Path, folder: Path, names: str) -> None:
    """Refuse to replace images that are the input."""
    try:
        images = list_images(str(source)) or []
    except InputError:  # said again, and better, when the input is opened
        return
    replaced = {old.resolve() for old in images_in(folder, names)}
    if any(image.resolve() in replaced for image in images):
        raise RequestError(
            f"output {path} would replace the images of the input; choose another name"
        )


def _try_folder(folder: Path, path: Path) -> None:
    """Create and remove a file: permissions alone do not say whether a folder can be written."""
    if not folder.exists():
        raise RequestError(f"folder {folder} does not exist; create it first")
    if not folder.is_dir():
        raise RequestError(f"{folder} is not a folder; {path.name} cannot be put there")
    trial = part_path(folder / "trial")
    try:
        trial.touch(exist_ok=False)
        trial.unlink()
    except OSError as error:
        raise RequestError(
            f"folder {folder} cannot be written: {error.strerror}; choose another"
        ) from error
