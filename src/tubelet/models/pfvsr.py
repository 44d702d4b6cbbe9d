"""PFVSR: a frozen image network becomes a video network by adapters in its blocks.

    lq (B, T, 3, H, W) ─ all frames as one batch ─ image network, frozen ─ sr (B, T, 3, sH, sW)
                                                     │
    transformer block   x = x + temporal(T-MSA(LN x))         T-MSA: the block's own attention along
                        a = S-MSA(LN x)                       time; temporal, spatial: adapters
                        x = x + a + spatial(a)
                        x = x + MLP(LN x)
    residual block      f = f + up(ReLU(down [warp(f_{t−1}), f_t, warp(f_{t+1})]))
                        f = f + up(ReLU(down f))

Every adapter starts at zero: an untrained PFVSR gives the results of the image network, to the bit.
A checkpoint has the adapters (and a trained SpyNet) alone, and refers to the image network.

    paper    backbone   spatial    temporal
    B1       SwinIR     none       none
    B2       SwinIR     adapter    none
    B3       SwinIR     adapter    t-msa
    B4       SwinIR     adapter    trajectory
    B5       HAT        adapter    trajectory

Source: PFVSR, Sec. 3 and Tables 3 to 5; adapters as in Yang et al. (AIM), ICLR 2023.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from tubelet.errors import ConfigError
from tubelet.layers.forward import replaced_forward
from tubelet.layers.frozen import FrozenModel, apply_to_frozen
from tubelet.layers.spynet import SpyNet, load_spynet
from tubelet.layers.temporal_mixing import (
    ChannelTimeAttention,
    Clip,
    TemporalStrategy,
    TimeAttention,
    TrajectoryAttention,
)
from tubelet.layers.trajectories import GatherMode
from tubelet.models.architecture import Architecture, BaseModel, Contract
from tubelet.models.config_checks import check_choice, check_min
from tubelet.models.pfvsr_blocks import (
    AdaptableBlock,
    BlockAdapters,
    BlockSettings,
    ConvBlockAdapters,
    Kind,
    Order,
    OverlapAdapter,
    Places,
    Position,
    attends_between_channels,
    find_places,
)
from tubelet.models.state_dict import State, count_names, shape_of
from tubelet.ops.sizes import round_up
from tubelet.types import Temporal

__all__ = ["ARCHITECTURE", "PFVSR", "PFVSRConfig", "adapt", "adapters_for", "needed_backbone"]

SpatialAdapters = Literal["adapter", "none"]
TemporalMixing = Literal["t-msa", "trajectory", "neighbors", "none"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PFVSRConfig:
    """Configuration of the adapters of a `PFVSR`.

    The image network determines the first five fields; `adapt` fills them in.
    """

    scale: int = 4
    """Upscaling factor of the image network."""
    kind: Kind = "attention"
    """Adapters for the attention of transformers, or for the features of convolutional networks."""
    channels: int = 180
    """Width C of the features of the image network."""
    num_blocks: int = 36
    """Number of its blocks."""
    temporal_stride: int = 1
    """Blocks whose number is a multiple of it have a temporal branch: 2 for DAT, where every second
    block attends between channels."""
    channel_temporal: Literal["none", "token", "channel"] = "none"
    """Temporal branch in the blocks of DAT that attend between channels: none; token, as in its
    other blocks; channel, with the attention between channels along time."""
    num_overlaps: int = 0
    """Number of overlapping cross-attention blocks with an adapter, for HAT (`overlap`)."""
    spatial: SpatialAdapters = "adapter"
    """Adapter after the spatial attention."""
    temporal: TemporalMixing = "t-msa"
    """What a token sees of other frames. For transformers: t-msa, the token at the same position;
    trajectory, the most similar token along the optical flow. For convolutional networks:
    neighbors, the warped features of the next frames. Or none."""
    spatial_width: int = 0
    """Width of the spatial adapters; 0: half of `channels`."""
    temporal_width: int = 0
    """Width of the temporal adapters; 0: half of `channels`."""
    order: Order = "T-first"
    """Which of the two branches comes first (Table 5)."""
    position: Position = "after"
    """Adapters after the attention or before it (Table 4)."""
    gate: Literal["zero", "none"] = "zero"
    """With `position` before: a factor that starts at zero, without which an untrained network is
    not the image network."""
    mlp: Literal["none", "adapter"] = "none"
    """Adapter beside the MLP, of the width of the spatial ones (AIM)."""
    token_px: int = 4
    """Side of the tokens of trajectories, pixels."""
    frame_stride: int = 0
    """Trajectories look at frames whose number is a multiple of it; 0: at all frames of a clip of
    up to 7 frames, at every third of a longer one."""
    gather: GatherMode = "bilinear"
    """How trajectories read between tokens; nearest, as in TTVSR, does not train the flow."""
    flow: Literal["trained", "frozen"] = "trained"
    """Train SpyNet and store it with the adapters, or use the one of this package."""
    pattern: str = ""
    """Names of the modules of a convolutional network after which adapters are put, with * for any
    text between two dots, such as body.*; "": its residual blocks."""
    num_frames: int = 7
    """Frames of a clip in training, and of a window in use."""

    def __post_init__(self) -> None:
        check_min(self, "scale", 1)
        check_choice(self, "kind", ("attention", "convolution"))
        check_min(self, "channels", 1)
        check_min(self, "num_blocks", 1)
        check_choice(self, "temporal_stride", (1, 2))
        check_choice(self, "channel_temporal", ("none", "token", "channel"))
        check_min(self, "num_overlaps", 0)
        check_choice(self, "spatial", ("adapter", "none"))
        check_choice(self, "temporal", ("t-msa", "trajectory", "neighbors", "none"))
        check_min(self, "spatial_width", 0)
        check_min(self, "temporal_width", 0)
        check_choice(self, "order", ("T-first", "S-first"))
        check_choice(self, "position", ("after", "before"))
        check_choice(self, "gate", ("zero", "none"))
        check_choice(self, "mlp", ("none", "adapter"))
        check_min(self, "token_px", 1)
        check_min(self, "frame_stride", 0)
        check_choice(self, "gather", ("nearest", "bilinear"))
        check_choice(self, "flow", ("trained", "frozen"))
        check_min(self, "num_frames", 1)
        if self.spatial == self.temporal == self.mlp == "none":
            raise ConfigError("PFVSRConfig: spatial, temporal and mlp are none: nothing to train")

    @property
    def trains_flow(self) -> bool:
        """Whether SpyNet is trained, and stored with the adapters."""
        if self.flow == "frozen":
            return False
        # Where trajectories read whole tokens, no gradient would reach it.
        is_read_between = self.temporal == "trajectory" and self.gather == "bilinear"
        return is_read_between or self.temporal == "neighbors"

    @property
    def used_spatial_width(self) -> int:
        """Width of the spatial adapters; 0 without them."""
        return 0 if self.spatial == "none" else self.inner_width

    @property
    def inner_width(self) -> int:
        """Width of spatial adapters, and of those of the MLP and of overlapping attention."""
        return self.spatial_width or self.channels // 2

    @property
    def used_temporal_width(self) -> int:
        """Width of the temporal adapters; 0 without them."""
        if self.temporal == "none":
            return 0
        return self.temporal_width or self.channels // 2


class PFVSR(nn.Module):
    """Adapters around a frozen image network; see the drawing at the top of this file.

    Args:
        config: Configuration of the adapters.
        strategy: Temporal strategy of one's own for transformers, in place of that of the
            configuration, which must not be "none". It has no parameters: a file of adapters has
            no place for them.

    Raises:
        ConfigError: Such a strategy does not fit the configuration.

    Attributes:
        blocks: Adapters of each block.
        overlaps: Adapters of the overlapping cross-attention blocks of HAT.
        strategy: Temporal strategy; None for convolutional networks, and without other frames.
        channel_attention: Temporal strategy of the blocks of DAT that attend between channels,
            where it is not the same.
        spynet: SpyNet that is trained with the adapters; None if there is none.
    """

    def __init__(
        self,
        config: PFVSRConfig,
        strategy: TemporalStrategy | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.blocks = nn.ModuleList(_build_adapters(config))
        self.overlaps = nn.ModuleList()
        for _ in range(config.num_overlaps):
            self.overlaps.append(OverlapAdapter(config.channels, config.inner_width))
        self.strategy = _build_strategy(config) if strategy is None else strategy
        _check_strategy(config, self.strategy)
        self.channel_attention: ChannelTimeAttention | None = None
        if config.channel_temporal == "channel":
            self.channel_attention = ChannelTimeAttention()
        # Only what is trained is a part of the module tree, and of the file.
        self.spynet = SpyNet() if config.trains_flow else None
        self._frozen_spynet: FrozenModel | None = None
        self._frozen_backbone: FrozenModel | None = None
        self._places: Places | None = None

    @property
    def backbone(self) -> nn.Module | None:
        """The image network, or None if none is attached."""
        if self._frozen_backbone is None:
            return None
        return self._frozen_backbone.network

    def with_backbone(self, backbone: nn.Module) -> PFVSR:
        """Attach an image network and freeze it.

        A SpyNet that is not trained gets the weights of this package.

        Args:
            backbone: Image network that fits the configuration.

        Returns:
            This network.

        Raises:
            ConfigError: It does not fit.
        """
        # Shapes first: the hash of the weights is compared where files are opened.
        config = self.config
        places = find_places(backbone, config.pattern)
        expected = (config.kind, config.channels, config.num_blocks, config.num_overlaps)
        found = (
            places.kind,
            places.channels,
            len(places.modules),
            len(places.overlaps) if config.num_overlaps else 0,
        )
        if found != expected:
            raise ConfigError(
                f"these adapters are for {_describe(expected)}; {type(backbone).__name__} has "
                f"{_describe(found)}"
            )
        _check_temporal(backbone, places.kind, config.temporal)
        if self._uses_flow and self.spynet is None:
            spynet = SpyNet()
            load_spynet(spynet)
            self._frozen_spynet = FrozenModel(spynet)
        # The search through the names of all modules is too slow for every call.
        self._frozen_backbone = FrozenModel(backbone)
        self._places = places
        return self

    def _apply(
        self,
        fn: Callable[[Tensor], Tensor],
        recurse: bool = True,
    ) -> PFVSR:
        """Apply `to`, `cuda`, `half` and the like to the frozen networks, too."""
        super()._apply(fn, recurse)
        apply_to_frozen(self, fn, recurse)
        return self

    def forward(self, lq: Tensor) -> Tensor:
        """Restore a clip.

        Args:
            lq: Low-quality clip, (B, T, 3, H, W), in [0, 1].

        Returns:
            (B, T, 3, sH, sW); values can exceed [0, 1].

        Raises:
            ConfigError: No image network is attached.
        """
        backbone = self.backbone
        places = self._places
        if backbone is None or places is None:
            raise ConfigError(
                "these adapters have no image network; "
                "give them one: model.with_backbone(tubelet.create_model(ID))"
            )
        batch, num_frames = lq.shape[:2]
        clip = self._clip(lq, places.size_multiple)
        # All frames as one batch: the image network never sees two of them together.
        frames = lq.flatten(0, 1)[:, None]  # (B·T, 1, 3, H, W)
        with replaced_forward(self._adapted_blocks(places, clip)):
            sr = backbone(frames)
        return sr.view(batch, num_frames, *sr.shape[2:])

    def _clip(
        self,
        lq: Tensor,
        size_multiple: int,
    ) -> Clip:
        """Describe a clip (B, T, 3, H, W) to the blocks, with the flows that they need."""
        num_frames = lq.shape[1]
        height, width = (round_up(length, size_multiple) for length in lq.shape[-2:])
        # A frame by itself has no neighbors to find.
        if not self._uses_flow or num_frames == 1:
            return Clip(num_frames, height, width)
        # The trained flow of the file, or that of the package.
        spynet = self.spynet
        if spynet is None:
            assert self._frozen_spynet is not None
            spynet = cast(SpyNet, self._frozen_spynet.network)
        backward: list[Tensor] = []
        forward: list[Tensor] = []
        for t in range(1, num_frames):
            # One pair after the other: SpyNet takes more memory than the flow.
            backward.append(spynet(lq[:, t], lq[:, t - 1]))
            forward.append(spynet(lq[:, t - 1], lq[:, t]))
        clip = Clip(
            num_frames,
            height,
            width,
            flows_backward=torch.stack(backward, 1),
            flows_forward=torch.stack(forward, 1),
        )
        if isinstance(self.strategy, TrajectoryAttention):
            # Here, and not in the first block: activation checkpointing runs blocks twice.
            self.strategy.locate(clip)
        return clip

    @property
    def _uses_flow(self) -> bool:
        """Whether other frames are found along the optical flow."""
        if self.strategy is not None:
            return self.strategy.uses_flow
        return self.config.temporal == "neighbors"

    def _adapted_blocks(
        self,
        places: Places,
        clip: Clip,
    ) -> dict[nn.Module, Callable[..., Tensor]]:
        """Return the forward pass of every block of the image network with its adapters."""
        adapted: dict[nn.Module, Callable[..., Tensor]] = {}
        for adapters, block in zip(self.blocks, places.modules, strict=True):
            if isinstance(adapters, BlockAdapters):
                # These call the parts of the block, one after the other.
                strategy = self.strategy
                if self.channel_attention is not None and attends_between_channels(block):
                    strategy = self.channel_attention
                adapted[block] = partial(
                    adapters,
                    block=cast(AdaptableBlock, block),
                    strategy=strategy,
                    clip=clip,
                )
            else:
                # These call the whole block, by the method that is in effect now.
                adapted[block] = partial(adapters, block=block.forward, clip=clip)
        for adapter, block in zip(self.overlaps, places.overlaps, strict=False):
            project = block.get_submodule("proj")
            adapted[project] = partial(adapter, project=project.forward)
        return adapted


def adapt(
    backbone: nn.Module,
    config: PFVSRConfig | None = None,
    **changes: Any,
) -> PFVSR:
    """Put untrained adapters around an image network, which is frozen.

    Args:
        backbone: Image network.
        config: Settings of the adapters; the fields that the image network determines are set.
        changes: Fields to override.

    Returns:
        A network whose results are those of the image network until it is trained.

    Raises:
        ConfigError: Adapters do not fit this network, or the settings do not fit it.
    """
    settings = adapters_for(backbone, config, **changes)
    return PFVSR(settings).with_backbone(backbone)


def adapters_for(
    backbone: nn.Module, config: PFVSRConfig | None = None, **changes: Any
) -> PFVSRConfig:
    """Set the fields of a configuration that an image network determines; see `adapt`."""
    config = config or PFVSRConfig()
    places = find_places(backbone, changes.get("pattern", config.pattern))
    mixing: TemporalMixing = changes.get("temporal", config.temporal)
    if places.kind == "convolution" and mixing == "t-msa":
        # The default of transformers.
        mixing = "neighbors"
    _check_temporal(backbone, places.kind, mixing)
    leaves_channels = changes.get("channel_temporal", config.channel_temporal) == "none"
    # Any number but 0 asks for all of them.
    has_overlaps = changes.get("num_overlaps", config.num_overlaps) > 0
    found = {
        "scale": getattr(getattr(backbone, "config", None), "scale", config.scale),
        "kind": places.kind,
        "temporal": mixing,
        "channels": places.channels,
        "num_blocks": len(places.modules),
        "temporal_stride": places.temporal_stride if leaves_channels else 1,
        "num_overlaps": len(places.overlaps) if has_overlaps else 0,
    }
    return dataclasses.replace(config, **(changes | found))


def _check_temporal(
    backbone: nn.Module,
    kind: Kind,
    mixing: TemporalMixing,
) -> None:
    """Check that a network can see other frames in this way.

    Raises:
        ConfigError: It cannot.
    """
    choices = ("t-msa", "trajectory", "none") if kind == "attention" else ("neighbors", "none")
    if mixing not in choices:
        raise ConfigError(
            f"temporal={mixing!r} does not fit {type(backbone).__name__}; use one of "
            f"{', '.join(choices)}"
        )


def _check_strategy(
    config: PFVSRConfig,
    strategy: TemporalStrategy | None,
) -> None:
    """Check that a strategy has adapters, and no parameters that would not be saved.

    Raises:
        ConfigError: It does not.
    """
    if strategy is None:
        return
    if config.kind != "attention" or config.temporal == "none":
        raise ConfigError(
            f"a temporal strategy does not fit kind={config.kind!r} with "
            f"temporal={config.temporal!r}: there are no adapters for it"
        )
    if isinstance(strategy, nn.Module) and any(True for _ in strategy.parameters()):
        raise ConfigError(
            f"{type(strategy).__name__} has parameters, for which a file of adapters has no place"
        )


def _describe(structure: tuple[str, int, int, int]) -> str:
    kind, channels, num_blocks, num_overlaps = structure
    text = f"{num_blocks} {kind} blocks of {channels} channels"
    if num_overlaps:
        text += f" and {num_overlaps} overlapping attentions"
    return text


def _build_adapters(config: PFVSRConfig) -> list[nn.Module]:
    """Build the adapters of every block."""
    adapters: list[nn.Module] = []
    for number in range(config.num_blocks):
        is_temporal = number % config.temporal_stride == 0
        temporal_width = config.used_temporal_width if is_temporal else 0
        if config.kind == "convolution":
            spatial_width = config.used_spatial_width
            adapters.append(ConvBlockAdapters(config.channels, spatial_width, temporal_width))
            continue
        settings = BlockSettings(
            channels=config.channels,
            spatial_width=config.used_spatial_width,
            temporal_width=temporal_width,
            mlp_width=config.inner_width if config.mlp == "adapter" else 0,
            order=config.order,
            position=config.position,
            has_gate=config.position == "before" and config.gate == "zero",
        )
        adapters.append(BlockAdapters(settings))
    return adapters


def _build_strategy(config: PFVSRConfig) -> TemporalStrategy | None:
    match config.temporal:
        case "t-msa":
            return TimeAttention()
        case "trajectory":
            return TrajectoryAttention(
                token_px=config.token_px,
                frame_stride=config.frame_stride,
                gather=config.gather,
            )
        case _:
            return None


_NAME = r"(blocks|overlaps)\.\d+\.((spatial|temporal|mlp)\.(down|up)\.(weight|bias)|gate)"


def _translate(state: State) -> dict[str, Tensor] | None:
    """Take our names, the only ones; None for the tensors of another network."""
    # No other network has names like these alone.
    num_adapters = count_names(state, _NAME)
    num_flow = count_names(state, r"spynet\..*")
    if not num_adapters or num_adapters + num_flow != len(state):
        return None
    return dict(state)


def _infer(state: State) -> PFVSRConfig:
    """Infer what shapes tell; the header of the file has the rest."""
    spatial = shape_of(state, "blocks.0.spatial.down.weight")
    temporal = shape_of(state, "blocks.0.temporal.down.weight")
    mlp = shape_of(state, "blocks.0.mlp.down.weight")
    # The first block has all kinds of adapters that there are.
    shapes = {"spatial": spatial, "temporal": temporal, "mlp": mlp}
    present = [name for name, shape in shapes.items() if shape]
    part = present[0]
    (channels,) = shape_of(state, f"blocks.0.{part}.up.bias")
    num_blocks = count_names(state, rf"blocks\.\d+\.{part}\.up\.bias")
    num_temporal = count_names(state, r"blocks\.\d+\.temporal\.up\.bias")
    # The weight of a convolution has four dimensions, that of a linear layer two.
    is_convolution = len(spatial or temporal or mlp) == 4
    has_flow = any(name.startswith("spynet.") for name in state)
    mixing: TemporalMixing = "none"
    if temporal and is_convolution:
        mixing = "neighbors"
    elif temporal:
        mixing = "trajectory" if has_flow else "t-msa"
    return PFVSRConfig(
        kind="convolution" if is_convolution else "attention",
        channels=channels,
        num_blocks=num_blocks,
        temporal_stride=2 if 0 < num_temporal < num_blocks else 1,
        num_overlaps=count_names(state, r"overlaps\.\d+\.spatial\.up\.bias"),
        spatial="adapter" if spatial else "none",
        temporal=mixing,
        spatial_width=spatial[0] if spatial else 0,
        temporal_width=temporal[0] if temporal else 0,
        position="before" if "blocks.0.gate" in state else "after",
        mlp="adapter" if mlp else "none",
        flow="trained" if has_flow else "frozen",
    )


def _contract(config: PFVSRConfig) -> Contract:
    # Windows overlap only where frames see each other.
    overlap_frames = 0
    if config.temporal != "none":
        overlap_frames = min(2, config.num_frames - 1)
    return Contract(
        scale=config.scale,
        temporal=Temporal(
            "clip",
            window_frames=config.num_frames,
            overlap_frames=overlap_frames,
        ),
    )


def _combine_contracts(
    own: Contract,
    image: Contract,
) -> Contract:
    """Combine the windows of the adapters with what the image network needs in space."""
    return dataclasses.replace(image, temporal=own.temporal, precisions=own.precisions)


def needed_backbone(config: PFVSRConfig) -> BaseModel:
    """Describe the image network that adapters need."""
    return BaseModel(
        role="image model",
        kind="frame",
        scale=config.scale,
        attach=PFVSR.with_backbone,
        contract=_combine_contracts,
        remedy="load_model(path).with_backbone(create_model(ID))",
    )


ARCHITECTURE = Architecture(
    name=PFVSR.__name__,
    config=PFVSRConfig,
    build=PFVSR,
    translate=_translate,
    infer=_infer,
    contract=_contract,
    base=needed_backbone,
    derived=("spynet.mean", "spynet.std"),
    source="PFVSR",
)
