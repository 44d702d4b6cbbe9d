"""NIQE: distance of an image's statistics from those of good photographs, without a reference.

    image ── luma ── normalized by local mean and contrast, at two scales
    blocks of 96×96 pixels ── 18 features per scale: shapes and scales of fitted distributions
    Gaussian of the image's features ── distance from the pristine model

Source: Mittal et al., IEEE Signal Processing Letters 2013.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from tubelet.errors import CheckpointError
from tubelet.metrics.fidelity import to_channel
from tubelet.metrics.meters import FrameMeter
from tubelet.metrics.weights import WeightFile, find_weights
from tubelet.ops import imresize

__all__ = ["PRISTINE", "Pristine", "fit_pristine", "load_pristine", "niqe", "niqe_meter"]

PRISTINE = WeightFile(
    "niqe_pris_params.npz",
    "https://github.com/XPixelGroup/BasicSR/raw/master/basicsr/metrics/niqe_pris_params.npz",
)
"""The published pristine model, with MATLAB's parameters, as BasicSR ships it."""

_TUBELET_PRISTINE = Path(__file__).with_name("niqe_pristine.npz")
_BLOCK_PX = 96
# 18 for each of two scales.
_FEATURES = 36
_WINDOW_PX = 7
_WINDOW_SIGMA_PX = 7 / 6
# Neighbors of a pixel: down, right.
_SHIFTS = ((0, 1), (1, 0), (1, 1), (1, -1))
# Relative to the sharpest block of an image: the pristine model uses the blocks above.
_MIN_SHARPNESS = 0.75


@dataclass(frozen=True, slots=True)
class Pristine:
    """A Gaussian of the features of good photographs.

    Attributes:
        mean: (36,), float64.
        cov: (36, 36), float64.
    """

    mean: Tensor
    cov: Tensor


def niqe_meter(
    name: str,
    *,
    border: int,
    weights: Path | None,
    device: torch.device,
) -> FrameMeter:
    """Create the meter of `niqe` or of `niqe-tubelet`.

    Args:
        name: "niqe" uses the published pristine model, "niqe-tubelet" the one in this package.
        border: Pixels cropped from each side.
        weights: Location of the published model, see `find_weights`.
        device: Device that computes.

    Raises:
        ResourceError: The published model is absent and cannot be downloaded.
        CheckpointError: Its file is not a pristine model.
    """
    path = _TUBELET_PRISTINE
    if name == "niqe":
        (path,) = find_weights("niqe", [PRISTINE], weights)
    model = load_pristine(path)
    model = Pristine(model.mean.to(device), model.cov.to(device))

    def score(sr: Tensor, gt: Tensor | None) -> float:
        return niqe(sr.to(device), model, border=border).item()

    return FrameMeter(name, score, needs_reference=False)


def load_pristine(path: Path | None = None) -> Pristine:
    """Read a pristine model.

    Args:
        path: An .npz with `mu_pris_param` (36) and `cov_pris_param` (36, 36); None: Tubelet's own.

    Raises:
        CheckpointError: The file is missing or has other content.
    """
    path = path or _TUBELET_PRISTINE
    try:
        with np.load(path, allow_pickle=False) as arrays:
            mean = torch.from_numpy(arrays["mu_pris_param"]).double()
            cov = torch.from_numpy(arrays["cov_pris_param"]).double()
            return Pristine(mean.reshape(_FEATURES), cov.reshape(_FEATURES, _FEATURES))
    except (OSError, ValueError, KeyError, RuntimeError, zipfile.BadZipFile) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{path} is not a pristine model of NIQE: {reason}") from error


def niqe(x: Tensor, model: Pristine, *, border: int = 0) -> Tensor:
    """Measure how natural an image looks; lower is better.

    Args:
        x: (3, H, W) in [0, 1], rounded to 8 bit first; luma is BT.601, limited range, rounded.
        model: Pristine model to compare with.
        border: Pixels left out on each side.

    Returns:
        (), float64.

    Raises:
        ValueError: The image has fewer than two blocks of 96×96 pixels.

    Source: Mittal et al., IEEE Signal Processing Letters 2013; the convention of BasicSR, without
    flat blocks.
    """
    _, height, width = x.shape
    x = x[:, border : height - border, border : width - border]
    features, _ = _describe(to_channel(x, "y")[0].round())
    if len(features) < 2:
        raise ValueError(
            f"NIQE needs two blocks of {_BLOCK_PX}×{_BLOCK_PX} pixels, "
            f"got {x.shape[-1]}×{x.shape[-2]}"
        )
    difference = model.mean - features.nanmean(0)
    # Flat blocks have undefined features.
    is_flat = features.isnan().any(1)
    cov = features[~is_flat].T.cov()
    # Distance of the two Gaussians.
    mean_cov = (model.cov + cov) / 2
    inverse = cast(Tensor, torch.linalg.pinv(mean_cov, rtol=1e-15))
    return (difference @ inverse @ difference).sqrt()


def fit_pristine(images: Iterable[Tensor]) -> Pristine:
    """Fit a pristine model to the sharp blocks of good photographs.

    Args:
        images: Photographs, each (3, H, W) in [0, 1], free of noise and of coding artifacts.

    Returns:
        The mean and covariance of the features of their sharp blocks.

    Source: Mittal et al., 2013, Sec. II-C: blocks sharper than 0.75 of the sharpest of the image.
    """
    features_by_image: list[Tensor] = []
    for image in images:
        features, sharpness = _describe(to_channel(image, "y")[0].round())
        is_sharp = sharpness > _MIN_SHARPNESS * sharpness.max()
        is_flat = features.isnan().any(1)
        features_by_image.append(features[is_sharp & ~is_flat])
    features = torch.cat(features_by_image)
    return Pristine(features.mean(0), features.T.cov())


def _describe(luma: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the features and the sharpness of the complete blocks of an image.

    Args:
        luma: (H, W) in [0, 255].

    Returns:
        Features (N, 36) and sharpness (N,) of N blocks.
    """
    height, width = luma.shape
    rows = height // _BLOCK_PX
    columns = width // _BLOCK_PX
    if not rows * columns:
        return luma.new_empty(0, _FEATURES), luma.new_empty(0)
    luma = luma[: rows * _BLOCK_PX, : columns * _BLOCK_PX]
    normalized, deviation = _normalize(luma)
    sharpness = _blocks(deviation, _BLOCK_PX).mean((1, 2))
    normalized_half, _ = _normalize(imresize(luma / 255, 0.5) * 255)
    features = [
        _features(_blocks(normalized, _BLOCK_PX)),
        _features(_blocks(normalized_half, _BLOCK_PX // 2)),
    ]
    return torch.cat(features, 1), sharpness


def _normalize(x: Tensor) -> tuple[Tensor, Tensor]:
    """Subtract the local mean and divide by the local contrast.

    Args:
        x: (H, W).

    Returns:
        The normalized image and the local standard deviation, both (H, W).
    """
    position_px = torch.arange(_WINDOW_PX, dtype=x.dtype, device=x.device)
    distance_px = position_px - _WINDOW_PX // 2
    taps = torch.exp(-distance_px.square() / (2 * _WINDOW_SIGMA_PX**2))
    taps = taps / taps.sum()

    # Local means of x and x²: (2, H, W).
    pad = _WINDOW_PX // 2
    moments = torch.stack([x, x * x])[:, None]
    moments = functional.pad(moments, (pad, pad, pad, pad), mode="replicate")
    moments = functional.conv2d(moments, taps.reshape(1, 1, -1, 1))
    moments = functional.conv2d(moments, taps.reshape(1, 1, 1, -1))
    mean, mean_square = moments[:, 0]

    deviation = (mean_square - mean.square()).abs().sqrt()
    return (x - mean) / (deviation + 1), deviation


def _blocks(x: Tensor, side: int) -> Tensor:
    """Cut (H, W) into blocks (N, side, side)."""
    return x.unfold(0, side, side).unfold(1, side, side).reshape(-1, side, side)


def _features(blocks: Tensor) -> Tensor:
    """Describe the distribution of the values, and of their products with four neighbors.

    Args:
        blocks: Normalized blocks, (N, side, side).

    Returns:
        (N, 18).
    """
    alpha, left, right = _fit_asymmetric(blocks.flatten(1))
    features = [alpha, (left + right) / 2]
    for shift in _SHIFTS:
        products = blocks * blocks.roll(shift, (1, 2))
        alpha, left, right = _fit_asymmetric(products.flatten(1))
        # Mean of the fitted distribution: the ratio is Γ(2/α) / Γ(1/α).
        log_ratio = torch.lgamma(2 / alpha) - torch.lgamma(1 / alpha)
        mean = (right - left) * log_ratio.exp()
        features += [alpha, mean, left, right]
    return torch.stack(features, 1)


def _fit_asymmetric(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Fit an asymmetric generalized Gaussian to the rows of (N, P) by moments.

    Returns:
        Shape, left and right scale, each (N,); NaN scales where a row has values of one sign only.

    Source: Lasmar et al., ICIP 2009.
    """
    square = x.square()
    left_deviation = _mean_where(square, x < 0).sqrt()
    right_deviation = _mean_where(square, x > 0).sqrt()

    # The moment of the data that determines the shape.
    ratio = left_deviation / right_deviation
    moment = x.abs().mean(1).square() / square.mean(1)
    asymmetry = (ratio.square() + 1).square()
    moment = moment * (ratio**3 + 1) * (ratio + 1) / asymmetry

    # The shape in the table whose moment is nearest.
    shapes, moments = (table.to(x.device) for table in _shape_table())
    above = torch.searchsorted(moments, moment.nan_to_num(0.0).contiguous())
    above = above.clamp(1, len(moments) - 1)
    distance_below = (moment - moments[above - 1]).abs()
    distance_above = (moments[above] - moment).abs()
    nearest = above - (distance_below <= distance_above).long()
    alpha = shapes[torch.where(moment.isnan(), 0, nearest)]

    # sqrt(Γ(1/α) / Γ(3/α)): from the deviation to the scale.
    log_ratio = torch.lgamma(1 / alpha) - torch.lgamma(3 / alpha)
    scale = (log_ratio / 2).exp()
    return alpha, left_deviation * scale, right_deviation * scale


def _mean_where(x: Tensor, mask: Tensor) -> Tensor:
    """Average the selected values of each row of (N, P): (N,), NaN where there are none."""
    return (x * mask).sum(1) / mask.sum(1)


@lru_cache(maxsize=1)
def _shape_table() -> tuple[Tensor, Tensor]:
    """Tabulate shapes α = 0.2, 0.201, ..., 10 and their moments Γ(2/α)² / (Γ(1/α) Γ(3/α)).

    The moments rise with α.
    """
    shapes = torch.from_numpy(np.arange(0.2, 10.001, 0.001))
    inverse = 1 / shapes
    log_moments = 2 * torch.lgamma(2 * inverse)
    log_moments = log_moments - torch.lgamma(inverse) - torch.lgamma(3 * inverse)
    return shapes, log_moments.exp()
