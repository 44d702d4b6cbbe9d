import math
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from helpers.recordings import recorded, recorded_input
from tubelet.layers.trajectories import (
    GatherMode,
    gather_matches,
    gather_tokens,
    identity_locations,
    join_tokens,
    match_tokens,
    pool_flow,
    split_tokens,
    update_locations,
)

MODES: tuple[GatherMode, ...] = ("nearest", "bilinear")


def _moved(columns: float, lines: float, size: tuple[int, int]) -> Tensor:
    """The same flow for all tokens, (1, 2, h, w), in tokens."""
    flow = torch.tensor([columns, lines], dtype=torch.float64)
    return flow.view(1, 2, 1, 1).expand(1, 2, *size)


def test_recorded_location_maps(recordings: Path) -> None:
    case = "ttvsr_location_A"
    description, (expected,) = recorded(recordings, case)
    shape = tuple(description["inputs"]["flow"])
    flow = (recorded_input(recordings, f"{case}:flow", shape) - 0.5) * 16
    pooled = pool_flow(flow, 4)
    identity = identity_locations(pooled)
    moved = update_locations(identity, pooled, "nearest")
    moved = update_locations(torch.cat([moved, identity], 1), pooled.flip(1), "nearest")
    assert torch.equal(moved, expected)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("token_px", [1, 2, 4])
def test_tokens_are_those_of_unfold(token_px: int, layout: torch.memory_format) -> None:
    feat = torch.randn(2, 3, 8, 12).contiguous(memory_format=layout)
    tokens = split_tokens(feat, token_px)
    assert tokens.is_contiguous(memory_format=torch.channels_last)
    unfolded = functional.unfold(feat, token_px, stride=token_px)
    by_channel = unfolded.view(2, 3, token_px**2, 8 // token_px, 12 // token_px)
    assert torch.equal(tokens, by_channel.transpose(1, 2).flatten(1, 2))
    assert torch.equal(join_tokens(tokens, token_px), feat)
    assert torch.equal(join_tokens(tokens.contiguous(), token_px), feat)


def test_sizes_that_are_no_whole_tokens() -> None:
    with pytest.raises(ValueError, match="12×10 px cannot be cut into tokens of 4 px"):
        split_tokens(torch.zeros(1, 3, 10, 12), 4)
    with pytest.raises(ValueError, match="10×12 px cannot be cut"):
        pool_flow(torch.zeros(1, 2, 12, 10), 4)


def test_flow_is_averaged_and_counted_in_tokens() -> None:
    flow = torch.randn(2, 2, 8, 12, dtype=torch.float64)
    pooled = pool_flow(flow, 4)
    assert pooled.shape == (2, 2, 2, 3)
    torch.testing.assert_close(pooled[1, :, 1, 2], flow[1, :, 4:, 8:].mean((1, 2)) / 4)


@pytest.mark.parametrize("mode", MODES)
def test_whole_steps_give_exact_location_maps(mode: GatherMode) -> None:
    """Tokens that come from outside follow the border."""
    flow = _moved(3, -2, (10, 12))
    identity = identity_locations(flow)
    assert identity[0, :, 4, 7].tolist() == [7, 4]
    locations = identity
    for step in range(1, 4):
        locations = update_locations(locations, flow, mode)
        x = (identity[:, 0] + 3 * step).clamp(max=11)
        y = (identity[:, 1] - 2 * step).clamp(min=0)
        torch.testing.assert_close(locations, torch.stack([x, y], 1), rtol=0, atol=1e-10)


@pytest.mark.parametrize("mode", MODES)
def test_nothing_moves_without_flow(mode: GatherMode) -> None:
    tokens = torch.randn(2, 18, 5, 7)
    identity = identity_locations(tokens)
    still = torch.zeros(2, 2, 5, 7)
    maps = torch.cat([identity, 6 * torch.rand(2, 4, 5, 7)], 1)
    torch.testing.assert_close(update_locations(maps, still, mode), maps, rtol=0, atol=1e-5)
    torch.testing.assert_close(gather_tokens(tokens, identity, mode), tokens, rtol=0, atol=1e-5)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_both_modes_agree_on_whole_steps(layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    tokens = torch.randn(2, 18, 6, 9, dtype=torch.float64).contiguous(memory_format=layout)
    # Some lie outside.
    locations = torch.randint(-2, 9, (2, 2, 6, 9)).double()
    nearest = gather_tokens(tokens, locations, "nearest")
    bilinear = gather_tokens(tokens, locations, "bilinear")
    torch.testing.assert_close(nearest, bilinear, rtol=0, atol=1e-10)
    columns = locations[:, 0].clamp(0, 8).long()
    lines = locations[:, 1].clamp(0, 5).long()
    clips = torch.arange(2)[:, None, None]
    assert torch.equal(nearest, tokens[clips, :, lines, columns].permute(0, 3, 1, 2))


@pytest.mark.parametrize("mode", MODES)
def test_random_pixels_that_move_are_found_again(mode: GatherMode) -> None:
    """Frames show a window of one large image, moving by whole tokens; all but one are overwritten by noise."""
    torch.manual_seed(0)
    size, steps, kept = (12, 14), 4, 2
    canvas = torch.rand(1, 3, 4 * (12 + 2 * steps), 4 * (14 + 3 * steps))
    frames: list[Tensor] = []
    for step in range(steps + 1):
        # A token at (x, y) of a frame was at (x + 3, y - 2) in the frame before.
        top, left = 4 * 2 * step, 4 * 3 * (steps - step)
        frame = canvas[..., top : top + 48, left : left + 56]
        frames.append(frame if step in (0, kept) else torch.rand_like(frame))
    tokens = [split_tokens(frame - 0.5, 4) for frame in frames]
    flow = pool_flow(torch.tensor([12.0, -8.0]).view(1, 2, 1, 1).expand(1, 2, 48, 56), 4)
    maps = [identity_locations(flow)]
    for _ in range(steps):
        maps.append(update_locations(maps[-1], flow, mode))
    candidates = list(zip(tokens[1:], maps[1:], strict=True))
    match = match_tokens(tokens[0], candidates, mode)
    # Those that were inside of that frame.
    inside = (slice(None), slice(None), slice(2 * kept, None), slice(0, size[1] - 3 * kept))
    assert (match.frame[inside] == kept - 1).all()
    assert (match.similarity[inside] > 0.9999).all()
    torch.testing.assert_close(match.locations[inside], maps[kept][inside])
    values = gather_matches(tokens[1:], match, mode)
    torch.testing.assert_close(values[inside], tokens[0][inside], rtol=0, atol=1e-4)
    assert (match.similarity[..., : 2 * kept, :] < 0.9).all()


def _read(grid: Tensor, x: float, y: float, mode: GatherMode) -> Tensor:
    """Read a grid (D, h, w) at one position: (D,)."""
    height, width = grid.shape[-2:]
    x, y = min(max(x, 0.0), width - 1.0), min(max(y, 0.0), height - 1.0)
    if mode == "nearest":
        return grid[:, round(y), round(x)]
    left, top = math.floor(x), math.floor(y)
    total = torch.zeros_like(grid[:, 0, 0])
    for line in (top, top + 1):
        for column in (left, left + 1):
            weight = (1 - abs(x - column)) * (1 - abs(y - line))
            if weight:
                total += weight * grid[:, line, column]
    return total


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("mode", MODES)
def test_equals_the_definition_in_loops(mode: GatherMode, layout: torch.memory_format) -> None:
    """Maps over several steps, cosines, the choice of a frame, its location and its value."""
    torch.manual_seed(0)
    height, width, num_frames = 4, 5, 3
    query, *keys = torch.randn(num_frames + 1, 1, 16, height, width, dtype=torch.float64)
    values = list(torch.randn(num_frames, 1, 20, height, width, dtype=torch.float64))
    flows = list(1.5 * torch.randn(num_frames, 1, 2, height, width, dtype=torch.float64))

    maps: list[Tensor] = []
    slow_maps: list[Tensor] = []
    for flow in flows:
        maps.append(identity_locations(flow))
        slow_maps.append(identity_locations(flow)[0].clone())
        maps = list(update_locations(torch.cat(maps, 1), flow, mode).split(2, 1))
        for i, last in enumerate(slow_maps):
            slow_maps[i] = torch.zeros_like(last)
            for y in range(height):
                for x in range(width):
                    dx, dy = flow[0, :, y, x].tolist()
                    slow_maps[i][:, y, x] = _read(last, x + dx, y + dy, mode)

    keys = [key.contiguous(memory_format=layout) for key in keys]
    match = match_tokens(query, zip(keys, maps, strict=True), mode)
    chosen = gather_matches(values, match, mode)
    for y in range(height):
        for x in range(width):
            similarities: list[float] = []
            for key, slow_map in zip(keys, slow_maps, strict=True):
                token = _read(key[0], *slow_map[:, y, x].tolist(), mode)
                own = query[0, :, y, x]
                similarities.append(float(own @ token / own.norm() / token.norm()))
            best = max(range(num_frames), key=similarities.__getitem__)
            assert match.frame[0, 0, y, x] == best
            assert abs(match.similarity[0, 0, y, x] - similarities[best]) < 1e-10
            location = slow_maps[best][:, y, x]
            torch.testing.assert_close(match.locations[0, :, y, x], location, rtol=0, atol=1e-10)
            expected = _read(values[best][0], *location.tolist(), mode)
            torch.testing.assert_close(chosen[0, :, y, x], expected, rtol=0, atol=1e-10)
    assert len(match.frame.unique()) == num_frames


def _attended(
    query: Tensor, keys: Tensor, values: Tensor, flow: Tensor, mode: GatherMode
) -> Tensor:
    """Two frames before the current one, seen through the same flow twice."""
    near = update_locations(identity_locations(flow), flow, mode)
    far = update_locations(near, flow, mode)
    match = match_tokens(query, zip(keys, (near, far), strict=True), mode)
    return match.similarity * gather_matches(values, match, mode)


def test_bilinear_reading_is_differentiable() -> None:
    torch.manual_seed(0)
    inputs = [torch.randn(1, 4, 3, 4), torch.randn(2, 1, 4, 3, 4), torch.randn(2, 1, 3, 3, 4)]
    # Away from the borders of tokens, where the interpolation has a kink.
    flow = 0.2 + 0.1 * torch.rand(1, 2, 3, 4)
    variables = [x.double().requires_grad_() for x in (*inputs, flow)]
    assert torch.autograd.gradcheck(lambda *x: _attended(*x, mode="bilinear"), variables, atol=1e-6)
    gradients = torch.autograd.grad(_attended(*variables, mode="bilinear").sum(), variables)
    assert all(gradient.any() for gradient in gradients)


def test_flow_has_no_gradient_from_the_nearest_tokens() -> None:
    torch.manual_seed(0)
    inputs = [torch.randn(1, 4, 3, 4), torch.randn(2, 1, 4, 3, 4), torch.randn(2, 1, 3, 3, 4)]
    variables = [x.requires_grad_() for x in (*inputs, torch.rand(1, 2, 3, 4))]
    result = _attended(*variables, mode="nearest")
    *others, flow = torch.autograd.grad(result.sum(), variables, allow_unused=True)
    assert all(gradient.any() for gradient in others)
    assert flow is None or not flow.any()


def test_location_maps_count_further_than_half_precision() -> None:
    tokens = torch.zeros(1, 1, 2, 2000, dtype=torch.bfloat16)
    locations = identity_locations(tokens)
    flow = torch.ones(1, 2, 2, 2000, dtype=torch.bfloat16)
    assert update_locations(locations, flow, "nearest")[0, 0, 0, 1022].item() == 1023


def test_frames_that_resemble_each_other_are_told_apart_in_half_precision() -> None:
    torch.manual_seed(0)
    query = torch.randn(1, 64, 8, 8, dtype=torch.bfloat16)
    far, near = query + 0.02 * torch.randn(2, 1, 64, 8, 8, dtype=torch.bfloat16) * torch.tensor(
        [[[[[1.2]]]], [[[[1.0]]]]]
    )
    frames = [(keys.bfloat16(), identity_locations(query)) for keys in (far, near)]
    match = match_tokens(query, frames, "nearest")
    exact = match_tokens(query.double(), [(k.double(), m) for k, m in frames], "nearest")
    assert match.similarity.dtype == torch.float32
    assert torch.equal(match.frame, exact.frame)
    assert len(match.frame.unique()) == 2


def test_a_token_of_zeros_is_similar_to_nothing() -> None:
    keys = torch.zeros(1, 16, 2, 2, requires_grad=True)
    match = match_tokens(torch.rand(1, 16, 2, 2), [(keys, identity_locations(keys))], "nearest")
    assert not match.similarity.any()
    (gradient,) = torch.autograd.grad(match.similarity.sum(), keys)
    assert gradient.isfinite().all()


def test_frames_are_used_one_after_the_other() -> None:
    alive: list[weakref.ref[Tensor]] = []
    most = 0

    def load() -> Iterator[Tensor]:
        nonlocal most
        for _ in range(6):
            tokens = torch.rand(1, 16, 4, 4)
            alive.append(weakref.ref(tokens))
            most = max(most, sum(reference() is not None for reference in alive))
            yield tokens
            del tokens

    locations = identity_locations(torch.rand(1, 16, 4, 4))
    match = match_tokens(torch.rand(1, 16, 4, 4), ((k, locations) for k in load()), "nearest")
    gather_matches(load(), match, "nearest")
    # The next one is loaded before the last one is dropped.
    assert most == 2


def test_no_frame_to_compare_with() -> None:
    tokens = torch.rand(1, 16, 4, 4)
    with pytest.raises(ValueError, match="at least one frame"):
        match_tokens(tokens, [], "nearest")
    match = match_tokens(tokens, [(tokens, identity_locations(tokens))], "nearest")
    with pytest.raises(ValueError, match="at least one frame"):
        gather_matches([], match, "nearest")
