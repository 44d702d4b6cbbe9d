"""The model zoo: an explicit list of all models, and lookups by id, file name and hash.

The package contains the weights of some models. Those of other models are published elsewhere:
they are read from an installed pip package, or downloaded on first use and cached.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from tubelet.downloads import cache_folder, fetch
from tubelet.errors import CheckpointError, RequestError, ResourceError, suggest
from tubelet.models import fast
from tubelet.models.architecture import Architecture
from tubelet.progress import OnProgress
from tubelet.zoo.baselines import BASELINES
from tubelet.zoo.pip_files import INSTALL_COMMAND, find_installed
from tubelet.zoo.spec import ModelSpec, WeightsSpec, count_parameters

if TYPE_CHECKING:
    from tubelet.zoo.publishers import PublishedWeights

__all__ = [
    "MODELS",
    "PACKAGE_FOLDER",
    "find_model",
    "find_published_by_file_name",
    "find_published_by_hash",
    "hash_file",
    "is_checkpoint",
    "list_models",
    "make_spec",
    "model_size",
    "model_weights",
    "package_folder",
    "published_by_id",
    "published_file",
    "published_ids",
    "published_weights",
    "weights_folder",
]

PACKAGE_FOLDER = Path(__file__).parents[1] / "weights"
"""Folder of the weights in the package."""


def make_spec(
    id: str,
    architecture: Architecture,
    config: Any,
    *,
    summary: str,
    weights: WeightsSpec | None = None,
) -> ModelSpec:
    """Build the spec of an architecture with a given configuration.

    Raises:
        CheckpointError: The architecture is only a component of others and outputs no images.
    """
    contract = architecture.contract(config)
    if contract is None:
        raise CheckpointError(
            f"{id} is {architecture.name}, a component of other networks: it cannot upscale alone"
        )
    # Only a composite network needs a frozen base network.
    base = None
    if architecture.base is not None:
        base = architecture.base(config)
    return ModelSpec(
        id=id,
        summary=summary,
        architecture=architecture.name,
        contract=contract,
        build=_builder(architecture, config),
        weights=weights,
        base=base,
        source=architecture.source,
    )


@cache
def _builder(architecture: Architecture, config: Any) -> Callable[[], nn.Module]:
    """Return the same function object for equal configurations: `_size` caches by it."""
    return partial(architecture.build, config)


def _package_models() -> list[ModelSpec]:
    """List the models whose weights the package contains, as its manifest describes them."""
    manifest = json.loads((PACKAGE_FOLDER / "manifest.json").read_text(encoding="utf-8"))
    models: list[ModelSpec] = []
    for entry in manifest:
        id = entry["id"]
        spec = make_spec(
            id,
            fast.ARCHITECTURE,
            fast.FastConfig(**entry["config"]),
            summary=entry["summary"],
            weights=WeightsSpec(file=f"{id}.safetensors", sha256=entry["sha256"]),
        )
        models.append(spec)
    return models


def _published_spec(published: PublishedWeights) -> ModelSpec:
    file = published.file
    return make_spec(
        published.id,
        published.architecture,
        published.config,
        summary=published.summary,
        weights=WeightsSpec(
            file=file.name,
            sha256=file.sha256,
            license=published.license,
            remote=file,
            pip_file=published.pip_file,
        ),
    )


MODELS: tuple[ModelSpec, ...] = (*_package_models(), *BASELINES)
"""Models of the package, in the order in which `tubelet models` shows them."""

_ALIASES: dict[str, dict[int, str]] = {
    "default": {2: "fast-x2-real", 4: "fast-x4-real"},
    "bicubic": {2: "bicubic-x2", 3: "bicubic-x3", 4: "bicubic-x4"},
    "lanczos": {2: "lanczos-x2", 3: "lanczos-x3", 4: "lanczos-x4"},
    "realesr-animevideov3": {
        2: "realesr-animevideov3-x2",
        3: "realesr-animevideov3-x3",
        4: "realesr-animevideov3-x4",
    },
}
"""Alias → scale → id of the model."""


@cache
def published_by_id() -> dict[str, PublishedWeights]:
    """Return all published weights by their ids."""
    # This import loads every architecture, which models of the package do not need.
    from tubelet.zoo.weights_index import PUBLISHED_WEIGHTS

    return {published.id: published for published in PUBLISHED_WEIGHTS}


def _published_models() -> list[ModelSpec]:
    models: list[ModelSpec] = []
    for published in published_by_id().values():
        # Components of other networks, such as SpyNet, have no contract: they are not models.
        if published.architecture.contract(published.config) is not None:
            models.append(_published_spec(published))
    return models


def list_models(*, published: bool = False) -> list[ModelSpec]:
    """List the models of the zoo, in the order in which `tubelet models` shows them.

    Args:
        published: Include the models whose weights are downloaded on first use.
    """
    models = list(MODELS)
    if published:
        models += _published_models()
    return models


def find_model(name: str, *, factor: float | None = None) -> ModelSpec:
    """Find a model by its id, or by an alias for one model per scale ("default", "bicubic").

    Args:
        name: Id or alias, as `--model` accepts it.
        factor: Wanted upscaling factor. Of an alias's models, the smallest scale that reaches it is
            chosen, or the largest if none does. Default: the largest.

    Returns:
        The spec of the model.

    Raises:
        RequestError: No model has this name; the message suggests similar ones.
    """
    if name in _ALIASES:
        name = _resolve_alias(name, factor)
    package_models = _by_id(MODELS)
    if name in package_models:
        return package_models[name]
    published_models = _by_id(_published_models())
    if name in published_models:
        return published_models[name]
    if name in published_by_id():
        raise RequestError(f"{name} is a component of other networks: it cannot upscale alone")

    # Suggest similar names from all models, but list only the short part of them.
    package_names = [*_ALIASES, *package_models]
    names = [*package_names, *published_models]
    listing = (
        f"{', '.join(package_names)}, and {len(published_models)} with downloaded weights: "
        "`tubelet models` lists them"
    )
    suggestion = suggest(name, names, count=3, listing=listing)
    raise RequestError(f"no model is called {name!r}; {suggestion}")


def _by_id(specs: Iterable[ModelSpec]) -> dict[str, ModelSpec]:
    return {spec.id: spec for spec in specs}


def _resolve_alias(alias: str, factor: float | None) -> str:
    """Return the id of the alias's smallest model that reaches the factor, or of its largest."""
    ids = _ALIASES[alias]
    largest = max(ids)
    if factor is None:
        return ids[largest]
    # A factor computed from two image sizes may exceed the scale by a rounding error.
    sufficient = [scale for scale in ids if scale >= factor - 1e-6]
    return ids[min(sufficient, default=largest)]


def is_checkpoint(name: str) -> bool:
    """Return whether a name is the path of a weight file, and not the id of a model."""
    if name in (*_ALIASES, *_by_id(MODELS)):
        return False
    has_suffix = name.endswith((".safetensors", ".pth", ".pt", ".ckpt", ".param", ".bin"))
    if not has_suffix and not Path(name).is_file():
        return False
    # The search of published models loads every architecture, so it comes last.
    return name not in published_by_id()


def package_folder() -> Path:
    """Return the folder of the weights in the package."""
    return PACKAGE_FOLDER


def weights_folder() -> Path:
    """Return the folder of downloaded weights; files that a user copies there are used, too."""
    return cache_folder() / "models"


def model_weights(id: str, *, on_progress: OnProgress | None = None) -> Path:
    """Return the path of published weights; download them if they are not on this machine.

    Args:
        id: Id of published weights, of a model or of a component of models, or an alias.
        on_progress: See `tubelet.downloads.fetch`.

    Raises:
        RequestError: No published weights have this id.
        ResourceError: The weights cannot be downloaded, or do not have the published hash.
    """
    if id in _ALIASES:
        id = _resolve_alias(id, None)
    published = published_by_id().get(id)
    if published is None:
        # For an unknown id, this raises an error with suggestions.
        spec = find_model(id)
        raise RequestError(
            f"the weights of {spec.id} are in the package; there is nothing to download"
        )
    path, _ = published_file(published, on_progress=on_progress)
    return path


def published_file(
    published: PublishedWeights, *, on_progress: OnProgress | None = None
) -> tuple[Path, str]:
    """Find published weights in an installed pip package or the cache, or download them.

    Returns:
        Path of the file, and its hash as published.

    Raises:
        ResourceError: The weights cannot be downloaded, or do not have the published hash.
    """
    file = published.file
    pip_file = published.pip_file
    if pip_file is None:
        return fetch(file, weights_folder(), on_progress=on_progress), file.sha256
    installed = find_installed(pip_file)
    if installed is None:
        try:
            return fetch(file, weights_folder(), on_progress=on_progress), file.sha256
        except ResourceError as error:
            raise ResourceError(
                f"{error}; or install {pip_file.package}, which has the weights: {INSTALL_COMMAND}"
            ) from error
    digest = hash_file(installed)
    if digest != pip_file.sha256:
        raise ResourceError(
            f"{installed} has sha256 {digest[:12]}…, expected {pip_file.sha256[:12]}…; run `pip "
            f"install --force-reinstall --no-deps {pip_file.package}=={pip_file.version}`"
        )
    return installed, digest


def model_size(spec: ModelSpec) -> int:
    """Count the parameters of a model without allocating them."""
    return _size(spec.build)


@cache
def _size(build: Callable[[], nn.Module]) -> int:
    with torch.device("meta"):
        return count_parameters(build())


def published_weights(id: str) -> PublishedWeights:
    """Return the published weights with this id.

    Raises:
        KeyError: No published weights have this id.
    """
    return published_by_id()[id]


def find_published_by_file_name(file_name: str) -> PublishedWeights | None:
    """Find published weights by their file name, ignoring case; None if no file has this name."""
    lowered = file_name.lower()
    for published in published_by_id().values():
        if published.file.name.lower() == lowered:
            return published
    return None


def find_published_by_hash(sha256: str) -> list[PublishedWeights]:
    """List the published weights with this hash; files without a published hash never match."""
    matches: list[PublishedWeights] = []
    for published in published_by_id().values():
        # A publisher may give only the leading digits.
        published_digits = published.file.sha256
        if published_digits and sha256.startswith(published_digits):
            matches.append(published)
    return matches


def published_ids(path: Path) -> list[str]:
    """List the ids under which a file is published, by its hash."""
    return [published.id for published in find_published_by_hash(hash_file(path))]


def hash_file(path: Path) -> str:
    """Compute the sha256 of a file, hexadecimal."""
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
