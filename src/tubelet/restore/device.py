"""Where a model runs, and in which number format."""

from __future__ import annotations

import torch

from tubelet.errors import ConfigError, ResourceError
from tubelet.types import Precision
from tubelet.zoo.spec import ModelSpec

__all__ = ["fast_precision", "number_format", "resolve_device", "resolve_precision"]

_DTYPES: dict[str, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_device(name: str) -> torch.device:
    """Find the device that a setting names.

    Args:
        name: "auto" is the first of CUDA, MPS and CPU that is there.

    Raises:
        ConfigError: torch knows no such name.
        ResourceError: this machine has no such device.
    """
    if name == "auto":
        name = (
            "cuda"
            if torch.cuda.is_available()
            else "mps"
            if torch.backends.mps.is_available()
            else "cpu"
        )
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(
            f"device={name!r} is not a device; give auto, cpu, cuda, cuda:1 or mps"
        ) from None
    present = {
        "cpu": lambda: True,
        "cuda": lambda: (
            torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count()
        ),
        "mps": torch.backends.mps.is_available,
    }
    if device.type not in present:
        raise ConfigError(f"device={name!r} is not supported; give auto, cpu, cuda, cuda:1 or mps")
    if not present[device.type]():
        raise ResourceError(f"device={name!r} is not available on this machine; give cpu")
    return device


def fast_precision(device: torch.device) -> Precision:
    """Tell which number format a device convolves fastest."""
    if device.type == "cuda":
        return "fp16"
    if device.type == "cpu" and any(
        torch.cpu.get_capabilities().get(name) for name in ("avx512_bf16", "amx_bf16")
    ):
        return "bf16"  # twice as fast as fp32 there; several times slower where the processor must emulate it
    return "fp32"


def resolve_precision(asked: str, spec: ModelSpec, device: torch.device) -> Precision:
    """Choose the number format of a model on a device.

    Args:
        asked: "auto", or a format.
        spec: names the formats that keep the model's quality.
        device: that runs it.

    Raises:
        ConfigError: the model loses quality in the format that was asked for.
    """
    if asked == "auto":
        fast = fast_precision(device)
        return fast if fast in spec.contract.precisions else "fp32"
    for precision in spec.contract.precisions:
        if precision == asked:
            return precision
    allowed = ", ".join(spec.contract.precisions)
    raise ConfigError(f"precision={asked} loses quality with {spec.id}; it takes {allowed}")


def number_format(device: torch.device, precision: Precision) -> torch.autocast:
    """Make the context in which a network computes in a format."""
    dtype = _DTYPES.get(precision)
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)
