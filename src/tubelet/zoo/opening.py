"""`open_model` and `create_model`: load a model by its id, or from a checkpoint file."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from tubelet.errors import RequestError
from tubelet.zoo import catalog
from tubelet.zoo.bases import attach_base
from tubelet.zoo.opened_model import OpenedModel, open_listed, open_without_base
from tubelet.zoo.spec import ModelSpec

__all__ = ["OpenedModel", "create_model", "open_model"]

_DEFAULT = "default"


def open_model(
    name: str,
    *,
    factor: float | None = None,
    adapter: str | Path | None = None,
) -> OpenedModel:
    """Load a model with its weights; a composite model also gets its frozen base network.

    Args:
        name: Id of a listed model, an alias for one model per scale ("default", "bicubic"), or the
            path of a checkpoint.
        factor: Wanted upscaling factor, which selects the model of an alias. Default: the largest.
        adapter: Checkpoint of a composite model, such as adapters, whose base network is `name`, or
            the one that it refers to if `name` is "default".

    Returns:
        The network and its spec. The id in the spec of a checkpoint is the name of its file.

    Raises:
        RequestError: No model has this name; the message suggests similar ones.
        CheckpointError: The file is missing, damaged or of an unknown architecture, or contains
            only a component of other networks; or its base network is missing, or has other
            weights than in training.
        ResourceError: Published weights cannot be downloaded.
    """
    if adapter is not None:
        return _open_over(name, str(adapter))
    opened = open_without_base(name, factor=factor)
    return _with_base(opened)


def _open_over(base: str, adapter: str) -> OpenedModel:
    """Load a composite model over a base network of the caller's choice."""
    opened = open_without_base(adapter, check=_check_composite)
    assert opened.spec.base is not None
    # The default model is what a user gets who names none.
    name = None if base == _DEFAULT else base
    return attach_base(opened, opened.spec.base, name)


def _check_composite(name: str, spec: ModelSpec) -> None:
    if spec.base is None:
        raise RequestError(
            f"{name} has no adapters: it is a whole {spec.architecture}; run it with --model"
        )


def create_model(id: str, *, weights: bool = True) -> nn.Module:
    """Build a listed model.

    Args:
        id: Id of a model, or an alias for one model per scale.
        weights: Load the trained weights, if the model has some; otherwise keep the initial ones.
            Published weights are downloaded on first use, with progress on standard error.

    Returns:
        The network in evaluation mode, float32, on the CPU.

    Raises:
        RequestError: No model has this id.
        CheckpointError: The weight file is missing, damaged, or does not fit.
        ResourceError: Published weights cannot be downloaded.
    """
    spec = catalog.find_model(id)
    if not weights:
        return spec.build().eval()
    return _with_base(open_listed(spec)).network


def _with_base(opened: OpenedModel) -> OpenedModel:
    """Attach the base network of a composite model; return other models unchanged."""
    if opened.spec.base is None:
        return opened
    return attach_base(opened, opened.spec.base)
