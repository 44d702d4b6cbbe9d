"""Recognize published networks that Tubelet cannot run, to name them in the error message."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

__all__ = ["UNSUPPORTED", "Unsupported", "matches", "recognize_unsupported"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Unsupported:
    """A network that Tubelet recognizes but cannot run.

    Attributes:
        name: Name of the network and its paper.
        has: Regular expressions. Each matches the start of one or more tensor names.
        lacks: Regular expressions that match no tensor name of a file.
        advice: Rest of the error message: the reason or the remedy.
    """

    name: str
    has: tuple[str, ...]
    lacks: tuple[str, ...] = ()
    advice: str = "Tubelet has no network for it yet"


_DISCRIMINATOR_ADVICE = (
    "it scores images and outputs none; use the file of the generator, often named net_g"
)
UNSUPPORTED: tuple[Unsupported, ...] = (
    # Transformers and their variants for video restoration.
    # VRT for super-resolution is supported; these have no convolutions for upsampling.
    Unsupported(
        name="VRT for deblurring, denoising or frame interpolation (Liang et al., 2022)",
        has=(r"stage\d+\.residual_group1\.", r"stage8\.\d+\.residual_group\."),
        lacks=(r"upsample\.\d+\.",),
        advice="Tubelet has only the networks for super-resolution ×4",
    ),
    # RVRT for super-resolution is supported: it extracts features at the size of the input.
    Unsupported(
        name="RVRT for deblurring or denoising (Liang et al., NeurIPS 2022)",
        has=(r"deform_align\.backward_\d\.proj_q\.",),
        lacks=(r"feat_extract\.main\.", r"feat_extract\.conv\."),
        advice="Tubelet has only the network for super-resolution ×4",
    ),
    # UNetDiscriminatorSN, of Real-ESRGAN.
    Unsupported(
        name="a discriminator of BasicSR",
        has=(r"conv0\.weight", r"conv1\.weight_orig", r"conv9\.weight"),
        advice=_DISCRIMINATOR_ADVICE,
    ),
    # VGGStyleDiscriminator, of ESRGAN.
    Unsupported(
        name="a discriminator of BasicSR",
        has=(r"conv0_0\.weight", r"bn0_1\.weight", r"linear2\.weight"),
        advice=_DISCRIMINATOR_ADVICE,
    ),
    # Components and image generators that users try by mistake.
    Unsupported(
        name="RAFT (Teed and Deng, ECCV 2020)",
        has=(r"fnet\.conv1\.", r"cnet\.conv1\.", r"update_block\."),
        advice="it estimates motion and outputs no images",
    ),
    Unsupported(
        name="Stable Diffusion (Rombach et al., CVPR 2022)",
        has=(r"model\.diffusion_model\.input_blocks\.",),
    ),
)
"""Networks that are not in `ARCHITECTURES`; a file matches one of them or none."""


def recognize_unsupported(names: Collection[str]) -> Unsupported | None:
    """Find the unsupported network that a state dict belongs to; None if there is none.

    Args:
        names: Tensor names, without wrappers and prefixes.
    """
    for network in UNSUPPORTED:
        if matches(network, names):
            return network
    return None


def matches(network: Unsupported, names: Collection[str]) -> bool:
    """Return whether a state dict with these tensor names belongs to an unsupported network."""

    def is_present(pattern: str) -> bool:
        match_start = re.compile(pattern).match
        return any(map(match_start, names))

    if not all(map(is_present, network.has)):
        return False
    return not any(map(is_present, network.lacks))
