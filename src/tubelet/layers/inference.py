"""The two forms of a network: one for training and export, one for inference.

A network is built in its reference form: plain operations of torch, which can be differentiated,
exported, compiled and counted. Some layers have a second form, faster or with less memory, without
gradients. They are switched to it once, in place:

    prepare_for_inference(model)    called by the engine when it takes a network
    reference_form(model)           undoes it, for training or export

The form is an attribute of each layer, so it survives `copy.deepcopy`, `torch.save` and
`.to(device)`; parameters and their names are the same in both.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from tubelet.layers.frozen import all_modules

__all__ = [
    "Backend",
    "InferenceBackend",
    "SwitchableLayer",
    "prepare_for_inference",
    "reference_form",
    "use_backend",
    "without_gradient",
]

InferenceBackend = Literal["auto", "winograd", "unfused"]
"""Form for inference of a layer.

auto: the fastest algorithm for the size of each input.
winograd: the algorithm of large images at any size, to estimate their memory with a small one.
unfused: one operation after the other, to count operations; takes no more memory than auto.
"""

Backend = Literal["reference"] | InferenceBackend
"""Form of a layer: the reference form, or a form for inference."""

_Network = TypeVar("_Network", bound=nn.Module)


class SwitchableLayer(nn.Module):
    """A layer with a reference form and a form for inference.

    Attributes:
        backend: The form in use; set by `prepare_for_inference` and `reference_form`.
    """

    backend: Backend = "reference"

    @property
    def is_prepared(self) -> bool:
        """Whether the layer is in its form for inference."""
        return self.backend != "reference"


def prepare_for_inference(model: _Network, backend: InferenceBackend = "auto") -> _Network:
    """Switch every layer of a network to its form for inference, in place.

    Results stay the same up to rounding. A prepared network can be called with gradients enabled,
    but back-propagation through its fused convolutions raises RuntimeError.

    Args:
        model: The network.
        backend: Form to switch to; "winograd" and "unfused" are for estimates only.

    Returns:
        The network itself.
    """
    _set_backend(model, backend)
    return model


def reference_form(model: _Network) -> _Network:
    """Switch every layer of a network back to its reference form, in place; return the network."""
    _set_backend(model, "reference")
    return model


@contextmanager
def use_backend(model: nn.Module, backend: Backend) -> Generator[None]:
    """Switch every layer of a network to another form within this context, and back afterwards."""
    layers = _switchable_layers(model)
    previous: list[Backend] = [layer.backend for layer in layers]
    _set_backend(model, backend)
    try:
        yield
    finally:
        for layer, layer_backend in zip(layers, previous, strict=True):
            layer.backend = layer_backend


def without_gradient(compute: Callable[..., Tensor], *tensors: Tensor | None) -> Tensor:
    """Return `compute(*tensors)`; back-propagation through it raises RuntimeError.

    Kernels that autograd does not know would otherwise silently give no gradient, or a wrong one.
    """
    apply: Callable[..., Tensor] = _WithoutGradient.apply  # pyright: ignore[reportUnknownMemberType]
    return apply(compute, *tensors)


class _WithoutGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, compute: Callable[..., Tensor], *tensors: Tensor | None) -> Tensor:
        return compute(*tensors)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        raise RuntimeError(
            "this network is prepared for inference and has no gradients; call "
            "tubelet.layers.inference.reference_form(model) before training it"
        )


def _switchable_layers(model: nn.Module) -> list[SwitchableLayer]:
    return [module for module in all_modules(model) if isinstance(module, SwitchableLayer)]


def _set_backend(model: nn.Module, backend: Backend) -> None:
    for layer in _switchable_layers(model):
        layer.backend = backend
