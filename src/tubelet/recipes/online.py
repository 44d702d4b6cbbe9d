"""Train `FastVSR`, the embedded online model, from folders of clips and images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Literal

import torch
from torch import Tensor, nn

from tubelet.data import Crops, CropSettings, prepare_clips, read_clip
from tubelet.degrade import Preset, degrade
from tubelet.errors import ConfigError, InputError
from tubelet.losses import luma
from tubelet.metrics import psnr
from tubelet.models.fast import FastConfig, FastVSR
from tubelet.ops import resample
from tubelet.progress import CancelToken, OnProgress
from tubelet.recipes.initial_weights import copy_matching_weights
from tubelet.training import Batch, LoopSettings, Losses, pixel_loss, train
from tubelet.training.run_log import Log
from tubelet.zoo.checkpoint import save_checkpoint

__all__ = ["OnlineConfig", "load_pairs", "main", "score_clips"]


@dataclass(frozen=True, slots=True, kw_only=True)
class OnlineConfig:
    """Train FastVSR, the compact recurrent network of the embedded models."""

    data: tuple[Path, ...]
    """Folders of videos, of images, or of folders of frames."""
    out: Path = Path("runs/online")
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
    stage: Literal["triplets", "clips"] = "clips"
    """clips trains the recurrent network on clips, as it runs later. triplets trains single steps
    without recurrence, on a frame and its two neighbors (crops.frames must be 3): many more
    scenes in the same time, and a good `init` for clips."""
    harm_weight: float = 0.0
    """Weight of an additional loss, for `real`: the squared error by which a sample is worse than
    in the Lanczos-upscaled input. The sharpness of an input is often ambiguous, and viewers mind
    a damaged image more than a missed gain."""
    init: Path | None = None
    """Start from the weights of this checkpoint; tensors of another shape start from random
    weights."""
    model: FastConfig = field(default_factory=FastConfig)
    """Configuration of the network."""
    crops: CropSettings = field(default_factory=CropSettings)
    """Size of the training samples."""
    loop: LoopSettings = field(default_factory=LoopSettings)
    """Steps, learning rate, loss and device."""

    def __post_init__(self) -> None:
        if self.harm_weight < 0:
            raise ConfigError(f"harm_weight={self.harm_weight} must not be negative")
        if self.stage == "triplets" and self.crops.frames < 3:
            raise ConfigError(
                f"crops.frames={self.crops.frames} must be at least 3 for stage triplets"
            )


def main(
    config: OnlineConfig,
    *,
    on_log: Log | None = None,
    on_progress: OnProgress | None = None,
    cancel: CancelToken | None = None,
) -> Path:
    """Train to the end, or resume; write the collapsed network.

    Args:
        config: see there.
        on_log: called with every log line.
        on_progress: called after steps, at most ten times a second, and at the end.
        cancel: stops the run after the step that it is at; the same call goes on from its last
            checkpoint.

    Returns:
        path of the finished model.safetensors, which `tubelet upscale --model` takes.

    Raises:
        InputError: no clips.
        CheckpointError: the output folder holds another run.
        Cancelled: `cancel` was cancelled.
    """
    torch.manual_seed(config.loop.seed)
    model = FastVSR(config.model)
    if config.init is not None:
        copy_matching_weights(model, config.init)
    scale = config.model.scale
    clips = prepare_clips(
        config.data,
        config.cache,
        preset=config.preset,
        scale=scale,
        variants=config.variants,
        cancel=cancel,
    )
    crops = Crops(list(clips), scale, config.crops, config.loop.seed)
    if config.stage == "triplets":
        model.zero_recurrent_path()  # what it does not train would disturb what it does
    task = _OnlineTask(config, crops)
    average = train(
        model,
        task,
        config.loop,
        config.out,
        evaluate=_scorer(config),
        on_log=on_log,
        on_progress=on_progress,
        cancel=cancel,
    )
    assert isinstance(average, FastVSR)
    notes = {"training": asdict(config)}
    if config.model.expansion:
        save_checkpoint(config.out / "wide.safetensors", average, notes)
    path = config.out / "model.safetensors"
    save_checkpoint(path, average.collapse(), notes)
    return path


class _OnlineTask:
    """Restore clips as the network runs, or single steps of it without memory."""

    def __init__(self, config: OnlineConfig, crops: Crops) -> None:
        self._crops = crops
        self._harm_weight = config.harm_weight
        self._pixel_loss = pixel_loss(config.loop)
        self._is_triplets = config.stage == "triplets"

    def batch(self, step: int) -> Batch:
        """Cut clips: lq and gt (B, T, 3, H, W); gt has the frames that are restored."""
        lq, gt = self._crops.batch(step)
        return {"lq": lq, "gt": gt[:, 1:-1] if self._is_triplets else gt}

    def losses(self, model: nn.Module, batch: Batch, step: int) -> Iterator[Losses]:
        """Compare with gt, and with what Lanczos would make of lq."""
        del step
        assert isinstance(model, FastVSR)
        lq = batch["lq"]
        gt = batch["gt"]
        if self._is_triplets:
            sr = _restore_inner(model, lq)
            lq = lq[:, 1:-1]
        else:
            sr = model(lq)
        losses = {"pixel": self._pixel_loss(sr, gt)}
        if self._harm_weight:
            losses["harm"] = self._harm_weight * _harm(sr.float(), gt, lq)
        yield losses


def _restore_inner(model: FastVSR, lq: Tensor) -> Tensor:
    """Restore the inner frames, each by a single step without memory.

    Args:
        model: the network.
        lq: (B, T, 3, H, W).

    Returns:
        (B, T - 2, 3, sH, sW): all but the first and the last frame.
    """
    ahead = model.config.lookahead
    frames: list[Tensor] = []
    for t in range(1, lq.shape[1] - 1):
        sr, _ = model.step(lq[:, t : t + 1 + ahead], (lq[:, t - 1],))
        frames.append(sr)
    return torch.stack(frames, 1)


def _harm(sr: Tensor, gt: Tensor, lq: Tensor) -> Tensor:
    """Compute by how much samples come out worse than Lanczos would leave them.

    Args:
        sr: (B, T, 3, sH, sW), restored.
        gt: the same shape.
        lq: (B, T, 3, H, W), the same frames.

    Returns:
        scalar: the excess of the squared error of luma, 0 for samples without one, on average.
    """
    with torch.autocast(sr.device.type, enabled=False):
        plain = resample(luma(lq), (gt.shape[-2], gt.shape[-1]), kernel="lanczos3")
    error = luma(sr - gt).square()
    plain_error = (plain - luma(gt)).square()
    worse = (error - plain_error).mean((1, 2, 3, 4)).relu()  # (B,)
    return worse.mean()


def _scorer(config: OnlineConfig) -> Callable[[nn.Module], dict[str, float]] | None:
    if config.evaluate is None:
        return None
    pairs = load_pairs(config.evaluate, config.preset, config.model.scale, config.evaluate_frames)
    return lambda network: score_clips(network, pairs)


def load_pairs(
    root: Path, preset: Preset, scale: int, frames: int
) -> dict[str, tuple[Tensor, Tensor]]:
    """Read the first frames of every folder, and degrade them: {name: (lq, gt)}, each (T, 3, H, W).

    Raises:
        InputError: there is no such folder, or no folder within.
    """
    if not root.is_dir():
        raise InputError(f"no such folder of clips to evaluate: {root}")
    pairs: dict[str, tuple[Tensor, Tensor]] = {}
    for seed, folder in enumerate(sorted(p for p in root.iterdir() if p.is_dir())):
        gt = (
            torch.from_numpy(read_clip(folder, max_frames=frames, size_multiple=scale)).float()
            / 255
        )
        pairs[folder.name] = (degrade(gt, preset, scale=scale, seed=seed), gt)
    if not pairs:
        raise InputError(f"no folders of frames in {root}")
    return pairs


@torch.inference_mode()
def score_clips(
    network: Callable[[Tensor], Tensor], pairs: dict[str, tuple[Tensor, Tensor]]
) -> dict[str, float]:
    """Score a network on clips: mean Y-PSNR of each, dB, and of all."""
    scores: dict[str, float] = {}
    for name, (lq, gt) in pairs.items():
        sr = network(lq[None])[0]
        frames = [psnr(a, b).item() for a, b in zip(sr, gt, strict=True)]
        scores[f"psnr_y/{name}"] = fmean(frames)
    scores["psnr_y"] = fmean(scores.values())
    return scores
