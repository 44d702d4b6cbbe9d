"""Models of an evaluation, which are opened, checked and counted before the evaluation starts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from tubelet.errors import RequestError
from tubelet.zoo.catalog import list_models
from tubelet.zoo.opening import OpenedModel, open_model
from tubelet.zoo.spec import ModelSpec, count_parameters

__all__ = ["EvaluatedModel", "find_evaluated_models"]

_MAX_FOLDERS = 31
"""Upper limit on the number of folders in the name of a checkpoint."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluatedModel:
    """A model to evaluate, whose network is in memory only after `load`.

    Attributes:
        name: Id of the model; for a checkpoint the name of its file, after the names of folders
            if two checkpoints have the same one.
        spec: Description of the model for the engine.
        weights_sha256: Hash of its weight file; None if it has none.
        parameters: Number of trained parameters.
        checkpoint: Weight file that was requested; None for a model of the zoo.
    """

    name: str
    spec: ModelSpec
    weights_sha256: str | None
    parameters: int
    checkpoint: Path | None = None

    def load(self) -> nn.Module:
        """Build the network and load its weights."""
        name = self.spec.id if self.checkpoint is None else str(self.checkpoint)
        return open_model(name).network


def find_evaluated_models(
    names: Sequence[str],
    *,
    scale: int,
) -> list[EvaluatedModel]:
    """Find the requested models, and load each once to check its weights.

    Args:
        names: Ids of the zoo, names that stand for one model per scale ("bicubic"), or paths of
            checkpoints.
        scale: Upscaling factor of the protocol.

    Returns:
        The models in the order of `names`, without duplicates.

    Raises:
        RequestError: A name is unknown, or a model has another scale.
        CheckpointError: A weight file is missing, damaged, or does not fit.
    """
    if not names:
        raise RequestError("no model is named; give --model ID, or several")
    models: dict[str, EvaluatedModel] = {}
    for name in names:
        model = _describe(open_model(name, factor=scale))
        if model.spec.scale != scale:
            fitting = ", ".join(spec.id for spec in list_models() if spec.scale == scale)
            raise RequestError(
                f"{name} enlarges ×{model.spec.scale}, and the protocol asks for ×{scale}; "
                f"there are {fitting}"
            )
        # A model may be requested by two names, or by two paths of one file.
        key = model.name if model.checkpoint is None else str(model.checkpoint.resolve())
        models.setdefault(key, model)
    return _with_distinct_names(list(models.values()))


def _describe(opened: OpenedModel) -> EvaluatedModel:
    return EvaluatedModel(
        name=opened.name if opened.path is None else opened.path.stem,
        spec=opened.spec,
        weights_sha256=opened.weights_sha256,
        parameters=count_parameters(opened.network),
        checkpoint=opened.path,
    )


def _with_distinct_names(models: list[EvaluatedModel]) -> list[EvaluatedModel]:
    """Put folders before the names of checkpoints until all names differ.

    The files a/model.safetensors and b/model.safetensors become a-model and b-model.
    """
    for num_folders in range(1, _MAX_FOLDERS + 1):
        counts = Counter(model.name for model in models)
        if len(counts) == len(models):
            break
        renamed: list[EvaluatedModel] = []
        for model in models:
            if counts[model.name] > 1 and model.checkpoint is not None:
                name = _name_with_folders(model.checkpoint, num_folders)
                model = replace(model, name=name)
            renamed.append(model)
        models = renamed
    return models


def _name_with_folders(checkpoint: Path, num_folders: int) -> str:
    """Join the names of the last folders of a path and its file, without the suffix."""
    folders = checkpoint.resolve().parent.parts[-num_folders:]
    # The first part of a path is its root, "/" or "C:\\".
    names: list[str] = []
    for folder in folders:
        names.append(folder.strip("/\\:"))
    return "-".join([*names, checkpoint.stem])
