"""Score a network during its training, with the same engine that upscales videos."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import torch
from torch import Tensor, nn

from tubelet.degrade import Preset
from tubelet.models.architecture import Contract
from tubelet.recipes.online import load_pairs, score_clips
from tubelet.restore.engine import Engine
from tubelet.restore.settings import UpscaleSettings
from tubelet.types import Frame
from tubelet.zoo.spec import ModelSpec

__all__ = ["build_scorer"]


def build_scorer(
    evaluate: Path | None,
    *,
    frames: int,
    preset: Preset,
    architecture: str,
    contract: Contract,
    device: str,
) -> Callable[[nn.Module], dict[str, float]] | None:
    """Build a function that scores a network on held-out clips.

    Args:
        evaluate: Folder of folders of frames; None: no scores.
        frames: Maximum number of frames of each clip.
        preset: Degradation.
        architecture: Class name of the network.
        contract: How the engine must run it.
        device: Device to run it on.

    Returns:
        Maps a network to the mean Y-PSNR of each clip and over the clips, dB; None without clips.

    Raises:
        InputError: The folder does not exist or contains no folders.
    """
    if evaluate is None:
        return None
    pairs = load_pairs(evaluate, preset, contract.scale, frames)

    def score(network: nn.Module) -> dict[str, float]:
        spec = ModelSpec(
            id=architecture,
            summary="",
            architecture=architecture,
            contract=contract,
            build=lambda: network,
        )
        # Scores of a training must not depend on the processor.
        settings = UpscaleSettings(device=device, precision="fp32")
        engine = Engine(spec, network, settings)
        return score_clips(lambda lq: _restore(engine, lq), pairs)

    return score


def _restore(engine: Engine, lq: Tensor) -> Tensor:
    """Restore a clip: (1, T, 3, H, W) → (1, T, 3, sH, sW)."""
    # The frame rate has no effect on the pixels.
    frames: list[Frame] = []
    for t, rgb in enumerate(lq[0]):
        frames.append(Frame(rgb, t, Fraction(1, 25), index=t))
    restored = [frame.rgb for frame in engine.restore(frames)]
    return torch.stack(restored)[None]
