"""Settings of training on long clips."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

from tubelet.degrade import Preset
from tubelet.errors import ConfigError, require, suggest
from tubelet.ops.sizes import round_up
from tubelet.recipes.lrti_presets import (
    FlowTraining,
    LongClipPreset,
    Strategy,
    find_preset,
    preset_of,
)
from tubelet.recipes.published import find_recipe
from tubelet.recipes.supervised import config_class
from tubelet.training import LoopSettings
from tubelet.training.long_clips import Starts
from tubelet.training.truncated import LongPass
from tubelet.zoo.architectures import ARCHITECTURES

__all__ = ["LRTITraining", "configure", "recurrent_names"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LRTITraining:
    """Train a recurrent network on long clips, by default by truncated back-propagation."""

    model: str
    """Name of a recurrent network: of a recipe or of an architecture."""
    network: Any
    """Configuration of the network."""
    preset: str = ""
    """Name of the preset that the other settings are from, for the record."""
    data: tuple[Path, ...] = ()
    """Folders of videos, of images, or of folders of frames; clips with too few frames are not
    used."""
    out: Path = Path("runs/lrti")
    """Folder of the checkpoint, the log and the finished model.safetensors."""
    cache: Path = Path("cache")
    """Folder of the decoded clips; reused by later runs."""
    evaluate: Path | None = None
    """Folder of folders of frames that are not trained on; scored at every checkpoint."""
    evaluate_frames: int = 40
    """Frames of each of these clips that are scored."""
    degradation: Preset = "bi-u8"
    """Degradation of the low-quality frames: bi, bi-u8 and bd as in benchmarks, real and
    second-order for real-world video."""
    variants: int = 3
    """Degraded versions of each clip, for the random degradations real and second-order."""
    init: Path | None = None
    """Start from the weights of this checkpoint; tensors of another shape start from random
    weights."""
    spynet: str = "own"
    """Initial optical-flow weights, unless `init` has some: own (trained by this project),
    random, or the path of a SpyNet checkpoint."""
    strategy: Strategy = "truncated"
    """truncated: samples continue from the states of their long clip. plain: random samples
    without states. plain-same-samples: the samples of truncated, without states."""
    length: int = 8
    """Frames of a sample, through which gradients flow. Memory grows with it."""
    samples: int = 5
    """Samples of each long clip, one per step. The states are computed once for all of them, so
    more samples cost less time per step, and the states get older. Choose samples · length near
    clip."""
    clip: int = 40
    """Frames of a long clip: how far back the states of a sample reach."""
    starts: Starts = "inner"
    """inner: samples keep two frames away from both ends of the long clip, as published. all: also
    train its ends, where a network has no states."""
    long_pass: LongPass = "eval"
    """Mode of the network while it computes the states: eval turns stochastic depth off."""
    flow: FlowTraining = "trained"
    """frozen: keep the weights of SpyNet. trained: as the settings of the optimizer say."""
    batch: int = 8
    """Samples per step. All of them start at the same frame of their clips."""
    patch_px: int = 64
    """Side of the low-quality crop, pixels; it is the same for the whole long clip."""
    pan_max_px: int = 6
    """Maximum speed of the camera that pans over an image, whole pixels of gt per frame; 0 keeps it
    still."""
    cleaning_weight: float = 0.0
    """Weight of the L1 loss between cleaned frames and downscaled gt, for RealBasicVSR."""
    feature_mib: int | None = None
    """Memory of the device for features of a long clip between its sweeps, MiB; further features
    are stored in main memory or a temporary file, so that memory does not grow with `clip`.
    Default: 0 on the CPU, where the file takes no noticeable time, and 256 on a GPU."""
    loop: LoopSettings = field(default_factory=LoopSettings)
    """Steps, learning rate, loss and device."""

    def __post_init__(self) -> None:
        # The parsers check choices, a call from Python does not.
        if self.strategy not in get_args(Strategy):
            suggestion = suggest(self.strategy, get_args(Strategy))
            raise ConfigError(f"unknown strategy={self.strategy!r}; {suggestion}")
        min_count = min(self.length, self.samples, self.clip, self.batch, self.patch_px)
        require(min_count >= 1, "length, samples, clip, batch and patch_px must be at least 1")
        min_amount = min(self.pan_max_px, self.feature_mib or 0, self.cleaning_weight)
        require(
            min_amount >= 0,
            "pan_max_px, feature_mib and cleaning_weight must not be negative",
        )
        if self.strategy == "truncated":
            self._check_checkpoints()

    def _check_checkpoints(self) -> None:
        """Refuse checkpoints within a long clip, whose states are not saved."""
        save_every = self.loop.save_every
        if save_every % self.samples:
            suitable = round_up(save_every, self.samples)
            raise ConfigError(
                f"loop.save_every={save_every} must be a multiple of samples={self.samples}, "
                f"because a run resumes at the start of a long clip; use {suitable}"
            )


def recurrent_names() -> list[str]:
    """List the architectures that have boundary states, by name."""
    names: list[str] = []
    for architecture in ARCHITECTURES:
        # A configuration may be without states, which `tubelet.recipes.lrti` checks.
        contract = architecture.contract(architecture.config())
        if contract is not None and contract.edge_states.sweeps:
            names.append(architecture.name)
    return sorted(names, key=str.lower)


def configure(
    model: str | None = None,
    *,
    preset: str | None = None,
    **changes: Any,
) -> LRTITraining:
    """Build the configuration of a preset, or of a network with its published recipe.

    Args:
        model: Name of a recurrent network, see `find_recipe`.
        preset: Name of a preset, instead of a model.
        changes: Fields of `LRTITraining` to override.

    Returns:
        An instance of a subclass whose `network` has the type of the architecture's configuration.

    Raises:
        RequestError: There is no such preset or network.
        ConfigError: Neither is given, or both are given and do not belong together.
    """
    if preset is not None:
        settings = find_preset(preset)
        out = Path("runs") / f"lrti-{preset}"
    elif model is not None:
        settings = preset_of(find_recipe(model))
        out = Path("runs") / f"lrti-{settings.model}"
    else:
        raise ConfigError("no network is given; use --model NAME or --preset NAME")
    # Two names may mean the same network, such as "BasicVSR" and "basicvsr".
    recipe = find_recipe(settings.model)
    if model is not None and find_recipe(model).name != recipe.name:
        raise ConfigError(
            f"preset {preset} is for {recipe.name}, not {model}; leave out --preset or --model"
        )

    config = _default_config(settings, recipe.architecture.config, out)
    return replace(config, preset=preset or "", **changes)


def _default_config(settings: LongClipPreset, network: type[Any], out: Path) -> LRTITraining:
    build_config = config_class(LRTITraining, network)
    return build_config(
        model=settings.model,
        network=settings.network,
        out=out,
        degradation=settings.degradation,
        strategy=settings.strategy,
        length=settings.length,
        samples=settings.samples,
        clip=settings.clip,
        flow=settings.flow,
        batch=settings.batch,
        patch_px=settings.patch_px,
        cleaning_weight=settings.cleaning_weight,
        loop=settings.loop,
    )
