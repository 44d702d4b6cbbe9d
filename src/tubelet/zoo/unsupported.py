"""Published networks that Tubelet can name and not run, told by the names of their tensors."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

__all__ = ["UNSUPPORTED", "Unsupported", "matches", "recognize_unsupported"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Unsupported:
    """One network, and what only its files have.

    Attributes:
        name: as its paper calls it, with the paper.
        has: patterns of which each matches the beginning of a name.
        lacks: patterns of which none does.
        advice: what to do.
    """

    name: str
    has: tuple[str, ...]
    lacks: tuple[str, ...] = ()
    advice: str = "Tubelet has no network for it yet"


UNSUPPORTED: tuple[Unsupported, ...] = (
    Unsupported(
        name="VRT (Liang et al., 2022)",
        has=(r"stage\d+\.pa_deform\.", r"stage\d+\.residual_group1\."),
    ),
    Unsupported(
        name="RVRT (Liang et al., NeurIPS 2022)",
        has=(r"deform_align\.backward_\d\.proj_q\.", r"feat_extract\.main\."),
    ),
    Unsupported(
        name="TTVSR (Liu et al., CVPR 2022)", has=(r"LTAM\.fusion\.", r"feat_extractor\.main\.")
    ),
    Unsupported(
        name="PSRT (Shi et al., NeurIPS 2022)",
        has=(r"patch_align\.backward_\d\.layers\.",),
        lacks=(r"patch_align\..*\.predmask\.", r"implicit_warp\."),
    ),
    Unsupported(
        name="MIA-VSR (Zhou et al., CVPR 2024)", has=(r"patch_align\..*\.attn\.predmask\.",)
    ),
    Unsupported(
        name="IART (Xu et al., CVPR 2024)",
        has=(r"implicit_warp\.", r"swin_backbone\.backward_\d\."),
    ),
    Unsupported(
        name="a discriminator of BasicSR",
        has=(r"conv0\.weight", r"conv1\.weight_orig", r"conv9\.weight"),
        advice="it judges images and makes none; give the generator's file, often named net_g",
    ),
    Unsupported(
        name="a discriminator of BasicSR",
        has=(r"conv0_0\.weight", r"bn0_1\.weight", r"linear2\.weight"),
        advice="it judges images and makes none; give the generator's file, often named net_g",
    ),
    Unsupported(
        name="RAFT (Teed and Deng, ECCV 2020)",
        has=(r"fnet\.conv1\.", r"cnet\.conv1\.", r"update_block\."),
        advice="it estimates motion and makes no images",
    ),
    Unsupported(
        name="Stable Diffusion (Rombach et al., CVPR 2022)",
        has=(r"model\.diffusion_model\.input_blocks\.",),
    ),
)
"""What is not in `ARCHITECTURES`; no file matches two of them."""


def recognize_unsupported(names: Collection[str]) -> Unsupported | None:
    """Find the network that a state dict is of, among those that Tubelet cannot run.

    Args:
        names: of its tensors, unwrapped.
    """
    return next((foreign for foreign in UNSUPPORTED if matches(foreign, names)), None)


def matches(foreign: Unsupported, names: Collection[str]) -> bool:
    """Tell whether a state dict with these names is of this network."""
    return all(_any(pattern, names) for pattern in foreign.has) and not any(
        _any(pattern, names) for pattern in foreign.lacks
    )


def _any(pattern: str, names: Collection[str]) -> bool:
    match = re.compile(pattern).match
    return any(match(name) for name in names)
