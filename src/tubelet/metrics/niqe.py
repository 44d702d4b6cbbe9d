"""NIQE: how far the statistics of an image are from those of good photographs, without a reference."""

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

_OWN = Path(__file__).with_name("niqe_pristine.npz")
_BLOCK = 96  # pixels a side
_FEATURES = 36  # 18 of each of two scales
_WINDOW_PX, _WINDOW_SIGMA = 7, 7 / 6
_SHIFTS = ((0, 1), (1, 0), (1, 1), (1, -1))  # down, right
_SHARP = 0.75  # of the sharpest block: the pristine model is made of blocks above


@dataclass(frozen=True, slots=True)
class Pristine:
    """A Gaussian of the features of good photographs.

    Attributes:
        mean: (36,), float64.
        cov: (36, 36), float64.
    """

    mean: Tensor
    cov: Tensor


def niqe_meter(name: str, *, border: int, weights: Path | None, device: torch.device) -> FrameMeter:
    """Make the meter of `niqe` or of `niqe-tubelet`.

    Args:
        name: "niqe" takes the published pristine model, "niqe-tubelet" the one in this package.
        border: pixels cropped from each side.
        weights: of "niqe", see `find_weights`.
        device: where it is computed.

    Raises:
        ResourceError: the published model is not there and cannot be downloaded.
        CheckpointError: its file is not what it should be.
    """
    path = find_weights("niqe", [PRISTINE], weights)[0] if name == "niqe" else _OWN
    model = load_pristine(path)
    model = Pristine(model.mean.to(device), model.cov.to(device))
    return FrameMeter(
        name, lambda sr, gt: niqe(sr.to(device), model, border=border).item(), needs_reference=False
    )


def load_pristine(path: Path | None = None) -> Pristine:
    """Read a pristine model.

    Args:
        path: an .npz with `mu_pris_param` (36) and `cov_pris_param` (36, 36); by default Tubelet's own.

    Raises:
        CheckpointError: the file is missing or holds something else.
    """
    path = path or _OWN
    try:
        with np.load(path, allow_pickle=False) as arrays:
            mean, cov = (
                torch.from_numpy(arrays[f"{key}_pris_param"]).double() for key in ("mu", "cov")
            )
            return Pristine(mean.reshape(_FEATURES), cov.reshape(_FEATURES, _FEATURES))
    except (OSError, ValueError, KeyError, RuntimeError, zipfile.BadZipFile) as error:
        raise CheckpointError(
            f"{path} is not a pristine model of NIQE: {' '.join(str(error).split())}"
        ) from error


def niqe(x: Tensor, model: Pristine, *, border: int = 0) -> Tensor:
    """Measure how natural an image looks; lower is better.

    Args:
        x: (3, H, W) in [0, 1], rounded to 8 bit first; luma is BT.601, limited range, rounded.
        model: what it is compared with.
        border: pixels left out on each side.

    Returns:
        (), float64.

    Raises:
        ValueError: the image has fewer than two blocks of 96×96 pixels.

    Source: Mittal et al., IEEE Signal Processing Letters 2013; the convention of BasicSR, without flat blocks.
    """
    x = x[:, border : x.shape[-2] - border, border : x.shape[-1] - border]
    features, _ = _describe(to_channel(x, "y")[0].round())
    if len(features) < 2:
        raise ValueError(
            f"NIQE needs two blocks of {_BLOCK}×{_BLOCK} pixels, got {x.shape[-1]}×{x.shape[-2]}"
        )
    difference = model.mean - features.nanmean(0)
    cov = features[~features.isnan().any(1)].T.cov()
    inverse = cast(Tensor, torch.linalg.pinv((model.cov + cov) / 2, rtol=1e-15))
    return (difference @ inverse @ difference).sqrt()


def fit_pristine(images: Iterable[Tensor]) -> Pristine:
    """Fit a pristine model to good photographs, of whose blocks the sharp ones count.

    Args:
        images: each (3, H, W) in [0, 1], free of noise and of coding artifacts.

    Returns:
        The mean and covariance of the features of their sharp blocks.

    Source: Mittal et al., 2013, Sec. II-C: blocks sharper than 0.75 of the sharpest of the image.
    """
    chosen: list[Tensor] = []
    for image in images:
        features, sharpness = _describe(to_channel(image, "y")[0].round())
        good = (sharpness > _SHARP * sharpness.max()) & ~features.isnan().any(1)
        chosen.append(features[good])
    stacked = torch.cat(chosen)
    return Pristine(stacked.mean(0), stacked.T.cov())


def _describe(luma: Tensor) -> tuple[Tensor, Tensor]:
    """(H, W) in [0, 255] → features (N, 36) and sharpness (N,) of its whole blocks."""
    rows, columns = (n // _BLOCK for n in luma.shape)
    if not rows * columns:
        return luma.new_empty(0, _FEATURES), luma.new_empty(0)
    luma = luma[: rows * _BLOCK, : columns * _BLOCK]
    normalized, deviation = _normalize(luma)
    sharpness = _blocks(deviation, _BLOCK).mean((1, 2))
    half, _ = _normalize(imresize(luma / 255, 0.5) * 255)
    features = [
        _features(_blocks(x, side)) for x, side in ((normalized, _BLOCK), (half, _BLOCK // 2))
    ]
    return torch.cat(features, 1), sharpness


def _normalize(x: Tensor) -> tuple[Tensor, Tensor]:
    """Divide contrast out: (H, W) → the same, with local mean 0, and its local standard deviation."""
    taps = torch.arange(_WINDOW_PX, dtype=x.dtype, device=x.device) - _WINDOW_PX // 2
    taps = torch.exp(-taps.square() / (2 * _WINDOW_SIGMA**2))
    taps = taps / taps.sum()
    pad = _WINDOW_PX // 2
    both = functional.pad(torch.stack([x, x * x])[:, None], (pad, pad, pad, pad), mode="replicate")
    both = functional.conv2d(
        functional.conv2d(both, taps.reshape(1, 1, -1, 1)), taps.reshape(1, 1, 1, -1)
    )[:, 0]
    mean, deviation = both[0], (both[1] - both[0].square()).abs().sqrt()
    return (x - mean) / (deviation + 1), deviation


def _blocks(x: Tensor, side: int) -> Tensor:
    return x.unfold(0, side, side).unfold(1, side, side).reshape(-1, side, side)


def _features(blocks: Tensor) -> Tensor:
    """(N, side, side) → (N, 18): the shape of the values, and of the products with four neighbors."""
    alpha, left, right = _fit_asymmetric(blocks.flatten(1))
    features = [alpha, (left + right) / 2]
    for shift in _SHIFTS:
        alpha, left, right = _fit_asymmetric((blocks * blocks.roll(shift, (1, 2))).flatten(1))
        mean = (right - left) * (torch.lgamma(2 / alpha) - torch.lgamma(1 / alpha)).exp()
        features += [alpha, mean, left, right]
    return torch.stack(features, 1)


def _fit_asymmetric(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Fit an asymmetric generalized Gaussian to the rows of (N, P) by moments.

    Returns:
        shape, left and right scale, each (N,); NaN scales where a row has values of one sign only.

    Source: Lasmar et al., ICIP 2009.
    """
    square = x.square()
    left, right = ((square * side).sum(1) / side.sum(1) for side in (x < 0, x > 0))
    left, right = left.sqrt(), right.sqrt()
    ratio = left / right
    wanted = x.abs().mean(1).square() / square.mean(1)
    wanted = wanted * (ratio**3 + 1) * (ratio + 1) / (ratio.square() + 1).square()
    shapes, moments = (table.to(x.device) for table in _shape_table())
    after = torch.searchsorted(moments, wanted.nan_to_num(0.0).contiguous()).clamp(
        1, len(moments) - 1
    )
    nearest = (
        after - ((wanted - moments[after - 1]).abs() <= (moments[after] - wanted).abs()).long()
    )
    alpha = shapes[torch.where(wanted.isnan(), 0, nearest)]
    scale = ((torch.lgamma(1 / alpha) - torch.lgamma(3 / alpha)) / 2).exp()
    return alpha, left * scale, right * scale


@lru_cache(maxsize=1)
def _shape_table() -> tuple[Tensor, Tensor]:
    """Shapes 0.2, 0.201, ..., 10 and their Γ(2/α)² / (Γ(1/α) Γ(3/α)), which rises with α."""
    shapes = torch.from_numpy(np.arange(0.2, 10.001, 0.001))
    inverse = 1 / shapes
    return shapes, (
        2 * torch.lgamma(2 * inverse) - torch.lgamma(inverse) - torch.lgamma(3 * inverse)
    ).exp()
