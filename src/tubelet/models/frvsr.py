"""FRVSR: frame-recurrent video super-resolution; the last output, warped by optical flow, joins the next input.

    current, previous (B, 3, H, W) each ─ FNet ─ flow (B, 2, H, W) ─ ×s ─┐
    last output (B, 3, sH, sW) ─────────────────────────────────────── warp ─ space to depth (B, 3·s², H, W) ─┐
    current ─┬───────────────────────────────────────────────────────────────────────────────────────────── cat ─ SRNet
             └─ upsample ×s ──────────────────────────────────────────────────────────────────────────────────── + ─ sr

The last output is zero before the first frame. Space to depth is in the order of TensorFlow: row dy, column dx of
color c becomes channel (dy·s + dx)·3 + c. Published: 64 channels, 10 blocks, ×4, Vimeo-like data with bicubic (BI) or
blur-down (BD, σ = 1.5) degradation; the two differ in how they upsample.

Source: Sajjadi et al., Frame-Recurrent Video Super-Resolution, CVPR 2018, as the generator of TecoGAN (Chu et al., ACM
TOG 2020) has it, whose networks in PyTorch circulate as `FRNet`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from tubelet.errors import ConfigError
from tubelet.layers.online import Hidden, run_online
from tubelet.models.architecture import Architecture, Contract
from tubelet.models.state_dict import State, count_blocks, shape_of, without
from tubelet.ops.sizes import pad_to
from tubelet.ops.warp import backward_warp
from tubelet.types import Temporal

__all__ = ["ARCHITECTURE", "FRVSR", "FRVSRConfig"]

_MAX_FLOW_PX = 24.0  # FNet's range in lq pixels, of the published code
_POOLED = 8  # FNet pools three times by two
_FLOW_REACH_PX = (
    60  # how far FNet and the upsampling of its flow see, more than the 24 that the flow moves
)
_UPSAMPLERS: dict[int, int] = {2: 1, 4: 2}  # scale: transposed convolutions of SRNet, each ×2


@dataclass(frozen=True, slots=True, kw_only=True)
class FRVSRConfig:
    """Shape of an `FRVSR`."""

    FORMER_NAMES: ClassVar[Mapping[str, str]] = {"blocks": "num_blocks"}

    scale: int = 4
    """Factor of the output size, 2 or 4."""
    channels: int = 64
    """Width of SRNet."""
    num_blocks: int = 10
    """Residual blocks of SRNet."""
    upsample: Literal["bilinear", "bicubic"] = "bilinear"
    """How frame and flow are enlarged: bilinear for BI degradation, bicubic for BD."""

    def __post_init__(self) -> None:
        if self.scale not in _UPSAMPLERS or self.channels < 1 or self.num_blocks < 1:
            raise ConfigError(f"{self} is out of range: scale 2 or 4; channels, blocks ≥ 1")
        if self.upsample not in ("bilinear", "bicubic"):
            raise ConfigError(f"upsample={self.upsample!r} must be bilinear or bicubic")


class FNet(nn.Module):
    """Estimate flow with an encoder and a decoder of three levels each (Fig. 2, "FNet")."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder1, self.encoder2, self.encoder3 = _convs(6, 32), _convs(32, 64), _convs(64, 128)
        self.decoder1, self.decoder2, self.decoder3 = (
            _convs(128, 256),
            _convs(256, 128),
            _convs(128, 64),
        )
        self.flow = nn.Sequential(
            nn.Conv2d(64, 32, 3, padding=1), nn.LeakyReLU(0.2), nn.Conv2d(32, 2, 3, padding=1)
        )

    def forward(self, current: Tensor, previous: Tensor) -> Tensor:
        """Tell where in `previous` each pixel of `current` was.

        Args:
            current: (B, 3, H, W), H and W at least 8.
            previous: (B, 3, H, W).

        Returns:
            (B, 2, H, W), lq pixels, dx then dy, within ±24.
        """
        x = torch.cat([current, previous], 1)
        for level in (self.encoder1, self.encoder2, self.encoder3):
            x = functional.max_pool2d(level(x), 2)
        for level in (self.decoder1, self.decoder2, self.decoder3):
            x = functional.interpolate(level(x), scale_factor=2.0, mode="bilinear")
        flow = self.flow(x).tanh() * _MAX_FLOW_PX
        # Pooling left out the last rows and columns.
        return pad_to(flow, current.shape[-2], current.shape[-1])


class ResidualBlock(nn.Module):
    """Two convolutions without normalization, added to their input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Add detail to (B, C, H, W)."""
        return x + self.conv(x)


class BicubicUpsampler(nn.Module):
    """Enlarge by cubic convolution (a = −0.75) whose phases are d / s: output pixel s·i lies on input pixel i."""

    kernels: Tensor

    def __init__(self, scale: int) -> None:
        super().__init__()
        phase = torch.arange(scale, dtype=torch.float32) / scale
        distances = torch.stack([1 + phase, phase, 1 - phase, 2 - phase], 1)
        self.register_buffer("kernels", _cubic(distances))  # (s, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Enlarge (B, C, H, W) to (B, C, sH, sW); edges repeat."""
        b, c, h, w = x.shape
        s = self.kernels.shape[0]
        x = functional.pad(x, (1, 2, 1, 2), mode="replicate").reshape(b * c, 1, h + 3, w + 3)
        x = functional.conv2d(x, self.kernels[:, None, :, None])  # (B·C, s, H, W + 3)
        x = x.transpose(1, 2).reshape(b * c, 1, s * h, w + 3)
        x = functional.conv2d(x, self.kernels[:, None, None, :])  # (B·C, s, sH, W)
        return x.permute(0, 2, 3, 1).reshape(b, c, s * h, s * w)


class BilinearUpsampler(nn.Module):
    """Enlarge bilinearly about the centers of the pixels."""

    def __init__(self, scale: int) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        """Enlarge (B, C, H, W) to (B, C, sH, sW)."""
        return functional.interpolate(
            x.contiguous(), scale_factor=float(self.scale), mode="bilinear"
        )


class SRNet(nn.Module):
    """Super-resolve a frame with the help of the warped last output (Fig. 2, "SRNet")."""

    def __init__(self, config: FRVSRConfig) -> None:
        super().__init__()
        c = config.channels
        self.conv_in = nn.Sequential(
            nn.Conv2d(3 * (1 + config.scale**2), c, 3, padding=1), nn.ReLU()
        )
        self.resblocks = nn.Sequential(*(ResidualBlock(c) for _ in range(config.num_blocks)))
        up: list[nn.Module] = []
        for _ in range(_UPSAMPLERS[config.scale]):
            up += [nn.ConvTranspose2d(c, c, 3, stride=2, padding=1, output_padding=1), nn.ReLU()]
        self.conv_up = nn.Sequential(*up)
        self.conv_out = nn.Conv2d(c, 3, 3, padding=1)

    def forward(self, current: Tensor, warped: Tensor) -> Tensor:
        """Compute the detail (B, 3, sH, sW) of `current` (B, 3, H, W), given `warped` (B, 3·s², H, W)."""
        x = self.resblocks(self.conv_in(torch.cat([current, warped], 1)))
        return self.conv_out(self.conv_up(x))


class FRVSR(nn.Module):
    """Frame-recurrent video super-resolution.

    Args:
        config: shape of the network.
    """

    def __init__(self, config: FRVSRConfig) -> None:
        super().__init__()
        self.config = config
        self.fnet = FNet()
        self.srnet = SRNet(config)
        bicubic = config.upsample == "bicubic"
        self.upsample_func = (
            BicubicUpsampler(config.scale) if bicubic else BilinearUpsampler(config.scale)
        )

    def step(self, lq: Tensor, hidden: Hidden | None) -> tuple[Tensor, Hidden]:
        """Restore one frame.

        Args:
            lq: (B, 1, 3, H, W).
            hidden: previous frame (B, 3, H, W) and its result (B, 3, sH, sW); None at the start of a scene.

        Returns:
            sr (B, 3, sH, sW), and the hidden state for the next step.
        """
        current = lq[:, 0]
        scale = self.config.scale
        if hidden is None:
            b, c, h, w = current.shape
            warped = lq.new_zeros(b, c * scale**2, h, w)
        else:
            previous, last = hidden
            flow = scale * self.upsample_func(self.fnet(current, previous))
            warped = space_to_depth(backward_warp(last, flow, padding="border"), scale)
        sr = self.srnet(current, warped) + self.upsample_func(current)
        return sr, (current, sr.clone())  # whoever takes sr may change it in place

    def forward(self, lq: Tensor) -> Tensor:
        """Restore a clip: (B, T, 3, H, W) → (B, T, 3, sH, sW), the same as `step` by `step`."""
        sr, _ = run_online(self.step, lq, lookahead=0)
        return sr


def space_to_depth(x: Tensor, scale: int) -> Tensor:
    """Move row dy and column dx of each s×s square to channels (dy·s + dx)·C + c.

    Args:
        x: (B, C, sH, sW).
        scale: s.

    Returns:
        (B, s²·C, H, W).

    Source: TensorFlow's `space_to_depth`; `pixel_unshuffle` has the channels outermost instead.
    """
    b, c, h, w = x.shape
    x = x.reshape(b, c, h // scale, scale, w // scale, scale)  # (B, C, H, dy, W, dx)
    return x.permute(0, 3, 5, 1, 2, 4).reshape(b, -1, h // scale, w // scale)


def _cubic(distance: Tensor, a: float = -0.75) -> Tensor:
    """Weigh by distance in pixels, 0 to 2 (Keys, IEEE TASSP 1981, Eq. 4)."""
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = a * (((distance - 5) * distance + 8) * distance - 4)
    return torch.where(distance <= 1, near, far)


def _convs(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, padding=1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(out_channels, out_channels, 3, padding=1),
        nn.LeakyReLU(0.2),
    )


def _translate(state: State) -> dict[str, Tensor] | None:
    first = shape_of(state, "srnet.conv_in.0.weight")
    if "fnet.flow.2.weight" not in state or "srnet.resblocks.0.conv.0.weight" not in state:
        return None
    if len(first) != 4 or first[1] not in {3 * (1 + s * s) for s in _UPSAMPLERS}:
        return None
    # The published network and its SRNet share one upsampler, so its constant is there twice.
    return without(state, r"srnet\.upsample_func\.kernels")


def _infer(state: State) -> FRVSRConfig:
    channels, joined = state["srnet.conv_in.0.weight"].shape[:2]
    return FRVSRConfig(
        scale=round((joined / 3 - 1) ** 0.5),
        channels=channels,
        num_blocks=count_blocks(state, "srnet.resblocks."),
        upsample="bicubic" if "upsample_func.kernels" in state else "bilinear",
    )


def _contract(config: FRVSRConfig) -> Contract:
    # Deviation: the engine pads to multiples of 8, so that FNet sees tiles as it sees the image; the published code
    # leaves the rest of the last 8 rows and columns out of FNet and mirrors the flow there, as `forward` does.
    return Contract(
        scale=config.scale,
        temporal=Temporal("online"),
        halo_px=_FLOW_REACH_PX
        + 2 * config.num_blocks
        + 2,  # SRNet: two convolutions a block, the first, the last
        size_multiple=_POOLED,
        min_size_px=_POOLED,
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
