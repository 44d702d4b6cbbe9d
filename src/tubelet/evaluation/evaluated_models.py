"""The models of an evaluation: opened, checked and counted before anything runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from tubelet.errors import RequestError
from tubelet.zoo.catalog import list_models
from tubelet.zoo.opening import OpenedModel, open_model
from tubelet.zoo.spec import ModelSpec, count_parameters

__all__ = ["EvaluatedModel", "find_evaluated_models"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluatedModel:
    """A model that is evaluated. Its network is in memory only while it is its turn.

    Attributes:
        name: its id; for a checkpoint the name of the file, with folders before it where two are
            alike.
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

    def load(self) -> nn.Module:
        """Make the network, with its weights."""
        return open_model(self.spec.id if self.checkpoint is None else str(self.checkpoint)).network


def find_evaluated_models(names: Sequence[str], *, scale: int) -> list[EvaluatedModel]:
    """Find the models that are named, each once, and load each once to see that it is whole.

    Args:
        names: ids of the zoo, names that stand for one model per scale ("bicubic"), or paths of
            checkpoints.
        scale: that the protocol asks for.

    Returns:
        In the order of `names`.

    Raises:
        RequestError: a name is unknown, or a model has another scale.
        CheckpointError: a weight file is missing, damaged, or does not fit.
    """
    if not names:
        raise RequestError("no model is named; give --model ID, or several")
    found: dict[str, EvaluatedModel] = {}
    for name in names:
        model = _describe(open_model(name, factor=scale))
        if model.spec.scale != scale:
            fitting = ", ".join(spec.id for spec in list_models() if spec.scale == scale)
            raise RequestError(
                f"{name} enlarges ×{model.spec.scale}, and the protocol asks for ×{scale}; there are {fitting}"
            )
        key = str(model.checkpoint.resolve()) if model.checkpoint else model.name
        found.setdefault(key, model)
    return _with_distinct_names(list(found.values()))


def _describe(opened: OpenedModel) -> EvaluatedModel:
    return EvaluatedModel(
        name=opened.name if opened.path is None else opened.path.stem,
        spec=opened.spec,
        weights_sha256=opened.weights_sha256,
        parameters=count_parameters(opened.network),
        checkpoint=opened.path,
    )


def _with_distinct_names(models: list[EvaluatedModel]) -> list[EvaluatedModel]:
    """Put folders before the names of checkpoints until no two are alike.

    The files a/model.safetensors and b/model.safetensors become a-model and b-model.
    """
    names = [model.name for model in models]
    for depth in range(1, 32):
        twice = {name for name in names if names.count(name) > 1}
        if not twice:
            break
        for index, model in enumerate(models):
            if names[index] in twice and model.checkpoint is not None:
                folders = model.checkpoint.resolve().parent.parts[-depth:]
                names[index] = "-".join(
                    [*(part.strip("/\\:") for part in folders), model.checkpoint.stem]
                )
    return [replace(model, name=name) for model, name in zip(models, names, strict=True)]
