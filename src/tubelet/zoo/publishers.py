"""`PublishedWeights`: published weights that have a name, and the publishers from whom most of them are.

Sizes and hashes are those that are published. Files of OpenMMLab and BasicSR have the first eight digits of the hash at
the end of their names.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from tubelet.downloads import RemoteFile
from tubelet.models.architecture import Architecture

__all__ = ["Network", "PublishedWeights", "basicsr", "github", "hat_authors", "openmmlab"]

Network = tuple[Architecture, Any]
"""An architecture, and its configuration."""

_GITHUB_LICENSES = {"Real-ESRGAN": "BSD-3-Clause", "KAIR": "Apache-2.0", "SwinIR": "Apache-2.0"}
"""Repository → license of its weights; those of KAIR that are listed are BSRGAN's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedWeights:
    """One published file.

    Attributes:
        id: the name that `--model` takes.
        architecture: of the network that it is for.
        config: of that network, with what names and shapes do not tell.
        summary: what it was trained on or for.
        file: where it is.
        license: SPDX name of the license under which it is published, or what its publisher says of its use.
    """

    id: str
    architecture: Architecture
    config: Any
    summary: str
    file: RemoteFile
    license: str


def _hash_in(name: str) -> str:
    """Read the first digits of the hash off a name that ends with them."""
    found = re.search(r"-([0-9a-f]{8})\.pth$", name)
    return found[1] if found else ""


def _known(id: str, network: Network, summary: str, license: str, **file: Any) -> PublishedWeights:
    """Describe a file; its hash is read off its name where none is given."""
    file["sha256"] = file.get("sha256") or _hash_in(file["name"])
    return PublishedWeights(
        id=id,
        architecture=network[0],
        config=network[1],
        summary=summary,
        file=RemoteFile(**file),
        license=license,
    )


def openmmlab(id: str, network: Network, path: str, summary: str) -> PublishedWeights:
    """Describe a file of OpenMMLab's server: its path below the folder of restorers."""
    name = path.rpartition("/")[2]
    return _known(
        id,
        network,
        summary,
        "Apache-2.0",
        name=name,
        url=f"https://download.openmmlab.com/mmediting/restorers/{path}",
        page="https://github.com/open-mmlab/mmagic",
    )


def github(
    id: str, network: Network, path: str, summary: str, sha256: str = "", size: int | None = None
) -> PublishedWeights:
    """Describe an asset of a release on GitHub: owner/repository/tag/name."""
    owner, repository, tag, name = path.split("/")
    page = f"https://github.com/{owner}/{repository}"
    return _known(
        id,
        network,
        summary,
        _GITHUB_LICENSES[repository],
        name=name,
        url=f"{page}/releases/download/{tag}/{name}",
        sha256=sha256,
        size_bytes=size,
        page=page,
    )


def basicsr(id: str, network: Network, name: str, summary: str) -> PublishedWeights:
    """Describe a file of BasicSR that is on Google Drive, which asks people before it hands out files."""
    return _known(
        id,
        network,
        summary,
        "Apache-2.0",
        name=name,
        page="https://github.com/XPixelGroup/BasicSR/blob/master/docs/ModelZoo.md",
    )


def hat_authors(
    id: str, network: Network, name: str, summary: str, sha256: str = ""
) -> PublishedWeights:
    """Describe a file of HAT: on Google Drive, and where a hash is known at Hugging Face too."""
    return _known(
        id,
        network,
        summary,
        "Apache-2.0",
        name=name,
        url=f"https://huggingface.co/Acly/hat/resolve/main/{name}" if sha256 else "",
        sha256=sha256,
        page="https://github.com/XPixelGroup/HAT",
    )
