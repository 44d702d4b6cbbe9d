"""`tubelet doctor`: what this machine can do, what is missing, and what to do about it."""

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
from tubelet.errors import TubeletError

__all__ = ["Finding", "main"]

_GB = 1 << 30
EXTRAS = (("train", "tensorboard"), ("metrics", "piq"), ("spandrel", "spandrel"))
"""Optional extras, and a package that each of them brings."""

_SPEED_SIZE = (180, 320)
_SPEED_FRAMES = 12


@dataclass(frozen=True, kw_only=True)
class DoctorFlags:
    """Say what this machine can do, and what is missing."""

    json: bool = False
    """Write JSON instead of a table."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report.

    Attributes:
        name: what was looked at.
        value: what was found.
        state: "ok", "note" for something that can be better, "missing" for what upscaling cannot do without.
        advice: what to do, where there is something to do.
    """

    name: str
    value: str
    state: Literal["ok", "note", "missing"] = "ok"
    advice: str = ""


def main(args: Sequence[str]) -> int:
    """Run the verb; 4 where something is missing that upscaling needs."""
    flags: DoctorFlags = parse(flags_from(DoctorFlags), args, verb="doctor")
    findings = list(_examine())
    if flags.json:
        write_json([asdict(finding) for finding in findings], sys.stdout)
    else:
        _print_table(findings)
    return 4 if any(finding.state == "missing" for finding in findings) else 0


def _examine() -> Iterator[Finding]:
    yield Finding(
        "Python",
        f"{platform.python_version()} on {platform.platform(terse=True)}, {platform.machine()}",
    )
    broken = [name for name in ("torch", "av", "numpy", "PIL", "safetensors") if not _imports(name)]
    if broken:
        yield Finding(
            "packages",
            f"cannot import {', '.join(broken)}",
            "missing",
            "pip install --force-reinstall tubelet",
        )
        return
    yield from _processor()
    yield from _devices()
    yield from _space()
    yield from _video()
    yield from _weights()
    yield _speed()
    yield from _extras()


def _imports(name: str) -> bool:
    try:
        importlib.import_module(name)
    except (
        ImportError,
        OSError,
    ):  # OSError: a shared library is missing or of another architecture
        return False
    return True


def _processor() -> Iterator[Finding]:
    import psutil
    import torch

    from tubelet.restore.device import fast_precision

    capability = torch.backends.cpu.get_cpu_capability()
    cores = f"{psutil.cpu_count(logical=False) or '?'} cores, {os.cpu_count()} threads"
    cores += f", torch uses {torch.get_num_threads()}"
    yield Finding("torch", torch.__version__)
    if capability in ("DEFAULT", "NO AVX"):
        yield Finding(
            "processor",
            f"{cores}; no AVX2",
            "note",
            "expect a fraction of the usual speed; prefer --device cuda",
        )
    else:
        low = ", multiplies bf16" if fast_precision(torch.device("cpu")) == "bf16" else ""
        yield Finding("processor", f"{cores}, {capability}{low}")


def _devices() -> Iterator[Finding]:
    import torch

    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        name = torch.cuda.get_device_name(index)
        yield Finding(f"cuda:{index}", f"{name}, {free / _GB:.1f} of {total / _GB:.1f} GiB free")
    if torch.backends.mps.is_available():
        yield Finding("mps", "Apple GPU")
    if not torch.cuda.is_available() and not torch.backends.mps.is_available():
        built = (
            "is built for CUDA but finds no GPU" if torch.version.cuda else "is built without CUDA"
        )
        yield Finding(
            "GPU",
            f"none; torch {built}",
            "note",
            "the fast models run well on a CPU; for others see pytorch.org",
        )


def _space() -> Iterator[Finding]:
    import torch

    from tubelet.restore.memory import free_bytes

    free = free_bytes(torch.device("cpu"))
    low = free < 2 * _GB
    yield Finding(
        "memory",
        f"{free / _GB:.1f} GiB free",
        "note" if low else "ok",
        "close other programs; large videos will be cut into tiles" if low else "",
    )
    disk = shutil.disk_usage(Path.cwd()).free
    low = disk < 2 * _GB
    yield Finding(
        "disk",
        f"{disk / _GB:.1f} GiB free here",
        "note" if low else "ok",
        "free some" if low else "",
    )


def _video() -> Iterator[Finding]:
    from tubelet.video.capabilities import library_versions, working_codecs

    versions = library_versions()
    names = ("PyAV", "libavcodec", "libavformat")
    yield Finding(
        "video", ", ".join(f"{name} {versions[name]}" for name in names if name in versions)
    )
    codecs = working_codecs()
    works = ", ".join(name for name, on in codecs.items() if on)
    fails = [name for name, on in codecs.items() if not on]
    if "h264" in fails:
        advice = "pip install --force-reinstall --only-binary av av"
        yield Finding("encoders", f"{works}; not {', '.join(fails)}", "missing", advice)
    elif fails:
        yield Finding(
            "encoders",
            f"{works}; not {', '.join(fails)}",
            "note",
            "NVENC needs an NVIDIA GPU and driver",
        )
    else:
        yield Finding("encoders", works)


def _weights() -> Iterator[Finding]:
    from tubelet.zoo.catalog import list_models
    from tubelet.zoo.opening import create_model

    intact: list[str] = []
    for spec in list_models():
        if spec.weights is None:
            continue
        try:
            create_model(spec.id)
            intact.append(spec.id)
        except TubeletError as error:
            yield Finding("weights", str(error), "missing", "pip install --force-reinstall tubelet")
    if intact:
        yield Finding("weights", f"{', '.join(intact)}: present and unchanged")


def _speed() -> Finding:
    import torch

    from tubelet.restore.engine import Engine
    from tubelet.types import Frame
    from tubelet.zoo.opening import open_model

    height, width = _SPEED_SIZE
    opened = open_model("default")
    spec = opened.spec
    engine = Engine(spec, opened.network)
    frames = [
        Frame(torch.rand(3, height, width), t, Fraction(1, 25), index=t)
        for t in range(_SPEED_FRAMES)
    ]
    began_s = 0.0
    for count, _ in enumerate(engine.restore(frames, starts_scene=lambda _: False)):
        if count == 1:  # the first two warm up
            began_s = time.perf_counter()
    fps = (len(frames) - 2) / (time.perf_counter() - began_s)
    scaled = f"{width}×{height} → {width * spec.scale}×{height * spec.scale}"
    return Finding(
        "speed", f"{fps:.1f} frames a second with {spec.id} on {engine.device}, {scaled}"
    )


def _extras() -> Iterator[Finding]:
    """Packages of the optional extras; none of them is needed to upscale."""
    for extra, package in EXTRAS:
        try:
            yield Finding(f"[{extra}]", f"{package} {version(package)}")
        except PackageNotFoundError:
            yield Finding(
                f"[{extra}]",
                f"{package} is not installed",
                "note",
                f"pip install 'tubelet[{extra}]'",
            )


def _print_table(findings: list[Finding]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    marks = {"ok": "[green]ok[/]", "note": "[yellow]note[/]", "missing": "[red]missing[/]"}
    for finding in findings:
        advice = f"\n→ {finding.advice}" if finding.advice else ""
        table.add_row(
            marks[finding.state],
            finding.name.replace("[", r"\["),
            (finding.value + advice).replace("[", r"\["),
        )
    Console(highlight=False).print(table)
