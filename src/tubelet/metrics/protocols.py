"""Protocols of published scores: clips, degradation, color channel, border, frames.

A name has the dataset, the degradation, the scale, and further differences: vid4-bd-x4-crop8.
docs/protocols.md describes the conventions.

    folder-<degradation>-x<scale>   any folder of clips: Y, border 0, all frames
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import Literal

from tubelet.errors import RequestError, suggest

__all__ = ["DEGRADATIONS", "PROTOCOLS", "MetricProtocol", "find_protocol"]

DEGRADATIONS = ("bi", "bi-u8", "bd", "bd-b", "bd-c", "real", "second-order")
"""The presets of `tubelet.degrade`, which this package must not import: it is of the same level."""
SCALES = range(2, 9)
"""Scales of the protocols of folders."""

_Y = ("psnr-y", "ssim-y")
_RGB = ("psnr-rgb", "ssim-rgb")
_REDS4 = ("000", "011", "015", "020")
_VID4 = ("calendar", "city", "foliage", "walk")
_RECURRENT = (
    "BasicVSR",
    "IconVSR",
    "BasicVSR++",
    "TTVSR",
    "VRT",
    "RVRT",
    "PSRT",
    "IART",
    "MIA-VSR",
    "PFVSR",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricProtocol:
    """The conditions of a score, except for the model.

    Attributes:
        name: Name for users.
        dataset: Name of the dataset in `tubelet.data.datasets`, or "folder" for any folder of
            clips.
        clips: Clips of the dataset that count; None: all.
        degradation: Preset that makes the low-quality frames; "none" for a dataset that has only
            those.
        scale: Factor between low-quality and restored frames.
        metrics: Names in `tubelet.metrics.measure`; the first is the main one of the papers.
        border: Pixels left out on each side before a frame is scored.
        drop_ends: Frames left out of the score at each end of a clip; they are restored like the
            others.
        frames: "all" remaining frames count, or only the "middle" one.
        summary: One line for users.
        used_by: Methods whose papers report numbers under it.
    """

    name: str
    dataset: str
    clips: tuple[str, ...] | None = None
    degradation: str
    scale: int = 4
    metrics: tuple[str, ...] = _Y
    border: int = 0
    drop_ends: int = 0
    frames: Literal["all", "middle"] = "all"
    summary: str
    used_by: tuple[str, ...] = ()

    def scored_frames(self, count: int) -> range:
        """Return the frames of a clip of `count` frames that are scored.

        Raises:
            RequestError: There are none.
        """
        if self.frames == "middle" and count:
            middle = count // 2
            return range(middle, middle + 1)
        if count <= 2 * self.drop_ends:
            raise RequestError(
                f"{self.name} leaves out {self.drop_ends} frames at each end, "
                f"but a clip has only {count} frames"
            )
        return range(self.drop_ends, count - self.drop_ends)


def _vid4(degradation: str, summary: str, used_by: tuple[str, ...]) -> tuple[MetricProtocol, ...]:
    """Return the protocols of Vid4 under one degradation, with the borders and ends in use."""
    full = MetricProtocol(
        name=f"vid4-{degradation}-x4",
        dataset="vid4",
        clips=_VID4,
        degradation=degradation,
        summary=f"Vid4, {summary}; Y, whole frames, all frames",
        used_by=used_by,
    )
    crop = dataclasses.replace(
        full,
        name=f"{full.name}-crop8",
        border=8,
        summary=f"Vid4, {summary}; Y, without 8 px at the borders, all frames",
        used_by=("RRN", "RSDN", "RLSP") if degradation == "bd" else (),
    )
    crop_and_drop = dataclasses.replace(
        crop,
        name=f"{crop.name}-drop2",
        drop_ends=2,
        summary=f"Vid4, {summary}; Y, without 8 px at the borders and two frames at each end",
        used_by=("DUF", "PFNL") if degradation == "bd" else (),
    )
    return full, crop, crop_and_drop


PROTOCOLS: tuple[MetricProtocol, ...] = (
    MetricProtocol(
        name="reds4-bi-x4",
        dataset="reds4",
        clips=_REDS4,
        degradation="bi-u8",
        metrics=_RGB,
        summary="REDS clips 000, 011, 015, 020, MATLAB bicubic of 8-bit images (sharp_bicubic); "
        "RGB, all frames",
        used_by=("EDVR", *_RECURRENT, "SATeCo", "LRTI-VSR"),
    ),
    *_vid4("bi", "MATLAB bicubic", (*_RECURRENT, "EDVR", "TDAN", "SATeCo")),
    *_vid4("bd", "Gaussian σ 1.6 of 13 taps, samples 0::4", ("OVSR",)),
    *_vid4("bd-b", "Gaussian σ 1.6 of 12 taps, block centers", _RECURRENT),
    *_vid4("bd-c", "Gaussian σ 1.5 of 9 taps, samples 0::4", ("FRVSR", "TecoGAN")),
    MetricProtocol(
        name="udm10-bd-x4",
        dataset="udm10",
        degradation="bd",
        summary="UDM10, Gaussian σ 1.6 of 13 taps; Y, whole frames, all frames",
        used_by=(*_RECURRENT, "PFNL", "RRN", "RSDN", "OVSR"),
    ),
    MetricProtocol(
        name="udm10-bd-b-x4",
        dataset="udm10",
        degradation="bd-b",
        summary="UDM10, Gaussian σ 1.6 of 12 taps, block centers; Y, whole frames, all frames",
        used_by=_RECURRENT,
    ),
    MetricProtocol(
        name="vimeo90k-t-bi-x4",
        dataset="vimeo90k-t",
        degradation="bi",
        frames="middle",
        summary="Vimeo-90K test septuplets, MATLAB bicubic; Y, whole frames, the 4th of 7",
        used_by=(*_RECURRENT, "EDVR", "TDAN", "TOFlow"),
    ),
    MetricProtocol(
        name="vimeo90k-t-bd-x4",
        dataset="vimeo90k-t",
        degradation="bd",
        frames="middle",
        summary="Vimeo-90K test septuplets, Gaussian σ 1.6 of 13 taps; Y, whole frames, "
        "the 4th of 7",
        used_by=(*_RECURRENT, "RRN", "RSDN"),
    ),
    MetricProtocol(
        name="vimeo90k-t-bd-b-x4",
        dataset="vimeo90k-t",
        degradation="bd-b",
        frames="middle",
        summary="Vimeo-90K test septuplets, Gaussian σ 1.6 of 12 taps, block centers; "
        "Y, whole frames, the 4th of 7",
        used_by=_RECURRENT,
    ),
    MetricProtocol(
        name="tos3-bi-x4",
        dataset="tos3",
        degradation="bi",
        metrics=_RGB,
        summary="ToS3, MATLAB bicubic; RGB, whole frames, all frames",
        used_by=("LRTI-VSR",),
    ),
    MetricProtocol(
        name="spmcs-bd-x4",
        dataset="spmcs",
        degradation="bd",
        summary="SPMCS, Gaussian σ 1.6 of 13 taps; Y, whole frames, all frames",
        used_by=("PFNL", "RSDN"),
    ),
    MetricProtocol(
        name="videolq-x4",
        dataset="videolq",
        degradation="none",
        metrics=("niqe",),
        summary="VideoLQ, real low-quality videos without ground truth; NIQE of all frames",
        used_by=("RealBasicVSR", "LRTI-VSR"),
    ),
)
"""All protocols except those of folders, which `find_protocol` creates."""

_PROTOCOLS_BY_NAME = {protocol.name: protocol for protocol in PROTOCOLS}
# As DUF does, "-drop2" also leaves out the borders.
_ALIASES = {
    f"vid4-{degradation}-x4-drop2": f"vid4-{degradation}-x4-crop8-drop2"
    for degradation in ("bi", "bd", "bd-b", "bd-c")
}
_FOLDER_NAME = re.compile(rf"folder-({'|'.join(DEGRADATIONS)})-x(\d+)")


def find_protocol(name: str) -> MetricProtocol:
    """Look up a protocol.

    Args:
        name: Name of a protocol; "-drop2" without "-crop8" means both, as DUF does.

    Raises:
        RequestError: There is none; the message has the nearest name.
    """
    full_name = _ALIASES.get(name, name)
    if full_name in _PROTOCOLS_BY_NAME:
        return _PROTOCOLS_BY_NAME[full_name]

    match = _FOLDER_NAME.fullmatch(name)
    if match is not None:
        degradation = match.group(1)
        scale = int(match.group(2))
        if scale in SCALES:
            return _folder(degradation, scale)

    names = list(_PROTOCOLS_BY_NAME)
    names += [f"folder-{degradation}-x4" for degradation in DEGRADATIONS]
    raise RequestError(f"no protocol {name!r}; {suggest(name, names)}")


def _folder(degradation: str, scale: int) -> MetricProtocol:
    return MetricProtocol(
        name=f"folder-{degradation}-x{scale}",
        dataset="folder",
        degradation=degradation,
        scale=scale,
        summary=f"every clip of a folder, degraded by {degradation} to 1/{scale}; "
        "Y, whole frames, all frames",
    )
