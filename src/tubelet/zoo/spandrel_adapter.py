"""Run image networks that Tubelet does not have with spandrel, the optional extra `spandrel`.

    lq (B, T, 3, H, W) → image by image → spandrel's network → sr (B, T, 3, sH, sW)

spandrel receives tensors that were read as data only, so code in a file is not executed here
either.

Source: https://github.com/chaiNNer-org/spandrel (MIT), which recognizes networks by their tensor
names.
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

_MAX_BLOCKS = 10_000
"""Largest index in a tensor name. spandrel builds as many blocks as the names count, even if a
damaged or hostile file has no tensors for them."""

_HALO_PX = 32
"""Overlap of tiles, lq pixels. spandrel does not know the receptive fields of its networks; this is
the usual overlap in programs that use it."""

_LOAD_ERRORS = (
    RuntimeError,
    LookupError,
    ValueError,
    TypeError,
    AssertionError,
    AttributeError,
    ArithmeticError,
)
"""Exceptions that spandrel raises on state dicts with missing or odd tensors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpandrelConfig:
    """spandrel's description of a network; nothing in it can be changed."""

    spandrel: str
    """Version of spandrel."""
    tags: tuple[str, ...]
    """Variant of the network, in spandrel's terms."""


class SpandrelModel(nn.Module):
    """A network of spandrel, applied image by image.

    Args:
        descriptor: spandrel's `ImageModelDescriptor` of a network with one or three channels.
    """

    def __init__(self, descriptor: Any) -> None:
        super().__init__()
        self.network: nn.Module = descriptor.model
        self._descriptor = descriptor

    def forward(self, lq: Tensor) -> Tensor:
        """Upscale `lq` (B, T, 3, H, W) to (B, T, 3, sH, sW), in [0, 1]; records no gradients."""
        # A grayscale network restores each color channel as an image.
        channels = self._descriptor.input_channels
        images = lq.reshape(-1, 1, channels, *lq.shape[-2:])
        sr: Tensor = torch.cat([self._descriptor(image) for image in images])
        return sr.reshape(*lq.shape[:3], *sr.shape[-2:])


def has_spandrel() -> bool:
    """Return whether spandrel is installed."""
    return importlib.util.find_spec("spandrel") is not None


def load_by_spandrel(
    state: State, source: str
) -> tuple[SpandrelModel, Architecture, SpandrelConfig] | None:
    """Load a state dict with spandrel.

    Args:
        state: Tensors by name, without wrappers and prefixes.
        source: Name of the file for error messages.

    Returns:
        The network in evaluation mode and float32, its architecture, and spandrel's description of
        it. None if spandrel is not installed or does not recognize the names.

    Raises:
        CheckpointError: spandrel recognizes the names but cannot load the network, or the network
            does not map one image to one image.
    """
    if not has_spandrel() or _largest_index(state) > _MAX_BLOCKS:
        return None
    library: Any = importlib.import_module("spandrel")
    try:
        descriptor = library.ModelLoader(device="cpu").load_from_state_dict(dict(state))
    except library.UnsupportedModelError:
        return None
    except _LOAD_ERRORS as error:
        reason = " ".join(str(error).split())[:160]
        raise CheckpointError(
            f"spandrel recognizes the tensor names of {source} but cannot load it: {reason}"
        ) from error

    name = descriptor.architecture.name
    channels = (descriptor.input_channels, descriptor.output_channels)
    is_image_model = isinstance(descriptor, library.ImageModelDescriptor)
    if not is_image_model or channels not in ((1, 1), (3, 3)):
        raise CheckpointError(
            f"{source} is {name} of spandrel, which does not map one image to one image"
        )
    model = SpandrelModel(descriptor.float()).eval()
    config = SpandrelConfig(spandrel=library.__version__, tags=tuple(descriptor.tags))
    architecture = _architecture(name, model, config, _contract(descriptor))
    return model, architecture, config


def _largest_index(state: State) -> int:
    """Return the largest number between the dots of the tensor names."""
    largest = 0
    for name in state:
        for component in name.split("."):
            if component.isdecimal():
                largest = max(largest, int(component))
    return largest


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
    """Describe one loaded network as an architecture that builds copies of it and nothing else."""

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
