"""Convolutions fused with the operations around them: activation, sum, concatenation, upsampling.

    ConvAct       act(conv(x))
    ConvAdd       conv(x) + other
    ConvCat       act(conv(cat(inputs))), without copying the inputs into one tensor
    ShuffleConv   shuffle(act(conv(x))), sub-pixel shuffle, which moves whole pixels
    UpsampleConv  act(conv(upsampled x)), nearest-neighbor ×2, with 4/9 of the multiplications

Each is an `nn.Conv2d` whose padding keeps the image size, so its parameters are `weight` and
`bias`. The layers have two forms (`tubelet.layers.inference`):

    reference   One operation of torch after the other, with gradients.
    inference   Writes features once instead of two to five times. On an x86 CPU, oneDNN applies
                the activation or the sum in the pass that writes the result. In float32, large
                3×3 convolutions of channels-last images take half the multiplications
                (`winograd.py`). Under autocast to bfloat16, features stay bfloat16 from layer to
                layer. Elsewhere, the activation or the sum is applied in place.

Source: post-operations of oneDNN, called as torch's own compiler (Inductor) calls them.
"""

from __future__ import annotations

import functools
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from tubelet.layers.inference import SwitchableLayer, without_gradient
from tubelet.layers.winograd import Region, StripEpilogue, TransformCache, winograd_conv3x3

__all__ = [
    "MIN_CHANNELS",
    "MIN_MULTIPLICATIONS",
    "Activation",
    "ConvAct",
    "ConvAdd",
    "ConvCat",
    "LeakyReLU",
    "ShuffleConv",
    "UpsampleConv",
]


@dataclass(frozen=True, slots=True)
class LeakyReLU:
    """Choice of a leaky ReLU as the activation of a layer."""

    slope: float
    """Factor of negative values."""


Activation = Literal["none", "relu"] | LeakyReLU
"""Activation after a convolution."""

_HAS_ONEDNN = platform.machine() in {"x86_64", "AMD64"} and torch.backends.mkldnn.is_available()

# Winograd's algorithm is used from these bounds on, where it was faster with AVX-512
# (benchmarks/convolution.py).

MIN_CHANNELS = 24
"""Bound of in · out / (in + out), with in input and out output channels. The multiplications grow
with in · out and the transforms with in + out: below the bound, the transforms cost more than they
save."""
MIN_MULTIPLICATIONS = 2**29
"""Multiplications of the direct convolution for each image and thread. Below, dispatch overhead
dominates."""
# Pixels of an image. Below, transforming the weights dominates.
_MIN_PIXELS = 1024
# Rows of an image. Below, padding to whole groups of four rows dominates.
_MIN_ROWS = 16


class _FusedConv(SwitchableLayer, nn.Conv2d):
    """Base of the fused convolutions: keeps the image size and selects the algorithm.

    Args:
        in_channels: C of the input.
        out_channels: C' of the result.
        kernel_px: Side of the kernel, odd.
        act: Activation after the convolution.
        bias: Add a learned bias to every output channel.
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
        super().__init__(
            in_channels,
            out_channels,
            kernel_px,
            padding=kernel_px // 2,
            bias=bias,
        )
        self.act: Activation = act

    def extra_repr(self) -> str:
        """Describe the layer."""
        return f"{super().extra_repr()}, act={self.act}, backend={self.backend}"

    @property
    def _padding_px(self) -> list[int]:
        # (vertical, horizontal). A Conv2d may also have padding="same", but these layers never do.
        return list(self.padding)  # pyright: ignore[reportReturnType]

    def _fused_dtype(self, *inputs: Tensor) -> torch.dtype | None:
        """Return the number format in which oneDNN computes this call; None if it may not."""
        if self.backend in ("reference", "unfused"):
            return None
        if not _HAS_ONEDNN or not torch.backends.mkldnn.enabled:
            return None
        tensors = (self.weight, *inputs)
        if any(tensor.device.type != "cpu" for tensor in tensors):
            return None
        formats = {tensor.dtype for tensor in tensors}
        # These kernels do not follow autocast by themselves.
        if not torch.is_autocast_enabled("cpu"):
            return torch.float32 if formats == {torch.float32} else None
        if torch.get_autocast_dtype("cpu") != torch.bfloat16 or not _has_bfloat16_kernels():
            return None
        return torch.bfloat16 if formats <= {torch.float32, torch.bfloat16} else None

    def _prefers_winograd(self, inputs: Sequence[Tensor]) -> bool:
        """Return whether Winograd's algorithm should be used for these inputs."""
        # Its transforms would lose digits in bfloat16, which needs no fewer multiplications.
        if self.kernel_size != (3, 3) or inputs[0].dtype != torch.float32:
            return False
        if not all(_is_channels_last(x) for x in inputs):
            return False
        channel_sum = self.in_channels + self.out_channels
        if self.in_channels * self.out_channels / channel_sum < MIN_CHANNELS:
            return False
        # With this backend, a small image takes the algorithm of a large one.
        if self.backend == "winograd":
            return True

        height, width = inputs[0].shape[2:]
        multiplications = self.weight.numel() * height * width
        if multiplications < MIN_MULTIPLICATIONS * torch.get_num_threads():
            return False
        return height >= _MIN_ROWS and height * width >= _MIN_PIXELS

    def _convolve(
        self,
        inputs: Sequence[Tensor],
        weight: Tensor,
        bias: Tensor | None,
        cache: TransformCache | None = None,
    ) -> Tensor:
        """Convolve the concatenation of `inputs` by the faster algorithm, then activate."""
        if self._prefers_winograd(inputs):
            return self._convolve_winograd(inputs, weight, bias, cache)
        return self._convolve_onednn(inputs, weight, bias)

    def _convolve_onednn(
        self,
        inputs: Sequence[Tensor],
        weight: Tensor,
        bias: Tensor | None,
    ) -> Tensor:
        """Convolve the concatenation of `inputs`, then activate.

        A convolution is a sum over its input channels, so each input is convolved with its part of
        the weights, and the results are summed.
        """
        if inputs[0].dtype == torch.bfloat16:
            # A sum in bfloat16 would be rounded after each input.
            inputs = [_concatenate(inputs)]
        in_channels = [x.shape[1] for x in inputs]
        first_weight, *other_weights = torch.split(weight, in_channels, 1)
        if not other_weights:
            return _onednn_conv(
                inputs[0],
                first_weight,
                bias,
                self._padding_px,
                self.act,
            )

        y = _onednn_conv(
            inputs[0],
            first_weight,
            bias,
            self._padding_px,
            "none",
        )
        for x, other_weight in zip(inputs[1:], other_weights, strict=True):
            y = _onednn_conv_add_(y, x, other_weight, self._padding_px)
        # The activation applies to the sum, so oneDNN cannot fuse it into the first pass.
        return _activate(y, self.act)

    def _convolve_winograd(
        self,
        inputs: Sequence[Tensor],
        weight: Tensor,
        bias: Tensor | None,
        cache: TransformCache | None = None,
    ) -> Tensor:
        """Convolve the concatenation of `inputs` by Winograd's algorithm, then activate."""

        def activate_strip(y: Tensor, region: Region) -> None:
            _activate(y, self.act)

        return _winograd_onednn(
            inputs,
            weight,
            bias,
            activate_strip,
            cache,
        )


class ConvAct(_FusedConv):
    """Convolution, then an activation.

    Args:
        in_channels: C of the input.
        out_channels: C' of the result.
        kernel_px: Side of the kernel, odd.
        act: Activation after the convolution.
        bias: Add a learned bias to every output channel.
    """

    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Map (B, C, H, W) to (B, C', H, W)."""
        dtype = self._fused_dtype(x)
        if dtype is None:
            return _activate(super().forward(x), self.act)
        return without_gradient(self._fused, *_cast(dtype, x, self.weight, self.bias))

    def _fused(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return self._convolve([x], weight, bias)


class ConvAdd(_FusedConv):
    """Convolution, then a sum with another tensor, as at the end of a residual block.

    Args:
        in_channels: C of the input.
        out_channels: C' of the result.
        kernel_px: Side of the kernel, odd.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_px: int = 3) -> None:
        super().__init__(in_channels, out_channels, kernel_px)

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        x: Tensor,
        other: Tensor,
    ) -> Tensor:
        """Return `conv(x) + other`.

        Args:
            x: (B, C, H, W).
            other: (B, C', H, W), or a shape that broadcasts to it.

        Returns:
            (B, C', H, W).
        """
        # Not in place: hooks can make the result of the convolution a view, which an operation in
        # place would break.
        if not self.is_prepared:
            return super().forward(x) + other
        dtype = self._fused_dtype(x, other)
        if dtype is None or not _same_layout(x, other):
            return super().forward(x).add_(other)
        return without_gradient(
            self._fused,
            *_cast(dtype, x, other, self.weight, self.bias),
        )

    def _fused(
        self,
        x: Tensor,
        other: Tensor,
        weight: Tensor,
        bias: Tensor | None,
    ) -> Tensor:
        if not self._prefers_winograd([x]):
            return _onednn_conv_add(
                x,
                other,
                weight,
                bias,
                self._padding_px,
            )

        def add_strip(y: Tensor, region: Region) -> None:
            y.add_(other[region])

        return _winograd_onednn([x], weight, bias, add_strip)


class ConvCat(_FusedConv):
    """Convolution over the concatenation of tensors, then an activation.

    Args:
        in_channels: C of all inputs together.
        out_channels: C' of the result.
        kernel_px: Side of the kernel, odd.
        act: Activation after the convolution.
        bias: Add a learned bias to every output channel.
    """

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, *inputs: Tensor, cache: TransformCache | None = None
    ) -> Tensor:
        """Return `act(conv(cat(inputs)))`.

        Args:
            inputs: (B, C₁, H, W), (B, C₂, H, W), …: the channels of the input, in order.
            cache: Input transforms of Winograd's algorithm, shared by convolutions whose inputs
                begin with the same tensors, as in a dense block. It holds 1.5 times the size of
                these tensors. Other algorithms ignore it.

        Returns:
            (B, C', H, W).
        """
        dtype = self._fused_dtype(*inputs)
        if dtype is None:
            return _activate(super().forward(_concatenate(inputs)), self.act)

        def fused(weight: Tensor, bias: Tensor | None, *inputs: Tensor) -> Tensor:
            return self._convolve(inputs, weight, bias, cache)

        return without_gradient(fused, *_cast(dtype, self.weight, self.bias, *inputs))


class ShuffleConv(_FusedConv):
    """3×3 convolution, an activation, then a sub-pixel shuffle: upsampling with learned filters.

    A pixel becomes r×r pixels. A result in channels-last layout is a copy of whole pixels if the
    channels of each of them are adjacent. So the form for inference first reorders the filters.

    Args:
        in_channels: C of the input.
        out_channels: C' of the result; the convolution has r² times as many.
        act: Activation after the convolution.
        factor: r.

    Source: Shi et al., CVPR 2016, Eq. 4.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        act: Activation = "none",
        factor: int = 2,
    ) -> None:
        super().__init__(in_channels, factor**2 * out_channels, act=act)
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Map (B, C, H, W) to (B, C', rH, rW)."""
        dtype = self._fused_dtype(x)
        if dtype is None or not _is_channels_last(x):
            y = _activate(super().forward(x), self.act)
            return functional.pixel_shuffle(y, self.factor)
        return without_gradient(self._fused, *_cast(dtype, x, self.weight, self.bias))

    def _fused(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        # From filters in the order (C', r, r) to (r, r, C').
        weight = self._pixels_first(weight).contiguous(memory_format=torch.channels_last)
        if bias is not None:
            bias = self._pixels_first(bias)
        y = self._convolve([x], weight, bias)
        batch, _, height, width = y.shape
        r = self.factor
        pixels = y.permute(0, 2, 3, 1).view(batch, height, width, r, r, -1)
        # (B, H, W, r, r, C') → (B, H, r, W, r, C')
        shuffled = pixels.transpose(2, 3).reshape(batch, r * height, r * width, -1)
        return shuffled.permute(0, 3, 1, 2)

    def _pixels_first(self, parameter: Tensor) -> Tensor:
        """Reorder the first axis from (C', r, r) to (r, r, C')."""
        r = self.factor
        by_channel = parameter.reshape(-1, r, r, *parameter.shape[1:])
        return by_channel.movedim(0, 2).flatten(0, 2)


class UpsampleConv(_FusedConv):
    """Nearest-neighbor upsampling by 2, 3×3 convolution, then an activation.

    Of the nine upsampled pixels under the kernel only four differ. So the form for inference sums
    the weights of equal pixels first: the result is a transposed convolution of `x` with stride 2.

    Args:
        in_channels: C of the input.
        out_channels: C' of the result.
        act: Activation after the convolution.
    """

    def __init__(self, in_channels: int, out_channels: int, *, act: Activation = "none") -> None:
        super().__init__(in_channels, out_channels, 3, act=act)

    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Map (B, C, H, W) to (B, C', 2H, 2W)."""
        if self._fused_dtype(x) is not None:
            return without_gradient(self._fused, x, self.weight, self.bias)
        upsampled = functional.interpolate(x, scale_factor=2.0, mode="nearest")
        return _activate(super().forward(upsampled), self.act)

    def _fused(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        # A transposed convolution applies its kernel mirrored: (C', C, 3, 3) → (C', C, 5, 5).
        flipped = functional.pad(weight.flip(2, 3), (1, 1, 1, 1))
        # A pixel of x becomes 2×2 equal pixels. Its weight in a pixel of the result is the sum of
        # their weights, for each of the 4×4 positions that they reach: (C', C, 4, 4).
        summed = functional.avg_pool2d(flipped, 2, stride=1, divisor_override=1)
        y = functional.conv_transpose2d(
            x,
            summed.transpose(0, 1),
            bias,
            stride=2,
            padding=1,
        )
        return _activate(y, self.act)


@functools.cache
def _has_bfloat16_kernels() -> bool:
    """Return whether oneDNN has convolutions in bfloat16 for this processor."""
    return bool(_operators()._is_mkldnn_bf16_supported())


def _cast(dtype: torch.dtype, *tensors: Tensor | None) -> list[Any]:
    """Convert tensors to a number format; None stays."""
    return [None if tensor is None else tensor.to(dtype) for tensor in tensors]


def _concatenate(inputs: Sequence[Tensor]) -> Tensor:
    return inputs[0] if len(inputs) == 1 else torch.cat(list(inputs), 1)


def _is_channels_last(tensor: Tensor) -> bool:
    return tensor.is_contiguous(memory_format=torch.channels_last)


def _same_layout(x: Tensor, other: Tensor) -> bool:
    """Return whether both are channels last, like the result, and have the same B, H and W."""
    if x.shape[0] != other.shape[0] or x.shape[2:] != other.shape[2:]:
        return False
    return _is_channels_last(x) and _is_channels_last(other)


def _activate(y: Tensor, act: Activation) -> Tensor:
    """Apply an activation in place: nothing else uses `y`, the result of a convolution."""
    if isinstance(act, LeakyReLU):
        return functional.leaky_relu_(y, act.slope)
    return functional.relu_(y) if act == "relu" else y


def _winograd_onednn(
    inputs: Sequence[Tensor],
    weight: Tensor,
    bias: Tensor | None,
    epilogue: StripEpilogue,
    cache: TransformCache | None = None,
) -> Tensor:
    """Convolve by Winograd's algorithm, with oneDNN for its 1×3 convolutions."""
    return winograd_conv3x3(
        inputs,
        weight,
        bias,
        conv1x3=_conv1x3,
        epilogue=epilogue,
        cache=cache,
    )


def _conv1x3(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    total: Tensor | None,
) -> Tensor:
    """Convolve along the width, with one column of padding on each side; add to a total if any."""
    padding_px = [0, 1]
    # Only the convolution without a total gets a bias, so that it is added once.
    if total is None:
        return _onednn_conv(
            x,
            weight,
            bias,
            padding_px,
            "none",
        )
    return _onednn_conv_add_(total, x, weight, padding_px)


# Arguments of the operators of oneDNN, by position.

# Stride, dilation and number of groups of all convolutions here.
_GEOMETRY = ([1, 1], [1, 1], 1)
# Sum after the convolution: its name, the factor of `other`, then no activation after the sum
# (name, scalars, algorithm).
_ADD: tuple[Any, ...] = ("add", 1.0, None, [], None)


def _operators() -> Any:
    """Return torch's namespace of private oneDNN operators, which has no type annotations."""
    return torch.ops.mkldnn


def _onednn_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    padding_px: list[int],
    act: Activation,
) -> Tensor:
    """Compute `act(conv(x))`."""
    if isinstance(act, LeakyReLU):
        act_name = "leaky_relu"
        act_scalars = [act.slope]
    else:
        act_name = act
        act_scalars = []
    conv = _operators()._convolution_pointwise
    return conv(
        x,
        weight,
        bias,
        padding_px,
        *_GEOMETRY,
        act_name,
        act_scalars,
        None,
    )


def _onednn_conv_add(
    x: Tensor,
    other: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    padding_px: list[int],
) -> Tensor:
    """Compute `conv(x) + other`."""
    conv_add = _operators()._convolution_pointwise.binary
    return conv_add(
        x,
        other,
        weight,
        bias,
        padding_px,
        *_GEOMETRY,
        *_ADD,
    )


def _onednn_conv_add_(
    total: Tensor,
    x: Tensor,
    weight: Tensor,
    padding_px: list[int],
) -> Tensor:
    """Add `conv(x)` to `total` in place, and return it."""
    conv_add_ = _operators()._convolution_pointwise_.binary
    return conv_add_(
        total,
        x,
        weight,
        None,
        padding_px,
        *_GEOMETRY,
        *_ADD,
    )
