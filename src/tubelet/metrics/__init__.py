"""Numbers that say how good a result is."""

from tubelet.metrics.fidelity import psnr, ssim

__all__ = ["psnr", "ssim"]
