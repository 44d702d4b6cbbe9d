"""Measure 3×3 convolutions with half of their products beside those with all of them; prints a Markdown table.

One image, float32, a leaky rectifier behind; "plain" is PyTorch's default layout. The ways take turns, so that a busy
moment falls on all alike. OMP_NUM_THREADS chooses the threads. Where half is faster is what `layers/convolution.py`
takes it for (`_LEAST_CHANNELS` and what follows there).
"""

import argparse
import statistics
import time
from collections.abc import Callable
from datetime import date
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn import functional

from tubelet.evaluation.machine import processor_name
from tubelet.layers import convolution
from tubelet.restore.memory import keep_freed

SHAPES = (
    (64, 64, 180, 320),
    (64, 64, 90, 160),
    (64, 64, 720, 1280),
    (64, 256, 180, 320),
    (32, 32, 180, 320),
    (128, 32, 180, 320),
    (192, 64, 180, 320),
    (96, 96, 90, 160),
    (128, 128, 180, 320),
    (128, 128, 44, 80),
    (180, 180, 180, 320),
    (256, 256, 90, 160),
    (256, 256, 24, 40),
)


def ways(conv: nn.Conv2d, x: Tensor) -> dict[str, Callable[[], Tensor]]:
    """Make what is compared."""
    plain, planes = nn.Conv2d(conv.in_channels, conv.out_channels, 3, padding=1), x.contiguous()

    def taken() -> Tensor:
        return convolution.convolve(conv, x, 0.1)

    def all_products() -> Tensor:
        with patch.object(convolution, "_LEAST_CHANNELS", float("inf")):
            return taken()

    def half() -> Tensor:
        with patch.object(convolution, "_LEAST_CHANNELS", 0), convolution.convolving("as large"):
            return taken()

    return {
        "plain": lambda: functional.leaky_relu_(plain(planes), 0.1),
        "all": all_products,
        "half": half,
        "taken": taken,
    }


def main() -> None:
    """Run the ways in turns, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=15, help="runs of each way")
    options = parser.parse_args()
    keep_freed()
    print(f"{date.today()}, {processor_name()}, {torch.get_num_threads()} threads; median ms\n")
    print(f"| channels | size | plain | all products | half | all / half | what is taken |\n{'|---' * 7}|")
    for c_in, c_out, height, width in SHAPES:
        torch.manual_seed(0)
        conv = nn.Conv2d(c_in, c_out, 3, padding=1).to(memory_format=torch.channels_last)
        x = torch.randn(1, c_in, height, width).contiguous(memory_format=torch.channels_last)
        compared, times = ways(conv, x), dict[str, list[float]]()
        with torch.inference_mode():
            for _ in range(options.repeats + 1):
                for name, run in compared.items():
                    start = time.perf_counter()
                    run()
                    times.setdefault(name, []).append(time.perf_counter() - start)
        ms = {name: 1000 * statistics.median(runs[1:]) for name, runs in times.items()}
        cells = [f"{ms[name]:.1f}" for name in ("plain", "all", "half")] + [f"{ms['all'] / ms['half']:.2f}"]
        print(f"| {c_in} → {c_out} | {width}×{height} | {' | '.join(cells)} | {ms['taken']:.1f} |", flush=True)


if __name__ == "__main__":
    main()
