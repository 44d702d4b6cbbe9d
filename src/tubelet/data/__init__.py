"""Clips for training: decoded once, degraded once, cropped at random."""

from tubelet.data.cache import CachedClip, prepare_clips, read_clip
from tubelet.data.crops import Crops, CropSettings
from tubelet.data.pans import PanSettings

__all__ = ["CachedClip", "CropSettings", "Crops", "PanSettings", "prepare_clips", "read_clip"]
