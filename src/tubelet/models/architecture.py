"""`Architecture`: how a published network is recognized and configured, and how it is run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from tubelet.models.state_dict import State
from tubelet.types import Precision, Temporal, TemporalKind

__all__ = ["Architecture", "BaseModel", "Contract"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Contract:
    """How a network is run: everything that the engine knows about one.

    Attributes:
        scale: integer factor from lq to sr.
        temporal: what the network is given along time, and which of its methods is called.
        halo_px: how far an output pixel can see within one call, in lq pixels; tiles overlap by it.
        size_multiple: height and width of lq must be multiples of it; the engine pads.
        min_size_px: smallest height and width of lq; the engine pads.
        precisions: numeric formats that keep the result within 0.02 dB.
        streams: a clip network with `restore`, which yields its frames one by one.
        edge_frames: frames at a boundary of a clip whose state a streaming network takes and gives;
            0 if it takes none.
        encodes: a window network with `encode` for each frame and `fuse` for each window.
        warmup_frames: frames that a recurrent network restores before its results count, where it
            begins inside a scene without the state of the frame before; a clip network sees as many
            behind the end, too.

    Raises:
        ValueError: a field does not belong to this temporal kind.
    """

    scale: int
    temporal: Temporal
    halo_px: int = 0
    size_multiple: int = 1
    min_size_px: int = 1
    precisions: tuple[Precision, ...] = ("fp32",)
    streams: bool = False
    edge_frames: int = 0
    encodes: bool = False
    warmup_frames: int = 16

    def __post_init__(self) -> None:
        kind = self.temporal.kind
        if self.streams and kind != "clip":
            raise ValueError(f"streams=True does not fit a {kind!r} model; it is for 'clip' models")
        if self.edge_frames and not self.streams:
            raise ValueError(f"edge_frames={self.edge_frames} is for models with streams=True")
        if self.encodes and kind != "window":
            raise ValueError(
                f"encodes=True does not fit a {kind!r} model; it is for 'window' models"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseModel:
    """The frozen network that a composite one stands on.

    It has a file of its own, and is opened by its id or path.

    Attributes:
        role: what messages call it, such as "image model".
        kind: temporal kind that it must have.
        scale: factor that it must have.
        attach: gives it to the composite network, which freezes it; returns the composite network.
        contract: of both together, from that of the composite network alone and that of the base.
        usual: id of the base of files that name none; "" if such files cannot be run.
        remedy: how a user of Python gives a network its base where the file names none.
    """

    role: str
    kind: TemporalKind
    scale: int
    attach: Callable[[Any, nn.Module], nn.Module]
    contract: Callable[[Contract, Contract], Contract]
    usual: str = ""
    remedy: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """One architecture: everything that the loader of checkpoints asks of its file.

    Attributes:
        name: of the class, as its paper calls it.
        config: frozen dataclass of what can vary.
        build: makes the network from a configuration.
        translate: maps the names of a state dict in any layout in circulation to ours; None where
            the names are of no layout of this architecture. Values may be renamed, split or joined,
            never invented.
        infer: reads the configuration off our names and shapes.
        contract: temporal contract, scale and sizes of a configuration; None for a network that is
            only a part of others and makes no images.
        base: of a configuration of a composite network: the frozen network that it stands on, which
            is no part of its state dict. None for networks that stand alone.
        cleans: whether the network cleans frames before it enlarges them, so that a loss can judge
            the cleaned ones; it keeps `CleaningModel` then.
        derived: endings of names that the constructor derives (means, indexes, masks): they may be
            absent from a file.
        not_exportable: why neither `torch.export` nor `torch.compile(fullgraph=True)` takes the
            network; "" if both do.
        source: paper.
    """

    name: str
    config: type[Any]
    build: Callable[[Any], nn.Module]
    translate: Callable[[State], dict[str, Tensor] | None]
    infer: Callable[[State], Any]
    contract: Callable[[Any], Contract | None]
    base: Callable[[Any], BaseModel] | None = None
    cleans: bool = False
    derived: tuple[str, ...] = field(default=())
    not_exportable: str = ""
    source: str = ""
