"""SpyNet by itself: the files of its weights, so that they are recognised for what they are.

The network lives in `layers/spynet.py`, where the recurrent models take it from. It estimates motion between two
frames and enlarges nothing: ref, supp (B, 3, H, W) → flow (B, 2, H, W).

Source: Ranjan and Black, "Optical Flow Estimation using a Spatial Pyramid Network", CVPR 2017.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tubelet.layers.spynet import SpyNet, rename_spynet
from tubelet.models.architecture import Architecture, State

__all__ = ["ARCHITECTURE", "SpyNetConfig"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SpyNetConfig:
    """Nothing varies: all published files have six levels."""


def _build(config: SpyNetConfig) -> SpyNet:
    del config
    return SpyNet()


def _translate(state: State) -> dict[str, Tensor] | None:
    """Map the names of BasicSR (which are ours) and of MMagic; None where they are of another network."""
    if not {name.split(".", 1)[0] for name in state} <= {"basic_module", "mean", "std"}:
        return None
    renamed = rename_spynet(state)
    return renamed if "basic_module.5.basic_module.8.weight" in renamed else None


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
