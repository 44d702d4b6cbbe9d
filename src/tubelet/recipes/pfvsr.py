"""Train adapters that turn a frozen image network into a video network: the second stage of PFVSR.

    image network, frozen ─┐
    clips ─ crops of a few frames ─ adapters in its blocks ─ sr ┐
              └ gt ─────────────────────────────────────────────┴ loss

The first stage is the image network itself: published weights (`--image-model dat-light-x4`), or
one that `tubelet train supervised` trained on images of the same degradation.

preset          image network              frames, lq crop, batch    steps
paper           HAT or SwinIR, 180         30, 64 px, 8              300 000
paper-budget    the same, wide adapters    30, 64 px, 8              300 000
small-swinir    SwinIR of 48 channels       7, 48 px, 2                1 500
small-dat       DAT-light                   5, 32 px, 1                1 000
small-conv      RRDBNet of 6 blocks         5, 32 px, 1                1 000

Source: PFVSR, Sec. 3.4 and 4.1; open settings follow the option file of RVRT, whose recipe it uses.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch

from tubelet.data import CachedClip, Crops, CropSettings, prepare_clips
from tubelet.degrade import Preset
from tubelet.errors import ConfigError, InputError, RequestError, require, suggest
from tubelet.layers.spynet import load_spynet
from tubelet.models.architecture import Contract
from tubelet.models.pfvsr import ARCHITECTURE, PFVSR, PFVSRConfig, adapt, needed_backbone
from tubelet.plain_data import to_plain
from tubelet.progress import CancelToken, OnProgress
from tubelet.recipes.run_record import check_or_record
from tubelet.recipes.scorer import build_scorer
from tubelet.recipes.supervised_task import SupervisedTask
from tubelet.training import (
    LoopSettings,
    OptimizerSettings,
    RestorationLoss,
    pixel_loss,
    train,
)
from tubelet.training.run_log import Log
from tubelet.zoo.bases import hash_tensors, open_base, refer_to
from tubelet.zoo.checkpoint import read_notes, save_checkpoint
from tubelet.zoo.opened_model import OpenedModel
from tubelet.zoo.spec import count_parameters

__all__ = ["PRESETS", "PFVSRTraining", "configure", "describe", "main"]

_FLOW_LR_FACTOR = 0.25
"""Learning rate of SpyNet over that of the adapters (RVRT's option file)."""
_FLOW_FREEZE_STEPS = 20_000
_CHARBONNIER_EPS = 3.16e-5
"""Square root of the 1e-9 in the option file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PFVSRTraining:
    """Train adapters that turn a frozen image network into a video network."""

    image_model: str = ""
    """Image network to adapt: id of `tubelet models`, or checkpoint."""
    preset: str = ""
    """Name of the preset that the other settings are from, for the record."""
    network: PFVSRConfig = field(default_factory=PFVSRConfig)
    """Adapters; the image network determines scale, kind, channels and the numbers of blocks."""
    data: tuple[Path, ...] = ()
    """Folders of videos, of images, or of folders of frames."""
    fraction: float = 1.0
    """Part of the clips to train on: those whose name has a SHA-256 below it, above 0 to 1."""
    out: Path = Path("runs/pfvsr")
    """Folder of the checkpoint, the log and the finished model.safetensors."""
    cache: Path = Path("cache")
    """Folder of the decoded clips; reused by later runs."""
    evaluate: Path | None = None
    """Folder of folders of frames that are not trained on; scored at every checkpoint."""
    evaluate_frames: int = 12
    """Frames of each of these clips that are scored."""
    degradation: Preset = "bi"
    """Degradation of the low-quality frames: the one that the image network was trained with, bi
    or bd as in benchmarks, real and second-order for real-world video."""
    variants: int = 3
    """Degraded versions of each clip, for the random degradations real and second-order."""
    crops: CropSettings = field(default_factory=CropSettings)
    """Size of the training samples."""
    loop: LoopSettings = field(default_factory=LoopSettings)
    """Steps, learning rate, loss and device."""

    def __post_init__(self) -> None:
        require(0 < self.fraction <= 1, f"fraction={self.fraction} must be above 0 and up to 1")
        min_count = min(self.variants, self.evaluate_frames)
        require(min_count >= 1, "variants and evaluate_frames must be at least 1")


_FLOW = OptimizerSettings(
    betas=(0.9, 0.99),
    low_lr_modules=("spynet",),
    lr_multiplier=_FLOW_LR_FACTOR,
    freeze_steps=_FLOW_FREEZE_STEPS,
)
_LOOP = LoopSettings(
    steps=300_000,
    lr=4e-4,
    lr_final=1e-7,
    warmup_steps=0,
    optimizer=_FLOW,
    grad_clip=math.inf,
    ema=0.0,
    loss_eps=_CHARBONNIER_EPS,
    log_every=100,
    save_every=5000,
)
_PAPER = PFVSRTraining(
    network=PFVSRConfig(temporal="trajectory", num_frames=30),
    crops=CropSettings(batch=8, frames=30, patch_px=64, candidates=1),
    loop=_LOOP,
)
_SMALL = PFVSRTraining(
    network=PFVSRConfig(flow="frozen", num_frames=5),
    crops=CropSettings(batch=1, frames=5, patch_px=32),
    loop=replace(
        _LOOP,
        steps=1000,
        # If the flow is trained, then not for the first fifth.
        optimizer=replace(_FLOW, freeze_steps=200),
        ema=0.99,
        log_every=20,
        save_every=250,
    ),
)
PRESETS: Mapping[str, PFVSRTraining] = {
    "paper": _PAPER,
    "paper-budget": replace(
        _PAPER,
        network=replace(_PAPER.network, spatial_width=246, temporal_width=453),
    ),
    "small-swinir": replace(
        _SMALL,
        network=replace(_SMALL.network, num_frames=7),
        crops=CropSettings(batch=2, frames=7, patch_px=48),
        loop=replace(_SMALL.loop, steps=1500),
    ),
    "small-dat": _SMALL,
    "small-conv": replace(
        _SMALL,
        network=replace(_SMALL.network, temporal="neighbors"),
    ),
}
"""Settings by the name that `--preset` accepts; the table above compares them."""


def configure(
    preset: str = "small-dat",
    *,
    image_model: str = "",
    **changes: Any,
) -> PFVSRTraining:
    """Build the configuration of a preset.

    Args:
        preset: Name of one of `PRESETS`.
        image_model: Image network to adapt: id or path.
        changes: Fields of `PFVSRTraining` to override.

    Raises:
        RequestError: There is no such preset.
    """
    if preset not in PRESETS:
        raise RequestError(f"unknown preset {preset!r}; {suggest(preset, list(PRESETS))}")
    out = Path("runs") / f"pfvsr-{preset}"
    fields: dict[str, Any] = {"image_model": image_model, "preset": preset, "out": out}
    return replace(PRESETS[preset], **(fields | changes))


def describe(config: PFVSRTraining) -> list[str]:
    """Describe a training in a few lines; `main` logs what depends on the image network."""
    crops = config.crops
    samples = "a sample" if crops.batch == 1 else f"{crops.batch} samples"
    return [
        f"adapters of {config.image_model or 'an image network'}: {config.loop.steps} steps of "
        f"{samples} of {crops.frames} frames, {crops.patch_px} px, degradation "
        f"{config.degradation}",
    ]


def main(
    config: PFVSRTraining,
    *,
    on_log: Log | None = None,
    on_progress: OnProgress | None = None,
    cancel: CancelToken | None = None,
) -> Path:
    """Train adapters, or resume their training, and save them.

    Args:
        config: Configuration, from `configure`.
        on_log: Called with every log record, and with notes on the network and the data.
        on_progress: Called after steps, up to ten times a second, and at the end.
        cancel: Stops the run after the current step; the same call resumes from the last
            checkpoint.

    Returns:
        Path of the finished model.safetensors: the adapters, and a reference to the image network.

    Raises:
        ConfigError: The image network or the data is not given, or adapters do not fit.
        RequestError: The image network is unknown, or is not an image network.
        InputError: There are no clips, or they are too small.
        CheckpointError: The output folder contains another run.
        DivergedError: A loss or a gradient is not finite.
        Cancelled: `cancel` was cancelled.
    """
    _check_given(config)
    base = open_base(config.image_model, replace(needed_backbone(config.network), scale=None))
    # The adapters, which start as the image network does.
    torch.manual_seed(config.loop.seed)
    network = adapt(base.network, config.network, num_frames=config.crops.frames)
    load_spynet(network)
    contract = _contract(network.config, base)
    _check_crops(config, contract)

    clips = prepare_clips(
        config.data,
        config.cache,
        preset=config.degradation,
        scale=contract.scale,
        variants=config.variants,
        cancel=cancel,
    )
    # Everything is checked before the folder of the run is touched.
    chosen = _fraction_of(clips, config.fraction)
    crops = Crops(chosen, contract.scale, config.crops, config.loop.seed)
    loop = _loop(config, network)
    check_or_record(config.out, _recorded_settings(config, network, base, chosen))
    for note in _notes(config, network, base, len(chosen)):
        if on_log is not None:
            on_log({"step": 0, "note": note})

    average = train(
        network.to(memory_format=torch.channels_last),
        SupervisedTask(crops, contract.temporal, RestorationLoss(pixel=pixel_loss(config.loop))),
        loop,
        config.out,
        evaluate=build_scorer(
            config.evaluate,
            frames=config.evaluate_frames,
            preset=config.degradation,
            architecture=ARCHITECTURE.name,
            contract=contract,
            device=config.loop.device,
        ),
        on_log=on_log,
        on_progress=on_progress,
        cancel=cancel,
    )
    # The file has the adapters alone: a reference stands for the image network.
    path = config.out / "model.safetensors"
    notes = {"training": asdict(config)}
    save_checkpoint(path, average, notes, base=refer_to(base, config.out))
    return path


def _check_given(config: PFVSRTraining) -> None:
    """Check what has no default.

    Raises:
        ConfigError: The image network or the data is missing.
    """
    if not config.image_model:
        raise ConfigError(
            "which image network? name one: --image-model ID_OR_CHECKPOINT "
            "(`tubelet models` lists the ids, of kind frame)"
        )
    # Only a number that was given can contradict.
    usual = (PFVSRConfig().num_frames, PRESETS.get(config.preset, _SMALL).network.num_frames)
    require(
        config.network.num_frames in (*usual, config.crops.frames),
        f"network.num_frames={config.network.num_frames} contradicts crops.frames="
        f"{config.crops.frames}: a window has as many frames as a sample; set --crops.frames",
    )
    if not config.data:
        raise ConfigError("no data to train on; name folders of clips: --data FOLDER")


def _contract(
    config: PFVSRConfig,
    base: OpenedModel,
) -> Contract:
    own = ARCHITECTURE.contract(config)
    assert own is not None
    return needed_backbone(config).contract(own, base.spec.contract)


def _check_crops(
    config: PFVSRTraining,
    contract: Contract,
) -> None:
    """Check that the size of the samples suits the image network.

    Raises:
        ConfigError: It does not.
    """
    patch_px = config.crops.patch_px
    multiple = contract.size_multiple
    require(
        patch_px % multiple == 0 and patch_px >= contract.min_size_px,
        f"crops.patch_px={patch_px} does not fit {config.image_model}, which needs a multiple of "
        f"{multiple}, {contract.min_size_px} or larger",
    )


def _fraction_of(
    clips: Iterable[CachedClip],
    fraction: float,
) -> list[CachedClip]:
    """Return the clips whose names have a SHA-256 below a fraction of its range.

    Raises:
        InputError: There is none.
    """
    found = list(clips)
    chosen: list[CachedClip] = []
    for clip in found:
        # By the name, so that a part is the same on every machine and within larger parts.
        digest = hashlib.sha256(clip.name.encode()).digest()
        if int.from_bytes(digest[:8], "big") / 2**64 < fraction:
            chosen.append(clip)
    if not chosen:
        raise InputError(
            f"fraction={fraction} leaves none of {len(found)} clips; use a larger --fraction"
        )
    return chosen


def _loop(
    config: PFVSRTraining,
    network: PFVSR,
) -> LoopSettings:
    """Return the settings of the loop; those of SpyNet have no effect without one."""
    optimizer = config.loop.optimizer
    if network.spynet is not None:
        require(
            optimizer.freeze_steps < config.loop.steps,
            f"network.flow=trained trains no flow: loop.optimizer.freeze_steps="
            f"{optimizer.freeze_steps} of loop.steps={config.loop.steps}; give fewer, or "
            "--network.flow frozen",
        )
        return config.loop
    optimizer = replace(optimizer, low_lr_modules=(), freeze_steps=0)
    return replace(config.loop, optimizer=optimizer)


def _recorded_settings(
    config: PFVSRTraining,
    network: PFVSR,
    base: OpenedModel,
    clips: Sequence[CachedClip],
) -> dict[str, Any]:
    """Return what changes the result, besides the settings of the loop."""
    return {
        "image_model": hash_tensors(base.network)[:12],
        "network": to_plain(network.config),
        "crops": to_plain(config.crops),
        "degradation": config.degradation,
        "variants": config.variants,
        "clips": [clip.name for clip in clips],
    }


def _notes(
    config: PFVSRTraining,
    network: PFVSR,
    base: OpenedModel,
    num_clips: int,
) -> list[str]:
    """Describe the adapted network, and warn of a degradation that it has not been trained with."""
    # SpyNet is counted where it is trained.
    trained = sum(parameter.numel() for parameter in network.parameters())
    frozen = count_parameters(base.network)
    settings = network.config
    lines = [
        f"{trained:,} trained parameters over {frozen:,} frozen ones of {base.spec.architecture}; "
        f"spatial: {settings.spatial}, temporal: {settings.temporal}; clips: {num_clips}"
    ]
    degradation = _degradation_of(base)
    if degradation not in ("", config.degradation):
        lines.append(
            f"warning: {base.name} was trained with degradation {degradation}, and the adapters "
            f"with {config.degradation}; equal ones give better results (PFVSR, Table 6)"
        )
    return lines


def _degradation_of(base: OpenedModel) -> str:
    """Return the degradation with which an image network was trained; "" if it is not known."""
    if base.path is None:
        # The lists of published weights tell the data in their summary.
        return "bi" if "bicubic" in base.spec.summary else ""
    if base.path.suffix != ".safetensors":
        return ""
    training: Any = read_notes(base.path).get("training")
    if not isinstance(training, dict):
        return ""
    settings = cast("dict[str, Any]", training)
    # `tubelet train supervised` calls it a preset.
    return str(settings.get("degradation") or settings.get("preset") or "")
