"""Bicubic and Lanczos upscaling as models: the baselines that networks are compared with.

Source: MATLAB's `imresize`; Keys, IEEE TASSP 1981; Duchon, J. Appl. Meteorology 1979.

lq (B, T, 3, H, W) → sr (B, T, 3, sH, sW)
"""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from tubelet.models.architecture import Contract
from tubelet.ops.resize import Kernel, resample
from tubelet.types import Temporal
from tubelet.zoo.spec import ModelSpec

__all__ = ["BASELINES", "Resample"]

_SCALES = (2, 3, 4)


class Resample(nn.Module):
    """Upscale every frame with a fixed kernel."""

    def __init__(self, scale: int, *, kernel: Kernel = "bicubic") -> None:
        super().__init__()
        self.scale = scale
        self.kernel: Kernel = kernel

    def forward(self, lq: Tensor) -> Tensor:
        """Upscale `lq` (B, T, 3, H, W) to (B, T, 3, sH, sW); values may overshoot [0, 1]."""
        height, width = lq.shape[-2:]
        size = (height * self.scale, width * self.scale)
        # Resampling multiplies whole rows by a matrix. In channels-last order the three channels
        # are innermost, and every product would copy its input.
        return resample(lq.contiguous(), size, kernel=self.kernel)


def _bicubic(scale: int) -> ModelSpec:
    return ModelSpec(
        id=f"bicubic-x{scale}",
        summary="MATLAB's bicubic: the baseline of the literature",
        architecture="Resample",
        # Four taps reach 2 px, and the kernel's center is up to half a pixel from an lq pixel.
        contract=Contract(scale=scale, temporal=Temporal("frame"), halo_px=3, skip="bicubic"),
        build=partial(Resample, scale, kernel="bicubic"),
        source="https://doi.org/10.1109/TASSP.1981.1163711",
    )


def _lanczos(scale: int) -> ModelSpec:
    return ModelSpec(
        id=f"lanczos-x{scale}",
        summary="Lanczos-3: the sharpest of the fixed kernels",
        architecture="Resample",
        # Six taps reach 3 px, and the center again adds up to half a pixel.
        contract=Contract(scale=scale, temporal=Temporal("frame"), halo_px=4, skip="lanczos3"),
        build=partial(Resample, scale, kernel="lanczos3"),
        source="https://doi.org/10.1175/1520-0450(1979)018<1016:LFIOAT>2.0.CO;2",
    )


BASELINES = (*map(_bicubic, _SCALES), *map(_lanczos, _SCALES))
