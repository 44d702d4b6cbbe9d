"""Features of a clip between the passes of a network, in bounded memory.

    append ── device, up to its limit ── host memory, up to its limit ── temporary file ── get, pop

A network that runs over a clip several times keeps the features of every frame. The store holds
them by frame and moves tensors that exceed a limit to the next place on the right. It returns them
bit for bit, in their original memory layout.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, cast

import torch
from torch import Tensor

from tubelet.errors import ConfigError, ResourceError

__all__ = ["FeatureLimits", "FeatureStore", "Key", "open_store"]

Key = int | tuple[str, int]
"""A frame; or a name and a frame, where several sequences share a store and its limits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureLimits:
    """Memory limits of a `FeatureStore`: features beyond one go to the next slower place."""

    device_bytes: int | None = None
    """Limit on the computing device, if it has its own memory; None: unlimited."""
    host_bytes: int | None = 2**30
    """Limit in host memory; None: unlimited."""
    folder: Path | None = None
    """Folder of the temporary file, which must be on a disk; None: the system's."""

    def __post_init__(self) -> None:
        for name in ("device_bytes", "host_bytes"):
            limit = getattr(self, name)
            if limit is not None and limit < 0:
                raise ConfigError(f"{name}={limit} must be at least 0; None lifts the limit")


class FeatureStore:
    """Features by frame, each frame's in the order in which they were added.

    Close it, or use it as a context. A closed store is empty and can be filled again. Tensors that
    belong to an autograd graph are never moved, and do not count.

    Args:
        limits: Memory limits; None: the default ones.

    Attributes:
        limits: Memory limits.
        peak_bytes: Largest total size of its tensors so far, in all places together.
    """

    def __init__(self, limits: FeatureLimits | None = None) -> None:
        self.limits = limits or FeatureLimits()
        self.peak_bytes = 0
        self._entries: dict[Key, list[_Entry]] = {}
        self._total_bytes = 0
        self._device_bytes = 0
        self._host_bytes = 0
        # Created when the first tensor does not fit into memory.
        self._spill_file: _SpillFile | None = None

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, frame: Key) -> bool:
        return frame in self._entries

    def append(self, frame: Key, feat: Tensor) -> None:
        """Add `feat` to the features of `frame`; it must not be changed afterwards.

        Raises:
            ResourceError: The temporary file cannot grow.
        """
        self._entries.setdefault(frame, []).append(self._store(feat))

    def get(self, frame: Key) -> list[Tensor]:
        """Return the features of `frame` (an empty list if there are none) and keep them."""
        entries = self._entries.get(frame, [])
        return list(map(self._load, entries))

    def pop(self, frame: Key) -> list[Tensor]:
        """Return the features of `frame` and remove them."""
        entries = self._entries.pop(frame, [])
        feats = list(map(self._load, entries))
        for entry in entries:
            self._release(entry)
        return feats

    def close(self) -> None:
        """Remove all features and the temporary file."""
        self._entries.clear()
        self._total_bytes = 0
        self._device_bytes = 0
        self._host_bytes = 0
        if self._spill_file is not None:
            self._spill_file.close()
            self._spill_file = None

    def __enter__(self) -> FeatureStore:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _store(self, feat: Tensor) -> _Entry:
        """Move a tensor to the fastest place that has room for it."""
        if feat.requires_grad:
            return _Entry(feat, None, feat.device, num_bytes=0)

        num_bytes = feat.numel() * feat.element_size()
        self._total_bytes += num_bytes
        self.peak_bytes = max(self.peak_bytes, self._total_bytes)

        if feat.device.type != "cpu":
            device_bytes = self._device_bytes + num_bytes
            if _fits(device_bytes, self.limits.device_bytes):
                self._device_bytes = device_bytes
                return _Entry(feat, None, feat.device, num_bytes)

        host_bytes = self._host_bytes + num_bytes
        if _fits(host_bytes, self.limits.host_bytes):
            self._host_bytes = host_bytes
            return _Entry(feat.cpu(), None, feat.device, num_bytes)

        if self._spill_file is None:
            self._spill_file = _SpillFile(self.limits.folder)
        slot = self._spill_file.write(feat.cpu())
        return _Entry(None, slot, feat.device, num_bytes)

    def _load(self, entry: _Entry) -> Tensor:
        """Return the tensor of an entry, on its original device."""
        if entry.feat is not None:
            return entry.feat.to(entry.device)
        assert self._spill_file is not None
        assert entry.slot is not None
        return self._spill_file.read(entry.slot).to(entry.device)

    def _release(self, entry: _Entry) -> None:
        """Give the memory of an entry back to the limit that it counts for."""
        self._total_bytes -= entry.num_bytes
        if entry.slot is not None:
            # The file has no limit; the next tensor of this size reuses the slot.
            assert self._spill_file is not None
            self._spill_file.free(entry.slot)
            return

        assert entry.feat is not None
        if entry.feat.device.type == "cpu":
            self._host_bytes -= entry.num_bytes
        else:
            self._device_bytes -= entry.num_bytes


def open_store(store: FeatureStore | None) -> FeatureStore:
    """Return the caller's store, or a new one; used as a context, either is empty at the end."""
    # An empty store is false because of its length, so `or` would replace it.
    if store is None:
        return FeatureStore()
    return store


def _fits(num_bytes: int, limit: int | None) -> bool:
    return limit is None or num_bytes <= limit


@dataclass(slots=True)
class _Slot:
    """Position of a tensor in the temporary file, and how to rebuild it."""

    offset: int
    num_bytes: int
    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype


@dataclass(slots=True)
class _Entry:
    """A stored tensor, either in memory or in a slot of the file."""

    feat: Tensor | None
    slot: _Slot | None
    device: torch.device
    """Original device, to which it returns."""
    num_bytes: int
    """Bytes that count for a limit."""


class _SpillFile:
    """A nameless temporary file of tensors, which reuses freed slots for tensors of the same size.

    It is read and written, not mapped: pages of a mapping would count as memory of the process.
    """

    def __init__(self, folder: Path | None) -> None:
        try:
            # The store closes it, in `close`.
            self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115
        except OSError as error:
            raise ResourceError(
                f"cannot create a temporary file for features: {error}; set TMPDIR"
            ) from error
        self._end = 0
        # Offsets of freed slots, by size in bytes.
        self._free_offsets: dict[int, list[int]] = {}

    def write(self, feat: Tensor) -> _Slot:
        """Write a tensor to a free slot of its size, or at the end."""
        if not _is_dense(feat):
            feat = feat.contiguous()
        num_bytes = feat.numel() * feat.element_size()
        free_offsets = self._free_offsets.get(num_bytes)
        if free_offsets:
            offset = free_offsets.pop()
        else:
            offset = self._end
            self._end += num_bytes

        content = _bytes_of(feat)
        num_written = 0
        self._file.seek(offset)
        try:
            while num_written < num_bytes:
                num_written += self._file.write(content[num_written:])
        except OSError as error:
            raise ResourceError(
                f"cannot write {num_bytes} bytes of features to a temporary file: {error}"
            ) from error
        return _Slot(
            offset,
            num_bytes,
            feat.shape,
            feat.stride(),
            feat.dtype,
        )

    def read(self, slot: _Slot) -> Tensor:
        """Read the tensor of a slot."""
        feat = torch.empty_strided(slot.shape, slot.stride, dtype=slot.dtype)
        content = _bytes_of(feat)
        file = cast(Any, self._file)
        num_read = 0
        file.seek(slot.offset)
        while num_read < slot.num_bytes:
            count = cast(int, file.readinto(content[num_read:]))
            if not count:
                raise ResourceError("another program truncated the temporary file of features")
            num_read += count
        return feat

    def free(self, slot: _Slot) -> None:
        """Make a slot available to tensors of the same size."""
        self._free_offsets.setdefault(slot.num_bytes, []).append(slot.offset)

    def close(self) -> None:
        """Close the file, which removes it."""
        self._file.close()


def _is_dense(feat: Tensor) -> bool:
    """Return whether the elements of a tensor fill its memory without gaps."""
    if feat.is_contiguous():
        return True
    return feat.ndim == 4 and feat.is_contiguous(memory_format=torch.channels_last)


def _bytes_of(feat: Tensor) -> memoryview:
    """View a dense tensor as its bytes, in memory order."""
    size = (feat.numel(),)
    stride = (1,)
    flat = feat.detach().as_strided(size, stride)
    return memoryview(cast(Any, flat.view(torch.uint8).numpy()))
