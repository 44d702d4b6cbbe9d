"""Train SpyNet on photographs that move over photographs: the motion of every pixel is known.

Training begins with an estimator written down by hand (`handcrafted_spynet.py`), and goes from coarse to
fine, as in the paper: `levels` networks, the coarsest ones, learn together, each judged by what it
gives; the finer ones stay as they are. The next stage begins with the result (`init`). With
`shared` they are one network, which learns fastest.

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
from tubelet.errors import ConfigError, InputError
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
"""ref, supp (B, 3, H, W) → flow (B, 2, H, W)."""

_SCORED_SEED = 2017  # of the pairs to score: other motion than that of any training
_LEVELS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class SpynetConfig:
    """Train SpyNet, an optical-flow network, on synthetic motion of still images."""

    data: tuple[Path, ...]
    """Folders of images, as large and sharp as possible."""
    out: Path = Path("runs/spynet")
    """Folder of the checkpoint, the log and the finished model.safetensors."""
    hold_out: int = 8
    """Every N-th image is held out: it is not trained on, and the scored pairs are made of these."""
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
        if not 1 <= self.levels <= _LEVELS or self.hold_out < 2 or self.evaluate_pairs < 1:
            raise ConfigError(f"need 1 ≤ levels ≤ {_LEVELS}, hold_out ≥ 2 and evaluate_pairs ≥ 1")
        if not 0 <= self.hidden_weight <= 1:
            raise ConfigError(f"hidden_weight={self.hidden_weight} must be within 0 and 1")
        if self.motion.patch_px % 2 ** (self.levels - 1):
            raise ConfigError(
                f"motion.patch_px={self.motion.patch_px} must be a multiple of {2 ** (self.levels - 1)} for "
                f"levels={self.levels}"
            )


def main(
    config: SpynetConfig,
    *,
    on_log: Log | None = None,
    on_progress: OnProgress | None = None,
    cancel: CancelToken | None = None,
) -> Path:
    """Train to the end, or resume; write the network.

    Args:
        config: see there.
        on_log: called with every log line.
        on_progress: called after steps, at most ten times a second, and at the end.
        cancel: stops the run after the step that it is at; the same call goes on from its last
            checkpoint.

    Returns:
        path of the finished model.safetensors.

    Raises:
        InputError: no images, or too few to hold one out.
        CheckpointError: the output folder holds another run.
        Cancelled: `cancel` was cancelled.
    """
    torch.manual_seed(config.loop.seed)
    spynet = handcrafted_spynet() if config.init is None else load_spynet_checkpoint(config.init)
    if config.shared:
        _share(spynet, spynet.basic_module[config.levels - 1])
    known, unseen = split_images(find_images(config.data), config.hold_out)
    images = MovingImages(known, config.motion, config.loop.seed)

    average = train(
        spynet.to(memory_format=torch.channels_last),
        _MotionTask(config, images),
        config.loop,
        config.out,
        evaluate=_scorer(config, unseen),
        on_log=on_log,
        on_progress=on_progress,
        cancel=cancel,
    )
    assert isinstance(average, SpyNet)
    if config.shared:
        _part(average)
    path = config.out / "model.safetensors"
    save_checkpoint(path, average, {"training": asdict(config)})
    return path


def split_images(paths: list[Path], hold_out: int) -> tuple[list[Path], list[Path]]:
    """Part the images to train on from those to score on, every `hold_out`-th.

    Raises:
        InputError: there are too few.
    """
    if len(paths) < hold_out:
        raise InputError(
            f"{len(paths)} images are too few to hold out every {hold_out}th; lower hold_out"
        )
    known = [path for number, path in enumerate(paths, 1) if number % hold_out]
    return known, paths[hold_out - 1 :: hold_out]


def _share(spynet: SpyNet, level: nn.Module) -> None:
    for i in range(_LEVELS):
        spynet.basic_module[i] = level


def _part(spynet: SpyNet) -> None:
    """Give every level a network of its own again, as files of SpyNets have them."""
    for i in range(_LEVELS):
        spynet.basic_module[i] = copy.deepcopy(spynet.basic_module[i])


class _MotionTask:
    """Estimate the known motion of pairs, at each of the coarsest levels."""

    def __init__(self, config: SpynetConfig, images: MovingImages) -> None:
        self._images = images
        self._levels = config.levels
        self._hidden_weight = config.hidden_weight

    def batch(self, step: int) -> Batch:
        """Make pairs of frames, whose motion is known.

        Returns:
            ref and supp (B, 3, H, W), flow (B, 2, H, W) in pixels, and its weight (B, 1, H, W).
        """
        frames, flow, visible = self._images.batch(step)
        weight = self._hidden_weight + (1 - self._hidden_weight) * visible
        return {"ref": frames[:, 0], "supp": frames[:, 1], "flow": flow, "weight": weight}

    def losses(self, model: nn.Module, batch: Batch, step: int) -> Iterator[Losses]:
        """Compute the end-point error of each level in its own pixels, all levels alike."""
        del step
        assert isinstance(model, SpyNet)
        flows = model.levels(batch["ref"], batch["supp"], self._levels)
        known = torch.cat([batch["flow"], batch["weight"]], 1)  # pooled at once: (B, 3, H, W)
        losses: dict[str, Tensor] = {}
        for level, flow in enumerate(flows):
            factor = 2 ** (self._levels - 1 - level)
            pooled = functional.avg_pool2d(known, factor)
            truth = pooled[:, :2] / factor
            error = end_point_error(flow.float(), truth, weight=pooled[:, 2:])
            losses[f"level_{level}"] = error
        yield losses


def _scorer(config: SpynetConfig, unseen: list[Path]) -> Callable[[nn.Module], dict[str, float]]:
    images = MovingImages(unseen, config.motion, _SCORED_SEED)
    pairs = [images.pair(i) for i in range(config.evaluate_pairs)]
    clips = (
        _read_clips(config.evaluate, config.evaluate_frames) if config.evaluate is not None else {}
    )

    def score(average: nn.Module) -> dict[str, float]:
        assert isinstance(average, SpyNet)

        def finest(ref: Tensor, supp: Tensor) -> Tensor:
            return average.levels(ref, supp, config.levels)[-1]

        scores = score_pairs(finest, pairs)
        for name, frames in clips.items():
            error = score_clip(average, frames)
            scores[f"warping/{name}"] = error["flow"] / error["zero"]
        return scores

    return score


def _read_clips(root: Path, frames: int) -> dict[str, Tensor]:
    """Read the first frames of every folder: {name: (T, 3, H, W)}."""
    if not root.is_dir():
        raise InputError(f"no such folder of clips to evaluate: {root}")
    folders = sorted(path for path in root.iterdir() if path.is_dir())
    return {
        path.name: torch.from_numpy(read_clip(path, max_frames=frames)).float() / 255
        for path in folders
    }


@torch.inference_mode()
def score_pairs(estimate: Estimate, pairs: Iterable[MovingPair]) -> dict[str, float]:
    """Score flow on pairs whose motion is known.

    Args:
        estimate: ref, supp (1, 3, H, W) → flow (1, 2, H, W).
        pairs: of frames.

    Returns:
        mean end-point error, pixels: `epe` of all pixels, `epe_visible` of those that both frames
        show, and `epe_zero` of all pixels for no motion at all.
    """
    errors: list[Tensor] = []
    for pair in pairs:
        flow = estimate(pair.frames[:1], pair.frames[1:])
        truth = pair.flow[None]
        errors.append(
            torch.stack(
                [
                    end_point_error(flow, truth),
                    end_point_error(flow, truth, weight=pair.visible[None]),
                    end_point_error(torch.zeros_like(flow), truth),
                ]
            )
        )
    epe, visible, zero = torch.stack(errors).mean(0)
    return {"epe": epe.item(), "epe_visible": visible.item(), "epe_zero": zero.item()}


@torch.inference_mode()
def score_clip(estimate: Estimate, frames: Tensor) -> dict[str, float]:
    """Score flow on a clip of unknown motion, by how well it warps each frame onto the one before.

    Args:
        estimate: ref, supp (1, 3, H, W) → flow (1, 2, H, W).
        frames: (T, 3, H, W) in [0, 1].

    Returns:
        warping error, the mean squared error over all pixels and pairs: `flow` with the estimated
        flow, and `zero` with none.
    """
    errors: list[Tensor] = []
    for ref, supp in itertools.pairwise(frames):
        flow = estimate(ref[None], supp[None])[0]
        with_flow = (ref - warp(supp, flow)).square().mean()
        without = (ref - supp).square().mean()
        errors.append(torch.stack([with_flow, without]))
    flow_error, zero_error = torch.stack(errors).mean(0)
    return {"flow": flow_error.item(), "zero": zero_error.item()}
