"""Feed a video of drawn frames through the meters: milliseconds a frame, and how memory grows.

    python benchmarks/metrics.py --frames 300
    python benchmarks/metrics.py --frames 15000 --limit-mb 1000     # ten minutes of 720p

With a limit, it fails where the peak of the resident set is above.
"""

import argparse
import resource
import sys
import time

import psutil
import torch
from torch import Tensor
from torch.nn import functional

from tubelet.metrics import make_meter

DEFAULT = ["psnr-y", "ssim-y", "warp-error"]
MB = 1e6


def make_scene(height: int, width: int) -> Tensor:
    """An image with a margin for the camera to move in: (3, H + 64, W + 64)."""
    generator = torch.Generator().manual_seed(0)
    layers = [
        functional.interpolate(
            torch.rand(1, 3, n, 2 * n, generator=generator),
            (height + 64, width + 64),
            mode="bicubic",
        )
        for n in (8, 32, 128)
    ]
    return (sum(layers)[0] / 3).clamp(0, 1)


def frame(scene: Tensor, t: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """The frame at t of a camera that goes to and fro, with and without noise."""
    x, y = (abs((t * step) % 128 - 64) for step in (1, 2))
    gt = scene[:, y : y + height, x : x + width]
    return (gt + 0.02 * torch.randn(3, 1, width)).clamp(0, 1), gt


def resident_mb() -> float:
    return psutil.Process().memory_info().rss / MB


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MB


def main() -> int:
    """Feed the video to the meters; 1 where the peak of memory is above the limit."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--frames", type=int, default=300)
    parser.add_argument("--size", type=int, nargs=2, default=(1280, 720), metavar=("W", "H"))
    parser.add_argument("--metrics", nargs="+", default=DEFAULT)
    parser.add_argument("--limit-mb", type=float, default=None)
    options = parser.parse_args()
    width, height = options.size
    scene = make_scene(height, width)
    meters = {name: make_meter(name) for name in options.metrics}
    spent = dict.fromkeys(meters, 0.0)
    print("| frames | resident, MB | peak, MB |\n|---|---|---|")
    for t in range(options.frames):
        sr, gt = frame(scene, t, height, width)
        for name, meter in meters.items():
            start = time.perf_counter()
            meter.update(sr, gt)
            spent[name] += time.perf_counter() - start
        if t + 1 in (10, 100) or (t + 1) % 1000 == 0 or t + 1 == options.frames:
            print(f"| {t + 1} | {resident_mb():.0f} | {peak_mb():.0f} |", flush=True)
    print(
        f"\n{width}×{height}, {torch.get_num_threads()} threads\n\n| metric | ms a frame | score |\n|---|---|---|"
    )
    for name, meter in meters.items():
        print(f"| {name} | {1000 * spent[name] / options.frames:.1f} | {meter.mean():.5g} |")
    if options.limit_mb is not None and peak_mb() > options.limit_mb:
        print(f"the peak of {peak_mb():.0f} MB is above {options.limit_mb:.0f} MB", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
