"""Files of tensors, read as data alone: nothing in them is executed.

What a file is, its first bytes tell, not its name. Files that are something else, because a download failed or a
converter is missing, are told apart, each with one line that says what to do.
"""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tubelet.errors import CheckpointError

__all__ = ["expansion_fault", "is_torchscript", "read_content", "read_header", "read_safetensors"]

_AGAIN = "fetch it again, from the link of the file itself"
_FIRST_BYTES: tuple[tuple[bytes, str], ...] = (
    (
        b"version https://git-lfs",
        "is a pointer of git-lfs, not the file; run `git lfs pull`, or download the file",
    ),
    (b"<!doctype html", f"is a web page, which a failed download left; {_AGAIN}"),
    (b"<html", f"is a web page, which a failed download left; {_AGAIN}"),
    (b"<?xml", f"is an XML message, which a failed download left; {_AGAIN}"),
    (b"gguf", "is a GGUF file; Tubelet reads .safetensors and PyTorch's .pth"),
    (b"\x89hdf", "is an HDF5 file, as Keras writes; Tubelet reads .safetensors and PyTorch's .pth"),
    (b"\x93numpy", "is a NumPy array; Tubelet reads .safetensors and PyTorch's .pth"),
    (b"7767517", "is a graph of ncnn; Tubelet reads .safetensors and PyTorch's .pth"),
    (b"\x1f\x8b", "is a gzip archive; unpack it, and give the file in it"),
    (b"7z\xbc\xaf", "is a 7-Zip archive; unpack it, and give the file in it"),
    (b"rar!", "is a RAR archive; unpack it, and give the file in it"),
    (b"bzh", "is a bzip2 archive; unpack it, and give the file in it"),
    (b"\xfd7zxz", "is an xz archive; unpack it, and give the file in it"),
)
"""Beginnings in small letters, and what is said of the file."""

_MAX_EXPANSION_RATIO = 4
"""Bytes that a file may declare for each that it stores: PyTorch stores tensors as they are, and views share them."""
_EXPANSION_SLACK_BYTES = 1 << 20


def read_content(path: Path) -> Any:
    """Read a .safetensors file, or what `torch.save` wrote of tensors, numbers, texts and containers.

    Args:
        path: of the file; its ending does not matter.

    Returns:
        What was saved, on the CPU; of a .safetensors file its tensors by name.

    Raises:
        CheckpointError: there is no such file, it is something else, is damaged, or holds objects with code.
    """
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder; give the path of a weight file in it")
    if not path.is_file():
        raise CheckpointError(f"no such checkpoint: {path}")
    head = _head(path)
    if fault := _foreign(path, head):
        raise CheckpointError(f"{path} {fault}")
    if head[8:9] == b"{" or not head.startswith((b"PK", b"\x80")):
        return read_safetensors(path)[0]
    return _read_pickle(path)


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read the tensors and the header of a .safetensors file.

    Raises:
        CheckpointError: there is no such file, or it is none.
    """
    if not path.is_file():
        raise CheckpointError(f"no such checkpoint: {path}")
    try:
        with cast(Any, safe_open)(path, framework="pt") as file:
            tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return tensors, file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a whole .safetensors file ({error})") from error


def read_header(path: str | Path) -> dict[str, str]:
    """Read what a .safetensors file says of itself; other files say nothing."""
    try:
        with cast(Any, safe_open)(path, framework="pt") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError):
        return {}


def is_torchscript(path: Path) -> bool:
    """Tell a TorchScript program from a file of tensors; both are zip archives."""
    return any(entry.filename.endswith("/constants.pkl") for entry in _entries(path) or ())


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(512)


def _foreign(path: Path, head: bytes) -> str:
    """Say what else a file is; "" where it may hold tensors."""
    if not head:
        return f"is empty; {_AGAIN}"
    if head[8:9] == b"{":  # safetensors, behind a length that can be any eight bytes
        return ""
    small = head.lstrip().lower()
    for start, text in _FIRST_BYTES:
        if small.startswith(start):
            return text
    if path.suffix == ".onnx" or (
        head[:1] == b"\x08" and head[2:3] == b"\x12"
    ):  # ir_version, producer_name
        return "is an ONNX model; Tubelet reads .safetensors and PyTorch's .pth"
    if head.startswith(b"PK"):
        return _foreign_zip(path)
    if all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in head):
        return f"is text, not weights: it begins {' '.join(head[:60].decode('ascii').split())!r}"
    if not head.startswith(b"\x80"):  # a pickle
        return f"is not a file of weights: it begins with the bytes {head[:8].hex(' ')}"
    return ""


def _foreign_zip(path: Path) -> str:
    entries = _entries(path)
    if entries is None:
        return f"is damaged: its end is missing, as after a transfer that was cut short; {_AGAIN}"
    names = [entry.filename for entry in entries]
    if any(name.endswith("/constants.pkl") for name in names):
        return (
            "is a TorchScript program, which is not run for safety; "
            "save its weights: torch.save(torch.jit.load(path).state_dict(), 'weights.pth')"
        )
    if not any(name.rpartition("/")[2] == "data.pkl" for name in names):
        first = ", ".join(names[:3]) or "nothing"
        return (
            f"is a zip archive of {first}, not weights; unpack it, and give the weight file in it"
        )
    declared_bytes = sum(entry.file_size for entry in entries)
    return expansion_fault(declared_bytes, path.stat().st_size)


def expansion_fault(declared_bytes: int, stored_bytes: int) -> str:
    """Say that a file declares far more than it stores, as a zip bomb does; "" where it does not.

    Reading such a file, or building the network that it describes, would fill the memory.
    """
    if declared_bytes <= _MAX_EXPANSION_RATIO * stored_bytes + _EXPANSION_SLACK_BYTES:
        return ""
    return (
        f"declares {declared_bytes / 1e6:.1f} MB of numbers and holds {stored_bytes / 1e6:.1f} MB; "
        "that is not read for safety"
    )


def _entries(path: Path) -> list[zipfile.ZipInfo] | None:
    """List what is in a zip archive; None where it is damaged, or none."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.infolist()
    except (
        zipfile.BadZipFile,
        NotImplementedError,
        ValueError,
        OSError,
    ):  # the second: "zip file version 6.4"
        return None


def _numbers_of_numpy() -> list[Any]:
    """Allow single numbers of NumPy: training programs leave scores and epochs beside the weights."""
    scalar = cast(Any, np.float64(0)).__reduce__()[0]
    kinds = (np.bool_, np.int32, np.int64, np.float16, np.float32, np.float64)
    names = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")  # of NumPy 1 and 2
    return [
        *((scalar, name) for name in names),
        np.dtype,
        *(type(np.dtype(kind)) for kind in kinds),
    ]


def _read_pickle(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", UserWarning
            )  # of old pickle protocols; what cannot be read raises
            with (
                torch.serialization.safe_globals(_numbers_of_numpy()),
                path.open("rb") as file,
            ):  # torch goes by endings
                return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"more than tensors ({wanted[1]})" if wanted else "more than tensors, or is damaged"
        raise CheckpointError(f"{path} holds {what}, which is not read for safety") from error
    except (
        RuntimeError,
        EOFError,
        OSError,
        LookupError,
        ValueError,
        TypeError,
        AttributeError,
    ) as error:
        reason = " ".join(str(error).split())[:160]
        raise CheckpointError(
            f"{path} is damaged, or not a file of weights: {reason}; {_AGAIN}"
        ) from error
