"""TTVSR: propagation with attention to the key frames of a whole clip, along trajectories.

Optical flow tells where every token (4×4 pixels) was in each key frame that a sweep has visited.
The token that is most similar there brings details of frames far back in time, at three scales.

    lq (B, T, 3, H, W)
      x(t)    = extract lq(t)                                                        (B, C, H, W)
      t = T … 1   back(t)  = trunk [x(t), warp(back(t+1), flow t→t+1) + attention(t)]
      t = 1 … T   front(t) = trunk [x(t), warp(front(t-1), flow t→t-1) + attention(t)]
        attention(t): of the key frames s that the sweep has visited, the most similar token
                  query x(t), keys x(s), values 4×4, 6×6 and 8×8 pixels of back(s) or front(s)
                  conv [values, each as 4×4] · similarity
                  fuse [back(t), x(t), front(t)]
                  ── conv, shuffle ×2 ── conv, shuffle ×2 ── conv ── conv ──(+)── sr(t)
                  lq(t) ──────────────── bilinear ×4 ────────────────────────┘
    sr (B, T, 3, 4H, 4W)

Both directions share one trunk and one attention. Every third frame is a key frame, counted from
the frame where a sweep starts.

Published: 64 channels, 60 blocks (6.8 M parameters), for REDS and for Vimeo-90K.

Source: Liu et al., "Learning Trajectory-Aware Transformer for Video Super-Resolution", CVPR 2022.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from tubelet.layers.convolution import ConvAct
from tubelet.layers.frames import stack_frames
from tubelet.layers.recurrence import Edge, Past, StateObserver, sweep
from tubelet.layers.residual import ResidualTrunk
from tubelet.layers.spynet import SpyNet
from tubelet.layers.store import FeatureStore, open_store
from tubelet.layers.trajectories import (
    TokenMatch,
    identity_locations,
    join_tokens,
    match_tokens,
    pool_flow,
    split_tokens,
    update_locations,
)
from tubelet.layers.upsampling import enlarge, shuffle_x4, shuffle_x4_convs
from tubelet.models.architecture import Architecture, Contract
from tubelet.models.config_checks import check_min
from tubelet.models.spynet import rename_spynet
from tubelet.models.state_dict import (
    Rule,
    State,
    count_names,
    first_words,
    has_convolutions,
    rename,
)
from tubelet.ops.warp import backward_warp
from tubelet.types import Temporal

__all__ = ["ARCHITECTURE", "LTAM", "TTVSR", "TTVSRConfig"]

_SCALE = 4
_NUM_EXTRACT_BLOCKS = 5
_HR_CHANNELS = 64
_TOKEN_PX = 4
# Sides of the squares around a token that are its values, pixels; the largest one last.
_VALUE_SIDES_PX = (4, 6, 8)
# Tokens whose values are read at once, to stay in the CPU cache: 8×8 pixels of 64 channels in
# float32 are 16 kB.
_TOKENS_AT_ONCE = 256
# The published code refuses smaller frames.
_MIN_SIZE_PX = 64
# Every sweep starts without states.
_NO_EDGE = Edge()

Direction = Literal["backward", "forward"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TTVSRConfig:
    """Configuration of `TTVSR`."""

    PUBLISHED_NAMES: ClassVar[Mapping[str, str]] = {
        "mid_channels": "channels",
        "frame_stride": "keyframe_stride",
    }

    channels: int = 64
    """Number of channels of the propagated features."""
    num_blocks: int = 60
    """Number of residual blocks of the trunk, which both directions share."""
    keyframe_stride: int = 3
    """Distance between key frames, in frames."""

    def __post_init__(self) -> None:
        check_min(self, "channels", 1)
        check_min(self, "num_blocks", 0)
        check_min(self, "keyframe_stride", 1)


class LTAM(nn.Module):
    """Attention to the most similar token on each trajectory, at three scales (LTAM).

    Args:
        channels: Number of channels C.

    Source: TTVSR, trajectory-aware attention and cross-scale feature tokenization.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fusion = ConvAct(len(_VALUE_SIDES_PX) * channels, channels)

    def forward(
        self,
        query: Tensor,
        keys: Iterable[tuple[Tensor, Tensor]],
        values: Iterable[Tensor],
    ) -> Tensor:
        """Compute what the key frames add to the features of a frame.

        Args:
            query: Tokens of the frame, (B, 16·C, H/4, W/4).
            keys: Tokens of each key frame, (B, 16·C, H/4, W/4), and its location map,
                (B, 2, H/4, W/4). One key frame is used at a time, so they may be loaded lazily.
            values: Propagated features of each key frame, (B, C, H, W), likewise.

        Returns:
            (B, C, H, W).
        """
        match = match_tokens(query, keys, mode="nearest")
        return self.fuse(gather_scales(values, match), match.similarity)

    def fuse(self, values: Tensor, similarity: Tensor) -> Tensor:
        """Fuse the values of the chosen tokens, and weight them.

        Args:
            values: Values of the three scales, one after the other, (B, 3·C, H, W).
            similarity: Similarity of the chosen tokens, (B, 1, H/4, W/4).

        Returns:
            (B, C, H, W).
        """
        weight = functional.interpolate(similarity, scale_factor=float(_TOKEN_PX), mode="nearest")
        fused = self.fusion(values)
        # Under autocast, features stay in half precision.
        return fused * weight.to(fused.dtype)


def gather_scales(images: Iterable[Tensor], match: TokenMatch) -> Tensor:
    """Read the squares of three sizes around the chosen tokens, and resize each to a token.

    The published code cuts every key frame into tokens of three scales, and keeps them all. Here
    only the chosen squares are cut out, so a key frame is no more than its features.

    Args:
        images: Features of each key frame, (B, C, H, W), in the order of the match.
        match: Choice for each token of the current frame, (B, ·, H/4, W/4).

    Returns:
        The scales one after the other, (B, 3·C, H, W), channels last in memory.
    """
    values: Tensor | None = None
    for number, image in enumerate(images):
        squares = _squares(image)
        if values is None:
            values = _empty_values(squares)
        is_chosen = match.frame[:, 0] == number
        values = _copy_values(values, squares, match.locations, is_chosen)
    assert values is not None
    # The values lie in memory as an image, so nothing is copied here:
    # (B, h, w, 4, 4, 3·C) → (B, h, 4, w, 4, 3·C) → (B, 3·C, H, W)
    return values.transpose(2, 3).flatten(1, 2).flatten(2, 3).permute(0, 3, 1, 2)


def _squares(image: Tensor) -> Tensor:
    """View the largest squares around all tokens, zeros outside: (B, h, w, 8, 8, C), overlapping.

    Args:
        image: (B, C, H, W).
    """
    side_px = _VALUE_SIDES_PX[-1]
    margin_px = (side_px - _TOKEN_PX) // 2
    padded = functional.pad(image, [margin_px] * 4)
    windows = padded.unfold(2, side_px, _TOKEN_PX).unfold(3, side_px, _TOKEN_PX)
    return windows.permute(0, 2, 3, 4, 5, 1)


def _empty_values(squares: Tensor) -> Tensor:
    """Allocate values (B, h, w, 4, 4, 3·C) that lie in memory as an image, channels last."""
    batch, height, width, _, _, channels = squares.shape
    num_values = len(_VALUE_SIDES_PX) * channels
    image = squares.new_empty(batch, height, _TOKEN_PX, width, _TOKEN_PX, num_values)
    return image.transpose(2, 3)


def _copy_values(
    values: Tensor,
    squares: Tensor,
    locations: Tensor,
    is_chosen: Tensor,
) -> Tensor:
    """Copy the values of one key frame to the tokens that chose it.

    Args:
        values: Values of all tokens, (B, h, w, 4, 4, 3·C); may be changed in place.
        squares: The largest squares around the tokens of the key frame, (B, h, w, 8, 8, C).
        locations: The chosen location of each token, (B, 2, h, w).
        is_chosen: Which tokens chose this key frame, (B, h, w).

    Returns:
        The new values.
    """
    columns, lines = locations.round().long().unbind(1)  # (B, h, w) each
    if torch.compiler.is_compiling():
        # Here no shape may depend on the choice, so values are read for all tokens.
        clips = torch.arange(len(squares), device=squares.device)[:, None, None]
        all_squares = squares[clips, lines, columns].flatten(0, 2)
        candidates = _resize_squares(all_squares).view_as(values)
        return torch.where(is_chosen[..., None, None, None], candidates, values)
    # Each token is read from one key frame, however many there are.
    for tokens in torch.split(is_chosen.nonzero(), _TOKENS_AT_ONCE):
        b, y, x = tokens.unbind(1)
        chosen = squares[b, lines[b, y, x], columns[b, y, x]]
        values[b, y, x] = _resize_squares(chosen)
    return values


def _resize_squares(squares: Tensor) -> Tensor:
    """Resize the squares of each scale to the size of a token.

    Args:
        squares: The largest squares, (N, 8, 8, C).

    Returns:
        Scales one after the other, (N, 4, 4, 3·C).
    """
    largest = squares.permute(0, 3, 1, 2)
    scales: list[Tensor] = []
    for side_px in _VALUE_SIDES_PX:
        margin_px = (_VALUE_SIDES_PX[-1] - side_px) // 2
        inner = slice(margin_px, margin_px + side_px)
        scales.append(functional.adaptive_avg_pool2d(largest[:, :, inner, inner], _TOKEN_PX))
    return torch.cat(scales, 1).permute(0, 2, 3, 1)


class TTVSR(nn.Module):
    """Bidirectional recurrent super-resolution ×4 along trajectories; see the top of this file.

    Args:
        config: Configuration of the network.
    """

    def __init__(self, config: TTVSRConfig) -> None:
        super().__init__()
        self.config = config
        c = config.channels
        self.spynet = SpyNet()
        self.extractor = ResidualTrunk(3, c, _NUM_EXTRACT_BLOCKS)
        self.attention = LTAM(c)
        self.trunk = ResidualTrunk(2 * c, c, config.num_blocks)
        self.fusion = nn.Conv2d(3 * c, c, 1)
        self.upconv1, self.upconv2, self.conv_hr, self.conv_last = shuffle_x4_convs(c, _HR_CHANNELS)

    def forward(
        self,
        lq: Tensor,
        before: Edge = Edge(),
        after: Edge = Edge(),
    ) -> Tensor:
        """Restore a clip: (B, T, 3, H, W) → (B, T, 3, 4H, 4W), H and W multiples of 4.

        See `restore`.
        """
        frames = self.restore(lq, before=before, after=after)
        return stack_frames(frames, lq.shape[1])

    def restore(
        self,
        lq: Tensor,
        *,
        before: Edge = Edge(),
        after: Edge = Edge(),
        on_state: StateObserver | None = None,
        store: FeatureStore | None = None,
    ) -> Iterator[Tensor]:
        """Restore a clip like `forward`, but yield each frame as soon as it is finished.

        Args:
            lq: Low-quality clip, (B, T, 3, H, W), H and W multiples of 4.
            before: Not used: a sweep would also need all key frames of the video before the clip.
            after: Not used, likewise.
            on_state: Callback for every state of both sweeps, (B, C, H, W).
            store: Store for tokens and features of the clip, and for the key frames.

        Yields:
            Restored frames in order, (B, 3, 4H, 4W).

        Raises:
            ValueError: H or W is not a multiple of 4.
        """
        del before, after
        frames = lq.unbind(1)
        with open_store(store) as features:
            # Only the store keeps the backward states.
            deque(self._sweep("backward", frames, features, on_state), maxlen=0)
            # Each frame is complete as soon as its forward state exists.
            for t, state in self._sweep("forward", frames, features, on_state):
                yield self._upsample(self._fuse(features, t, state), frames[t])

    def _sweep(
        self,
        direction: Direction,
        frames: tuple[Tensor, ...],
        features: FeatureStore,
        on_state: StateObserver | None,
    ) -> Iterator[tuple[int, Tensor]]:
        """Propagate features in one direction, with attention to its key frames.

        Args:
            direction: Direction of the sweep.
            frames: Frames of the clip, (B, 3, H, W) each.
            features: Store of the tokens of frames, which gets the states that are needed later.
            on_state: Callback for every state.

        Yields:
            The index t of each frame and its state, (B, C, H, W).
        """
        num_frames = len(frames)
        step = -1 if direction == "backward" else 1
        key_frames = range(num_frames)[::step][:: self.config.keyframe_stride]
        # For each key frame so far: where the tokens of the current frame were in it.
        location_maps: dict[int, Tensor] = {}

        def inputs(t: int, past: Past) -> Tensor:
            tokens = self._tokens(frames, t, features)
            current = join_tokens(tokens, _TOKEN_PX)
            # Where the sweep starts, there is nothing to align.
            aligned = torch.zeros_like(current)
            if past:
                flow = self.spynet(frames[t], frames[t - step])
                _follow(location_maps, pool_flow(flow, _TOKEN_PX))
                aligned = backward_warp(past[0], flow, padding="border")
                aligned = aligned + self._attend(tokens, direction, location_maps, features)
            # A frame does not attend to itself, so its map begins after the attention.
            if t in key_frames:
                location_maps[t] = identity_locations(tokens)
            return torch.cat([current, aligned], 1)

        def advance(t: int, past: Past) -> Tensor:
            # The parts of the input are freed before the trunk runs.
            return self.trunk(inputs(t, past))

        for t, state in sweep(
            direction,
            num_frames,
            step=step,
            edge=_NO_EDGE,
            order=1,
            advance=advance,
            on_state=on_state,
        ):
            # All states of the backward sweep are needed to fuse them with those of the other one.
            if direction == "backward" or t in key_frames:
                features.append((direction, t), state)
            yield t, state

    def _tokens(self, frames: tuple[Tensor, ...], t: int, features: FeatureStore) -> Tensor:
        """Return the tokens of x(t), (B, 16·C, H/4, W/4), which are computed once."""
        key = ("tokens", t)
        if key not in features:
            features.append(key, split_tokens(self.extractor(frames[t]), _TOKEN_PX))
        (tokens,) = features.get(key)
        return tokens

    def _attend(
        self,
        query: Tensor,
        direction: Direction,
        location_maps: Mapping[int, Tensor],
        features: FeatureStore,
    ) -> Tensor:
        """Attend to the key frames of a sweep, which are loaded one after the other."""

        def keys() -> Iterator[tuple[Tensor, Tensor]]:
            for t, locations in location_maps.items():
                (tokens,) = features.get(("tokens", t))
                yield tokens, locations

        def values() -> Iterator[Tensor]:
            for t in location_maps:
                (state,) = features.get((direction, t))
                yield state

        return self.attention(query, keys(), values())

    def _fuse(self, features: FeatureStore, t: int, state: Tensor) -> Tensor:
        """Fuse the features of both directions with those of the frame: (B, C, H, W).

        Args:
            features: Store, in which the backward state and the tokens of the frame are.
            t: Index of the frame.
            state: Forward state, (B, C, H, W).
        """
        (back,) = features.pop(("backward", t))
        # Only the tokens of key frames are used again.
        is_key_frame = t % self.config.keyframe_stride == 0
        key = ("tokens", t)
        (tokens,) = features.get(key) if is_key_frame else features.pop(key)
        current = join_tokens(tokens, _TOKEN_PX)
        fused = self.fusion(torch.cat([back, current, state], 1))
        return functional.leaky_relu_(fused, 0.1)

    def _upsample(self, feat: Tensor, frame: Tensor) -> Tensor:
        """Upsample features (B, C, H, W) and add the enlarged frame: (B, 3, 4H, 4W)."""
        convs = (self.upconv1, self.upconv2, self.conv_hr, self.conv_last)
        return shuffle_x4(feat, enlarge(frame, _SCALE), convs)


def _follow(location_maps: dict[int, Tensor], flow: Tensor) -> None:
    """Move location maps to the next frame of a sweep, in place.

    Args:
        location_maps: Maps by key frame, of which there is one or more, (B, 2, h, w) each.
        flow: Flow from the next frame to the last one, (B, 2, h, w), in tokens.
    """
    # All maps are read at the same positions, so they are moved as one.
    joined = torch.cat(list(location_maps.values()), 1)
    moved = update_locations(joined, flow, mode="nearest")
    by_frame = torch.split(moved, 2, 1)
    for t, locations in zip(list(location_maps), by_frame, strict=True):
        location_maps[t] = locations


_PUBLISHED: tuple[Rule, ...] = (
    (r"^feat_extractor\.", "extractor."),
    (r"^LTAM\.", "attention."),
    (r"^resblocks\.", "trunk."),
    (r"^upsample([12])\.upsample_conv\.", r"upconv\1."),
)
_MODULES = {
    "spynet",
    "extractor",
    "attention",
    "trunk",
    "fusion",
    "upconv1",
    "upconv2",
    "conv_hr",
    "conv_last",
}


def _translate(state: State) -> dict[str, Tensor] | None:
    """Rename the tensors of a published file to our names; return None for other networks."""
    renamed = rename(rename_spynet(state), _PUBLISHED)
    if first_words(renamed) != _MODULES:
        return None
    if not has_convolutions(renamed, "trunk.main.0", "attention.fusion"):
        return None
    return renamed


def _infer(state: State) -> TTVSRConfig:
    return TTVSRConfig(
        channels=state["trunk.main.0.weight"].shape[0],
        num_blocks=count_names(state, r"trunk\..*\.conv1\.weight"),
    )


def _contract(config: TTVSRConfig) -> Contract:
    # All configurations have the same contract.
    del config
    # No edges: the states of a sweep are all of its key frames, whose number grows with the video.
    return Contract(
        scale=_SCALE,
        temporal=Temporal("clip"),
        halo_px=32,
        size_multiple=_TOKEN_PX,
        min_size_px=_MIN_SIZE_PX,
        streams=True,
        precisions=("fp32", "bf16"),
    )


ARCHITECTURE = Architecture(
    name="TTVSR",
    config=TTVSRConfig,
    build=TTVSR,
    translate=_translate,
    infer=_infer,
    contract=_contract,
    derived=("spynet.mean", "spynet.std"),
    source="https://arxiv.org/abs/2204.04216",
)
