"""RBPN: neighbors enter one after another, each corrected against what the frames before it have made.

    x, neighbors k = 1 … 2r (B, 3, H, W), flow from x to each (B, 2, H, W)
      L = conv(x)                                                             (B, base, H, W)
      for each neighbor:
        h0 = DBPN(L), h1 = deconvolution(residual blocks(conv [x, neighbor, flow]))       (B, feat, sH, sW)
        H = h0 + conv(residual blocks(h0 − h1))
        L = strided convolution(residual blocks(H))
      sr = conv [H of every neighbor], and x enlarged where the weights expect it         (B, 1, 3, sH, sW)

DBPN climbs to the output's size and back by up- and down-projections, each of which corrects itself.

Published: base 256, feat 64, 5 residual blocks, 7 frames, ×4, Vimeo-90K (12.8 M parameters). Flow is a part of the
input, not of the network: `forward` estimates it, `restore` takes it. Nothing of note depends on one frame alone, so
there is no `encode`.

Source: Haris et al., "Recurrent Back-Projection Network for Video Super-Resolution", CVPR 2019, Secs. 3.1 to 3.3; DBPN:
Haris et al., CVPR 2018, Sec. 3.
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
from tubelet.models.rbpn_flow import estimate_flow
from tubelet.models.state_dict import Rule, State, count_names, has_convolutions, rename
from tubelet.ops.resize import imresize
from tubelet.types import Temporal

__all__ = ["ARCHITECTURE", "RBPN", "RBPNConfig"]

_SCALES = (2, 4, 8)
_EXTRA_PX = 4  # a kernel of the projections is this much wider than its stride
_STAGES = 3  # up-projections of DBPN
_INPUTS = 3 + 3 + 2  # frame, neighbor, flow
_HALO_PX = 32  # twice what the network needs, for the flow, which is found in the tile


@dataclass(frozen=True, slots=True, kw_only=True)
class RBPNConfig:
    """Shape of an `RBPN`."""

    PUBLISHED_NAMES: ClassVar[Mapping[str, str]] = {
        "base_filter": "base_channels",
        "feat": "channels",
        "num_resblock": "num_blocks",
    }
    FORMER_NAMES: ClassVar[Mapping[str, str]] = {"blocks": "num_blocks"}

    scale: int = 4
    """Factor of the output size: 2, 4 or 8."""
    num_frames: int = 7
    """Frames of the window, the middle one included; odd."""
    base_channels: int = 256
    """Width at the size of lq."""
    channels: int = 64
    """Width at the size of the output."""
    num_blocks: int = 5
    """Residual blocks of each of the three parts."""
    skip: Literal["none", "bicubic"] = "none"
    """What is added to the output; names do not tell. The published weights expect nothing."""

    def __post_init__(self) -> None:
        if self.scale not in _SCALES or self.num_frames < 3 or self.num_frames % 2 == 0:
            raise ConfigError(f"{self} is out of range: scale 2, 4 or 8; num_frames odd, ≥ 3")
        if self.base_channels < 1 or self.channels < 1 or self.num_blocks < 0:
            raise ConfigError(f"{self} is out of range: base_channels, channels ≥ 1; blocks ≥ 0")
        if self.skip not in ("none", "bicubic"):
            raise ConfigError(f"skip={self.skip!r} must be none or bicubic")


class ConvBlock(nn.Module):
    """Convolution and PReLU: (B, in, H, W) → (B, out, H/stride, W/stride).

    Args:
        in_channels: of the input.
        out_channels: of the output.
        kernel_px: side of the kernel.
        stride: of the convolution; a kernel four wider than its stride divides the size by it.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_px: int, stride: int = 1
    ) -> None:
        super().__init__()
        padding = kernel_px // 2 if stride == 1 else _EXTRA_PX // 2
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_px, stride=stride, padding=padding)
        self.act = nn.PReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in, H, W)."""
        return self.act(self.conv(x))


class DeconvBlock(nn.Module):
    """Transposed convolution and PReLU: (B, in, H, W) → (B, out, sH, sW).

    Args:
        in_channels: of the input.
        out_channels: of the output.
        scale: s.
    """

    def __init__(self, in_channels: int, out_channels: int, scale: int) -> None:
        super().__init__()
        kernel_px = scale + _EXTRA_PX
        self.deconv = nn.ConvTranspose2d(
            in_channels, out_channels, kernel_px, stride=scale, padding=_EXTRA_PX // 2
        )
        self.act = nn.PReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in, H, W)."""
        return self.act(self.deconv(x))


class ResnetBlock(nn.Module):
    """Two convolutions added to their input; one PReLU serves between them and at the end.

    Args:
        channels: width.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.act = nn.PReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        return self.act(self.conv2(self.act(self.conv1(x))).add_(x))


class UpProjection(nn.Module):
    """Enlarge, and correct by what comes back of it: (B, C, H, W) → (B, C, sH, sW) (DBPN, Eqs. 1 to 5).

    Args:
        channels: C.
        scale: s.
    """

    def __init__(self, channels: int, scale: int) -> None:
        super().__init__()
        self.up_conv1 = DeconvBlock(channels, channels, scale)
        self.up_conv2 = ConvBlock(channels, channels, scale + _EXTRA_PX, scale)
        self.up_conv3 = DeconvBlock(channels, channels, scale)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W)."""
        h = self.up_conv1(x)
        return self.up_conv3(self.up_conv2(h) - x) + h


class DownProjection(nn.Module):
    """Make smaller, and correct by what comes back of it: (B, C, sH, sW) → (B, C, H, W) (DBPN, Eqs. 6 to 10).

    Args:
        channels: C.
        scale: s.
    """

    def __init__(self, channels: int, scale: int) -> None:
        super().__init__()
        self.down_conv1 = ConvBlock(channels, channels, scale + _EXTRA_PX, scale)
        self.down_conv2 = DeconvBlock(channels, channels, scale)
        self.down_conv3 = ConvBlock(channels, channels, scale + _EXTRA_PX, scale)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, sH, sW)."""
        low = self.down_conv1(x)
        return self.down_conv3(self.down_conv2(low) - x) + low


class DBPN(nn.Module):
    """Deep back-projection: (B, base, H, W) → (B, C, sH, sW).

    Args:
        config: shape of the network.
    """

    def __init__(self, config: RBPNConfig) -> None:
        super().__init__()
        c, scale = config.channels, config.scale
        self.feat1 = ConvBlock(config.base_channels, c, 1)
        self.up1 = UpProjection(c, scale)
        self.down1 = DownProjection(c, scale)
        self.up2 = UpProjection(c, scale)
        self.down2 = DownProjection(c, scale)
        self.up3 = UpProjection(c, scale)
        self.output = nn.Conv2d(_STAGES * c, c, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, base, H, W)."""
        h1 = self.up1(self.feat1(x))
        h2 = self.up2(self.down1(h1))
        h3 = self.up3(self.down2(h2))
        return self.output(torch.cat([h3, h2, h1], 1))


class RBPN(nn.Module):
    """Recurrent back-projection over the neighbors of a frame; see the drawing on top of this file.

    Args:
        config: shape of the network.
    """

    def __init__(self, config: RBPNConfig) -> None:
        super().__init__()
        self.config = config
        base, c, scale = config.base_channels, config.channels, config.scale
        self.feat0 = ConvBlock(3, base, 3)
        self.feat1 = ConvBlock(_INPUTS, base, 3)
        self.dbpn = DBPN(config)
        self.res_feat1 = nn.Sequential(
            *_blocks(base, config.num_blocks), DeconvBlock(base, c, scale)
        )
        self.res_feat2 = nn.Sequential(*_blocks(c, config.num_blocks), ConvBlock(c, c, 3))
        self.res_feat3 = nn.Sequential(
            *_blocks(c, config.num_blocks), ConvBlock(c, base, scale + _EXTRA_PX, scale)
        )
        self.output = nn.Conv2d((config.num_frames - 1) * c, 3, 3, padding=1)

    def restore(
        self, frame: Tensor, neighbors: Sequence[Tensor], flows: Sequence[Tensor]
    ) -> Tensor:
        """Restore a frame with flow that is known.

        Args:
            frame: (B, 3, H, W).
            neighbors: num_frames − 1 of (B, 3, H, W), in order of time.
            flows: from the frame to each neighbor, (B, 2, H, W), pixels, dx then dy.

        Returns:
            (B, 3, sH, sW).
        """
        low = self.feat0(frame)
        sr = (
            self.output.bias[:, None, None] if self.output.bias is not None else frame.new_zeros(())
        )
        weights = self.output.weight.chunk(
            len(neighbors), 1
        )  # of each neighbor's part of the output
        for k, (neighbor, flow, weight) in enumerate(zip(neighbors, flows, weights, strict=True)):
            high = self.dbpn(low)
            seen = self.res_feat1(self.feat1(torch.cat([frame, neighbor, flow], 1)))
            high = high + self.res_feat2(high - seen)  # Eq. 5
            sr = functional.conv2d(high, weight, padding=1) + sr
            if k < len(neighbors) - 1:
                low = self.res_feat3(high)
        return sr if self.config.skip == "none" else sr + imresize(frame, self.config.scale)

    def forward(self, lq: Tensor) -> Tensor:
        """Restore the middle frame: (B, 2r + 1, 3, H, W) → (B, 1, 3, sH, sW)."""
        frames = list(lq.unbind(1))
        frame = frames.pop(len(frames) // 2)
        flows = estimate_flow(torch.cat([frame] * len(frames)), torch.cat(frames)).chunk(
            len(frames)
        )
        return self.restore(frame, frames, flows).unsqueeze(1)


def _blocks(channels: int, count: int) -> list[ResnetBlock]:
    return [ResnetBlock(channels) for _ in range(count)]


_AUTHORS: tuple[Rule, ...] = ((r"^DBPN\.", "dbpn."), (r"output\.conv\.", "output."))
_MARKS = ("feat0.conv", "dbpn.feat1.conv", "dbpn.up1.up_conv1.deconv", "output")


def _translate(state: State) -> dict[str, Tensor] | None:
    """Map the authors' names to ours, or take ours; None where they are of another network."""
    own = rename(state, _AUTHORS)
    is_own = has_convolutions(own, *_MARKS) and all(
        own[f"{mark}.weight"].shape[0] for mark in _MARKS
    )
    return own if is_own else None


def _infer(state: State) -> RBPNConfig:
    c = state["dbpn.feat1.conv.weight"].shape[0]
    return RBPNConfig(
        scale=state["dbpn.up1.up_conv1.deconv.weight"].shape[-1] - _EXTRA_PX,
        num_frames=state["output.weight"].shape[1] // c + 1,
        base_channels=state["feat0.conv.weight"].shape[0],
        channels=c,
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
