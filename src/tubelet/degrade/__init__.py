"""Create low-quality clips from high-quality ones, by named presets."""

from tubelet.degrade.presets import PRESETS, Preset, degrade, degrade_frames
from tubelet.degrade.recipe import (
    RANDOM_PRESETS,
    DegradationRecipe,
    apply_recipe,
    draw_recipe,
    stream_recipe,
)

__all__ = [
    "PRESETS",
    "RANDOM_PRESETS",
    "DegradationRecipe",
    "Preset",
    "apply_recipe",
    "degrade",
    "degrade_frames",
    "draw_recipe",
    "stream_recipe",
]
