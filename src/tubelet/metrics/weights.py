"""Find the weight files of metrics: in a folder that was named, in torch's cache, or by download."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from tubelet.downloads import RemoteFile, fetch
from tubelet.errors import CheckpointError, ResourceError
from tubelet.tensor_files import is_torchscript, read_content

__all__ = ["WeightFile", "find_weights", "read_tensors"]


@dataclass(frozen=True, slots=True)
class WeightFile:
    """One published file.

    Attributes:
        name: under which it is published and looked for.
        url: where it is published.
        sha256: its hash or the first digits of it; "" where none is published.
        also_in: another folder in which other programs keep it; "~" is the home folder.
    """

    name: str
    url: str
    sha256: str = ""
    also_in: str = ""


def find_weights(metric: str, files: Sequence[WeightFile], explicit: Path | None) -> list[Path]:
    """Find all files that a metric needs, downloading those that are nowhere.

    Args:
        metric: its name, for messages.
        files: what it needs.
        explicit: a folder that holds them all under their published names, or one of them with the others beside
            it; the only file of a metric can have any name. None: torch's cache, then a download into it.

    Returns:
        A path for each file.

    Raises:
        ResourceError: one is not there and cannot be downloaded; the message names the file, the folder and the URL.
    """
    if explicit is not None:
        return [_named(metric, file, explicit, only=len(files) == 1) for file in files]
    return [_cached(metric, file) for file in files]


def _named(metric: str, file: WeightFile, explicit: Path, *, only: bool) -> Path:
    if explicit.is_file() and (only or explicit.name == file.name):
        return explicit
    folder = explicit.parent if explicit.is_file() else explicit
    path = folder / file.name
    if not path.is_file():
        raise ResourceError(
            f"{metric} needs {file.name}, which is not in {folder}; fetch it from {file.url}"
        )
    return path


def _cached(metric: str, file: WeightFile) -> Path:
    cache = Path(torch.hub.get_dir()) / "checkpoints"
    for folder in (cache, *([Path(file.also_in).expanduser()] if file.also_in else [])):
        if (folder / file.name).is_file():
            return folder / file.name
    try:
        return fetch(RemoteFile(name=file.name, url=file.url, sha256=file.sha256), cache)
    except ResourceError as error:
        raise ResourceError(
            f"{metric} needs a file: {error}, or name its folder as the weights"
        ) from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a file of tensors without running code from it: torch's format, safetensors, or a TorchScript archive.

    Returns:
        Its tensors by name; those of a list by number, a single one as "0".

    Raises:
        CheckpointError: it is none of these.
    """
    found = (
        _read_torchscript(path) if path.is_file() and is_torchscript(path) else read_content(path)
    )
    tensors = {name: value for name, value in _named_items(found) if isinstance(value, Tensor)}
    if not tensors:
        raise CheckpointError(f"{path} holds no tensors")
    return tensors


def _read_torchscript(path: Path) -> dict[str, Any]:
    """Read the weights of a program without calling it."""
    try:
        with warnings.catch_warnings():  # torch deprecates the format in which CLIP is published
            warnings.simplefilter("ignore", FutureWarning)
            return cast(Any, torch.jit).load(path, map_location="cpu").state_dict()
    except (OSError, RuntimeError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise CheckpointError(
            f"{path} is a TorchScript program that cannot be read: {reason}"
        ) from error


def _named_items(found: Any) -> list[tuple[str, Any]]:
    if isinstance(found, dict):
        return [(str(name), value) for name, value in cast(dict[Any, Any], found).items()]
    values = cast(list[Any], found) if isinstance(found, list | tuple) else [found]
    return [(str(number), value) for number, value in enumerate(values)]
