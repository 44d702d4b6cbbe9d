"""Fused convolutions: with an activation, with a sum, over a concatenation, over repeated pixels.

    ConvAct       act(conv(x))
    ConvAdd       conv(x) + other
    ConvCat       act(conv(cat(parts))), without copying the parts together
    UpsampleConv  act(conv(x, each pixel four times)), with four products for each of nine

Each is an `nn.Conv2d` that keeps the size of its input, with its parameters under the same names.
The reference form takes one step after the other. The form for inference
(`tubelet.layers.inference`) writes features once instead of two to five times: on an x86 processor
and in float32, oneDNN computes the rest in the pass that writes the result, and large 3×3
convolutions of channels-last images take half the multiplications (`winograd.py`). Elsewhere it
works in place.

Source: post-operations of oneDNN, as torch's own compiler uses them.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from tubelet.layers.inference import SwitchableLayer, without_gradient
from tubelet.layers.winograd import Finish, TransformCache, convolve_columns

__all__ = ["Activation", "ConvAct", "ConvAdd", "ConvCat", "LeakyReLU", "UpsampleConv"]


@dataclass(frozen=True, slots=True)
class LeakyReLU:
    """A rectifier that scales negative values."""

    slope: float
    """Factor of negative values."""


Activation = Literal["none", "relu"] | LeakyReLU

_HAS_ONEDNN = platform.machine() in {"x86_64", "AMD64"} and torch.backends.mkldnn.is_available()
_ADD: tuple[Any, ...] = ("add", 1.0, None, [], None)  # a sum, and no activation after it

# Winograd pays from these on, measured with AVX-512 (benchmarks/convolution.py).
_MIN_CHANNELS = 24  # in · out / (in + out): below this, the transforms cost more than the products
_MIN_MULTIPLICATIONS = 2**29  # of an image and thread: below this, dispatch overhead dominates
_MIN_PIXELS = 1024  # below this, transforming the weights dominates
_MIN_LINES = 16  # below this, padding to whole groups of lines dominates


class _FusedConv(SwitchableLayer, nn.Conv2d):
    """A convolution to the same size, and the choice of how it is computed.

    Args:
        in_channels: C of the input.
        out_channels: C' of the result.
        kernel_px: side of the kernel, odd.
        act: activation after the convolution.
        bias: whether there is a bias.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_px: int = 3,
        *,
        act: Activation = "none",
        bias: bool = True,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_px, padding=kernel_px // 2, bias=bias)
        self.act: Activation = act

    def extra_repr(self) -> str:
        """Describe the layer."""
        return f"{super().extra_repr()}, act={self.act}, backend={self.backend}"

    def _fuses(self, *inputs: Tensor) -> bool:
        """Tell whether oneDNN may fuse this call."""
        if self.backend in ("reference", "unfused") or not _HAS_ONEDNN:
            return False
        if not torch.backends.mkldnn.enabled:
            return False
        # Operations of torch obey autocast by themselves; the kernels used here do not.
        if torch.is_autocast_enabled("cpu"):
            return False
        return all(_is_float32_on_cpu(tensor) for tensor in (self.weight, *inputs))

    def _takes_winograd(self, parts: Sequence[Tensor]) -> bool:
        """Tell whether half the multiplications are worth the transforms that they take."""
        if self.kernel_size != (3, 3):
            return False
        if not all(part.is_contiguous(memory_format=torch.channels_last) for part in parts):
            return False
        channels = self.in_channels * self.out_channels / (self.in_channels + self.out_channels)
        if channels < _MIN_CHANNELS:
            return False
        if self.backend == "winograd":
            return True
        height, width = parts[0].shape[2:]
        multiplications = self.weight.numel() * height * width
        enough = multiplications >= _MIN_MULTIPLICATIONS * torch.get_num_threads()
        return enough and height >= _MIN_LINES and height * width >= _MIN_PIXELS

    def _convolve_parts(
        self,
        parts: Sequence[Tensor],
        weight: Tensor,
        bias: Tensor | None,
    ) -> Tensor:
        """Convolve by oneDNN: one part with bias and activation, further ones added in place."""
        onednn = _operators()
        geometry = self._geometry
        first, *others = torch.split(weight, [part.shape[1] for part in parts], 1)
        act = _onednn_activation("none" if others else self.act)
        y = onednn._convolution_pointwise(parts[0], first, bias, *geometry, *act, None)
        for x, part in zip(parts[1:], others, strict=True):
            y = onednn._convolution_pointwise_.binary(y, x, part, None, *geometry, *_ADD)
        return _activate(y, self.act) if others else y

    @property
    def _geometry(self) -> tuple[Any, ...]:
        return list(self.padding), [1, 1], [1, 1], 1


class ConvAct(_FusedConv):
    """Convolution, then an activation.

    Args:
        in_channels: C of the input.
        out_channels: C' of the result.
        kernel_px: side of the kernel, odd.
        act: activation after the convolution.
        bias: whether there is a bias.
    """

    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Map (B, C, H, W) to (B, C', H, W)."""
        if not self._fuses(x):
            return _activate(super().forward(x), self.act)
        return without_gradient(self._fused, x, self.weight, self.bias)

    def _fused(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self._takes_winograd([x]):
            return _convolve_columns([x], weight, bias, lambda y, _: _activate(y, self.act))
        return self._convolve_parts([x], weight, bias)


class ConvAdd(_FusedConv):
    """Convolution, then a sum with another tensor, as at the end of a residual block.

    Args:
        in_channels: C of the input.
        out_channels: C' of the result.
        kernel_px: side of the kernel, odd.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_px: int = 3) -> None:
        super().__init__(in_channels, out_channels, kernel_px)

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        x: Tensor,
        other: Tensor,
    ) -> Tensor:
        """Map (B, C, H, W) and (B, C', H, W), or what broadcasts to it, to (B, C', H, W)."""
        if not self.is_prepared:
            return super().forward(x) + other
        if not self._fuses(x, other) or not _same_layout(x, other):
            return super().forward(x).add_(other)
        return without_gradient(self._fused, x, other, self.weight, self.bias)

    def _fused(self, x: Tensor, other: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self._takes_winograd([x]):
            return _convolve_columns([x], weight, bias, lambda y, region: y.add_(other[region]))
        binary = _operators()._convolution_pointwise.binary
        return binary(x, other, weight, bias, *self._geometry, *_ADD)


class ConvCat(_FusedConv):
    """Convolution over the concatenation of tensors, then an activation.

    Args:
        in_channels: C of all inputs together.
        out_channels: C' of the result.
        kernel_px: side of the kernel, odd.
        act: activation after the convolution.
        bias: whether there is a bias.
    """

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, *parts: Tensor, cache: TransformCache | None = None
    ) -> Tensor:
        """Convolve.

        Args:
            parts: (B, C₁, H, W), (B, C₂, H, W), …: the channels of the input, in order.
            cache: shared by convolutions whose inputs begin with the same tensors, as in a dense
                block; it holds half as much again as these tensors. The reference form leaves it
                alone.

        Returns:
            (B, C', H, W).
        """
        if not self._fuses(*parts):
            whole = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
            return _activate(super().forward(whole), self.act)

        def fused(weight: Tensor, bias: Tensor | None, *inputs: Tensor) -> Tensor:
            if not self._takes_winograd(inputs):
                return self._convolve_parts(inputs, weight, bias)
            finish: Finish = lambda y, _: _activate(y, self.act)  # noqa: E731
            return _convolve_columns(inputs, weight, bias, finish, cache)

        return without_gradient(fused, self.weight, self.bias, *parts)


class UpsampleConv(_FusedConv):
    """Doubling by repeated pixels, 3×3 convolution, then an activation.

    Of the nine pixels under the kernel only four differ: the form for inference sums the weights of
    equal ones first, which makes a transposed convolution of stride 2.

    Args:
        in_channels: C of the input.
        out_channels: C' of the result.
        act: activation after the convolution.
    """

    def __init__(self, in_channels: int, out_channels: int, *, act: Activation = "none") -> None:
        super().__init__(in_channels, out_channels, 3, act=act)

    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Map (B, C, H, W) to (B, C', 2H, 2W)."""
        if self._fuses(x):
            return without_gradient(self._fused, x, self.weight, self.bias)
        repeated = functional.interpolate(x, scale_factor=2.0, mode="nearest")
        return _activate(super().forward(repeated), self.act)

    def _fused(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        flipped = functional.pad(weight.flip(2, 3), (1, 1, 1, 1))
        # Sums over 2×2 equal pixels: (C', C, 4, 4).
        sums = functional.avg_pool2d(flipped, 2, stride=1, divisor_override=1)
        y = functional.conv_transpose2d(x, sums.transpose(0, 1), bias, stride=2, padding=1)
        return _activate(y, self.act)


def _operators() -> Any:
    return torch.ops.mkldnn


def _is_float32_on_cpu(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu" and tensor.dtype == torch.float32


def _convolve_columns(
    parts: Sequence[Tensor],
    weight: Tensor,
    bias: Tensor | None,
    finish: Finish,
    cache: TransformCache | None = None,
) -> Tensor:
    return convolve_columns(
        parts,
        weight,
        bias,
        convolve_rows=_convolve_rows,
        finish=finish,
        cache=cache,
    )


def _convolve_rows(x: Tensor, weight: Tensor, bias: Tensor | None, total: Tensor | None) -> Tensor:
    """Convolve along the rows, padded by a pixel at both ends; add to a total if there is one."""
    onednn = _operators()
    geometry = ([0, 1], [1, 1], [1, 1], 1)
    if total is None:
        act = _onednn_activation("none")
        return onednn._convolution_pointwise(x, weight, bias, *geometry, *act, None)
    return onednn._convolution_pointwise_.binary(total, x, weight, None, *geometry, *_ADD)


def _same_layout(x: Tensor, other: Tensor) -> bool:
    """Tell whether both have the same size, and are channels last, as the result will be."""
    same_size = (x.shape[0], *x.shape[2:]) == (other.shape[0], *other.shape[2:])
    return same_size and all(t.is_contiguous(memory_format=torch.channels_last) for t in (x, other))


def _onednn_activation(act: Activation) -> tuple[str, list[float]]:
    if isinstance(act, LeakyReLU):
        return "leaky_relu", [act.slope]
    return act, []


def _activate(y: Tensor, act: Activation) -> Tensor:
    """Apply an activation in place: `y` is a convolution's own output."""
    if isinstance(act, LeakyReLU):
        return functional.leaky_relu_(y, act.slope)
    return functional.relu_(y) if act == "relu" else y
