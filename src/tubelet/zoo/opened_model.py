"""Models with their weights, from the list or from a checkpoint, each without its base."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load
from torch import nn

from tubelet.downloads import fetch
from tubelet.errors import CheckpointError
from tubelet.zoo import catalog
from tubelet.zoo.publishers import PublishedWeights
from tubelet.zoo.spec import ModelSpec, WeightsSpec

__all__ = ["Check", "OpenedModel", "open_listed", "open_without_base"]

Check = Callable[[str, ModelSpec], None]
"""Raises where a model, known by its name and spec, is not what is needed."""


@dataclass(frozen=True, slots=True)
class OpenedModel:
    """A network with its weights.

    Attributes:
        name: id of the model, or the path of the checkpoint as it was given.
        spec: how to run it.
        network: in evaluation mode, float32, on the CPU.
        weights_sha256: of the weight file; of one that is published elsewhere as many digits as are
            published; None for a model without weights.
        path: of the checkpoint; None for a model of the list.
    """

    name: str
    spec: ModelSpec
    network: nn.Module
    weights_sha256: str | None = None
    path: Path | None = None


def open_without_base(
    name: str, *, factor: float | None = None, check: Check | None = None
) -> OpenedModel:
    """Open a model as `open_model` does, but leave a composite network without its base.

    Args:
        name: id, name that stands for one model per scale, or path of a checkpoint.
        factor: see `catalog.find_model`.
        check: is called before weights are fetched.

    Raises:
        RequestError: no model has this name.
        CheckpointError: the weight file is missing, damaged, or of no known architecture.
        ResourceError: published weights cannot be fetched.
    """
    check = check or _accept
    if catalog.is_checkpoint(name):
        opened = _open_file(name)
        check(name, opened.spec)
        return opened
    spec = catalog.find_model(name, factor=factor)
    check(spec.id, spec)
    return open_listed(spec)


def _accept(name: str, spec: ModelSpec) -> None:
    del name, spec


def _open_file(name: str) -> OpenedModel:
    from tubelet.zoo.checkpoint import open_checkpoint

    path = Path(name)
    if not path.exists():
        _suggest_published_id(path)
    digest = catalog.hash_file(path) if path.is_file() else ""
    # The hash of a published file tells what its names and shapes do not.
    published = catalog.find_published_by_hash(digest)
    named = _named(published[0]) if published else {}
    opened = open_checkpoint(path, **named)
    spec = catalog.make_spec(
        path.name, opened.architecture, opened.config, summary=f"checkpoint {name}"
    )
    return OpenedModel(name, spec, opened.model, digest, path)


def open_listed(spec: ModelSpec) -> OpenedModel:
    """Open a listed model; its weights are fetched where they are published elsewhere.

    Raises:
        CheckpointError: the weight file is missing, damaged, or does not fit.
        ResourceError: published weights cannot be fetched.
    """
    weights = spec.weights
    if weights is None:
        return OpenedModel(spec.id, spec, spec.build().eval())
    if weights.remote is None:
        network = _load_from_package(spec.build(), weights)
    else:
        network = _load_published(catalog.published_weights(spec.id))
    return OpenedModel(spec.id, spec, network, weights.sha256)


def _load_from_package(network: nn.Module, weights: WeightsSpec) -> nn.Module:
    path = catalog.package_folder() / weights.file
    if not path.is_file():
        raise CheckpointError(f"weight file {path} is missing; install the package again")
    data = path.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    if digest != weights.sha256:
        raise CheckpointError(
            f"weight file {path} has sha256 {digest[:12]}…, expected {weights.sha256[:12]}…; install the package again"
        )
    try:
        network.load_state_dict(load(data), strict=True)
    except (SafetensorError, RuntimeError) as error:
        raise CheckpointError(
            f"weight file {path} does not fit the model: {' '.join(str(error).split())}"
        ) from error
    return network.eval()


def _load_published(known: PublishedWeights) -> nn.Module:
    from tubelet.zoo.checkpoint import open_checkpoint

    path = fetch(known.file, catalog.weights_folder())
    try:
        return open_checkpoint(path, **_named(known)).model
    except CheckpointError as error:
        raise CheckpointError(
            f"{known.id} should be {known.architecture.name}, and {error}; remove the file"
        ) from error


def _named(known: PublishedWeights) -> dict[str, Any]:
    """Return what is known of a published file, as arguments of `open_checkpoint`."""
    fields = {
        field.name: getattr(known.config, field.name) for field in dataclasses.fields(known.config)
    }
    return {"architecture": known.architecture.name, **fields}


def _suggest_published_id(path: Path) -> None:
    """Name the model whose published file is asked for by a path at which it is not."""
    known = catalog.find_published_by_file_name(path.name)
    if known is not None:
        raise CheckpointError(f"no such checkpoint: {path}; --model {known.id} fetches it")
