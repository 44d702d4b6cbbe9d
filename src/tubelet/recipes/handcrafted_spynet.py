"""The weights that the training of SpyNet begins with: an estimator from differences in space and time, by hand.

From random weights the loss stays for long where no motion is the best guess, since motion shows only in products of
differences in time, t, and in space, s. A network of rectified sums can hold such products from the start:

    1  |t ± s|, as rectified sums, at two scales along four directions              (32 = 2 scales · 4 · 4)
    2  pooled: |t + s| - |t - s| = 2 sign(t s) min(|t|, |s|) is the product, |t + s| + |t - s| = 2 max(|t|, |s|) its
       measure. How far product - r · measure is above 0, and above a small bound   (64 = 4 · 4 r · 2 signs · 2)
    3  the difference of the two, from 0 to 1: the motion is longer than r          (32 = 4 · 4 r · 2 signs)
    4  their sum, by the steps between the r: the motion along each direction       (8 of 16; the others are free)
    5  the flow

Every layer also pools. Where there is no texture nothing is above 0, and the motion is none.

Source: the product of differences over a measure of texture: Lucas and Kanade, IJCAI 1981.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn

from tubelet.layers.spynet import SpyNet

__all__ = ["handcrafted_spynet"]

# What follows was chosen by the end-point error on training pairs.
_SIGMAS_PX = (0.7, 1.3)  # of the differences
# Weight of differences in time to those in space. Below 1, the length of a motion shows up to 1.5 px.
_TIME = 0.6
_LENGTHS_PX = (0.1, 0.3, 0.6, 1.1)
# Amplifications of layers 1 and 2; their product sets the contrast from which on a pixel counts.
_GAIN = 40.0
_STEEP = 120.0
_ALONG = 0.6  # of the motion along four directions in the flow; 0.5 were right if none were weak
_LUMA = torch.tensor([0.3, 0.6, 0.1])[:, None, None]
_SIGNS = ((1, 1), (-1, -1), (1, -1), (-1, 1))  # of t and s


def handcrafted_spynet() -> SpyNet:
    """Make a SpyNet of which every level is the estimator on top of this file.

    Its few unused units are random, from the global generator.
    """
    spynet = SpyNet()
    with torch.no_grad():
        for level in spynet.basic_module:
            layers = [module for module in level.modules() if isinstance(module, nn.Conv2d)]
            for layer in layers:
                nn.init.zeros_(layer.weight)
                nn.init.zeros_(_bias(layer))
            _take_differences(layers[0].weight)
            _compare_lengths(layers)
    return spynet


def _take_differences(first: Tensor) -> None:
    """Fill layer 1, (32, 8, 7, 7)."""
    axis = torch.arange(7) - 3.0
    for angle, scale in itertools.product(range(4), range(2)):
        turn = math.pi * angle / 4
        sigma = _SIGMAS_PX[scale]
        space = _bell(sigma) * (axis * math.cos(turn) + axis[:, None] * math.sin(turn)) / sigma**2
        for unit, (t, s) in enumerate(_SIGNS, (scale * 4 + angle) * 4):
            first[unit, :3] = _GAIN * _LUMA * (s * space / 2 + t * _TIME * _bell(sigma))
            first[unit, 3:6] = _GAIN * _LUMA * (s * space / 2 - t * _TIME * _bell(sigma))


def _compare_lengths(layers: list[nn.Conv2d]) -> None:
    """Fill layers 2 to 5."""
    _, second, third, fourth, last = (layer.weight for layer in layers)
    nn.init.kaiming_normal_(fourth[8:], nonlinearity="relu")
    measured = 0.0
    for rank, length_px in enumerate(_LENGTHS_PX):
        step_px = 2 * (length_px - measured)  # the guess lies in the middle between two lengths
        measured += step_px
        for angle, (side, sign) in itertools.product(range(4), enumerate((1, -1))):
            unit = (angle * 4 + rank) * 2 + side
            mix = torch.tensor([sign * t * s - length_px * _TIME for t, s in _SIGNS])
            for scale in range(2):
                base = (scale * 4 + angle) * 4
                second[2 * unit : 2 * unit + 2, base : base + 4] = (
                    _STEEP / _GAIN * mix[:, None, None] * _bell(1.5)
                )
            _bias(layers[1])[2 * unit + 1] = -1
            third[unit, 2 * unit] = _bell(1.5)
            third[unit, 2 * unit + 1] = -_bell(1.5)
            fourth[angle * 2 + side, unit] = step_px * _bell(2.0)
            direction = torch.tensor([math.cos(math.pi * angle / 4), math.sin(math.pi * angle / 4)])
            last[:, angle * 2 + side] = _ALONG * sign * direction[:, None, None] * _bell(2.0)


def _bias(layer: nn.Conv2d) -> Tensor:
    assert layer.bias is not None
    return layer.bias


def _bell(sigma_px: float) -> Tensor:
    """Make a Gaussian window of 7×7, of sum 1."""
    bell = torch.exp(-0.5 * ((torch.arange(7) - 3.0) / sigma_px).square())
    return bell[:, None] * bell / bell.sum().square()
