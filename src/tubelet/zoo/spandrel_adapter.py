"""Image networks that Tubelet does not have, through spandrel where it is installed (the extra `spandrel`).

    lq (B, T, 3, H, W), image by image → the network as spandrel builds and calls it → sr (B, T, 3, sH, sW)

What is handed over are tensors that were read as data alone, so nothing in a file is executed here either.

Source: https://github.com/chaiNNer-org/spandrel (MIT), which recognizes networks by the names of their tensors.
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tubelet.errors import CheckpointError
from tubelet.models.architecture import Architecture, Contract
from tubelet.models.state_dict import State
from tubelet.types import Temporal

__all__ = ["SpandrelConfig", "SpandrelModel", "has_spandrel", "load_by_spandrel"]

_MAX_BLOCKS = 10_000  # spandrel builds as many blocks as the names count, whatever they hold
_HALO_PX = 32
"""Overlap of tiles. spandrel does not know how far its networks see; most users of it let tiles overlap by as much."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpandrelConfig:
    """What spandrel says of a network; nothing here can be chosen."""

    spandrel: str
    """Version of spandrel."""
    tags: tuple[str, ...]
    """Variant, as spandrel calls it."""


class SpandrelModel(nn.Module):
    """A network of spandrel's, called image by image.

    Args:
        descriptor: spandrel's `ImageModelDescriptor`, of one color or of three.
    """

    def __init__(self, descriptor: Any) -> None:
        super().__init__()
        self.network: nn.Module = descriptor.model
        self._descriptor = descriptor

    def forward(self, lq: Tensor) -> Tensor:
        """Enlarge `lq` (B, T, 3, H, W) to (B, T, 3, sH, sW), in [0, 1]; no gradients are recorded."""
        colors = self._descriptor.input_channels  # of one color: each by itself
        images = lq.reshape(-1, 1, colors, *lq.shape[-2:])
        sr: Tensor = torch.cat([self._descriptor(image) for image in images])
        return sr.reshape(*lq.shape[:3], *sr.shape[-2:])


def _largest_number(state: State) -> int:
    """Return the largest number in a name."""
    return max(
        (int(part) for name in state for part in name.split(".") if part.isdecimal()), default=0
    )


def has_spandrel() -> bool:
    """Tell whether spandrel is installed."""
    return importlib.util.find_spec("spandrel") is not None


def load_by_spandrel(
    state: State, where: str
) -> tuple[SpandrelModel, Architecture, SpandrelConfig] | None:
    """Offer a state dict to spandrel.

    Args:
        state: plain names and tensors.
        where: what errors call the file.

    Returns:
        the network, in evaluation mode and float32; what it is; what spandrel says of it. None where spandrel is not
        installed or does not know it.

    Raises:
        CheckpointError: spandrel knows the names and cannot load them, or the network is not from image to image.
    """
    if not has_spandrel() or _largest_number(state) > _MAX_BLOCKS:
        return None
    library: Any = importlib.import_module("spandrel")
    try:
        descriptor = library.ModelLoader(device="cpu").load_from_state_dict(dict(state))
    except library.UnsupportedModelError:
        return None
    except (
        RuntimeError,
        LookupError,
        ValueError,
        TypeError,
        AssertionError,
        AttributeError,
        ArithmeticError,
    ) as error:
        reason = " ".join(str(error).split())[:160]
        raise CheckpointError(
            f"{where} has names that spandrel knows, and spandrel cannot load it: {reason}"
        ) from error
    name, colors = (
        descriptor.architecture.name,
        (descriptor.input_channels, descriptor.output_channels),
    )
    if not isinstance(descriptor, library.ImageModelDescriptor) or colors not in ((1, 1), (3, 3)):
        raise CheckpointError(
            f"{where} is {name}, by spandrel: it does not make an image of an image alone"
        )
    model = SpandrelModel(descriptor.float()).eval()
    config = SpandrelConfig(spandrel=library.__version__, tags=tuple(descriptor.tags))
    return model, _architecture(name, model, config, _contract(descriptor)), config


def _contract(descriptor: Any) -> Contract:
    size = descriptor.size_requirements
    return Contract(
        scale=descriptor.scale,
        temporal=Temporal("frame"),
        halo_px=_HALO_PX,
        size_multiple=size.multiple_of,
        min_size_px=max(1, size.minimum),
    )


def _architecture(
    name: str, model: SpandrelModel, config: SpandrelConfig, contract: Contract
) -> Architecture:
    """Describe one network that was loaded; it can be copied, and is made of no other file."""

    def build(_: Any) -> nn.Module:
        return copy.deepcopy(model)

    def translate(_: State) -> dict[str, Tensor] | None:
        return None

    return Architecture(
        name=name,
        config=SpandrelConfig,
        build=build,
        translate=translate,
        infer=lambda _: config,
        contract=lambda _: contract,
        source="https://github.com/chaiNNer-org/spandrel",
    )
