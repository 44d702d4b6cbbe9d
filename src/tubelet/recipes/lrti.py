"""Train a recurrent network on long clips, at the cost of short ones: the strategy of LRTI-VSR.

strategy              a step trains on L frames                      states beyond their ends
plain                 of any clip, as `tubelet train supervised`     none
plain-same-samples    of a long clip that serves N steps             none
truncated             of a long clip that serves N steps             those of the long clip

`training/truncated.py` shows the algorithm. It changes neither the network nor how it runs later.

Source: LRTI-VSR, Sec. 2.2 and Algorithm 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from tubelet.data import CachedClip, Crops, CropSettings, PanSettings
from tubelet.errors import ConfigError, InputError, require
from tubelet.layers.store import FeatureLimits
from tubelet.models.architecture import Contract
from tubelet.models.mia_vsr import MIAVSRConfig
from tubelet.models.realbasicvsr import RealBasicVSRConfig
from tubelet.plain_data import to_plain
from tubelet.progress import CancelToken, OnProgress
from tubelet.recipes.initial_weights import spynet_names
from tubelet.recipes.lrti_presets import find_preset
from tubelet.recipes.lrti_settings import LRTITraining, configure, recurrent_names
from tubelet.recipes.published import find_recipe
from tubelet.recipes.run_record import check_or_record, check_record
from tubelet.recipes.supervised import SupervisedConfig, check_config, train_network
from tubelet.recipes.supervised_task import SupervisedTask
from tubelet.training import (
    LoopSettings,
    RestorationLoss,
    TrainingTask,
    pixel_loss,
)
from tubelet.training.frozen_flow import FrozenFlowTask
from tubelet.training.long_clips import Samples, SampleTask, Sampling
from tubelet.training.run_log import Log
from tubelet.training.truncated import TruncatedTask
from tubelet.zoo.spec import count_parameters

__all__ = ["LRTITraining", "check_recorded_run", "configure", "describe", "main"]

_RECORDED = (
    "model",
    "network",
    "degradation",
    "variants",
    "strategy",
    "length",
    "samples",
    "clip",
    "starts",
    "long_pass",
    "flow",
    "batch",
    "patch_px",
    "pan_max_px",
    "cleaning_weight",
)
"""Settings that change the result of a run, besides those of the loop."""

_CLEANS_ONCE = 255
"""Threshold with which RealBasicVSR cleans every clip once."""
_GPU_FEATURE_MIB = 256
"""Default of `feature_mib` on a GPU, where each tensor in main memory is copied twice."""


def describe(config: LRTITraining) -> list[str]:
    """Describe a training in a few lines: network, strategy, cost against plain training."""
    contract = _check_config(config)
    recipe = find_recipe(config.model)
    with torch.device("meta"):
        network = recipe.architecture.build(config.network)
    # Network and samples, then what they cost, then where the settings are from.
    lines = [
        f"{recipe.architecture.name} x{contract.scale}, "
        f"{count_parameters(network) / 1e6:.2f} M parameters; strategy {config.strategy}: "
        f"{config.loop.steps} steps, batch {config.batch}, {config.length} frames of "
        f"{config.patch_px} px",
    ]
    if config.strategy == "truncated":
        lines += _describe_truncation(config, contract)
    if config.flow == "frozen":
        lines.append("SpyNet stays frozen")
    if config.preset:
        preset = find_preset(config.preset)
        lines.append(f"preset {config.preset}: {preset.source}; assumed: {preset.assumed}")
        if preset.fine_tunes and config.init is None:
            lines.append(f"{config.preset} is for published weights; give them with --init FILE")
    return lines


def _describe_truncation(config: LRTITraining, contract: Contract) -> list[str]:
    """Describe the long clips, and their cost in forward passes of a frame."""
    length = config.length
    clip = config.clip
    # A backward pass takes as long as two forward passes.
    step_cost = 3 * length + clip / config.samples
    states = contract.edge_states
    num_states = len(states.before + states.after) * states.order
    return [
        f"clips of {clip} frames; from each, {config.samples} samples, which continue from "
        f"{num_states} states at their ends",
        f"a step takes about {step_cost / (3 * length):.2f} times as long as plain training on "
        f"{length} frames and {step_cost / (3 * clip):.2f} times as long as on {clip}; its memory "
        f"is about that of {length} frames",
    ]


def main(
    config: LRTITraining,
    *,
    clips: Iterable[CachedClip] | None = None,
    on_log: Log | None = None,
    on_progress: OnProgress | None = None,
    cancel: CancelToken | None = None,
) -> Path:
    """Train a network, or resume its training, and save it.

    Args:
        config: Configuration, from `configure`.
        clips: Training clips; None: those in `config.data`, which is not read otherwise.
        on_log: Called with every log record.
        on_progress: Called after steps, up to ten times a second, and at the end.
        cancel: Stops the run after the current step; the same call resumes from the last
            checkpoint.

    Returns:
        Path of the finished model.safetensors, for `tubelet upscale --model`.

    Raises:
        ConfigError: The network has no boundary states, or the settings do not fit together.
        InputError: There are no clips, or none is long enough.
        CheckpointError: The output folder contains another run, or the initial weights cannot be
            read.
        DivergedError: A loss or a gradient is not finite.
        Cancelled: `cancel` was cancelled.
    """
    _check_config(config)

    def build_task(clips: Sequence[CachedClip], contract: Contract) -> TrainingTask:
        task = _build_task(config, clips, contract, on_log)
        # Now that the clips fit, too: a refused run must not leave a record.
        check_or_record(config.out, _recorded_settings(config))
        return task

    return train_network(
        _as_supervised(config),
        build_task,
        notes={"training": asdict(config)},
        clips=clips,
        pan=_pans(config),
        on_log=on_log,
        on_progress=on_progress,
        cancel=cancel,
    )


def check_recorded_run(config: LRTITraining) -> None:
    """Check that the run in the output folder, if there is one, has these settings.

    Raises:
        CheckpointError: It has others, or its record is damaged.
    """
    check_record(config.out, _recorded_settings(config))


def _recorded_settings(config: LRTITraining) -> dict[str, Any]:
    """Return the settings that change the result, as JSON can represent them."""
    return {name: to_plain(getattr(config, name)) for name in _RECORDED}


def _build_task(
    config: LRTITraining,
    clips: Sequence[CachedClip],
    contract: Contract,
    on_log: Log | None,
) -> TrainingTask:
    """Build the task of a strategy."""
    settings = _crops(config)
    long_clips = _long_enough(clips, settings.frames, on_log)
    crops = Crops(long_clips, contract.scale, settings, config.loop.seed)
    loss = RestorationLoss(
        pixel=pixel_loss(config.loop),
        cleaning_weight=config.cleaning_weight,
    )
    # The crops are samples.
    if config.strategy == "plain":
        return SupervisedTask(crops, contract.temporal, loss)

    # The crops are long clips, from which samples are cut.
    samples = Samples(
        crops,
        _sampling(config, contract),
        between_frames=contract.temporal.between_frames,
    )
    task: TrainingTask = SampleTask(samples, loss)
    if config.strategy == "truncated":
        task = TruncatedTask(
            samples,
            loss,
            contract,
            long_pass=config.long_pass,
            limits=_feature_limits(config),
        )
    # Where frames are cleaned, gradients flow through SpyNet to the network that cleans them.
    if config.flow == "frozen" and not find_recipe(config.model).architecture.cleans:
        task = FrozenFlowTask(task, samples)
    return task


def _long_enough(
    clips: Sequence[CachedClip], num_frames: int, on_log: Log | None
) -> list[CachedClip]:
    """Return the clips with enough frames, and log how many there are not.

    Raises:
        InputError: No clip is long enough.
    """
    usable = [clip for clip in clips if len(clip.gt) >= num_frames]
    num_short = len(clips) - len(usable)
    if not usable:
        max_frames = max((len(clip.gt) for clip in clips), default=0)
        raise InputError(
            f"none of {len(clips)} clips has {num_frames} frames, the longest has {max_frames}; "
            "train with a smaller --clip and --length, or on longer videos"
        )
    if num_short and on_log is not None:
        note = f"{num_short} of {len(clips)} clips have fewer than {num_frames} frames: not used"
        on_log({"step": 0, "note": note})
    return usable


def _sampling(config: LRTITraining, contract: Contract) -> Sampling:
    return Sampling(
        clip=config.clip,
        length=config.length,
        samples=config.samples,
        starts=config.starts,
        multiple=contract.frame_multiple,
        seed=config.loop.seed,
    )


def _crops(config: LRTITraining) -> CropSettings:
    """Return the size of the crops: of a sample for "plain", otherwise of a long clip."""
    num_frames = config.length if config.strategy == "plain" else config.clip
    return CropSettings(
        batch=config.batch,
        frames=_gt_frames(config, num_frames),
        patch_px=config.patch_px,
        candidates=1,
        direction="forward",
    )


def _pans(config: LRTITraining) -> PanSettings:
    """Return the settings of clips of images; they are the same for all strategies."""
    num_frames = max(config.clip, config.length)
    return PanSettings(
        frames=_gt_frames(config, num_frames),
        max_px=config.pan_max_px,
        speed="whole",
    )


def _gt_frames(config: LRTITraining, num_frames: int) -> int:
    """Return how many frames of gt belong to a number of input frames.

    A space-time network also restores the frames in between.
    """
    contract = find_recipe(config.model).architecture.contract(config.network)
    assert contract is not None
    return (1 + contract.temporal.between_frames) * (num_frames - 1) + 1


def _feature_limits(config: LRTITraining) -> FeatureLimits:
    is_cpu = torch.device(config.loop.device).type == "cpu"
    # On a CPU, the next place after this limit is the file; on a GPU, it is main memory.
    mib = config.feature_mib
    if mib is None:
        mib = 0 if is_cpu else _GPU_FEATURE_MIB
    if is_cpu:
        return FeatureLimits(host_bytes=mib * 2**20)
    return FeatureLimits(device_bytes=mib * 2**20)


def _as_supervised(config: LRTITraining) -> SupervisedConfig:
    """Return the settings that this training shares with supervised training."""
    return SupervisedConfig(
        model=config.model,
        network=config.network,
        data=config.data,
        out=config.out,
        cache=config.cache,
        evaluate=config.evaluate,
        evaluate_frames=config.evaluate_frames,
        preset=config.degradation,
        variants=config.variants,
        init=config.init,
        spynet=config.spynet,
        cleaning_weight=config.cleaning_weight,
        crops=_crops(config),
        loop=_loop(config),
    )


def _loop(config: LRTITraining) -> LoopSettings:
    """Return the settings of the loop, with a SpyNet that stays frozen if the settings say so.

    Raises:
        ConfigError: The network has no SpyNet to freeze.
    """
    if config.flow == "trained":
        return config.loop
    architecture = find_recipe(config.model).architecture
    with torch.device("meta"):
        network = architecture.build(config.network)
    names = spynet_names(network)
    require(bool(names), f"flow=frozen does not fit {architecture.name}, which has no SpyNet")
    require(
        config.spynet != "random" or config.init is not None,
        "flow=frozen needs trained weights: leave out --spynet random, or give --init",
    )
    # The parameter groups of the optimizer freeze modules for a number of steps: here, for all.
    optimizer = replace(
        config.loop.optimizer,
        low_lr_modules=names,
        freeze_steps=config.loop.steps,
    )
    return replace(config.loop, optimizer=optimizer)


def _check_config(config: LRTITraining) -> Contract:
    """Check that network, samples and data fit together, and return the network's contract.

    Raises:
        ConfigError: They do not.
    """
    architecture = find_recipe(config.model).architecture
    contract = architecture.contract(config.network)
    if contract is None or not contract.edge_states.sweeps:
        require(
            not isinstance(config.network, MIAVSRConfig),
            "the masks of MIAVSR depend on more than its states; train it without them: "
            "--network.no-use-mask",
        )
        raise ConfigError(
            f"{architecture.name} has no boundary states that a sample could continue from; use "
            f"`tubelet train supervised`, or one of {', '.join(recurrent_names())}"
        )
    if config.strategy != "plain":
        # Checks the lengths of samples and clips.
        _sampling(config, contract)
    if isinstance(config.network, RealBasicVSRConfig):
        threshold = config.network.dynamic_refine_thres
        require(
            threshold >= _CLEANS_ONCE,
            f"network.dynamic_refine_thres={threshold:g} cleans a sample and its long clip "
            f"differently often; train with {_CLEANS_ONCE}, which cleans once",
        )
    return check_config(architecture, _as_supervised(config))
