"""Index of the published weights that `--model ID` downloads: address, network and license."""

from __future__ import annotations

from collections.abc import Mapping

from tubelet.downloads import RemoteFile
from tubelet.models import spynet
from tubelet.zoo.published_images import IMAGE_FILES
from tubelet.zoo.published_transformers import TRANSFORMER_FILES
from tubelet.zoo.published_video import VIDEO_FILES
from tubelet.zoo.publishers import PublishedWeights

__all__ = ["PAGES", "PUBLISHED_WEIGHTS"]

_SPYNET = PublishedWeights(
    id="spynet-sintel",
    architecture=spynet.ARCHITECTURE,
    config=spynet.SpyNetConfig(),
    summary="optical flow; a component of other networks",
    file=RemoteFile(
        name="spynet_20210409-c6c1bd09.pth",
        url=(
            "https://download.openmmlab.com/mmediting/restorers/basicvsr/"
            "spynet_20210409-c6c1bd09.pth"
        ),
        sha256="c6c1bd09",
        page="https://github.com/anuragranj/spynet",
    ),
    license="research only",
)

PUBLISHED_WEIGHTS: tuple[PublishedWeights, ...] = (
    *VIDEO_FILES,
    *TRANSFORMER_FILES,
    *IMAGE_FILES,
    _SPYNET,
)
"""Weights of video networks, of single-image networks, and of a component of networks."""

PAGES: Mapping[str, str] = {
    "FRVSR": "https://github.com/skycrapers/TecoGAN-PyTorch",
    "OVSR": "https://github.com/psychopa4/OVSR",
    "RBPN": "https://github.com/alterzero/RBPN-PyTorch",
    "RRN": "https://github.com/junpan19/RRN",
    "RSDN": "https://github.com/junpan19/RSDN",
    "TDAN": "https://github.com/YapengTian/TDAN-VSR-CVPR-2020",
    "TMNet": "https://github.com/CS-GangXu/TMNet",
    "TTVSR": "https://github.com/researchmm/TTVSR",
}
"""Class of a network → page of its authors. Tubelet does not download these files: a user downloads
one and runs it with `--model PATH`."""
