"""Checkpoints: files whose names and shapes tell the architecture and its configuration.

    file or state dict → unwrapped → translated by the architecture that knows its names → built → loaded strictly

Files are safetensors, or PyTorch's own, read as data alone: nothing in a checkpoint is ever executed.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save_file  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor, nn

from tubelet.errors import CheckpointError, ConfigError
from tubelet.field_names import current_fields
from tubelet.files import atomic_write
from tubelet.models.architecture import Architecture
from tubelet.models.state_dict import State
from tubelet.tensor_files import expansion_fault, read_content, read_header, read_safetensors
from tubelet.zoo.architectures import ARCHITECTURES
from tubelet.zoo.spandrel_adapter import has_spandrel, load_by_spandrel
from tubelet.zoo.unsupported import recognize_unsupported

__all__ = [
    "OpenedCheckpoint",
    "load_model",
    "open_checkpoint",
    "read_notes",
    "read_state",
    "save_checkpoint",
]

_WRAPPERS = ("params_ema", "params", "state_dict", "model_state_dict", "model")
"""Keys under which training frameworks put the tensors, the best first."""
_PREFIXES = ("generator_ema.", "generator.", "module.")
"""What they put before every name; where several are there, the first counts."""
_MAX_DEPTH = 8
"""So many wrappings are taken off; a dict can hold itself."""


@dataclass(frozen=True, slots=True)
class OpenedCheckpoint:
    """A checkpoint that was recognized.

    Attributes:
        model: the network, loaded, in evaluation mode, float32, on the CPU.
        architecture: what it is.
        config: how it was built; of `architecture.config`.
        wrapping: keys and prefixes that were taken off, from the outside in.
        renamed: how many names are not ours.
    """

    model: nn.Module
    architecture: Architecture
    config: Any
    wrapping: tuple[str, ...] = ()
    renamed: int = 0


def save_checkpoint(
    path: str | Path,
    model: nn.Module,
    notes: Mapping[str, Any],
    *,
    base: Mapping[str, str] | None = None,
) -> None:
    """Write a network, whole or not at all; of a composite network its own weights alone.

    Args:
        path: of the .safetensors file.
        model: the network.
        notes: what else to keep in the header; anything JSON can hold, paths become text.
        base: reference to the frozen network that it stands on, as `tubelet.zoo.bases.refer_to` makes it.
    """
    header = {"architecture": type(model).__name__, "notes": json.dumps(notes, default=str)}
    if dataclasses.is_dataclass(config := getattr(model, "config", None)):
        header["config"] = json.dumps(dataclasses.asdict(cast(Any, config)), default=str)
    if base is not None:
        header["base"] = json.dumps(dict(base))
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as part:
        save_file(
            {name: value.contiguous() for name, value in model.state_dict().items()},
            part,
            metadata=header,
        )
        part.chmod(0o644)  # safetensors writes files that only their owner may read


def read_notes(path: Path) -> dict[str, Any]:
    """Read what `save_checkpoint` was given as notes.

    Raises:
        CheckpointError: the file is missing or is not safetensors.
    """
    return json.loads(read_safetensors(path)[1].get("notes", "{}"))


def load_model(
    path_or_state_dict: str | Path | Mapping[str, Any],
    *,
    architecture: str | None = None,
    **config: Any,
) -> nn.Module:
    """Build the network that a checkpoint belongs to, recognized by its names and shapes, and load it strictly.

    Args:
        path_or_state_dict: a .safetensors or .pth file, or its tensors by name, wrapped as frameworks do or not.
        architecture: name of the network's class; by default it is recognized.
        config: fields of the architecture's configuration, in place of the inferred ones and of those that
            `save_checkpoint` wrote.

    Returns:
        the network in evaluation mode, float32, on the CPU.

    Raises:
        CheckpointError: the file is missing or damaged, is of no known architecture, or does not fit it.
        ConfigError: `architecture` or a field of `config` is unknown.
    """
    return open_checkpoint(path_or_state_dict, architecture=architecture, **config).model


def open_checkpoint(
    path_or_state_dict: str | Path | Mapping[str, Any],
    *,
    architecture: str | None = None,
    **config: Any,
) -> OpenedCheckpoint:
    """Do what `load_model` does, and also tell what the checkpoint was recognized as."""
    candidates = _named(architecture)
    where = (
        str(path_or_state_dict) if isinstance(path_or_state_dict, str | Path) else "the state dict"
    )
    state, wrapping = read_state(path_or_state_dict)
    header = read_header(path_or_state_dict) if isinstance(path_or_state_dict, str | Path) else {}
    for candidate in candidates:
        own = candidate.translate(state)
        if own is not None:
            written = (
                header.get("config", "{}") if header.get("architecture") == candidate.name else "{}"
            )
            opened = _build(candidate, own, config, written, where)
            return dataclasses.replace(
                opened, wrapping=wrapping, renamed=len(state.keys() - own.keys())
            )
    if foreign := recognize_unsupported(state):
        raise CheckpointError(f"{where} is {foreign.name}: {foreign.advice}")
    if architecture is None and (other := load_by_spandrel(state, where)):
        return OpenedCheckpoint(*other, wrapping=wrapping, renamed=len(state))
    known = ", ".join(candidate.name for candidate in candidates)
    first = ", ".join(list(state)[:3])
    hint = "" if has_spandrel() else "; more image models come with pip install 'tubelet[spandrel]'"
    raise CheckpointError(
        f"{where} is of no architecture that Tubelet knows ({known}); its first tensors are {first}{hint}"
    )


def read_state(
    path_or_state_dict: str | Path | Mapping[str, Any],
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Read the tensors of a checkpoint by their plain names.

    Args:
        path_or_state_dict: as for `load_model`.

    Returns:
        them, and the keys and prefixes that were taken off, from the outside in.

    Raises:
        CheckpointError: the file is missing or damaged, holds objects with code, or no tensors.
    """
    if not isinstance(path_or_state_dict, str | Path):
        return _unwrap(path_or_state_dict, "the state dict")
    content = read_content(Path(path_or_state_dict))
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f"{path_or_state_dict} holds a {type(content).__name__}, not tensors by name"
        )
    return _unwrap(cast(Mapping[str, Any], content), str(path_or_state_dict))


def _named(name: str | None) -> tuple[Architecture, ...]:
    if name is None:
        return ARCHITECTURES
    found = tuple(candidate for candidate in ARCHITECTURES if candidate.name == name)
    if not found:
        known = ", ".join(candidate.name for candidate in ARCHITECTURES)
        raise ConfigError(f"unknown architecture {name!r}; known are {known}")
    return found


def _build(
    architecture: Architecture,
    state: dict[str, Tensor],
    changes: Mapping[str, Any],
    written: str,
    where: str,
) -> OpenedCheckpoint:
    model = architecture.build(config := _configured(architecture, state, changes, written, where))
    expected = model.state_dict()
    absent = [
        n for n in expected if n not in state and not n.endswith(architecture.derived or ("\0",))
    ]
    surplus = [name for name in state if name not in expected]
    other = [
        f"{name} is {_shape(value)}, not {_shape(expected[name])}"
        for name, value in state.items()
        if name in expected and value.shape != expected[name].shape
    ]
    faults = [
        _list("lacks", absent),
        _list("has too much:", surplus),
        _list("has other shapes:", other),
    ]
    if any(faults):
        raise CheckpointError(
            f"{where} does not fit {architecture.name}: it {', and '.join(filter(None, faults))}"
        )
    if unfit := [
        name for name, value in state.items() if not _holds_numbers(value, expected[name])
    ]:
        raise CheckpointError(
            f"{where} does not fit {architecture.name}: {_list('no plain numbers are in', unfit)}"
        )
    model.load_state_dict({**expected, **state})
    return OpenedCheckpoint(model.float().eval(), architecture, config)


def _configured(
    architecture: Architecture, state: State, changes: Mapping[str, Any], written: str, where: str
) -> Any:
    """Read the configuration off the shapes, complete it by what is written, and change what was asked for."""
    try:
        config = architecture.infer(state)
    except (ConfigError, LookupError, ValueError, ArithmeticError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"{where} has names of {architecture.name}, and its shapes are of no configuration of it ({reason})"
        ) from error
    try:
        return dataclasses.replace(
            config,
            **(_plain_fields(written, config) | current_fields(architecture.config, changes)),
        )
    except TypeError as error:
        raise ConfigError(f"{where}: {error}") from error
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{where} has a damaged header: {error}") from error


def _plain_fields(written: str, config: Any) -> dict[str, Any]:
    """Read the fields that one word or number fills; all others are told by shapes."""
    content: Any = json.loads(written)
    found = cast(dict[str, Any], content) if isinstance(content, dict) else {}
    found = current_fields(cast(type[Any], type(config)), found, quiet=True)
    fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    plain = {
        name: value for name, value in fields.items() if isinstance(value, bool | int | float | str)
    }
    return {
        name: found[name] for name, value in plain.items() if type(found.get(name)) is type(value)
    }


def _holds_numbers(value: Tensor, expected: Tensor) -> bool:
    """Refuse quantized, sparse, complex and absent numbers, and integers where there are fractions."""
    plain = (
        value.layout == torch.strided
        and not value.is_quantized
        and not value.is_meta
        and not value.is_complex()
    )
    return plain and (value.is_floating_point() or not expected.is_floating_point())


def _list(verb: str, names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return f"{verb} {', '.join(names[:4])}{more}" if names else ""


def _shape(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "a number"


def _unwrap(content: Mapping[str, Any], where: str) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Find the tensors in what a framework wrote around them; return them by their plain names, and what was around."""
    wrapping: list[str] = []
    while len(wrapping) < _MAX_DEPTH:
        key = next((key for key in _WRAPPERS if isinstance(content.get(key), Mapping)), None)
        if key is None:
            break
        content = cast(Mapping[str, Any], content[key])
        wrapping.append(key)
    entries = cast(Mapping[object, object], content)
    state = {
        name: value
        for name, value in entries.items()
        if isinstance(name, str) and isinstance(value, Tensor)
    }
    if not state:
        first = ", ".join(
            key if isinstance(key, str) else type(key).__name__ for key in list(entries)[:3]
        )
        raise CheckpointError(f"{where} holds no tensors; its entries are {first or 'none'}")
    _check_expansion(state, where)
    for prefix in _PREFIXES:
        if any(name.startswith(prefix) for name in state):
            state = {
                name.removeprefix(prefix): value
                for name, value in state.items()
                if name.startswith(prefix)
            }
            wrapping.append(prefix)
    return state, tuple(wrapping)


def _check_expansion(state: Mapping[str, Tensor], where: str) -> None:
    """Refuse tensors that declare far more numbers than are stored."""
    dense = [
        value for value in state.values() if value.layout == torch.strided and not value.is_meta
    ]
    storages = {value.untyped_storage().data_ptr(): value.untyped_storage() for value in dense}
    declared_bytes = sum(value.nbytes for value in dense)
    stored_bytes = sum(storage.nbytes() for storage in storages.values())
    if fault := expansion_fault(declared_bytes, stored_bytes):
        raise CheckpointError(f"{where} {fault}")
