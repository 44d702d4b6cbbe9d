"""Sizes of the studies of LRTI-VSR: networks, clips, lengths and numbers of seeds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from tubelet.models.basicvsr import BasicVSRConfig
from tubelet.models.basicvsr_pp import BasicVSRPlusPlusConfig
from tubelet.models.lrti_vsr import LRTIVSRConfig
from tubelet.recipes.lrti import LRTITraining, configure
from tubelet.studies.lrti_clips import ClipSettings

__all__ = ["NETWORKS", "PRESETS", "Preset"]

NETWORKS = ("basicvsr", "basicvsr_pp", "lrti")
"""Networks of the study "truncation"."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """Sizes of the studies.

    Attributes:
        summary: Purpose and duration.
        clips: Size of the clips; its frames are the long clips of "TB".
        mechanism: Lengths of short and of long samples in the study "mechanism".
        truncation: Lengths of samples in "truncation": of half, of whole, and of long ones.
        networks: Training of each of `NETWORKS`.
        seeds: Number of seeds of mechanism, of the pilot of truncation, and of block.
    """

    summary: str
    clips: ClipSettings
    mechanism: tuple[int, int]
    truncation: tuple[int, int, int]
    networks: Mapping[str, Callable[[], LRTITraining]]
    seeds: tuple[int, int, int]


def _small_basicvsr_pp() -> LRTITraining:
    small = configure(preset="small")
    return configure(
        "basicvsr_pp",
        network=BasicVSRPlusPlusConfig(channels=24, num_blocks=2, groups=8),
        flow="frozen",
        batch=small.batch,
        patch_px=small.patch_px,
        degradation=small.degradation,
        loop=small.loop,
    )


def _smoke(model: str, network: Any, *, patch_px: int = 8) -> LRTITraining:
    loop = replace(configure(preset="small").loop, steps=4, log_every=1)
    return configure(
        model,
        network=network,
        flow="frozen",
        batch=1,
        patch_px=patch_px,
        degradation="bi-u8",
        loop=loop,
    )


PRESETS: Mapping[str, Preset] = {
    "small": Preset(
        summary="networks of 24 channels; a day on two cores, see --studies",
        clips=ClipSettings(frames=40, window_px=192, score_px=256, held_out=10),
        mechanism=(4, 16),
        truncation=(4, 8, 24),
        networks={
            "basicvsr": lambda: configure(preset="small"),
            "basicvsr_pp": _small_basicvsr_pp,
            "lrti": lambda: configure(preset="tiny"),
        },
        seeds=(4, 3, 6),
    ),
    "smoke": Preset(
        summary="a few steps of the smallest networks, to try a set-up; its verdicts mean nothing",
        clips=ClipSettings(frames=10, window_px=32, score_px=128, held_out=2),
        mechanism=(2, 4),
        truncation=(1, 2, 6),
        networks={
            "basicvsr": lambda: _smoke(
                "basicvsr",
                BasicVSRConfig(channels=4, num_blocks=1, hr_channels=4),
            ),
            "basicvsr_pp": lambda: _smoke(
                "basicvsr_pp",
                BasicVSRPlusPlusConfig(channels=4, num_blocks=1, groups=2),
            ),
            "lrti": lambda: _smoke(
                "LRTIVSR",
                LRTIVSRConfig(
                    channels=4,
                    depths=(1,),
                    num_heads=(1,),
                    mid_channels=4,
                    hr_channels=4,
                    has_unused=False,
                ),
                patch_px=32,
            ),
        },
        seeds=(2, 2, 2),
    ),
}
"""Presets by the name that `--preset` accepts."""
