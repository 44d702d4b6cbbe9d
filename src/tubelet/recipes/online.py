"""Train `FastVSR`, the recurrent network of the models in the package, on folders of clips."""

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
    """Train a FastVSR, or resume its training, and save its collapsed form.

    Args:
        config: Configuration of the run.
        on_log: Called with every log record.
        on_progress: Called after steps, up to ten times a second, and at the end.
        cancel: Stops the run after the current step; the same call resumes from the last
            checkpoint.

    Returns:
        Path of the finished model.safetensors, for `tubelet upscale --model`.

    Raises:
        InputError: There are no clips.
        CheckpointError: The output folder contains another run.
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
        # Single steps do not train the recurrent path, which would disturb the trained layers.
        model.zero_recurrent_path()
    average = train(
        model,
        _OnlineTask(config, crops),
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
        # Only the expanded form can be trained further.
        save_checkpoint(config.out / "wide.safetensors", average, notes)
    path = config.out / "model.safetensors"
    save_checkpoint(path, average.collapse(), notes)
    return path


class _OnlineTask:
    """Restore clips with recurrence, or single frames without it."""

    def __init__(self, config: OnlineConfig, crops: Crops) -> None:
        self._crops = crops
        self._harm_weight = config.harm_weight
        self._pixel_loss = pixel_loss(config.loop)
        self._is_triplets = config.stage == "triplets"

    def batch(self, step: int) -> Batch:
        """Crop lq and gt (B, T, 3, H, W); gt contains only the frames that are restored."""
        lq, gt = self._crops.batch(step)
        if self._is_triplets:
            # The first and the last frame are only neighbors.
            gt = gt[:, 1:-1]
        return {"lq": lq, "gt": gt}

    def losses(self, model: nn.Module, batch: Batch, step: int) -> Iterator[Losses]:
        """Compare with gt; `harm` adds the error beyond that of Lanczos upscaling."""
        del step
        assert isinstance(model, FastVSR)
        lq = batch["lq"]
        gt = batch["gt"]
        if self._is_triplets:
            sr = _restore_inner_frames(model, lq)
            lq = lq[:, 1:-1]
        else:
            sr = model(lq)
        losses = {"pixel": self._pixel_loss(sr, gt)}
        if self._harm_weight:
            losses["harm"] = self._harm_weight * _harm(sr.float(), gt, lq)
        yield losses


def _restore_inner_frames(model: FastVSR, lq: Tensor) -> Tensor:
    """Restore all frames but the first and the last, each by a single step without recurrence.

    Args:
        model: Network.
        lq: (B, T, 3, H, W).

    Returns:
        (B, T - 2, 3, sH, sW).
    """
    lookahead = model.config.lookahead
    frames: list[Tensor] = []
    for t in range(1, lq.shape[1] - 1):
        window = lq[:, t : t + 1 + lookahead]
        # A state of only the previous frame: no hidden features.
        state = (lq[:, t - 1],)
        sr, _ = model.step(window, state)
        frames.append(sr)
    return torch.stack(frames, 1)


def _harm(sr: Tensor, gt: Tensor, lq: Tensor) -> Tensor:
    """Compute the squared luma error of samples beyond the error of Lanczos upscaling.

    Args:
        sr: Restored frames, (B, T, 3, sH, sW).
        gt: Target frames of the same shape.
        lq: Input of the same frames, (B, T, 3, H, W).

    Returns:
        Scalar: the mean over the batch, where samples that are better than Lanczos count as 0.
    """
    # The reference must not lose precision to autocast.
    with torch.autocast(sr.device.type, enabled=False):
        height, width = gt.shape[-2:]
        lanczos = resample(luma(lq), (height, width), kernel="lanczos3")
    error = luma(sr - gt).square()
    lanczos_error = (lanczos - luma(gt)).square()
    # (B, T, 1, sH, sW) → (B,)
    excess = (error - lanczos_error).mean((1, 2, 3, 4)).relu()
    return excess.mean()


def _scorer(config: OnlineConfig) -> Callable[[nn.Module], dict[str, float]] | None:
    if config.evaluate is None:
        return None
    pairs = load_pairs(config.evaluate, config.preset, config.model.scale, config.evaluate_frames)
    return lambda network: score_clips(network, pairs)


def load_pairs(
    root: Path, preset: Preset, scale: int, frames: int
) -> dict[str, tuple[Tensor, Tensor]]:
    """Read the first frames of every folder of frames, and degrade them.

    Args:
        root: Folder of folders of frames.
        preset: Degradation.
        scale: Factor between lq and gt.
        frames: Maximum number of frames of each clip.

    Returns:
        {name of the folder: (lq, gt)}, both (T, 3, H, W) in [0, 1].

    Raises:
        InputError: The folder does not exist or contains no folders.
    """
    if not root.is_dir():
        raise InputError(f"no such folder of clips to evaluate: {root}")
    folders = sorted(path for path in root.iterdir() if path.is_dir())
    pairs: dict[str, tuple[Tensor, Tensor]] = {}
    for seed, folder in enumerate(folders):
        pixels = read_clip(folder, max_frames=frames, size_multiple=scale)
        gt = torch.from_numpy(pixels).float() / 255
        lq = degrade(gt, preset, scale=scale, seed=seed)
        pairs[folder.name] = (lq, gt)
    if not pairs:
        raise InputError(f"no folders of frames in {root}")
    return pairs


@torch.inference_mode()
def score_clips(
    network: Callable[[Tensor], Tensor], pairs: dict[str, tuple[Tensor, Tensor]]
) -> dict[str, float]:
    """Compute the mean Y-PSNR of a network on each clip, and the mean over clips, in dB.

    Args:
        network: Maps lq (1, T, 3, H, W) to sr (1, T, 3, sH, sW).
        pairs: Clips from `load_pairs`.

    Returns:
        {"psnr_y/name of the clip": …, "psnr_y": mean over the clips}.
    """
    scores: dict[str, float] = {}
    for name, (lq, gt) in pairs.items():
        sr = network(lq[None])[0]
        frame_scores: list[float] = []
        for sr_frame, gt_frame in zip(sr, gt, strict=True):
            frame_scores.append(psnr(sr_frame, gt_frame).item())
        scores[f"psnr_y/{name}"] = fmean(frame_scores)
    scores["psnr_y"] = fmean(scores.values())
    return scores
