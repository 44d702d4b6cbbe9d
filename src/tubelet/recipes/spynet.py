"""Train SpyNet on synthetic motion of photographs, where the flow of every pixel is known.

Training starts from a handcrafted estimator (`handcrafted_spynet.py`) and proceeds from coarse to
fine, as in the paper. A run trains the `levels` coarsest levels jointly, with a loss for each of
them; finer levels do not change. The next run starts from the result (`init`) and trains more
levels. With `shared`, all levels are the same network, which trains fastest.

Source: Ranjan and Black, CVPR 2017, Sec. 3.3, where the levels are trained one after the other,
each from the one before; several at a time and a loss for each: Sun et al., PWC-Net, CVPR 2018, Eq.
4; one network for all levels: Hur and Roth, IRR, CVPR 2019.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from tubelet.data import read_clip
from tubelet.data.motion import MotionSettings, MovingImages, MovingPair, find_images
from tubelet.errors import InputError, require
from tubelet.layers.spynet import SpyNet
from tubelet.losses import end_point_error
from tubelet.metrics.temporal import warp
from tubelet.progress import CancelToken, OnProgress
from tubelet.recipes.handcrafted_spynet import handcrafted_spynet
from tubelet.recipes.initial_weights import load_spynet_checkpoint
from tubelet.training import Batch, LoopSettings, Losses, train
from tubelet.training.run_log import Log
from tubelet.zoo.checkpoint import save_checkpoint

__all__ = ["SpynetConfig", "main", "score_clip", "score_pairs", "split_images"]

Estimate = Callable[[Tensor, Tensor], Tensor]
"""Flow estimator: ref and supp (B, 3, H, W) → flow (B, 2, H, W), pixels."""

_SCORED_SEED = 2017
"""Seed of the scored pairs: their motion differs from that of every training."""

_LEVELS = 6
"""Pyramid levels of SpyNet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpynetConfig:
    """Train SpyNet, an optical-flow network, on synthetic motion of still images."""

    data: tuple[Path, ...]
    """Folders of images, as large and sharp as possible."""
    out: Path = Path("runs/spynet")
    """Folder of the checkpoint, the log and the finished model.safetensors."""
    hold_out: int = 8
    """Every N-th image is held out: not trained on, but used for the scored pairs."""
    evaluate_pairs: int = 64
    """Held-out pairs that are scored at every checkpoint."""
    evaluate: Path | None = None
    """Folder of folders of frames; the warping error of each is scored at every checkpoint."""
    evaluate_frames: int = 4
    """Frames of each of these clips that are scored."""
    levels: int = _LEVELS
    """Pyramid levels to train, 1 to 6, from the coarsest; motion.max_px and motion.patch_px are
    pixels of the finest one."""
    shared: bool = False
    """Train one network for all levels: the residual flow is similar at each level, so every
    level trains it."""
    init: Path | None = None
    """Start from the weights of this SpyNet checkpoint."""
    hidden_weight: float = 0.3
    """Weight, 0 to 1, of the error where a pixel of ref is occluded in supp: the motion can only
    be guessed there."""
    motion: MotionSettings = field(default_factory=MotionSettings)
    """Size and variety of the pairs."""
    loop: LoopSettings = field(default_factory=lambda: LoopSettings(lr=5e-5))
    """Steps, learning rate and device; the pixel loss in it is not used."""

    def __post_init__(self) -> None:
        conditions = (
            1 <= self.levels <= _LEVELS,
            self.hold_out >= 2,
            self.evaluate_pairs >= 1,
        )
        require(
            all(conditions),
            f"need 1 ≤ levels ≤ {_LEVELS}, hold_out ≥ 2 and evaluate_pairs ≥ 1",
        )
        require(
            0 <= self.hidden_weight <= 1,
            f"hidden_weight={self.hidden_weight} must be from 0 to 1",
        )
        # Every level halves the size.
        multiple = 2 ** (self.levels - 1)
        require(
            self.motion.patch_px % multiple == 0,
            f"motion.patch_px={self.motion.patch_px} must be a multiple of {multiple} for "
            f"levels={self.levels}",
        )


def main(
    config: SpynetConfig,
    *,
    on_log: Log | None = None,
    on_progress: OnProgress | None = None,
    cancel: CancelToken | None = None,
) -> Path:
    """Train a SpyNet, or resume its training, and save it.

    Args:
        config: Configuration of the run.
        on_log: Called with every log record.
        on_progress: Called after steps, up to ten times a second, and at the end.
        cancel: Stops the run after the current step; the same call resumes from the last
            checkpoint.

    Returns:
        Path of the finished model.safetensors.

    Raises:
        InputError: There are no images, or too few to hold one out.
        CheckpointError: The output folder contains another run.
        Cancelled: `cancel` was cancelled.
    """
    torch.manual_seed(config.loop.seed)
    init = config.init
    spynet = handcrafted_spynet() if init is None else load_spynet_checkpoint(init)
    if config.shared:
        _share_level(spynet, spynet.basic_module[config.levels - 1])
    training_images, held_out_images = split_images(find_images(config.data), config.hold_out)
    images = MovingImages(training_images, config.motion, config.loop.seed)

    average = train(
        spynet.to(memory_format=torch.channels_last),
        _MotionTask(config, images),
        config.loop,
        config.out,
        evaluate=_scorer(config, held_out_images),
        on_log=on_log,
        on_progress=on_progress,
        cancel=cancel,
    )
    assert isinstance(average, SpyNet)
    if config.shared:
        _copy_shared_level(average)
    path = config.out / "model.safetensors"
    save_checkpoint(path, average, {"training": asdict(config)})
    return path


def split_images(paths: list[Path], hold_out: int) -> tuple[list[Path], list[Path]]:
    """Split images into those to train on and those to score on, which are every `hold_out`-th.

    Raises:
        InputError: There are too few images.
    """
    if len(paths) < hold_out:
        raise InputError(
            f"{len(paths)} images are too few to hold out every {hold_out}th; lower hold_out"
        )
    training: list[Path] = []
    held_out: list[Path] = []
    for number, path in enumerate(paths, 1):
        if number % hold_out == 0:
            held_out.append(path)
        else:
            training.append(path)
    return training, held_out


def _share_level(spynet: SpyNet, level: nn.Module) -> None:
    """Use one network, with one set of parameters, for all levels."""
    for i in range(_LEVELS):
        spynet.basic_module[i] = level


def _copy_shared_level(spynet: SpyNet) -> None:
    """Replace the shared network by a copy for each level, as checkpoints of SpyNet require."""
    for i in range(_LEVELS):
        spynet.basic_module[i] = copy.deepcopy(spynet.basic_module[i])


class _MotionTask:
    """Estimate the flow of pairs with known motion, at each of the trained levels."""

    def __init__(self, config: SpynetConfig, images: MovingImages) -> None:
        self._images = images
        self._levels = config.levels
        self._hidden_weight = config.hidden_weight

    def batch(self, step: int) -> Batch:
        """Draw pairs of frames with known motion.

        Returns:
            ref and supp (B, 3, H, W), flow (B, 2, H, W) in pixels, and its weight (B, 1, H, W).
        """
        frames, flow, visible = self._images.batch(step)
        # 1 for visible pixels, `hidden_weight` for occluded ones.
        weight = self._hidden_weight + (1 - self._hidden_weight) * visible
        return {"ref": frames[:, 0], "supp": frames[:, 1], "flow": flow, "weight": weight}

    def losses(self, model: nn.Module, batch: Batch, step: int) -> Iterator[Losses]:
        """Compute the end-point error of each level, in pixels of the level."""
        del step
        assert isinstance(model, SpyNet)
        flows = model.levels(batch["ref"], batch["supp"], self._levels)
        # One pooling for flow and weight: (B, 3, H, W).
        target = torch.cat([batch["flow"], batch["weight"]], 1)
        losses: dict[str, Tensor] = {}
        for level, flow in enumerate(flows):
            factor = 2 ** (self._levels - 1 - level)
            pooled = functional.avg_pool2d(target, factor)
            # Coarser pixels are larger: the same motion is fewer of them.
            true_flow = pooled[:, :2] / factor
            error = end_point_error(flow.float(), true_flow, weight=pooled[:, 2:])
            losses[f"level_{level}"] = error
        yield losses


def _scorer(
    config: SpynetConfig, held_out_images: list[Path]
) -> Callable[[nn.Module], dict[str, float]]:
    """Build a function that scores a network on synthetic pairs and on clips."""
    images = MovingImages(held_out_images, config.motion, _SCORED_SEED)
    pairs = [images.pair(i) for i in range(config.evaluate_pairs)]
    clips: dict[str, Tensor] = {}
    if config.evaluate is not None:
        clips = _read_clips(config.evaluate, config.evaluate_frames)

    def score(average: nn.Module) -> dict[str, float]:
        assert isinstance(average, SpyNet)

        # The motion of the pairs is in pixels of the finest trained level.
        def estimate_finest(ref: Tensor, supp: Tensor) -> Tensor:
            return average.levels(ref, supp, config.levels)[-1]

        scores = score_pairs(estimate_finest, pairs)
        for name, frames in clips.items():
            error = score_clip(average, frames)
            scores[f"warping/{name}"] = error["flow"] / error["zero"]
        return scores

    return score


def _read_clips(root: Path, frames: int) -> dict[str, Tensor]:
    """Read the first frames of every folder: {name: (T, 3, H, W) in [0, 1]}."""
    if not root.is_dir():
        raise InputError(f"no such folder of clips to evaluate: {root}")
    clips: dict[str, Tensor] = {}
    for path in sorted(root.iterdir()):
        if path.is_dir():
            pixels = read_clip(path, max_frames=frames)
            clips[path.name] = torch.from_numpy(pixels).float() / 255
    return clips


@torch.inference_mode()
def score_pairs(estimate: Estimate, pairs: Iterable[MovingPair]) -> dict[str, float]:
    """Compute the mean end-point error of a flow estimator on pairs with known motion.

    Args:
        estimate: Flow estimator, called with ref and supp (1, 3, H, W).
        pairs: Pairs of frames.

    Returns:
        Errors in pixels: `epe` over all pixels, `epe_visible` over the pixels that are visible in
        both frames, and `epe_zero` over all pixels for zero flow, as a reference.
    """
    errors: list[Tensor] = []
    for pair in pairs:
        flow = estimate(pair.frames[:1], pair.frames[1:])
        true_flow = pair.flow[None]
        error = end_point_error(flow, true_flow)
        visible_error = end_point_error(flow, true_flow, weight=pair.visible[None])
        zero_error = end_point_error(torch.zeros_like(flow), true_flow)
        errors.append(torch.stack([error, visible_error, zero_error]))
    epe, visible, zero = torch.stack(errors).mean(0)
    return {"epe": epe.item(), "epe_visible": visible.item(), "epe_zero": zero.item()}


@torch.inference_mode()
def score_clip(estimate: Estimate, frames: Tensor) -> dict[str, float]:
    """Compute the warping error of a flow estimator on a clip without known motion.

    Each frame is compared with the following one, warped onto it.

    Args:
        estimate: Flow estimator, called with ref and supp (1, 3, H, W).
        frames: (T, 3, H, W) in [0, 1].

    Returns:
        Mean squared errors over all pixels and pairs: `flow` with the estimated flow, and `zero`
        without warping, as a reference.
    """
    errors: list[Tensor] = []
    for ref, supp in itertools.pairwise(frames):
        flow = estimate(ref[None], supp[None])[0]
        flow_error = (ref - warp(supp, flow)).square().mean()
        zero_error = (ref - supp).square().mean()
        errors.append(torch.stack([flow_error, zero_error]))
    mean_flow_error, mean_zero_error = torch.stack(errors).mean(0)
    return {"flow": mean_flow_error.item(), "zero": mean_zero_error.item()}
