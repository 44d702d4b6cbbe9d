"""Train any network that restores images or video, on pairs of clips.

lq is made from gt by a preset of degradation.

kind      the network sees              and is compared with
frame     lq (B, T, …), frame by frame  gt of all T frames
window    lq (B, 2r + 1, …)             gt of the middle frame
online    lq (B, T, …), step by step    gt of all T frames
clip      lq (B, T, …)                  gt of all T frames

A space-time network sees every second frame of lq. Which network, and how it learns, comes from a
recipe (`published.py`), and every field of it can be changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, make_dataclass, replace
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from tubelet.data import Crops, CropSettings, prepare_clips
from tubelet.degrade import RANDOM_PRESETS, Preset
from tubelet.errors import ConfigError
from tubelet.losses import l1
from tubelet.models.architecture import Architecture, Contract
from tubelet.models.contracts import as_cleaning
from tubelet.ops.sizes import round_up
from tubelet.progress import CancelToken, OnProgress
from tubelet.recipes.initial_weights import copy_matching_weights, find_spynets, init_spynets
from tubelet.recipes.online import load_pairs, score_clips
from tubelet.recipes.published import PublishedRecipe, find_recipe
from tubelet.restore.engine import Engine
from tubelet.restore.settings import UpscaleSettings
from tubelet.training import Batch, LoopSettings, Losses, pixel_loss, train
from tubelet.training.run_log import Log
from tubelet.types import Frame, Temporal
from tubelet.zoo.checkpoint import save_checkpoint
from tubelet.zoo.spec import ModelSpec, count_parameters

__all__ = ["SupervisedConfig", "configure", "describe", "main"]

_CACHED_MULTIPLE = 12  # of the sizes of cached clips


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
        if self.cleaning_weight < 0 or self.variants < 1 or self.evaluate_frames < 1:
            raise ConfigError("need cleaning_weight ≥ 0, variants ≥ 1 and evaluate_frames ≥ 1")


@cache
def _kind(network: type[Any]) -> type[SupervisedConfig]:
    """Make the configuration with a `network` of this type, which files and flags must fit."""
    made = make_dataclass(
        "SupervisedConfig",
        [("network", network)],
        bases=(SupervisedConfig,),
        frozen=True,
        slots=True,
        kw_only=True,
    )
    made.__doc__ = SupervisedConfig.__doc__
    return cast(type[SupervisedConfig], made)


def configure(model: str, **changes: Any) -> SupervisedConfig:
    """Make the configuration of a recipe.

    Args:
        model: its name; see `find_recipe`.
        changes: fields of `SupervisedConfig` that differ.

    Returns:
        of a subclass, whose `network` is of the type of the architecture's configuration.

    Raises:
        RequestError: no recipe has this name.
    """
    recipe = find_recipe(model)
    config = _kind(recipe.architecture.config)(
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
    """Say, a line each, what will be trained, how, and what a user should know of it."""
    recipe = find_recipe(config.model)
    contract = _contract(recipe.architecture, config)
    with torch.device("meta"):
        network = recipe.architecture.build(config.network)
    crops = config.crops
    temporal = contract.temporal
    lines = [
        f"{config.model}: {recipe.architecture.name} x{contract.scale}, {count_parameters(network) / 1e6:.2f} M "
        f"parameters, {temporal.kind}; {config.loop.steps} steps of {crops.batch} samples of {crops.frames} "
        f"frame{'s' if crops.frames > 1 else ''}, {crops.patch_px} px",
        f"recipe: {recipe.source}; assumed: {recipe.assumed}",
    ]
    own = config.loop.optimizer
    loop = _loop(config, network)
    if own.warmup_only_steps and not loop.optimizer.warmup_only_steps:
        lines.append(
            f"without --init, {', '.join(own.warmup_only_modules)} does not learn alone at first"
        )
    if find_spynets(network) and config.init is None and config.spynet == "random":
        lines.append("the flow begins at random, and learns as the rest does")
    return lines


def main(
    config: SupervisedConfig,
    *,
    on_log: Log | None = None,
    on_progress: OnProgress | None = None,
    cancel: CancelToken | None = None,
) -> Path:
    """Train to the end, or resume; write the network.

    Args:
        config: see there; `configure` makes one.
        on_log: called with every log line.
        on_progress: called after steps, at most ten times a second, and at the end.
        cancel: stops the run after the step that it is at; the same call goes on from its last
            checkpoint.

    Returns:
        path of the finished model.safetensors, which `tubelet upscale --model` takes.

    Raises:
        ConfigError: crops, network and degradation do not fit each other.
        InputError: no clips.
        CheckpointError: the output folder holds another run, or the weights to begin with cannot be
            read.
        Cancelled: `cancel` was cancelled.
    """
    recipe = find_recipe(config.model)
    contract = _contract(recipe.architecture, config)
    torch.manual_seed(config.loop.seed)
    network = recipe.architecture.build(config.network)
    if config.init is None:
        init_spynets(network, config.spynet)
    else:
        copy_matching_weights(network, config.init)
    loop = _loop(config, network)
    clips = prepare_clips(
        config.data,
        config.cache,
        preset=config.preset,
        scale=contract.scale,
        variants=config.variants,
        cancel=cancel,
    )
    crops = Crops(list(clips), contract.scale, config.crops, loop.seed)
    average = train(
        network.to(memory_format=torch.channels_last),
        _SupervisedTask(config, crops, contract.temporal),
        loop,
        config.out,
        evaluate=_scorer(config, recipe, contract),
        on_log=on_log,
        on_progress=on_progress,
        cancel=cancel,
    )
    return _save(config, average)


def _contract(architecture: Architecture, config: SupervisedConfig) -> Contract:
    """Check that network, data and degradation fit each other.

    Raises:
        ConfigError: they do not.
    """
    contract = architecture.contract(config.network)
    name = architecture.name
    if contract is None:
        raise ConfigError(f"{name} makes no images; train a network that does")
    if not config.data:
        raise ConfigError("no data to train on; name folders of clips: --data FOLDER")
    _check_crops(contract, config, name)
    if _CACHED_MULTIPLE % contract.scale:
        raise ConfigError(
            f"{name} enlarges x{contract.scale}; clips are cut for factors of {_CACHED_MULTIPLE}"
        )
    if contract.scale == 1 and config.preset not in RANDOM_PRESETS:
        known = " or ".join(RANDOM_PRESETS)
        raise ConfigError(
            f"preset={config.preset} only changes the size, which {name} keeps; take {known}"
        )
    if config.cleaning_weight and not architecture.cleans:
        raise ConfigError(
            f"cleaning_weight={config.cleaning_weight} is for networks that clean; {name} cleans nothing"
        )
    return contract


def _check_crops(contract: Contract, config: SupervisedConfig, name: str) -> None:
    """Check that a network can take the samples.

    Raises:
        ConfigError: it cannot; the line says which size it would take.
    """
    crops = config.crops
    multiple = contract.size_multiple
    temporal = contract.temporal
    least = round_up(contract.min_size_px, multiple)
    if crops.patch_px % multiple or crops.patch_px < least:
        fitting = max(least, round_up(crops.patch_px, multiple))
        raise ConfigError(
            f"crops.patch_px={crops.patch_px} does not fit {name}, which takes multiples of {multiple} from {least} "
            f"px on; {fitting} would do"
        )
    window = 2 * temporal.radius + 1
    if temporal.kind == "window" and (crops.frames != window or config.mirrored):
        raise ConfigError(
            f"crops.frames={crops.frames}, mirrored={config.mirrored} does not fit {name}, which restores the middle "
            f"one of {window} frames"
        )
    if temporal.between_frames and (crops.frames < 3 or crops.frames % 2 == 0):
        raise ConfigError(
            f"crops.frames={crops.frames} does not fit {name}, which gives 2T - 1 frames of T: take an odd number "
            "from 3 on"
        )


def _loop(config: SupervisedConfig, network: nn.Module) -> LoopSettings:
    """Leave out what a recipe does with weights that it begins with, where it begins with none."""
    optimizer = config.loop.optimizer
    if config.init is None:
        optimizer = replace(optimizer, warmup_only_steps=0)
        if config.spynet == "random" and find_spynets(network):
            optimizer = replace(optimizer, lr_multiplier=1.0, freeze_steps=0)
    return replace(config.loop, optimizer=optimizer)


class _SupervisedTask:
    """Restore clips, and compare with gt; of a network that cleans, the cleaned frames too."""

    def __init__(self, config: SupervisedConfig, crops: Crops, temporal: Temporal) -> None:
        self._crops = crops
        self._temporal = temporal
        self._is_mirrored = config.mirrored
        self._cleaning_weight = config.cleaning_weight
        self._pixel_loss = pixel_loss(config.loop)

    def batch(self, step: int) -> Batch:
        """Cut clips, (B, T, 3, H, W): what the network sees, and what it is compared with."""
        lq, gt = self._crops.batch(step)
        if self._temporal.kind == "window":
            return {"lq": lq, "gt": gt[:, self._temporal.radius, None]}
        lq = lq[:, :: 1 + self._temporal.between_frames]
        if self._is_mirrored:
            return {"lq": _run_back(lq), "gt": _run_back(gt)}
        return {"lq": lq, "gt": gt}

    def losses(self, model: nn.Module, batch: Batch, step: int) -> Iterator[Losses]:
        """Compare the restored frames with gt, and cleaned ones with gt as small as they are."""
        del step
        lq = batch["lq"]
        gt = batch["gt"]
        if not self._cleaning_weight:
            yield {"pixel": self._pixel_loss(model(lq), gt)}
            return
        network = as_cleaning(model)
        cleaned = network.clean(lq)
        sr = network.enlarge_cleaned(cleaned)
        small_gt = functional.interpolate(gt.flatten(0, 1), lq.shape[-2:], mode="area").view_as(lq)
        yield {
            "pixel": self._pixel_loss(sr, gt),
            "cleaning": self._cleaning_weight * l1(cleaned.float(), small_gt),
        }


def _run_back(clip: Tensor) -> Tensor:
    """Play a clip to its end and back: (B, T, ...) → (B, 2T, ...)."""
    return torch.cat([clip, clip.flip(1)], 1)


def _scorer(
    config: SupervisedConfig, recipe: PublishedRecipe, contract: Contract
) -> Callable[[nn.Module], dict[str, float]] | None:
    """Make what scores a network on clips, through the engine that upscales videos."""
    if config.evaluate is None:
        return None
    pairs = load_pairs(config.evaluate, config.preset, contract.scale, config.evaluate_frames)

    def score(network: nn.Module) -> dict[str, float]:
        spec = ModelSpec(
            id=config.model,
            summary="",
            architecture=recipe.architecture.name,
            contract=contract,
            build=lambda: network,
        )
        engine = Engine(spec, network, UpscaleSettings(device=config.loop.device, precision="fp32"))
        return score_clips(lambda lq: _restore(engine, lq), pairs)

    return score


def _restore(engine: Engine, lq: Tensor) -> Tensor:
    """Restore a clip: (1, T, 3, H, W) → (1, T, 3, sH, sW)."""
    frames = (Frame(rgb, t, Fraction(1, 25), index=t) for t, rgb in enumerate(lq[0]))
    return torch.stack([frame.rgb for frame in engine.restore(frames)])[None]


def _save(config: SupervisedConfig, average: nn.Module) -> Path:
    """Write the network; one whose blocks collapse is kept as it was trained as well."""
    path = config.out / "model.safetensors"
    notes = {"training": asdict(config)}
    collapse = getattr(average, "collapse", None)
    if collapse is not None:
        save_checkpoint(config.out / "wide.safetensors", average, notes)
        average = collapse()
    save_checkpoint(path, average, notes)
    return path
