"""Train any network that restores images or video, on pairs of low- and high-quality clips.

A degradation preset makes lq from gt. The temporal kind of the network determines the samples:

kind      input                         target
frame     lq (B, T, …), frame by frame  gt of all T frames
window    lq (B, 2r + 1, …)             gt of the middle frame
online    lq (B, T, …), step by step    gt of all T frames
clip      lq (B, T, …)                  gt of all T frames

The input of a space-time network is every second frame of lq. A recipe (`published.py`) provides
the network and the training settings; every field of it can be overridden.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, make_dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import nn

from tubelet.data import CachedClip, Crops, CropSettings, PanSettings, prepare_clips
from tubelet.degrade import RANDOM_PRESETS, Preset
from tubelet.errors import ConfigError, require
from tubelet.models.architecture import Architecture, Contract
from tubelet.ops.sizes import round_up
from tubelet.progress import CancelToken, OnProgress
from tubelet.recipes.initial_weights import copy_matching_weights, find_spynets, init_spynets
from tubelet.recipes.published import find_recipe
from tubelet.recipes.scorer import build_scorer
from tubelet.recipes.supervised_task import SupervisedTask
from tubelet.training import LoopSettings, RestorationLoss, TrainingTask, pixel_loss, train
from tubelet.training.run_log import Log
from tubelet.zoo.checkpoint import save_checkpoint
from tubelet.zoo.spec import count_parameters

__all__ = [
    "BuildTask",
    "SupervisedConfig",
    "check_config",
    "config_class",
    "configure",
    "describe",
    "main",
    "train_network",
]

T = TypeVar("T")

BuildTask = Callable[[Sequence[CachedClip], Contract], TrainingTask]
"""Builds a task from the training clips and the contract of the network."""

_CACHED_MULTIPLE = 12
"""`tubelet.data` crops cached gt clips to multiples of this, which every scale must divide."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SupervisedConfig:
    """Train a network on low- and high-quality clips, by default with its published recipe."""

    model: str
    """Name of a recipe or of an architecture."""
    network: Any
    """Configuration of the network."""
    data: tuple[Path, ...] = ()
    """Folders of videos, of images, or of folders of frames."""
    out: Path = Path("runs/supervised")
    """Folder of the checkpoint, the log and the finished model.safetensors."""
    cache: Path = Path("cache")
    """Folder of the decoded clips; reused by later runs."""
    evaluate: Path | None = None
    """Folder of folders of frames that are not trained on; scored at every checkpoint."""
    evaluate_frames: int = 12
    """Frames of each of these clips that are scored."""
    preset: Preset = "bi"
    """Degradation of the low-quality frames: bi and bd as in benchmarks, real and second-order
    for real-world video."""
    variants: int = 3
    """Degraded versions of each clip, for the random presets real and second-order."""
    init: Path | None = None
    """Start from the weights of this checkpoint; tensors of another shape start from random
    weights."""
    spynet: str = "own"
    """Initial optical-flow weights, unless `init` has some: own (trained by this project),
    random, or the path of a SpyNet checkpoint."""
    mirrored: bool = False
    """Append the frames of each sample in reverse order, which doubles its length."""
    cleaning_weight: float = 0.0
    """Weight of the L1 loss between cleaned frames and downscaled gt, for RealBasicVSR (Sec. 3)."""
    crops: CropSettings = field(default_factory=CropSettings)
    """Size of the training samples."""
    loop: LoopSettings = field(default_factory=LoopSettings)
    """Steps, learning rate, loss and device."""

    def __post_init__(self) -> None:
        faults = (
            self.cleaning_weight < 0,
            self.variants < 1,
            self.evaluate_frames < 1,
        )
        require(
            not any(faults),
            "need cleaning_weight ≥ 0, variants ≥ 1 and evaluate_frames ≥ 1",
        )


@cache
def config_class(base: type[T], network: type[Any]) -> type[T]:
    """Build a subclass of a configuration with a `network` of this type.

    The parsers of YAML files and flags take the fields of the network from the annotation.
    """
    subclass = make_dataclass(
        base.__name__,
        [("network", network)],
        bases=(base,),
        frozen=True,
        slots=True,
        kw_only=True,
    )
    subclass.__doc__ = base.__doc__
    return cast(type[T], subclass)


def configure(model: str, **changes: Any) -> SupervisedConfig:
    """Build the configuration of a recipe.

    Args:
        model: Name of the recipe; see `find_recipe`.
        changes: Fields of `SupervisedConfig` to override.

    Returns:
        An instance of a subclass whose `network` has the type of the architecture's configuration.

    Raises:
        RequestError: No recipe has this name.
    """
    recipe = find_recipe(model)
    build_config = config_class(SupervisedConfig, recipe.architecture.config)
    config = build_config(
        model=recipe.name,
        network=recipe.network,
        out=Path("runs") / recipe.name,
        preset=recipe.preset,
        mirrored=recipe.mirrored,
        cleaning_weight=recipe.cleaning_weight,
        crops=recipe.crops,
        loop=recipe.loop,
    )
    return replace(config, **changes)


def describe(config: SupervisedConfig) -> list[str]:
    """Describe a training in a few lines: network, settings, source, and deviations from it."""
    recipe = find_recipe(config.model)
    contract = check_config(recipe.architecture, config)
    with torch.device("meta"):
        network = recipe.architecture.build(config.network)
    size = f"{count_parameters(network) / 1e6:.2f} M parameters"
    crops = config.crops
    frames = f"{crops.frames} frame{'s' if crops.frames > 1 else ''}"
    lines = [
        f"{config.model}: {recipe.architecture.name} x{contract.scale}, {size}, "
        f"{contract.temporal.kind}; {config.loop.steps} steps of {crops.batch} samples of "
        f"{frames}, {crops.patch_px} px",
        f"recipe: {recipe.source}; assumed: {recipe.assumed}",
    ]
    optimizer = config.loop.optimizer
    effective = _effective_loop(config, network).optimizer
    if optimizer.warmup_only_steps and not effective.warmup_only_steps:
        modules = ", ".join(optimizer.warmup_only_modules)
        lines.append(f"without --init, all modules are trained from the start, not only {modules}")
    has_random_flow = config.init is None and config.spynet == "random"
    if has_random_flow and find_spynets(network):
        lines.append("the flow network starts from random weights and is trained like the rest")
    return lines


def main(
    config: SupervisedConfig,
    *,
    on_log: Log | None = None,
    on_progress: OnProgress | None = None,
    cancel: CancelToken | None = None,
) -> Path:
    """Train a network, or resume its training, and save it.

    Args:
        config: Configuration, from `configure`.
        on_log: Called with every log record.
        on_progress: Called after steps, up to ten times a second, and at the end.
        cancel: Stops the run after the current step; the same call resumes from the last
            checkpoint.

    Returns:
        Path of the finished model.safetensors, for `tubelet upscale --model`.

    Raises:
        ConfigError: Crops, network and degradation do not fit together.
        InputError: There are no clips.
        CheckpointError: The output folder contains another run, or the initial weights cannot be
            read.
        Cancelled: `cancel` was cancelled.
    """
    loss = RestorationLoss(
        pixel=pixel_loss(config.loop),
        cleaning_weight=config.cleaning_weight,
    )

    def build_task(clips: Sequence[CachedClip], contract: Contract) -> TrainingTask:
        crops = Crops(clips, contract.scale, config.crops, config.loop.seed)
        return SupervisedTask(crops, contract.temporal, loss, is_mirrored=config.mirrored)

    return train_network(
        config,
        build_task,
        notes={"training": asdict(config)},
        on_log=on_log,
        on_progress=on_progress,
        cancel=cancel,
    )


def train_network(
    config: SupervisedConfig,
    build_task: BuildTask,
    *,
    notes: Mapping[str, Any],
    clips: Iterable[CachedClip] | None = None,
    pan: PanSettings | None = None,
    on_log: Log | None = None,
    on_progress: OnProgress | None = None,
    cancel: CancelToken | None = None,
) -> Path:
    """Train a network by some task on pairs of low- and high-quality clips, and save it.

    Args:
        config: Configuration.
        build_task: Builds the task from the clips and the contract of the network.
        notes: Notes for the header of the saved file.
        clips: Training clips; None: those in `config.data`, which is not read otherwise.
        pan: Clips that are made of images; None: the default settings.
        on_log: See `main`.
        on_progress: See `main`.
        cancel: See `main`.

    Returns:
        Path of the finished model.safetensors.

    Raises:
        ConfigError: See `main`.
        InputError: See `main`.
        CheckpointError: See `main`.
        Cancelled: See `main`.
    """
    recipe = find_recipe(config.model)
    contract = check_config(recipe.architecture, config)

    # Network and its initial weights.
    torch.manual_seed(config.loop.seed)
    network = recipe.architecture.build(config.network)
    if config.init is None:
        init_spynets(network, config.spynet)
    else:
        copy_matching_weights(network, config.init)
    loop = _effective_loop(config, network)

    if clips is None:
        clips = prepare_clips(
            config.data,
            config.cache,
            preset=config.preset,
            scale=contract.scale,
            variants=config.variants,
            pan=pan,
            cancel=cancel,
        )

    average = train(
        network.to(memory_format=torch.channels_last),
        build_task(list(clips), contract),
        loop,
        config.out,
        evaluate=build_scorer(
            config.evaluate,
            frames=config.evaluate_frames,
            preset=config.preset,
            architecture=recipe.architecture.name,
            contract=contract,
            device=config.loop.device,
        ),
        on_log=on_log,
        on_progress=on_progress,
        cancel=cancel,
    )
    return _save(config.out, average, notes)


def check_config(architecture: Architecture, config: SupervisedConfig) -> Contract:
    """Check that network, data and degradation fit together, and return the network's contract.

    Raises:
        ConfigError: They do not.
    """
    contract = architecture.contract(config.network)
    name = architecture.name
    if contract is None:
        raise ConfigError(f"{name} outputs no images; train a network that does")
    if not config.data:
        raise ConfigError("no data to train on; name folders of clips: --data FOLDER")
    _check_crops(contract, config, name)
    if _CACHED_MULTIPLE % contract.scale:
        raise ConfigError(
            f"{name} upscales x{contract.scale}; clips are cropped for scales that divide "
            f"{_CACHED_MULTIPLE}"
        )
    if contract.scale == 1 and config.preset not in RANDOM_PRESETS:
        presets = " or ".join(RANDOM_PRESETS)
        raise ConfigError(
            f"preset={config.preset} only changes the size, but {name} has scale 1; use {presets}"
        )
    if config.cleaning_weight and not architecture.cleans:
        raise ConfigError(
            f"cleaning_weight={config.cleaning_weight} is for networks with a cleaning module; "
            f"{name} has none"
        )
    return contract


def _check_crops(contract: Contract, config: SupervisedConfig, name: str) -> None:
    """Check that the size of the samples suits a network.

    Raises:
        ConfigError: It does not; the message suggests a size.
    """
    crops = config.crops
    multiple = contract.size_multiple
    min_px = round_up(contract.min_size_px, multiple)
    if crops.patch_px % multiple or crops.patch_px < min_px:
        suitable_px = max(min_px, round_up(crops.patch_px, multiple))
        raise ConfigError(
            f"crops.patch_px={crops.patch_px} does not fit {name}, which needs a multiple of "
            f"{multiple}, {min_px} or larger; use {suitable_px}"
        )

    temporal = contract.temporal
    window = 2 * temporal.radius + 1
    if temporal.kind == "window" and (crops.frames != window or config.mirrored):
        raise ConfigError(
            f"crops.frames={crops.frames}, mirrored={config.mirrored} does not fit {name}, which "
            f"restores the middle one of {window} frames"
        )
    # A space-time network needs two input frames with one between them, or more.
    is_odd = crops.frames % 2 == 1
    if temporal.between_frames and not (is_odd and crops.frames >= 3):
        raise ConfigError(
            f"crops.frames={crops.frames} does not fit {name}, which outputs 2T - 1 frames for T "
            "frames: use an odd number, 3 or larger"
        )


def _effective_loop(config: SupervisedConfig, network: nn.Module) -> LoopSettings:
    """Disable freezing and lower learning rates that only make sense for pretrained weights."""
    optimizer = config.loop.optimizer
    if config.init is None:
        optimizer = replace(optimizer, warmup_only_steps=0)
        if config.spynet == "random" and find_spynets(network):
            optimizer = replace(optimizer, lr_multiplier=1.0, freeze_steps=0)
    return replace(config.loop, optimizer=optimizer)


def _save(out: Path, average: nn.Module, notes: Mapping[str, Any]) -> Path:
    """Write the network; of a network with collapsible blocks, both forms."""
    path = out / "model.safetensors"
    collapse = getattr(average, "collapse", None)
    if collapse is not None:
        # Only the expanded form can be trained further.
        save_checkpoint(out / "wide.safetensors", average, notes)
        average = collapse()
    save_checkpoint(path, average, notes)
    return path
