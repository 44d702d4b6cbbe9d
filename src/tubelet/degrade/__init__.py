"""Make low-quality clips from good ones, by named presets."""

from tubelet.degrade.presets import PRESETS, Preset, degrade

__all__ = ["PRESETS", "Preset", "degrade"]
