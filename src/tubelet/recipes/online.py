"""Train `FastVSR`, the embedded online model, from folders of clips and images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tubelet.data import Crops, CropSettings, prepare_clips, read_clip
from tubelet.degrade import Preset, degrade
from tubelet.errors import ConfigError, InputError
from tubelet.losses import luma
from tubelet.metrics import psnr
from tubelet.models.fast import FastConfig, FastVSR
from tubelet.ops import resample
from tubelet.recipes.start import begin_with
from tubelet.training import Criterion, LoopSettings, pixel_loss, train
from tubelet.zoo.checkpoint import save_checkpoint

__all__ = ["OnlineConfig", "load_pairs", "main", "score_clips"]


@dataclass(frozen=True, slots=True, kw_only=True)
class OnlineConfig:
    """What to train, on what, and where to put it."""

    data: tuple[Path, ...]
    """Folders of videos, of images, or of folders of frames."""
    out: Path = Path("runs/online")
    """Folder of the checkpoint, the log and the finished model.safetensors."""
    cache: Path = Path("cache")
    """Folder of the decoded clips."""
    evaluate: Path | None = None
    """Folder of folders of frames, never trained on, to score at every checkpoint."""
    evaluate_frames: int = 12
    """Frames of each of them."""
    preset: Preset = "bi"
    """Degradation: bi and bd for benchmarks, real for people's videos."""
    variants: int = 3
    """Degraded versions of each clip, for a random preset."""
    stage: Literal["triplets", "clips"] = "clips"
    """clips trains the network as it runs, its memory included. triplets trains single steps without memory, on a
    frame and its two neighbours (crops.frames is 3): far more scenes for the same work, and a good `init` for clips."""
    harm_weight: float = 0.0
    """Weight, for `real`, of the squared error by which a sample comes out worse than Lanczos leaves it, on top of the
    loss: whether a picture is soft or compressed is often in doubt, and a person minds harm more than a missed gain."""
    init: Path | None = None
    """Begin with the weights of this checkpoint; parts of another shape begin anew."""
    model: FastConfig = field(default_factory=FastConfig)
    """Shape of the network."""
    crops: CropSettings = field(default_factory=CropSettings)
    """Size of the samples."""
    loop: LoopSettings = field(default_factory=LoopSettings)
    """How long and how fast."""

    def __post_init__(self) -> None:
        if self.harm_weight < 0:
            raise ConfigError(f"harm_weight={self.harm_weight} must not be negative")
        if self.stage == "triplets" and self.crops.frames < 3:
            raise ConfigError(f"crops.frames={self.crops.frames} must be at least 3 for stage triplets")


class _Triplets(nn.Module):
    """Restores every frame of a clip but the first and last by a single step without memory."""

    def __init__(self, model: FastVSR) -> None:
        super().__init__()
        self.model = model

    def forward(self, lq: Tensor) -> Tensor:
        """Restore the inner frames: (B, T, 3, H, W) → (B, T - 2, 3, sH, sW)."""
        ahead = self.model.config.lookahead
        steps = [self.model.step(lq[:, t : t + 1 + ahead], (lq[:, t - 1],)) for t in range(1, lq.shape[1] - 1)]
        return torch.stack([sr for sr, _ in steps], 1)


def main(config: OnlineConfig, *, on_log: Callable[[dict[str, Any]], None] | None = None) -> Path:
    """Train to the end, or resume; write the collapsed network.

    Args:
        config: see there.
        on_log: called with every log line.

    Returns:
        path of the finished model.safetensors, which `tubelet upscale --model` takes.

    Raises:
        InputError: no clips.
        CheckpointError: the output folder holds another run.
    """
    torch.manual_seed(config.loop.seed)
    model = FastVSR(config.model)
    if config.init is not None:
        begin_with(model, config.init)
    scale = config.model.scale
    clips = list(prepare_clips(config.data, config.cache, preset=config.preset, scale=scale, variants=config.variants))
    crops = Crops(clips, scale, config.crops, config.loop.seed)
    if config.stage == "triplets":
        model.forget()  # what it does not train would disturb what it does
    trained = _Triplets(model) if config.stage == "triplets" else model

    def batches(step: int) -> tuple[Tensor, Tensor]:
        lq, gt = crops.batch(step)
        return (lq, gt[:, 1:-1]) if config.stage == "triplets" else (lq, gt)

    average = _plain(
        train(
            trained,
            batches,
            config.loop,
            config.out,
            criterion=_criterion(config),
            evaluate=_scorer(config),
            on_log=on_log,
        )
    )
    notes = {"training": asdict(config)}
    if config.model.expansion:
        save_checkpoint(config.out / "wide.safetensors", average, notes)
    path = config.out / "model.safetensors"
    save_checkpoint(path, average.collapse(), notes)
    return path


def _plain(network: nn.Module) -> FastVSR:
    model = network.model if isinstance(network, _Triplets) else network
    assert isinstance(model, FastVSR)
    return model


def _criterion(config: OnlineConfig) -> Criterion:
    loss = pixel_loss(config.loop)
    if not config.harm_weight:
        return loss

    def with_harm(sr: Tensor, gt: Tensor, lq: Tensor) -> Tensor:
        inner = lq[:, 1:-1] if config.stage == "triplets" else lq
        plain = resample(luma(inner), (gt.shape[-2], gt.shape[-1]), kernel="lanczos3")
        worse = (luma(sr - gt).square() - (plain - luma(gt)).square()).mean((1, 2, 3, 4)).relu()  # (B,)
        return loss(sr, gt, lq) + config.harm_weight * worse.mean()

    return with_harm


def _scorer(config: OnlineConfig) -> Callable[[nn.Module], dict[str, float]] | None:
    if config.evaluate is None:
        return None
    pairs = load_pairs(config.evaluate, config.preset, config.model.scale, config.evaluate_frames)
    return lambda network: score_clips(_plain(network), pairs)


def load_pairs(root: Path, preset: Preset, scale: int, frames: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Read the first frames of every folder, and degrade them: {name: (lq, gt)}, each (T, 3, H, W).

    Raises:
        InputError: there is no such folder, or no folder within.
    """
    if not root.is_dir():
        raise InputError(f"no such folder of clips to evaluate: {root}")
    pairs: dict[str, tuple[Tensor, Tensor]] = {}
    for seed, folder in enumerate(sorted(p for p in root.iterdir() if p.is_dir())):
        gt = torch.from_numpy(read_clip(folder, max_frames=frames, size_multiple=scale)).float() / 255
        pairs[folder.name] = (degrade(gt, preset, scale=scale, seed=seed), gt)
    if not pairs:
        raise InputError(f"no folders of frames in {root}")
    return pairs


@torch.inference_mode()
def score_clips(network: Callable[[Tensor], Tensor], pairs: dict[str, tuple[Tensor, Tensor]]) -> dict[str, float]:
    """Score a network on clips: mean Y-PSNR of each, dB, and of all."""
    scores: dict[str, float] = {}
    for name, (lq, gt) in pairs.items():
        sr = network(lq[None])[0]
        scores[f"psnr_y/{name}"] = _mean([psnr(a, b).item() for a, b in zip(sr, gt, strict=True)])
    scores["psnr_y"] = _mean(list(scores.values()))
    return scores


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
