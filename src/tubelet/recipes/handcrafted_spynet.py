"""Handcrafted initial weights of SpyNet: a gradient-based flow estimator in five convolutions.

From random weights, the training stays for a long time at the best constant guess, no motion:
motion appears only in products of the temporal difference t and the spatial gradient s, which a
network of ReLUs must learn first. These weights compute such products from the start:

    layer  channels, and what they compute
    1      32 = 2 scales · 4 directions · 4 signs: relu(±t ± s)
    2      64 = 4 directions · 4 lengths r · 2 signs · 2: relu(product - r · measure), and the
           same minus 1
    3      32 = 4 directions · 4 lengths r · 2 signs: difference of these two, 0 to 1, which is
           above 0 where the motion is longer than r
    4      8 of 16 = 4 directions · 2 signs: motion, a sum over the lengths; 8 more are random
    5      2: flow

    product = |t + s| - |t - s| = 2 sign(t s) min(|t|, |s|)
    measure = |t + s| + |t - s| = 2 max(|t|, |s|)

Layers 1 to 5 also smooth with Gaussian windows. Without texture, no channel is above 0 and the
flow is zero.

Source: the product of differences over a measure of texture is from Lucas and Kanade, IJCAI 1981.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn

from tubelet.layers.spynet import SpyNet

__all__ = ["handcrafted_spynet"]

_DIRECTIONS = 4
_SCALES = 2

# The following constants minimize the end-point error on training pairs.
# Standard deviations of the derivatives of Gaussians.
_SIGMAS_PX = (0.7, 1.3)
# Weight of temporal differences relative to spatial gradients. Below 1, motion is measurable up to
# 1.5 px.
_TIME = 0.6
# Lengths r that the motion is compared with.
_LENGTHS_PX = (0.1, 0.3, 0.6, 1.1)
# Gains of layers 1 and 2; their product sets the minimum contrast of a pixel that counts.
_GAIN = 40.0
_STEEP = 120.0
# Weight of the motion along each of four directions in the flow: 0.5 in theory, more because some
# directions have little texture.
_ALONG = 0.6

_LUMA = torch.tensor([0.3, 0.6, 0.1])[:, None, None]
# Signs of t and s in the four channels of layer 1.
_SIGNS = ((1, 1), (-1, -1), (1, -1), (-1, 1))


def handcrafted_spynet() -> SpyNet:
    """Build a SpyNet whose levels are all the estimator that this file describes.

    Unused channels get random weights from the global generator.
    """
    spynet = SpyNet()
    with torch.no_grad():
        for level in spynet.basic_module:
            layers = [module for module in level.modules() if isinstance(module, nn.Conv2d)]
            for layer in layers:
                nn.init.zeros_(layer.weight)
                nn.init.zeros_(_bias(layer))
            _fill_gradient_layer(layers[0].weight)
            _fill_comparison_layers(layers)
    return spynet


def _fill_gradient_layer(weight: Tensor) -> None:
    """Fill layer 1, (32, 8, 7, 7): its input channels are ref RGB, warped supp RGB, flow."""
    axis = torch.arange(7) - 3.0
    for direction, scale in itertools.product(range(_DIRECTIONS), range(_SCALES)):
        angle = math.pi * direction / 4
        sigma = _SIGMAS_PX[scale]
        window = _gaussian(sigma)
        # Derivative of a Gaussian along the direction.
        along = axis * math.cos(angle) + axis[:, None] * math.sin(angle)
        gradient = window * along / sigma**2
        first = _first_gradient_channel(direction, scale)
        for channel, (t, s) in enumerate(_SIGNS, first):
            # The gradient is the mean of both frames', the temporal difference is ref - supp.
            spatial = s * gradient / 2
            temporal = t * _TIME * window
            weight[channel, :3] = _GAIN * _LUMA * (spatial + temporal)
            weight[channel, 3:6] = _GAIN * _LUMA * (spatial - temporal)


def _first_gradient_channel(direction: int, scale: int) -> int:
    """Return the first of the four channels of layer 1 with this direction and scale."""
    return (scale * _DIRECTIONS + direction) * len(_SIGNS)


def _fill_comparison_layers(layers: list[nn.Conv2d]) -> None:
    """Fill layers 2 to 5, which compare the motion with the lengths and sum up the results."""
    second = layers[1].weight
    third = layers[2].weight
    fourth = layers[3].weight
    last = layers[4].weight
    nn.init.kaiming_normal_(fourth[8:], nonlinearity="relu")
    measured_px = 0.0
    for rank, length_px in enumerate(_LENGTHS_PX):
        # Exceeding a length adds a step that has the length in its middle.
        step_px = 2 * (length_px - measured_px)
        measured_px += step_px
        for direction, side in itertools.product(range(_DIRECTIONS), range(2)):
            sign = 1 if side == 0 else -1
            angle = math.pi * direction / 4
            unit = (direction * len(_LENGTHS_PX) + rank) * 2 + side

            # Layer 2: sign · product - r · measure, from both scales, in two equal channels.
            mix = torch.tensor([sign * t * s - length_px * _TIME for t, s in _SIGNS])
            kernel = _STEEP / _GAIN * mix[:, None, None] * _gaussian(1.5)
            for scale in range(_SCALES):
                first = _first_gradient_channel(direction, scale)
                second[2 * unit : 2 * unit + 2, first : first + 4] = kernel
            # Layer 3: relu(x) - relu(x - 1) limits the result to 0 … 1.
            _bias(layers[1])[2 * unit + 1] = -1
            third[unit, 2 * unit] = _gaussian(1.5)
            third[unit, 2 * unit + 1] = -_gaussian(1.5)
            # Layer 4: motion along the direction, for either sign.
            fourth[direction * 2 + side, unit] = step_px * _gaussian(2.0)
            # Layer 5: dx and dy.
            vector = torch.tensor([math.cos(angle), math.sin(angle)])
            last[:, direction * 2 + side] = _ALONG * sign * vector[:, None, None] * _gaussian(2.0)


def _bias(layer: nn.Conv2d) -> Tensor:
    assert layer.bias is not None
    return layer.bias


def _gaussian(sigma_px: float) -> Tensor:
    """Return a Gaussian window, (7, 7), with sum 1."""
    x = torch.arange(7) - 3.0
    window = torch.exp(-0.5 * (x / sigma_px).square())
    return window[:, None] * window / window.sum().square()
