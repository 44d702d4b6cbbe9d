"""Measure free memory and the memory use of a model, and recognize out-of-memory errors."""

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

from tubelet.malloc import return_freed_memory
from tubelet.restore.plan import MemoryBudget

__all__ = ["free_bytes", "is_out_of_memory", "measure_budget", "peak_tensor_bytes", "spare_bytes"]

_MEMORY_FRACTION = 0.5
"""Share of the free memory to use; the remainder is for queues, the encoder and other programs."""

_OUT_OF_MEMORY_MESSAGES = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "defaultcpuallocator",
    "cublas_status_alloc_failed",
    "cudnn_status_alloc_failed",
)
_CGROUP = Path("/sys/fs/cgroup")


def free_bytes(device: torch.device, *, cgroup: Path = _CGROUP) -> int:
    """Return the number of bytes that can still be allocated on a device.

    On a CPU, the limits of a container are respected.

    Args:
        device: Device of the memory.
        cgroup: Folder with the files of the container's limits (cgroup v2).
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        # Memory that torch reserved and does not use can be allocated, too.
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return free + cached
    available = psutil.virtual_memory().available
    try:
        limit = int((cgroup / "memory.max").read_text())
        used = int((cgroup / "memory.current").read_text())
    except (OSError, ValueError):
        # There is no cgroup v2, or the limit is "max".
        return available
    return min(available, max(0, limit - used))


def measure_budget(device: torch.device, memory_gib: float | None = None) -> MemoryBudget:
    """Choose how many bytes a run may use.

    Free memory changes from moment to moment, and a plan should not: it is rounded down to a power
    of two, or to one and a half times such a power.

    Args:
        device: Device of the model.
        memory_gib: Memory that the settings allow on it; None: half of the free memory.
    """
    # What an earlier run of this process left is free, too.
    return_freed_memory()
    cpu = torch.device("cpu")
    host_bytes = _round_down(_MEMORY_FRACTION * free_bytes(cpu))
    device_bytes = host_bytes
    if device.type != "cpu":
        device_bytes = _round_down(_MEMORY_FRACTION * free_bytes(device))
    if memory_gib is not None:
        device_bytes = int(memory_gib * 2**30)
        if device.type == "cpu":
            host_bytes = device_bytes
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
    if num_bytes >= 1.5 * power:
        return power * 3 // 2
    return power


def spare_bytes(folder: Path | None) -> int:
    """Return the number of bytes of features that a temporary file may hold.

    It is half of the free disk space, and 0 if the folder is in memory.

    Args:
        folder: Folder of the file; None is the system's folder for temporary files.
    """
    path = (folder or Path(tempfile.gettempdir())).resolve()
    file_systems: dict[Path, str] = {}
    for mount in psutil.disk_partitions(all=True):
        file_systems[Path(mount.mountpoint)] = mount.fstype
    # The nearest mount point above the folder determines its file system.
    for parent in (path, *path.parents):
        if parent in file_systems:
            if file_systems[parent] in ("tmpfs", "ramfs"):
                return 0
            break
    return shutil.disk_usage(path).free // 2


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an exception means out of memory, for which torch has several messages."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    if not isinstance(error, RuntimeError):
        return False
    message = str(error).lower()
    return any(phrase in message for phrase in _OUT_OF_MEMORY_MESSAGES)


def peak_tensor_bytes(run: Callable[[], object]) -> int:
    """Measure the peak memory of the tensors that exist at the same time during a call.

    Work space inside an operation is not measured, so callers add a margin.

    Args:
        run: Function to call once; tensors that exist before are not counted.
    """
    with _LiveTensors() as live:
        run()
    return live.peak_bytes


class _LiveTensors(TorchDispatchMode):
    """Counts the bytes of every storage that an operation allocates, until it is freed."""

    def __init__(self) -> None:
        super().__init__()
        self.live_bytes = 0
        self.peak_bytes = 0
        self._storages: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: Any = (),
        kwargs: Any = None,
    ) -> Any:
        # Views and in-place operations return storages of their arguments.
        input_ids: set[int] = set()
        for tensor in _tensors_in((args, kwargs)):
            input_ids.add(_storage_id(tensor))
        out = func(*args, **(kwargs or {}))
        for tensor in _tensors_in(out):
            if _storage_id(tensor) not in input_ids:
                self._count(tensor)
        return out

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # True wraps the method above so that its first call imports torch._dynamo: 1.5 s.
        return False

    def _count(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key = _storage_id(tensor)
        size_bytes = storage.nbytes()
        if key in self._storages:
            return

        def on_freed(_: object) -> None:
            self.live_bytes -= size_bytes
            self._storages.pop(key, None)

        self._storages[key] = weakref.ref(storage, on_freed)
        self.live_bytes += size_bytes
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)


def _tensors_in(tree: Any) -> list[torch.Tensor]:
    """List the tensors in nested tuples, lists and dicts."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def _storage_id(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata  # pyright: ignore[reportPrivateUsage]
