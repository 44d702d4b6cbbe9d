"""Load checkpoints; tensor names and shapes identify the architecture and its configuration.

    file or state dict
      → without the wrappers and prefixes of training frameworks
      → renamed by the first architecture that recognizes the names
      → network of the inferred configuration
      → loaded strictly

Checkpoints are safetensors files, files of `torch.save` read as data only, or pairs of files of
ncnn: code in a checkpoint is never executed.
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
from tubelet.zoo.ncnn import read_ncnn, read_ncnn_header
from tubelet.zoo.ncnn_files import find_graph
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
"""Keys under which training frameworks store the tensors, in order of preference."""

_PREFIXES = ("generator_ema.", "generator.", "module.")
"""Prefixes that training frameworks add to every name, in order of preference."""

_MAX_WRAPPER_DEPTH = 8
"""Bound on nested wrappers: a dict in a hostile file can contain itself."""

_MAX_LISTED_NAMES = 4
"""Number of tensor names that an error message lists."""


@dataclass(frozen=True, slots=True)
class OpenedCheckpoint:
    """The network of a checkpoint, and how the checkpoint was recognized.

    Attributes:
        model: Loaded network in evaluation mode, float32, on the CPU.
        architecture: Recognized architecture.
        config: Configuration of the network, of type `architecture.config`.
        wrapping: Keys and prefixes that were removed, from the outside in.
        renamed: Number of tensors whose names differ from Tubelet's.
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
    """Write a network to a .safetensors file, atomically.

    Of a composite network, only its own weights are written, without those of its frozen base.

    Args:
        path: Path of the file; its folder is created.
        model: Network to save.
        notes: Additional content of the header: anything that JSON can represent; paths become
            text.
        base: Reference to the frozen base network, from `tubelet.zoo.bases.refer_to`.
    """
    header = {"architecture": type(model).__name__, "notes": json.dumps(notes, default=str)}
    config = getattr(model, "config", None)
    if dataclasses.is_dataclass(config):
        fields = dataclasses.asdict(cast(Any, config))
        header["config"] = json.dumps(fields, default=str)
    if base is not None:
        header["base"] = json.dumps(dict(base))
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # safetensors refuses views that are not contiguous.
    tensors = {name: value.contiguous() for name, value in model.state_dict().items()}
    with atomic_write(path) as part:
        save_file(tensors, part, metadata=header)
        # safetensors creates files that only their owner can read.
        part.chmod(0o644)


def read_notes(path: Path) -> dict[str, Any]:
    """Read the notes that `save_checkpoint` stored in the header.

    Raises:
        CheckpointError: The file is missing or is not a safetensors file.
    """
    _, header = read_safetensors(path)
    return json.loads(header.get("notes", "{}"))


def load_model(
    path_or_state_dict: str | Path | Mapping[str, Any],
    *,
    architecture: str | None = None,
    **config: Any,
) -> nn.Module:
    """Build the network of a checkpoint, which names and shapes identify, and load it strictly.

    Args:
        path_or_state_dict: A .safetensors or .pth file, a .param or .bin file of ncnn with the
            other one beside it, or tensors by name, with or without the wrappers of training
            frameworks.
        architecture: Class name of the network. Default: recognized from the tensor names.
        config: Fields of the architecture's configuration that replace the inferred ones and those
            that `save_checkpoint` stored.

    Returns:
        The network in evaluation mode, float32, on the CPU.

    Raises:
        CheckpointError: The file is missing or damaged, is of an unknown architecture, or does not
            fit it.
        ConfigError: `architecture` or a field of `config` is unknown.
    """
    return open_checkpoint(path_or_state_dict, architecture=architecture, **config).model


def open_checkpoint(
    path_or_state_dict: str | Path | Mapping[str, Any],
    *,
    architecture: str | None = None,
    **config: Any,
) -> OpenedCheckpoint:
    """Load a network like `load_model`, and return how its checkpoint was recognized, too."""
    candidates = _candidate_architectures(architecture)
    state, wrapping = read_state(path_or_state_dict)
    header: dict[str, str] = {}
    source = "the state dict"
    if isinstance(path_or_state_dict, str | Path):
        header = _read_header(Path(path_or_state_dict))
        source = str(path_or_state_dict)

    for candidate in candidates:
        translated = candidate.translate(state)
        if translated is None:
            continue
        stored_config = "{}"
        # The stored configuration belongs to the network that was saved, and to no other.
        if header.get("architecture") == candidate.name:
            stored_config = header.get("config", "{}")
        opened = _build(candidate, translated, config, stored_config, source)
        renamed = len(state.keys() - translated.keys())
        return dataclasses.replace(opened, wrapping=wrapping, renamed=renamed)

    unsupported = recognize_unsupported(state)
    if unsupported is not None:
        raise CheckpointError(f"{source} is {unsupported.name}: {unsupported.advice}")
    if architecture is None:
        loaded = load_by_spandrel(state, source)
        if loaded is not None:
            model, spandrel_architecture, spandrel_config = loaded
            return OpenedCheckpoint(
                model,
                spandrel_architecture,
                spandrel_config,
                wrapping=wrapping,
                renamed=len(state),
            )
    raise CheckpointError(_unknown_architecture(state, candidates, source))


def _unknown_architecture(state: State, candidates: Iterable[Architecture], source: str) -> str:
    names = _architecture_names(candidates)
    first_tensors = ", ".join(list(state)[:3])
    hint = ""
    if not has_spandrel():
        hint = "; pip install 'tubelet[spandrel]' adds more image models"
    return (
        f"{source} is of no architecture that Tubelet knows ({names}); its first tensors are "
        f"{first_tensors}{hint}"
    )


def read_state(
    path_or_state_dict: str | Path | Mapping[str, Any],
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Read the tensors of a checkpoint, without the wrappers and prefixes of training frameworks.

    Args:
        path_or_state_dict: See `load_model`.

    Returns:
        Tensors by name, and the keys and prefixes that were removed, from the outside in.

    Raises:
        CheckpointError: The file is missing or damaged, contains objects with code, or no tensors.
    """
    if not isinstance(path_or_state_dict, str | Path):
        return _unwrap(path_or_state_dict, "the state dict")
    path = Path(path_or_state_dict)
    graph = find_graph(path)
    if graph is not None:
        return read_ncnn(graph), ()
    content = read_content(path)
    if not isinstance(content, Mapping):
        kind = type(content).__name__
        raise CheckpointError(f"{path_or_state_dict} contains a {kind}, not tensors by name")
    return _unwrap(cast(Mapping[str, Any], content), str(path_or_state_dict))


def _read_header(path: Path) -> dict[str, str]:
    """Read the metadata of a checkpoint that is known to be readable."""
    graph = find_graph(path)
    if graph is not None:
        return read_ncnn_header(graph)
    return read_header(path)


def _candidate_architectures(name: str | None) -> tuple[Architecture, ...]:
    if name is None:
        return ARCHITECTURES
    candidates = tuple(candidate for candidate in ARCHITECTURES if candidate.name == name)
    if not candidates:
        names = _architecture_names(ARCHITECTURES)
        raise ConfigError(f"unknown architecture {name!r}; known are {names}")
    return candidates


def _architecture_names(architectures: Iterable[Architecture]) -> str:
    return ", ".join(architecture.name for architecture in architectures)


def _build(
    architecture: Architecture,
    state: dict[str, Tensor],
    overrides: Mapping[str, Any],
    stored_config: str,
    source: str,
) -> OpenedCheckpoint:
    """Build the network of a translated state dict, check that both fit, and load it."""
    config = _configuration(architecture, state, overrides, stored_config, source)
    model = architecture.build(config)
    expected = model.state_dict()
    _check_fit(architecture, state, expected, source)
    # Entries that the constructor derives may be missing from the file.
    model.load_state_dict({**expected, **state})
    return OpenedCheckpoint(model.float().eval(), architecture, config)


def _check_fit(architecture: Architecture, state: State, expected: State, source: str) -> None:
    """Check names, shapes and data types of a state dict.

    Raises:
        CheckpointError: Something does not fit; the message lists missing and unexpected names and
            different shapes.
    """
    missing: list[str] = []
    for name in expected:
        is_derived = name.endswith(architecture.derived)
        if name not in state and not is_derived:
            missing.append(name)

    unexpected: list[str] = []
    other_shapes: list[str] = []
    other_types: list[str] = []
    for name, value in state.items():
        if name not in expected:
            unexpected.append(name)
            continue
        target = expected[name]
        if value.shape != target.shape:
            other_shapes.append(f"{name} is {_shape(value)}, not {_shape(target)}")
        if not _is_loadable(value, target):
            other_types.append(name)

    faults: list[str] = []
    findings = (
        ("lacks", missing),
        ("has unexpected tensors:", unexpected),
        ("has other shapes:", other_shapes),
    )
    for description, names in findings:
        if names:
            faults.append(f"{description} {_first_names(names)}")
    if faults:
        reason = ", and ".join(faults)
        raise CheckpointError(f"{source} does not fit {architecture.name}: it {reason}")
    if other_types:
        raise CheckpointError(
            f"{source} does not fit {architecture.name}: these tensors have an unusable data type "
            f"or layout: {_first_names(other_types)}"
        )


def _configuration(
    architecture: Architecture,
    state: State,
    overrides: Mapping[str, Any],
    stored_config: str,
    source: str,
) -> Any:
    """Infer the configuration from the shapes, add stored fields, then the caller's overrides."""
    try:
        config = architecture.infer(state)
    except (ConfigError, LookupError, ValueError, ArithmeticError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"{source} has the tensor names of {architecture.name}, but its shapes fit no "
            f"configuration of it ({reason})"
        ) from error
    try:
        stored = _stored_fields(stored_config, config)
        fields = stored | current_fields(architecture.config, overrides)
        return dataclasses.replace(config, **fields)
    except TypeError as error:
        raise ConfigError(f"{source}: {error}") from error
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{source} has a damaged header: {error}") from error


def _stored_fields(stored_config: str, config: Any) -> dict[str, Any]:
    """Read the numbers and words of a stored configuration; shapes determine all other fields.

    Args:
        stored_config: JSON from the header, which is untrusted: unknown fields and values of
            another type are ignored.
        config: Inferred configuration.
    """
    content: Any = json.loads(stored_config)
    if not isinstance(content, dict):
        return {}
    kind = cast(type[Any], type(config))
    stored = current_fields(kind, cast(dict[str, Any], content), quiet=True)
    fields: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        inferred = getattr(config, field.name)
        value = stored.get(field.name)
        is_plain = isinstance(inferred, bool | int | float | str)
        if is_plain and type(value) is type(inferred):
            fields[field.name] = value
    return fields


def _is_loadable(value: Tensor, target: Tensor) -> bool:
    """Return whether a tensor has ordinary dense real numbers that `target` can represent."""
    faults = (
        # Sparse tensors, and those without data.
        value.layout != torch.strided,
        value.is_meta,
        value.is_quantized,
        value.is_complex(),
        # Integers for a floating-point parameter are quantized weights without their scales.
        target.is_floating_point() and not value.is_floating_point(),
    )
    return not any(faults)


def _first_names(names: list[str]) -> str:
    listed = ", ".join(names[:_MAX_LISTED_NAMES])
    num_hidden = len(names) - _MAX_LISTED_NAMES
    if num_hidden > 0:
        listed += f" and {num_hidden} more"
    return listed


def _shape(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "a number"


def _unwrap(content: Mapping[str, Any], source: str) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Extract the tensors from the containers and prefixes of a training framework.

    Returns:
        Tensors by name, and the removed keys and prefixes.
    """
    wrapping: list[str] = []
    # Containers: {"state_dict": {"params_ema": {name: tensor}}}.
    while len(wrapping) < _MAX_WRAPPER_DEPTH:
        key = _wrapper_key(content)
        if key is None:
            break
        content = cast(Mapping[str, Any], content[key])
        wrapping.append(key)

    entries = cast(Mapping[object, object], content)
    state: dict[str, Tensor] = {}
    for name, value in entries.items():
        if isinstance(name, str) and isinstance(value, Tensor):
            state[name] = value
    if not state:
        raise CheckpointError(
            f"{source} contains no tensors; its entries are {_first_keys(entries)}"
        )
    _check_expansion(state, source)

    # Prefixes: a GAN's file also contains the discriminator and an average of the generator, so
    # that names without the prefix belong to another network and are dropped.
    for prefix in _PREFIXES:
        names = [name for name in state if name.startswith(prefix)]
        if names:
            state = {name.removeprefix(prefix): state[name] for name in names}
            wrapping.append(prefix)
    return state, tuple(wrapping)


def _wrapper_key(content: Mapping[str, Any]) -> str | None:
    for key in _WRAPPERS:
        if isinstance(content.get(key), Mapping):
            return key
    return None


def _first_keys(entries: Mapping[object, object]) -> str:
    """Write the first keys of a file without tensors; keys that are no strings by their type."""
    keys: list[str] = []
    for key in list(entries)[:3]:
        if isinstance(key, str):
            keys.append(key)
        else:
            keys.append(type(key).__name__)
    return ", ".join(keys) or "none"


def _check_expansion(state: Mapping[str, Tensor], source: str) -> None:
    """Refuse tensors that declare far more numbers than the file stores, as a zip bomb does."""
    declared_bytes = 0
    # Expanded or tied tensors share a storage, which counts once.
    stored_bytes_by_address: dict[int, int] = {}
    for value in state.values():
        # Other layouts, and tensors on the meta device, have no storage of their bytes.
        has_storage = value.layout == torch.strided and not value.is_meta
        if has_storage:
            storage = value.untyped_storage()
            declared_bytes += value.nbytes
            stored_bytes_by_address[storage.data_ptr()] = storage.nbytes()
    fault = expansion_fault(declared_bytes, sum(stored_bytes_by_address.values()))
    if fault:
        raise CheckpointError(f"{source} {fault}")
