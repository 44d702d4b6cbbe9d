"""Measure 3×3 convolutions with half their multiplications beside those with all of them; prints a Markdown table.

One image, float32, a leaky ReLU behind; "plain" is the reference form in PyTorch's default layout. The ways take turns,
so that a busy moment falls on all alike. OMP_NUM_THREADS chooses the threads. The bounds from which on
`layers/convolution.py` takes half of them (`MIN_CHANNELS` and the constants after it) come from this table.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from copy import deepcopy
from datetime import date
from unittest.mock import patch

import torch
from torch import Tensor

from tubelet.evaluation.machine import processor_name
from tubelet.layers import convolution
from tubelet.layers.convolution import ConvAct, LeakyReLU
from tubelet.layers.inference import prepare_for_inference
from tubelet.malloc import retain_freed_memory

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


def ways(conv: ConvAct, x: Tensor) -> dict[str, Callable[[], Tensor]]:
    """Make what is compared."""
    plain = ConvAct(conv.in_channels, conv.out_channels, act=LeakyReLU(0.1))
    planes = x.contiguous()
    winograd = prepare_for_inference(deepcopy(conv), "winograd")

    def all_products() -> Tensor:
        with patch.object(convolution, "MIN_CHANNELS", float("inf")):
            return conv(x)

    def half() -> Tensor:
        with patch.object(convolution, "MIN_CHANNELS", 0):
            return winograd(x)

    return {
        "plain": lambda: plain(planes),
        "all": all_products,
        "half": half,
        "taken": lambda: conv(x),
    }


def main() -> None:
    """Run the ways in turns, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=15, help="runs of each way")
    options = parser.parse_args()
    retain_freed_memory()
    print(f"{date.today()}, {processor_name()}, {torch.get_num_threads()} threads; median ms\n")
    print(
        f"| channels | size | plain | all products | half | all / half | what is taken |\n{'|---' * 7}|"
    )
    for c_in, c_out, height, width in SHAPES:
        torch.manual_seed(0)
        conv = ConvAct(c_in, c_out, act=LeakyReLU(0.1)).to(memory_format=torch.channels_last)
        prepare_for_inference(conv)
        x = torch.randn(1, c_in, height, width).contiguous(memory_format=torch.channels_last)
        compared, times = ways(conv, x), dict[str, list[float]]()
        with torch.inference_mode():
            for _ in range(options.repeats + 1):
                for name, run in compared.items():
                    start = time.perf_counter()
                    run()
                    times.setdefault(name, []).append(time.perf_counter() - start)
        ms = {name: 1000 * statistics.median(runs[1:]) for name, runs in times.items()}
        cells = [f"{ms[name]:.1f}" for name in ("plain", "all", "half")] + [
            f"{ms['all'] / ms['half']:.2f}"
        ]
        print(
            f"| {c_in} → {c_out} | {width}×{height} | {' | '.join(cells)} | {ms['taken']:.1f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
