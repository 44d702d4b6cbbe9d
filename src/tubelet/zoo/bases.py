"""Find the frozen base network of a composite model, and check that it has the expected tensors.

The checkpoint of a composite model contains only the weights that were trained. Its header refers
to the base network:

    base = {"model": id or path, "architecture": class name, "sha256": hash of the tensors}

A relative path is resolved first against the folder of the checkpoint, then against the current
folder; the last candidate is a file of the same name in the folder of the checkpoint. The first
candidate whose tensors have the recorded hash is used.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from tubelet.errors import CheckpointError, RequestError, ResourceError
from tubelet.models.architecture import BaseModel
from tubelet.tensor_files import read_header
from tubelet.zoo.catalog import is_checkpoint
from tubelet.zoo.opened_model import OpenedModel, open_without_base
from tubelet.zoo.spec import ModelSpec

__all__ = [
    "Reference",
    "attach_base",
    "fingerprint",
    "hash_tensors",
    "open_base",
    "read_reference",
    "refer_to",
]

_LEGACY_NOTE = "image_model"
"""Key in the notes of older two-step checkpoints, before the header had an entry for the base."""


@dataclass(frozen=True, slots=True)
class Reference:
    """Reference from a checkpoint to its base network.

    Attributes:
        model: Id or path.
        architecture: Class name; "" if it was not recorded.
        sha256: Hash of the base network's tensors; "" if it was not recorded.
    """

    model: str
    architecture: str = ""
    sha256: str = ""


def open_base(name: str, requirements: BaseModel) -> OpenedModel:
    """Load a model as the frozen base of a composite network.

    Args:
        name: Id, alias for one model per scale, or path of a checkpoint.
        requirements: Temporal kind and scale that the base must have.

    Returns:
        The model; its parameters do not require gradients.

    Raises:
        RequestError: No model has this name, or it has another temporal kind or scale.
        CheckpointError: The file is missing, damaged, or of an unknown architecture.
        ResourceError: Published weights cannot be downloaded.
    """
    check = partial(_check_requirements, requirements)
    opened = open_without_base(name, factor=requirements.scale, check=check)
    opened.network.requires_grad_(requires_grad=False)
    return opened


def _check_requirements(requirements: BaseModel, name: str, spec: ModelSpec) -> None:
    kind = spec.temporal.kind
    if kind != requirements.kind:
        raise RequestError(
            f"{name} cannot be an {requirements.role}: {spec.architecture} is of kind "
            f"{kind!r}; choose a model of kind {requirements.kind!r} from `tubelet models`"
        )
    if spec.base is not None:
        raise RequestError(
            f"{name} cannot be an {requirements.role}: {spec.architecture} is a composite model "
            "with a base network itself"
        )
    if requirements.scale not in (None, spec.scale):
        raise RequestError(
            f"{name} cannot be this {requirements.role}: it upscales ×{spec.scale}, and "
            f"×{requirements.scale} is needed"
        )


def attach_base(
    opened: OpenedModel, requirements: BaseModel, name: str | None = None
) -> OpenedModel:
    """Load the base network that a composite checkpoint refers to, and attach it.

    Args:
        opened: The composite network with its own weights only.
        requirements: Requirements on its base network.
        name: Id or path of the base; None: where the checkpoint says.

    Returns:
        The composite network with its base, and the contract of both together.

    Raises:
        CheckpointError: The checkpoint refers to no base, or the base is missing, unsuitable, or
            has other weights than in training.
        ResourceError: The base cannot be downloaded.
    """
    reference = _read_reference(opened, requirements)
    need = f"{opened.name} needs the {requirements.role} {reference.model}"
    try:
        if name is None:
            base, digest = _find_base(reference, requirements, opened.path)
        else:
            base, digest = _open_and_hash(name, requirements, reference)
    except (RequestError, CheckpointError) as error:
        raise CheckpointError(f"{need}, but {error}") from error
    except ResourceError as error:
        raise ResourceError(f"{need}, but {error}") from error
    if name is not None and not reference.sha256:
        raise CheckpointError(
            f"{opened.name} does not record the weights that it was trained with, so {name} cannot "
            "be compared with them; leave out --model"
        )
    if digest != reference.sha256:
        raise CheckpointError(
            f"{opened.name} was trained with other weights than those of {base.name}: its tensors "
            f"have sha256 {digest[:12]}…, expected {reference.sha256[:12]}… of {reference.model}; "
            f"use the original file{_other_source(base)}"
        )
    spec = dataclasses.replace(
        opened.spec,
        summary=f"{opened.spec.summary}, over {name or reference.model}",
        contract=requirements.contract(opened.spec.contract, base.spec.contract),
    )
    network = requirements.attach(opened.network, base.network)
    return dataclasses.replace(opened, spec=spec, network=network)


def _other_source(base: OpenedModel) -> str:
    """Name the other source of published weights, whose numbers differ by rounding."""
    weights = base.spec.weights
    if weights is None or weights.pip_file is None:
        return ""
    return (
        " (these weights differ by rounding between the pip package "
        f"{weights.pip_file.package} and the download)"
    )


def _read_reference(opened: OpenedModel, requirements: BaseModel) -> Reference:
    """Read which base a checkpoint refers to; without a reference, use the default base."""
    header = read_header(opened.path) if opened.path is not None else {}
    try:
        reference = _reference_in(header)
        if reference is None:
            notes: Any = json.loads(header.get("notes", "{}"))
            if isinstance(notes, dict):
                reference = _parse(cast(dict[str, Any], notes).get(_LEGACY_NOTE))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{opened.name} has a damaged header: {error}") from error
    if reference is not None:
        return reference
    if requirements.usual:
        return Reference(requirements.usual)
    raise CheckpointError(
        f"{opened.name} does not name the {requirements.role} that it was trained with; "
        "`tubelet train` records it in the file. In Python, attach one with "
        f"{requirements.remedy}"
    )


def read_reference(path: Path) -> Reference | None:
    """Read the reference to a base network from the header of a checkpoint, as `refer_to` built it.

    Returns:
        The reference; None if the file has none that can be read.
    """
    try:
        return _reference_in(read_header(path))
    except (ValueError, RecursionError):
        return None


def _reference_in(header: Mapping[str, str]) -> Reference | None:
    """Parse the entry for the base in a header; ValueError or RecursionError if it is damaged."""
    return _parse(json.loads(header.get("base", "null")))


def _parse(content: Any) -> Reference | None:
    """Validate a reference from a header, whose content is untrusted."""
    if not isinstance(content, dict):
        return None
    entries = cast(Mapping[str, Any], content)
    model = entries.get("model")
    sha256 = entries.get("sha256", "")
    if not isinstance(model, str) or not isinstance(sha256, str):
        return None
    architecture = str(entries.get("architecture", ""))
    return Reference(model, architecture, sha256) if model else None


def _find_base(
    reference: Reference, requirements: BaseModel, checkpoint: Path | None
) -> tuple[OpenedModel, str]:
    """Load the base: of several candidate files the one with the recorded hash, else the first.

    Returns:
        The base, and the sha256 of its tensors; "" if the reference has no hash to compare with.
    """
    if checkpoint is None or not is_checkpoint(reference.model):
        return _open_and_hash(reference.model, requirements, reference)
    candidates = _candidate_paths(reference.model, checkpoint)
    files = [path for path in candidates if path.is_file()]
    if not files:
        searched = " or ".join(map(str, candidates))
        raise CheckpointError(f"it is not at {searched}; put it there")

    other_bases: list[tuple[OpenedModel, str]] = []
    errors: list[RequestError | CheckpointError] = []
    for file in files:
        # An unsuitable file must not hide a later candidate with the right tensors.
        try:
            base, digest = _open_and_hash(str(file), requirements, reference)
        except (RequestError, CheckpointError) as error:
            errors.append(error)
            continue
        if digest == reference.sha256:
            return base, digest
        other_bases.append((base, digest))
    # No file has the right tensors. The caller reports the hash of the first suitable model, or
    # why the first file is unsuitable.
    if not other_bases:
        raise errors[0]
    return other_bases[0]


def _open_and_hash(
    name: str, requirements: BaseModel, reference: Reference
) -> tuple[OpenedModel, str]:
    base = open_base(name, requirements)
    digest = hash_tensors(base.network) if reference.sha256 else ""
    return base, digest


def _candidate_paths(path: str, checkpoint: Path) -> list[Path]:
    """List the paths at which a base may be; never the checkpoint of the composite model itself."""
    folder = checkpoint.parent
    unique = dict.fromkeys((folder / path, Path(path), folder / Path(path).name))
    candidates: list[Path] = []
    for candidate in unique:
        is_checkpoint_itself = candidate.is_file() and candidate.samefile(checkpoint)
        if not is_checkpoint_itself:
            candidates.append(candidate)
    return candidates


def refer_to(base: OpenedModel, folder: Path) -> dict[str, str]:
    """Build the reference to a base network for the header of a checkpoint.

    Args:
        base: Base network of the training.
        folder: Folder of the checkpoint. A path is stored relative to it, so that both files can
            be moved together.
    """
    model = base.name if base.path is None else _relative_path(folder, base.path)
    return {
        "model": model,
        "architecture": base.spec.architecture,
        "sha256": hash_tensors(base.network),
    }


def _relative_path(folder: Path, path: Path) -> str:
    try:
        return Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix()
    except ValueError:
        # Windows: no relative path leads to another drive.
        return path.resolve().as_posix()


def fingerprint(model: OpenedModel) -> str:
    """Compute a sha256 of everything that the output of a model depends on, except its path."""
    # Bicubic and Lanczos have no tensors: only their ids differ. A file may be moved or renamed,
    # so that its path does not count.
    id = model.name if model.path is None else ""
    config = repr(getattr(model.network, "config", None))
    identity = f"{model.spec.architecture} {id} {config} {hash_tensors(model.network)}"
    return hashlib.sha256(identity.encode()).hexdigest()


def hash_tensors(network: nn.Module) -> str:
    """Compute the sha256 of a state dict: names, shapes, data types and values, sorted by name."""
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        # View the numbers as bytes: NumPy has no bfloat16.
        flat = value.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()
