"""`ModelSpec`: all that the engine, the command line and the documents know of a model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from tubelet.downloads import RemoteFile
from tubelet.types import Precision, Temporal

__all__ = ["ModelSpec", "WeightsSpec", "count_parameters"]


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsSpec:
    """A weight file, and what may be done with it.

    Attributes:
        file: its name, in `tubelet/weights` or, where it is published elsewhere, in the cache.
        sha256: of its bytes, hexadecimal; of a file that is published elsewhere as many digits as are published.
        licence: SPDX name, or what its publisher says of its use.
        remote: where it is published; None for a file of the package.
    """

    file: str
    sha256: str
    licence: str = "Apache-2.0"
    remote: RemoteFile | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """One entry of the zoo.

    Attributes:
        id: the name that `--model` takes.
        summary: one line for people who choose a model.
        architecture: class of the network.
        scale: integer factor from lq to sr.
        temporal: what the engine gives the network along time.
        build: makes the network as it is initialised, without trained weights.
        weights: what to load into it; None where there is nothing to load.
        halo_px: how far, in lq pixels, an output pixel can see within one call; tiles overlap by it.
        size_multiple: height and width of lq must be multiples of it; the engine pads.
        min_size_px: smallest height and width of lq; the engine pads.
        precisions: numeric formats that keep the result within 0.02 dB.
        licence: SPDX name of the code's licence.
        source: paper or page that defines the architecture.
    """

    id: str
    summary: str
    architecture: str
    scale: int
    temporal: Temporal
    build: Callable[[], nn.Module]
    weights: WeightsSpec | None = None
    halo_px: int = 0
    size_multiple: int = 1
    min_size_px: int = 1
    precisions: tuple[Precision, ...] = ("fp32",)
    licence: str = "Apache-2.0"
    source: str = ""


def count_parameters(model: nn.Module) -> int:
    """Count the numbers that training can change."""
    return sum(parameter.numel() for parameter in model.parameters())
