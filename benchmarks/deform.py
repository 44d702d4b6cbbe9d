"""Measure deformable convolution beside torchvision's and the plain oracle; prints a Markdown table.

64 channels in and out, 3×3, 180×320, batch 1, with a mask, float32; the ways take turns, so that a busy moment falls on
all alike. OMP_NUM_THREADS chooses the threads.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torchvision.ops import deform_conv2d as torchvision_deform_conv2d

from tubelet.evaluation.machine import processor_name
from tubelet.ops.deform import deform_conv2d, deform_conv2d_reference

CHANNELS, HEIGHT, WIDTH, TAPS = 64, 180, 320, 9
WAYS: dict[str, Callable[..., Tensor]] = {
    "tubelet": deform_conv2d,
    "torchvision": lambda x, offset, weight, bias, mask: torchvision_deform_conv2d(
        x, offset, weight, bias, padding=1, mask=mask
    ),
    "oracle": deform_conv2d_reference,
}


def make_inputs(groups: int, layout: torch.memory_format) -> dict[str, Tensor]:
    """Random features; offsets of some pixels."""
    torch.manual_seed(0)
    inputs = {
        "x": torch.randn(1, CHANNELS, HEIGHT, WIDTH),
        "offset": 3 * torch.randn(1, 2 * groups * TAPS, HEIGHT, WIDTH),
        "weight": torch.randn(CHANNELS, CHANNELS, 3, 3) / 24,
        "bias": torch.randn(CHANNELS),
        "mask": torch.rand(1, groups * TAPS, HEIGHT, WIDTH),
    }
    return {
        name: t.to(memory_format=layout) if t.ndim == 4 and name != "weight" else t
        for name, t in inputs.items()
    }


def run(way: str, inputs: dict[str, Tensor], *, learn: bool) -> float:
    """Return the seconds of one forward pass, or of a forward and a backward pass."""
    leaves = {name: t.detach().requires_grad_(learn) for name, t in inputs.items()}
    steps = {} if way == "torchvision" else {"padding": 1}
    start = time.perf_counter()
    with torch.set_grad_enabled(learn):
        out = WAYS[way](**leaves, **steps)
    if learn:
        out.backward(torch.ones_like(out))
    return time.perf_counter() - start


def main() -> None:
    """Run the chosen ways in turns, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7, help="runs of each way")
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    args = parser.parse_args()
    print(
        f"{processor_name()}, {torch.get_num_threads()} threads, PyTorch {torch.__version__}; median ms\n"
    )
    print("| groups | layout | pass | " + " | ".join(args.ways) + " | torchvision / tubelet |")
    print("|---|---|---|" + "---|" * (len(args.ways) + 1))
    for groups in (16, 8, 1):
        for name, layout in (
            ("NCHW", torch.contiguous_format),
            ("channels last", torch.channels_last),
        ):
            inputs = make_inputs(groups, layout)
            for learn in (False, True):
                runs: dict[str, list[float]] = {way: [] for way in args.ways}
                for _ in range(args.repeats + 1):
                    for way, times in runs.items():
                        times.append(run(way, inputs, learn=learn))
                medians = {
                    way: statistics.median(times[1:]) for way, times in runs.items()
                }  # the first warms up
                ratio = medians.get("torchvision", 0.0) / medians.get("tubelet", float("inf"))
                cells = " | ".join(f"{1000 * value:.0f}" for value in medians.values())
                print(
                    f"| {groups} | {name} | {'forward + backward' if learn else 'forward'} | {cells} | {ratio:.1f} |"
                )


if __name__ == "__main__":
    main()
