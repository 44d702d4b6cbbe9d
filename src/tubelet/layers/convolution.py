"""Convolutions that take what follows them along: the activation, a sum, the end of a concatenation.

Without gradients, on a processor of the x86 family and in float32, oneDNN computes these in the pass that writes the
result, and features are written once instead of two to five times. Everywhere else it is done step by step.

    convolve          act(conv(x))
    convolve_add      conv(x) + other
    convolve_parts    act(conv(cat(parts))), nothing copied together: a convolution is a sum over its inputs
    convolve_doubled  act(conv(x, each pixel four times)), with four products for each of its nine

There, large ones of 3×3 pixels, channels last, take half of their products (`winograd.py`).

Source: post-operations of oneDNN, as torch's own compiler uses them.
"""

from __future__ import annotations

import platform
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from tubelet.layers.winograd import Finish, LineSums, convolve_columns

__all__ = ["Way", "convolve", "convolve_add", "convolve_doubled", "convolve_parts", "convolving"]

Way = Literal["fast", "as written", "as large"]
"""Whatever is fast; step by step, so that operations can be counted; as in a large picture, to foretell its memory."""

_HAS_ONEDNN = platform.machine() in {"x86_64", "AMD64"} and torch.backends.mkldnn.is_available()
_ADD: tuple[Any, ...] = ("add", 1.0, None, [], None)  # and no activation after it
_LEAST_CHANNELS = 24  # in · out / (in + out): below, sums of lines cost more than products, measured with AVX-512
_LEAST_PRODUCTS = 2**29  # of an image and thread: below, there is more to call than to do
_LEAST_PIXELS, _LEAST_LINES = 1024, 16  # below, the weights are most of the work, or lines that are filled up
_WAY: ContextVar[Way] = ContextVar("way", default="fast")


@contextmanager
def convolving(way: Way) -> Generator[None]:
    """Choose how convolutions are computed within this context."""
    token = _WAY.set(way)
    try:
        yield
    finally:
        _WAY.reset(token)


def convolve(conv: nn.Conv2d, x: Tensor, slope: float | None = None) -> Tensor:
    """Convolve, and bend.

    Args:
        conv: the convolution.
        x: (B, C, H, W).
        slope: of the leaky rectifier below zero; 0 is ReLU, None is no activation.

    Returns:
        (B, C', H', W').
    """
    return convolve_parts(conv, [x], slope)


def convolve_add(conv: nn.Conv2d, x: Tensor, other: Tensor) -> Tensor:
    """Convolve, and add: (B, C, H, W) and `other` (B, C', H', W') → (B, C', H', W')."""
    if not _fuses(conv, x) or not _lie_alike(x, other):
        y = conv(x)
        return y + other if torch.is_grad_enabled() else y.add_(other)
    if _is_large(conv, [x]):
        return _convolve_columns(conv, [x], lambda y, place: y.add_(other[place]))
    return _operators()._convolution_pointwise.binary(x, other, conv.weight, conv.bias, *_geometry(conv), *_ADD)


def convolve_parts(
    conv: nn.Conv2d, parts: Sequence[Tensor], slope: float | None = None, *, kept: LineSums | None = None
) -> Tensor:
    """Convolve what lies in several tensors, and bend.

    Args:
        conv: the convolution, without groups.
        parts: (B, C₁, H, W), (B, C₂, H, W), …: the channels of its input, in order.
        slope: as in `convolve`.
        kept: shared by convolutions that look at the same tensors, not copies; holds half as much again as they do.

    Returns:
        (B, C', H', W').
    """
    if not _fuses(conv, *parts):
        return _bend(conv(torch.cat(list(parts), 1) if len(parts) > 1 else parts[0]), slope)
    if _is_large(conv, parts):
        return _convolve_columns(conv, parts, lambda y, _: _bend(y, slope), kept)
    geometry = _geometry(conv)
    # With groups there is one part, of more channels than each kernel sees.
    widths = [conv.weight.shape[1]] if len(parts) == 1 else [part.shape[1] for part in parts]
    first, *others = torch.split(conv.weight, widths, 1)
    activation = _activation(None if others else slope)
    y = _operators()._convolution_pointwise(parts[0], first, conv.bias, *geometry, *activation, None)
    for part, weight in zip(parts[1:], others, strict=True):
        y = _operators()._convolution_pointwise_.binary(y, part, weight, None, *geometry, *_ADD)
    return _bend(y, slope) if others else y


def convolve_doubled(conv: nn.Conv2d, x: Tensor, slope: float | None = None) -> Tensor:
    """Double the size by repeating pixels, convolve, and bend.

    Of the nine pixels under the kernel only four differ: where `_fuses` allows it, the weights of the alike are summed
    first, which makes a transposed convolution of stride 2.

    Args:
        conv: a 3×3 convolution, padded by 1.
        x: (B, C, H, W).
        slope: as in `convolve`.

    Returns:
        (B, C', 2H, 2W).
    """
    if not _is_plain(conv) or not _fuses(conv, x):
        return convolve(conv, functional.interpolate(x, scale_factor=2.0, mode="nearest"), slope)
    flipped = functional.pad(conv.weight.flip(2, 3), (1, 1, 1, 1))
    sums = functional.avg_pool2d(flipped, 2, stride=1, divisor_override=1)  # (C', C, 4, 4), over 2×2 alike pixels
    return _bend(functional.conv_transpose2d(x, sums.transpose(0, 1), conv.bias, stride=2, padding=1), slope)


def _operators() -> Any:
    return torch.ops.mkldnn


def _fuses(conv: nn.Conv2d, *inputs: Tensor) -> bool:
    """Tell whether oneDNN may take the operations together."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    if not _HAS_ONEDNN or not torch.backends.mkldnn.enabled or torch.is_autocast_enabled("cpu"):
        return False
    if _WAY.get() == "as written":
        return False
    hooks = any(getattr(conv, name) for name in ("_forward_hooks", "_forward_pre_hooks"))
    tensors = (conv.weight, *inputs)
    return (
        not hooks
        and conv.padding_mode == "zeros"
        and all(
            t.device.type == "cpu" and t.dtype == torch.float32 and type(t) in {Tensor, nn.Parameter} for t in tensors
        )
    )


def _is_plain(conv: nn.Conv2d) -> bool:
    """Tell whether it is of 3×3 pixels, and keeps the size."""
    return conv.kernel_size == (3, 3) and _geometry(conv) == ([1, 1], [1, 1], [1, 1], 1)


def _is_large(conv: nn.Conv2d, parts: Sequence[Tensor]) -> bool:
    """Tell whether half of the products are worth the sums that they take."""
    if not _is_plain(conv) or not all(part.is_contiguous(memory_format=torch.channels_last) for part in parts):
        return False
    if conv.in_channels * conv.out_channels < _LEAST_CHANNELS * (conv.in_channels + conv.out_channels):
        return False
    height, width = parts[0].shape[2:]
    products = conv.weight.numel() * height * width
    enough = products >= _LEAST_PRODUCTS * torch.get_num_threads()
    return _WAY.get() == "as large" or (enough and height >= _LEAST_LINES and height * width >= _LEAST_PIXELS)


def _convolve_columns(conv: nn.Conv2d, parts: Sequence[Tensor], finish: Finish, kept: LineSums | None = None) -> Tensor:
    return convolve_columns(parts, conv.weight, conv.bias, convolve_rows=_convolve_rows, finish=finish, kept=kept)


def _convolve_rows(x: Tensor, weight: Tensor, bias: Tensor | None, total: Tensor | None) -> Tensor:
    geometry = ([0, 1], [1, 1], [1, 1], 1)
    if total is None:
        return _operators()._convolution_pointwise(x, weight, bias, *geometry, *_activation(None), None)
    return _operators()._convolution_pointwise_.binary(total, x, weight, None, *geometry, *_ADD)


def _lie_alike(x: Tensor, other: Tensor) -> bool:
    """Tell whether both have the same size, and lie in memory pixel by pixel, as the result will."""
    same = (x.shape[0], *x.shape[2:]) == (other.shape[0], *other.shape[2:])
    return same and all(t.is_contiguous(memory_format=torch.channels_last) for t in (x, other))


def _geometry(conv: nn.Conv2d) -> tuple[Any, ...]:
    return list(conv.padding), list(conv.stride), list(conv.dilation), conv.groups


def _activation(slope: float | None) -> tuple[str, list[float]]:
    if slope is None:
        return "none", []
    return ("relu", []) if slope == 0 else ("leaky_relu", [slope])


def _bend(y: Tensor, slope: float | None) -> Tensor:
    if slope is None:
        return y
    return functional.relu_(y) if slope == 0 else functional.leaky_relu_(y, slope)
