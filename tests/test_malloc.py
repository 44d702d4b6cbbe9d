import platform
import subprocess
import sys

import pytest

_MEMORY = """
import resource
from pathlib import Path

import torch

from tubelet.malloc import retain_freed_memory, return_freed_memory

def faults():
    start = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(3):
        # Larger than 32 MiB, up to which glibc can be told not to map them.
        blocks = [torch.ones(12_000_000) for _ in range(4)]
        small = torch.ones(1_000)
        del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - start, small

def resident_mb():
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) // 1024

faults()
before, _ = faults()
retain_freed_memory()
faults()
faults()
after, small = faults()
kept_mb = resident_mb()
return_freed_memory()
print(before, after, kept_mb, resident_mb())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator")
def test_freed_memory_is_kept_and_returned() -> None:
    command = [sys.executable, "-c", _MEMORY]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    before, after, kept_mb, returned_mb = map(int, done.stdout.split())
    assert after < before / 10
    assert returned_mb < kept_mb - 100
