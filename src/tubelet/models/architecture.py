"""`Architecture` and `Contract`: how a network is recognized, configured, built and run.

state dict of any published code
── Architecture.translate ── our names
── Architecture.infer ────── configuration
── Architecture.build ────── network
── Architecture.contract ─── Contract, by which the engine runs the network
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor, nn

from tubelet.layers.recurrence import EdgeStates
from tubelet.models.state_dict import State
from tubelet.ops.resize import Kernel
from tubelet.types import Precision, Temporal, TemporalKind

__all__ = ["Architecture", "BaseModel", "Contract"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Contract:
    """Everything that the engine must know about a network to run it.

    Attributes:
        scale: Upscaling factor, an integer.
        temporal: Frames that the network takes, and the method that the engine calls.
        halo_px: Distance that an output pixel can see within one call, in pixels of lq. Tiles
            overlap by it.
        size_multiple: Height and width of lq must be multiples of it; the engine pads.
        min_size_px: Minimum height and width of lq; the engine pads.
        tile_multiple: Tiles begin at multiples of it, pixels of lq. A network that divides the
            image into windows needs it, so that a tile has the windows of the image.
        sees_whole_image: Every output pixel depends on the whole image, as with attention between
            channels, and `halo_px` covers only those pixels that matter most. Tiles change the
            result; the engine says so where memory requires them.
        precisions: Numeric formats that change the result by less than 0.02 dB.
        streams: The network is a `StreamingModel`: its `restore` yields frames one by one.
        edge_frames: Number of frames beyond each end of a clip that a streaming network takes; 0 if
            it takes none.
        edge_states: States that it takes with them. With states, windows of a long scene do not
            overlap: each continues from the states of the one before. Without any, the sweeps start
            anew in every window.
        lookahead_frames: Number of frames that such a window also sees after those that it returns:
            backward sweeps start there without states. 0 suits a network without such sweeps.
        frame_multiple: The clips of a network with states have a multiple of this many frames, and
            each state belongs to as many. The engine repeats the last frame of a scene.
        encodes: The network is an `EncodingWindowModel`: `encode` for each frame, `fuse` for each
            window.
        skip: Interpolation of the frame to which an online network adds its detail: the network is
            a `DetailModel`. A "frame" model with a skip is nothing but this interpolation, which
            the engine computes itself, on the CPU. None for all others.
        detail_channels: Channels of the detail: 1 if it is the same for R, G and B, otherwise 3.
        detail_halo_px: Distance that a pixel of the detail can see in the features from which a
            `DetailModel` computes it, in pixels of lq; it is part of `halo_px`.
        warmup_frames: Number of frames that a recurrent network restores, and discards, before the
            first one of a segment that begins inside a scene, where no state is available. A clip
            network also takes as many frames after the end.

    Raises:
        ValueError: A field does not apply to this kind of network.
    """

    scale: int
    temporal: Temporal
    halo_px: int = 0
    size_multiple: int = 1
    min_size_px: int = 1
    tile_multiple: int = 1
    sees_whole_image: bool = False
    precisions: tuple[Precision, ...] = ("fp32",)
    streams: bool = False
    edge_frames: int = 0
    edge_states: EdgeStates = field(default_factory=EdgeStates)
    lookahead_frames: int = 8
    frame_multiple: int = 1
    encodes: bool = False
    skip: Kernel | None = None
    detail_channels: Literal[1, 3] = 3
    detail_halo_px: int = 0
    warmup_frames: int = 16

    @property
    def continues(self) -> bool:
        """Whether a window can continue from the states of the one before."""
        return bool(self.edge_states.before)

    @property
    def has_detail(self) -> bool:
        """Whether the network is a `DetailModel`."""
        return self.skip is not None and self.temporal.kind == "online"

    def __post_init__(self) -> None:
        kind = self.temporal.kind
        if self.streams and kind != "clip":
            raise ValueError(f"streams=True does not fit a {kind!r} model; it is for 'clip' models")
        self._check_edges()
        if self.encodes and kind != "window":
            raise ValueError(
                f"encodes=True does not fit a {kind!r} model; it is for 'window' models"
            )
        if self.skip and kind not in ("online", "frame"):
            raise ValueError(
                f"skip={self.skip!r} does not fit a {kind!r} model; it is for 'online' models, "
                "and for 'frame' models that only interpolate"
            )

    def _check_edges(self) -> None:
        """Check the fields of a network that continues from states; raise ValueError otherwise."""
        temporal = self.temporal
        if self.edge_frames and not self.streams:
            raise ValueError(f"edge_frames={self.edge_frames} is for models with streams=True")
        order = self.edge_states.order
        if self.edge_states.sweeps and self.edge_frames < order * self.frame_multiple:
            raise ValueError(
                f"edge_frames={self.edge_frames} is too few for the order {order} of edge_states; "
                f"each state belongs to frame_multiple={self.frame_multiple} frames"
            )
        if self.edge_frames and temporal.overlap_frames:
            raise ValueError(
                f"overlap_frames={temporal.overlap_frames} does not fit a model with edge_frames, "
                "whose windows do not overlap; give lookahead_frames"
            )
        if self.lookahead_frames < temporal.between_frames:
            raise ValueError(
                f"lookahead_frames={self.lookahead_frames} leaves nothing half-way between two "
                "windows; give at least 1"
            )
        if self.frame_multiple > 1 and not self.edge_frames:
            raise ValueError(f"frame_multiple={self.frame_multiple} is for models with edge_frames")
        for name in ("edge_frames", "warmup_frames"):
            num_frames = getattr(self, name)
            if num_frames % self.frame_multiple:
                raise ValueError(
                    f"{name}={num_frames} must be a multiple of "
                    f"frame_multiple={self.frame_multiple}"
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseModel:
    """Requirements on the frozen network inside a composite one.

    The base has its own weights file and is opened by its model id or path.

    Attributes:
        role: Name of the base in messages, such as "image model".
        kind: Required temporal kind.
        scale: Required upscaling factor; None: any.
        attach: Inserts the base into the composite network, which freezes it; returns the composite
            network.
        contract: Computes the contract of both together from that of the composite network and that
            of the base.
        usual: Model id of the base for files that do not name one; "" if such files cannot run.
        remedy: Instruction for users of the Python interface whose file does not name a base.
    """

    role: str
    kind: TemporalKind
    scale: int | None
    attach: Callable[[Any, nn.Module], nn.Module]
    contract: Callable[[Contract, Contract], Contract]
    usual: str = ""
    remedy: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """One architecture: how to recognize its files, build its network, and run it.

    Attributes:
        name: Class name, as in the paper.
        config: Configuration dataclass, frozen.
        build: Builds the network from a configuration.
        translate: Maps a state dict with the names of any published code to our names; returns None
            if it belongs to another architecture. Tensors may be renamed, split or joined, but
            never invented.
        infer: Infers the configuration from our names and shapes.
        contract: Returns the contract of a configuration, or None for a network that is only part
            of others and does not output images.
        base: Returns the requirements on the frozen base network of a composite one, whose tensors
            are not in its state dict. None for all other networks.
        cleans: The network is a `CleaningModel`, so a training loss can compare the cleaned frames.
        derived: Name suffixes of tensors that the constructor computes (means, indexes, masks). A
            file may lack them.
        not_exportable: Reason why `torch.export` and `torch.compile(fullgraph=True)` refuse the
            network; "" if they accept it.
        source: URL of the paper.
    """

    name: str
    config: type[Any]
    build: Callable[[Any], nn.Module]
    translate: Callable[[State], dict[str, Tensor] | None]
    infer: Callable[[State], Any]
    contract: Callable[[Any], Contract | None]
    base: Callable[[Any], BaseModel] | None = None
    cleans: bool = False
    derived: tuple[str, ...] = field(default=())
    not_exportable: str = ""
    source: str = ""
