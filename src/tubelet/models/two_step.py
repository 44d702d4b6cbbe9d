"""Two-step: a frozen image model enlarges the frame, then a U-Net restores it, told by its two neighbors.

    lq (B, 3, 3, H, W): frames t − 1, t, t + 1
      t ─ image model, frozen ─ hq (B, 3, sH, sW)
    left  ─ Φ_L ───────────────────────────────────┐ F_L
    hq    ─ Ψ's encoder: s0 ─ s1 ─ s2 ─ s3 ─ s4 ─ s5 ─ (+) F_HQ    F_L, F_HQ, F_R (B, 16·base, H/16, W/16)
    right ─ Φ_R ───────────────────────────────────┘ F_R │
    sr    ─ head ─ u0 ── u1 ── u2 ── u3 ── u4 ───────────┘ Ψ's decoder; each u is joined by the s of its size

A stage (s) is two 3×3 convolutions, with a 2×2 max-pooling before them but for the first; an up-block (u) is a 2×2
transposed convolution of stride 2, a concatenation with the stage of its size, and two 3×3 convolutions. Stages are
base, 2, 4, 8, 16, 16 times base wide at ×2. At ×4 one more stage, of width base, comes first, so that the grids meet
and Φ_L and Φ_R stay as they are. Φ_L and Φ_R have weights of their own, and five stages from base to 16·base.

What the authors' code adds to the paper: batch normalization after each 3×3 convolution (`norm`), and, in `variant`
"published", four up-blocks: the one at H/8 (×2) is left out, the first result is padded with zeros to the size after
it, and the head is 1×1 convolution, batch normalization, tanh, 1×1 convolution.

Source: Masuda, Shimizu and Ishikawa, Efficient Video Super-Resolution via Two-Step 2D SR and Image-to-Image
Conditional Generation, Sec. III; Ronneberger et al., U-Net, MICCAI 2015.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from tubelet.errors import ConfigError
from tubelet.layers.convolution import Activation, ConvAct, ConvCat
from tubelet.layers.frozen import FrozenModel
from tubelet.models.architecture import Architecture, BaseModel, Contract
from tubelet.models.state_dict import (
    Rule,
    State,
    count_names,
    has_convolutions,
    rename,
    without,
    zero_based,
)
from tubelet.types import Temporal

__all__ = [
    "ARCHITECTURE",
    "ENCODER_ARCHITECTURE",
    "ConditionalEncoder",
    "ConditionalEncoderConfig",
    "Features",
    "TwoStepConfig",
    "TwoStepRestorer",
    "needed_image_model",
]

Norm = Literal["batch", "none"]
Features = tuple[Tensor, Tensor, Tensor]
"""F_L, F_HQ, F_R, each (B, 16·base, H/16, W/16)."""

_SIZE_MULTIPLE = 16  # Φ halves four times
_FACTORS = (1, 2, 4, 8, 16)
"""Widths of the stages of Φ, in units of `base`: 64 to 1024 (Sec. III-B)."""
_MAX_BASE = 512  # wider ones are damaged files


@dataclass(frozen=True, slots=True, kw_only=True)
class ConditionalEncoderConfig:
    """Shape of a `ConditionalEncoder`."""

    FORMER_NAMES: ClassVar[Mapping[str, str]] = {"base": "channels"}

    channels: int = 64
    """Width of the first stage; the last has sixteen times as much."""
    norm: Norm = "batch"
    """What follows each convolution: batch normalization as in the authors' code, or none as in the paper."""

    def __post_init__(self) -> None:
        if not 1 <= self.channels <= _MAX_BASE or self.norm not in ("batch", "none"):
            raise ConfigError(
                f"{self} is out of range: channels 1 to {_MAX_BASE}; norm batch or none"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class TwoStepConfig:
    """Configuration of `TwoStepRestorer`; the configuration of its image model is not part of it."""

    FORMER_NAMES: ClassVar[Mapping[str, str]] = {"base": "channels"}

    scale: Literal[2, 4] = 2
    """Upscaling factor of the image model."""
    channels: int = 64
    """Width of the first stage; 64 as published, with 88 million parameters, or 120 in the
    variant paper."""
    variant: Literal["paper", "published"] = "paper"
    """Decoder of the paper, or of the authors' code (published), which supports only ×2."""
    norm: Norm = "batch"
    """Normalization after each 3×3 convolution: batch as in the authors' code, or none as in the
    paper."""
    residual: bool = True
    """Add the output of the network to the image model's result. Published files do not store
    this: `infer` uses the usual value of the variant."""

    def __post_init__(self) -> None:
        if self.scale not in (2, 4) or not 1 <= self.channels <= _MAX_BASE:
            raise ConfigError(f"{self} is out of range: scale 2 or 4; channels 1 to {_MAX_BASE}")
        if self.variant not in ("paper", "published") or self.norm not in ("batch", "none"):
            raise ConfigError(
                f"{self} is out of range: variant paper or published; norm batch or none"
            )
        if self.variant == "published" and (self.scale, self.norm, self.residual) != (
            2,
            "batch",
            False,
        ):
            raise ConfigError(
                f"{self} is not what is published: that has scale=2, norm=batch, residual=False"
            )


class ConvPair(nn.Module):
    """Two 3×3 convolutions, each with its normalization and ReLU: (B, C, H, W) → (B, C', H, W)."""

    def __init__(self, channels_in: int, channels: int, norm: Norm) -> None:
        super().__init__()
        plain = norm == "none"
        act: Activation = "relu" if plain else "none"
        self.conv1 = ConvCat(channels_in, channels, act=act, bias=plain)
        self.conv2 = ConvAct(channels, channels, act=act, bias=plain)
        self.norm1 = None if plain else nn.BatchNorm2d(channels)
        self.norm2 = None if plain else nn.BatchNorm2d(channels)

    def forward(self, *parts: Tensor) -> Tensor:
        """Convolve what lies in one or several tensors (B, Cᵢ, H, W)."""
        x = self.conv1(*parts)
        if self.norm1 is None or self.norm2 is None:
            return self.conv2(x)
        return self.norm2(self.conv2(self.norm1(x).relu_())).relu_()


class UpBlock(nn.Module):
    """Double the size, and join what the encoder had there.

    Args:
        channels_in: of what is doubled.
        channels: of what is joined, and of the result.
        norm: after the 3×3 convolutions.
    """

    def __init__(self, channels_in: int, channels: int, norm: Norm) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(channels_in, channels, 2, stride=2)
        self.pair = ConvPair(2 * channels, channels, norm)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Map (B, C, h, w) and skip (B, C', H, W) to (B, C', H, W); a smaller 2h × 2w lies in the middle of zeros."""
        x = self.up(x)
        down, across = skip.shape[-2] - x.shape[-2], skip.shape[-1] - x.shape[-1]
        if down or across:  # the published decoder alone
            x = functional.pad(x, (across // 2, across - across // 2, down // 2, down - down // 2))
        return self.pair(x, skip)


def _stages(widths: Sequence[int], norm: Norm) -> nn.ModuleList:
    return nn.ModuleList(ConvPair(c, d, norm) for c, d in zip((3, *widths), widths, strict=False))


def _begin(network: nn.Module, norm: Norm) -> None:
    """Keep the variance from layer to layer where no normalization does: else what the neighbors tell dies away.

    Source: He et al., Delving Deep into Rectifiers, ICCV 2015, Sec. 2.2.
    """
    if norm == "batch":
        return
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.in_channels == 3 and module.bias is not None:
                _center(module.weight, module.bias)
        elif isinstance(
            module, nn.ConvTranspose2d
        ):  # each pixel of its result has one tap per channel
            nn.init.normal_(module.weight, std=module.in_channels**-0.5)


@torch.no_grad()
def _center(weight: Tensor, bias: Tensor) -> None:
    """Make a first convolution see pixels, which lie around a half and spread by a quarter, as around 0 and by 1."""
    weight.mul_(4)
    bias.copy_(weight.sum((1, 2, 3)).mul_(-0.5))


def _contract_path(stages: nn.ModuleList, x: Tensor) -> list[Tensor]:
    """Run stages with poolings between them: the result of each, (B, wᵢ, H/2ⁱ, W/2ⁱ)."""
    levels: list[Tensor] = []
    for stage in stages:
        levels.append(stage(functional.max_pool2d(levels[-1], 2) if levels else x))
    return levels


class ConditionalEncoder(nn.Module):
    """Φ_L or Φ_R: what a neighbor tells, without motion or alignment.

    Args:
        config: shape of the network.

    Source: Sec. III-B, Eq. 3.
    """

    def __init__(self, config: ConditionalEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.stages = _stages([config.channels * factor for factor in _FACTORS], config.norm)
        _begin(self, config.norm)

    def forward(self, neighbor: Tensor) -> Tensor:
        """Encode a frame (B, 3, H, W), sides multiples of 16, to (B, 16·base, H/16, W/16)."""
        return _contract_path(self.stages, neighbor)[-1]


class TwoStepRestorer(nn.Module):
    """Φ_L, Φ_R and Ψ, over a frozen image model; see the drawing on top of this file.

    Args:
        config: shape of the network.

    Attributes:
        image_model: the first step, (B, T, 3, H, W) → (B, T, 3, sH, sW); None until `with_image_model` sets it. It
            never trains, and is no part of the state dict, the parameters and the training mode.
    """

    def __init__(self, config: TwoStepConfig) -> None:
        super().__init__()
        self.config = config
        widths = _hq_widths(config)
        encoder = ConditionalEncoderConfig(channels=config.channels, norm=config.norm)
        self.encoder_l = ConditionalEncoder(encoder)
        self.encoder_r = ConditionalEncoder(encoder)
        self.stages = _stages(widths, config.norm)
        self.ups = nn.ModuleList()
        below = widths[-1]
        for level in self._joined_levels():
            self.ups.append(UpBlock(below, widths[level], config.norm))
            below = widths[level]
        _begin(self, config.norm)
        self.head = _head(config)
        self._base: FrozenModel | None = None

    @property
    def image_model(self) -> nn.Module | None:
        """The first step, or None where there is none yet."""
        return None if self._base is None else self._base.network

    def with_image_model(self, model: nn.Module) -> TwoStepRestorer:
        """Take a network of single frames, of the same scale, as the first step, and freeze it; return self."""
        self._base = FrozenModel(model)
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> TwoStepRestorer:
        """Move the image model along to where the network goes."""
        super()._apply(fn, recurse)
        if self._base is not None:
            self._base.network._apply(fn, recurse)
        return self

    @torch.no_grad()
    def enlarge(self, lq: Tensor) -> Tensor:
        """Run the first step.

        Args:
            lq: (B, 3, H, W).

        Returns:
            (B, 3, sH, sW), clipped to [0, 1], as images are that lie in files.

        Raises:
            ConfigError: there is no image model.
        """
        if self.image_model is None:
            raise ConfigError(
                "this two-step network has no image model for its first step; "
                "give it one: model.with_image_model(tubelet.create_model(ID))"
            )
        return self.image_model(lq[:, None])[:, 0].clamp(0, 1)

    def encode(self, hq: Tensor, left: Tensor, right: Tensor) -> Features:
        """Compute what Eq. 5 adds; arguments as in `restore`."""
        return self.encoder_l(left), _contract_path(self.stages, hq)[-1], self.encoder_r(right)

    def restore(self, hq: Tensor, left: Tensor, right: Tensor) -> Tensor:
        """Run the second step.

        Args:
            hq: (B, 3, sH, sW), the frame as the image model enlarged it; H and W multiples of 16.
            left: (B, 3, H, W), the frame before it, or the frame itself where there is none.
            right: (B, 3, H, W), the frame after it, or the frame itself.

        Returns:
            (B, 3, sH, sW); values can overshoot [0, 1].
        """
        return self.restore_with_features(hq, left, right)[0]

    def restore_with_features(
        self, hq: Tensor, left: Tensor, right: Tensor
    ) -> tuple[Tensor, Features]:
        """Do what `restore` and `encode` do, at once: the loss of Eq. 11 compares the features too."""
        features = (
            self.encoder_l(left),
            (levels := _contract_path(self.stages, hq))[-1],
            self.encoder_r(right),
        )
        x = features[0] + features[1] + features[2]  # Eq. 5
        for up, level in zip(self.ups, self._joined_levels(), strict=True):
            x = up(x, levels[level])
        x = self.head(x)  # (B, 3, sH, sW)
        # Deviation: neither the paper nor its code adds hq; a network that has a small width learns what is missing
        # far sooner than the whole image.
        return (x + hq if self.config.residual else x), features

    def forward(self, lq: Tensor) -> Tensor:
        """Enlarge and restore the middle frame: (B, 3, 3, H, W) → (B, 1, 3, sH, sW).

        Raises:
            ConfigError: there is no image model.
        """
        left, middle, right = lq.unbind(1)
        return self.restore(self.enlarge(middle), left, right)[:, None]

    def _joined_levels(self) -> range:
        """Say which stages join the decoder, from the first up-block to the last."""
        deepest = len(self.stages) - 1
        # Deviation of the published code: the stage at lq's H/8 is not joined, and its up-block is missing.
        return range(deepest - (2 if self.config.variant == "published" else 1), -1, -1)


def _hq_widths(config: TwoStepConfig) -> list[int]:
    """Return the widths of Ψ's stages; the last one is that of Φ, at the same size."""
    # Deviation: the paper has ×2 alone. A stage more in Ψ, and not one less in Φ, keeps F at H/16 × W/16 × 1024.
    first = (1,) * (int(math.log2(config.scale)) - 1)
    return [config.channels * factor for factor in (*first, *_FACTORS, _FACTORS[-1])]


def _head(config: TwoStepConfig) -> nn.Module:
    c = config.channels
    if config.variant == "published":
        half = max(1, c // 2)
        return nn.Sequential(
            nn.Conv2d(c, half, 1), nn.BatchNorm2d(half), nn.Tanh(), nn.Conv2d(half, 3, 1)
        )
    head = nn.Conv2d(c, 3, 1)
    if config.residual:  # at first the result is the image model's
        for parameter in head.parameters():
            nn.init.zeros_(parameter)
    return head


_AUTHORS: tuple[Rule, ...] = (
    (r"\.double_conv\.0\.", ".conv1."),
    (r"\.double_conv\.1\.", ".norm1."),
    (r"\.double_conv\.3\.", ".conv2."),
    (r"\.double_conv\.4\.", ".norm2."),
    (r"\bdown(\d)\.down_convb\.1\.", r"stages.\1."),
    (r"^up(\d)\.convp\.", zero_based("ups.{}.pair.")),
    (r"^up(\d)\.up\.", zero_based("ups.{}.up.")),
    (r"\bconvp\.", "stages.0."),
    (r"^out\.out_convb\.", "head."),
)
"""From the authors' names, who count up-blocks from 1, to ours."""
_MARKS = (
    *("encoder_l.stages.4.conv1", "encoder_l.stages.4.conv2"),
    *("encoder_r.stages.4.conv1", "encoder_r.stages.4.conv2"),
    *("stages.0.conv1", "stages.4.conv1", "stages.4.conv2"),
    *("ups.0.up", "ups.0.pair.conv1", "ups.0.pair.conv2"),
)


def _rename(state: State) -> dict[str, Tensor]:
    is_published = any(".double_conv." in name for name in state)
    return rename(state, _AUTHORS) if is_published else dict(state)


def _translate(state: State) -> dict[str, Tensor] | None:
    """Take our names, or map the authors' to them; None where they are of another network."""
    own = _rename(state)
    return own if has_convolutions(own, *_MARKS) else None


def _norm(state: State) -> Norm:
    return "batch" if "stages.0.norm1.weight" in state else "none"


def _infer(state: State) -> TwoStepConfig:
    published = "head.3.weight" in state
    stages = count_names(state, r"stages\.\d+\.conv1\.weight")
    return TwoStepConfig(
        scale=2 if stages <= len(_FACTORS) + 1 else 4,
        channels=state["stages.0.conv1.weight"].shape[0],
        variant="published" if published else "paper",
        norm=_norm(state),
        residual=not published,
    )


def _contract(config: TwoStepConfig) -> Contract:
    # One way, in pixels of hq, for n halvings: 2 at each of n + 1 stages and n up-blocks, times 1 to 2ⁿ, and what
    # poolings and transposed convolutions put together, 2ⁿ − 1. Φ sees less.
    halvings = len(_hq_widths(config)) - 1
    reach_px = 2 * (2 ** (halvings + 1) - 1) + 3 * (2**halvings - 1)
    # Deviation: the published decoder lays the features of the whole image into the middle of zeros, so that no
    # halo is enough for it; it was trained on images of 64×64, and tiles of that size are what it knows.
    return Contract(
        scale=config.scale,
        temporal=Temporal("window", radius=1),
        halo_px=math.ceil(reach_px / config.scale),
        size_multiple=_SIZE_MULTIPLE,
        min_size_px=_SIZE_MULTIPLE,
    )


def _contract_of_both(own: Contract, image: Contract) -> Contract:
    """Combine the contracts of the two steps; both see lq, one after the other."""
    return dataclasses.replace(
        own,
        halo_px=own.halo_px + image.halo_px,
        size_multiple=math.lcm(own.size_multiple, image.size_multiple),
        min_size_px=max(own.min_size_px, image.min_size_px),
    )


def needed_image_model(config: TwoStepConfig) -> BaseModel:
    """Describe what the first step must be. The files of the authors' own code do not name theirs: it is HAT ×2."""
    return BaseModel(
        role="image model",
        kind="frame",
        scale=config.scale,
        attach=TwoStepRestorer.with_image_model,
        contract=_contract_of_both,
        usual="hat-x2" if config.variant == "published" else "",
        remedy="load_model(path).with_image_model(create_model(ID))",
    )


ARCHITECTURE = Architecture(
    name=TwoStepRestorer.__name__,
    config=TwoStepConfig,
    build=TwoStepRestorer,
    translate=_translate,
    infer=_infer,
    contract=_contract,
    base=needed_image_model,
    derived=(".num_batches_tracked",),
    source="https://github.com/msdsm/efficient-video-sr-2steps",
)


def _translate_encoder(state: State) -> dict[str, Tensor] | None:
    own = _rename(state)
    if without(own, r"stages\.[0-4]\.(conv|norm)[12]\..*"):
        return None
    return own if has_convolutions(own, "stages.0.conv1", "stages.4.conv2") else None


def _infer_encoder(state: State) -> ConditionalEncoderConfig:
    return ConditionalEncoderConfig(
        channels=state["stages.0.conv1.weight"].shape[0], norm=_norm(state)
    )


def _contract_encoder(config: ConditionalEncoderConfig) -> None:
    del config  # it makes features, no images


ENCODER_ARCHITECTURE = Architecture(
    name=ConditionalEncoder.__name__,
    config=ConditionalEncoderConfig,
    build=ConditionalEncoder,
    translate=_translate_encoder,
    infer=_infer_encoder,
    contract=_contract_encoder,
    derived=(".num_batches_tracked",),
    source=ARCHITECTURE.source,
)
