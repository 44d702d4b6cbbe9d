"""Choose the device of a model and its number format."""

from __future__ import annotations

import torch

from tubelet.errors import ConfigError, ResourceError
from tubelet.types import Precision
from tubelet.zoo.spec import ModelSpec

__all__ = ["fast_precisions", "number_format", "resolve_device", "resolve_precision"]

_DTYPES: dict[str, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16}
_BF16_CPU_FEATURES = ("avx512_bf16", "amx_bf16")


def resolve_device(name: str) -> torch.device:
    """Return the device that a setting names.

    Args:
        name: Name for torch; "auto" is the first available of CUDA, MPS and CPU.

    Raises:
        ConfigError: The name is unknown to torch or not supported.
        ResourceError: This machine has no such device.
    """
    if name == "auto":
        return torch.device(_fastest_device())
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(
            f"device={name!r} is not a device; give auto, cpu, cuda, cuda:1 or mps"
        ) from None
    if device.type not in ("cpu", "cuda", "mps"):
        raise ConfigError(f"device={name!r} is not supported; give auto, cpu, cuda, cuda:1 or mps")
    if not _is_available(device):
        raise ResourceError(f"device={name!r} is not available on this machine; give cpu")
    return device


def _fastest_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    if torch.backends.mps.is_available():
        return "mps"
    return "cpu"


def _is_available(device: torch.device) -> bool:
    if device.type == "mps":
        return torch.backends.mps.is_available()
    if device.type == "cpu":
        return True
    if not torch.cuda.is_available():
        return False
    # "cuda" without a number is the first GPU.
    index = device.index or 0
    return index < torch.cuda.device_count()


def fast_precisions(device: torch.device) -> tuple[Precision, ...]:
    """Return the number formats in which a device is faster than in fp32, the fastest first."""
    match device.type:
        case "cuda":
            return ("fp16", "bf16")
        case "cpu":
            # bf16 is two to eight times faster than fp32 with these instructions, and several times
            # slower without, where the processor must emulate it.
            features = torch.cpu.get_capabilities()
            has_fast_bf16 = any(map(features.get, _BF16_CPU_FEATURES))
            return ("bf16",) if has_fast_bf16 else ()
        case _:
            return ()


def resolve_precision(requested: str, spec: ModelSpec, device: torch.device) -> Precision:
    """Choose the number format of a model on a device.

    Args:
        requested: "auto", or a number format.
        spec: Entry of the model, which lists the formats that keep its quality.
        device: Device of the model.

    Raises:
        ConfigError: The model loses quality in the requested format.
    """
    precisions = spec.contract.precisions
    if requested == "auto":
        for precision in fast_precisions(device):
            if precision in precisions:
                return precision
        return "fp32"
    for precision in precisions:
        if precision == requested:
            return precision
    allowed = ", ".join(precisions)
    raise ConfigError(f"precision={requested} loses quality with {spec.id}; it takes {allowed}")


def number_format(device: torch.device, precision: Precision) -> torch.autocast:
    """Return the context in which a network computes in a number format."""
    dtype = _DTYPES.get(precision)
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)
