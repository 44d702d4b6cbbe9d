"""Measure the seams of windows: networks that see clips, cut into windows, against the whole clip.

    python benchmarks/seams.py --clips ../shared/data/dev_eval
    python benchmarks/seams.py --clips ../shared/data/dev_eval --weights runs/mine/model.safetensors

The engine cuts a scene only where neither memory nor a file can hold its features; windows then share as many frames as
the model asks for, and the seam lies in their middle. The figure is the PSNR of what is put together against the whole
clip, of the worst frame within `--near` frames of a seam. Without `--weights`, published configurations with random
weights.
"""

import argparse
import math
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tubelet.data import read_clip
from tubelet.layers.inference import prepare_for_inference
from tubelet.layers.recurrence import Edge
from tubelet.models.architecture import Contract
from tubelet.ops import imresize
from tubelet.restore.tiles import TileSpan
from tubelet.restore.windows import cut_windows
from tubelet.zoo.architectures import ARCHITECTURES
from tubelet.zoo.checkpoint import open_checkpoint

OVERLAP = 8  # frames, the engine's where the model does not say


def random_networks() -> list[tuple[str, nn.Module, Contract]]:
    """Build every network that sees clips, with random weights, offsets too."""
    found: list[tuple[str, nn.Module, Contract]] = []
    for architecture in ARCHITECTURES:
        contract = architecture.contract(config := architecture.config())
        if contract is None or contract.temporal.kind != "clip":
            continue
        torch.manual_seed(0)
        model = architecture.build(config)
        for name, parameter in model.named_parameters():
            if "offset" in name:
                nn.init.normal_(parameter, std=0.05)
        found.append((architecture.name, prepare_for_inference(model.eval()), contract))
    return found


def edges(span: TileSpan, num_frames: int) -> tuple[Edge, Edge]:
    """Tell where in a video of so many frames a window lies."""
    after = Edge(frame_index=span.stop) if span.stop < num_frames else Edge()
    return Edge(frame_index=span.start - 1), after


@torch.inference_mode()
def worst_psnr(
    model: nn.Module, lq: Tensor, *, size: int, overlap: int, streams: bool, near: int
) -> float:
    """Compare windows with the whole: PSNR of the worst frame near a seam, dB.

    Args:
        model: of a clip (1, T, 3, H, W).
        lq: (T, 3, H, W).
        size: frames of a window.
        overlap: frames that two share.
        streams: whether the model is told where in the video a window lies.
        near: frames on either side of a seam that count.
    """
    whole = model(lq[None])[0]
    steps = 1 + (len(whole) > len(lq))  # 2 where it gives frames between
    parts: list[Tensor] = []
    seams: list[int] = []
    for frames, span in cut_windows(range(len(lq)), size=size, overlap=overlap):
        sr = model(lq[frames][None], *edges(span, len(lq)) if streams else ())[0]
        first, last = (span.keep_start - span.start) * steps, (span.keep_stop - span.start) * steps
        parts.append(sr[first:last])
        seams.append(span.keep_stop * steps)
    errors = (torch.cat(parts) - whole).square().mean((1, 2, 3))
    close = [
        t
        for t in range(len(errors))
        if any(abs(t + 0.5 - seam) < near * steps for seam in seams[:-1])
    ]
    return -10 * math.log10(max(float(errors[close].max()), 1e-16))


def main() -> None:
    """Print a table: networks down, clips across."""
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
    parser.add_argument("--frames", type=int, default=30)
    parser.add_argument("--window", type=int, default=16)
    parser.add_argument(
        "--overlaps",
        type=int,
        nargs="+",
        default=[],
        help="frames; by default what the model asks for",
    )
    parser.add_argument("--near", type=int, default=4)
    parser.add_argument("--height", type=int, default=48, help="of the input, pixels")
    options = parser.parse_args()
    networks = random_networks()
    if options.weights:
        opened = [(path, open_checkpoint(path)) for path in options.weights]
        known = [
            (path.parent.name, prepare_for_inference(o.model), o.architecture.contract(o.config))
            for path, o in opened
        ]
        networks = [
            (name, model, contract) for name, model, contract in known if contract is not None
        ]
    folders = sorted(path for path in options.clips.iterdir() if path.is_dir())
    print(
        f"| network | overlap | {' | '.join(folder.name for folder in folders)} |\n{'|---' * (2 + len(folders))}|"
    )
    for name, model, contract in networks:
        for overlap in options.overlaps or [contract.temporal.overlap_frames or OVERLAP]:
            cells: list[str] = []
            for folder in folders:
                lq = shrink(read_clip(folder, max_frames=options.frames), options.height)
                if len(lq) <= options.window:
                    cells.append("–")
                    continue
                shape = {"size": options.window, "overlap": overlap, "streams": contract.streams}
                cells.append(f"{worst_psnr(model, lq, **shape, near=options.near):.1f}")
            print(f"| {name} | {overlap} | {' | '.join(cells)} |", flush=True)


def shrink(frames: NDArray[np.uint8], height: int) -> Tensor:
    """Bring a clip (T, 3, H, W) uint8 to a small height, both sides multiples of 16."""
    gt = torch.from_numpy(frames).float() / 255
    small = torch.stack([imresize(frame, height / gt.shape[2]) for frame in gt]).clamp(0, 1)
    return small[..., : height // 16 * 16, : small.shape[3] // 16 * 16]


if __name__ == "__main__":
    main()
