"""RRDBNet: residual-in-residual dense blocks; the network of ESRGAN, BSRGAN and Real-ESRGAN.

    lq (B, T, 3, H, W), frame by frame ─ pixel unshuffle /u ─ (B·T, 3u², H/u, W/u)
      conv_first ─┬─ RRDB × num_blocks ─ conv_body ─┐
                  └─────────────────────────────────┴(+)─ (nearest ×2 ─ conv ─ act) × doublings
      ─ conv_hr ─ act ─ conv_last ─ sr (B, T, 3, sH, sW), s = 2^doublings / u

    RRDB    three dense blocks of five convolutions; a skip around each block and around all three,
            with residuals times 0.2
    act     LeakyReLU 0.2

Published configurations, 64 channels, growth 32:
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
from tubelet.models.config_checks import check_choice, check_min
from tubelet.models.state_dict import Rule, State, count_names, has_convolutions, indexes, rename
from tubelet.types import Temporal

__all__ = ["ARCHITECTURE", "RRDBConfig", "RRDBNet"]

_UNSHUFFLES = (1, 2, 4)
_MAX_DOUBLINGS = 3
# β in ESRGAN, Section 3.1
_RESIDUAL_SCALE = 0.2
_SLOPE = 0.2
_MAX_HALO_PX = 32
"""Overlap of tiles, in pixels of the features: with random weights, seams at 16 are as small as
rounding errors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RRDBConfig:
    """Configuration of an `RRDBNet`."""

    PUBLISHED_NAMES: ClassVar[Mapping[str, str]] = {
        "num_feat": "channels",
        "num_block": "num_blocks",
        "num_grow_ch": "growth_channels",
    }

    channels: int = 64
    """Width of the features."""
    num_blocks: int = 23
    """Number of residual-in-residual dense blocks."""
    growth_channels: int = 32
    """Channels that each convolution of a dense block adds."""
    unshuffle: int = 1
    """Factor of the pixel unshuffle at the input: 1, 2 or 4, at most 2^`doublings`."""
    doublings: int = 2
    """Number of ×2 upsampling steps at the end: 0 to 3."""

    def __post_init__(self) -> None:
        check_min(self, "channels", 1)
        check_min(self, "growth_channels", 1)
        check_min(self, "num_blocks", 0)
        check_choice(self, "unshuffle", _UNSHUFFLES)
        check_choice(self, "doublings", range(_MAX_DOUBLINGS + 1))
        if self.unshuffle > 2**self.doublings:
            raise ConfigError(
                f"RRDBConfig: unshuffle={self.unshuffle} must be at most "
                f"2^doublings={2**self.doublings}"
            )

    @property
    def scale(self) -> int:
        """Upscaling factor."""
        return 2**self.doublings // self.unshuffle


class ResidualDenseBlock(nn.Module):
    """Five convolutions, each over the input and all earlier results, and a skip (ESRGAN, Fig. 4).

    Args:
        channels: Width of the input and the output.
        growth_channels: Width of the results of the first four convolutions.
    """

    def __init__(
        self,
        channels: int,
        growth_channels: int,
    ) -> None:
        super().__init__()
        c = channels
        g = growth_channels
        act = LeakyReLU(_SLOPE)
        self.conv1 = ConvCat(c, g, act=act)
        self.conv2 = ConvCat(c + g, g, act=act)
        self.conv3 = ConvCat(c + 2 * g, g, act=act)
        self.conv4 = ConvCat(c + 3 * g, g, act=act)
        self.conv5 = ConvCat(c + 4 * g, c)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        features = [x]
        # The convolutions share the transforms of the inputs that they have in common.
        cache: TransformCache = {}
        for conv in (self.conv1, self.conv2, self.conv3, self.conv4):
            features.append(conv(*features, cache=cache))
        residual = self.conv5(*features, cache=cache)
        return torch.add(x, residual, alpha=_RESIDUAL_SCALE)


class RRDB(nn.Module):
    """Residual-in-residual dense block: three dense blocks and a skip (ESRGAN, Fig. 4).

    Args:
        channels: Width of the input and the output.
        growth_channels: Growth of the dense blocks.
    """

    def __init__(
        self,
        channels: int,
        growth_channels: int,
    ) -> None:
        super().__init__()
        self.rdb1 = ResidualDenseBlock(channels, growth_channels)
        self.rdb2 = ResidualDenseBlock(channels, growth_channels)
        self.rdb3 = ResidualDenseBlock(channels, growth_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        residual = self.rdb3(self.rdb2(self.rdb1(x)))
        return torch.add(x, residual, alpha=_RESIDUAL_SCALE)


class RRDBNet(nn.Module):
    """RRDBNet, applied to each frame independently; see the drawing at the top of this file.

    Args:
        config: Configuration of the network.
    """

    def __init__(self, config: RRDBConfig) -> None:
        super().__init__()
        self.config = config
        c = config.channels
        act = LeakyReLU(_SLOPE)
        in_channels = 3 * config.unshuffle**2
        self.conv_first = nn.Conv2d(in_channels, c, 3, padding=1)
        self.body = nn.Sequential()
        for _ in range(config.num_blocks):
            self.body.append(RRDB(c, config.growth_channels))
        self.conv_body = ConvAdd(c, c)
        for i in range(config.doublings):
            self.add_module(f"conv_up{i + 1}", UpsampleConv(c, c, act=act))
        self.conv_hr = ConvAct(c, c, act=act)
        self.conv_last = ConvAct(c, 3)

    def forward(self, lq: Tensor) -> Tensor:
        """Upscale a clip.

        Args:
            lq: Low-quality clip, (B, T, 3, H, W), in [0, 1]; H and W are multiples of `unshuffle`.

        Returns:
            (B, T, 3, sH, sW); values can exceed [0, 1].
        """
        frames = lq.flatten(0, 1)
        x = functional.pixel_unshuffle(frames, self.config.unshuffle)  # (B·T, 3u², H/u, W/u)
        x = self.conv_first(x)
        x = self.conv_body(self.body(x), x)
        doublings: list[UpsampleConv] = []
        for i in range(self.config.doublings):
            doublings.append(cast(UpsampleConv, self.get_submodule(f"conv_up{i + 1}")))
        x = repeat_and_convolve(x, doublings, self.conv_hr, self.conv_last)
        return x.view(*lq.shape[:2], *x.shape[1:])  # (B, T, 3, sH, sW)


_AUTHORS_RULES: tuple[Rule, ...] = (
    (r"^RRDB_trunk\.(\d+)\.RDB(\d)\.", r"body.\1.rdb\2."),
    (r"^trunk_conv\.", "conv_body."),
    (r"^upconv(\d)\.", r"conv_up\1."),
    (r"^HRconv\.", "conv_hr."),
)
"""Names of ESRGAN's published files and of KAIR (BSRGAN)."""

_FIRST_RELEASE_RULES: tuple[Rule, ...] = (
    (r"^model\.0\.", "conv_first."),
    (r"^model\.1\.sub\.(\d+)\.RDB(\d)\.(conv\d)\.0\.", r"body.\1.rdb\2.\3."),
    (r"^model\.1\.sub\.\d+\.(weight|bias)$", r"conv_body.\1"),
)
"""Names of ESRGAN's first release before the upsampling; the indexes of the layers after it depend
on the number of upsampling steps."""


def _rename_first_release(state: State) -> dict[str, Tensor]:
    """Rename the tensors of ESRGAN's first release, `model.<index>`.

    From index 2 on, each doubling has three indexes (nearest, convolution, activation); then come
    conv_hr and conv_last.
    """
    positions = [i for i in indexes(state, r"model\.(\d+)\.weight") if i > 0]
    num_doublings = len(positions) - 2
    names = [f"conv_up{i + 1}" for i in range(num_doublings)]
    names += ["conv_hr", "conv_last"]
    rules = list(_FIRST_RELEASE_RULES)
    for position, name in zip(positions, names, strict=False):
        rules.append((rf"^model\.{position}\.", f"{name}."))
    return rename(state, rules)


def _translate(state: State) -> dict[str, Tensor] | None:
    if "RRDB_trunk.0.RDB1.conv1.weight" in state:
        state = rename(state, _AUTHORS_RULES)
    elif "model.1.sub.0.RDB1.conv1.0.weight" in state:
        state = _rename_first_release(state)
    if not has_convolutions(state, "conv_first", "body.0.rdb1.conv1"):
        return None
    if not state.keys() >= {"conv_body.weight", "conv_last.weight"}:
        return None
    doublings = count_names(state, r"conv_up\d\.weight")
    if doublings > _MAX_DOUBLINGS:
        return None
    # The network does not shrink images: it undoes at least the unshuffle.
    unshuffle = _infer_unshuffle(state)
    if not 1 <= unshuffle <= 2**doublings:
        return None
    return dict(state)


def _infer_unshuffle(state: State) -> int:
    """Infer the factor of the pixel unshuffle from the input channels; 0 if they fit none."""
    in_channels = state["conv_first.weight"].shape[1]
    for unshuffle in _UNSHUFFLES:
        if in_channels == 3 * unshuffle**2:
            return unshuffle
    return 0


def _infer(state: State) -> RRDBConfig:
    return RRDBConfig(
        channels=state["conv_first.weight"].shape[0],
        num_blocks=count_names(state, r"body\.\d+\.rdb1\.conv1\.weight"),
        growth_channels=state["body.0.rdb1.conv1.weight"].shape[0],
        unshuffle=_infer_unshuffle(state),
        doublings=count_names(state, r"conv_up\d\.weight"),
    )


def _contract(config: RRDBConfig) -> Contract:
    # The reach in pixels of the features: 15 convolutions a block, conv_first, conv_body, and less
    # than two pixels in the upsampling.
    reach_px = 15 * config.num_blocks + 4
    # Deviation: 23 blocks reach 349 pixels, but their residuals are scaled down so often that the
    # influence of distant pixels is negligible.
    halo_px = min(reach_px, _MAX_HALO_PX)
    return Contract(
        scale=config.scale,
        temporal=Temporal("frame"),
        halo_px=config.unshuffle * halo_px,
        size_multiple=config.unshuffle,
        precisions=("fp32", "bf16"),
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
