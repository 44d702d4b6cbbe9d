"""Deformable convolution: every tap of the kernel samples at an offset, between pixels.

    x (B, C, H, W), offset (B, 2·G·K, H', W'), mask (B, G·K, H', W')
      columns (B, C·K, H'·W') = mask · bilinear sample of x at tap + offset, for each group of
                                C/G channels
      weight (O, C/groups, kh, kw) · columns + bias ── (B, O, H', W')

K = kh·kw taps, G offset groups; the offsets of a tap are (dy, dx).

Source: Dai et al., ICCV 2017, Eq. 2; the mask of Zhu et al. (Deformable ConvNets v2), CVPR 2019,
Eq. 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional

from tubelet.ops import deform_planes, deform_rows
from tubelet.ops.row_sampler import Border, Strip, Taps

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
    """Convolve with taps that are moved by offsets, as `torchvision.ops.deform_conv2d` does.

    Args:
        x: (B, C, H, W).
        offset: (B, 2·G·K, H', W'), pixels of `x`; (dy, dx) of each tap of each of G groups of
            channels.
        weight: (O, C/groups, kh, kw); `groups` of the convolution follow from its shape.
        bias: (O,).
        mask: (B, G·K, H', W'), factors of the samples.
        stride: Pixels between outputs, (vertical, horizontal).
        padding: Pixels added on each side, (vertical, horizontal).
        dilation: Pixels between taps, (vertical, horizontal).
        border: "zeros": pixels outside are zero and are interpolated like others (Deformable
            ConvNets v2). "original": a sample outside is zero, and one beyond the last pixel by
            less than one is that pixel (the operation of Dai et al.).

    Returns:
        (B, O, H', W').

    Raises:
        ValueError: The shapes do not fit.
    """
    taps = _make_taps(
        x,
        offset,
        mask,
        weight,
        stride=_pair(stride),
        padding=_pair(padding),
        dilation=_pair(dilation),
        border=border,
    )
    if torch.compiler.is_compiling() or not (x.device.type == "cpu" or _has_triton_kernel(x)):
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

    # Positions need float32, and half precision is slow on a CPU; the kernel of the GPU computes
    # positions in float32 itself.
    dtype = x.dtype if _has_triton_kernel(x) else torch.promote_types(x.dtype, torch.float32)
    weight = _without_groups(weight, x.shape[1]).to(dtype)
    mask = None if mask is None else mask.to(dtype)
    bias = None if bias is None else bias.to(dtype)
    out = _DeformConv.apply(
        x.to(dtype),
        offset.to(dtype),
        mask,
        weight,
        bias,
        taps,
    )
    return cast(Tensor, out).to(x.dtype)


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
    """Convolve with taps that a network moves: activation, flows and sampling in one operation.

    offset = max_residue · tanh(first two thirds of `predicted`) + flow, mask = sigmoid(last third).
    Without gradients, only a strip of the offsets and of the mask is in memory at a time.

    Args:
        x: (B, C, H, W).
        predicted: (B, 3·G·K, H', W'): offsets (dy, dx) of each tap of each group, then the mask,
            before activation.
        weight: (O, C, kh, kw).
        bias: (O,).
        flows: F flows (B, 2, H', W'), pixels, dx then dy; each moves one of F equal parts of the
            groups. Empty: no flow.
        max_residue_px: Largest distance of an offset from the flow, pixels; None: offsets without
            tanh and without bound.
        padding: Pixels added on each side.

    Returns:
        (B, O, H', W').

    Raises:
        ValueError: The shapes do not fit.

    Source: Chan et al. (BasicVSR++), CVPR 2022, Eqs. 3 to 6; without flows, Zhu et al., CVPR 2019.
    """
    num_samples = predicted.shape[1] // 3
    offset = predicted[:, : 2 * num_samples]
    mask = predicted[:, 2 * num_samples :]

    if not _can_run_in_strips(
        x,
        predicted,
        weight,
        bias,
        flows,
    ):
        if max_residue_px is not None:
            offset = max_residue_px * torch.tanh(offset)
        if flows:
            # (dx, dy) → (dy, dx), once for each tap of the groups that the flow moves.
            taps_per_flow = num_samples // len(flows)
            shifts: list[Tensor] = []
            for flow in flows:
                shifts.append(flow.flip(1).repeat(1, taps_per_flow, 1, 1))
            offset = offset + torch.cat(shifts, 1)
        return deform_conv2d(
            x,
            offset,
            weight,
            bias,
            mask=torch.sigmoid(mask),
            padding=padding,
        )

    taps = _make_taps(
        x,
        offset,
        mask,
        weight,
        stride=(1, 1),
        padding=(padding, padding),
        dilation=(1, 1),
        border="zeros",
    )
    return deform_rows.convolve(
        x,
        _GuideReader(predicted, flows, max_residue_px),
        (predicted.shape[2], predicted.shape[3]),
        weight,
        bias,
        taps,
    )


def _can_run_in_strips(
    x: Tensor,
    predicted: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    flows: Sequence[Tensor],
) -> bool:
    """Return whether the guided convolution can read its prediction strip by strip."""
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    # Strips do not support groups of the convolution.
    if weight.shape[1] != x.shape[1]:
        return False
    tensors = [x, predicted, weight, *flows]
    if bias is not None:
        tensors.append(bias)
    for tensor in tensors:
        if tensor.dtype not in (torch.float32, torch.bfloat16):
            return False
        # Strips have no gradient.
        if tensor.requires_grad and torch.is_grad_enabled():
            return False
    return True


class _GuideReader:
    """Reader of strips from a prediction and flows, with scratch memory that is allocated once."""

    def __init__(
        self,
        predicted: Tensor,
        flows: Sequence[Tensor],
        max_residue_px: float | None,
    ) -> None:
        self.predicted = predicted
        self.flows = flows
        self.max_residue_px = max_residue_px
        self.scratch = torch.empty(0)

    def __call__(self, image: int, pixels: slice) -> Strip:
        """Read the strip of an image of the batch."""
        # (n, 3·G·K); positions need float32.
        source = deform_rows.rows_of(self.predicted[image], pixels).float()
        if self.scratch.shape[0] < len(source):
            self.scratch = torch.empty_like(source)
        activated = self.scratch[: len(source)]

        # 2·G·K offsets, then G·K factors.
        num_offsets = 2 * (source.shape[1] // 3)
        source_offset = source[:, :num_offsets]
        source_mask = source[:, num_offsets:]
        mask = torch.sigmoid(source_mask, out=activated[:, num_offsets:])
        if self.max_residue_px is None:
            origin_y, origin_x = self._origins(image, pixels, 0.0)
            return Strip(
                offset=source_offset,
                gain=1.0,
                origin_y=origin_y,
                origin_x=origin_x,
                mask=mask,
            )

        # r · tanh(a) = 2r · sigmoid(2a) - r, and sigmoid is six times as fast.
        offset = torch.mul(source_offset, 2, out=activated[:, :num_offsets])
        offset.sigmoid_()
        origin_y, origin_x = self._origins(image, pixels, -self.max_residue_px)
        return Strip(
            offset=offset,
            gain=2 * self.max_residue_px,
            origin_y=origin_y,
            origin_x=origin_x,
            mask=mask,
        )

    def _origins(
        self,
        image: int,
        pixels: slice,
        shift_px: float,
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return the origins y and x (n, F) of the equal parts of the groups, shifted."""
        if not self.flows:
            if shift_px == 0:
                return None, None
            origin = torch.full((1, 1), shift_px)
            return origin, origin
        flow_pixels: list[Tensor] = []
        for flow in self.flows:
            # (2, H', W') → (2, n)
            flow_pixels.append(flow[image].flatten(1)[:, pixels].float())
        # (2, n, F), dx then dy
        origins = torch.stack(flow_pixels, 2) + shift_px
        return origins[1], origins[0]


class _DeformConv(torch.autograd.Function):
    """Deformable convolution with its gradient, which samples the columns again."""

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
        if _has_triton_kernel(x):
            # Triton is not installed everywhere.
            from tubelet.ops.deform_triton import sample_columns

            # (B, O, H'·W') → (B, O, H', W')
            out = weight.flatten(1) @ sample_columns(x, offset, mask, taps)
            out = out.view(len(x), len(weight), *offset.shape[2:])
            return out if bias is None else out.add_(bias[:, None, None])

        if _prefers_planes(x, offset, mask, taps):
            return deform_planes.convolve_planes(
                x,
                offset,
                mask,
                weight,
                bias,
                taps,
            )
        out_size = (offset.shape[2], offset.shape[3])
        read = deform_rows.read_offsets(offset, mask)
        return deform_rows.convolve(
            x,
            read,
            out_size,
            weight,
            bias,
            taps,
        )

    @staticmethod
    def backward(ctx: Any, *upstreams: Tensor) -> tuple[Tensor | None, ...]:
        (upstream,) = upstreams
        saved = cast(tuple[Tensor, Tensor, Tensor | None, Tensor], ctx.saved_tensors)
        x, offset, mask, weight = saved
        dtype = torch.promote_types(x.dtype, torch.float32)
        grads = deform_planes.gradients(
            upstream.to(dtype),
            x.to(dtype),
            offset.to(dtype),
            None if mask is None else mask.to(dtype),
            weight.to(dtype),
            ctx.taps,
        )
        bias_grad = upstream.sum((0, 2, 3)) if ctx.needs_input_grad[4] else None
        mask_grad = None if grads.mask is None else grads.mask.to(x.dtype)
        return (
            grads.x.to(x.dtype),
            grads.offset.to(x.dtype),
            mask_grad,
            grads.weight.to(x.dtype),
            bias_grad,
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
    """Compute `deform_conv2d` by plain operations: slow, the reference of the fast versions."""
    stride_y, stride_x = _pair(stride)
    padding_y, padding_x = _pair(padding)
    dilation_y, dilation_x = _pair(dilation)
    batch, channels, height, width = x.shape
    out_channels, in_channels, kernel_h, kernel_w = weight.shape
    out_h, out_w = offset.shape[-2:]
    num_taps = kernel_h * kernel_w
    offset_groups = offset.shape[1] // (2 * num_taps)
    group_channels = channels // offset_groups

    # Positions of the taps before they are moved, relative to the output pixel: (K, 1, 1).
    kernel_rows = torch.arange(kernel_h, device=x.device).repeat_interleave(kernel_w)
    kernel_columns = torch.arange(kernel_w, device=x.device).repeat(kernel_h)
    tap_y = kernel_rows[:, None, None] * dilation_y
    tap_x = kernel_columns[:, None, None] * dilation_x
    # Positions of the output pixels: (H', 1) and (W',).
    out_y = torch.arange(out_h, device=x.device)[:, None] * stride_y - padding_y
    out_x = torch.arange(out_w, device=x.device) * stride_x - padding_x

    # Positions of the samples: (B, G, K, H', W'). Half precision cannot distinguish neighbors.
    position_dtype = torch.promote_types(offset.dtype, torch.float32)
    moved = offset.reshape(batch, offset_groups, num_taps, 2, out_h, out_w).to(position_dtype)
    sample_y = tap_y + out_y + moved[:, :, :, 0]
    sample_x = tap_x + out_x + moved[:, :, :, 1]

    if mask is None:
        factor = torch.ones_like(sample_y)
    else:
        factor = mask.reshape(batch, offset_groups, num_taps, out_h, out_w)
    if border == "original":
        factor = factor * (
            (sample_y >= 0) & (sample_y < height) & (sample_x >= 0) & (sample_x < width)
        )

    # Bilinear interpolation: the sum over two lines and two columns.
    pixels = x.reshape(batch, offset_groups, group_channels, height * width)
    top = sample_y.detach().floor()
    left = sample_x.detach().floor()
    sampled = x.new_zeros(())
    lines = ((top, 1 - (sample_y - top)), (top + 1, sample_y - top))
    for line, line_weight in lines:
        columns = ((left, 1 - (sample_x - left)), (left + 1, sample_x - left))
        for column, column_weight in columns:
            inside = (line >= 0) & (line < height) & (column >= 0) & (column < width)
            # "original" repeats the last pixel; `factor` is zero further out.
            inside = inside | (border == "original")
            index = line.clamp(0, height - 1) * width + column.clamp(0, width - 1)
            # (B, G, K·H'·W') → (B, G, C/G, K·H'·W'): the same pixels for all channels.
            index = index.long().flatten(2).unsqueeze(2)
            index = index.expand(-1, -1, group_channels, -1)
            # (B, G, C/G, K, H', W')
            value = pixels.gather(3, index)
            value = value.view(batch, offset_groups, -1, num_taps, out_h, out_w)
            share = (line_weight * column_weight * inside * factor).to(x.dtype)
            sampled = sampled + value * share.unsqueeze(2)

    # The convolution as a matrix product, for each of its groups.
    conv_groups = channels // in_channels
    stacked = sampled.reshape(batch, conv_groups, in_channels * num_taps, out_h * out_w)
    out = weight.reshape(conv_groups, out_channels // conv_groups, -1) @ stacked
    out = out.view(batch, out_channels, out_h, out_w)
    return out if bias is None else out + bias[:, None, None]


def _make_taps(
    x: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    weight: Tensor,
    *,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    border: Border,
) -> Taps:
    """Check the shapes and describe the taps.

    Raises:
        ValueError: The shapes do not fit.
    """
    has_four_axes = x.ndim == 4 and weight.ndim == 4 and offset.ndim == 4
    if not has_four_axes or x.shape[1] % weight.shape[1]:
        raise ValueError(
            f"x {tuple(x.shape)}, offset {tuple(offset.shape)} and weight {tuple(weight.shape)} "
            "do not fit; they are (B, C, H, W), (B, 2·G·K, H', W') and (O, C/groups, kh, kw)"
        )
    batch, channels, _, _ = x.shape
    kernel = (weight.shape[2], weight.shape[3])
    num_taps = kernel[0] * kernel[1]
    groups = offset.shape[1] // (2 * num_taps)

    out_size: list[int] = []
    for axis in (0, 1):
        padded_px = x.shape[2 + axis] + 2 * padding[axis]
        reach_px = dilation[axis] * (kernel[axis] - 1)
        out_size.append((padded_px - reach_px - 1) // stride[axis] + 1)

    offset_shape = (batch, 2 * groups * num_taps, *out_size)
    if groups == 0 or channels % groups or offset.shape != offset_shape:
        raise ValueError(
            f"offset {tuple(offset.shape)} does not fit x {tuple(x.shape)}: with {num_taps} taps "
            f"it is (B, G·{2 * num_taps}, {out_size[0]}, {out_size[1]}), G a divisor of {channels}"
        )
    if mask is not None and mask.shape != (batch, groups * num_taps, *out_size):
        raise ValueError(
            f"mask {tuple(mask.shape)} does not fit offset {tuple(offset.shape)}: "
            "it has half as many channels"
        )
    return Taps(
        kernel,
        stride,
        padding,
        dilation,
        groups,
        border,
    )


def _has_triton_kernel(x: Tensor) -> bool:
    """Return whether the kernel of the GPU can take `x`."""
    if x.device.type != "cuda" or x.dtype == torch.float64:
        return False
    return find_spec("triton") is not None


def _prefers_planes(
    x: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    taps: Taps,
) -> bool:
    """Return whether sampling planes is possible and faster than gathering rows."""
    max_channels = deform_planes.MAX_CHANNELS * taps.groups
    if taps.border != "zeros" or x.shape[1] > max_channels:
        return False
    tensors = [x, offset]
    if mask is not None:
        tensors.append(mask)
    return all(tensor.is_contiguous() for tensor in tensors)


def _without_groups(weight: Tensor, channels: int) -> Tensor:
    """Write a convolution with groups (O, C/groups, kh, kw) as one without (O, C, kh, kw)."""
    group_channels = weight.shape[1]
    num_groups = channels // group_channels
    if num_groups == 1:
        return weight
    blocks: list[Tensor] = []
    for i, block in enumerate(weight.chunk(num_groups)):
        # Zeros for the channels of the other groups.
        channels_before = i * group_channels
        channels_after = (num_groups - 1 - i) * group_channels
        padding = (0, 0, 0, 0, channels_before, channels_after)
        blocks.append(functional.pad(block, padding))
    return torch.cat(blocks)


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else value
