import shutil
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tubelet.restore import memory
from tubelet.restore.memory import (
    free_bytes,
    is_out_of_memory,
    measure_budget,
    peak_tensor_bytes,
    spare_bytes,
)

CPU = torch.device("cpu")


def test_peak_counts_what_lives_at_once():
    x = torch.zeros(1000)

    def run():
        a = x + 1  # 4000 bytes
        b = a + 1  # 8000
        del a
        c = b + 1  # 8000 again
        c += 1
        return c[10:]

    assert peak_tensor_bytes(run) == 8000


def test_peak_of_a_network_grows_with_the_area():
    model = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 4, 3, padding=1))
    with torch.inference_mode():
        small, large = (
            peak_tensor_bytes(lambda n=n: model(torch.zeros(1, 3, n, n))) for n in (16, 32)
        )
    assert small >= 16 * 16 * (16 + 4) * 4
    assert large == 4 * small


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (
            RuntimeError(
                "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: not enough memory: you tried"
            ),
            True,
        ),
        (RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_out_of_memory_is_recognized(error, expected):
    assert is_out_of_memory(error) is expected


def test_torch_itself_runs_out_of_memory_recognizably():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)


def test_container_limit_counts(tmp_path):
    unlimited = free_bytes(CPU, cgroup=tmp_path)
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("5000\n")
    assert free_bytes(CPU, cgroup=tmp_path) > unlimited // 2
    (tmp_path / "memory.max").write_text("105000\n")
    assert free_bytes(CPU, cgroup=tmp_path) == 100_000


def test_a_folder_in_memory_has_no_room_for_features(tmp_path, monkeypatch):
    kinds = {str(tmp_path): "tmpfs", "/": "ext4"}
    parts = [SimpleNamespace(mountpoint=point, fstype=kind) for point, kind in kinds.items()]
    monkeypatch.setattr(memory.psutil, "disk_partitions", lambda all: parts)
    assert spare_bytes(tmp_path / "deeper") == 0
    parts[0].fstype = "ext4"
    assert spare_bytes(tmp_path) == pytest.approx(shutil.disk_usage(tmp_path).free / 2, rel=0.1)


@pytest.mark.parametrize(
    ("free", "expected"),
    [
        (2**34, 2**33),
        (2**34 - 1, 3 * 2**31),
        (3 * 2**33, 3 * 2**32),
        (3 * 2**33 + 2**20, 3 * 2**32),
        (1, 0),
    ],
)
def test_small_changes_of_free_memory_do_not_change_the_budget(monkeypatch, free, expected):
    monkeypatch.setattr(memory, "free_bytes", lambda device: free)
    monkeypatch.setattr(memory, "spare_bytes", lambda folder: 1000)
    budget = measure_budget(CPU)
    assert (budget.device_bytes, budget.host_bytes, budget.file_bytes) == (expected, expected, 768)


def test_budget_is_what_the_settings_say():
    budget = measure_budget(CPU, 1.5)
    assert budget.device_bytes == budget.host_bytes == 3 * 2**29
