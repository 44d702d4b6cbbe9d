"""Train the second step of two-step, which restores the results of a frozen image model.

    videos, split 8:1:1
      └ crops of three frames
          ├ middle ─ image model, once, cached ─ hq ┐
          ├ neighbors ─────────────── left, right ──┴ restorer ─ sr ┐
          └ gt of the middle ───────────────────────────────────────┴ loss

The validation and test videos are chosen automatically from the videos that the user gives.

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
from tubelet.errors import CheckpointError, ConfigError, require
from tubelet.files import atomic_write
from tubelet.layers.inference import use_backend
from tubelet.losses import encoder_distance, l1, l1_and_ssim, mse
from tubelet.metrics import psnr
from tubelet.models.two_step import ARCHITECTURE, TwoStepConfig, TwoStepRestorer, needed_image_model
from tubelet.progress import CancelToken, OnProgress
from tubelet.recipes.two_step_data import (
    HeldOutCrops,
    Pixels,
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
        max_alpha = _MAX_ALPHA.get(self.loss, math.inf)
        if self.alpha is not None and not 0 <= self.alpha <= max_alpha:
            raise ConfigError(
                f"alpha={self.alpha} is out of range: 0 to {max_alpha:g} for loss {self.loss}"
            )
        min_count = min(self.batch, self.score_px, self.score_frames, self.epochs or 1)
        require(min_count >= 1, "batch, epochs, score_px and score_frames must be at least 1")
        defaults = LoopSettings()
        for name in ("loss", "loss_on", "loss_reduction", "loss_eps"):
            value = getattr(self.loop, name)
            if value != getattr(defaults, name):
                raise ConfigError(
                    f"loop.{name}={value} is not used by two-step; set loss and alpha"
                )


_MAX_ALPHA = {"mae+ssim": 1.0, "encoder": 0.1}
"""Largest alpha of the losses that have one."""

_BEST_ALPHA = {"mae+ssim": 0.8, "encoder": 0.02}
"""Best alpha in Tables II and III."""

_SCORES_FILE = "scores.json"
_RECORD_FILE = "run.json"


def _alpha(config: TwoStepTraining) -> float:
    if config.alpha is not None:
        return config.alpha
    return _BEST_ALPHA.get(config.loss, 0.0)


_CONSTANT_LR = ScheduleSettings(kind="steps")
PRESETS: dict[TwoStepPreset, TwoStepTraining] = {
    # Sec. IV-A: Adam 1e-4, β 0.9 and 0.999, 10 epochs, batch 64, 64×64, nothing else; no average of
    # the weights.
    "paper": TwoStepTraining(
        network=TwoStepConfig(residual=False),
        epochs=10,
        loop=LoopSettings(
            lr=1e-4,
            warmup_steps=0,
            schedule=_CONSTANT_LR,
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
        # With three times this learning rate, ReLUs die.
        loop=LoopSettings(steps=6000, lr=2e-3, ema=0.99, warmup_steps=100, save_every=500),
    ),
}


def configure(
    preset: TwoStepPreset, *, scale: Literal[2, 4] = 2, **changes: Any
) -> TwoStepTraining:
    """Build the configuration of a preset.

    Args:
        preset: "paper", or "small" for a network that a laptop trains in minutes.
        scale: Upscaling factor of the image model.
        changes: Fields of `TwoStepTraining` to override.
    """
    default = PRESETS[preset]
    fields = {"network": replace(default.network, scale=scale)} | changes
    return replace(default, **fields)


def describe(config: TwoStepTraining) -> list[str]:
    """Describe a training in a few lines: networks, length, crops and loss."""
    with torch.device("meta"):
        size = count_parameters(TwoStepRestorer(config.network)) / 1e6
    length = f"{config.loop.steps} steps" if config.epochs is None else f"{config.epochs} epochs"
    alpha = f", alpha {_alpha(config):g}" if config.loss in _BEST_ALPHA else ""
    return [
        f"two-step x{config.network.scale} over {config.image_model}: {size:.2f} M parameters; "
        f"{length} of {config.batch} crops, {config.crops.patch_px} px; loss {config.loss}{alpha}",
    ]


def main(
    config: TwoStepTraining,
    *,
    on_log: Log | None = None,
    on_progress: OnProgress | None = None,
    cancel: CancelToken | None = None,
) -> Path:
    """Train a second step, or resume its training; save it and its scores.

    A finished run is not repeated.

    Args:
        config: Configuration, from `configure`.
        on_log: Called with every log record.
        on_progress: Called after steps, up to ten times a second, and at the end.
        cancel: Stops the run after the current step; the same call resumes from the last
            checkpoint.

    Returns:
        Path of the finished model.safetensors, whose header refers to the image model. The scores
        are in `scores.json` in the same folder.

    Raises:
        ConfigError: The image model or the data is not given, or the sizes of the crops do not fit.
        RequestError: The image model is unknown, is not a single-image model, or has another scale.
        InputError: There are no clips, or too few.
        CheckpointError: The output folder contains another run.
        Cancelled: `cancel` was cancelled.
    """
    _check_config(config)
    scale = config.network.scale
    image_model = open_base(config.image_model, needed_image_model(config.network))

    # Training, validation and test samples.
    clips = prepare_clips(
        config.data,
        config.cache,
        preset=config.degradation,
        scale=scale,
        cancel=cancel,
    )
    min_px = max(config.crops.patch_px, config.score_px)
    videos = split_videos(usable_clips(list(clips), min_px))
    crops = TrainingCrops(videos.training, scale, config.crops)
    size_px = config.score_px
    frames = config.score_frames
    validation_crops = HeldOutCrops(videos.validation, scale, size_px=size_px, frames=frames)
    test_crops = HeldOutCrops(videos.test, scale, size_px=size_px, frames=frames)

    path = config.out / "model.safetensors"
    samples = [crops, validation_crops, test_crops]
    is_same_run = _check_or_record_run(config, samples, image_model)
    if is_same_run and (config.out / _SCORES_FILE).is_file() and path.is_file():
        return path

    # First step: run the image model on all samples.
    hq = _run_image_model(config, crops, image_model, cancel)
    validate = _Validator(config, validation_crops, image_model, cancel)
    test = _Validator(config, test_crops, image_model, cancel)

    # Second step: train the restorer.
    loop = config.loop
    if config.epochs is not None:
        steps_per_epoch = math.ceil(len(crops) / config.batch)
        loop = replace(loop, steps=config.epochs * steps_per_epoch)
    torch.manual_seed(loop.seed)
    average = train(
        TwoStepRestorer(config.network).to(memory_format=torch.channels_last),
        _TwoStepTask(config, crops, hq),
        loop,
        config.out,
        evaluate=validate,
        on_log=on_log,
        on_progress=on_progress,
        cancel=cancel,
    )
    scores = {"validation": validate(average), "test": test(average)}
    notes = {"training": asdict(config), "scores": scores}
    save_checkpoint(path, average, notes, base=refer_to(image_model, config.out))
    _write_json(config.out / _SCORES_FILE, scores)
    return path


def read_scores(out: Path) -> dict[str, dict[str, float]]:
    """Read the scores of a finished run from its output folder.

    Returns:
        {"validation" | "test": {"psnr_y": …, "psnr_y/frozen": …, "gain": …}}, dB.
    """
    return json.loads((out / _SCORES_FILE).read_text(encoding="utf-8"))


def _check_config(config: TwoStepTraining) -> None:
    """Check everything that does not need the clips.

    Raises:
        ConfigError: The image model or the data is not given, or a size does not fit.
    """
    if not config.image_model:
        raise ConfigError(
            "which image model? name a single-image model: --image-model ID_OR_CHECKPOINT"
        )
    if not config.data:
        raise ConfigError("no data to train on; name folders of clips: --data FOLDER")
    contract = ARCHITECTURE.contract(config.network)
    assert contract is not None
    sizes = {"crops.patch_px": config.crops.patch_px, "score_px": config.score_px}
    for name, size_px in sizes.items():
        if size_px % contract.size_multiple:
            raise ConfigError(
                f"{name}={size_px} does not fit two-step, which needs a multiple of 16, for "
                "example 32 or 64"
            )


def _run_settings(
    config: TwoStepTraining, samples: Sequence[Samples], image_model: OpenedModel
) -> dict[str, Any]:
    """List everything that the network and its scores depend on, as JSON data."""
    settings: dict[str, Any] = {}
    for name in ("degradation", "loss", "batch", "epochs", "score_px", "score_frames"):
        settings[name] = getattr(config, name)
    settings["alpha"] = _alpha(config)
    settings["network"] = asdict(config.network)
    settings["crops"] = asdict(config.crops)
    for name, value in result_settings(config.loop).items():
        settings[f"loop.{name}"] = value
    settings["clips"] = [crops.describe()["content"][:12] for crops in samples]
    # The hash identifies the image model; its name is only for error messages.
    settings["image_model"] = [fingerprint(image_model), image_model.name]
    # JSON turns tuples into lists; a recorded run is compared in this form.
    return json.loads(json.dumps(settings))


def _check_or_record_run(
    config: TwoStepTraining, samples: Sequence[Samples], image_model: OpenedModel
) -> bool:
    """Compare the settings with those of the run in the output folder, or record them in it.

    Returns:
        True if the folder contains a run with these settings, False if it had none.

    Raises:
        CheckpointError: The folder contains another run.
    """
    path = config.out / _RECORD_FILE
    settings = _run_settings(config, samples, image_model)
    if not path.is_file():
        config.out.mkdir(parents=True, exist_ok=True)
        _write_json(path, settings)
        return False
    recorded_hash, recorded_name, recorded = _read_record(path)
    current_hash, _ = settings.pop("image_model")
    if recorded_hash != current_hash:
        raise CheckpointError(
            f"{config.out} is of a run over {recorded_name}, not {image_model.name}, or the "
            "weights of the image model have changed; name another output folder"
        )
    check_same_run(config.out, recorded, settings)
    return True


def _read_record(path: Path) -> tuple[str, str, dict[str, Any]]:
    """Read a recorded run: hash and name of its image model, and all other settings.

    Raises:
        CheckpointError: The file is damaged.
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


def _run_image_model(
    config: TwoStepTraining, samples: Samples, image_model: OpenedModel, cancel: CancelToken | None
) -> Pixels:
    """Return the results of the image model on the samples, (N, 3, sp, sp)."""
    folder = config.frozen or config.out / "frozen"
    return frozen_outputs(samples, image_model, folder, device=config.loop.device, cancel=cancel)


class _TwoStepTask:
    """Restore the image model's results; each epoch visits all crops in another random order.

    Args:
        config: Batch size, loss and seed.
        crops: Training samples.
        hq: Results of the image model on their middle frames, (N, 3, sp, sp) uint8.
    """

    def __init__(self, config: TwoStepTraining, crops: Samples, hq: Pixels) -> None:
        self._crops = crops
        self._hq = hq
        self._batch_size = config.batch
        self._seed = config.loop.seed
        self._loss: TwoStepLoss = config.loss
        self._alpha = _alpha(config)
        # A batch at the end of an epoch needs the order of the next epoch, too.
        self._epoch_order = lru_cache(maxsize=2)(self._draw_order)

    def _draw_order(self, epoch: int) -> NDArray[np.int64]:
        rng = np.random.default_rng((self._seed, epoch))
        return rng.permutation(len(self._crops))

    def batch(self, step: int) -> Batch:
        """Load the crops of a step; see `_load_batch`."""
        first = step * self._batch_size
        indices: list[int] = []
        for number in range(first, first + self._batch_size):
            epoch, position = divmod(number, len(self._crops))
            indices.append(int(self._epoch_order(epoch)[position]))
        return _load_batch(self._crops, self._hq, indices)

    def losses(self, model: nn.Module, batch: Batch, step: int) -> Iterator[Losses]:
        """Compute the configured loss."""
        del step
        assert isinstance(model, TwoStepRestorer)
        sr, features = model.restore_with_features(batch["hq"], batch["left"], batch["right"])
        sr = sr.float()
        gt = batch["gt"]
        match self._loss:
            case "mse":
                yield {"mse": mse(sr, gt)}
            case "mae":
                yield {"mae": l1(sr, gt)}
            case "mae+ssim":
                # Eq. 8
                yield {"mae+ssim": l1_and_ssim(sr, gt, alpha=self._alpha)}
            case "encoder":
                # Eq. 11
                left, middle, right = features
                distance = encoder_distance(
                    left.float(),
                    middle.float(),
                    right.float(),
                    alpha=self._alpha,
                )
                yield {"mae": l1(sr, gt), "encoder": distance}


def _load_batch(samples: Samples, hq: Pixels, indices: list[int]) -> Batch:
    """Load the samples with these indices; all values are in [0, 1].

    Returns:
        hq, the image model's results on the middle frames, (B, 3, sp, sp); left and right, the
        low-quality neighbors, (B, 3, p, p); gt, the target of the middle frame, (B, 3, sp, sp).
    """
    outputs: list[Pixels] = []
    lq_triplets: list[Pixels] = []
    targets: list[Pixels] = []
    for index in indices:
        outputs.append(hq[index])
        lq_triplet, gt = samples.sample(index)
        lq_triplets.append(lq_triplet)
        targets.append(gt)
    # (B, 3, 3, p, p)
    lq = _to_tensor(lq_triplets)
    return {
        "hq": _to_tensor(outputs),
        "left": lq[:, 0],
        "right": lq[:, 2],
        "gt": _to_tensor(targets),
    }


def _to_tensor(arrays: list[Pixels]) -> Tensor:
    return torch.from_numpy(np.stack(arrays)).float().div_(255)


class _Validator:
    """Scores the second step, and the image model as its reference, on held-out videos.

    Args:
        config: Device of the image model, and folder of its cached results.
        samples: Held-out samples.
        image_model: First step.
        cancel: Can cancel the run of the first step.
    """

    def __init__(
        self,
        config: TwoStepTraining,
        samples: HeldOutCrops,
        image_model: OpenedModel,
        cancel: CancelToken | None,
    ) -> None:
        self._samples = samples
        self._hq = _run_image_model(config, samples, image_model, cancel)
        values: list[float] = []
        for index in range(len(self._hq)):
            hq = torch.from_numpy(self._hq[index] / 255)
            values.append(self._psnr(index, hq))
        self._frozen_psnr = self._mean_over_videos(values)

    @torch.inference_mode()
    def __call__(self, network: nn.Module) -> dict[str, float]:
        """Score a network on the held-out videos.

        Returns:
            Mean Y-PSNR over videos, dB: `psnr_y` of the network, `psnr_y/frozen` of the image
            model, and their difference, `gain`.
        """
        assert isinstance(network, TwoStepRestorer)
        device = next(network.parameters()).device
        values: list[float] = []
        for index in range(len(self._hq)):
            batch = _load_batch(self._samples, self._hq, [index])
            hq = batch["hq"].to(device)
            left = batch["left"].to(device)
            right = batch["right"].to(device)
            with use_backend(network, "auto"):
                sr = network.restore(hq, left, right)
            values.append(self._psnr(index, sr[0].cpu()))
        value = self._mean_over_videos(values)
        return {
            "psnr_y": value,
            "psnr_y/frozen": self._frozen_psnr,
            "gain": value - self._frozen_psnr,
        }

    def _psnr(self, index: int, sr: Tensor) -> float:
        _, pixels = self._samples.sample(index)
        gt = torch.from_numpy(pixels).float() / 255
        return psnr(sr, gt).item()

    def _mean_over_videos(self, values: list[float]) -> float:
        """Average over the frames of each video, then over videos."""
        values_by_video: dict[str, list[float]] = {}
        for name, value in zip(self._samples.names, values, strict=True):
            values_by_video.setdefault(name, []).append(value)
        return fmean(map(fmean, values_by_video.values()))
