"""Checkpoints: safetensors files whose names and shapes tell the architecture and its configuration."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor, nn

from tubelet.errors import CheckpointError, ConfigError
from tubelet.models.fast import FastConfig, FastVSR, infer_config

__all__ = ["load_model", "read_notes", "save_checkpoint"]

_ARCHITECTURES = {"FastVSR": FastVSR}


def save_checkpoint(path: Path, model: FastVSR, notes: Mapping[str, Any]) -> None:
    """Write a network, whole or not at all.

    Args:
        path: of the .safetensors file.
        model: the network.
        notes: what else to keep in the header; anything JSON can hold, paths become text.
    """
    header = {"architecture": type(model).__name__, "notes": json.dumps(notes, default=str)}
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, part, metadata=header)
    part.chmod(0o644)  # safetensors writes files that only their owner may read
    part.replace(path)


def read_notes(path: Path) -> dict[str, Any]:
    """Read what `save_checkpoint` was given as notes.

    Raises:
        CheckpointError: the file is missing or is not safetensors.
    """
    return json.loads(_read(path)[1].get("notes", "{}"))


def load_model(
    path_or_state_dict: str | Path | Mapping[str, Tensor], *, architecture: str | None = None, **config: Any
) -> nn.Module:
    """Build the network that a checkpoint belongs to, recognised by its names and shapes, and load it strictly.

    Args:
        path_or_state_dict: a .safetensors file, or its tensors by name.
        architecture: name of the network's class; by default it is recognised.
        config: fields of the architecture's configuration, in place of the inferred ones.

    Returns:
        the network in evaluation mode, float32, on the CPU.

    Raises:
        CheckpointError: the file is missing or damaged, is of no known architecture, or does not fit it.
        ConfigError: `architecture` or a field of `config` is unknown.
    """
    if architecture is not None and architecture not in _ARCHITECTURES:
        raise ConfigError(f"unknown architecture {architecture!r}; known are {', '.join(_ARCHITECTURES)}")
    if isinstance(path_or_state_dict, str | Path):
        where, state = str(path_or_state_dict), _read(Path(path_or_state_dict))[0]
    else:
        where, state = "the state dict", dict(path_or_state_dict)
    inferred = infer_config(state)
    if inferred is None:
        raise CheckpointError(
            f"{where} is of no architecture that Tubelet knows ({', '.join(_ARCHITECTURES)}); its first tensors are "
            f"{', '.join(list(state)[:3]) or 'none'}"
        )
    try:
        model = FastVSR(FastConfig(**{**asdict(inferred), **config}))
    except TypeError as error:
        raise ConfigError(f"{where}: {error}") from error
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise CheckpointError(f"{where} does not fit {type(model).__name__}: {' '.join(str(error).split())}") from error
    return model.float().eval()


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read the tensors and the header of a file."""
    if not path.is_file():
        raise CheckpointError(f"no such checkpoint: {path}")
    try:
        with cast(Any, safe_open)(path, framework="pt") as file:
            tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return tensors, file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a whole .safetensors file ({error})") from error
