"""Attention along trajectories: each token looks only at the tokens that it was in other frames.

A token is a square of `token_px` × `token_px` pixels. A location map says where each token of the
current frame was in another frame; from frame to frame the maps follow the optical flow, so that a
token far back in time costs no more than one in the last frame:

    flow t → t-1 (B, 2, H, W), pixels ── mean of each token, divided by token_px ── f (B, 2, h, w)
    locations in frame t:    p                                       the token itself
    locations in frame s:    L_s(p) = L_s(p + f(p))                  read from the map of frame t-1

    similarity_s(p) = cos(query(p), keys of frame s at L_s(p))
    s*(p)           = argmax over s of similarity_s(p)               one frame for each token

The same holds for a sweep from the last frame to the first, with the flow t → t+1. Frames are
compared one after the other with a running maximum, so memory does not grow with their number.

B batch, h = H / token_px and w = W / token_px tokens, D numbers of a token.

Source: Liu et al. (TTVSR), CVPR 2022, Sec. 3.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from tubelet.ops.warp import backward_warp

__all__ = [
    "GatherMode",
    "TokenMatch",
    "gather_matches",
    "gather_tokens",
    "identity_locations",
    "join_tokens",
    "match_tokens",
    "pool_flow",
    "split_tokens",
    "update_locations",
]

GatherMode = Literal["nearest", "bilinear"]
"""How a value is read between tokens.

nearest: The nearest token. Locations stay whole numbers, and the flow gets no gradient.
bilinear: The weighted mean of the four tokens around; differentiable in tokens, locations and flow.
"""

# Norms below it count as this one, so that a token of zeros is similar to nothing.
_MIN_NORM = 1e-12


@dataclass(frozen=True, slots=True, eq=False)
class TokenMatch:
    """The most similar token on the trajectory of each token, (B, ·, h, w)."""

    similarity: Tensor
    """Cosine similarity, from -1 to 1, (B, 1, h, w), at least float32."""
    frame: Tensor
    """Number of its frame in the order in which they were compared, (B, 1, h, w), integers."""
    locations: Tensor
    """Position in that frame, x then y, in tokens, (B, 2, h, w)."""


def split_tokens(feat: Tensor, token_px: int) -> Tensor:
    """Cut features into tokens that do not overlap; `join_tokens` undoes it.

    Args:
        feat: Features, (B, C, H, W), H and W multiples of `token_px`.
        token_px: Side of a token, pixels.

    Returns:
        Tokens, (B, token_px² · C, h, w), by line, column and channel; the numbers of a token are
        adjacent in memory (channels last).

    Raises:
        ValueError: H or W is not a multiple of `token_px`.
    """
    batch, channels = feat.shape[:2]
    height, width = _grid_size(feat, token_px)
    # (B, h, token_px, w, token_px, C) → (B, h, w, token_px² · C)
    pixels = feat.permute(0, 2, 3, 1).reshape(batch, height, token_px, width, token_px, channels)
    rows = pixels.transpose(2, 3).reshape(batch, height, width, token_px**2 * channels)
    return rows.contiguous().permute(0, 3, 1, 2)


def join_tokens(tokens: Tensor, token_px: int) -> Tensor:
    """Put the tokens of `split_tokens` together: (B, token_px² · C, h, w) → (B, C, H, W).

    Args:
        tokens: Tokens, by line, column and channel.
        token_px: Side of a token, pixels.

    Returns:
        Features, channels last in memory.
    """
    batch, _, height, width = tokens.shape
    rows = tokens.permute(0, 2, 3, 1).reshape(batch, height, width, token_px, token_px, -1)
    pixels = rows.transpose(2, 3).reshape(batch, height * token_px, width * token_px, -1)
    return pixels.permute(0, 3, 1, 2)


def pool_flow(flow: Tensor, token_px: int) -> Tensor:
    """Average optical flow over each token.

    Args:
        flow: (B, 2, H, W), pixels; H and W are multiples of `token_px`.
        token_px: Side of a token, pixels.

    Returns:
        (B, 2, h, w), in tokens.

    Raises:
        ValueError: H or W is not a multiple of `token_px`.
    """
    _grid_size(flow, token_px)
    return functional.avg_pool2d(flow, token_px) / token_px


def identity_locations(like: Tensor) -> Tensor:
    """Return the location map of the frame itself, in which every token stays where it is.

    Args:
        like: Tokens or a map, (B, ·, h, w), with the device and the number format.

    Returns:
        (B, 2, h, w), x then y, in tokens; at least float32, as half precision cannot count them.
    """
    batch, _, height, width = like.shape
    dtype = torch.promote_types(like.dtype, torch.float32)
    columns = torch.arange(width, dtype=dtype, device=like.device)
    lines = torch.arange(height, dtype=dtype, device=like.device)
    y, x = torch.meshgrid(lines, columns, indexing="ij")
    return torch.stack([x, y]).expand(batch, 2, height, width)


def update_locations(locations: Tensor, flow: Tensor, mode: GatherMode) -> Tensor:
    """Move location maps from one frame of a sweep to the next.

    Args:
        locations: Maps of any number S of frames, for the tokens of the frame that the sweep
            visited last, (B, 2·S, h, w): x then y of each frame, in tokens.
        flow: Flow from the current frame to that one, (B, 2, h, w), in tokens (see `pool_flow`).
        mode: How the maps are read between tokens.

    Returns:
        The maps for the tokens of the current frame, (B, 2·S, h, w). Tokens that come from outside
        of the image take the trajectory of the nearest token on the border.

    Source: the location maps of TTVSR.
    """
    return backward_warp(locations, flow, mode=mode, padding="border")


def gather_tokens(tokens: Tensor, locations: Tensor, mode: GatherMode) -> Tensor:
    """Read the tokens of another frame at the locations of the tokens of the current one.

    Args:
        tokens: Tokens of the other frame, (B, D, h, w).
        locations: Location map for that frame, (B, 2, h, w), x then y, in tokens; positions outside
            are those of the border.
        mode: How tokens are read between their positions.

    Returns:
        (B, D, h, w).
    """
    # A warp reads at the position of a token plus its displacement.
    displacement = locations - identity_locations(locations)
    return backward_warp(tokens, displacement, mode=mode, padding="border")


def match_tokens(
    query: Tensor,
    frames: Iterable[tuple[Tensor, Tensor]],
    mode: GatherMode,
) -> TokenMatch:
    """Find the most similar token on the trajectory of each token, frame by frame.

    Args:
        query: Tokens of the current frame, (B, D, h, w).
        frames: Keys of each other frame, (B, D, h, w), with its location map, (B, 2, h, w). It may
            load the keys one after the other: only one frame is used at a time.
        mode: How keys are read between their positions.

    Returns:
        The matches. The choice of the frame has no gradient; the similarity has.

    Raises:
        ValueError: There is no frame.

    Source: the hard attention of TTVSR.
    """
    # In half precision, frames that resemble each other would be equally similar.
    dtype = torch.promote_types(query.dtype, torch.float32)
    query = functional.normalize(query.to(dtype), dim=1, eps=_MIN_NORM)
    best: TokenMatch | None = None
    for number, (keys, locations) in enumerate(frames):
        gathered = gather_tokens(keys, locations, mode)
        similarity = _cosine(query, gathered.to(dtype))
        if best is None:
            first_frame = torch.zeros_like(similarity, dtype=torch.long)
            best = TokenMatch(similarity, first_frame, locations)
            continue
        # The running maximum; of equals, the first frame stays.
        is_better = similarity > best.similarity
        best = TokenMatch(
            torch.where(is_better, similarity, best.similarity),
            best.frame.masked_fill(is_better, number),
            torch.where(is_better, locations, best.locations),
        )
    if best is None:
        raise ValueError("match_tokens needs at least one frame to compare with")
    return best


def gather_matches(values: Iterable[Tensor], match: TokenMatch, mode: GatherMode) -> Tensor:
    """Read the values of the most similar tokens, frame by frame.

    Args:
        values: Values of each frame, (B, D, h, w), in the order of `match_tokens`.
        match: Matches for the tokens of the current frame.
        mode: How values are read between their positions.

    Returns:
        (B, D, h, w).

    Raises:
        ValueError: There is no frame.
    """
    result: Tensor | None = None
    for number, tokens in enumerate(values):
        gathered = gather_tokens(tokens, match.locations, mode)
        if result is None:
            result = gathered
        else:
            result = torch.where(match.frame == number, gathered, result)
    if result is None:
        raise ValueError("gather_matches needs the values of at least one frame")
    return result


def _cosine(query: Tensor, keys: Tensor) -> Tensor:
    """Return the cosine of the angle between tokens (B, D, h, w), the queries of length 1."""
    product = (query * keys).sum(1, keepdim=True)
    # Bounded before the root, whose gradient at 0 is infinite.
    squared_norm = keys.square().sum(1, keepdim=True).clamp_min(_MIN_NORM**2)
    return product * squared_norm.rsqrt()


def _grid_size(feat: Tensor, token_px: int) -> tuple[int, int]:
    """Return the number of lines and columns of tokens; raise ValueError if some are not whole."""
    height, width = feat.shape[-2:]
    if height % token_px or width % token_px:
        raise ValueError(
            f"features of {width}×{height} px cannot be cut into tokens of {token_px} px; "
            "pad both sides to multiples of it"
        )
    return height // token_px, width // token_px
