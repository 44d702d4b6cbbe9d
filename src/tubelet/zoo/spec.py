"""`ModelSpec`: the description of a model that the engine, the command line and the docs use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from tubelet.downloads import RemoteFile
from tubelet.layers.frozen import all_parameters
from tubelet.models.architecture import BaseModel, Contract
from tubelet.types import Temporal
from tubelet.zoo.pip_files import PipFile

__all__ = ["ModelSpec", "WeightsSpec", "count_parameters"]


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsSpec:
    """A weight file and its license.

    Attributes:
        file: File name, in `tubelet/weights`, or in the download cache for a published file.
        sha256: Hash of the file, hexadecimal. For a published file it may be only the leading
            digits, as many as its publisher gives.
        license: SPDX name, or the publisher's own terms of use.
        remote: Where the file is published; None for a file that the package contains.
        pip_file: File with the same weights in another pip package, which is preferred if it is
            installed; None if there is none.
    """

    file: str
    sha256: str
    license: str = "Apache-2.0"
    remote: RemoteFile | None = None
    pip_file: PipFile | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """One entry of the model zoo.

    Attributes:
        id: Name that `--model` accepts.
        summary: One line that helps a user choose between models.
        architecture: Class name of the network.
        contract: How the engine must run the network.
        build: Builds the network with its initial weights, without trained ones.
        weights: Trained weights to load; None if the model has no parameters.
        base: Requirements on the frozen base network of a composite model; None for other models.
        license: SPDX name of the license of the code.
        source: Paper or page that defines the architecture.
    """

    id: str
    summary: str
    architecture: str
    contract: Contract
    build: Callable[[], nn.Module]
    weights: WeightsSpec | None = None
    base: BaseModel | None = None
    license: str = "Apache-2.0"
    source: str = ""

    @property
    def scale(self) -> int:
        """Integer upscaling factor, from the contract."""
        return self.contract.scale

    @property
    def temporal(self) -> Temporal:
        """Frames that the network needs for one output frame, from the contract."""
        return self.contract.temporal


def count_parameters(model: nn.Module) -> int:
    """Count the parameters of a network, including those of its frozen base network."""
    return sum(parameter.numel() for parameter in all_parameters(model))
