"""Adapters of one block of a frozen image network, and where they attach; see `pfvsr.py`.

    block of                      places
    SwinIR                        every Swin block
    HAT                           every hybrid attention block; with `overlap` the OCABs
    DAT                           every block; the temporal branch in those with spatial attention
    RRDBNet, EDSR, MSRResNet      every residual block of the body
    SRVGGNetCompact               every activation of the body
    any other residual network    the modules whose names match a pattern

The networks of images know nothing of this: `find_places` finds the modules from outside.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal, Protocol, cast

import torch
from torch import Tensor, nn

from tubelet.errors import ConfigError
from tubelet.layers.adapters import Adapter, ConvAdapter, NeighborAdapter
from tubelet.layers.attention import ProjectedAttention, TokenLayer, TokenMap
from tubelet.layers.temporal_mixing import Clip, TemporalStrategy
from tubelet.models.dat import DAT, DATB
from tubelet.models.dat_attention import AdaptiveChannelAttention
from tubelet.models.edsr import EDSR
from tubelet.models.hat import HAB, HAT, OCAB
from tubelet.models.msrresnet import MSRResNet
from tubelet.models.rrdb import RRDBNet
from tubelet.models.srvgg import SRVGGNetCompact
from tubelet.models.swinir import SwinBlock, SwinIR

__all__ = [
    "AdaptableBlock",
    "BlockAdapters",
    "BlockSettings",
    "ConvBlockAdapters",
    "Kind",
    "Order",
    "OverlapAdapter",
    "Places",
    "Position",
    "attends_between_channels",
    "find_places",
]

Kind = Literal["attention", "convolution"]
Order = Literal["T-first", "S-first"]
Position = Literal["after", "before"]

_PROBE_PX = 16
"""Side of the image on which the outputs of modules are looked at."""
_MLP_SCALE = 0.5
"""Factor of the adapter beside the MLP (AIM, Eq. 5)."""

_BLOCK_PATTERNS: dict[type[nn.Module], str] = {
    RRDBNet: "body.*",
    EDSR: "body.*",
    MSRResNet: "body.*",
    # The activations have odd indexes; the last convolution makes the image.
    SRVGGNetCompact: "body.*[13579]",
}
"""Names of the modules of convolutional networks whose outputs are adapted."""


class AdaptableBlock(Protocol):
    """A transformer block whose two sums can be computed one by one."""

    norm1: nn.Module

    def add_attention(
        self,
        x: Tensor,
        attention: TokenLayer,
    ) -> Tensor:
        """Compute x + attention(LN x), (B, H, W, C), with another attention than the block's."""
        ...

    def add_mlp(
        self,
        x: Tensor,
        beside: TokenMap | None = None,
    ) -> Tensor:
        """Compute x + mlp(LN x) + beside(LN x), (B, H, W, C)."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockSettings:
    """Which adapters a transformer block gets, and how they are connected.

    Attributes:
        channels: Width of the features, C.
        spatial_width: Width of the spatial adapter; 0: none.
        temporal_width: Width of the temporal adapter; 0: no temporal branch.
        mlp_width: Width of the adapter beside the MLP; 0: none.
        order: Which branch comes first.
        position: Adapters after the attention, or before it.
        has_gate: A factor that starts at zero multiplies the temporal branch ("before").
    """

    channels: int
    spatial_width: int
    temporal_width: int
    mlp_width: int
    order: Order
    position: Position
    has_gate: bool


class BlockAdapters(nn.Module):
    """Runs a frozen transformer block with adapters (PFVSR, Fig. 2).

        T    x + temporal(T-MSA(LN x))
        S    a = S-MSA(LN x);  x + a + spatial(a)
        M    x + MLP(LN x) + 0.5 · mlp(LN x)

    position "before":  T  n = LN x;  x + γ · T-MSA(n + temporal(n))
                        S  n = LN x;  x + S-MSA(n + spatial(n))

    Args:
        settings: Which adapters there are, and how they are connected.
    """

    def __init__(self, settings: BlockSettings) -> None:
        super().__init__()
        c = settings.channels
        self.settings = settings
        self.spatial = _build(c, settings.spatial_width)
        self.temporal = _build(c, settings.temporal_width)
        self.mlp = _build(c, settings.mlp_width)
        # Before the attention, an adapter of zero would still let the attention through.
        has_gate = settings.has_gate and self.temporal is not None
        self.gate = nn.Parameter(torch.zeros(())) if has_gate else None

    def forward(
        self,
        x: Tensor,
        block: AdaptableBlock,
        strategy: TemporalStrategy | None,
        clip: Clip,
    ) -> Tensor:
        """Run a block.

        Args:
            x: Features of all frames of a clip, (B·T, H, W, C).
            block: Frozen block.
            strategy: How tokens see other frames; None: they do not.
            clip: The clip.

        Returns:
            (B·T, H, W, C).
        """
        if self.settings.order == "T-first":
            x = self._add_time(x, block, strategy, clip)
            x = self._add_space(x, block)
        else:
            x = self._add_space(x, block)
            x = self._add_time(x, block, strategy, clip)
        return block.add_mlp(x, None if self.mlp is None else self._beside_mlp)

    def _add_time(
        self,
        x: Tensor,
        block: AdaptableBlock,
        strategy: TemporalStrategy | None,
        clip: Clip,
    ) -> Tensor:
        """Add the temporal branch, if there is one."""
        if strategy is None or self.temporal is None:
            return x
        attention = cast(ProjectedAttention, block_attention(block))
        # The same normalization and projections as in space (Sec. 3.2).
        tokens = block.norm1(x).flatten(1, 2)  # (B·T, N, C)
        if self.settings.position == "before":
            tokens = tokens + self.temporal(tokens)
        mixed = strategy.mix(tokens, attention, clip)
        # The adapter that starts at zero is last, or the gate is.
        if self.settings.position == "after":
            mixed = self.temporal(mixed)
        if self.gate is not None:
            mixed = self.gate * mixed
        return x + mixed.view(x.shape)

    def _add_space(
        self,
        x: Tensor,
        block: AdaptableBlock,
    ) -> Tensor:
        """Add the spatial branch: the block's own attention, adapted."""
        attention = cast(TokenLayer, block_attention(block))
        adapter = self.spatial
        # Without an adapter, the block is as published.
        if adapter is None:
            return block.add_attention(x, attention)
        if self.settings.position == "before":
            return block.add_attention(
                x, lambda tokens, size: attention(tokens + adapter(tokens), size)
            )

        def adapted(
            tokens: Tensor,
            size: tuple[int, ...],
        ) -> Tensor:
            attended = attention(tokens, size)
            return attended + adapter(attended)

        return block.add_attention(x, cast(TokenLayer, adapted))

    def _beside_mlp(self, tokens: Tensor) -> Tensor:
        assert self.mlp is not None
        return _MLP_SCALE * self.mlp(tokens)


def block_attention(block: AdaptableBlock) -> object:
    """Return the attention layer of a block."""
    return cast(nn.Module, block).get_submodule("attn")


def attends_between_channels(block: nn.Module) -> bool:
    """Return whether a block is one of DAT with attention between channels."""
    return isinstance(block, DATB) and isinstance(block.attn, AdaptiveChannelAttention)


class OverlapAdapter(nn.Module):
    """Spatial adapter of an overlapping cross-attention block of HAT, after its last projection.

    Args:
        channels: Width of the features, C.
        width: Width of the adapter.
    """

    def __init__(
        self,
        channels: int,
        width: int,
    ) -> None:
        super().__init__()
        self.spatial = Adapter(channels, width)

    def forward(
        self,
        tokens: Tensor,
        project: TokenMap,
    ) -> Tensor:
        """Map what the attention found, (n, N, C), through the frozen projection and the adapter.

        Args:
            tokens: Input of the projection.
            project: The projection.
        """
        attended = project(tokens)
        return attended + self.spatial(attended)


class ConvBlockAdapters(nn.Module):
    """Adapters of the features after a block of a convolutional network (PFVSR, A.7).

    Args:
        channels: Width of the features, C.
        spatial_width: Width of the spatial adapter; 0: none.
        temporal_width: Width of the adapter over three frames; 0: none.
    """

    def __init__(
        self,
        channels: int,
        spatial_width: int,
        temporal_width: int,
    ) -> None:
        super().__init__()
        self.temporal = NeighborAdapter(channels, temporal_width) if temporal_width else None
        self.spatial = ConvAdapter(channels, spatial_width) if spatial_width else None

    def forward(
        self,
        x: Tensor,
        block: Callable[[Tensor], Tensor],
        clip: Clip,
    ) -> Tensor:
        """Run a block and adapt its result.

        Args:
            x: Features of all frames of a clip, (B·T, C, H, W).
            block: Frozen block.
            clip: The clip, with flows.

        Returns:
            (B·T, C, H, W).
        """
        features = block(x)
        # First the other frames, then the frame itself, as in transformers.
        if self.temporal is not None:
            backward, forward = clip.flows_for(features)
            frames = features.view(-1, clip.num_frames, *features.shape[1:])
            features = self.temporal(frames, backward, forward).flatten(0, 1)
        if self.spatial is not None:
            features = self.spatial(features)
        return features


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Where adapters attach to a network.

    Attributes:
        modules: Blocks, in the order in which they run.
        channels: Width of their features, C.
        temporal_stride: Blocks whose number is a multiple of it have a temporal branch.
        overlaps: Overlapping cross-attention blocks.
        size_multiple: The network extends its images to multiples of it, pixels.
        kind: Kind of the adapters.
    """

    modules: tuple[nn.Module, ...]
    channels: int
    temporal_stride: int = 1
    overlaps: tuple[nn.Module, ...] = ()
    size_multiple: int = 1
    kind: Kind = "attention"


def find_places(
    backbone: nn.Module,
    pattern: str = "",
) -> Places:
    """Find the blocks of a network that adapters can attach to.

    Args:
        backbone: The network.
        pattern: Names of the modules of a convolutional network, as the shell has them for files:
            between two dots, * is any text, and [13] is 1 or 3. "": those that suit the network.

    Raises:
        ConfigError: No module matches, or adapters do not fit those that do.
    """
    places = _transformer_places(backbone)
    # A network without attention is adapted by convolutions.
    if places is None:
        places = _conv_places(backbone, pattern)
        if pattern:
            _check_widths(backbone, places)
    return places


def _transformer_places(backbone: nn.Module) -> Places | None:
    """Find the blocks of a transformer that adapters can attach to; None for other networks.

    Raises:
        ConfigError: The groups of a DAT have odd numbers of blocks.
    """
    if isinstance(backbone, DAT):
        depths = backbone.config.depths
        if any(depth % 2 for depth in depths):
            # Otherwise the numbers of the blocks do not tell which attend between channels.
            raise ConfigError(f"adapters need a DAT with even depths, not {depths}")
        return Places(
            modules=tuple(m for m in backbone.modules() if isinstance(m, DATB)),
            channels=backbone.config.channels,
            # Every second block attends between channels, where other frames have no place.
            temporal_stride=2,
        )
    if not isinstance(backbone, SwinIR | HAT):
        return None
    return Places(
        modules=tuple(m for m in backbone.modules() if isinstance(m, SwinBlock | HAB)),
        channels=backbone.config.channels,
        overlaps=tuple(m for m in backbone.modules() if isinstance(m, OCAB)),
        size_multiple=backbone.config.window,
    )


def _conv_places(
    backbone: nn.Module,
    pattern: str,
) -> Places:
    """Find the modules of a convolutional network whose outputs are adapted; see `find_places`.

    Raises:
        ConfigError: There is no pattern for this network, no module matches, or they have no common
            width.
    """
    name = type(backbone).__name__
    expression = pattern or _BLOCK_PATTERNS.get(type(backbone), "")
    if not expression:
        known = ", ".join(kind.__name__ for kind in (SwinIR, HAT, DAT, *_BLOCK_PATTERNS))
        raise ConfigError(
            f"{name} has no blocks that adapters are known to fit; use one of {known}, or name the "
            "modules after which adapters are put, as in --network.pattern 'body.*'"
        )
    named: dict[str, nn.Module] = dict(cast(Any, backbone).named_modules())
    modules = [module for path, module in named.items() if _matches(path, expression)]
    if not modules:
        raise ConfigError(f"no module of {name} has a name that matches {expression!r}")
    # The networks of the zoo have features of one width.
    channels = getattr(getattr(backbone, "config", None), "channels", None)
    if not isinstance(channels, int):
        raise ConfigError(f"the configuration of {name} does not tell the width of its features")
    return Places(modules=tuple(modules), channels=channels, kind="convolution")


def _matches(
    path: str,
    pattern: str,
) -> bool:
    """Return whether every part of a module's name between dots matches that of a pattern."""
    # Part by part, so that * never reaches into a child.
    parts = path.split(".")
    patterns = pattern.split(".")
    return len(parts) == len(patterns) and all(map(fnmatchcase, parts, patterns))


def _check_widths(
    backbone: nn.Module,
    places: Places,
) -> None:
    """Check that the outputs of modules are features that adapters fit, by a run on a small image.

    Raises:
        ConfigError: One is not (B, C, H, W) with the width of the network.
    """
    names = {module: name for name, module in cast(Any, backbone).named_modules()}
    faults: list[str] = []

    def check(
        module: nn.Module,
        _inputs: object,
        output: object,
    ) -> None:
        shape = tuple(output.shape) if isinstance(output, Tensor) else ()
        if len(shape) != 4 or shape[1] != places.channels:
            faults.append(f"{names[module]} outputs {shape}")

    # Hooks see the outputs as the network uses them.
    handles = [module.register_forward_hook(check) for module in places.modules]
    try:
        with torch.no_grad():
            backbone(torch.rand(1, 1, 3, _PROBE_PX, _PROBE_PX))
    finally:
        for handle in handles:
            handle.remove()
    if faults:
        raise ConfigError(
            f"adapters need the outputs (B, {places.channels}, H, W) of residual blocks, but "
            f"{faults[0]}; name other modules with --network.pattern"
        )


def _build(
    channels: int,
    width: int,
) -> Adapter | None:
    return Adapter(channels, width) if width else None
