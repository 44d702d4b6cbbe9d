"""How much memory there is, how much a model takes, and how to recognize that it ran out."""

from __future__ import annotations

import math
import shutil
import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tubelet.restore.plan import MemoryBudget

__all__ = ["free_bytes", "is_out_of_memory", "measure_budget", "peak_tensor_bytes", "spare_bytes"]

_MEMORY_FRACTION = 0.5
"""Of the free memory; the rest is for queues, the encoder and other programs."""

_OUT_OF_MEMORY_MESSAGES = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "defaultcpuallocator",
    "cublas_status_alloc_failed",
    "cudnn_status_alloc_failed",
)
_CGROUP = Path("/sys/fs/cgroup")


def free_bytes(device: torch.device) -> int:
    """Tell how many bytes can still be allocated on a device; on a CPU, container limits are respected."""
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    available = psutil.virtual_memory().available
    try:
        limit = int((_CGROUP / "memory.max").read_text())
        used = int((_CGROUP / "memory.current").read_text())
    except (OSError, ValueError):  # no cgroup v2, or the limit is "max"
        return available
    return min(available, max(0, limit - used))


def measure_budget(device: torch.device, memory_gib: float | None = None) -> MemoryBudget:
    """Decide how many bytes a run may take.

    Free memory changes from moment to moment, and a plan should not: it is rounded down to a power of two, or to one
    and a half times such a power.

    Args:
        device: that computes.
        memory_gib: what the settings allow on it; None: half of what is free.
    """
    cpu = torch.device("cpu")
    host_bytes = _round_down(_MEMORY_FRACTION * free_bytes(cpu))
    device_bytes = host_bytes
    if device.type != "cpu":
        device_bytes = _round_down(_MEMORY_FRACTION * free_bytes(device))
    if memory_gib is not None:
        device_bytes = int(memory_gib * 2**30)
        host_bytes = device_bytes if device.type == "cpu" else host_bytes
    return MemoryBudget(
        device_bytes=device_bytes,
        host_bytes=host_bytes,
        file_bytes=_round_down(spare_bytes(None)),
    )


def _round_down(num_bytes: float) -> int:
    """Round down to 2ⁿ or 1.5 · 2ⁿ."""
    if num_bytes < 2:
        return int(num_bytes)
    power = 2 ** math.floor(math.log2(num_bytes))
    return power * 3 // 2 if num_bytes >= 1.5 * power else power


def spare_bytes(folder: Path | None) -> int:
    """Tell how many bytes of features a temporary file may hold: half of what is free, none in a folder in memory.

    Args:
        folder: of the file; None: the system's for temporary files.
    """
    place = (folder or Path(tempfile.gettempdir())).resolve()
    mounts = {Path(part.mountpoint): part.fstype for part in psutil.disk_partitions(all=True)}
    kind = next((mounts[parent] for parent in (place, *place.parents) if parent in mounts), "")
    return 0 if kind in {"tmpfs", "ramfs"} else shutil.disk_usage(place).free // 2


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an exception means that memory ran out; torch says so in several ways."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(
        sign in str(error).lower() for sign in _OUT_OF_MEMORY_MESSAGES
    )


def peak_tensor_bytes(run: Callable[[], object]) -> int:
    """Measure the most bytes of tensors that live at once while `run` computes.

    Work space inside an operation is not seen: callers add a margin.

    Args:
        run: called once; tensors that exist before are not counted.
    """
    with _LiveTensors() as live:
        run()
    return live.peak_bytes


class _LiveTensors(TorchDispatchMode):
    """Counts every storage that an operation makes, until it is freed."""

    def __init__(self) -> None:
        super().__init__()
        self.now_bytes = 0
        self.peak_bytes = 0
        self._known: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {
            _storage_id(leaf)
            for leaf in tree_leaves((args, kwargs))
            if isinstance(leaf, torch.Tensor)
        }
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor) and _storage_id(leaf) not in before:
                self._watch(leaf)
        return out

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return (
            False  # True wraps the method above so that its first call imports torch._dynamo: 1.5 s
        )

    def _watch(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = _storage_id(tensor), storage.nbytes()
        if key in self._known:
            return

        def freed(_: object) -> None:
            self.now_bytes -= size
            self._known.pop(key, None)

        self._known[key] = weakref.ref(storage, freed)
        self.now_bytes += size
        self.peak_bytes = max(self.peak_bytes, self.now_bytes)


def _storage_id(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata  # pyright: ignore[reportPrivateUsage]
