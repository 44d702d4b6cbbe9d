"""FRVSR: frame-recurrent video super-resolution; the previous output, warped, joins the next input.

    current, previous (B, 3, H, W) each ─ FNet ─ flow (B, 2, H, W) ─ upsample ×s ─┐
    previous output (B, 3, sH, sW) ────────────────────────────────────────────── warp
      ─ space to depth (B, 3·s², H, W) ─┐
    current ─┬───────────────────────── cat ─ SRNet ─┐
             └─ upsample ×s ─────────────────────────┴(+) sr (B, 3, sH, sW)

The previous output is zero at the first frame. Space to depth is in the order of TensorFlow: row
dy, column dx of color c becomes channel (dy·s + dx)·3 + c. Published: 64 channels, 10 blocks, ×4,
Vimeo-like data with bicubic (BI) or blur-down (BD, σ = 1.5) degradation; the two differ in how they
upsample.

Source: Sajjadi et al., Frame-Recurrent Video Super-Resolution, CVPR 2018, in the form of the
generator of TecoGAN (Chu et al., ACM TOG 2020), whose networks in PyTorch circulate as `FRNet`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from tubelet.layers.online import Hidden, run_online
from tubelet.models.architecture import Architecture, Contract
from tubelet.models.config_checks import check_choice, check_min
from tubelet.models.state_dict import State, count_blocks, shape_of, without
from tubelet.ops.sizes import pad_to
from tubelet.ops.warp import backward_warp
from tubelet.types import Temporal

__all__ = ["ARCHITECTURE", "FRVSR", "FRVSRConfig"]

# Range of FNet in the published code, lq pixels.
_MAX_FLOW_PX = 24.0
# FNet pools three times by two.
_FNET_SIZE_MULTIPLE = 8
# Distance that FNet and the upsampling of its flow see; larger than the motion that it estimates.
_FLOW_REACH_PX = 60
_NUM_DOUBLINGS: dict[int, int] = {2: 1, 4: 2}
"""Number of SRNet's transposed convolutions, each ×2, by scale."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FRVSRConfig:
    """Configuration of an `FRVSR`."""

    FORMER_NAMES: ClassVar[Mapping[str, str]] = {"blocks": "num_blocks"}

    scale: int = 4
    """Upscaling factor, 2 or 4."""
    channels: int = 64
    """Width of SRNet."""
    num_blocks: int = 10
    """Number of SRNet's residual blocks."""
    upsample: Literal["bilinear", "bicubic"] = "bilinear"
    """Upsampling of frame and flow: bilinear for BI degradation, bicubic for BD."""

    def __post_init__(self) -> None:
        check_choice(self, "scale", _NUM_DOUBLINGS)
        check_min(self, "channels", 1)
        check_min(self, "num_blocks", 1)
        check_choice(self, "upsample", ("bilinear", "bicubic"))


class FNet(nn.Module):
    """Optical flow by an encoder and a decoder of three levels each (Fig. 2, "FNet")."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder1 = _conv_pair(6, 32)
        self.encoder2 = _conv_pair(32, 64)
        self.encoder3 = _conv_pair(64, 128)
        self.decoder1 = _conv_pair(128, 256)
        self.decoder2 = _conv_pair(256, 128)
        self.decoder3 = _conv_pair(128, 64)
        self.flow = nn.Sequential(
            nn.Conv2d(64, 32, 3, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(32, 2, 3, padding=1),
        )

    def forward(
        self,
        current: Tensor,
        previous: Tensor,
    ) -> Tensor:
        """Estimate where each pixel of `current` was in `previous`.

        Args:
            current: (B, 3, H, W), H and W at least 8.
            previous: (B, 3, H, W).

        Returns:
            Flow (B, 2, H, W), lq pixels, dx then dy, within ±24.
        """
        x = torch.cat([current, previous], 1)
        for level in (self.encoder1, self.encoder2, self.encoder3):
            x = functional.max_pool2d(level(x), 2)
        for level in (self.decoder1, self.decoder2, self.decoder3):
            x = functional.interpolate(level(x), scale_factor=2.0, mode="bilinear")
        flow = self.flow(x).tanh() * _MAX_FLOW_PX
        # Pooling dropped the last rows and columns of sizes that are no multiples of 8.
        height, width = current.shape[-2:]
        return pad_to(flow, height, width)


class ResidualBlock(nn.Module):
    """Two convolutions without normalization, and a skip.

    Args:
        channels: Width of the features.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        return x + self.conv(x)


class BicubicUpsampler(nn.Module):
    """Cubic convolution (a = −0.75) whose output pixel s·i has the position of input pixel i.

    Args:
        scale: Upscaling factor s.
    """

    kernels: Tensor

    def __init__(self, scale: int) -> None:
        super().__init__()
        # The distances of output pixel s·i + d to the input pixels i − 1 to i + 2.
        phase = torch.arange(scale, dtype=torch.float32) / scale
        distances = torch.stack(
            [
                1 + phase,
                phase,
                1 - phase,
                2 - phase,
            ],
            1,
        )
        self.register_buffer("kernels", _cubic_weight(distances))  # (s, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Upsample (B, C, H, W), edges repeated, to (B, C, sH, sW)."""
        b, c, h, w = x.shape
        s = self.kernels.shape[0]
        x = functional.pad(x, (1, 2, 1, 2), mode="replicate")
        x = x.reshape(b * c, 1, h + 3, w + 3)
        # Columns: one kernel for each of s phases
        x = functional.conv2d(x, self.kernels[:, None, :, None])  # (B·C, s, H, W + 3)
        x = x.transpose(1, 2)  # (B·C, H, s, W + 3)
        x = x.reshape(b * c, 1, s * h, w + 3)
        # Rows
        x = functional.conv2d(x, self.kernels[:, None, None, :])  # (B·C, s, sH, W)
        x = x.permute(0, 2, 3, 1)  # (B·C, sH, W, s)
        return x.reshape(b, c, s * h, s * w)


def _cubic_weight(
    distance: Tensor,
    a: float = -0.75,
) -> Tensor:
    """Compute the weights of cubic convolution at distances of 0 to 2 pixels.

    Source: Keys, IEEE TASSP 1981, Eq. 4.
    """
    below_one = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    above_one = a * (((distance - 5) * distance + 8) * distance - 4)
    return torch.where(distance <= 1, below_one, above_one)


class BilinearUpsampler(nn.Module):
    """Bilinear interpolation between the centers of pixels (align_corners=False).

    Args:
        scale: Upscaling factor s.
    """

    def __init__(self, scale: int) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        """Upsample (B, C, H, W) to (B, C, sH, sW)."""
        return functional.interpolate(
            x.contiguous(),
            scale_factor=float(self.scale),
            mode="bilinear",
        )


class SRNet(nn.Module):
    """Super-resolution of a frame and the warped previous output (Fig. 2, "SRNet").

    Args:
        config: Configuration of the network.
    """

    def __init__(self, config: FRVSRConfig) -> None:
        super().__init__()
        c = config.channels
        in_channels = 3 + 3 * config.scale**2
        self.conv_in = nn.Sequential(
            nn.Conv2d(in_channels, c, 3, padding=1),
            nn.ReLU(),
        )
        self.resblocks = nn.Sequential()
        for _ in range(config.num_blocks):
            self.resblocks.append(ResidualBlock(c))
        self.conv_up = nn.Sequential()
        for _ in range(_NUM_DOUBLINGS[config.scale]):
            doubling = nn.ConvTranspose2d(
                c,
                c,
                3,
                stride=2,
                padding=1,
                output_padding=1,
            )
            self.conv_up.append(doubling)
            self.conv_up.append(nn.ReLU())
        self.conv_out = nn.Conv2d(c, 3, 3, padding=1)

    def forward(
        self,
        current: Tensor,
        warped: Tensor,
    ) -> Tensor:
        """Compute the detail of the current frame.

        Args:
            current: Current low-quality frame, (B, 3, H, W).
            warped: Warped previous output, space to depth, (B, 3·s², H, W).

        Returns:
            Detail (B, 3, sH, sW).
        """
        x = torch.cat([current, warped], 1)
        x = self.conv_in(x)
        x = self.resblocks(x)
        return self.conv_out(self.conv_up(x))


class FRVSR(nn.Module):
    """Frame-recurrent video super-resolution; see the drawing at the top of this file.

    Args:
        config: Configuration of the network.
    """

    def __init__(self, config: FRVSRConfig) -> None:
        super().__init__()
        self.config = config
        self.fnet = FNet()
        self.srnet = SRNet(config)
        self.upsample_func = _build_upsampler(config)

    def step(
        self,
        lq: Tensor,
        hidden: Hidden | None,
    ) -> tuple[Tensor, Hidden]:
        """Upscale one frame.

        Args:
            lq: Current frame, (B, 1, 3, H, W).
            hidden: Previous frame (B, 3, H, W) and its result (B, 3, sH, sW); None at the start of
                a scene.

        Returns:
            sr (B, 3, sH, sW), and the hidden state for the next step.
        """
        scale = self.config.scale
        current = lq[:, 0]
        if hidden is None:
            batch, colors, height, width = current.shape
            warped_channels = colors * scale**2
            warped = lq.new_zeros(batch, warped_channels, height, width)
        else:
            previous, previous_sr = hidden
            # The flow is upsampled in size and in value, to pixels of the output.
            flow = scale * self.upsample_func(self.fnet(current, previous))
            warped = backward_warp(previous_sr, flow, padding="border")
            warped = space_to_depth(warped, scale)
        sr = self.srnet(current, warped) + self.upsample_func(current)
        # A copy, as the caller may change sr in place.
        return sr, (current, sr.clone())

    def forward(self, lq: Tensor) -> Tensor:
        """Upscale a clip, (B, T, 3, H, W) → (B, T, 3, sH, sW), with the results of `step`."""
        sr, _ = run_online(self.step, lq, lookahead=0)
        return sr


def _build_upsampler(config: FRVSRConfig) -> nn.Module:
    if config.upsample == "bicubic":
        return BicubicUpsampler(config.scale)
    return BilinearUpsampler(config.scale)


def space_to_depth(x: Tensor, scale: int) -> Tensor:
    """Move row dy and column dx of each s×s square to channels (dy·s + dx)·C + c.

    Args:
        x: (B, C, sH, sW).
        scale: Factor s.

    Returns:
        (B, s²·C, H, W).

    Source: TensorFlow's `space_to_depth`; `pixel_unshuffle` has the channels outermost instead.
    """
    batch, channels, sr_height, sr_width = x.shape
    height = sr_height // scale
    width = sr_width // scale
    x = x.reshape(batch, channels, height, scale, width, scale)  # (B, C, H, dy, W, dx)
    x = x.permute(0, 3, 5, 1, 2, 4)  # (B, dy, dx, C, H, W)
    return x.reshape(batch, -1, height, width)


def _conv_pair(
    in_channels: int,
    out_channels: int,
) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, padding=1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(out_channels, out_channels, 3, padding=1),
        nn.LeakyReLU(0.2),
    )


def _translate(state: State) -> dict[str, Tensor] | None:
    if "fnet.flow.2.weight" not in state or "srnet.resblocks.0.conv.0.weight" not in state:
        return None
    first = shape_of(state, "srnet.conv_in.0.weight")
    if len(first) != 4:
        return None
    in_channels = {3 + 3 * scale**2 for scale in _NUM_DOUBLINGS}
    if first[1] not in in_channels:
        return None
    # The published network and its SRNet share one upsampler, so that files hold its kernels twice.
    return without(state, r"srnet\.upsample_func\.kernels")


def _infer(state: State) -> FRVSRConfig:
    channels, in_channels = state["srnet.conv_in.0.weight"].shape[:2]
    return FRVSRConfig(
        scale=round((in_channels / 3 - 1) ** 0.5),
        channels=channels,
        num_blocks=count_blocks(state, "srnet.resblocks."),
        upsample="bicubic" if "upsample_func.kernels" in state else "bilinear",
    )


def _contract(config: FRVSRConfig) -> Contract:
    # SRNet: two convolutions a block, the first and the last
    srnet_reach_px = 2 * config.num_blocks + 2
    # Deviation: the engine pads to multiples of 8, so that FNet sees the same in tiles as in the
    # image; the published code omits the remaining rows and columns from FNet and mirrors the flow
    # there, as `forward` does.
    return Contract(
        scale=config.scale,
        temporal=Temporal("online"),
        halo_px=_FLOW_REACH_PX + srnet_reach_px,
        size_multiple=_FNET_SIZE_MULTIPLE,
        min_size_px=_FNET_SIZE_MULTIPLE,
    )


ARCHITECTURE = Architecture(
    name="FRVSR",
    config=FRVSRConfig,
    build=FRVSR,
    translate=_translate,
    infer=_infer,
    contract=_contract,
    derived=("upsample_func.kernels",),
    source="Sajjadi et al., Frame-Recurrent Video Super-Resolution, CVPR 2018",
)
