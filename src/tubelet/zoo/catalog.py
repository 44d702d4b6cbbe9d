"""The zoo: every model that Tubelet knows, listed by hand.

The weights of some come with the package; those of others are published elsewhere, fetched on first use, and kept.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from tubelet.downloads import cache_folder, fetch
from tubelet.errors import CheckpointError, RequestError, suggest
from tubelet.models import fast
from tubelet.models.architecture import Architecture
from tubelet.progress import OnProgress
from tubelet.zoo.baselines import BASELINES
from tubelet.zoo.spec import ModelSpec, WeightsSpec, count_parameters

if TYPE_CHECKING:
    from tubelet.zoo.publishers import PublishedWeights

__all__ = [
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
    "published_ids",
    "published_weights",
    "weights_folder",
]

_WEIGHTS = Path(__file__).parents[1] / "weights"


def make_spec(
    id: str,
    architecture: Architecture,
    config: Any,
    *,
    summary: str,
    weights: WeightsSpec | None = None,
) -> ModelSpec:
    """Make the entry of a configured architecture; CheckpointError where it makes no images."""
    contract = architecture.contract(config)
    if contract is None:
        raise CheckpointError(
            f"{id} is {architecture.name}, a part of other networks: it makes no images by itself"
        )
    return ModelSpec(
        id=id,
        summary=summary,
        architecture=architecture.name,
        contract=contract,
        build=_builder(architecture, config),
        weights=weights,
        base=architecture.base(config) if architecture.base else None,
        source=architecture.source,
    )


@cache
def _builder(architecture: Architecture, config: Any) -> Callable[[], nn.Module]:
    """Make one function for all models of one shape, so that its size is counted once."""
    return partial(architecture.build, config)


def _embedded() -> list[ModelSpec]:
    """List the models whose weights come with the package, as their manifest describes them."""
    entries = json.loads((_WEIGHTS / "manifest.json").read_text(encoding="utf-8"))
    return [
        make_spec(
            entry["id"],
            fast.ARCHITECTURE,
            fast.FastConfig(**entry["config"]),
            summary=entry["summary"],
            weights=WeightsSpec(file=f"{entry['id']}.safetensors", sha256=entry["sha256"]),
        )
        for entry in entries
    ]


def _published(known: PublishedWeights) -> ModelSpec:
    return make_spec(
        known.id,
        known.architecture,
        known.config,
        summary=known.summary,
        weights=WeightsSpec(
            file=known.file.name, sha256=known.file.sha256, license=known.license, remote=known.file
        ),
    )


_MODELS: tuple[ModelSpec, ...] = (*_embedded(), *BASELINES)
_BY_SCALE: dict[str, dict[int, str]] = {
    "default": {2: "fast-x2-real", 4: "fast-x4-real"},
    "bicubic": {2: "bicubic-x2", 3: "bicubic-x3", 4: "bicubic-x4"},
    "lanczos": {2: "lanczos-x2", 3: "lanczos-x3", 4: "lanczos-x4"},
}
"""Names that stand for one model per native scale."""


@cache
def _published_by_id() -> dict[str, PublishedWeights]:
    """Return the published files by id; read when they are asked for, since that loads every architecture."""
    from tubelet.zoo.weights_index import PUBLISHED_WEIGHTS

    return {known.id: known for known in PUBLISHED_WEIGHTS}


def _published_models() -> list[ModelSpec]:
    return [
        _published(known)
        for known in _published_by_id().values()
        if known.architecture.contract(known.config) is not None
    ]


def list_models(*, published: bool = False) -> list[ModelSpec]:
    """List the models of the zoo, in the order in which they are shown.

    Args:
        published: also list those whose weights are fetched on first use.
    """
    return [*_MODELS, *(_published_models() if published else ())]


def find_model(name: str, *, factor: float | None = None) -> ModelSpec:
    """Find a model by its id, or by a name that stands for one model per scale ("default", "bicubic").

    Args:
        name: what `--model` was given.
        factor: wanted enlargement; of the models that share a name, the smallest that reaches it is taken, or
            the largest if none does. Default: the largest.

    Returns:
        The model's entry.

    Raises:
        RequestError: no model has this name; the line suggests the nearest.
    """
    if name in _BY_SCALE:
        ids = _BY_SCALE[name]
        enough = [scale for scale in ids if factor is not None and scale >= factor - 1e-6]
        name = ids[min(enough, default=max(ids))]
    for spec in _MODELS:
        if spec.id == name:
            return spec
    fetched = _published_models()
    for spec in fetched:
        if spec.id == name:
            return spec
    if name in _published_by_id():
        raise RequestError(f"{name} is a part of other networks: it makes no images by itself")
    here = [*_BY_SCALE, *(spec.id for spec in _MODELS)]
    known = [*here, *(spec.id for spec in fetched)]
    listing = f"{', '.join(here)}, and {len(fetched)} that are fetched: `tubelet models` lists them"
    raise RequestError(
        f"no model is called {name!r}; {suggest(name, known, count=3, listing=listing)}"
    )


def is_checkpoint(name: str) -> bool:
    """Tell a path of a weight file from the id of a model."""
    if name in _BY_SCALE or any(spec.id == name for spec in _MODELS):
        return False
    is_file = name.endswith((".safetensors", ".pth", ".pt", ".ckpt")) or Path(name).is_file()
    return is_file and name not in _published_by_id()


def package_folder() -> Path:
    """Return the folder of the weights that come with the package."""
    return _WEIGHTS


def weights_folder() -> Path:
    """Return the folder of fetched weights; a file that is carried there by hand counts as fetched."""
    return cache_folder() / "models"


def model_weights(id: str, *, on_progress: OnProgress | None = None) -> Path:
    """Return the path of published weights, fetching them if they are not here.

    Args:
        id: of a model whose weights are published, or of a part of models.
        on_progress: see `tubelet.downloads.fetch`.

    Raises:
        RequestError: no published weights have this name.
        ResourceError: they cannot be fetched, or are not what was published.
    """
    known = _published_by_id().get(id)
    if known is None:
        spec = find_model(id)  # which says what is near
        raise RequestError(
            f"the weights of {spec.id} are in the package; there is nothing to fetch"
        )
    return fetch(known.file, weights_folder(), on_progress=on_progress)


def model_size(spec: ModelSpec) -> int:
    """Count the trained numbers of a model without making them."""
    return _size(spec.build)


@cache
def _size(build: Callable[[], nn.Module]) -> int:
    with torch.device("meta"):
        return count_parameters(build())


def published_weights(id: str) -> PublishedWeights:
    """Return the published file of a listed model, or of a part of models; KeyError where there is none."""
    return _published_by_id()[id]


def find_published_by_file_name(file_name: str) -> PublishedWeights | None:
    """Return what is published under a file name, in large or small letters; None for an unknown one."""
    small = file_name.lower()
    return next(
        (known for known in _published_by_id().values() if known.file.name.lower() == small), None
    )


def find_published_by_hash(sha256: str) -> list[PublishedWeights]:
    """List the published files with this hash, as far as hashes are published."""
    hashed = [known for known in _published_by_id().values() if known.file.sha256]
    return [known for known in hashed if sha256.startswith(known.file.sha256)]


def published_ids(path: Path) -> list[str]:
    """List the ids under which a file is published, by its hash."""
    return [known.id for known in find_published_by_hash(hash_file(path))]


def hash_file(path: Path) -> str:
    """Compute the sha256 of a file, hexadecimal."""
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
