"""Presets of training on long clips: those of the LRTI-VSR paper, and two for a laptop.

preset            network                                   frames of a sample, samples, clip
paper             LRTI-VSR, 12.9 M parameters                16, 6, 100
paper-small       LRTI-VSR-small, 6.06 M                     16; plain, as the paper does not say
ablation          LRTI-VSR-small                              8, 5, 40
basicvsr-tb       BasicVSR                                   15, 7, 100
basicvsr_pp-tb    BasicVSR++                                 30, 5, 100
psrt-tb           PSRT, from its published weights           16, 6, 100
realbasicvsr-tb   RealBasicVSR, its first stage              15, 6, 100
small             BasicVSR with 24 channels and 3 blocks      4, 10, 40
tiny              LRTI-VSR with 24 channels                   8, 5, 40

Source: LRTI-VSR, Sec. 3 and A.5.2; open settings follow the option file of MIA-VSR, on whose code
it builds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

from tubelet.degrade import Preset
from tubelet.errors import RequestError, suggest
from tubelet.models.basicvsr import BasicVSRConfig
from tubelet.models.lrti_vsr import LRTIVSRConfig
from tubelet.models.psrt import PSRTConfig
from tubelet.ops.sizes import round_up
from tubelet.recipes.published import PublishedRecipe, find_recipe
from tubelet.training import LoopSettings, OptimizerSettings

__all__ = ["PRESETS", "FlowTraining", "LongClipPreset", "Strategy", "find_preset", "preset_of"]

Strategy = Literal["truncated", "plain", "plain-same-samples"]
FlowTraining = Literal["trained", "frozen"]

_PAPER = "LRTI-VSR, Sec. 3.1, 3.3 and A.5.2"
_ASSUMED = "betas, EMA, no warm-up, SpyNet frozen for 5000 steps: as in MIA-VSR; float32"


@dataclass(frozen=True, slots=True, kw_only=True)
class LongClipPreset:
    """Settings of a training on long clips.

    Attributes:
        summary: Network and purpose, for the list of presets.
        model: Name of the network, for `find_recipe`.
        network: Configuration of the network.
        strategy: See `LRTITraining`.
        length: Frames of a sample, L.
        samples: Samples of a long clip, N.
        clip: Frames of a long clip, T.
        batch: Samples of a step.
        patch_px: Side of the low-quality crop, pixels.
        degradation: Degradation of the low-quality frames.
        flow: Whether SpyNet is trained.
        cleaning_weight: Weight of the loss on cleaned frames, for RealBasicVSR.
        loop: Steps, learning rate and loss.
        fine_tunes: Whether it starts from published weights.
        source: Source of the settings.
        assumed: Settings that the source does not give.
    """

    summary: str = ""
    model: str
    network: Any
    strategy: Strategy = "truncated"
    length: int = 8
    samples: int = 5
    clip: int = 40
    batch: int
    patch_px: int = 64
    degradation: Preset = "bi-u8"
    flow: FlowTraining = "trained"
    cleaning_weight: float = 0.0
    loop: LoopSettings
    fine_tunes: bool = False
    source: str = _PAPER
    assumed: str = _ASSUMED


def preset_of(recipe: PublishedRecipe) -> LongClipPreset:
    """Build the preset of a network without one: its published recipe, on clips of 40 frames."""
    preset = LongClipPreset(
        model=recipe.name,
        network=recipe.network,
        batch=recipe.crops.batch,
        patch_px=recipe.crops.patch_px,
        degradation=recipe.preset,
        cleaning_weight=recipe.cleaning_weight,
        loop=recipe.loop,
        source=recipe.source,
        assumed=f"{recipe.assumed}; samples and clips as in the ablation of LRTI-VSR",
    )
    return replace(preset, loop=_saved_between_clips(preset.loop, preset.samples))


def _saved_between_clips(loop: LoopSettings, samples: int) -> LoopSettings:
    """Move the checkpoints of a recipe to the ends of long clips."""
    return replace(loop, save_every=round_up(loop.save_every, samples))


def _with_long_clips(
    name: str,
    *,
    summary: str,
    length: int,
    samples: int,
    assumed: str,
) -> LongClipPreset:
    """Extend a published recipe by truncated back-propagation on clips of 100 frames."""
    recipe = find_recipe(name)
    return replace(
        preset_of(recipe),
        summary=summary,
        length=length,
        samples=samples,
        clip=100,
        degradation="bi-u8" if recipe.preset == "bi" else recipe.preset,
        loop=_saved_between_clips(recipe.loop, samples),
        source=f"LRTI-VSR, Sec. 3.2; {recipe.source}",
        assumed=f"{recipe.assumed}; {assumed}",
    )


_FLOW = OptimizerSettings(low_lr_modules=("spynet",), lr_multiplier=0.125, freeze_steps=5000)
_LOOP = LoopSettings(
    steps=600_000,
    lr=2e-4,
    lr_final=1e-7,
    warmup_steps=0,
    optimizer=_FLOW,
    grad_clip=math.inf,
    loss_eps=1e-3,
    log_every=100,
    save_every=6000,
)
# LRTI-VSR-small.
_SMALL = LRTIVSRConfig(depths=(6,), num_heads=(6,))

PRESETS: dict[str, LongClipPreset] = {
    "paper": LongClipPreset(
        summary="LRTI-VSR",
        model="LRTIVSR",
        network=LRTIVSRConfig(),
        length=16,
        samples=6,
        clip=100,
        batch=24,
        loop=_LOOP,
    ),
    # With --strategy truncated, it has the samples and clips of "paper".
    "paper-small": LongClipPreset(
        summary="LRTI-VSR-small",
        model="LRTIVSR",
        network=_SMALL,
        strategy="plain",
        length=16,
        samples=6,
        clip=100,
        batch=24,
        loop=_LOOP,
        assumed=f"{_ASSUMED}; no long clips",
    ),
    "ablation": LongClipPreset(
        summary="LRTI-VSR-small in the ablation",
        model="LRTIVSR",
        network=_SMALL,
        batch=1,
        loop=replace(_LOOP, steps=300_000, lr=1e-4, save_every=5000),
        source="LRTI-VSR, Sec. 3.2 and A.5.2",
    ),
    "basicvsr-tb": _with_long_clips(
        "basicvsr",
        summary="BasicVSR",
        length=15,
        samples=7,
        assumed="clips of 100 frames",
    ),
    "basicvsr_pp-tb": _with_long_clips(
        "basicvsr_pp",
        summary="BasicVSR++",
        length=30,
        samples=5,
        assumed="clips of 100 frames",
    ),
    "psrt-tb": LongClipPreset(
        summary="PSRT from published weights",
        model="PSRT",
        network=PSRTConfig(),
        length=16,
        samples=6,
        clip=100,
        batch=4,
        loop=replace(_LOOP, steps=100_000, lr=1e-4),
        fine_tunes=True,
        source="LRTI-VSR, Sec. 3.2 and A.5.2",
        assumed=f"{_ASSUMED}; clips of 100 frames",
    ),
    "realbasicvsr-tb": _with_long_clips(
        "realbasicvsr",
        summary="RealBasicVSR, first stage",
        length=15,
        samples=6,
        assumed="6 samples of clips of 100 frames, not mirrored",
    ),
    "small": LongClipPreset(
        summary="BasicVSR of 24 channels, for a laptop",
        model="basicvsr",
        network=BasicVSRConfig(channels=24, num_blocks=3, hr_channels=16),
        length=4,
        samples=10,
        batch=2,
        patch_px=32,
        flow="frozen",
        loop=LoopSettings(steps=4000, lr=1e-3, warmup_steps=0),
        source="Tubelet",
        assumed="everything",
    ),
    "tiny": LongClipPreset(
        summary="LRTI-VSR of 24 channels, for a laptop",
        model="LRTIVSR",
        network=LRTIVSRConfig(
            channels=24,
            depths=(2,),
            num_heads=(3,),
            mid_channels=24,
            hr_channels=16,
            has_unused=False,
        ),
        batch=1,
        patch_px=32,
        flow="frozen",
        loop=LoopSettings(steps=2000, lr=4e-4, lr_final=1e-7, warmup_steps=0),
        source="Tubelet",
        assumed="everything",
    ),
}
"""Presets by the name that `--preset` accepts."""


def find_preset(name: str) -> LongClipPreset:
    """Find a preset by its name.

    Raises:
        RequestError: No preset has this name; the message suggests one.
    """
    if name not in PRESETS:
        raise RequestError(f"no preset is called {name!r}; {suggest(name, PRESETS)}")
    return PRESETS[name]
