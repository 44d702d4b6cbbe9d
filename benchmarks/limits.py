"""The rate at which this machine multiplies matrices: the limit of a network's time."""

from __future__ import annotations

import time

import torch

_SIDE = 2048
_TRIES = 8


def matrix_rate(dtype: torch.dtype) -> float:
    """Measure FLOPs a second of a matrix product on all threads of torch: the fastest of several.

    A multiplication and an addition are two FLOPs.
    """
    a = torch.randn(_SIDE, _SIDE).to(dtype)
    b = torch.randn(_SIDE, _SIDE).to(dtype)
    fastest_s = float("inf")
    for _ in range(_TRIES):
        start_s = time.perf_counter()
        torch.mm(a, b)
        fastest_s = min(fastest_s, time.perf_counter() - start_s)
    return 2 * _SIDE**3 / fastest_s
