"""Measure the seams of windows: networks that see clips, restored window by window, against the whole clip.

    python benchmarks/seams.py --clips ../shared/data/dev_eval
    python benchmarks/seams.py --clips ../shared/data/dev_eval --weights runs/mine/model.safetensors --lookaheads 2 4 8

Windows either overlap, with the seam in the middle, or continue from the states of the one before and look ahead. The
figure is the PSNR of what is put together against the whole clip, of the worst frame within `--near` frames of a seam.
`time` is the processor time of all clips, relative to the whole clips. Without `--weights`, published configurations
with random weights.
"""

import argparse
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tubelet.data import read_clip
from tubelet.models.architecture import Contract
from tubelet.ops import imresize
from tubelet.restore.engine import Engine
from tubelet.restore.settings import UpscaleSettings
from tubelet.restore.window_plan import WindowPlan
from tubelet.restore.windows import cut_windows
from tubelet.types import Frame
from tubelet.zoo.architectures import ARCHITECTURES
from tubelet.zoo.opening import open_model
from tubelet.zoo.spec import ModelSpec


@dataclass(frozen=True)
class Run:
    """Result of a network over a clip.

    Attributes:
        sr: (T', 3, sH, sW).
        seams: numbers of the results that begin a window, without the first.
        cpu_s: processor time.
    """

    sr: Tensor
    seams: list[int]
    cpu_s: float


def random_networks() -> Iterator[tuple[ModelSpec, nn.Module]]:
    """Build every network that sees clips, with random weights, offsets too."""
    for architecture in ARCHITECTURES:
        contract = architecture.contract(config := architecture.config())
        if contract is None or contract.temporal.kind != "clip":
            continue
        torch.manual_seed(0)
        model = architecture.build(config)
        for name, parameter in model.named_parameters():
            if "offset" in name:
                nn.init.normal_(parameter, std=0.05)
        yield spec_of(architecture.name, contract, model), model.eval()


def spec_of(name: str, contract: Contract, model: nn.Module) -> ModelSpec:
    """Describe a network to the engine."""
    return ModelSpec(id=name, summary="", architecture=name, contract=contract, build=lambda: model)


def opened_networks(paths: list[Path]) -> Iterator[tuple[ModelSpec, nn.Module]]:
    """Open checkpoints."""
    for path in paths:
        opened = open_model(str(path))
        yield replace(opened.spec, id=path.parent.name), opened.network


def restore(engine: Engine, lq: Tensor, window: WindowPlan) -> Run:
    """Restore a clip (T, 3, H, W) in windows."""
    plan = replace(engine.plan(*lq.shape[-2:]), window=window)
    frames = [Frame(rgb, t, Fraction(1, 25), index=t) for t, rgb in enumerate(lq)]
    started_s = time.process_time()
    restored = engine.restore(frames, plan=plan, starts_scene=lambda _: False)
    sr = torch.stack([frame.rgb for frame in restored])
    cpu_s = time.process_time() - started_s
    results_per_frame = 2 if plan.doubles_rate else 1
    spans = [span for _, span in cut_windows(range(len(lq)), window)]
    return Run(sr, [span.keep_start * results_per_frame for span in spans[1:]], cpu_s)


def worst_psnr(run: Run, whole: Run, *, near: int) -> float:
    """Return the PSNR of the worst result at most `near` results from a seam, dB."""
    errors = (run.sr - whole.sr).square().mean((1, 2, 3))
    distances = [min(abs(t + 0.5 - seam) for seam in run.seams) for t in range(len(errors))]
    close = [t for t, distance in enumerate(distances) if distance < near]
    return -10 * math.log10(max(float(errors[close].max()), 1e-16))


def windows_of(contract: Contract, options: argparse.Namespace) -> Iterator[tuple[str, WindowPlan]]:
    """Name the kinds of windows to compare."""
    size = options.window
    for overlap in options.overlaps:
        yield f"overlap {overlap}", WindowPlan(frames=size, overlap=overlap)
    if not contract.edge_frames:
        return
    for lookahead in options.lookaheads or [contract.lookahead_frames]:
        yield f"look-ahead {lookahead}", WindowPlan(frames=size, lookahead=lookahead)


def main() -> None:
    """Print a table: networks and kinds of windows down, clips across."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clips", type=Path, required=True, help="folder of folders of frames")
    parser.add_argument(
        "--weights",
        type=Path,
        nargs="*",
        default=[],
        help="checkpoints, in place of random weights",
    )
    parser.add_argument("--models", nargs="*", default=[], help="of the random ones")
    parser.add_argument("--frames", type=int, default=30)
    parser.add_argument("--window", type=int, default=16)
    parser.add_argument("--overlaps", type=int, nargs="*", default=[8], help="frames")
    parser.add_argument(
        "--lookaheads",
        type=int,
        nargs="*",
        default=[],
        help="frames; by default what the model asks for",
    )
    parser.add_argument("--near", type=int, default=4)
    parser.add_argument("--height", type=int, default=48, help="of the input, pixels")
    options = parser.parse_args()
    networks = opened_networks(options.weights) if options.weights else random_networks()
    folders = sorted(path for path in options.clips.iterdir() if path.is_dir())
    clips: dict[str, Tensor] = {}
    for folder in folders:
        lq = shrink(read_clip(folder, max_frames=options.frames), options.height)
        if len(lq) > options.window:
            clips[folder.name] = lq
    print(f"| network | windows | time | {' | '.join(clips)} |\n{'|---' * (3 + len(clips))}|")
    for spec, model in networks:
        if options.models and spec.id not in options.models:
            continue
        fps = "x2" if spec.temporal.between_frames else None
        engine = Engine(spec, model, UpscaleSettings(device="cpu", precision="fp32", fps=fps))
        wholes = [restore(engine, lq, WindowPlan(frames=len(lq))) for lq in clips.values()]
        for name, window in windows_of(spec.contract, options):
            runs = [restore(engine, lq, window) for lq in clips.values()]
            cells = [
                f"{worst_psnr(run, whole, near=options.near):.1f}"
                for run, whole in zip(runs, wholes, strict=True)
            ]
            share = sum(run.cpu_s for run in runs) / sum(whole.cpu_s for whole in wholes)
            print(f"| {spec.id} | {name} | {share:.2f} | {' | '.join(cells)} |", flush=True)


def shrink(frames: NDArray[np.uint8], height: int) -> Tensor:
    """Bring a clip (T, 3, H, W) uint8 to a small height, both sides multiples of 16."""
    gt = torch.from_numpy(frames).float() / 255
    small = torch.stack([imresize(frame, height / gt.shape[2]) for frame in gt]).clamp(0, 1)
    return small[..., : height // 16 * 16, : small.shape[3] // 16 * 16]


if __name__ == "__main__":
    main()
