"""RRDBNet: residual-in-residual dense blocks; the network of ESRGAN, BSRGAN and Real-ESRGAN.

    lq (B, T, 3, H, W), frame by frame ─ pixel unshuffle /u → (B·T, 3u², H/u, W/u)
      conv_first ─┬─ RRDB × num_blocks ─ conv_body ─┐
                  └────────────────────────────────┴─ (nearest ×2 ─ conv ─ LeakyReLU) × doublings ─ conv_hr ─ LeakyReLU
      ─ conv_last → sr (B, T, 3, sH, sW), s = 2^doublings / u

    RRDB: three dense blocks of five convolutions, each block and all three together with a skip, residuals × 0.2

Published configurations, 64 features, growth 32:
    ESRGAN, Real-ESRGAN x4plus, BSRGAN      23 blocks, u = 1, doublings 2
    Real-ESRGAN x4plus anime 6B              6 blocks, u = 1, doublings 2
    Real-ESRGAN x2plus                      23 blocks, u = 2, doublings 2
    BSRGANx2                                23 blocks, u = 1, doublings 1

Source: Wang et al., ESRGAN, ECCVW 2018, Section 3.1; Zhang et al., BSRGAN, ICCV 2021;
pixel unshuffle: Wang et al., Real-ESRGAN, ICCVW 2021, Section 3.3.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from tubelet.errors import ConfigError
from tubelet.layers.convolution import ConvAct, ConvAdd, ConvCat, LeakyReLU, UpsampleConv
from tubelet.layers.upsampling import repeat_and_convolve
from tubelet.layers.winograd import TransformCache
from tubelet.models.architecture import Architecture, Contract
from tubelet.models.state_dict import Rule, State, count_names, has_convolutions, indexes, rename
from tubelet.types import Temporal

__all__ = ["ARCHITECTURE", "RRDBConfig", "RRDBNet"]

_RESIDUAL_SCALE = 0.2  # ESRGAN, Section 3.1: β
_SLOPE = 0.2
_HALO_PX = 32
"""What tiles overlap by, in pixels of the features: with random weights, seams at 16 are within rounding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RRDBConfig:
    """Shape of an `RRDBNet`."""

    PUBLISHED_NAMES: ClassVar[Mapping[str, str]] = {
        "num_feat": "channels",
        "num_block": "num_blocks",
        "num_grow_ch": "growth_channels",
    }

    channels: int = 64
    """Width of the features."""
    num_blocks: int = 23
    """Residual-in-residual dense blocks."""
    growth_channels: int = 32
    """Channels that each convolution of a dense block adds."""
    unshuffle: int = 1
    """Side of the squares of pixels that enter as channels: 1, 2 or 4."""
    doublings: int = 2
    """How often the features are doubled in size afterwards: 0 to 3."""

    def __post_init__(self) -> None:
        if min(self.channels, self.growth_channels) < 1 or self.num_blocks < 0:
            raise ConfigError(
                f"{self} is out of range: channels, growth_channels ≥ 1; num_blocks ≥ 0"
            )
        if (
            self.unshuffle not in (1, 2, 4)
            or self.doublings not in range(4)
            or 2**self.doublings < self.unshuffle
        ):
            raise ConfigError(
                f"{self} is out of range: unshuffle 1, 2 or 4, at most 2^doublings; doublings 0 to 3"
            )

    @property
    def scale(self) -> int:
        """Factor of the output size."""
        return 2**self.doublings // self.unshuffle


class ResidualDenseBlock(nn.Module):
    """Five convolutions, each of which sees all before it: (B, C, H, W) → (B, C, H, W)."""

    def __init__(self, channels: int, growth_channels: int) -> None:
        super().__init__()
        c, g = channels, growth_channels
        act = LeakyReLU(_SLOPE)
        self.conv1 = ConvCat(c, g, act=act)
        self.conv2 = ConvCat(c + g, g, act=act)
        self.conv3 = ConvCat(c + 2 * g, g, act=act)
        self.conv4 = ConvCat(c + 3 * g, g, act=act)
        self.conv5 = ConvCat(c + 4 * g, c)

    def forward(self, x: Tensor) -> Tensor:
        """Return features of the same shape."""
        features = [x]
        cache: TransformCache = {}
        for conv in (self.conv1, self.conv2, self.conv3, self.conv4):
            features.append(conv(*features, cache=cache))
        return torch.add(x, self.conv5(*features, cache=cache), alpha=_RESIDUAL_SCALE)


class RRDB(nn.Module):
    """Three dense blocks in a residual: (B, C, H, W) → (B, C, H, W) (ESRGAN, Fig. 4)."""

    def __init__(self, channels: int, growth_channels: int) -> None:
        super().__init__()
        self.rdb1 = ResidualDenseBlock(channels, growth_channels)
        self.rdb2 = ResidualDenseBlock(channels, growth_channels)
        self.rdb3 = ResidualDenseBlock(channels, growth_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return features of the same shape."""
        return torch.add(x, self.rdb3(self.rdb2(self.rdb1(x))), alpha=_RESIDUAL_SCALE)


class RRDBNet(nn.Module):
    """Enlarge every frame by itself; see the drawing on top of this file.

    Args:
        config: shape of the network.
    """

    def __init__(self, config: RRDBConfig) -> None:
        super().__init__()
        self.config = config
        c = config.channels
        self.conv_first = nn.Conv2d(3 * config.unshuffle**2, c, 3, padding=1)
        self.body = nn.Sequential(
            *(RRDB(c, config.growth_channels) for _ in range(config.num_blocks))
        )
        self.conv_body = ConvAdd(c, c)
        for i in range(config.doublings):
            self.add_module(f"conv_up{i + 1}", UpsampleConv(c, c, act=LeakyReLU(_SLOPE)))
        self.conv_hr = ConvAct(c, c, act=LeakyReLU(_SLOPE))
        self.conv_last = ConvAct(c, 3)

    def forward(self, lq: Tensor) -> Tensor:
        """Enlarge `lq` (B, T, 3, H, W), H and W multiples of `unshuffle`, to (B, T, 3, sH, sW)."""
        x = functional.pixel_unshuffle(
            lq.flatten(0, 1), self.config.unshuffle
        )  # (B·T, 3u², H/u, W/u)
        x = self.conv_first(x)
        x = self.conv_body(self.body(x), x)
        doublings = [
            cast(UpsampleConv, self.get_submodule(f"conv_up{i + 1}"))
            for i in range(self.config.doublings)
        ]
        x = repeat_and_convolve(x, doublings, self.conv_hr, self.conv_last)
        return x.view(*lq.shape[:2], *x.shape[1:])  # (B, T, 3, sH, sW)


_AUTHORS: tuple[Rule, ...] = (
    (r"^RRDB_trunk\.(\d+)\.RDB(\d)\.", r"body.\1.rdb\2."),
    (r"^trunk_conv\.", "conv_body."),
    (r"^upconv(\d)\.", r"conv_up\1."),
    (r"^HRconv\.", "conv_hr."),
)
"""Names of ESRGAN's published files and of KAIR (BSRGAN)."""

_FIRST_RELEASE: tuple[Rule, ...] = (
    (r"^model\.0\.", "conv_first."),
    (r"^model\.1\.sub\.(\d+)\.RDB(\d)\.(conv\d)\.0\.", r"body.\1.rdb\2.\3."),
    (r"^model\.1\.sub\.\d+\.(weight|bias)$", r"conv_body.\1"),
)
"""Names of ESRGAN's first release, before the upsampling; behind it they are numbers that depend on its length."""


def _from_first_release(state: State) -> dict[str, Tensor]:
    """Rename `model.<index>`: three places per doubling (nearest, convolution, activation) from 2 on, then the end."""
    numbers = [number for number in indexes(state, r"model\.(\d+)\.weight") if number > 0]
    doublings = [f"conv_up{count}" for count in range(1, len(numbers) - 1)]
    names = [*doublings, "conv_hr", "conv_last"]
    behind = [
        (rf"^model\.{number}\.", f"{name}.") for number, name in zip(numbers, names, strict=False)
    ]
    return rename(state, (*_FIRST_RELEASE, *behind))


def _translate(state: State) -> dict[str, Tensor] | None:
    if "RRDB_trunk.0.RDB1.conv1.weight" in state:
        state = rename(state, _AUTHORS)
    elif "model.1.sub.0.RDB1.conv1.0.weight" in state:
        state = _from_first_release(state)
    if not has_convolutions(state, "conv_first", "body.0.rdb1.conv1"):
        return None
    if "conv_body.weight" not in state or "conv_last.weight" not in state:
        return None
    first = state["conv_first.weight"]
    if first.shape[1] not in (3, 12, 48):
        return None
    doublings = count_names(state, r"conv_up\d\.weight")
    return dict(state) if doublings <= 3 and 2**doublings >= _unshuffle(first) else None


def _unshuffle(first: Tensor) -> int:
    return {3: 1, 12: 2, 48: 4}[first.shape[1]]


def _infer(state: State) -> RRDBConfig:
    first, dense = state["conv_first.weight"], state["body.0.rdb1.conv1.weight"]
    return RRDBConfig(
        channels=first.shape[0],
        num_blocks=count_names(state, r"body\.\d+\.rdb1\.conv1\.weight"),
        growth_channels=dense.shape[0],
        unshuffle=_unshuffle(first),
        doublings=count_names(state, r"conv_up\d\.weight"),
    )


def _contract(config: RRDBConfig) -> Contract:
    # 15 convolutions a block, the first, the one behind the body, and less than two pixels behind it.
    reach = 15 * config.num_blocks + 4
    # Deviation: 23 blocks reach 349 pixels, but their damped residuals leave next to nothing of what is far away.
    return Contract(
        scale=config.scale,
        temporal=Temporal("frame"),
        halo_px=config.unshuffle * min(reach, _HALO_PX),
        size_multiple=config.unshuffle,
    )


ARCHITECTURE = Architecture(
    name=RRDBNet.__name__,
    config=RRDBConfig,
    build=RRDBNet,
    translate=_translate,
    infer=_infer,
    contract=_contract,
    source="https://arxiv.org/abs/1809.00219",
)
