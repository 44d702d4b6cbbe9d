"""Score SpyNet: end-point error on unseen synthetic pairs, warping error on real clips.

    python benchmarks/spynet.py --images ../shared/data/train_image --clips ../shared/data/dev_eval

The pairs are made of the images that `tubelet train spynet` holds out (every 8th), with seeds of their own. The
warping error is the mean squared difference (R, G, B in [0, 1]) between a frame and the next one, warped onto it. A
pixel moves where DIS, an estimator that is not trained, finds at least `--moving-px` of motion; both are told, the
error of all pixels and of those that move. Without OpenCV there is no DIS, and all pixels count.

`--embed made.json` puts `--weights` into the package, in half precision, with what made.json tells of their making.
"""

import argparse
import hashlib
import itertools
import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import tubelet
from tubelet.data import read_clip
from tubelet.data.motion import MotionSettings, MovingImages, find_images
from tubelet.layers.spynet import SpyNet, load_spynet
from tubelet.metrics.temporal import warp
from tubelet.ops import imresize
from tubelet.recipes.spynet import score_pairs, split_images
from tubelet.zoo.checkpoint import load_model, save_checkpoint

Estimate = Callable[[Tensor, Tensor], Tensor]
WEIGHTS = Path(tubelet.__path__[0]) / "weights"


def dis() -> Estimate | None:
    """Make the estimator of OpenCV, if there is one."""
    try:
        import cv2
    except ImportError:
        return None
    estimator = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)

    def gray(x: Tensor) -> object:
        return (x[0] * 255).round().byte().permute(1, 2, 0).numpy() @ [0.299, 0.587, 0.114]

    def estimate(ref: Tensor, supp: Tensor) -> Tensor:
        flow = estimator.calc(gray(ref).astype("uint8"), gray(supp).astype("uint8"), None)
        return torch.from_numpy(flow).permute(2, 0, 1)[None]

    return estimate


def print_pairs(images: Path, methods: dict[str, Estimate], count: int) -> None:
    """Print the end-point errors."""
    _, unseen = split_images(find_images([images]), 8)
    print("\nEnd-point error, px, on unseen pairs; motion up to 20 px")
    print(f"| frames | zero | {' | '.join(f'{m} | of zero | visible' for m in methods)} |")
    print("|---" * (2 + 3 * len(methods)) + "|")
    for side in (128, 192, 256):
        source = MovingImages(unseen, MotionSettings(patch_px=side), seed=2017)
        pairs = [source.pair(i) for i in range(count)]
        scores = {name: score_pairs(method, pairs) for name, method in methods.items()}
        zero = next(iter(scores.values()))["epe_zero"]
        cells = [
            f"{s['epe']:.2f} | {s['epe'] / zero:.3f} | {s['epe_visible']:.2f}"
            for s in scores.values()
        ]
        print(f"| {side}×{side} | {zero:.2f} | {' | '.join(cells)} |", flush=True)


@torch.inference_mode()
def errors(
    methods: dict[str, Estimate], frames: Tensor, moving_px: float
) -> tuple[dict[str, float], float]:
    """Measure the warping errors of a clip: {method, of all or of moving pixels: error}, and the share that moves."""
    sums: dict[str, float] = {}
    moving_pixels = pixels = 0.0
    for ref, supp in itertools.pairwise(frames):
        flows = {name: method(ref[None], supp[None])[0] for name, method in methods.items()}
        flows["zero"] = torch.zeros_like(next(iter(flows.values())))
        moving = (
            flows["DIS"].square().sum(0) >= moving_px**2
            if "DIS" in flows
            else torch.ones_like(ref[0]) > 0
        )
        pixels, moving_pixels = pixels + moving.numel(), moving_pixels + float(moving.sum())
        for name, flow in flows.items():
            error = (ref - warp(supp, flow)).square().mean(0)
            sums[name] = sums.get(name, 0.0) + float(error.sum())
            sums[f"{name} moving"] = sums.get(f"{name} moving", 0.0) + float(error[moving].sum())
    means = {
        name: s / max(1.0, moving_pixels if name.endswith("moving") else pixels)
        for name, s in sums.items()
    }
    return means, moving_pixels / pixels


def print_clips(clips: Path, methods: dict[str, Estimate], count: int, moving_px: float) -> None:
    """Print the warping errors, as shares of those without motion."""
    print(f"\nWarping error, of that with zero flow; moving: DIS finds at least {moving_px} px")
    columns = [f"{m}{kind}" for kind in ("", " moving") for m in methods]
    print(f"| clip | size | moves | {' | '.join(columns)} |\n{'|---' * (3 + len(columns))}|")
    for folder in sorted(path for path in clips.iterdir() if path.is_dir()):
        gt = torch.from_numpy(read_clip(folder, max_frames=count, size_multiple=4)).float() / 255
        for frames in (imresize(gt, 1 / 4).clamp(0, 1), gt):
            means, share = errors(methods, frames, moving_px)
            size = f"{frames.shape[3]}×{frames.shape[2]}"
            shares = [
                means[c] / max(means["zero moving" if "moving" in c else "zero"], 1e-12)
                for c in columns
            ]
            print(
                f"| {folder.name} | {size} | {share:.0%} | {' | '.join(f'{s:.2f}' for s in shares)} |",
                flush=True,
            )


def embed(network: SpyNet, made: dict[str, object]) -> None:
    """Write the weights that `load_spynet` reads, and their entry in parts.json."""
    path = WEIGHTS / "spynet.safetensors"
    save_checkpoint(path, network.half(), {})
    entry = {
        "architecture": "SpyNet",
        "license": "Apache-2.0",
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }
    text = json.dumps({"spynet": entry | made}, indent=1, ensure_ascii=False)
    (WEIGHTS / "parts.json").write_text(text + "\n", encoding="utf-8")
    print(f"{path}: {path.stat().st_size} bytes")


def main() -> None:
    """Score a network on pairs and clips, or embed it where that was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=Path, help="folder that the pairs are made of")
    parser.add_argument("--clips", type=Path, help="folder of folders of frames")
    parser.add_argument("--weights", type=Path, help="a SpyNet instead of the embedded one")
    parser.add_argument("--pairs", type=int, default=100)
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--moving-px", type=float, default=0.25)
    parser.add_argument("--embed", type=Path, help="JSON of how the weights were made")
    options = parser.parse_args()
    network = SpyNet() if options.weights is None else load_model(options.weights)
    if options.weights is None:
        load_spynet(network)
    assert isinstance(network, SpyNet)
    if options.embed is not None:
        embed(network, json.loads(options.embed.read_text(encoding="utf-8")))
        return
    methods: dict[str, Estimate] = {"SpyNet": network.to(memory_format=torch.channels_last)}
    reference = dis()
    if reference is not None:
        methods["DIS"] = reference
    if options.images is not None:
        print_pairs(options.images, methods, options.pairs)
    if options.clips is not None:
        print_clips(options.clips, methods, options.frames, options.moving_px)


if __name__ == "__main__":
    main()
