"""Load listed models and checkpoints with their weights; base networks are attached elsewhere.

id ───────── spec ─ weights of the package, of a pip package, or downloaded ─┐
checkpoint ─ hash ─ recognized by tensor names and shapes ───────────────────┴─ OpenedModel
"""

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

from tubelet.errors import CheckpointError
from tubelet.zoo import catalog
from tubelet.zoo.ncnn_files import weights_path
from tubelet.zoo.publishers import PublishedWeights
from tubelet.zoo.spec import ModelSpec, WeightsSpec

__all__ = ["OpenedModel", "SpecCheck", "open_listed", "open_without_base"]

SpecCheck = Callable[[str, ModelSpec], None]
"""Raises an error if the model with this name and spec is unsuitable."""


@dataclass(frozen=True, slots=True)
class OpenedModel:
    """A network with its weights and its spec.

    Attributes:
        name: Id of the model, or the path of the checkpoint as the user wrote it.
        spec: How the engine must run the network.
        network: The network in evaluation mode, float32, on the CPU.
        weights_sha256: Hash of the weight file; for published weights it may be only the leading
            digits; None for a model without weights.
        path: Path of the checkpoint; None for a listed model.
    """

    name: str
    spec: ModelSpec
    network: nn.Module
    weights_sha256: str | None = None
    path: Path | None = None


def open_without_base(
    name: str, *, factor: float | None = None, check: SpecCheck | None = None
) -> OpenedModel:
    """Load a model like `open_model`, but do not attach the base of a composite network.

    Args:
        name: Id, alias for one model per scale, or path of a checkpoint.
        factor: See `catalog.find_model`.
        check: Called with the name and the spec; for a listed model before its weights are
            downloaded, so that an unsuitable model costs no download.

    Raises:
        RequestError: No model has this name.
        CheckpointError: The weight file is missing, damaged, or of an unknown architecture.
        ResourceError: Published weights cannot be downloaded.
    """
    if catalog.is_checkpoint(name):
        opened = _open_file(name)
        if check is not None:
            check(name, opened.spec)
        return opened
    spec = catalog.find_model(name, factor=factor)
    if check is not None:
        check(spec.id, spec)
    return open_listed(spec)


def _open_file(name: str) -> OpenedModel:
    # Loading the checkpoint reader imports every architecture, which listed models do not need.
    from tubelet.zoo.checkpoint import open_checkpoint

    path = Path(name)
    if not path.exists():
        _suggest_published_id(path)
    file = weights_path(path)
    digest = catalog.hash_file(file) if file.is_file() else ""
    # Some settings, such as the activation, change neither names nor shapes. The hash of a
    # published file identifies them.
    published = catalog.find_published_by_hash(digest)
    settings = _checkpoint_settings(published[0]) if published else {}
    opened = open_checkpoint(path, **settings)
    spec = catalog.make_spec(
        path.name, opened.architecture, opened.config, summary=f"checkpoint {name}"
    )
    return OpenedModel(name, spec, opened.model, digest, path)


def open_listed(spec: ModelSpec) -> OpenedModel:
    """Load a listed model; find or download its weights if the package does not contain them.

    Raises:
        CheckpointError: The weight file is missing, damaged, or does not fit.
        ResourceError: Published weights cannot be downloaded.
    """
    weights = spec.weights
    if weights is None:
        return OpenedModel(spec.id, spec, spec.build().eval())
    if weights.remote is None:
        network = _load_from_package(spec.build(), weights)
        return OpenedModel(spec.id, spec, network, weights.sha256)
    published = catalog.published_weights(spec.id)
    path, digest = catalog.published_file(published)
    return OpenedModel(spec.id, spec, _load_published(published, path), digest)


def _load_from_package(network: nn.Module, weights: WeightsSpec) -> nn.Module:
    path = catalog.package_folder() / weights.file
    if not path.is_file():
        raise CheckpointError(f"weight file {path} is missing; install the package again")
    data = path.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    if digest != weights.sha256:
        raise CheckpointError(
            f"weight file {path} has sha256 {digest[:12]}…, expected {weights.sha256[:12]}…; "
            "install the package again"
        )
    try:
        network.load_state_dict(load(data), strict=True)
    except (SafetensorError, RuntimeError) as error:
        # torch reports one line per tensor; an error message is a single line.
        reason = " ".join(str(error).split())
        raise CheckpointError(f"weight file {path} does not fit the model: {reason}") from error
    return network.eval()


def _load_published(published: PublishedWeights, path: Path) -> nn.Module:
    from tubelet.zoo.checkpoint import open_checkpoint

    try:
        return open_checkpoint(path, **_checkpoint_settings(published)).model
    except CheckpointError as error:
        raise CheckpointError(
            f"{published.id} should be {published.architecture.name}, but {error}; remove the file"
        ) from error


def _checkpoint_settings(published: PublishedWeights) -> dict[str, Any]:
    """Return the architecture and configuration of a published file for `open_checkpoint`."""
    settings: dict[str, Any] = {"architecture": published.architecture.name}
    for field in dataclasses.fields(published.config):
        settings[field.name] = getattr(published.config, field.name)
    return settings


def _suggest_published_id(path: Path) -> None:
    """Raise an error that names the model, if a missing file has the name of a published one."""
    published = catalog.find_published_by_file_name(path.name)
    if published is not None:
        raise CheckpointError(f"no such checkpoint: {path}; --model {published.id} downloads it")
