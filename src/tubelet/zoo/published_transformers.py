"""Published weights of transformers for video; names of files are those of the publishers' code."""

from __future__ import annotations

from tubelet.downloads import RemoteFile
from tubelet.models import iart, mia_vsr, psrt
from tubelet.models.iart import IARTConfig
from tubelet.models.mia_vsr import MIAVSRConfig
from tubelet.models.psrt import PSRTConfig
from tubelet.zoo.publishers import Network, PublishedWeights

__all__ = ["TRANSFORMER_FILES"]

_IART: Network = (iart.ARCHITECTURE, IARTConfig())
_MIA_VSR: Network = (mia_vsr.ARCHITECTURE, MIAVSRConfig())
_PSRT: Network = (psrt.ARCHITECTURE, PSRTConfig())


def _by_hand(
    id: str,
    network: Network,
    name: str,
    summary: str,
    *,
    page: str,
    license: str,
) -> PublishedWeights:
    """Describe a file on Google Drive, which must be downloaded in a browser."""
    architecture, config = network
    return PublishedWeights(
        id=id,
        architecture=architecture,
        config=config,
        summary=summary,
        file=RemoteFile(name=name, page=page),
        license=license,
    )


def _iart(id: str, name: str, summary: str) -> PublishedWeights:
    return _by_hand(
        id,
        _IART,
        name,
        summary,
        page="https://github.com/kai422/IART",
        license="MIT",
    )


TRANSFORMER_FILES: tuple[PublishedWeights, ...] = (
    # IART, Xu et al., CVPR 2024.
    _iart("iart-reds", "IART_REDS_BI_N16.pth", "REDS, bicubic; 16 frames"),
    _iart("iart-reds_n6", "IART_REDS_BI_N6.pth", "REDS, bicubic; 6 frames"),
    _iart("iart-vimeo_bd", "IART_Vimeo-90K_BD.pth", "Vimeo-90K, blurred"),
    # MIA-VSR, Zhou et al., CVPR 2024.
    _by_hand(
        "mia_vsr-reds",
        _MIA_VSR,
        "MIAVSR_REDS_x4.pth",
        "REDS, bicubic",
        page="https://github.com/LabShuHangGU/MIA-VSR",
        license="Apache-2.0",
    ),
    # PSRT, Shi et al., NeurIPS 2022.
    _by_hand(
        "psrt-reds",
        _PSRT,
        "PSRT_REDS.pth",
        "REDS, bicubic; 16 frames",
        page="https://github.com/XPixelGroup/RethinkVSRAlignment",
        license="not stated",
    ),
)
"""Weights of transformers for video."""
