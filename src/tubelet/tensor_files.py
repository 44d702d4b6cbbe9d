"""Read files of tensors as data only: no code in them is executed.

The type of a file is recognized by its first bytes, not by its name. Files of other types, from a
failed download or a missing conversion, are each refused with one line that names the remedy.
"""

from __future__ import annotations

import pickle
import re
import string
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

_DOWNLOAD_AGAIN = "fetch it again, from the link of the file itself"
_SUPPORTED = "Tubelet reads .safetensors and PyTorch's .pth"
_UNPACK = "unpack it, and give the file in it"
_FOREIGN_FORMATS: tuple[tuple[bytes, str], ...] = (
    (
        b"version https://git-lfs",
        "is a pointer of git-lfs, not the file; run `git lfs pull`, or download the file",
    ),
    (b"<!doctype html", f"is a web page, which a failed download left; {_DOWNLOAD_AGAIN}"),
    (b"<html", f"is a web page, which a failed download left; {_DOWNLOAD_AGAIN}"),
    (b"<?xml", f"is an XML message, which a failed download left; {_DOWNLOAD_AGAIN}"),
    (b"gguf", f"is a GGUF file; {_SUPPORTED}"),
    (b"\x89hdf", f"is an HDF5 file, as Keras writes; {_SUPPORTED}"),
    (b"\x93numpy", f"is a NumPy array; {_SUPPORTED}"),
    (b"7767517", f"is a graph of ncnn; {_SUPPORTED}"),
    (b"\x1f\x8b", f"is a gzip archive; {_UNPACK}"),
    (b"7z\xbc\xaf", f"is a 7-Zip archive; {_UNPACK}"),
    (b"rar!", f"is a RAR archive; {_UNPACK}"),
    (b"bzh", f"is a bzip2 archive; {_UNPACK}"),
    (b"\xfd7zxz", f"is an xz archive; {_UNPACK}"),
)
"""First bytes of a format in lower case, and the message about the file."""
_ZIP_START = b"PK"
_PICKLE_START = b"\x80"
_TEXT_BYTES = frozenset(string.printable.encode("ascii")) - frozenset(b"\v\f")
_HEAD_BYTES = 512

_MAX_EXPANSION_RATIO = 4
"""Bytes that a file may declare per stored byte: PyTorch stores tensors without compression, and
views share their storage."""
_EXPANSION_SLACK_BYTES = 1 << 20


def read_content(path: Path) -> Any:
    """Read a .safetensors file, or a `torch.save` file of tensors, numbers, strings and containers.

    Args:
        path: Path of the file; its suffix does not matter.

    Returns:
        The saved object, on the CPU; for a .safetensors file its tensors by name.

    Raises:
        CheckpointError: The file is missing, of another type, damaged, or contains objects with
            code.
    """
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder; give the path of a weight file in it")
    if not path.is_file():
        raise CheckpointError(f"no such checkpoint: {path}")
    head = _head(path)
    # The JSON header follows its length, which can be any eight bytes.
    is_safetensors = head[8:9] == b"{"
    if is_safetensors:
        tensors, _ = read_safetensors(path)
        return tensors
    fault = _foreign_fault(path, head)
    if fault:
        raise CheckpointError(f"{path} {fault}")
    # All other files without a fault are zip archives or pickles of `torch.save`.
    return _read_pickle(path)


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read the tensors and the metadata of a .safetensors file.

    Raises:
        CheckpointError: The file is missing, or it is not a complete .safetensors file.
    """
    if not path.is_file():
        raise CheckpointError(f"no such checkpoint: {path}")
    try:
        with cast(Any, safe_open)(path, framework="pt") as file:
            tensors: dict[str, Tensor] = {}
            for name in file.keys():  # noqa: SIM118
                tensors[name] = file.get_tensor(name)
            return tensors, file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a whole .safetensors file ({error})") from error


def read_header(path: str | Path) -> dict[str, str]:
    """Read the metadata of a .safetensors file; other files have none."""
    try:
        with cast(Any, safe_open)(path, framework="pt") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError):
        return {}


def is_torchscript(path: Path) -> bool:
    """Distinguish a TorchScript program from a file of tensors; both are zip archives."""
    return _has_torchscript(_zip_entries(path) or [])


def expansion_fault(declared_bytes: int, stored_bytes: int) -> str:
    """Describe a file that declares far more than it stores, as a zip bomb does; "" for others.

    Reading such a file, or building the network that it describes, would fill the memory.

    Args:
        declared_bytes: Size of the content according to the file.
        stored_bytes: Size of the data in the file.
    """
    if declared_bytes <= _MAX_EXPANSION_RATIO * stored_bytes + _EXPANSION_SLACK_BYTES:
        return ""
    return (
        f"declares {declared_bytes / 1e6:.1f} MB of numbers and holds {stored_bytes / 1e6:.1f} MB; "
        "that is not read for safety"
    )


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_HEAD_BYTES)


def _foreign_fault(path: Path, head: bytes) -> str:
    """Describe the format of a file that holds no tensors; "" for others."""
    if not head:
        return f"is empty; {_DOWNLOAD_AGAIN}"
    text = head.lstrip().lower()
    for first_bytes, fault in _FOREIGN_FORMATS:
        if text.startswith(first_bytes):
            return fault

    # ONNX has no signature: the first and the third byte are its protobuf tags of ir_version and
    # producer_name.
    is_onnx = head[0:3:2] == b"\x08\x12"
    if is_onnx or path.suffix == ".onnx":
        return f"is an ONNX model; {_SUPPORTED}"

    # Zip archives and pickles are the two formats of `torch.save`.
    if head.startswith(_ZIP_START):
        return _zip_fault(path)
    if head.startswith(_PICKLE_START):
        return ""
    if _TEXT_BYTES.issuperset(head):
        first_words = " ".join(head[:60].decode("ascii").split())
        return f"is text, not weights: it begins {first_words!r}"
    return f"is not a file of weights: it begins with the bytes {head[:8].hex(' ')}"


def _zip_fault(path: Path) -> str:
    """Describe a zip archive that is not a `torch.save` file; "" for others."""
    entries = _zip_entries(path)
    if entries is None:
        return (
            "is damaged: its end is missing, as after a transfer that was cut short; "
            f"{_DOWNLOAD_AGAIN}"
        )
    if _has_torchscript(entries):
        return (
            "is a TorchScript program, which is not run for safety; "
            "save its weights: torch.save(torch.jit.load(path).state_dict(), 'weights.pth')"
        )
    names = [entry.filename for entry in entries]
    base_names = {name.rpartition("/")[2] for name in names}
    if "data.pkl" not in base_names:
        listing = ", ".join(names[:3]) or "nothing"
        return (
            f"is a zip archive of {listing}, not weights; unpack it, and give the weight file in it"
        )
    declared_bytes = sum(entry.file_size for entry in entries)
    return expansion_fault(declared_bytes, path.stat().st_size)


def _has_torchscript(entries: list[zipfile.ZipInfo]) -> bool:
    # Only TorchScript programs have constants.
    return any(entry.filename.endswith("/constants.pkl") for entry in entries)


def _zip_entries(path: Path) -> list[zipfile.ZipInfo] | None:
    """List the entries of a zip archive; None if it is damaged or another file."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError):
        # NotImplementedError is raised for newer versions: "zip file version 6.4".
        return None


def _read_pickle(path: Path) -> Any:
    """Read a `torch.save` file."""
    try:
        with warnings.catch_warnings():
            # torch warns about old pickle protocols; files that it cannot read raise.
            warnings.simplefilter("ignore", UserWarning)
            # An open file, because torch selects the format of a path by its suffix.
            with torch.serialization.safe_globals(_numpy_types()), path.open("rb") as file:
                return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        class_name = re.search(r"GLOBAL ([\w.]+)", str(error))
        content = "more than tensors, or is damaged"
        if class_name:
            content = f"more than tensors ({class_name[1]})"
        raise CheckpointError(f"{path} holds {content}, which is not read for safety") from error
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
            f"{path} is damaged, or not a file of weights: {reason}; {_DOWNLOAD_AGAIN}"
        ) from error


def _numpy_types() -> list[Any]:
    """List the types of NumPy scalars to allow in pickles.

    Training programs save scores and epochs in this form with the weights.
    """
    allowed: list[Any] = [np.dtype]
    for scalar_type in (np.bool_, np.int32, np.int64, np.float16, np.float32, np.float64):
        allowed.append(type(np.dtype(scalar_type)))
    # The function that rebuilds a scalar, under its names in NumPy 1 and 2.
    rebuild_scalar = cast(Any, np.float64(0)).__reduce__()[0]
    for name in ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"):
        allowed.append((rebuild_scalar, name))
    return allowed
