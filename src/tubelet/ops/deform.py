"""Deformable convolution: every tap of the kernel reads where an offset sends it, between pixels.

    x (B, C, H, W), offset (B, 2·G·K, H', W'), mask (B, G·K, H', W')
      columns (B, C·K, H'·W') = mask · bilinear sample of x at tap + offset, a group of C/G channels at a time
      weight (O, C/groups, kh, kw) · columns + bias ── (B, O, H', W')

K = kh·kw taps, G offset groups; the offsets of a tap are (dy, dx).

Source: Dai et al., ICCV 2017, Eq. 2; the mask of Zhu et al. (Deformable ConvNets v2), CVPR 2019, Eq. 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional

from tubelet.ops import deform_planes, deform_rows
from tubelet.ops.deform_rows import Border, Strip, Taps

__all__ = ["Border", "deform_conv2d", "deform_conv2d_reference", "guided_deform_conv2d"]


def deform_conv2d(
    x: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    mask: Tensor | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    border: Border = "zeros",
) -> Tensor:
    """Convolve with taps that are moved by offsets; means what `torchvision.ops.deform_conv2d` means.

    Args:
        x: (B, C, H, W).
        offset: (B, 2·G·K, H', W'), pixels of `x`; (dy, dx) of each tap of each of G groups of channels.
        weight: (O, C/groups, kh, kw); `groups` of the convolution follow from its shape.
        bias: (O,).
        mask: (B, G·K, H', W'), factors of the samples.
        stride: pixels between outputs, (vertical, horizontal).
        padding: pixels added on each side, (vertical, horizontal).
        dilation: pixels between taps, (vertical, horizontal).
        border: "zeros": pixels outside are zero and are mixed in like others (Deformable ConvNets v2). "original": a
            sample outside is zero, one beyond the last pixel by less than one is that pixel (Dai et al.'s operation).

    Returns:
        (B, O, H', W').

    Raises:
        ValueError: the shapes do not fit.
    """
    taps = _taps(x, offset, mask, weight, (_pair(stride), _pair(padding), _pair(dilation)), border)
    if torch.compiler.is_compiling() or not (x.device.type == "cpu" or _has_kernel(x)):
        return deform_conv2d_reference(
            x,
            offset,
            weight,
            bias,
            mask=mask,
            stride=stride,
            padding=padding,
            dilation=dilation,
            border=border,
        )
    # positions need float32, and half precision is slow on a CPU; the kernel computes positions in float32 itself
    real = x.dtype if _has_kernel(x) else torch.promote_types(x.dtype, torch.float32)
    dense = _without_groups(weight, x.shape[1]).to(real)
    factors = None if mask is None else mask.to(real)
    shift = None if bias is None else bias.to(real)
    out = cast(Tensor, _DeformConv.apply(x.to(real), offset.to(real), factors, dense, shift, taps))
    return out.to(x.dtype)


def guided_deform_conv2d(
    x: Tensor,
    predicted: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    flows: Sequence[Tensor] = (),
    max_residue_px: float | None = None,
    padding: int = 0,
) -> Tensor:
    """Convolve with taps that a network moves: the activations of its prediction, flows and sampling as one operation.

    offset = max_residue · tanh(first two thirds of `predicted`) + flow, mask = sigmoid(last third). Without gradients,
    offsets and mask are never stored as a whole.

    Args:
        x: (B, C, H, W).
        predicted: (B, 3·G·K, H', W'): offsets (dy, dx) of each tap of each group, then the mask, before activation.
        weight: (O, C, kh, kw).
        bias: (O,).
        flows: F of (B, 2, H', W'), pixels, dx then dy; each moves one of F equal parts of the groups. None: no flow.
        max_residue_px: largest offset from the flow, pixels; None: offsets are taken as they are, without tanh.
        padding: pixels added on each side.

    Returns:
        (B, O, H', W').

    Raises:
        ValueError: the shapes do not fit.

    Source: Chan et al. (BasicVSR++), CVPR 2022, Eqs. 3 to 6; without flows, Zhu et al., CVPR 2019.
    """
    samples = predicted.shape[1] // 3
    offset, mask = predicted[:, : 2 * samples], predicted[:, 2 * samples :]
    tensors = (x, predicted, weight, *(() if bias is None else (bias,)), *flows)
    learning = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    whole = (
        any(tensor.dtype != torch.float32 for tensor in tensors) or weight.shape[1] != x.shape[1]
    )
    if learning or whole or x.device.type != "cpu" or torch.compiler.is_compiling():
        if max_residue_px is not None:
            offset = max_residue_px * torch.tanh(offset)
        if flows:
            parts = [flow.flip(1).repeat(1, samples // len(flows), 1, 1) for flow in flows]
            offset = offset + torch.cat(parts, 1)
        return deform_conv2d(x, offset, weight, bias, mask=torch.sigmoid(mask), padding=padding)
    taps = _taps(x, offset, mask, weight, ((1, 1), (padding, padding), (1, 1)), "zeros")
    read = _Guide(predicted, flows, max_residue_px)
    return deform_rows.convolve(
        x, read, (predicted.shape[2], predicted.shape[3]), weight, bias, taps
    )


class _Guide:
    """Read what moves the samples of a strip from a prediction and flows, in scratch memory that is made once."""

    def __init__(
        self, predicted: Tensor, flows: Sequence[Tensor], max_residue_px: float | None
    ) -> None:
        self.predicted, self.flows, self.max_residue_px = predicted, flows, max_residue_px
        self.scratch = predicted.new_empty(0)

    def __call__(self, image: int, pixels: slice) -> Strip:
        """Read the strip of an image of the batch."""
        source = deform_rows.rows_of(self.predicted[image], pixels)  # (n, 3·G·K)
        if self.scratch.shape[0] < len(source):
            self.scratch = torch.empty_like(source)
        rows = self.scratch[: len(source)]
        samples = source.shape[1] // 3
        mask = torch.sigmoid(source[:, 2 * samples :], out=rows[:, 2 * samples :])
        if self.max_residue_px is None:
            return Strip(source[:, : 2 * samples], 1.0, *self._origins(image, pixels, 0.0), mask)
        # r · tanh(a) = 2r · sigmoid(2a) - r, and sigmoid is six times as fast
        offset = torch.mul(source[:, : 2 * samples], 2, out=rows[:, : 2 * samples]).sigmoid_()
        return Strip(
            offset,
            2 * self.max_residue_px,
            *self._origins(image, pixels, -self.max_residue_px),
            mask,
        )

    def _origins(
        self, image: int, pixels: slice, shift_px: float
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return the origins y, x (n, F) of the parts of the groups."""
        if not self.flows:
            origin = None if shift_px == 0 else self.predicted.new_full((1, 1), shift_px)
            return origin, origin
        flow = (
            torch.stack([flow[image].flatten(1)[:, pixels] for flow in self.flows], 2) + shift_px
        )  # (2, n, F)
        return flow[1], flow[0]


class _DeformConv(torch.autograd.Function):
    """Deformable convolution on a CPU with its gradient; the columns are sampled again, not kept."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        offset: Tensor,
        mask: Tensor | None,
        weight: Tensor,
        bias: Tensor | None,
        taps: Taps,
    ) -> Tensor:
        ctx.save_for_backward(x, offset, mask, weight)
        ctx.taps = taps
        if _has_kernel(x):
            from tubelet.ops.deform_triton import sample_columns  # Triton is not everywhere

            out = weight.flatten(1) @ sample_columns(x, offset, mask, taps)
            out = out.view(len(x), len(weight), *offset.shape[2:])
            return out if bias is None else out.add_(bias[:, None, None])
        planes = (
            x.is_contiguous() and offset.is_contiguous() and (mask is None or mask.is_contiguous())
        )
        few = x.shape[1] <= deform_planes.MAX_CHANNELS * taps.groups
        if planes and few and taps.border == "zeros":
            return deform_planes.convolve_planes(x, offset, mask, weight, bias, taps)
        size = (offset.shape[2], offset.shape[3])
        return deform_rows.convolve(
            x, deform_rows.read_plainly(offset, mask), size, weight, bias, taps
        )

    @staticmethod
    def backward(ctx: Any, *upstreams: Tensor) -> tuple[Tensor | None, ...]:
        (upstream,) = upstreams
        x, offset, mask, weight = cast(
            tuple[Tensor, Tensor, Tensor | None, Tensor], ctx.saved_tensors
        )
        real = torch.promote_types(x.dtype, torch.float32)
        factors = None if mask is None else mask.to(real)
        grads = deform_planes.gradients(
            upstream.to(real), x.to(real), offset.to(real), factors, weight.to(real), ctx.taps
        )
        bias = upstream.sum((0, 2, 3)) if ctx.needs_input_grad[4] else None
        mask_grad = None if grads.mask is None else grads.mask.to(x.dtype)
        return (
            grads.x.to(x.dtype),
            grads.offset.to(x.dtype),
            mask_grad,
            grads.weight.to(x.dtype),
            bias,
            None,
        )


def deform_conv2d_reference(
    x: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    mask: Tensor | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    border: Border = "zeros",
) -> Tensor:
    """Compute `deform_conv2d` plainly: slow, and the oracle of the fast ways."""
    stride, padding, dilation = _pair(stride), _pair(padding), _pair(dilation)
    batch, channels, height, width = x.shape
    out_channels, in_channels, kernel_h, kernel_w = weight.shape
    taps, out_h, out_w = kernel_h * kernel_w, offset.shape[-2], offset.shape[-1]
    groups = offset.shape[1] // (2 * taps)
    rows = (
        torch.arange(kernel_h, device=x.device).repeat_interleave(kernel_w)[:, None, None]
        * dilation[0]
    )
    columns = torch.arange(kernel_w, device=x.device).repeat(kernel_h)[:, None, None] * dilation[1]
    y0 = torch.arange(out_h, device=x.device)[:, None] * stride[0] - padding[0]
    x0 = torch.arange(out_w, device=x.device) * stride[1] - padding[1]
    real = torch.promote_types(
        offset.dtype, torch.float32
    )  # half precision cannot tell neighbors apart
    moved = offset.reshape(batch, groups, taps, 2, out_h, out_w).to(real)
    py, px = rows + y0 + moved[:, :, :, 0], columns + x0 + moved[:, :, :, 1]  # (B, G, K, H', W')
    factor = (
        torch.ones_like(py) if mask is None else mask.reshape(batch, groups, taps, out_h, out_w)
    )
    if border == "original":
        factor = factor * ((py >= 0) & (py < height) & (px >= 0) & (px < width))
    table = x.reshape(batch, groups, channels // groups, height * width)
    top, left = py.detach().floor(), px.detach().floor()
    sampled = x.new_zeros(())
    for line, line_weight in ((top, 1 - (py - top)), (top + 1, py - top)):
        for column, column_weight in ((left, 1 - (px - left)), (left + 1, px - left)):
            inside = (line >= 0) & (line < height) & (column >= 0) & (column < width) | (
                border == "original"
            )
            index = (line.clamp(0, height - 1) * width + column.clamp(0, width - 1)).long()
            index = index.flatten(2).unsqueeze(2).expand(-1, -1, channels // groups, -1)
            value = table.gather(3, index).view(batch, groups, -1, taps, out_h, out_w)
            share = (line_weight * column_weight * inside * factor).to(x.dtype)
            sampled = sampled + value * share.unsqueeze(2)
    conv_groups = channels // in_channels
    stacked = sampled.reshape(batch, conv_groups, in_channels * taps, out_h * out_w)
    out = weight.reshape(conv_groups, out_channels // conv_groups, -1) @ stacked
    out = out.view(batch, out_channels, out_h, out_w)
    return out if bias is None else out + bias[:, None, None]


def _taps(
    x: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    weight: Tensor,
    steps: tuple[tuple[int, int], tuple[int, int], tuple[int, int]],
    border: Border,
) -> Taps:
    """Check the shapes; steps are stride, padding, dilation."""
    if x.ndim != 4 or weight.ndim != 4 or offset.ndim != 4 or x.shape[1] % weight.shape[1]:
        raise ValueError(
            f"x {tuple(x.shape)}, offset {tuple(offset.shape)} and weight {tuple(weight.shape)} do not fit; they are "
            "(B, C, H, W), (B, 2·G·K, H', W') and (O, C/groups, kh, kw)"
        )
    stride, padding, dilation = steps
    kernel = (weight.shape[2], weight.shape[3])
    num = kernel[0] * kernel[1]
    groups = offset.shape[1] // (2 * num)
    size = tuple(
        (x.shape[2 + i] + 2 * padding[i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1
        for i in (0, 1)
    )
    if groups == 0 or x.shape[1] % groups or offset.shape != (x.shape[0], 2 * groups * num, *size):
        raise ValueError(
            f"offset {tuple(offset.shape)} does not fit x {tuple(x.shape)}: with {num} taps it is (B, G·{2 * num}, "
            f"{size[0]}, {size[1]}), G a divisor of {x.shape[1]}"
        )
    if mask is not None and mask.shape != (x.shape[0], groups * num, *size):
        raise ValueError(
            f"mask {tuple(mask.shape)} does not fit offset {tuple(offset.shape)}: half as many channels"
        )
    return Taps(kernel, stride, padding, dilation, groups, border)


def _has_kernel(x: Tensor) -> bool:
    """Tell whether the GPU's kernel can take x."""
    return x.device.type == "cuda" and x.dtype != torch.float64 and find_spec("triton") is not None


def _without_groups(weight: Tensor, channels: int) -> Tensor:
    """Write a convolution with groups (O, C/groups, kh, kw) as one without (O, C, kh, kw)."""
    parts = channels // weight.shape[1]
    if parts == 1:
        return weight
    width = weight.shape[1]
    blocks = [
        functional.pad(rows, (0, 0, 0, 0, i * width, (parts - 1 - i) * width))
        for i, rows in enumerate(weight.chunk(parts))
    ]
    return torch.cat(blocks)


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else value
