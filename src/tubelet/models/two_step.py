"""Two-step: a frozen image model upscales a frame, then a U-Net restores it with two neighbors.

    lq (B, 3, 3, H, W): frames t − 1 (left), t, t + 1 (right)

    step 1    t ─ image model, frozen ─ hq (B, 3, sH, sW)

    step 2    left  ─ Φ_L ────────────────────────────────┐ F_L
              hq    ─ s0 ── s1 ── s2 ── s3 ── s4 ── s5 ──(+) F_HQ           Ψ's encoder
              right ─ Φ_R ────────────────────────────────┤ F_R
              sr ◄ head ◄ u0 ◄─ u1 ◄─ u2 ◄─ u3 ◄─ u4 ◄────┘                 Ψ's decoder
                                                      F_L, F_HQ, F_R (B, 16C, H/16, W/16)

    stage sᵢ       (2×2 max-pooling, except in s0,) conv pair
    up-block uᵢ    2×2 transposed convolution of stride 2, concatenation with the output of sᵢ,
                   conv pair
    conv pair      two 3×3 convolutions with ReLU

At ×2, the stages of Ψ have the widths C, 2C, 4C, 8C, 16C, 16C. At ×4, Ψ has one more stage at the
beginning, of width C, so that F_HQ has the size of F_L and F_R, and Φ_L and Φ_R stay the same. Φ_L
and Φ_R do not share weights; each has five stages, of widths C to 16C.

The authors' code differs from the paper: it has batch normalization after each 3×3 convolution
(`norm`). In `variant` "published", it also leaves out the up-block at H/8 (×2), pads the result of
the first up-block with zeros to the size after that, and has another head: 1×1 convolution, batch
normalization, tanh, 1×1 convolution.

Source: Masuda, Shimizu and Ishikawa, Efficient Video Super-Resolution via Two-Step 2D SR and
Image-to-Image Conditional Generation, Sec. III; Ronneberger et al., U-Net, MICCAI 2015.
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
from tubelet.layers.frozen import FrozenModel, apply_to_frozen
from tubelet.models.architecture import Architecture, BaseModel, Contract
from tubelet.models.config_checks import check_choice, check_range
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
"""F_L, F_HQ, F_R, each (B, 16C, H/16, W/16)."""

# Φ halves the size four times.
_SIZE_MULTIPLE = 16
_WIDTH_FACTORS = (1, 2, 4, 8, 16)
"""Widths of the stages of Φ in units of `channels`: 64 to 1024 as published (Sec. III-B)."""
# Wider networks come from damaged files.
_MAX_CHANNELS = 512
_PUBLISHED_FIELDS: dict[str, object] = {
    "scale": 2,
    "norm": "batch",
    "residual": False,
}
"""Fields of the configuration that the variant "published" fixes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConditionalEncoderConfig:
    """Configuration of a `ConditionalEncoder`."""

    FORMER_NAMES: ClassVar[Mapping[str, str]] = {"base": "channels"}

    channels: int = 64
    """Width C of the first stage; the last stage is 16C wide."""
    norm: Norm = "batch"
    """Batch normalization after each convolution as in the authors' code, or none as in the
    paper."""

    def __post_init__(self) -> None:
        check_range(self, "channels", 1, _MAX_CHANNELS)
        check_choice(self, "norm", ("batch", "none"))


@dataclass(frozen=True, slots=True, kw_only=True)
class TwoStepConfig:
    """Configuration of a `TwoStepRestorer`, without that of its image model."""

    FORMER_NAMES: ClassVar[Mapping[str, str]] = {"base": "channels"}

    scale: Literal[2, 4] = 2
    """Upscaling factor of the image model."""
    channels: int = 64
    """Width C of the first stage; 64 as published, with 88 million parameters, or 120 million in
    the variant paper."""
    variant: Literal["paper", "published"] = "paper"
    """Decoder of the paper, or of the authors' code (published), which supports only ×2."""
    norm: Norm = "batch"
    """Normalization after each 3×3 convolution: batch as in the authors' code, or none as in the
    paper."""
    residual: bool = True
    """Add the output of the network to the image model's result. Published files do not store
    this: `infer` uses the usual value of the variant."""

    def __post_init__(self) -> None:
        check_choice(self, "scale", (2, 4))
        check_range(self, "channels", 1, _MAX_CHANNELS)
        check_choice(self, "variant", ("paper", "published"))
        check_choice(self, "norm", ("batch", "none"))
        if self.variant == "paper":
            return
        for field, published in _PUBLISHED_FIELDS.items():
            value = getattr(self, field)
            if value != published:
                raise ConfigError(
                    f"TwoStepConfig: {field}={value!r} does not go with variant='published', "
                    f"which has {field}={published!r}"
                )


class ConvPair(nn.Module):
    """Two 3×3 convolutions, each followed by optional normalization and ReLU.

    Args:
        in_channels: Channels of all inputs together.
        channels: Channels of the output.
        norm: Normalization after each convolution.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        norm: Norm,
    ) -> None:
        super().__init__()
        has_norm = norm == "batch"
        # Without normalization, the ReLU is fused with the convolution; with it, the convolution
        # needs no bias.
        act: Activation = "none" if has_norm else "relu"
        self.conv1 = ConvCat(in_channels, channels, act=act, bias=not has_norm)
        self.conv2 = ConvAct(channels, channels, act=act, bias=not has_norm)
        self.norm1: nn.BatchNorm2d | None = None
        self.norm2: nn.BatchNorm2d | None = None
        if has_norm:
            self.norm1 = nn.BatchNorm2d(channels)
            self.norm2 = nn.BatchNorm2d(channels)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Map one or more tensors (B, Cᵢ, H, W), which are concatenated, to (B, C', H, W)."""
        x = self.conv1(*inputs)
        if self.norm1 is not None:
            x = self.norm1(x).relu_()
        x = self.conv2(x)
        if self.norm2 is not None:
            x = self.norm2(x).relu_()
        return x


class UpBlock(nn.Module):
    """Transposed convolution to twice the size, then a conv pair over the result and a skip.

    Args:
        in_channels: Channels of the input.
        channels: Channels of the skip and of the output.
        norm: Normalization after the 3×3 convolutions.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        norm: Norm,
    ) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(in_channels, channels, 2, stride=2)
        self.pair = ConvPair(2 * channels, channels, norm)

    def forward(
        self,
        x: Tensor,
        skip: Tensor,
    ) -> Tensor:
        """Upsample features and join those of the encoder.

        Args:
            x: Features of the level below, (B, C, h, w).
            skip: Features of the encoder, (B, C', H, W), at least 2h × 2w.

        Returns:
            (B, C', H, W); upsampled features that are smaller are centered and padded with zeros.
        """
        x = self.up(x)
        rows = skip.shape[-2] - x.shape[-2]
        columns = skip.shape[-1] - x.shape[-1]
        # Only the published decoder, which lacks an up-block, has to pad.
        if rows or columns:
            left = columns // 2
            top = rows // 2
            x = functional.pad(x, (left, columns - left, top, rows - top))
        return self.pair(x, skip)


def _build_stages(
    widths: Sequence[int],
    norm: Norm,
) -> nn.ModuleList:
    stages = nn.ModuleList()
    in_channels = 3
    for width in widths:
        stages.append(ConvPair(in_channels, width, norm))
        in_channels = width
    return stages


def _run_stages(
    stages: nn.ModuleList,
    x: Tensor,
) -> list[Tensor]:
    """Run stages with max-pooling between them.

    Args:
        stages: Conv pairs of widths wᵢ.
        x: Image, (B, 3, H, W).

    Returns:
        Output of each stage, (B, wᵢ, H/2ⁱ, W/2ⁱ).
    """
    outputs: list[Tensor] = []
    for stage in stages:
        if outputs:
            x = functional.max_pool2d(x, 2)
        x = stage(x)
        outputs.append(x)
    return outputs


def _init_weights(
    network: nn.Module,
    norm: Norm,
) -> None:
    """Initialize convolutions without normalization so that each keeps the variance of its input.

    Otherwise the signal of the neighbors vanishes on its way through the network.

    Source: He et al., Delving Deep into Rectifiers, ICCV 2015, Sec. 2.2.
    """
    if norm == "batch":
        return
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            reads_pixels = module.in_channels == 3
            if reads_pixels and module.bias is not None:
                _standardize_pixels(module.weight, module.bias)
        elif isinstance(module, nn.ConvTranspose2d):
            # With a 2×2 kernel of stride 2, each output pixel has one tap per input channel.
            std = module.in_channels**-0.5
            nn.init.normal_(module.weight, std=std)


@torch.no_grad()
def _standardize_pixels(weight: Tensor, bias: Tensor) -> None:
    """Make a first convolution map pixels of mean 1/2 and deviation 1/4 as if they had 0 and 1."""
    weight.mul_(4)
    bias.copy_(weight.sum((1, 2, 3)).mul_(-0.5))


class ConditionalEncoder(nn.Module):
    """Φ_L or Φ_R: encoder of a neighboring frame, without motion compensation or alignment.

    Args:
        config: Configuration of the encoder.

    Source: Sec. III-B, Eq. 3.
    """

    def __init__(self, config: ConditionalEncoderConfig) -> None:
        super().__init__()
        self.config = config
        widths = [config.channels * factor for factor in _WIDTH_FACTORS]
        self.stages = _build_stages(widths, config.norm)
        _init_weights(self, config.norm)

    def forward(self, neighbor: Tensor) -> Tensor:
        """Encode a frame (B, 3, H, W), H and W multiples of 16, to (B, 16C, H/16, W/16)."""
        return _run_stages(self.stages, neighbor)[-1]


class TwoStepRestorer(nn.Module):
    """Φ_L, Φ_R and Ψ with a frozen image model; see the drawing at the top of this file.

    Args:
        config: Configuration of the network.

    Attributes:
        image_model: Network of the first step, (B, T, 3, H, W) → (B, T, 3, sH, sW); None until
            `with_image_model` sets it. It is never trained, and `state_dict`, `parameters` and
            `train` do not include it.
    """

    def __init__(self, config: TwoStepConfig) -> None:
        super().__init__()
        self.config = config
        widths = _hq_widths(config)
        encoder_config = ConditionalEncoderConfig(channels=config.channels, norm=config.norm)
        self.encoder_l = ConditionalEncoder(encoder_config)
        self.encoder_r = ConditionalEncoder(encoder_config)
        self.stages = _build_stages(widths, config.norm)
        self.ups = nn.ModuleList()
        in_channels = widths[-1]
        for level in self._skip_levels():
            self.ups.append(UpBlock(in_channels, widths[level], config.norm))
            in_channels = widths[level]
        _init_weights(self, config.norm)
        self.head = _build_head(config)
        self._frozen_image_model: FrozenModel | None = None

    @property
    def image_model(self) -> nn.Module | None:
        """Network of the first step, or None if none is set."""
        if self._frozen_image_model is None:
            return None
        return self._frozen_image_model.network

    def with_image_model(self, model: nn.Module) -> TwoStepRestorer:
        """Set and freeze the network of the first step.

        Args:
            model: Network of single frames with the same scale.

        Returns:
            This network.
        """
        self._frozen_image_model = FrozenModel(model)
        return self

    def _apply(
        self,
        fn: Callable[[Tensor], Tensor],
        recurse: bool = True,
    ) -> TwoStepRestorer:
        """Apply `to`, `cuda`, `half` and the like to the image model, too."""
        super()._apply(fn, recurse)
        apply_to_frozen(self, fn, recurse)
        return self

    @torch.no_grad()
    def enlarge(self, lq: Tensor) -> Tensor:
        """Run the first step.

        Args:
            lq: Low-quality frame, (B, 3, H, W), in [0, 1].

        Returns:
            (B, 3, sH, sW), clipped to [0, 1] like images that were stored in files.

        Raises:
            ConfigError: No image model is set.
        """
        if self.image_model is None:
            raise ConfigError(
                "this two-step network has no image model for its first step; "
                "give it one: model.with_image_model(tubelet.create_model(ID))"
            )
        hq = self.image_model(lq[:, None])  # (B, 1, 3, sH, sW)
        return hq[:, 0].clamp(0, 1)

    def encode(
        self,
        hq: Tensor,
        left: Tensor,
        right: Tensor,
    ) -> Features:
        """Compute F_L, F_HQ and F_R, the terms of Eq. 5; arguments as in `restore`."""
        f_left = self.encoder_l(left)
        f_hq = _run_stages(self.stages, hq)[-1]
        f_right = self.encoder_r(right)
        return f_left, f_hq, f_right

    def restore(
        self,
        hq: Tensor,
        left: Tensor,
        right: Tensor,
    ) -> Tensor:
        """Run the second step.

        Args:
            hq: Current frame, upscaled by the image model, (B, 3, sH, sW); H and W are multiples
                of 16.
            left: Previous low-quality frame, (B, 3, H, W); the current one at the start of a clip.
            right: Next low-quality frame, (B, 3, H, W); the current one at the end of a clip.

        Returns:
            (B, 3, sH, sW); values can exceed [0, 1].
        """
        return self.restore_with_features(hq, left, right)[0]

    def restore_with_features(
        self,
        hq: Tensor,
        left: Tensor,
        right: Tensor,
    ) -> tuple[Tensor, Features]:
        """Return the results of `restore` and `encode`; the loss of Eq. 11 compares both."""
        f_left = self.encoder_l(left)
        skips = _run_stages(self.stages, hq)
        f_hq = skips[-1]
        f_right = self.encoder_r(right)
        x = f_left + f_hq + f_right  # Eq. 5
        for up, level in zip(self.ups, self._skip_levels(), strict=True):
            x = up(x, skips[level])
        x = self.head(x)  # (B, 3, sH, sW)
        # Deviation: neither the paper nor its code adds hq; a narrow network learns the missing
        # detail far sooner than the whole image.
        if self.config.residual:
            x = x + hq
        return x, (f_left, f_hq, f_right)

    def forward(self, lq: Tensor) -> Tensor:
        """Upscale and restore the middle frame.

        Args:
            lq: Low-quality frames t − 1, t and t + 1, (B, 3, 3, H, W), in [0, 1].

        Returns:
            (B, 1, 3, sH, sW).

        Raises:
            ConfigError: No image model is set.
        """
        left, current, right = lq.unbind(1)
        hq = self.enlarge(current)
        sr = self.restore(hq, left, right)
        return sr[:, None]

    def _skip_levels(self) -> range:
        """Return the indexes of the stages that the up-blocks join, from the deepest to the first.

        Deviation of the published code: it lacks the up-block that joins the stage at H/8 of lq.
        """
        deepest = len(self.stages) - 1
        if self.config.variant == "published":
            return range(deepest - 2, -1, -1)
        return range(deepest - 1, -1, -1)


def _hq_widths(config: TwoStepConfig) -> list[int]:
    """Return the widths of Ψ's stages; the last stage has the width and size of Φ's last one."""
    factors = [*_WIDTH_FACTORS, _WIDTH_FACTORS[-1]]
    # Deviation: the paper has ×2 only. At ×4, a stage more in Ψ, and not one less in Φ, keeps the
    # features at H/16 × W/16 × 1024.
    if config.scale == 4:
        factors.insert(0, 1)
    return [config.channels * factor for factor in factors]


def _build_head(config: TwoStepConfig) -> nn.Module:
    c = config.channels
    if config.variant == "published":
        half = max(1, c // 2)
        return nn.Sequential(
            nn.Conv2d(c, half, 1),
            nn.BatchNorm2d(half),
            nn.Tanh(),
            nn.Conv2d(half, 3, 1),
        )
    head = nn.Conv2d(c, 3, 1)
    # With a residual of zero, training starts from the image of the image model.
    if config.residual:
        for parameter in head.parameters():
            nn.init.zeros_(parameter)
    return head


_AUTHORS_RULES: tuple[Rule, ...] = (
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
"""From the authors' names, which count up-blocks from 1, to ours."""
_REQUIRED_CONVOLUTIONS = (
    "encoder_l.stages.4.conv1",
    "encoder_l.stages.4.conv2",
    "encoder_r.stages.4.conv1",
    "encoder_r.stages.4.conv2",
    "stages.0.conv1",
    "stages.4.conv1",
    "stages.4.conv2",
    "ups.0.up",
    "ups.0.pair.conv1",
    "ups.0.pair.conv2",
)


def _rename(state: State) -> dict[str, Tensor]:
    """Map the names of the authors to ours, and leave our own names unchanged."""
    # In the authors' code, every pair of convolutions is a module `double_conv`.
    is_published = any(".double_conv." in name for name in state)
    if is_published:
        return rename(state, _AUTHORS_RULES)
    return dict(state)


def _translate(state: State) -> dict[str, Tensor] | None:
    """Map the names of the authors to ours; None if the state dict belongs to another network."""
    own = _rename(state)
    if not has_convolutions(own, *_REQUIRED_CONVOLUTIONS):
        return None
    return own


def _infer_norm(state: State) -> Norm:
    has_norm = "stages.0.norm1.weight" in state
    if has_norm:
        return "batch"
    return "none"


def _infer(state: State) -> TwoStepConfig:
    is_published = "head.3.weight" in state
    num_stages = count_names(state, r"stages\.\d+\.conv1\.weight")
    # At ×2, Ψ has one stage more than Φ, and at ×4 two.
    num_extra_stages = num_stages - len(_WIDTH_FACTORS)
    return TwoStepConfig(
        scale=2 if num_extra_stages <= 1 else 4,
        channels=state["stages.0.conv1.weight"].shape[0],
        variant="published" if is_published else "paper",
        norm=_infer_norm(state),
        residual=not is_published,
    )


def _contract(config: TwoStepConfig) -> Contract:
    # Reach of Ψ in pixels of hq, with n halvings; Φ reaches less far. Two 3×3 convolutions reach 2
    # pixels of their level, which has 2⁰ to 2ⁿ pixels of hq: at each of n + 1 stages, and at each
    # of n up-blocks. Pooling and transposed convolutions reach 2ⁿ − 1 pixels in all.
    halvings = len(_hq_widths(config)) - 1
    stages_px = 2 * (2 ** (halvings + 1) - 1)
    up_blocks_px = 2 * (2**halvings - 1)
    resampling_px = 2**halvings - 1
    reach_px = stages_px + up_blocks_px + resampling_px
    # Deviation: the published decoder centers the features of the whole image in zeros, so that no
    # halo is enough for it; it was trained on images of 64×64, and works on tiles of that size.
    return Contract(
        scale=config.scale,
        temporal=Temporal("window", radius=1),
        halo_px=math.ceil(reach_px / config.scale),
        size_multiple=_SIZE_MULTIPLE,
        min_size_px=_SIZE_MULTIPLE,
    )


def _combine_contracts(own: Contract, image: Contract) -> Contract:
    """Combine the contracts of the two steps, which both see lq, one after the other."""
    return dataclasses.replace(
        own,
        halo_px=own.halo_px + image.halo_px,
        size_multiple=math.lcm(own.size_multiple, image.size_multiple),
        min_size_px=max(own.min_size_px, image.min_size_px),
        tile_multiple=math.lcm(own.tile_multiple, image.tile_multiple),
        sees_whole_image=own.sees_whole_image or image.sees_whole_image,
    )


def needed_image_model(config: TwoStepConfig) -> BaseModel:
    """Describe the image model that a configuration needs for its first step.

    Files of the authors' own code do not name their image model: it is HAT ×2.
    """
    return BaseModel(
        role="image model",
        kind="frame",
        scale=config.scale,
        attach=TwoStepRestorer.with_image_model,
        contract=_combine_contracts,
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
    """Map the names of the authors to ours; None unless the state dict is of an encoder only."""
    own = _rename(state)
    # Any other name belongs to a complete network.
    other_names = without(own, r"stages\.[0-4]\.(conv|norm)[12]\..*")
    if other_names:
        return None
    if not has_convolutions(own, "stages.0.conv1", "stages.4.conv2"):
        return None
    return own


def _infer_encoder(state: State) -> ConditionalEncoderConfig:
    return ConditionalEncoderConfig(
        channels=state["stages.0.conv1.weight"].shape[0],
        norm=_infer_norm(state),
    )


def _contract_encoder(config: ConditionalEncoderConfig) -> None:
    """Return no contract: an encoder makes features, not images."""
    del config


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
