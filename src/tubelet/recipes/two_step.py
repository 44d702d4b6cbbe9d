"""Train the second step of two-step, which restores the results of a frozen image model.

    videos ─ 8:1:1 ─ crops of three frames ─┬ middle ─ image model, once, kept in a file ─ hq ┐
                                            ├ its neighbors ─────────────────── left, right ─┴ restorer ─ sr
                                            └ gt of the middle ─────────────────────────── loss(sr, gt)

What is trained on and what scores come from the videos themselves: nobody names held-out ones.

Source: two-step video super-resolution, Sec. III-C (losses) and IV-A (data, optimizer).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tubelet.data import prepare_clips
from tubelet.degrade import Preset
from tubelet.errors import CheckpointError, ConfigError
from tubelet.files import atomic_write
from tubelet.layers.inference import use_backend
from tubelet.losses import encoder_distance, l1, l1_and_ssim, mse
from tubelet.metrics import psnr
from tubelet.models.two_step import ARCHITECTURE, TwoStepConfig, TwoStepRestorer, needed_image_model
from tubelet.progress import CancelToken, OnProgress
from tubelet.recipes.two_step_data import (
    HeldOutCrops,
    Samples,
    TrainingCrops,
    TripletSettings,
    frozen_outputs,
    split_videos,
    usable_clips,
)
from tubelet.training import (
    Batch,
    LoopSettings,
    Losses,
    OptimizerSettings,
    ScheduleSettings,
    check_same_run,
    result_settings,
    train,
)
from tubelet.training.run_log import Log
from tubelet.zoo.bases import fingerprint, open_base, refer_to
from tubelet.zoo.checkpoint import save_checkpoint
from tubelet.zoo.opened_model import OpenedModel
from tubelet.zoo.spec import count_parameters

__all__ = [
    "PRESETS",
    "TwoStepLoss",
    "TwoStepPreset",
    "TwoStepTraining",
    "configure",
    "describe",
    "main",
    "read_scores",
]

TwoStepLoss = Literal["mse", "mae", "mae+ssim", "encoder"]
TwoStepPreset = Literal["paper", "small"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TwoStepTraining:
    """Train the two-step network, which restores the results of a frozen image model."""

    image_model: str = ""
    """Frozen image model of the first step: id or checkpoint of a single-image model of the same
    scale."""
    network: TwoStepConfig = field(default_factory=TwoStepConfig)
    """Configuration of the second step."""
    data: tuple[Path, ...] = ()
    """Folders of videos, of images, or of folders of frames; a tenth of the videos is used for
    validation and a tenth for testing."""
    out: Path = Path("runs/two-step")
    """Folder of the checkpoint, the log, the scores and the finished model.safetensors."""
    cache: Path = Path("cache")
    """Folder of the decoded clips; reused by later runs."""
    frozen: Path | None = None
    """Folder of the image model's results on the crops, which runs can share. Default: frozen in
    `out`."""
    degradation: Preset = "bi"
    """Degradation of the low-quality frames."""
    loss: TwoStepLoss = "mae"
    """mse; mae; mae+ssim: alpha · MAE + (1 - alpha) · (1 - SSIM), Eq. 8; encoder: MAE plus a term
    that pulls the features of the neighbors toward those of the frame, Eq. 11."""
    alpha: float | None = None
    """Weight in the loss: for mae+ssim, of the MAE, 0 to 1; for encoder, of the right neighbor, 0
    to 0.1. Default: the best values of the paper, 0.8 and 0.02."""
    batch: int = 64
    """Crops per step."""
    epochs: int | None = None
    """Passes over all crops; replaces `loop.steps`."""
    crops: TripletSettings = field(default_factory=TripletSettings)
    """Number and size of the training crops."""
    score_px: int = 64
    """Side of the central region of a held-out frame that is scored, low-quality pixels."""
    score_frames: int = 5
    """Frames of each held-out video that are scored."""
    loop: LoopSettings = field(default_factory=LoopSettings)
    """Steps, learning rate and device; the loss settings in it are not used."""

    def __post_init__(self) -> None:
        most = {"mae+ssim": 1.0, "encoder": 0.1}.get(self.loss, math.inf)
        if self.alpha is not None and not 0 <= self.alpha <= most:
            raise ConfigError(
                f"alpha={self.alpha} is out of range: 0 to {most:g} for loss {self.loss}"
            )
        if min(self.batch, self.score_px, self.score_frames, self.epochs or 1) < 1:
            raise ConfigError("batch, epochs, score_px and score_frames must be at least 1")
        unused = LoopSettings()
        for name in ("loss", "loss_on", "loss_reduction", "loss_eps"):
            if getattr(self.loop, name) != getattr(unused, name):
                raise ConfigError(
                    f"loop.{name}={getattr(self.loop, name)} is not used by two-step; set loss and alpha"
                )


_BEST_ALPHA = {"mae+ssim": 0.8, "encoder": 0.02}
"""Tables II and III; other losses have none."""


def _alpha(config: TwoStepTraining) -> float:
    return _BEST_ALPHA.get(config.loss, 0.0) if config.alpha is None else config.alpha


_CONSTANT = ScheduleSettings(kind="steps")
PRESETS: dict[TwoStepPreset, TwoStepTraining] = {
    # Sec. IV-A: Adam 1e-4, β 0.9 and 0.999, 10 epochs, batch 64, 64×64, nothing else; no average of the weights.
    "paper": TwoStepTraining(
        network=TwoStepConfig(residual=False),
        epochs=10,
        loop=LoopSettings(
            lr=1e-4,
            warmup_steps=0,
            schedule=_CONSTANT,
            optimizer=OptimizerSettings(betas=(0.9, 0.999)),
            grad_clip=math.inf,
            ema=0.0,
        ),
    ),
    # About ten minutes on one core of a laptop.
    "small": TwoStepTraining(
        network=TwoStepConfig(channels=8, norm="none"),
        batch=8,
        crops=TripletSettings(patch_px=32, crops_per_triplet=4),
        # Three times this rate, and rectifiers die.
        loop=LoopSettings(steps=6000, lr=2e-3, ema=0.99, warmup_steps=100, save_every=500),
    ),
}


def configure(
    preset: TwoStepPreset, *, scale: Literal[2, 4] = 2, **changes: Any
) -> TwoStepTraining:
    """Make the configuration of a preset.

    Args:
        preset: "paper", or "small" for a network and a run that a laptop does in minutes.
        scale: of the image model.
        changes: fields of `TwoStepTraining` that differ.
    """
    default = PRESETS[preset]
    return replace(default, **({"network": replace(default.network, scale=scale)} | changes))


def describe(config: TwoStepTraining) -> list[str]:
    """Say, a line each, what will be trained, and how."""
    with torch.device("meta"):
        size = count_parameters(TwoStepRestorer(config.network)) / 1e6
    length = f"{config.loop.steps} steps" if config.epochs is None else f"{config.epochs} epochs"
    alpha = f", alpha {_alpha(config):g}" if config.loss in _BEST_ALPHA else ""
    return [
        f"two-step x{config.network.scale} over {config.image_model}: {size:.2f} M parameters; {length} of "
        f"{config.batch} crops, {config.crops.patch_px} px; loss {config.loss}{alpha}",
    ]


def main(
    config: TwoStepTraining,
    *,
    on_log: Log | None = None,
    on_progress: OnProgress | None = None,
    cancel: CancelToken | None = None,
) -> Path:
    """Train to the end, or resume; write the trained networks and the scores.

    A finished run stays as it is.

    Args:
        config: see there; `configure` makes one.
        on_log: called with every log line.
        on_progress: called after steps, at most ten times a second, and at the end.
        cancel: stops the run after the step that it is at; the same call goes on from its last
            checkpoint.

    Returns:
        path of the finished model.safetensors, which tells its image model; `scores.json` lies
        beside it.

    Raises:
        ConfigError: no image model or no data is named, or the sizes of the crops do not fit.
        RequestError: the image model is unknown, is none of single frames, or is of another scale.
        InputError: no clips, or too few.
        CheckpointError: the output folder holds another run.
        Cancelled: `cancel` was cancelled.
    """
    _check(config)
    scale = config.network.scale
    loop = config.loop
    image_model = open_base(config.image_model, needed_image_model(config.network))
    clips = prepare_clips(
        config.data, config.cache, preset=config.degradation, scale=scale, cancel=cancel
    )
    videos = split_videos(usable_clips(list(clips), max(config.crops.patch_px, config.score_px)))
    crops = TrainingCrops(videos.training, scale, config.crops)
    held_out = [
        HeldOutCrops(part, scale, size_px=config.score_px, frames=config.score_frames)
        for part in (videos.validation, videos.test)
    ]
    path = config.out / "model.safetensors"
    was_begun = _check_or_record_run(config, [crops, *held_out], image_model)
    if was_begun and (config.out / _SCORES).is_file() and path.is_file():
        return path
    hq = _enlarge(config, crops, image_model, cancel)
    validation, test = (_Validator(config, samples, image_model, cancel) for samples in held_out)
    if config.epochs is not None:
        loop = replace(loop, steps=config.epochs * -(-len(crops) // config.batch))
    torch.manual_seed(loop.seed)
    average = train(
        TwoStepRestorer(config.network).to(memory_format=torch.channels_last),
        _TwoStepTask(config, crops, hq),
        loop,
        config.out,
        evaluate=validation,
        on_log=on_log,
        on_progress=on_progress,
        cancel=cancel,
    )
    scores = {"validation": validation(average), "test": test(average)}
    notes = {"training": asdict(config), "scores": scores}
    save_checkpoint(path, average, notes, base=refer_to(image_model, config.out))
    _write_json(config.out / _SCORES, scores)
    return path


_SCORES = "scores.json"
_RUN = "run.json"


def read_scores(out: Path) -> dict[str, dict[str, float]]:
    """Read the scores of the finished run in a folder.

    Returns:
        {"validation" | "test": {"psnr_y": …, "psnr_y/frozen": …, "gain": …}}, dB.
    """
    return json.loads((out / _SCORES).read_text(encoding="utf-8"))


def _check(config: TwoStepTraining) -> None:
    """Check what can be checked before any clip is decoded.

    Raises:
        ConfigError: it cannot be.
    """
    if not config.image_model:
        raise ConfigError(
            "which image model? name one of single frames: --image-model ID_OR_CHECKPOINT"
        )
    if not config.data:
        raise ConfigError("no data to train on; name folders of clips: --data FOLDER")
    contract = ARCHITECTURE.contract(config.network)
    assert contract is not None
    for name, size_px in (("crops.patch_px", config.crops.patch_px), ("score_px", config.score_px)):
        if size_px % contract.size_multiple:
            raise ConfigError(
                f"{name}={size_px} does not fit two-step, which takes multiples of 16; 32 or 64 would do"
            )


def _plan(
    config: TwoStepTraining, samples: Sequence[Samples], image_model: OpenedModel
) -> dict[str, Any]:
    """List all that the network and its scores depend on; of the image model, hash and name."""
    names = ("degradation", "loss", "batch", "epochs", "score_px", "score_frames")
    plan = {name: getattr(config, name) for name in names} | {"alpha": _alpha(config)}
    plan |= {"network": asdict(config.network), "crops": asdict(config.crops)}
    plan |= {f"loop.{name}": value for name, value in result_settings(config.loop).items()}
    plan |= {"clips": [part.describe()["content"][:12] for part in samples]}
    plan |= {"image_model": [fingerprint(image_model), image_model.name]}
    return json.loads(json.dumps(plan))  # as it is read back


def _check_or_record_run(
    config: TwoStepTraining, samples: Sequence[Samples], image_model: OpenedModel
) -> bool:
    """Record the settings of this run in its folder, or check those that are there.

    Returns:
        whether some were there.

    Raises:
        CheckpointError: the folder holds another run.
    """
    path = config.out / _RUN
    settings = _plan(config, samples, image_model)
    if not path.is_file():
        config.out.mkdir(parents=True, exist_ok=True)
        _write_json(path, settings)
        return False
    recorded_hash, recorded_name, recorded = _read_run(path)
    current_hash, _ = settings.pop("image_model")
    if recorded_hash != current_hash:
        raise CheckpointError(
            f"{config.out} is of a run over {recorded_name}, not {image_model.name}, or its weights "
            "are others now; name another output folder"
        )
    check_same_run(config.out, recorded, settings)
    return True


def _read_run(path: Path) -> tuple[str, str, dict[str, Any]]:
    """Read the settings of a recorded run: hash and name of its image model, and all others.

    Raises:
        CheckpointError: the file is damaged.
    """
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        model_hash, name = settings.pop("image_model")
    except (ValueError, LookupError, TypeError, AttributeError):
        raise CheckpointError(f"{path} is damaged; name another output folder") from None
    return model_hash, name, settings


def _write_json(path: Path, value: object) -> None:
    with atomic_write(path) as part:
        part.write_text(json.dumps(value, indent=1), encoding="utf-8")


def _enlarge(
    config: TwoStepTraining, samples: Samples, image_model: OpenedModel, cancel: CancelToken | None
) -> NDArray[np.uint8]:
    folder = config.frozen or config.out / "frozen"
    return frozen_outputs(samples, image_model, folder, device=config.loop.device, cancel=cancel)


class _TwoStepTask:
    """Restore what the image model made of crops: all in a random order, then in another one.

    Args:
        config: batch, loss and seed.
        crops: what there is.
        hq: (N, 3, sp, sp) uint8, what the image model made of them.
    """

    def __init__(self, config: TwoStepTraining, crops: Samples, hq: NDArray[np.uint8]) -> None:
        self._crops = crops
        self._hq = hq
        self._batch_size = config.batch
        self._seed = config.loop.seed
        self._loss = config.loss
        self._alpha = _alpha(config)
        self._order = lru_cache(2)(self._shuffle)

    def _shuffle(self, epoch: int) -> NDArray[np.int64]:
        return np.random.default_rng((self._seed, epoch)).permutation(len(self._crops))

    def batch(self, step: int) -> Batch:
        """Load the crops of a step; see `_load`."""
        indices: list[int] = []
        for number in range(step * self._batch_size, (step + 1) * self._batch_size):
            epoch, place = divmod(number, len(self._crops))
            indices.append(int(self._order(epoch)[place]))
        return _load(self._crops, self._hq, indices)

    def losses(self, model: nn.Module, batch: Batch, step: int) -> Iterator[Losses]:
        """Compute the loss of the settings."""
        del step
        assert isinstance(model, TwoStepRestorer)
        sr, features = model.restore_with_features(batch["hq"], batch["left"], batch["right"])
        sr = sr.float()
        gt = batch["gt"]
        if self._loss == "mse":
            yield {"mse": mse(sr, gt)}
        elif self._loss == "mae":
            yield {"mae": l1(sr, gt)}
        elif self._loss == "mae+ssim":
            yield {"mae+ssim": l1_and_ssim(sr, gt, alpha=self._alpha)}  # Eq. 8
        else:
            left, middle, right = (feature.float() for feature in features)
            distance = encoder_distance(left, middle, right, alpha=self._alpha)
            yield {"mae": l1(sr, gt), "encoder": distance}  # Eq. 11


def _load(samples: Samples, hq: NDArray[np.uint8], indices: list[int]) -> Batch:
    """Load some samples, all in [0, 1].

    Returns:
        hq (B, 3, sp, sp), what the image model made of the middle frame; left and right (B, 3, p,
        p), its low-quality neighbors; gt (B, 3, sp, sp), the middle frame as it should be.
    """
    pairs = [samples.sample(index) for index in indices]
    lq = _stack([pair[0] for pair in pairs])  # (B, 3, 3, p, p)
    return {
        "hq": _stack([hq[index] for index in indices]),
        "left": lq[:, 0],
        "right": lq[:, 2],
        "gt": _stack([pair[1] for pair in pairs]),
    }


def _stack(arrays: list[NDArray[np.uint8]]) -> Tensor:
    return torch.from_numpy(np.stack(arrays)).float().div_(255)


class _Validator:
    """Scores the second step beside the first alone, on the middle of held-out videos.

    Args:
        config: where the image model runs, and keeps what it makes.
        samples: held out.
        image_model: the first step.
        cancel: looked at while the first step runs.
    """

    def __init__(
        self,
        config: TwoStepTraining,
        samples: HeldOutCrops,
        image_model: OpenedModel,
        cancel: CancelToken | None,
    ) -> None:
        self._samples = samples
        self._hq = _enlarge(config, samples, image_model, cancel)
        frozen: list[float] = []
        for index in range(len(self._hq)):
            frozen.append(self._psnr(index, torch.from_numpy(self._hq[index] / 255)))
        self._frozen = self._mean(frozen)

    @torch.inference_mode()
    def __call__(self, network: nn.Module) -> dict[str, float]:
        """Score a network on the held-out videos.

        Returns:
            mean Y-PSNR over videos, dB: `psnr_y`, that of the image model alone, and the gain.
        """
        assert isinstance(network, TwoStepRestorer)
        device = next(network.parameters()).device
        values: list[float] = []
        for index in range(len(self._hq)):
            batch = _load(self._samples, self._hq, [index])
            hq, left, right = (batch[name].to(device) for name in ("hq", "left", "right"))
            with use_backend(network, "auto"):
                sr = network.restore(hq, left, right)
            values.append(self._psnr(index, sr[0].cpu()))
        value = self._mean(values)
        return {"psnr_y": value, "psnr_y/frozen": self._frozen, "gain": value - self._frozen}

    def _psnr(self, index: int, sr: Tensor) -> float:
        gt = torch.from_numpy(self._samples.sample(index)[1]).float() / 255
        return psnr(sr, gt).item()

    def _mean(self, values: list[float]) -> float:
        """Average over the frames of each video, then over videos."""
        videos: dict[str, list[float]] = {}
        for name, value in zip(self._samples.names, values, strict=True):
            videos.setdefault(name, []).append(value)
        return fmean(map(fmean, videos.values()))
