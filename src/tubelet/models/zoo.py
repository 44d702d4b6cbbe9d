"""The zoo: every model that Tubelet knows, listed by hand."""

from __future__ import annotations

import difflib
import hashlib
import json
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load
from torch import nn

from tubelet.errors import CheckpointError, RequestError
from tubelet.models import fast
from tubelet.models.architecture import Architecture
from tubelet.models.baselines import BASELINES
from tubelet.models.checkpoint import open_checkpoint
from tubelet.models.spec import ModelSpec, WeightsSpec

__all__ = ["checkpoint_spec", "create_model", "find_model", "is_checkpoint", "list_models"]

_WEIGHTS = Path(__file__).parents[1] / "weights"


def _spec(
    id: str, architecture: Architecture, config: Any, *, summary: str, weights: WeightsSpec | None = None
) -> ModelSpec:
    """Make the entry of a configured architecture; CheckpointError where it makes no pictures."""
    contract = architecture.contract(config)
    if contract is None:
        raise CheckpointError(f"{id} is {architecture.name}, a part of other networks: it makes no pictures by itself")
    return ModelSpec(
        id=id,
        summary=summary,
        architecture=architecture.name,
        scale=contract.scale,
        temporal=contract.temporal,
        build=partial(architecture.build, config),
        weights=weights,
        halo_px=contract.halo_px,
        size_multiple=contract.size_multiple,
        min_size_px=contract.min_size_px,
        precisions=contract.precisions,
        source=architecture.source,
    )


def _embedded() -> list[ModelSpec]:
    """List the models whose weights come with the package, as their manifest describes them."""
    entries = json.loads((_WEIGHTS / "manifest.json").read_text(encoding="utf-8"))
    return [
        _spec(
            entry["id"],
            fast.ARCHITECTURE,
            fast.FastConfig(**entry["config"]),
            summary=entry["summary"],
            weights=WeightsSpec(file=f"{entry['id']}.safetensors", sha256=entry["sha256"]),
        )
        for entry in entries
    ]


_MODELS: tuple[ModelSpec, ...] = (*_embedded(), *BASELINES)

_BY_SCALE: dict[str, dict[int, str]] = {
    "default": {2: "fast-x2-real", 4: "fast-x4-real"},
    "bicubic": {2: "bicubic-x2", 3: "bicubic-x3", 4: "bicubic-x4"},
    "lanczos": {2: "lanczos-x2", 3: "lanczos-x3", 4: "lanczos-x4"},
}
"""Names that stand for one model per native scale."""


def list_models() -> list[ModelSpec]:
    """List the models of the zoo, in the order in which they are shown."""
    return list(_MODELS)


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
    known = [*_BY_SCALE, *(spec.id for spec in _MODELS)]
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(known)}"
    raise RequestError(f"no model is called {name!r}; {hint}")


def is_checkpoint(name: str) -> bool:
    """Tell a path of a weight file from the id of a model."""
    known = name in _BY_SCALE or any(spec.id == name for spec in _MODELS)
    return not known and (name.endswith((".safetensors", ".pth", ".pt", ".ckpt")) or Path(name).is_file())


def checkpoint_spec(path: str) -> tuple[ModelSpec, nn.Module]:
    """Load a checkpoint and describe it as the zoo describes its models.

    Args:
        path: of a weight file that `load_model` takes.

    Returns:
        the entry, whose id is the name of the file, and the network.

    Raises:
        CheckpointError: see `load_model`.
    """
    opened = open_checkpoint(path)
    return _spec(Path(path).name, opened.architecture, opened.config, summary=f"checkpoint {path}"), opened.model


def create_model(id: str, *, weights: bool = True) -> nn.Module:
    """Build a model of the zoo.

    Args:
        id: a model's id, or a name that `find_model` resolves.
        weights: load the trained weights, where the model has some; otherwise it is as initialised.

    Returns:
        The network in evaluation mode, float32, on the CPU.

    Raises:
        RequestError: no model has this id.
        CheckpointError: the weight file is missing, damaged, or does not fit.
    """
    spec = find_model(id)
    model = spec.build()
    if weights and spec.weights is not None:
        _load_weights(model, spec.weights)
    return model.eval()


def _load_weights(model: nn.Module, weights: WeightsSpec) -> None:
    path = _WEIGHTS / weights.file
    if not path.is_file():
        raise CheckpointError(f"weight file {path} is missing; install the package again")
    data = path.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    if digest != weights.sha256:
        raise CheckpointError(
            f"weight file {path} has sha256 {digest[:12]}…, expected {weights.sha256[:12]}…; install the package again"
        )
    try:
        model.load_state_dict(load(data), strict=True)
    except (SafetensorError, RuntimeError) as error:
        raise CheckpointError(f"weight file {path} does not fit the model: {' '.join(str(error).split())}") from error
