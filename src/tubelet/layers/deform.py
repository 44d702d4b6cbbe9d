"""Alignment by deformable convolution: offsets predicted from a guide move the kernel's taps.

    guide (B, C', H, W) ── conv_offset ── offset, mask
    x (B, C, H, W) ── deformable convolution ── (B, O, H, W)

Source: Zhu et al. (Deformable ConvNets v2), CVPR 2019; as in Wang et al. (EDVR), CVPRW 2019,
Sec. 3.2; second-order flow-guided alignment: Chan et al. (BasicVSR++), CVPR 2022, Sec. 3.2,
Eqs. 1 to 6.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from tubelet.ops.deform import Border, deform_conv2d, guided_deform_conv2d

__all__ = ["ModulatedDeformConv", "SecondOrderAlign"]


class ModulatedDeformConv(nn.Module):
    """Deformable convolution whose offsets and mask are predicted from a guide.

    Parameters: `weight` (O, C, k, k), `bias` (O,), `conv_offset` (a convolution C → 3·G·k² or
    2·G·k²).

    Args:
        in_channels: C of the input and of the guide.
        out_channels: O.
        kernel_px: Side of the kernel, odd.
        groups: G, the number of channel groups that have their own offsets.
        modulation: "sigmoid": samples are weighted by a predicted mask; "none": offsets only.
        bias: Add a learned bias to every output channel.
        border: See `deform_conv2d`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_px: int = 3,
        *,
        groups: int,
        modulation: Literal["sigmoid", "none"] = "sigmoid",
        bias: bool = True,
        border: Border = "zeros",
    ) -> None:
        super().__init__()
        self.modulation = modulation
        self.border: Border = border
        self.padding_px = kernel_px // 2
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, kernel_px, kernel_px))
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None
        # dy and dx of each tap, and its mask.
        values_per_tap = 3 if modulation == "sigmoid" else 2
        self.conv_offset = nn.Conv2d(
            in_channels,
            values_per_tap * groups * kernel_px**2,
            kernel_px,
            padding=kernel_px // 2,
        )
        _reset_parameters(self.weight, self.bias, self.conv_offset)

    def forward(self, x: Tensor, guide: Tensor) -> Tensor:
        """Align features with offsets from a guide.

        Args:
            x: (B, C, H, W).
            guide: (B, C, H, W).

        Returns:
            (B, O, H, W).
        """
        predicted = self.conv_offset(guide)
        if self.modulation == "sigmoid" and self.border == "zeros":
            return guided_deform_conv2d(
                x,
                predicted,
                self.weight,
                self.bias,
                padding=self.padding_px,
            )

        offset = predicted
        mask: Tensor | None = None
        if self.modulation == "sigmoid":
            num_samples = predicted.shape[1] // 3
            offset = predicted[:, : 2 * num_samples]
            mask = torch.sigmoid(predicted[:, 2 * num_samples :])
        return deform_conv2d(
            x,
            offset,
            self.weight,
            self.bias,
            mask=mask,
            padding=self.padding_px,
            border=self.border,
        )


class SecondOrderAlign(nn.Module):
    """Align the features of the last two steps with the current frame, around their flows.

    Parameters: `weight` (C, 2C, 3, 3), `bias` (C,), `conv_offset.{0, 2, 4, 6}` (convolutions
    3C+4 → C → C → C → 27·G).

    Args:
        channels: C of the features of one step.
        groups: G, offset groups of the two steps together; the first half reads the first step's
            features.
        max_residue_px: Largest distance of an offset from its flow, pixels.
    """

    def __init__(self, channels: int, *, groups: int = 16, max_residue_px: float = 10.0) -> None:
        super().__init__()
        self.max_residue_px = max_residue_px
        self.weight = nn.Parameter(torch.empty(channels, 2 * channels, 3, 3))
        self.bias = nn.Parameter(torch.empty(channels))
        self.conv_offset = nn.Sequential(
            nn.Conv2d(3 * channels + 4, channels, 3, padding=1),
            nn.LeakyReLU(0.1, inplace=True),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.LeakyReLU(0.1, inplace=True),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.LeakyReLU(0.1, inplace=True),
            # dy, dx and mask of each of the nine taps of each group.
            nn.Conv2d(channels, 27 * groups, 3, padding=1),
        )
        last = self.conv_offset[-1]
        assert isinstance(last, nn.Conv2d)
        _reset_parameters(self.weight, self.bias, last)

    def forward(
        self,
        x: Tensor,
        guide: Tensor,
        flow_1: Tensor,
        flow_2: Tensor,
    ) -> Tensor:
        """Align two steps.

        Args:
            x: (B, 2C, H, W), features of step t-1, then of step t-2.
            guide: (B, 3C, H, W): features of t-1 warped by `flow_1`, the current frame's, those of
                t-2 warped by `flow_2`.
            flow_1: (B, 2, H, W), pixels, dx then dy: from the current frame to t-1.
            flow_2: (B, 2, H, W): from the current frame to t-2.

        Returns:
            (B, C, H, W).
        """
        predicted = self.conv_offset(torch.cat([guide, flow_1, flow_2], 1))
        return guided_deform_conv2d(
            x,
            predicted,
            self.weight,
            self.bias,
            flows=(flow_1, flow_2),
            max_residue_px=self.max_residue_px,
            padding=1,
        )


def _reset_parameters(weight: Tensor, bias: Tensor | None, conv_offset: nn.Conv2d) -> None:
    """Start as half an ordinary convolution: all offsets are 0, and the mask is sigmoid(0)."""
    bound = 1 / math.sqrt(weight[0].numel())
    nn.init.uniform_(weight, -bound, bound)
    if bias is not None:
        nn.init.zeros_(bias)
    nn.init.zeros_(conv_offset.weight)
    assert conv_offset.bias is not None
    nn.init.zeros_(conv_offset.bias)
