"""The one door to a model: `open_model` takes the id of one, or the path of a checkpoint."""

from __future__ import annotations

from torch import nn

from tubelet.zoo import catalog
from tubelet.zoo.bases import attach_base
from tubelet.zoo.opened_model import OpenedModel, open_listed, open_without_base

__all__ = ["OpenedModel", "create_model", "open_model"]


def open_model(name: str, *, factor: float | None = None) -> OpenedModel:
    """Open a model with its weights, and with the base that it stands on if it is a composite one.

    Args:
        name: id of a listed model, name that stands for one model per scale ("default", "bicubic"),
            or path of a checkpoint.
        factor: wanted enlargement, which decides between the models that share a name; default: the
            largest.

    Returns:
        The network, and how to run it. The spec of a checkpoint has the name of the file as its id.

    Raises:
        RequestError: no model has this name; the line suggests the nearest.
        CheckpointError: the file is missing, damaged, of no known architecture, or a part that
            makes no images; or its base is missing, or has other weights than those that it was
            trained over.
        ResourceError: published weights cannot be fetched.
    """
    return _complete(open_without_base(name, factor=factor))


def create_model(id: str, *, weights: bool = True) -> nn.Module:
    """Build a listed model.

    Args:
        id: a model's id, or a name that stands for one model per scale.
        weights: load the trained weights, where the model has some; otherwise it is as initialized.
            Weights that are published elsewhere are fetched on first use, with a line or a bar on
            the standard error.

    Returns:
        The network in evaluation mode, float32, on the CPU.

    Raises:
        RequestError: no model has this id.
        CheckpointError: the weight file is missing, damaged, or does not fit.
        ResourceError: published weights cannot be fetched.
    """
    spec = catalog.find_model(id)
    return _complete(open_listed(spec)).network if weights else spec.build().eval()


def _complete(opened: OpenedModel) -> OpenedModel:
    return opened if opened.spec.base is None else attach_base(opened, opened.spec.base)
