"""Compare two versions of Tubelet: time and memory of `tubelet.upscale`, model by model, in one run.

    git worktree add ../before REVISION
    python benchmarks/versions.py --before ../before/src

Both versions upscale the same drawn clip, each run in a process of its own. They take turns, so that a busy moment
falls on both. Only public names are called, which all versions have. The figures are the fastest run of each (wall-clock
seconds without import), the largest resident memory, and two ratios: of the fastest runs, and of the least CPU time, which
depends less on what else the machine does.

    python benchmarks/versions.py --before ../before/src --command --models fast-x4-real bicubic-x4 --frames 300 --runs 5

`--command` measures what a user waits for instead: `tubelet upscale` as a process of its own with all defaults, from H.264
to H.264. The figures are medians, with the spread of the runs, and the share of the cores that was used.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tubelet.evaluation.machine import processor_name
from tubelet.evaluation.scene import draw_scene
from tubelet.models import (
    basicvsr,
    basicvsr_pp,
    edsr,
    edvr,
    hat,
    iconvsr,
    ovsr,
    rrdb,
    rsdn,
    swinir,
    tdan,
)
from tubelet.models.architecture import Architecture
from tubelet.ops.resize import resample
from tubelet.zoo.catalog import find_model
from tubelet.zoo.checkpoint import save_checkpoint

_RUN = """
import json, sys, time
from pathlib import Path
import tubelet, torch
src, dst, model = sys.argv[1:]
start = time.perf_counter()
cpu_start = time.process_time()
tubelet.upscale(src, dst, model=model, device="cpu", precision="fp32", codec="h264", preset="ultrafast", overwrite=True)
spent = time.perf_counter() - start
cpu_spent = time.process_time() - cpu_start
status = Path("/proc/self/status").read_text()
peak = int(status.split("VmHWM:")[1].split()[0]) * 1024  # getrusage would count the parent, too
print(json.dumps({"seconds": spent, "cpu_seconds": cpu_spent, "peak_bytes": peak}))
"""
_COMMAND = """
import sys
from tubelet.cli import main
sys.exit(main(["upscale", *sys.argv[1:]]))
"""


@dataclass(frozen=True, slots=True)
class Row:
    """A model, and how many frames tell its time."""

    frames: int
    architecture: Architecture | None = None
    config: Any = None


ROWS = {
    "fast-x4-real": Row(60),
    "fast-x2-bi": Row(60),
    "bicubic-x4": Row(60),
    "edsr": Row(10, edsr.ARCHITECTURE, edsr.EDSRConfig()),
    "rrdbnet": Row(3, rrdb.ARCHITECTURE, rrdb.RRDBConfig()),
    "swinir": Row(2, swinir.ARCHITECTURE, swinir.SwinIRConfig()),
    "hat": Row(2, hat.ARCHITECTURE, hat.HATConfig()),
    "edvr-m": Row(10, edvr.ARCHITECTURE, edvr.EDVRConfig()),
    "tdan": Row(
        10, tdan.ARCHITECTURE, tdan.TDANConfig(deform="modulated", release="mmagic", border="zeros")
    ),
    "rsdn": Row(10, rsdn.ARCHITECTURE, rsdn.RSDNConfig()),
    "basicvsr": Row(15, basicvsr.ARCHITECTURE, basicvsr.BasicVSRConfig()),
    "iconvsr": Row(15, iconvsr.ARCHITECTURE, iconvsr.IconVSRConfig()),
    "basicvsr_pp": Row(15, basicvsr_pp.ARCHITECTURE, basicvsr_pp.BasicVSRPlusPlusConfig()),
    "ovsr": Row(10, ovsr.ARCHITECTURE, ovsr.OVSRConfig()),
}


def make_checkpoint(row: Row, path: Path, *, shallow: bool) -> str:
    """Save a network with random weights; what starts at zero (offsets) gets some too."""
    assert row.architecture is not None
    torch.manual_seed(0)
    config = replace(row.config, num_blocks=1) if shallow else row.config
    model = row.architecture.build(config)
    for name, parameter in model.named_parameters():
        if "offset" in name:
            nn.init.normal_(parameter, std=0.05)
    save_checkpoint(path, model, {})
    return str(path)


def write_clip(path: Path, frames: int, width: int, height: int) -> None:
    """Write drawn frames, over and over, as y4m."""
    drawn = [resample(gt, (height, width)).clamp(0, 1) for gt in draw_scene(min(frames, 10))]
    with path.open("wb") as file:
        file.write(f"YUV4MPEG2 W{width} H{height} F25:1 C444\n".encode())
        for t in range(frames):
            planes = (drawn[t % len(drawn)] * 219 + 16).round().to(torch.uint8)
            file.write(b"FRAME\n" + planes.contiguous().numpy().tobytes())


def run(source: Path, clip: Path, out: Path, model: str, threads: int) -> dict[str, float]:
    """Upscale once with one version."""
    environment = os.environ | {"PYTHONPATH": str(source), "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-c", _RUN, str(clip), str(out), model]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def write_h264(path: Path, frames: int, width: int, height: int) -> None:
    """Write drawn frames as H.264, with the FFmpeg of this machine."""
    raw = path.with_suffix(".y4m")
    write_clip(raw, frames, width, height)
    encode = ["-c:v", "libx264", "-crf", "18", "-pix_fmt", "yuv420p", str(path)]
    subprocess.run(["ffmpeg", "-v", "error", "-y", "-i", str(raw), *encode], check=True)


def measure(
    command: Sequence[str], environment: dict[str, str] | None = None
) -> tuple[str, dict[str, float]]:
    """Run a command: its output, its seconds, and those of all its threads."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    done = subprocess.run(command, env=environment, capture_output=True, check=True, text=True)
    seconds = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return done.stdout, {"seconds": seconds, "cpu_seconds": cpu_seconds}


def run_command(source: Path, clip: Path, out: Path, model: str) -> dict[str, float]:
    """Run `tubelet upscale` once with one version."""
    arguments = [str(clip), str(out), "--model", model, "--device", "cpu", "--overwrite"]
    command = [sys.executable, "-c", _COMMAND, *arguments]
    _, times = measure(command, os.environ | {"PYTHONPATH": str(source)})
    return times


def run_ffmpeg(clip: Path, out: Path, scale: int) -> dict[str, float]:
    """Upscale by FFmpeg's Lanczos filter, with the encoder settings that Tubelet chooses by default."""
    filters = ["-vf", f"scale=iw*{scale}:ih*{scale}:flags=lanczos"]
    encode = ["-c:v", "libx264", "-preset", "superfast", "-crf", "16"]
    _, times = measure(
        ["ffmpeg", "-v", "error", "-y", "-i", str(clip), *filters, *encode, str(out)]
    )
    return times


def compare_commands(models: Sequence[str], versions: dict[str, Path], options: Any) -> None:
    """Print a table of whole commands, with FFmpeg as the floor."""
    width, height = map(int, options.size.split("x"))
    frames = options.frames or 300
    print(
        "| model | version | s, median (range) | CPU, s | cores used | faster | CPU / FFmpeg's |\n"
        f"|{'---|' * 7}"
    )
    with tempfile.TemporaryDirectory() as folder:
        clip = Path(folder) / "clip.mp4"
        out = Path(folder) / "out.mp4"
        write_h264(clip, frames, width, height)
        for model in models:
            scale = find_model(model).scale
            runs: dict[str, list[dict[str, float]]] = {name: [] for name in ("ffmpeg", *versions)}
            for _ in range(options.runs):
                runs["ffmpeg"].append(run_ffmpeg(clip, out, scale))
                for name, source in versions.items():
                    runs[name].append(run_command(source, clip, out, model))
            medians = {
                name: {key: statistics.median(r[key] for r in results) for key in results[0]}
                for name, results in runs.items()
            }
            for name, median in medians.items():
                times = [result["seconds"] for result in runs[name]]
                cores = median["cpu_seconds"] / median["seconds"]
                faster = medians["before"]["seconds"] / median["seconds"]
                share = median["cpu_seconds"] / medians["ffmpeg"]["cpu_seconds"]
                print(
                    f"| {model} | {name} | {median['seconds']:.2f} ({min(times):.2f}–{max(times):.2f}) "
                    f"| {median['cpu_seconds']:.1f} | {cores:.2f} | {faster:.2f} | {share:.2f} |",
                    flush=True,
                )


def main() -> None:
    """Print a table: models down, versions across."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--before", type=Path, required=True, help="src folder of the other version"
    )
    parser.add_argument("--models", nargs="+", default=list(ROWS), choices=list(ROWS))
    parser.add_argument(
        "--command", action="store_true", help="whole commands; models of the package only"
    )
    parser.add_argument("--size", default="160x96", help="WxH of the input, pixels")
    parser.add_argument("--frames", type=int, help="in place of those of the table")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--shallow",
        action="store_true",
        help="one residual block a trunk, for the memory of long clips",
    )
    options = parser.parse_args()
    width, height = map(int, options.size.split("x"))
    now = Path(__file__).resolve().parents[1] / "src"
    versions = {"before": options.before.resolve(), "after": now}
    print(
        f"{date.today()}, {processor_name()}, {options.threads} threads, {options.size}, best of {options.runs}\n"
    )
    if options.command:
        compare_commands(options.models, versions, options)
        return
    print(
        "| model | frames | before, s | after, s | after / before | CPU time | before, MB | after, MB |"
    )
    print(f"|{'---|' * 8}")
    with tempfile.TemporaryDirectory() as folder:
        for name in options.models:
            row = ROWS[name]
            frames = options.frames or row.frames
            clip = Path(folder) / "clip.y4m"
            write_clip(clip, frames, width, height)
            model = name
            if row.architecture is not None:
                model = make_checkpoint(
                    row, Path(folder) / f"{name}.safetensors", shallow=options.shallow
                )
            seconds: dict[str, list[float]] = {version: [] for version in versions}
            cpu_seconds: dict[str, list[float]] = {version: [] for version in versions}
            peaks = dict.fromkeys(versions, 0.0)
            for _ in range(options.runs):
                for version, source in versions.items():
                    result = run(source, clip, Path(folder) / "out.mkv", model, options.threads)
                    seconds[version].append(result["seconds"])
                    cpu_seconds[version].append(result["cpu_seconds"])
                    peaks[version] = max(peaks[version], result["peak_bytes"])
            before, after = min(seconds["before"]), min(seconds["after"])
            ratios = f"{after / before:.2f} | {min(cpu_seconds['after']) / min(cpu_seconds['before']):.2f}"
            memory = f"{peaks['before'] / 1e6:.0f} | {peaks['after'] / 1e6:.0f}"
            print(
                f"| {name} | {frames} | {before:.2f} | {after:.2f} | {ratios} | {memory} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
