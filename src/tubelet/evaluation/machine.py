"""This machine, for the line below a table of measurements."""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import psutil
import torch

__all__ = ["Machine", "describe_machine", "peak_resident_bytes", "processor_name"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Where and when something was measured.

    Attributes:
        processor: as the system names it.
        cores: of the processor; None where the system does not say.
        threads: that the processor runs at once.
        torch_threads: that torch uses.
        capability: vector instructions that torch found, for example AVX512.
        device: name of the GPU, or "cpu".
        torch: its version.
        system: operating system.
        date: ISO 8601.
    """

    processor: str
    cores: int | None
    threads: int | None
    torch_threads: int
    capability: str
    device: str
    torch: str
    system: str
    date: str


def describe_machine(device: torch.device) -> Machine:
    """Describe this machine, for a line below a table."""
    return Machine(
        processor=processor_name(),
        cores=psutil.cpu_count(logical=False),
        threads=os.cpu_count(),
        torch_threads=torch.get_num_threads(),
        capability=torch.backends.cpu.get_cpu_capability(),
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        torch=torch.__version__,
        system=platform.platform(terse=True),
        date=date.today().isoformat(),
    )


def processor_name() -> str:
    """Name the processor as the system does."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or "unknown processor")


def peak_resident_bytes() -> int:
    """Tell the most memory that this process had so far (resident set)."""
    status = Path("/proc/self/status")
    if status.is_file():  # getrusage would count the process that started this one, too
        line = next(
            line
            for line in status.read_text(encoding="utf-8").splitlines()
            if line.startswith("VmHWM")
        )
        return 1024 * int(line.split()[1])
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS: bytes
