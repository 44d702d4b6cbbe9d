"""Find the weight files of metrics: at a given path, in torch's cache, or by download."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
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
    """A published weight file.

    Attributes:
        name: File name under which it is published and searched.
        url: Address of the download.
        sha256: Its hash or the first digits of it; "" if none is published.
        also_in: Another folder to search, where other programs cache it; "~" is the home folder.
    """

    name: str
    url: str
    sha256: str = ""
    also_in: str = ""


def find_weights(metric: str, files: Sequence[WeightFile], explicit: Path | None) -> list[Path]:
    """Find all files that a metric needs, and download missing ones.

    Args:
        metric: Name of the metric, for messages.
        files: The files that it needs.
        explicit: A folder with all of them under their published names, or one of them with the
            others in the same folder; the only file of a metric can have any name. None: torch's
            cache, then a download into it.

    Returns:
        A path for each file.

    Raises:
        ResourceError: A file is absent and cannot be downloaded; the message names the file, the
            folder and the URL.
    """
    if explicit is not None:
        is_only_file = len(files) == 1
        return [_explicit(metric, file, explicit, any_name=is_only_file) for file in files]
    return [_cached(metric, file) for file in files]


def _explicit(
    metric: str,
    file: WeightFile,
    explicit: Path,
    *,
    any_name: bool,
) -> Path:
    """Find a file at the user's path: the path itself, or the published name in its folder."""
    folder = explicit
    if explicit.is_file():
        if any_name or explicit.name == file.name:
            return explicit
        folder = explicit.parent
    path = folder / file.name
    if not path.is_file():
        raise ResourceError(
            f"{metric} needs {file.name}, which is not in {folder}; fetch it from {file.url}"
        )
    return path


def _cached(metric: str, file: WeightFile) -> Path:
    """Find a file in a cache, or download it into that of torch."""
    cache = Path(torch.hub.get_dir()) / "checkpoints"
    folders = [cache]
    if file.also_in:
        folders.append(Path(file.also_in).expanduser())
    for folder in folders:
        path = folder / file.name
        if path.is_file():
            return path
    try:
        return fetch(RemoteFile(name=file.name, url=file.url, sha256=file.sha256), cache)
    except ResourceError as error:
        raise ResourceError(
            f"{metric} needs a file: {error}, or name its folder as the weights"
        ) from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a file of tensors without running code from it.

    Args:
        path: A file of torch, of safetensors, or a TorchScript archive.

    Returns:
        Its tensors by name; those of a list by their number, a single one as "0".

    Raises:
        CheckpointError: It has another format, or no tensors.
    """
    if path.is_file() and is_torchscript(path):
        content = _read_torchscript(path)
    else:
        content = read_content(path)
    tensors: dict[str, Tensor] = {}
    for name, value in _named_items(content):
        if isinstance(value, Tensor):
            tensors[str(name)] = value
    if not tensors:
        raise CheckpointError(f"{path} holds no tensors")
    return tensors


def _read_torchscript(path: Path) -> dict[str, Any]:
    """Read the weights of a program without calling it."""
    try:
        with warnings.catch_warnings():
            # torch deprecates the format in which CLIP is published.
            warnings.simplefilter("ignore", FutureWarning)
            return cast(Any, torch.jit).load(path, map_location="cpu").state_dict()
    except (OSError, RuntimeError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise CheckpointError(
            f"{path} is a TorchScript program that cannot be read: {reason}"
        ) from error


def _named_items(content: Any) -> Iterable[tuple[object, object]]:
    """List the entries of a dict by name, those of a list by number, and a single one as 0."""
    if isinstance(content, dict):
        return cast(dict[object, object], content).items()
    if isinstance(content, list | tuple):
        return enumerate(cast(Sequence[object], content))
    return [(0, content)]
