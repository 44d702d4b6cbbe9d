"""`ModelSpec`: all that the engine, the command line and the documents know of a model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from tubelet.downloads import RemoteFile
from tubelet.layers.frozen import all_parameters
from tubelet.models.architecture import BaseModel, Contract
from tubelet.types import Temporal

__all__ = ["ModelSpec", "WeightsSpec", "count_parameters"]


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsSpec:
    """A weight file, and what may be done with it.

    Attributes:
        file: its name, in `tubelet/weights` or, where it is published elsewhere, in the cache.
        sha256: of its bytes, hexadecimal; of a file that is published elsewhere as many digits as are published.
        license: SPDX name, or what its publisher says of its use.
        remote: where it is published; None for a file of the package.
    """

    file: str
    sha256: str
    license: str = "Apache-2.0"
    remote: RemoteFile | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """One entry of the zoo.

    Attributes:
        id: the name that `--model` takes.
        summary: one line for people who choose a model.
        architecture: class of the network.
        contract: how the network is run.
        build: makes the network as it is initialized, without trained weights.
        weights: what to load into it; None where there is nothing to load.
        base: the frozen network that this one stands on; None for a network that stands alone.
        license: SPDX name of the code's license.
        source: paper or page that defines the architecture.
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
        """Integer factor from lq to sr, as the contract has it."""
        return self.contract.scale

    @property
    def temporal(self) -> Temporal:
        """What the network is given along time, as the contract has it."""
        return self.contract.temporal


def count_parameters(model: nn.Module) -> int:
    """Count the trained numbers of a network, with those of a frozen base that it stands on."""
    return sum(parameter.numel() for parameter in all_parameters(model))
