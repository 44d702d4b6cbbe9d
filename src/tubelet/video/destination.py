"""Check where an output goes: its kind, whether it may be written, its name while unfinished."""

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
"""Printf pattern of the images in a folder."""
_PATTERN = re.compile(r"%0?(\d*)d")


def destination_kind(dst: str | Path) -> DestinationKind:
    """Distinguish a video file, a folder of images, a printf pattern of images and a pipe.

    Args:
        dst: Output as the user typed it.

    Returns:
        "pipe" for "-"; "pattern" if the name has a `%05d`; "folder" for an existing folder, a
        trailing slash or a name without extension; otherwise "file".

    Raises:
        RequestError: The name is empty, or Tubelet does not write its extension.
    """
    text = str(dst)
    if text == "-":
        return "pipe"
    if not text:
        raise RequestError(
            "the output has no name; give a file such as new.mp4, a folder, or - for y4m on stdout"
        )
    path = Path(text)
    suffix = path.suffix.lower()
    if _PATTERN.search(path.name):
        if suffix != ".png":
            raise RequestError(f"images are written as PNG: let {path.name!r} end in .png")
        return "pattern"
    # A folder that does not exist yet has a slash at its end, or no extension.
    is_folder_name = text.endswith("/") or not suffix
    if is_folder_name or path.is_dir():
        return "folder"
    if suffix not in CONTAINERS:
        known = " ".join(CONTAINERS)
        raise RequestError(
            f"unknown output extension {path.suffix!r}; known are {known}, "
            "a folder or a pattern such as frames/%05d.png for images, and - for y4m on stdout"
        )
    return "file"


def check_output(dst: str | Path, *, source: str | Path, overwrite: bool) -> None:
    """Refuse an output that cannot or must not be written, before any work is done.

    Args:
        dst: File, folder, printf pattern, or "-".
        source: The input, which must not be the same file.
        overwrite: An existing output may be replaced.

    Raises:
        RequestError: The output exists, is the input itself, is in a missing or unwritable folder,
            or has an unknown extension.
    """
    kind = destination_kind(dst)
    if kind == "pipe":
        return
    path = Path(dst)
    _refuse_source(path, source)
    if kind == "folder":
        _refuse_source_images(path, source, path, FOLDER_NAMES)
    elif kind == "pattern":
        _refuse_source_images(path, source, path.parent, path.name)
    if _exists(path, kind) and not overwrite:
        raise RequestError(f"{path} exists; choose another name or allow overwriting (--overwrite)")
    _check_writable(path.parent, path)


def part_path(path: Path) -> Path:
    """Return a hidden name next to `path`, for the output until it is complete."""
    return path.with_name(f".{path.stem}.part-{secrets.token_hex(4)}{path.suffix}")


@contextlib.contextmanager
def write_errors(name: str) -> Generator[None]:
    """Turn errors of writing into one line for a user.

    Args:
        name: Name of the output.

    Raises:
        ResourceError: The disk is full, the pipe was closed, or another error of the system.
    """
    try:
        yield
    except (av.FFmpegError, OSError) as error:
        no_space = f"no space left for {name}; free some or choose another disk"
        messages: dict[int | None, str] = {
            errno.ENOSPC: no_space,
            errno.EDQUOT: no_space,
            errno.EFBIG: no_space,
            errno.EPIPE: "the program that reads the output has closed the pipe",
        }
        reason = error.strerror or error
        message = messages.get(error.errno, f"{name} could not be written: {reason}")
        raise ResourceError(message) from error


def images_in(folder: Path, names: str) -> list[Path]:
    """List the files of a folder whose names match a printf pattern."""
    if not folder.is_dir():
        return []
    prefix, digits, suffix = _PATTERN.split(names, maxsplit=1)
    # printf writes no fewer digits than the pattern gives, but may write more.
    min_digits = digits or 1
    number = rf"\d{{{min_digits},}}"
    regex = re.compile(re.escape(prefix) + number + re.escape(suffix))
    return [path for path in folder.iterdir() if regex.fullmatch(path.name)]


def _exists(path: Path, kind: DestinationKind) -> bool:
    """Return whether something would be overwritten.

    Raises:
        RequestError: The path is not of the right kind.
    """
    if kind == "pattern":
        any_number = _PATTERN.sub("*", path.name)
        return any(path.parent.glob(any_number))
    if not path.exists():
        if kind == "file" and path.is_symlink():
            raise RequestError(
                f"{path} is a symbolic link to nothing; remove it or choose another name"
            )
        return False
    if kind == "folder":
        if not path.is_dir():
            raise RequestError(f"{path} is a file, not a folder for images")
        # Images can be added to an empty folder.
        return any(path.iterdir())
    if not path.is_file():
        raise RequestError(f"{path} is not a regular file; choose another name")
    return True


def _refuse_source(path: Path, source: str | Path) -> None:
    """Refuse to replace the input, also under another name of the same file."""
    if str(source) == "-":
        return
    source_path = Path(source)
    try:
        is_same = path.samefile(source_path)
    except (OSError, ValueError):
        # One of them does not exist, or its name cannot be that of a file: compare the names.
        is_same = path.absolute() == source_path.absolute()
    if is_same:
        raise RequestError(f"output {path} is the input itself; choose another name")


def _refuse_source_images(path: Path, source: str | Path, folder: Path, names: str) -> None:
    """Refuse to replace images that are the input."""
    try:
        images = list_images(str(source)) or []
    except InputError:
        # Opening the input raises the same error, with a better message.
        return
    replaced = set(map(Path.resolve, images_in(folder, names)))
    if not replaced.isdisjoint(map(Path.resolve, images)):
        raise RequestError(
            f"output {path} would replace the images of the input; choose another name"
        )


def _check_writable(folder: Path, path: Path) -> None:
    """Create and remove a file: permissions do not prove that a folder can be written."""
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
