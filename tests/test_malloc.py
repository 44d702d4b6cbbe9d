import os
import platform
import subprocess
import sys

import pytest

_FAULTS = """
import resource, torch
from tubelet.malloc import retain_freed_memory

def faults():
    start = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(3):
        blocks = [torch.ones(7_000_000) for _ in range(4)]
        del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - start

faults()
before = faults()
retain_freed_memory()
faults()
print(before, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator")
def test_freed_memory_is_kept() -> None:
    environment = os.environ | {
        "MALLOC_MMAP_THRESHOLD_": str(2**17)
    }  # glibc's first one: else it learns from the sizes
    command = [sys.executable, "-c", _FAULTS]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    before, after = map(int, done.stdout.split())
    assert after < before / 10
