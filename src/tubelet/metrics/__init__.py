"""Metrics of the quality of restored videos."""

from tubelet.metrics.fidelity import psnr, ssim
from tubelet.metrics.measure import METRICS, Meter, MetricInfo, make_meter, metric_info

__all__ = ["METRICS", "Meter", "MetricInfo", "make_meter", "metric_info", "psnr", "ssim"]
