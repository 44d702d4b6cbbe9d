"""Names, shapes and unused layers that PSRT and the networks after it share.

    published                                              ours
    patch_align.S.* (IART: swin_backbone.S.*)              sweeps.S.*
      .patch_embed.norm.*                                    .patch_norm.*
      .layers.G.residual_group.blocks.B.*                    .groups.G.blocks.B.*
      .layers.G.conv.*                                       .groups.G.conv.*
      .conv_first, .conv_first_feat, .conv_before_upsample   unused.S.*

S is one of `CHAIN_SWEEPS`. The unused layers belong to the SwinIR from which the published code was
made; their weights are in its files, but nothing passes through them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor, nn

from tubelet.errors import ConfigError
from tubelet.layers.chain import CHAIN_SWEEPS
from tubelet.layers.sweep_transformer import NUM_FRAMES
from tubelet.models.config_checks import check_attention_groups, check_min, check_positive
from tubelet.models.spynet import rename_spynet
from tubelet.models.state_dict import (
    Rule,
    State,
    count_blocks,
    first_words,
    has_convolutions,
    rename,
    shape_of,
    without,
)

__all__ = [
    "CHAIN_MODULES",
    "MIN_SIZE_PX",
    "UNUSED_CONVS",
    "UnusedConv",
    "check_chain_config",
    "check_published_width",
    "infer_chain",
    "infer_mlp_ratio",
    "is_chain",
    "rename_chain",
    "table_frames",
    "unused_convs",
]

UnusedConv = Literal["conv_first", "conv_first_feat", "conv_before_upsample"]

UNUSED_CONVS: tuple[UnusedConv, ...] = ("conv_first", "conv_first_feat", "conv_before_upsample")
"""Layers of each sweep that the published code builds and does not use."""

CHAIN_MODULES = {
    "spynet",
    "conv_first",
    "sweeps",
    "conv_before_upsample",
    "upconv1",
    "upconv2",
    "conv_hr",
    "conv_last",
}
"""Top-level modules that all these networks have, by our names."""

MIN_SIZE_PX = 32
"""Smallest side of a frame: a pixel on the coarsest level of SpyNet. Published code asks for 64."""

_SWEEP = "|".join(CHAIN_SWEEPS)
_UNUSED = "|".join(UNUSED_CONVS)
_RULES: tuple[Rule, ...] = (
    (rf"^(?:patch_align|swin_backbone)\.({_SWEEP})\.({_UNUSED})\.", r"unused.\1.\2."),
    (rf"^(?:patch_align|swin_backbone)\.({_SWEEP})\.", r"sweeps.\1."),
    (r"\.patch_embed\.norm\.", ".patch_norm."),
    (r"\.layers\.(\d+)\.", r".groups.\1."),
    (r"\.residual_group\.", "."),
)
_DERIVED_NAMES = r".*(attn_mask|attn\.relative_position_index)"
"""Tensors of published files that follow from the size of the windows."""
_FEATURES = 64
"""Width that the unused layers expect, whatever that of the network."""

_FIRST_SWEEP = f"sweeps.{CHAIN_SWEEPS[0]}."
_BIAS_TABLE = f"{_FIRST_SWEEP}groups.0.blocks.0.attn.relative_position_bias_table"


def rename_chain(state: State) -> dict[str, Tensor]:
    """Map published names to ours, and drop tensors that the constructor computes."""
    return rename(rename_spynet(without(state, _DERIVED_NAMES)), _RULES)


def is_chain(state: State) -> bool:
    """Return whether tensors with our names are those of a chain of four transformers.

    Other top-level modules than `CHAIN_MODULES` are allowed.
    """
    if not first_words(state) >= CHAIN_MODULES:
        return False
    for name in CHAIN_SWEEPS:
        if f"sweeps.{name}.patch_norm.weight" not in state:
            return False
    if not has_convolutions(state, "conv_first", "conv_before_upsample", "conv_hr", "upconv1"):
        return False
    return len(shape_of(state, _BIAS_TABLE)) == 2


def table_frames(state: State) -> int:
    """Return how many entries along the time the tables of position biases have; 0 if none fits.

    It is 5 where all three frames have queries, and 3 where only the current frame has.
    """
    entries = shape_of(state, _BIAS_TABLE)[0]
    for frames in (2 * NUM_FRAMES - 1, NUM_FRAMES):
        side = math.isqrt(entries // frames)
        if frames * side**2 == entries and side % 2:
            return frames
    return 0


def infer_chain(state: State) -> dict[str, Any]:
    """Infer the fields that all these configurations have, from our names and shapes."""
    depths: list[int] = []
    num_heads: list[int] = []
    groups = f"{_FIRST_SWEEP}groups."
    for i in range(count_blocks(state, groups)):
        depths.append(count_blocks(state, f"{groups}{i}.blocks."))
        table = state[f"{groups}{i}.blocks.0.attn.relative_position_bias_table"]
        num_heads.append(table.shape[1])

    side = math.isqrt(shape_of(state, _BIAS_TABLE)[0] // table_frames(state))
    return {
        "channels": state["conv_first.bias"].numel(),
        "depths": tuple(depths),
        "num_heads": tuple(num_heads),
        "window": (side + 1) // 2,
        "mid_channels": state["conv_before_upsample.bias"].numel(),
        "hr_channels": state["conv_hr.bias"].numel(),
    }


def infer_mlp_ratio(state: State) -> float:
    """Infer the hidden width of the MLPs divided by the number of channels."""
    hidden, channels = state[f"{_FIRST_SWEEP}groups.0.blocks.0.mlp.fc1.weight"].shape
    return hidden / channels


def check_chain_config(config: Any) -> None:
    """Check the fields that all these configurations have.

    Raises:
        ConfigError: A field has a value that the network cannot have.
    """
    check_attention_groups(config)
    for name in ("mid_channels", "hr_channels"):
        check_min(config, name, 1)
    check_min(config, "window", 2)
    check_positive(config, "mlp_ratio")
    if not 0 <= config.drop_path < 1:
        raise ConfigError(
            f"{type(config).__name__}: drop_path={config.drop_path} must be at least 0 and below 1"
        )


def check_published_width(config: Any) -> None:
    """Refuse the widths at which the published code does use one of `UNUSED_CONVS`.

    Raises:
        ConfigError: `channels` is such a width.
    """
    if config.channels in (3, _FEATURES):
        raise ConfigError(
            f"{type(config).__name__}: channels={config.channels} is not possible: the published "
            "code has another convolution in networks of 3 or 64 channels"
        )


def unused_convs(channels: int, names: Sequence[UnusedConv] = UNUSED_CONVS) -> nn.ModuleDict:
    """Build layers that no data pass through, so that a network has the published parameters.

    Args:
        channels: Number of channels of the network, C.
        names: Layers to build for each sweep.
    """
    widths: dict[UnusedConv, tuple[int, int]] = {
        "conv_first": (3, channels),
        "conv_first_feat": (_FEATURES, channels),
        "conv_before_upsample": (channels, _FEATURES),
    }
    sweeps = nn.ModuleDict()
    for sweep_name in CHAIN_SWEEPS:
        convs = nn.ModuleDict()
        for name in names:
            convs[name] = nn.Conv2d(*widths[name], 3, padding=1)
        sweeps[sweep_name] = convs
    return sweeps
