"""The models of an evaluation: found, checked and counted before anything runs."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from tubelet.errors import RequestError
from tubelet.zoo.catalog import checkpoint_spec, create_model, find_model, is_checkpoint, list_models
from tubelet.zoo.spec import ModelSpec, count_parameters

__all__ = ["Entrant", "find_entrants"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Entrant:
    """A model that takes part.

    Attributes:
        name: its id; for a checkpoint the name of the file, with folders before it where two are alike.
        spec: how to run it.
        weights_sha256: of its weight file; None where it has none.
        parameters: how many numbers were trained.
        checkpoint: the weight file that was named, or None for a model of the zoo.
    """

    name: str
    spec: ModelSpec
    weights_sha256: str | None
    parameters: int
    checkpoint: Path | None = None

    def build(self) -> nn.Module:
        """Make the network, with its weights."""
        if self.checkpoint is None:
            return create_model(self.spec.id)
        return checkpoint_spec(str(self.checkpoint))[1]


def find_entrants(names: Sequence[str], *, scale: int) -> list[Entrant]:
    """Find the models that are named, each once, and load each once to see that it is whole.

    Args:
        names: ids of the zoo, names that stand for one model per scale ("bicubic"), or paths of checkpoints.
        scale: that the protocol asks for.

    Returns:
        In the order of `names`.

    Raises:
        RequestError: a name is unknown, or a model has another scale.
        CheckpointError: a weight file is missing, damaged, or does not fit.
    """
    if not names:
        raise RequestError("no model is named; give --model ID, or several")
    found: dict[str, Entrant] = {}
    for name in names:
        entrant = _from_checkpoint(name) if is_checkpoint(name) else _from_zoo(name, scale)
        if entrant.spec.scale != scale:
            fitting = ", ".join(spec.id for spec in list_models() if spec.scale == scale)
            raise RequestError(
                f"{name} enlarges ×{entrant.spec.scale}, and the protocol asks for ×{scale}; there are {fitting}"
            )
        key = str(entrant.checkpoint.resolve()) if entrant.checkpoint else entrant.name
        found.setdefault(key, entrant)
    return _with_distinct_names(list(found.values()))


def _from_zoo(name: str, scale: int) -> Entrant:
    spec = find_model(name, factor=scale)
    digest = spec.weights.sha256 if spec.weights else None
    return Entrant(name=spec.id, spec=spec, weights_sha256=digest, parameters=count_parameters(create_model(spec.id)))


def _from_checkpoint(name: str) -> Entrant:
    path = Path(name)
    spec, model = checkpoint_spec(name)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Entrant(
        name=path.stem, spec=spec, weights_sha256=digest, parameters=count_parameters(model), checkpoint=path
    )


def _with_distinct_names(entrants: list[Entrant]) -> list[Entrant]:
    """Put folders before the names of checkpoints until no two are alike: a/model and b/model are a-model, b-model."""
    names = [entrant.name for entrant in entrants]
    for depth in range(1, 32):
        twice = {name for name in names if names.count(name) > 1}
        if not twice:
            break
        for place, entrant in enumerate(entrants):
            if names[place] in twice and entrant.checkpoint is not None:
                folders = entrant.checkpoint.resolve().parent.parts[-depth:]
                names[place] = "-".join([*(part.strip("/\\:") for part in folders), entrant.checkpoint.stem])
    return [replace(entrant, name=name) for entrant, name in zip(entrants, names, strict=True)]
