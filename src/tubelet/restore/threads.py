"""Share the processor between the network, and the conversion and encoding of its results."""

from __future__ import annotations

import math

from tubelet.restore.plan import Plan
from tubelet.types import Precision

__all__ = ["network_threads"]

# Rates of one core, measured on processors with AVX-512 (docs/log/2026-11-30.md). Only their ratio
# to the time of the output matters, and only for networks that take about as long as the encoder.
_MULTIPLICATIONS_PER_S: dict[Precision, float] = {"fp32": 40e9, "bf16": 200e9, "fp16": 40e9}
_OUTPUT_S_PER_PX = 25e-9
"""Conversion to the pixel format, and encoding as H.264 with the default preset."""
_LONG_FRAME_S = 0.04
"""Time for which a network computes a frame, on one core, beyond which a second thread shortens the
run although the encoder takes as long: 640×360 with the default model, not 320×180."""


def network_threads(plan: Plan, *, num_weights: int, max_threads: int) -> int:
    """Choose how many threads a network on the CPU should use.

    A small network takes less time than the encoder of its results. Then more threads make each
    call shorter, but not the whole run: they wait for one another, and take the cores of the
    encoder. So each side gets its share of the cores.

    Args:
        plan: Plan of the restoration.
        num_weights: Weights of the network. Each is multiplied about once for every input pixel.
        max_threads: Threads that torch uses by default.

    Returns:
        1 to `max_threads`.
    """
    if plan.device != "cpu":
        return max_threads
    multiplications = num_weights * plan.width * plan.height
    network_s = multiplications / _MULTIPLICATIONS_PER_S[plan.precision]
    out_width, out_height = plan.output
    output_s = _OUTPUT_S_PER_PX * out_width * out_height
    share = network_s / (network_s + output_s)
    num_threads = max(1, math.ceil(share * max_threads))
    # Each operation takes long enough for two threads to wait little for one another.
    if network_s > _LONG_FRAME_S:
        num_threads = max(num_threads, min(2, max_threads))
    return num_threads
