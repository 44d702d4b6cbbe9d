"""Residual blocks without normalization, and the last convolution of other residual groups.

    x (B, C, H, W) → (B, C, H, W)

Source: Lim et al. (EDSR), CVPRW 2017, Fig. 2; the trunk as in Chan et al. (BasicVSR), CVPR 2021,
Fig. 3.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from tubelet.layers.convolution import ConvAct, ConvAdd

__all__ = ["ResidualBlock", "ResidualConv", "ResidualTrunk", "residual_conv"]

ResidualConv = Literal["1conv", "3conv"]
"""End of a residual group of transformer blocks, see `residual_conv`."""


class ResidualBlock(nn.Module):
    """Convolution, ReLU, convolution, skip.

    Args:
        channels: Width, C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = ConvAct(channels, channels, act="relu")
        self.conv2 = ConvAdd(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        return self.conv2(self.conv1(x), x)


class ResidualTrunk(nn.Module):
    """One convolution to the width of the trunk, then residual blocks.

    Args:
        in_channels: Channels of the input.
        channels: Width of the trunk, C.
        num_blocks: Number of residual blocks.
    """

    def __init__(self, in_channels: int, channels: int, num_blocks: int) -> None:
        super().__init__()
        self.main = nn.Sequential(
            nn.Conv2d(in_channels, channels, 3, padding=1),
            nn.LeakyReLU(0.1, inplace=True),
            nn.Sequential(*(ResidualBlock(channels) for _ in range(num_blocks))),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, C, H, W)."""
        return self.main(x)


def residual_conv(channels: int, kind: ResidualConv) -> nn.Module:
    """Build the convolution at the end of a group of transformer blocks: (B, C, H, W) → the same.

    Args:
        channels: Width, C.
        kind: One convolution, or three over a quarter of the channels.

    Source: Liang et al. (SwinIR), ICCVW 2021.
    """
    if kind == "1conv":
        return ConvAct(channels, channels)
    inner = channels // 4
    return nn.Sequential(
        nn.Conv2d(channels, inner, 3, padding=1),
        nn.LeakyReLU(0.2, inplace=True),
        nn.Conv2d(inner, inner, 1),
        nn.LeakyReLU(0.2, inplace=True),
        nn.Conv2d(inner, channels, 3, padding=1),
    )
