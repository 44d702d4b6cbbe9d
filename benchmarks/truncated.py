"""Compare the memory and the time of a training step: truncated back-propagation and plain training, side by side.

    python benchmarks/truncated.py                        # LRTI-VSR-small and BasicVSR++, 64 px: 64 GB of memory
    python benchmarks/truncated.py --networks small lrti-tiny --px 32       # minutes
    python benchmarks/truncated.py --device cuda --batch 4

Arms: plain 4, 8, 16 and 24 frames, and 8 frames of clips of 40, 5 samples of each. Every run is a process of its own, and
they take turns. A step has forward and backward pass, gradient norm and Adam; that of the truncated arm has its share of
the pass over the long clip. Time: of the steps after the first clip, the processor's on the CPU. Memory: the largest total
of tensors that live at once, weights and optimizer included; on the CPU also the resident set, less that of the imports.

Bars: truncated / plain 8 at most 1.15 in memory and 1.45 in time; plain 24 / truncated at least 2.4 and 2.0; memory of plain
training linear in the frames (R² above 0.99).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tubelet.evaluation.machine import peak_resident_bytes, processor_name
from tubelet.layers.store import FeatureLimits
from tubelet.losses import charbonnier
from tubelet.models import basicvsr, basicvsr_pp, lrti_vsr
from tubelet.models.architecture import Architecture
from tubelet.restore.memory import peak_tensor_bytes
from tubelet.training import LoopSettings, RestorationLoss, train
from tubelet.training.long_clips import Samples, SampleTask, Sampling
from tubelet.training.truncated import TruncatedTask


@dataclass(frozen=True, slots=True)
class Network:
    """A network to train."""

    architecture: Architecture
    config: Any


NETWORKS = {
    "lrti-small": Network(
        lrti_vsr.ARCHITECTURE, lrti_vsr.LRTIVSRConfig(depths=(6,), num_heads=(6,))
    ),
    "basicvsr_pp": Network(basicvsr_pp.ARCHITECTURE, basicvsr_pp.BasicVSRPlusPlusConfig()),
    "basicvsr": Network(basicvsr.ARCHITECTURE, basicvsr.BasicVSRConfig()),
    "lrti-tiny": Network(
        lrti_vsr.ARCHITECTURE,
        lrti_vsr.LRTIVSRConfig(
            channels=24, depths=(2,), num_heads=(3,), mid_channels=24, hr_channels=16
        ),
    ),
    "small": Network(
        basicvsr.ARCHITECTURE,
        basicvsr.BasicVSRConfig(channels=24, num_blocks=3, hr_channels=16),
    ),
}
PLAIN_FRAMES = (4, 8, 16, 24)
LENGTH, CLIP, SAMPLES = 8, 40, 5
TRUNCATED = f"truncated {LENGTH} of {CLIP}"
ARMS = (*(f"plain {frames}" for frames in PLAIN_FRAMES), TRUNCATED)
RUN_MEASURES = ("time", "tensors")


@dataclass(frozen=True, slots=True)
class Noise:
    """Long clips of noise, uint8."""

    frames: int
    options: argparse.Namespace

    def pixels(self, step: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(step)
        side = 4 * self.options.px
        size = (self.options.batch, self.frames, 3, side, side)
        gt = torch.randint(0, 256, size, dtype=torch.uint8, generator=generator)
        return gt[..., ::4, ::4].contiguous(), gt


def make_task(network: Network, arm: str, options: argparse.Namespace) -> Any:
    """Build the task of an arm."""
    contract = network.architecture.contract(network.config)
    assert contract is not None
    loss = RestorationLoss(pixel=charbonnier)
    if arm != TRUNCATED:
        frames = int(arm.split()[1])
        sampling = Sampling(clip=frames, length=frames, samples=1, starts="all")
        return SampleTask(Samples(Noise(frames, options), sampling), loss)
    limits = FeatureLimits(host_bytes=0)
    if options.device != "cpu":
        limits = FeatureLimits(device_bytes=256 * 2**20)
    sampling = Sampling(clip=CLIP, length=LENGTH, samples=SAMPLES)
    samples = Samples(Noise(CLIP, options), sampling)
    return TruncatedTask(samples, loss, contract, limits=limits)


def run_one(options: argparse.Namespace) -> None:
    """Train one arm in a process of its own, and print its time and memory as JSON."""
    torch.set_num_threads(options.threads)
    network = NETWORKS[options.networks[0]]
    torch.manual_seed(0)
    model = network.architecture.build(network.config).to(memory_format=torch.channels_last)
    task = make_task(network, options.arm, options)
    is_cpu = options.device == "cpu"
    bytes_before = peak_resident_bytes()
    # Time at the end of every step.
    ends_s: list[float] = []

    def clock(_: object) -> None:
        if not is_cpu:
            torch.cuda.synchronize()
        ends_s.append(time.process_time() if is_cpu else time.perf_counter())

    # Whole long clips, so that every step has its share of the pass over one. The first clip also
    # allocates: its steps are not timed, and the second step has the peak.
    clip_steps = SAMPLES if options.arm == TRUNCATED else 1
    steps = clip_steps * (1 + options.repeats)
    settings = LoopSettings(
        steps=steps,
        warmup_steps=0,
        log_every=1,
        save_every=steps,
        device=options.device,
        activations=options.activations,
    )
    result: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as out:

        def run() -> None:
            train(model, task, settings, Path(out), on_log=clock)

        if options.measure == "tensors" and is_cpu:
            result["tensor_mb"] = peak_tensor_bytes(run) / 1e6
        else:
            run()
    if options.measure == "time":
        result["s"] = (ends_s[-1] - ends_s[clip_steps - 1]) / (steps - clip_steps)
        result["resident_mb"] = (peak_resident_bytes() - bytes_before) / 1e6
    if not is_cpu:
        result["tensor_mb"] = torch.cuda.max_memory_allocated() / 1e6
    print(json.dumps(result))


def measure(name: str, arm: str, what: str, options: argparse.Namespace) -> dict[str, float]:
    """Run one arm in a process."""
    arguments = ["--networks", name, "--arm", arm, "--measure", what]
    for option in ("px", "batch", "threads", "repeats", "device", "activations"):
        arguments += [f"--{option}", str(getattr(options, option))]
    done = subprocess.run(
        [sys.executable, __file__, *arguments],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def r_squared(frames: tuple[int, ...], values: list[float]) -> float:
    """How much of the variance a straight line explains."""
    slope, offset = np.polyfit(frames, values, 1)
    residuals = np.array(values) - (slope * np.array(frames) + offset)
    return 1 - residuals.var() / np.var(values)


def compare(name: str, options: argparse.Namespace) -> None:
    """Measure all arms of a network, and print its tables."""
    seen: dict[str, dict[str, float]] = {}
    for arm in ARMS:
        values = measure(name, arm, "time", options)
        if options.device == "cpu":
            values |= measure(name, arm, "tensors", options)
        seen[arm] = values
        resident = f"{values['resident_mb']:.0f}" if options.device == "cpu" else "-"
        print(
            f"| {name} | {arm} | {values['s']:.2f} | {values['tensor_mb']:.0f} | {resident} |",
            flush=True,
        )
    rows = (
        ("truncated / plain 8, memory", TRUNCATED, "plain 8", "tensor_mb", "≤ 1.15"),
        ("truncated / plain 8, time", TRUNCATED, "plain 8", "s", "≤ 1.45"),
        ("plain 24 / truncated, memory", "plain 24", TRUNCATED, "tensor_mb", "≥ 2.4"),
        ("plain 24 / truncated, time", "plain 24", TRUNCATED, "s", "≥ 2.0"),
    )
    print(f"\n| {name} | measured | bar |\n|---|---|---|")
    for title, over, under, unit, bar in rows:
        print(f"| {title} | {seen[over][unit] / seen[under][unit]:.2f} | {bar} |")
    peaks = [seen[f"plain {frames}"]["tensor_mb"] for frames in PLAIN_FRAMES]
    print(f"| R² of memory over frames | {r_squared(PLAIN_FRAMES, peaks):.4f} | > 0.99 |\n")


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--networks", nargs="+", default=["lrti-small", "basicvsr_pp"], choices=NETWORKS
    )
    parser.add_argument("--px", type=int, default=64, help="side of the low-quality crop")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=1, help="long clips that are timed")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--activations", default="keep", choices=("keep", "recompute"))
    parser.add_argument("--arm", choices=ARMS, help=argparse.SUPPRESS)
    parser.add_argument("--measure", choices=RUN_MEASURES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.arm:
        run_one(options)
        return
    print(
        f"{date.today()}, {processor_name()}, {options.device}, {options.threads} threads; "
        f"{options.px} px, batch {options.batch}, float32, activations: {options.activations}\n"
    )
    print("| network | arm | s a step | tensors, MB | resident, MB |\n|---|---|---|---|---|")
    for name in options.networks:
        compare(name, options)


if __name__ == "__main__":
    main()
