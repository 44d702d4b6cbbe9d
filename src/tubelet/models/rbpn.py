"""RBPN: the neighbors of a frame enter one after another, each as a correction by back-projection.

    x, neighbors k = 1 … 2r (B, 3, H, W), flow from x to each (B, 2, H, W)

      L = conv(x)                                                             (B, base, H, W)
      for each neighbor:
        h0 = DBPN(L)                                                          (B, C, sH, sW)
        h1 = deconvolution(residual blocks(conv(cat(x, neighbor, flow))))     (B, C, sH, sW)
        H = h0 + conv(residual blocks(h0 − h1))                               Eq. 5
        L = strided convolution(residual blocks(H))
      sr = conv(cat(H of all neighbors)), plus upsampled x if the weights expect it
                                                                              (B, 1, 3, sH, sW)

DBPN upsamples and downsamples alternately by up- and down-projections. Each projection maps its
result back, and corrects it by the error.

Published: base 256, C = 64, 5 residual blocks, 7 frames, ×4, Vimeo-90K (12.8 M parameters). Optical
flow is an input: `forward` estimates it, and `restore` gets it. Almost no computation depends on
only one frame, so there is no `encode`.

Source: Haris et al., "Recurrent Back-Projection Network for Video Super-Resolution", CVPR 2019,
Secs. 3.1 to 3.3; DBPN: Haris et al., CVPR 2018, Sec. 3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from tubelet.errors import ConfigError
from tubelet.models.architecture import Architecture, Contract
from tubelet.models.config_checks import check_choice, check_min
from tubelet.models.rbpn_flow import estimate_flow
from tubelet.models.state_dict import Rule, State, count_names, has_convolutions, rename
from tubelet.ops.resize import imresize
from tubelet.types import Temporal

__all__ = ["ARCHITECTURE", "RBPN", "RBPNConfig"]

_SCALES = (2, 4, 8)
# Excess of a projection's kernel side over its stride.
_KERNEL_MARGIN_PX = 4
_NUM_UP_PROJECTIONS = 3
# Frame, neighbor, flow
_INPUT_CHANNELS = 3 + 3 + 2
# Twice as much as the network needs, as the flow is estimated within the tile.
_HALO_PX = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class RBPNConfig:
    """Configuration of an `RBPN`."""

    PUBLISHED_NAMES: ClassVar[Mapping[str, str]] = {
        "base_filter": "base_channels",
        "feat": "channels",
        "num_resblock": "num_blocks",
    }
    FORMER_NAMES: ClassVar[Mapping[str, str]] = {"blocks": "num_blocks"}

    scale: int = 4
    """Upscaling factor: 2, 4 or 8."""
    num_frames: int = 7
    """Frames of the window, including the middle one; odd."""
    base_channels: int = 256
    """Width of the features at input resolution."""
    channels: int = 64
    """Width C of the features at output resolution."""
    num_blocks: int = 5
    """Number of residual blocks in each of the three residual networks."""
    skip: Literal["none", "bicubic"] = "none"
    """Upsampled frame that is added to the output. Checkpoints do not store it: `infer` takes
    "none", as published."""

    def __post_init__(self) -> None:
        check_choice(self, "scale", _SCALES)
        if self.num_frames < 3 or self.num_frames % 2 == 0:
            raise ConfigError(
                f"RBPNConfig: num_frames={self.num_frames} must be odd and at least 3"
            )
        check_min(self, "base_channels", 1)
        check_min(self, "channels", 1)
        check_min(self, "num_blocks", 0)
        check_choice(self, "skip", ("none", "bicubic"))


class ConvBlock(nn.Module):
    """Convolution and PReLU.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_px: Side of the kernel; with a stride other than 1, four pixels more than the stride,
            so that the size is divided by the stride.
        stride: Stride of the convolution.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_px: int,
        stride: int = 1,
    ) -> None:
        super().__init__()
        padding = kernel_px // 2 if stride == 1 else _KERNEL_MARGIN_PX // 2
        self.conv = nn.Conv2d(
            in_channels,
            out_channels,
            kernel_px,
            stride=stride,
            padding=padding,
        )
        self.act = nn.PReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in, H, W) to (B, out, H/stride, W/stride)."""
        return self.act(self.conv(x))


class DeconvBlock(nn.Module):
    """Transposed convolution and PReLU.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        scale: Upscaling factor s.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        scale: int,
    ) -> None:
        super().__init__()
        self.deconv = nn.ConvTranspose2d(
            in_channels,
            out_channels,
            scale + _KERNEL_MARGIN_PX,
            stride=scale,
            padding=_KERNEL_MARGIN_PX // 2,
        )
        self.act = nn.PReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in, H, W) to (B, out, sH, sW)."""
        return self.act(self.deconv(x))


class ResnetBlock(nn.Module):
    """Two convolutions and a skip; one PReLU is used after the first and after the sum.

    Args:
        channels: Width of the features.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.act = nn.PReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        y = self.act(self.conv1(x))
        y = self.conv2(y).add_(x)
        return self.act(y)


class UpProjection(nn.Module):
    """Upsampling, corrected by the error of the result's back-projection (DBPN, Eqs. 1 to 5).

    Args:
        channels: Width C of the features.
        scale: Upscaling factor s.
    """

    def __init__(
        self,
        channels: int,
        scale: int,
    ) -> None:
        super().__init__()
        kernel_px = scale + _KERNEL_MARGIN_PX
        self.up_conv1 = DeconvBlock(channels, channels, scale)
        self.up_conv2 = ConvBlock(channels, channels, kernel_px, scale)
        self.up_conv3 = DeconvBlock(channels, channels, scale)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C, sH, sW)."""
        high = self.up_conv1(x)  # Eq. 1
        error = self.up_conv2(high) - x  # Eqs. 2 and 3
        return self.up_conv3(error) + high  # Eqs. 4 and 5


class DownProjection(nn.Module):
    """Downsampling, corrected by the error of the result's back-projection (DBPN, Eqs. 6 to 10).

    Args:
        channels: Width C of the features.
        scale: Factor s.
    """

    def __init__(
        self,
        channels: int,
        scale: int,
    ) -> None:
        super().__init__()
        kernel_px = scale + _KERNEL_MARGIN_PX
        self.down_conv1 = ConvBlock(channels, channels, kernel_px, scale)
        self.down_conv2 = DeconvBlock(channels, channels, scale)
        self.down_conv3 = ConvBlock(channels, channels, kernel_px, scale)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, sH, sW) to (B, C, H, W)."""
        low = self.down_conv1(x)  # Eq. 6
        error = self.down_conv2(low) - x  # Eqs. 7 and 8
        return self.down_conv3(error) + low  # Eqs. 9 and 10


class DBPN(nn.Module):
    """Deep back-projection network: three up-projections, with down-projections between them.

    Args:
        config: Configuration of the network.
    """

    def __init__(self, config: RBPNConfig) -> None:
        super().__init__()
        c = config.channels
        scale = config.scale
        self.feat1 = ConvBlock(config.base_channels, c, 1)
        self.up1 = UpProjection(c, scale)
        self.down1 = DownProjection(c, scale)
        self.up2 = UpProjection(c, scale)
        self.down2 = DownProjection(c, scale)
        self.up3 = UpProjection(c, scale)
        self.output = nn.Conv2d(_NUM_UP_PROJECTIONS * c, c, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, base, H, W) to (B, C, sH, sW)."""
        h1 = self.up1(self.feat1(x))
        h2 = self.up2(self.down1(h1))
        h3 = self.up3(self.down2(h2))
        features = torch.cat([h3, h2, h1], 1)
        return self.output(features)


class RBPN(nn.Module):
    """Recurrent back-projection over the neighbors of a frame; see the drawing at the top.

    Args:
        config: Configuration of the network.
    """

    def __init__(self, config: RBPNConfig) -> None:
        super().__init__()
        self.config = config
        base = config.base_channels
        c = config.channels
        scale = config.scale
        self.feat0 = ConvBlock(3, base, 3)
        self.feat1 = ConvBlock(_INPUT_CHANNELS, base, 3)
        self.dbpn = DBPN(config)
        # Frame, neighbor and flow to output resolution
        self.res_feat1 = _residual_blocks(base, config.num_blocks)
        self.res_feat1.append(DeconvBlock(base, c, scale))
        # Correction by the neighbor
        self.res_feat2 = _residual_blocks(c, config.num_blocks)
        self.res_feat2.append(ConvBlock(c, c, 3))
        # Back to input resolution
        self.res_feat3 = _residual_blocks(c, config.num_blocks)
        self.res_feat3.append(ConvBlock(c, base, scale + _KERNEL_MARGIN_PX, scale))
        num_neighbors = config.num_frames - 1
        self.output = nn.Conv2d(num_neighbors * c, 3, 3, padding=1)

    def restore(
        self,
        frame: Tensor,
        neighbors: Sequence[Tensor],
        flows: Sequence[Tensor],
    ) -> Tensor:
        """Upscale a frame, given the optical flow.

        Args:
            frame: Current low-quality frame, (B, 3, H, W), in [0, 1].
            neighbors: num_frames − 1 frames, (B, 3, H, W) each, in order of time.
            flows: Flow from the frame to each neighbor, (B, 2, H, W), pixels, dx then dy.

        Returns:
            (B, 3, sH, sW).
        """
        low = self.feat0(frame)
        last = len(neighbors) - 1
        # The output convolution, over the concatenated results of all neighbors, is summed up
        # neighbor by neighbor, so that only one result is in memory.
        weights = self.output.weight.chunk(len(neighbors), 1)
        bias = self.output.bias
        sr = frame.new_zeros(()) if bias is None else bias[:, None, None]
        steps = zip(neighbors, flows, weights, strict=True)
        for k, (neighbor, flow, weight) in enumerate(steps):
            high = self.dbpn(low)
            inputs = torch.cat([frame, neighbor, flow], 1)
            observed = self.res_feat1(self.feat1(inputs))
            high = high + self.res_feat2(high - observed)  # Eq. 5
            sr = functional.conv2d(high, weight, padding=1) + sr
            if k < last:
                low = self.res_feat3(high)
        if self.config.skip == "bicubic":
            sr = sr + imresize(frame, self.config.scale)
        return sr

    def forward(self, lq: Tensor) -> Tensor:
        """Upscale the middle frame of a window.

        Args:
            lq: Low-quality window, (B, 2r + 1, 3, H, W), in [0, 1].

        Returns:
            (B, 1, 3, sH, sW); values can exceed [0, 1].
        """
        neighbors = list(lq.unbind(1))
        frame = neighbors.pop(len(neighbors) // 2)
        # All flows at once, as one batch
        num_neighbors = len(neighbors)
        refs = torch.cat([frame] * num_neighbors)
        flows = estimate_flow(refs, torch.cat(neighbors)).chunk(num_neighbors)
        return self.restore(frame, neighbors, flows).unsqueeze(1)


def _residual_blocks(
    channels: int,
    num_blocks: int,
) -> nn.Sequential:
    blocks = nn.Sequential()
    for _ in range(num_blocks):
        blocks.append(ResnetBlock(channels))
    return blocks


_AUTHORS_RULES: tuple[Rule, ...] = (
    (r"^DBPN\.", "dbpn."),
    (r"output\.conv\.", "output."),
)
_REQUIRED_CONVOLUTIONS = (
    "feat0.conv",
    "dbpn.feat1.conv",
    "dbpn.up1.up_conv1.deconv",
    "output",
)


def _translate(state: State) -> dict[str, Tensor] | None:
    """Map the names of the authors to ours; None if the state dict belongs to another network."""
    own = rename(state, _AUTHORS_RULES)
    if not has_convolutions(own, *_REQUIRED_CONVOLUTIONS):
        return None
    if any(own[f"{path}.weight"].shape[0] == 0 for path in _REQUIRED_CONVOLUTIONS):
        return None
    return own


def _infer(state: State) -> RBPNConfig:
    channels = state["dbpn.feat1.conv.weight"].shape[0]
    kernel_px = state["dbpn.up1.up_conv1.deconv.weight"].shape[-1]
    num_neighbors = state["output.weight"].shape[1] // channels
    return RBPNConfig(
        scale=kernel_px - _KERNEL_MARGIN_PX,
        num_frames=num_neighbors + 1,
        base_channels=state["feat0.conv.weight"].shape[0],
        channels=channels,
        num_blocks=count_names(state, r"res_feat1\..*\.conv1\.weight"),
    )


def _contract(config: RBPNConfig) -> Contract:
    return Contract(
        scale=config.scale,
        temporal=Temporal("window", radius=config.num_frames // 2),
        halo_px=_HALO_PX,
    )


ARCHITECTURE = Architecture(
    name="RBPN",
    config=RBPNConfig,
    build=RBPN,
    translate=_translate,
    infer=_infer,
    contract=_contract,
    source="https://arxiv.org/abs/1903.10128",
)
