"""Frozen bases of composite networks: found by a reference, and known again by their tensors.

    header of a checkpoint: base = {"model": id or path, "architecture": …, "sha256": of tensors}

The checkpoint holds the composite network's own weights alone. A path is looked for from the folder
of the checkpoint on, then from the current one; then a file of its name beside the checkpoint. The
first that has these tensors is it.
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

__all__ = ["attach_base", "fingerprint", "hash_tensors", "open_base", "refer_to"]

_EARLIER_NOTE = "image_model"
"""Entry of the notes in which two-step checkpoints kept the reference before the header had one."""


@dataclass(frozen=True, slots=True)
class _Reference:
    """What a checkpoint keeps of its base.

    Attributes:
        model: id or path.
        sha256: of its tensors; "" where it is not known.
    """

    model: str
    sha256: str = ""


def open_base(name: str, needed: BaseModel) -> OpenedModel:
    """Open a model that a composite network can stand on.

    Args:
        name: id, name that stands for one model per scale, or path of a checkpoint.
        needed: what it must be.

    Returns:
        The model; its parameters need no gradient.

    Raises:
        RequestError: no model has this name, or it is of another temporal kind or scale.
        CheckpointError: the file is missing, damaged, or of no known architecture.
        ResourceError: published weights cannot be fetched.
    """
    opened = open_without_base(name, factor=needed.scale, check=partial(_check, needed))
    opened.network.requires_grad_(requires_grad=False)
    return opened


def _check(needed: BaseModel, name: str, spec: ModelSpec) -> None:
    kind = spec.temporal.kind
    if kind != needed.kind:
        raise RequestError(
            f"{name} cannot be an {needed.role}: {spec.architecture} is of the kind {kind}; "
            f"take one of the kind {needed.kind}, as `tubelet models` lists them"
        )
    if spec.base is not None:
        raise RequestError(
            f"{name} cannot be an {needed.role}: {spec.architecture} stands on another model itself"
        )
    if spec.scale != needed.scale:
        raise RequestError(
            f"{name} cannot be this {needed.role}: it enlarges ×{spec.scale}, and ×{needed.scale} is needed"
        )


def attach_base(opened: OpenedModel, needed: BaseModel) -> OpenedModel:
    """Give a composite network the base that its checkpoint refers to.

    Args:
        opened: the network, with its own weights alone.
        needed: what its base must be.

    Returns:
        The network on its base, and how both together are run.

    Raises:
        CheckpointError: the checkpoint refers to none, or it is missing, cannot be one, or has
            other weights.
        ResourceError: it cannot be fetched.
    """
    reference = _read_reference(opened, needed)
    named = f"{opened.name} needs the {needed.role} {reference.model}"
    try:
        base, digest = _find(reference, needed, opened.path)
    except (RequestError, CheckpointError) as error:
        raise CheckpointError(f"{named}, and {error}") from error
    except ResourceError as error:
        raise ResourceError(f"{named}, and {error}") from error
    if digest != reference.sha256:
        raise CheckpointError(
            f"{opened.name} was trained over other weights than those of {base.name}: its tensors have sha256 "
            f"{digest[:12]}…, and {reference.sha256[:12]}… is expected; put those weights there"
        )
    spec = dataclasses.replace(
        opened.spec,
        summary=f"{opened.spec.summary}, over {reference.model}",
        contract=needed.contract(opened.spec.contract, base.spec.contract),
    )
    return dataclasses.replace(
        opened, spec=spec, network=needed.attach(opened.network, base.network)
    )


def _read_reference(opened: OpenedModel, needed: BaseModel) -> _Reference:
    """Read which base a checkpoint refers to, or else the usual one, if there is such a thing."""
    header = read_header(opened.path) if opened.path is not None else {}
    try:
        reference = _parse(json.loads(header.get("base", "null")))
        if reference is None:
            notes: Any = json.loads(header.get("notes", "{}"))
            reference = _parse(notes.get(_EARLIER_NOTE)) if isinstance(notes, dict) else None
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{opened.name} has a damaged header: {error}") from error
    if reference is not None:
        return reference
    if needed.usual:
        return _Reference(needed.usual)
    raise CheckpointError(
        f"{opened.name} does not name the {needed.role} that it was trained over, as `tubelet train` writes it; "
        f"in Python, give it one: {needed.remedy}"
    )


def _parse(content: Any) -> _Reference | None:
    """Take a reference out of a header, which anyone can have written."""
    if not isinstance(content, dict):
        return None
    entries = cast(Mapping[str, Any], content)
    model = entries.get("model")
    sha256 = entries.get("sha256", "")
    if isinstance(model, str) and model and isinstance(sha256, str):
        return _Reference(model, sha256)
    return None


def _find(
    reference: _Reference, needed: BaseModel, checkpoint: Path | None
) -> tuple[OpenedModel, str]:
    """Open the base: of several files the one with the right tensors, or else the first.

    Returns:
        The base, and the sha256 of its tensors; "" where the reference has none to compare it with.
    """
    if checkpoint is None or not is_checkpoint(reference.model):
        return _open_hashed(reference.model, needed, reference)
    places = _places(reference.model, checkpoint)
    files = [place for place in places if place.is_file()]
    if not files:
        raise CheckpointError(f"it is not at {' or '.join(map(str, places))}; put it there")
    opened: list[tuple[OpenedModel, str]] = []
    failed: list[RequestError | CheckpointError] = []
    for file in files:
        try:
            base, digest = _open_hashed(str(file), needed, reference)
        except (RequestError, CheckpointError) as error:
            failed.append(error)
            continue
        if digest == reference.sha256:
            return base, digest
        opened.append((base, digest))
    if not opened:
        raise failed[0]
    return opened[0]


def _open_hashed(name: str, needed: BaseModel, reference: _Reference) -> tuple[OpenedModel, str]:
    base = open_base(name, needed)
    return base, hash_tensors(base.network) if reference.sha256 else ""


def _places(path: str, checkpoint: Path) -> list[Path]:
    """List where a base can lie whose path a checkpoint keeps; never at the checkpoint itself."""
    folder = checkpoint.parent
    places = dict.fromkeys((folder / path, Path(path), folder / Path(path).name))
    return [place for place in places if not (place.is_file() and place.samefile(checkpoint))]


def refer_to(base: OpenedModel, folder: Path) -> dict[str, str]:
    """Make the reference that the header of a checkpoint keeps.

    Args:
        base: what the network was trained over.
        folder: of the checkpoint. A path is written as it is seen from there, so that both can be
            moved together.
    """
    return {
        "model": base.name if base.path is None else _seen_from(folder, base.path),
        "architecture": base.spec.architecture,
        "sha256": hash_tensors(base.network),
    }


def _seen_from(folder: Path, path: Path) -> str:
    try:
        return Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix()
    except ValueError:  # on another drive
        return path.resolve().as_posix()


def fingerprint(model: OpenedModel) -> str:
    """Compute the sha256 of all that a model's results depend on, wherever its file lies."""
    known = model.name if model.path is None else ""  # bicubic and lanczos have no tensors
    shape = repr(getattr(model.network, "config", None))
    facts = f"{model.spec.architecture} {known} {shape} {hash_tensors(model.network)}"
    return hashlib.sha256(facts.encode()).hexdigest()


def hash_tensors(network: nn.Module) -> str:
    """Compute the sha256 of the names, shapes, formats and numbers of a state dict."""
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
