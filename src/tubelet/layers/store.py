"""Features of a clip between the passes of a network, in bounded memory.

    append ── device, up to its bound ── host memory, up to its bound ── temporary file ── get, pop

A network that runs over a clip several times keeps the features of every frame. The store holds
them by frame and moves what is over a bound one place further out; what comes back is equal to the
bit, in the layout that went in.
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
"""A frame; or a name and a frame, where several sequences share a store and its bounds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureLimits:
    """How many bytes of features may lie where; what is over goes one place further out."""

    device_bytes: int | None = None
    """On the device that computes, where it has memory of its own; None: no bound."""
    host_bytes: int | None = 2**30
    """In the memory of the host; None: no bound."""
    folder: Path | None = None
    """Of the temporary file, not a folder that lies in memory; None: the system's."""

    def __post_init__(self) -> None:
        for name in ("device_bytes", "host_bytes"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ConfigError(f"{name}={value} must be at least 0; None lifts the bound")


class FeatureStore:
    """Features by frame, each frame's in the order in which they came.

    Close it, or use it as a context. A closed store is empty and can be filled again. Tensors that
    belong to an autograd graph stay as they are: they are never moved.

    Args:
        limits: bounds; None takes the default ones.

    Attributes:
        limits: bounds.
        peak_bytes: the most that it has held at once, wherever that lay.
    """

    def __init__(self, limits: FeatureLimits | None = None) -> None:
        self.limits = limits or FeatureLimits()
        self.peak_bytes = 0
        self._kept: dict[Key, list[_Held]] = {}
        self._device_bytes = 0
        self._host_bytes = 0
        self._spill: _SpillFile | None = None
        self._held_bytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    def __contains__(self, frame: Key) -> bool:
        return frame in self._kept

    def append(self, frame: Key, feat: Tensor) -> None:
        """Keep `feat` as the last of the features of `frame`; it must not be changed afterwards.

        Raises:
            ResourceError: the temporary file cannot grow.
        """
        self._kept.setdefault(frame, []).append(self._hold(feat))

    def get(self, frame: Key) -> list[Tensor]:
        """Return the features of `frame`, none if there are none, and keep them."""
        return [self._fetch(held) for held in self._kept.get(frame, [])]

    def pop(self, frame: Key) -> list[Tensor]:
        """Return the features of `frame` and free their place."""
        held = self._kept.pop(frame, [])
        feats = [self._fetch(one) for one in held]
        for one in held:
            self._release(one)
        return feats

    def close(self) -> None:
        """Forget everything, and remove the temporary file."""
        self._kept.clear()
        self._held_bytes = 0
        self._device_bytes = 0
        self._host_bytes = 0
        if self._spill is not None:
            self._spill.close()
            self._spill = None

    def __enter__(self) -> FeatureStore:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _hold(self, feat: Tensor) -> _Held:
        """Decide the place of a tensor, and bring it there."""
        if feat.requires_grad:
            return _Held(feat, None, feat.device, 0)
        num_bytes = feat.numel() * feat.element_size()
        self._held_bytes += num_bytes
        self.peak_bytes = max(self.peak_bytes, self._held_bytes)
        if feat.device.type != "cpu" and _fits(
            self._device_bytes + num_bytes, self.limits.device_bytes
        ):
            self._device_bytes += num_bytes
            return _Held(feat, None, feat.device, num_bytes)
        if _fits(self._host_bytes + num_bytes, self.limits.host_bytes):
            self._host_bytes += num_bytes
            return _Held(feat.cpu(), None, feat.device, num_bytes)
        if self._spill is None:
            self._spill = _SpillFile(self.limits.folder)
        return _Held(None, self._spill.write(feat.cpu()), feat.device, num_bytes)

    def _fetch(self, held: _Held) -> Tensor:
        if held.feat is not None:
            return held.feat.to(held.device)
        assert self._spill is not None
        assert held.slot is not None
        return self._spill.read(held.slot).to(held.device)

    def _release(self, held: _Held) -> None:
        self._held_bytes -= held.num_bytes
        if held.slot is not None and self._spill is not None:
            self._spill.free(held.slot)
        elif held.feat is not None and held.feat.device.type != "cpu":
            self._device_bytes -= held.num_bytes
        else:
            self._host_bytes -= held.num_bytes


def open_store(store: FeatureStore | None) -> FeatureStore:
    """Return the caller's store, or a new one; used as a context, either is empty at the end."""
    return FeatureStore() if store is None else store


@dataclass(slots=True)
class _Slot:
    """Where a tensor lies in the file, and what it was."""

    offset: int
    num_bytes: int
    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype


@dataclass(slots=True)
class _Held:
    """A tensor in memory, or its slot in the file; and the device that it belongs to."""

    feat: Tensor | None
    slot: _Slot | None
    device: torch.device
    num_bytes: int


class _SpillFile:
    """A nameless temporary file of tensors, which uses freed places again for the same size.

    It is read and written, not mapped: pages of a mapping would count as memory of the process.
    """

    def __init__(self, folder: Path | None) -> None:
        try:
            self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115 closed by close
        except OSError as error:
            raise ResourceError(
                f"cannot make a temporary file for features: {error}; set TMPDIR"
            ) from error
        self._end = 0
        self._freed: dict[int, list[int]] = {}

    def write(self, feat: Tensor) -> _Slot:
        if not (
            feat.is_contiguous()
            or (feat.ndim == 4 and feat.is_contiguous(memory_format=torch.channels_last))
        ):
            feat = feat.contiguous()  # it has gaps
        num_bytes = feat.numel() * feat.element_size()
        freed = self._freed.get(num_bytes)
        offset = freed.pop() if freed else self._end
        self._end = max(self._end, offset + num_bytes)
        content, done = _bytes_of(feat), 0
        self._file.seek(offset)
        try:
            while done < num_bytes:
                done += self._file.write(content[done:])
        except OSError as error:
            raise ResourceError(
                f"cannot write {num_bytes} bytes of features to a temporary file: {error}"
            ) from error
        return _Slot(offset, num_bytes, feat.shape, feat.stride(), feat.dtype)

    def read(self, slot: _Slot) -> Tensor:
        feat = torch.empty_strided(slot.shape, slot.stride, dtype=slot.dtype)
        content, done = _bytes_of(feat), 0
        self._file.seek(slot.offset)
        while done < slot.num_bytes:
            got = cast(int, cast(Any, self._file).readinto(content[done:]))
            if not got:
                raise ResourceError(
                    "the temporary file of features was cut short by another program"
                )
            done += got
        return feat

    def free(self, slot: _Slot) -> None:
        self._freed.setdefault(slot.num_bytes, []).append(slot.offset)

    def close(self) -> None:
        self._file.close()


def _bytes_of(feat: Tensor) -> memoryview:
    """See a tensor without gaps as its bytes in the order of the memory."""
    flat = feat.detach().as_strided((feat.numel(),), (1,))
    return memoryview(cast(Any, flat.view(torch.uint8).numpy()))


def _fits(num_bytes: int, bound: int | None) -> bool:
    return bound is None or num_bytes <= bound
