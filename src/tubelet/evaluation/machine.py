"""Properties of this machine, for the line below a table of measurements."""

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
    """The machine, the software and the date of a measurement.

    Attributes:
        processor: Name of the processor.
        cores: Number of its cores; None if the system does not provide it.
        threads: Number of threads that it runs at once.
        torch_threads: Number of threads that torch uses.
        capability: Vector instructions that torch uses, for example AVX512.
        device: Name of the GPU, or "cpu".
        torch: Version of torch.
        system: Operating system.
        date: Date, ISO 8601.
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
    """Collect the properties of this machine.

    Args:
        device: Device that is measured.
    """
    device_name = device.type
    if device.type == "cuda":
        device_name = torch.cuda.get_device_name(device)
    return Machine(
        processor=processor_name(),
        cores=psutil.cpu_count(logical=False),
        threads=os.cpu_count(),
        torch_threads=torch.get_num_threads(),
        capability=torch.backends.cpu.get_cpu_capability(),
        device=device_name,
        torch=torch.__version__,
        system=platform.platform(terse=True),
        date=date.today().isoformat(),
    )


def processor_name() -> str:
    """Return the processor's name as the operating system reports it."""
    # Only Linux has this file; `platform.processor()` is often empty there.
    cpu_info = Path("/proc/cpuinfo")
    if cpu_info.is_file():
        for line in cpu_info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or "unknown processor"


def peak_resident_bytes() -> int:
    """Return the peak memory of this process so far (resident set)."""
    # On Linux, getrusage would also count the process that started this one.
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM"):
                # "VmHWM:    123456 kB"
                return 1024 * int(line.split()[1])
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    import resource

    # On macOS, the unit is bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
