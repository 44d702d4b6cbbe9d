"""SpyNet by itself: the files of its weights, so that they are recognized for what they are.

The network lives in `layers/spynet.py`, where the recurrent models take it from. It estimates motion between two
frames and enlarges nothing: ref, supp (B, 3, H, W) → flow (B, 2, H, W).

Source: Ranjan and Black, "Optical Flow Estimation using a Spatial Pyramid Network", CVPR 2017.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch import Tensor

from tubelet.layers.spynet import SpyNet
from tubelet.models.architecture import Architecture
from tubelet.models.state_dict import Rule, State, first_words, rename

__all__ = ["ARCHITECTURE", "SpyNetConfig", "rename_spynet"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SpyNetConfig:
    """Nothing varies: all published files have six levels."""


def _build(config: SpyNetConfig) -> SpyNet:
    del config
    return SpyNet()


def _count_activations(match: re.Match[str]) -> str:
    return f"{match[1]}.{2 * int(match[2])}."


_MMAGIC: tuple[Rule, ...] = (
    (r"(basic_module\.\d+\.basic_module)\.(\d+)\.conv\.(?=(weight|bias)$)", _count_activations),
)


def rename_spynet(state: State) -> dict[str, Tensor]:
    """Name the convolutions of a SpyNet within `state` as here; other names stay.

    MMagic counts convolutions (`basic_module.3.conv.weight`), BasicSR and this file count activations too
    (`basic_module.6.weight`).
    """
    return rename(state, _MMAGIC)


def _translate(state: State) -> dict[str, Tensor] | None:
    """Map the names of BasicSR (which are ours) and of MMagic; None where they are of another network."""
    if not first_words(state) <= {"basic_module", "mean", "std"}:
        return None
    own = rename_spynet(state)
    return own if "basic_module.5.basic_module.8.weight" in own else None


def _infer(state: State) -> SpyNetConfig:
    del state
    return SpyNetConfig()


def _contract(config: SpyNetConfig) -> None:
    del config  # it estimates motion, and enlarges nothing


ARCHITECTURE = Architecture(
    name="SpyNet",
    config=SpyNetConfig,
    build=_build,
    translate=_translate,
    infer=_infer,
    contract=_contract,
    derived=("mean", "std"),
    source="https://arxiv.org/abs/1611.00850",
)
