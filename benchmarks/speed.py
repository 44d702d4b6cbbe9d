"""Measure the speed and memory of upscaling on this machine; `make bench` runs it and prints the tables.

Model alone: `step` or `forward` on frames that are in memory, the median and spread over runs that take turns, so
that a busy moment falls on all alike. Its limit is the rate at which this machine multiplies matrices of the same format.
Command: `tubelet upscale` as a user starts it, on a clip drawn by code, as a process of its own: frames over the time of
the whole process, and over the time without the start of Python. Its floor is FFmpeg's Lanczos filter with the same encoder.
Larger images: the same for 640×360 ×4 and 1280×720 ×2, and the engine beside calls of the network alone.
Memory: peak resident set of that process, for a short and a ten times longer video.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import date
from fractions import Fraction
from pathlib import Path

import torch
from torch import nn

from limits import matrix_rate
from tubelet.evaluation.counting import count_flops
from tubelet.evaluation.machine import processor_name
from tubelet.evaluation.scene import draw_scene
from tubelet.layers.inference import prepare_for_inference
from tubelet.malloc import retain_freed_memory
from tubelet.ops.resize import resample
from tubelet.restore.engine import Engine
from tubelet.restore.settings import UpscaleSettings
from tubelet.types import Frame
from tubelet.video.info import ColorTags, VideoInfo
from tubelet.video.writer import EncodeSettings, open_writer
from tubelet.zoo.catalog import find_model
from tubelet.zoo.opening import open_model
from versions import measure, run_ffmpeg

WIDTH, HEIGHT = 320, 180
RUN_COMMAND = """
import json, sys
from tubelet.cli import main
code = main(["upscale", *sys.argv[1:], "--device", "cpu", "--overwrite", "--progress", "json"])
from tubelet.evaluation.machine import peak_resident_bytes  # here, so that the command loads torch in its own way
print(json.dumps({"peak_bytes": peak_resident_bytes()}))
sys.exit(code)
"""
WAYS = {
    "channels last, fp32": (torch.channels_last, torch.float32),
    "PyTorch's default layout, fp32": (torch.contiguous_format, torch.float32),
    "channels last, bf16": (torch.channels_last, torch.bfloat16),
}


LARGER = {"fast-x4-real": (640, 360), "fast-x2-real": (1280, 720)}
"""Model → width and height of a larger input."""


def frames(count: int, width: int = WIDTH, height: int = HEIGHT) -> Iterator[Frame]:
    """Drawn frames at low quality, over and over."""
    drawn = [resample(gt, (height, width)).clamp(0, 1) for gt in draw_scene(25)]
    for t in range(count):
        yield Frame(drawn[t % 25], t, Fraction(1, 25), duration=1, index=t)


def make_clip(path: Path, count: int, width: int = WIDTH, height: int = HEIGHT) -> None:
    """Write an H.264 clip."""
    info = VideoInfo(
        source="-",  # no other streams to copy
        width=width,
        height=height,
        pix_fmt="yuv420p",
        bit_depth=8,
        color=ColorTags(),
        time_base=Fraction(1, 25),
        average_rate=Fraction(25),
        duration_s=count / 25,
        frames_hint=count,
        container="",
        codec="rawvideo",
        video_index=-1,
    )
    with open_writer(
        path, like=info, width=width, height=height, settings=EncodeSettings(crf=18)
    ) as writer:
        for frame in frames(count, width, height):
            writer.write(frame)


def step_of(
    id: str,
    layout: torch.memory_format,
    dtype: torch.dtype,
    size: tuple[int, int] = (WIDTH, HEIGHT),
) -> tuple[nn.Module, Callable[[], None]]:
    """Make a network, and a function that restores the next frame, the hidden state carried along."""
    low = dtype != torch.float32
    opened = open_model(id)
    spec = opened.spec
    model = prepare_for_inference(opened.network.to(memory_format=layout))
    lq = torch.stack([f.rgb for f in frames(2, *size)])[None]
    if layout == torch.channels_last:
        lq = lq.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
    hidden = None

    def step() -> None:
        nonlocal hidden
        with (
            torch.inference_mode(),
            torch.autocast("cpu", dtype=dtype if low else None, enabled=low),
        ):
            if spec.temporal.kind == "online":
                _, hidden = model.step(lq[:, : 1 + spec.temporal.lookahead], hidden)
            else:
                model(lq[:, :1])

    return model, step


def bench_models(ids: list[str], runs: int) -> None:
    """Print milliseconds a frame of every model alone, in both memory layouts and in half precision."""
    retain_freed_memory()  # as the engine does
    steps = {(id, name): step_of(id, *way) for id in ids for name, way in WAYS.items()}
    rates = {dtype: matrix_rate(dtype) for dtype in (torch.float32, torch.bfloat16)}
    times: dict[tuple[str, str], list[float]] = {key: [] for key in steps}
    for run in range(runs + 3):
        for key, (_, step) in steps.items():
            start = time.perf_counter()
            step()
            if run >= 3:
                times[key].append(1e3 * (time.perf_counter() - start))
    print(
        f"\nModel alone, {WIDTH}x{HEIGHT}, {runs} frames each in turns. Matrix products: "
        f"fp32 {rates[torch.float32] / 1e9:.0f}, bf16 {rates[torch.bfloat16] / 1e9:.0f} GFLOP/s\n"
        "| model | how | output | ms a frame, median (10–90 %) | frames a second "
        f"| share of the limit |\n|{'---|' * 6}"
    )
    for (id, name), values in times.items():
        scale = find_model(id).scale
        deciles = statistics.quantiles(values, n=10)
        median = statistics.median(values)
        spread = f"{median:.1f} ({deciles[0]:.1f}–{deciles[8]:.1f})"
        flops = count_flops(*steps[id, name])
        share = flops / (median / 1e3) / rates[WAYS[name][1]]
        print(
            f"| {id} | {name} | {WIDTH * scale}x{HEIGHT * scale} | {spread} | {1e3 / median:.1f} "
            f"| {share:.2f} |"
        )


def bench_engine(ids: list[str], count: int) -> None:
    """Print frames a second through the engine, from frames in memory to images in memory."""
    print(f"\nThrough the engine, {count} frames\n| model | frames a second |\n|---|---|")
    clip = list(frames(count))
    for id in ids:
        opened = open_model(id)
        engine = Engine(opened.spec, opened.network, UpscaleSettings(device="cpu"))
        start = time.perf_counter()
        done = sum(frame.rgb.shape[0] == 3 for frame in engine.restore(iter(clip)))
        print(f"| {id} | {done / (time.perf_counter() - start):.1f} |", flush=True)


def run_command(clip: Path, out: Path, id: str) -> dict[str, float]:
    """Run `tubelet upscale` in a process of its own: its report, and what `measure` adds."""
    command = [sys.executable, "-c", RUN_COMMAND, str(clip), str(out), "--model", id]
    output, times = measure(command)
    lines = output.splitlines()
    return json.loads(lines[-2]) | json.loads(lines[-1]) | times  # the event "end", and the peak


def bench_command(ids: list[str], folder: Path, count: int, repeats: int) -> None:
    """Print frames a second of the whole command."""
    clip = folder / "clip.mp4"
    make_clip(clip, count)
    print(
        f"\nThe whole command, {WIDTH}x{HEIGHT} H.264 → H.264, {count} frames, median of {repeats}"
    )
    print(
        "| model | output | frames a second | with the start of Python | cores used | CPU, s "
        f"| CPU / FFmpeg's |\n|{'---|' * 7}"
    )
    for id in ids:
        scale = find_model(id).scale
        reports: list[dict[str, float]] = []
        floors: list[float] = []
        for _ in range(repeats):
            floors.append(run_ffmpeg(clip, folder / "floor.mp4", scale)["cpu_seconds"])
            reports.append(run_command(clip, folder / "out.mp4", id))
        inside = statistics.median(r["frames"] / r["elapsed_s"] for r in reports)
        whole = statistics.median(r["frames"] / r["seconds"] for r in reports)
        cores = statistics.median(r["cpu_seconds"] / r["seconds"] for r in reports)
        cpu_s = statistics.median(r["cpu_seconds"] for r in reports)
        print(
            f"| {id} | {WIDTH * scale}x{HEIGHT * scale} | {inside:.1f} | {whole:.1f} | {cores:.2f} "
            f"| {cpu_s:.1f} | {cpu_s / statistics.median(floors):.2f} |",
            flush=True,
        )


def bench_larger(folder: Path, count: int, repeats: int) -> None:
    """Print speed, memory and tiles of larger images, and the engine beside its network."""
    print(
        "\nLarger images, the whole command, and the engine beside steps of the network alone, "
        f"which take turns, {count} frames, median of {repeats}\n"
        "| model | input | output | tiles | frames a second | MB | network, ms | engine, ms "
        f"| engine / network |\n|{'---|' * 9}"
    )
    for id, size in LARGER.items():
        opened = open_model(id)
        engine = Engine(opened.spec, opened.network, UpscaleSettings(device="cpu"))
        plan = engine.plan(size[1], size[0])
        dtype = torch.bfloat16 if plan.precision == "bf16" else torch.float32
        _, step = step_of(id, torch.channels_last, dtype, size)
        lq = list(frames(count, *size))
        step()
        times: dict[str, list[float]] = {"network": [], "engine": []}
        for _ in range(repeats):
            start = time.perf_counter()
            for _ in range(count):
                step()
            middle = time.perf_counter()
            for frame in engine.restore(iter(lq), plan=plan, starts_scene=lambda _: False):
                _ = frame.rgb
            times["network"].append((middle - start) / count)
            times["engine"].append((time.perf_counter() - middle) / count)
        network_s, engine_s = map(statistics.median, times.values())
        clip = folder / f"{id}.mp4"
        make_clip(clip, count, *size)
        runs = [run_command(clip, folder / "out.mp4", id) for _ in range(repeats)]
        rate = statistics.median(run["frames"] / run["elapsed_s"] for run in runs)
        peak = max(run["peak_bytes"] for run in runs)
        print(
            f"| {id} | {size[0]}x{size[1]} | {plan.output[0]}x{plan.output[1]} | {len(plan.tiles)} "
            f"| {rate:.1f} | {peak / 1e6:.0f} | {1e3 * network_s:.0f} | {1e3 * engine_s:.0f} "
            f"| {engine_s / network_s:.3f} |",
            flush=True,
        )


def bench_memory(id: str, folder: Path, short: int) -> None:
    """Print the peak memory for a video and for one ten times as long."""
    print("\nPeak memory of the command\n| model | frames | MB |\n|---|---|---|")
    peaks = []
    for count in (short, 10 * short):
        clip = folder / f"clip-{count}.mp4"
        make_clip(clip, count)
        report = run_command(clip, folder / "out.mp4", id)
        peaks.append(report["peak_bytes"])
        print(f"| {id} | {count} | {report['peak_bytes'] / 1e6:.0f} |", flush=True)
    print(f"{10 * short} frames take {100 * (peaks[1] / peaks[0] - 1):+.1f} % against {short}")


def main() -> None:
    """Measure what was asked for, and print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--models", nargs="+", default=["fast-x4-real", "fast-x2-real", "bicubic-x4"]
    )
    parser.add_argument("--frames", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=3, help="runs of the command")
    parser.add_argument("--larger-frames", type=int, default=30, help="of larger images")
    parser.add_argument(
        "--memory-frames", type=int, default=200, help="of the short video; 0 leaves this out"
    )
    options = parser.parse_args()
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], check=False, capture_output=True, text=True
    )
    machine = f"{processor_name()}, {os.cpu_count()} cores, torch {torch.__version__}"
    print(f"{date.today()}  {machine}, {commit.stdout.strip()}")
    bench_models(options.models, options.frames)
    bench_engine(options.models, options.frames)
    with tempfile.TemporaryDirectory() as folder:
        bench_command(options.models, Path(folder), options.frames, options.repeats)
        bench_larger(Path(folder), options.larger_frames, options.repeats)
        if options.memory_frames:
            bench_memory(options.models[0], Path(folder), options.memory_frames)


if __name__ == "__main__":
    main()
