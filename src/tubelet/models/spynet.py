"""SpyNet as an architecture, so that its weight files are recognized.

The network itself is in `layers/spynet.py`, where the recurrent models import it from. It estimates
optical flow between two frames and does not enlarge them: ref, supp (B, 3, H, W) → flow
(B, 2, H, W).

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
    """Configuration of `SpyNet`: empty, because all published files have six levels."""


def _build(config: SpyNetConfig) -> SpyNet:
    del config
    return SpyNet()


def _count_activations(match: re.Match[str]) -> str:
    """Turn the index of a convolution into its index among convolutions and activations."""
    return f"{match[1]}.{2 * int(match[2])}."


_MMAGIC: tuple[Rule, ...] = (
    (r"(basic_module\.\d+\.basic_module)\.(\d+)\.conv\.(?=(weight|bias)$)", _count_activations),
)
# The last convolution of the last of six levels.
_LAST_WEIGHT = "basic_module.5.basic_module.8.weight"


def rename_spynet(state: State) -> dict[str, Tensor]:
    """Rename the convolutions of a SpyNet anywhere in a state dict to our names.

    MMagic counts only convolutions (`basic_module.3.conv.weight`). BasicSR and this package count
    activations, too (`basic_module.6.weight`).

    Args:
        state: Tensors by name.

    Returns:
        The renamed state dict; other names are unchanged.
    """
    return rename(state, _MMAGIC)


def _translate(state: State) -> dict[str, Tensor] | None:
    """Rename the tensors of a file of BasicSR (whose names are ours) or of MMagic.

    Returns:
        The renamed state dict, or None if it belongs to another architecture.
    """
    if not first_words(state) <= {"basic_module", "mean", "std"}:
        return None
    renamed = rename_spynet(state)
    return renamed if _LAST_WEIGHT in renamed else None


def _infer(state: State) -> SpyNetConfig:
    del state
    return SpyNetConfig()


def _contract(config: SpyNetConfig) -> None:
    # The engine cannot run it: it outputs optical flow, not images.
    del config


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
