"""Make low-quality clips from good ones, by named presets."""

from tubelet.degrade.presets import PRESETS, REAL_RECIPE, Preset, degrade

__all__ = ["PRESETS", "REAL_RECIPE", "Preset", "degrade"]
