"""Checkpoints: files whose names and shapes tell the architecture and its configuration.

    file or state dict → unwrapped → translated by the architecture that knows its names → built → loaded strictly

Files are safetensors, or PyTorch's own read as data alone: nothing in a checkpoint is ever executed.
"""

from __future__ import annotations

import dataclasses
import json
import pickle
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor, nn

from tubelet.errors import CheckpointError, ConfigError
from tubelet.models import basicvsr, edsr, fast, frvsr, fsrcnn, msrresnet, rlsp, rrdb, rrn, rsdn, sesr, spynet, srvgg
from tubelet.models.architecture import Architecture

__all__ = ["ARCHITECTURES", "Opened", "load_model", "open_checkpoint", "read_notes", "save_checkpoint"]

ARCHITECTURES: tuple[Architecture, ...] = (
    fast.ARCHITECTURE,
    srvgg.ARCHITECTURE,
    rrdb.ARCHITECTURE,
    edsr.ARCHITECTURE,
    msrresnet.ARCHITECTURE,
    fsrcnn.ARCHITECTURE,
    sesr.ARCHITECTURE,
    rrn.ARCHITECTURE,
    rlsp.ARCHITECTURE,
    rsdn.ARCHITECTURE,
    frvsr.ARCHITECTURE,
    basicvsr.ARCHITECTURE,
    spynet.ARCHITECTURE,
)
"""What `load_model` recognises; the first that claims a file gets it."""

_WRAPPERS = ("params_ema", "params", "state_dict", "model_state_dict", "model")
"""Keys under which training frameworks put the tensors, the best first."""
_PREFIXES = ("generator_ema.", "generator.", "module.")
"""What they put before every name; where several are there, the first counts."""


@dataclass(frozen=True, slots=True)
class Opened:
    """A checkpoint that was recognised.

    Attributes:
        model: the network, loaded, in evaluation mode, float32, on the CPU.
        architecture: what it is.
        config: how it was built; of `architecture.config`.
    """

    model: nn.Module
    architecture: Architecture
    config: Any


def save_checkpoint(path: Path, model: nn.Module, notes: Mapping[str, Any]) -> None:
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
    _require(path)
    return json.loads(_read_safetensors(path)[1].get("notes", "{}"))


def load_model(
    path_or_state_dict: str | Path | Mapping[str, Any], *, architecture: str | None = None, **config: Any
) -> nn.Module:
    """Build the network that a checkpoint belongs to, recognised by its names and shapes, and load it strictly.

    Args:
        path_or_state_dict: a .safetensors or .pth file, or its tensors by name, wrapped as frameworks do or not.
        architecture: name of the network's class; by default it is recognised.
        config: fields of the architecture's configuration, in place of the inferred ones.

    Returns:
        the network in evaluation mode, float32, on the CPU.

    Raises:
        CheckpointError: the file is missing or damaged, is of no known architecture, or does not fit it.
        ConfigError: `architecture` or a field of `config` is unknown.
    """
    return open_checkpoint(path_or_state_dict, architecture=architecture, **config).model


def open_checkpoint(
    path_or_state_dict: str | Path | Mapping[str, Any], *, architecture: str | None = None, **config: Any
) -> Opened:
    """Do what `load_model` does, and also tell what the checkpoint was recognised as."""
    candidates = _named(architecture)
    if isinstance(path_or_state_dict, str | Path):
        where, content = str(path_or_state_dict), _read(Path(path_or_state_dict))
    else:
        where, content = "the state dict", path_or_state_dict
    state = _unwrap(content, where)
    for candidate in candidates:
        own = candidate.translate(state)
        if own is not None:
            return _build(candidate, own, config, where)
    known = ", ".join(candidate.name for candidate in candidates)
    first = ", ".join(list(state)[:3]) or "none"
    raise CheckpointError(f"{where} is of no architecture that Tubelet knows ({known}); its first tensors are {first}")


def _named(name: str | None) -> tuple[Architecture, ...]:
    if name is None:
        return ARCHITECTURES
    found = tuple(candidate for candidate in ARCHITECTURES if candidate.name == name)
    if not found:
        known = ", ".join(candidate.name for candidate in ARCHITECTURES)
        raise ConfigError(f"unknown architecture {name!r}; known are {known}")
    return found


def _build(architecture: Architecture, state: dict[str, Tensor], changes: Mapping[str, Any], where: str) -> Opened:
    try:
        config = dataclasses.replace(architecture.infer(state), **changes)
    except TypeError as error:
        raise ConfigError(f"{where}: {error}") from error
    model = architecture.build(config)
    expected = model.state_dict()
    absent = [n for n in expected if n not in state and not n.endswith(architecture.derived or ("\0",))]
    surplus = [name for name in state if name not in expected]
    other = [
        f"{name} is {_shape(value)}, not {_shape(expected[name])}"
        for name, value in state.items()
        if name in expected and value.shape != expected[name].shape
    ]
    faults = [_list("lacks", absent), _list("has too much:", surplus), _list("has other shapes:", other)]
    if any(faults):
        raise CheckpointError(f"{where} does not fit {architecture.name}: it {', and '.join(filter(None, faults))}")
    model.load_state_dict({**expected, **state})
    return Opened(model.float().eval(), architecture, config)


def _list(verb: str, names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return f"{verb} {', '.join(names[:4])}{more}" if names else ""


def _shape(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "a number"


def _unwrap(content: Mapping[str, Any], where: str) -> dict[str, Tensor]:
    """Find the tensors in what a framework wrote around them, by their plain names."""
    while (
        inner := next((content[key] for key in _WRAPPERS if isinstance(content.get(key), Mapping)), None)
    ) is not None:
        content = cast(Mapping[str, Any], inner)
    state = {name: value for name, value in content.items() if isinstance(value, Tensor)}
    if not state:
        raise CheckpointError(
            f"{where} holds no tensors; its entries are {', '.join(map(str, list(content)[:3])) or 'none'}"
        )
    for prefix in _PREFIXES:
        if any(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    return state


def _read(path: Path) -> Mapping[str, Any]:
    _require(path)
    if path.suffix == ".safetensors":
        return _read_safetensors(path)[0]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of old pickle protocols; what cannot be read raises
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, LookupError, ValueError) as error:
        reason = " ".join(str(error).split())[:160]
        raise CheckpointError(
            f"{path} is damaged, or holds more than tensors, which is not read for safety: {reason}"
        ) from error
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not tensors by name")
    return cast(Mapping[str, Any], content)


def _require(path: Path) -> None:
    if not path.is_file():
        raise CheckpointError(f"no such checkpoint: {path}")


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read the tensors and the header of a file."""
    try:
        with cast(Any, safe_open)(path, framework="pt") as file:
            tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return tensors, file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a whole .safetensors file ({error})") from error
