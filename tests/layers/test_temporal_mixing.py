from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from tubelet.layers.inference import prepare_for_inference
from tubelet.layers.temporal_mixing import (
    ChannelTimeAttention,
    Clip,
    TimeAttention,
    TrajectoryAttention,
)

C = 8


def attention(heads: int = 2) -> SimpleNamespace:
    torch.manual_seed(0)
    return SimpleNamespace(
        qkv=nn.Linear(C, 3 * C).double(),
        proj=nn.Linear(C, C).double(),
        heads=heads,
    )


def clip_of(flow: tuple[float, float], num_frames: int, height: int, width: int) -> Clip:
    """Describe a clip in which everything moves by `flow` pixels from a frame to the next."""
    there = torch.tensor(flow, dtype=torch.float64).view(1, 1, 2, 1, 1)
    there = there.expand(1, num_frames - 1, 2, height, width)
    return Clip(num_frames, height, width, flows_backward=-there, flows_forward=there)


@pytest.mark.parametrize("is_prepared", [False, True])
def test_time_attention_of_every_position_by_itself(is_prepared):
    layers = attention()
    strategy = TimeAttention()
    if is_prepared:
        prepare_for_inference(strategy)
    y = torch.randn(2 * 3, 5, C, dtype=torch.float64)
    mixed = strategy.mix(y, layers, Clip(3, 1, 5)).view(2, 3, 5, C)

    q, k, v = layers.qkv(y).view(2, 3, 5, 3, 2, C // 2).unbind(3)
    expected = torch.zeros_like(y).view(2, 3, 5, 2, C // 2)
    for b in range(2):
        for n in range(5):
            for h in range(2):
                scores = q[b, :, n, h] @ k[b, :, n, h].T / (C // 2) ** 0.5
                expected[b, :, n, h] = scores.softmax(-1) @ v[b, :, n, h]
    assert torch.allclose(mixed, layers.proj(expected.flatten(3)), atol=1e-12)


def test_attention_between_channels_over_the_frames_of_a_position():
    layers = nn.Module()
    torch.manual_seed(0)
    layers.qkv = nn.Linear(C, 3 * C).double()
    layers.proj = nn.Linear(C, C).double()
    layers.heads = 2
    layers.temperature = nn.Parameter(torch.rand(2, 1, 1, dtype=torch.float64))
    y = torch.randn(3, 5, C, dtype=torch.float64)
    mixed = ChannelTimeAttention().mix(y, layers, Clip(3, 1, 5))
    q, k, v = layers.qkv(y).view(3, 5, 3, 2, C // 2).unbind(2)
    expected = torch.zeros(3, 5, 2, C // 2, dtype=torch.float64)
    for n in range(5):
        for h in range(2):
            unit_q = q[:, n, h] / q[:, n, h].norm(dim=0)
            unit_k = k[:, n, h] / k[:, n, h].norm(dim=0)
            weights = (layers.temperature[h] * (unit_q.T @ unit_k)).softmax(-1)
            expected[:, n, h] = (weights @ v[:, n, h].T).T
    assert torch.allclose(mixed, layers.proj(expected.flatten(2)), atol=1e-12)


def test_trajectories_follow_integer_motion():
    height, width, token_px = 16, 24, 2
    # Tokens move by (3, -2) a frame.
    clip = clip_of((6.0, -4.0), 3, height, width)
    maps = clip.locate(token_px, "nearest")
    assert set(maps) == {(0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)}
    # The token at column 2, line 5 of frame 0 is at column 5, line 3 in frame 1, and so on.
    assert maps[0, 1][0, :, 5, 2].tolist() == [5, 3]
    assert maps[0, 2][0, :, 5, 2].tolist() == [8, 1]
    assert maps[2, 0][0, :, 1, 8].tolist() == [2, 5]
    # Outside of the image is its border.
    assert maps[2, 0][0, :, 6, 1].tolist()[0] == 0
    bilinear = clip_of((6.0, -4.0), 3, height, width).locate(token_px, "bilinear")
    for pair, location in maps.items():
        assert torch.allclose(location, bilinear[pair])


def test_without_motion_every_token_stays():
    maps = clip_of((0.0, 0.0), 4, 8, 8).locate(4, "bilinear")
    for location in maps.values():
        assert location[0, :, 1, 0].tolist() == [0, 1]
        assert location[0, :, 0, 1].tolist() == [1, 0]


def oracle(
    y: Tensor,
    layers: SimpleNamespace,
    flow: tuple[int, int],
    size: tuple[int, int],
    stride: int,
) -> Tensor:
    """Compute trajectory attention token by token, for motion by whole tokens of one pixel."""
    height, width = size
    num_frames = len(y)
    images = layers.qkv(y).view(num_frames, height, width, 3 * C)
    q, k, v = images.chunk(3, -1)
    out = torch.zeros(num_frames, height, width, C, dtype=y.dtype)

    def at(t: int, s: int, row: int, column: int) -> tuple[int, int]:
        """Follow a token from frame t to frame s, step by step, and keep it in the image."""
        step = 1 if s > t else -1
        row_step, column_step = step * flow[1], step * flow[0]
        for _ in range(abs(s - t)):
            row = min(max(row + row_step, 0), height - 1)
            column = min(max(column + column_step, 0), width - 1)
        return row, column

    for t in range(num_frames):
        for row in range(height):
            for column in range(width):
                best = None
                for s in range(0, num_frames, stride):
                    if s == t:
                        continue
                    r, c = at(t, s, row, column)
                    query, key = q[t, row, column], k[s, r, c]
                    similarity = (query @ key) / (query.norm() * key.norm())
                    if best is None or similarity > best[0]:
                        best = (similarity, v[s, r, c])
                if best is not None:
                    out[t, row, column] = best[0] * best[1]
    return layers.proj(out.flatten(1, 2))


@pytest.mark.parametrize("gather", ["nearest", "bilinear"])
@pytest.mark.parametrize("stride", [1, 2])
def test_equals_loops_over_tokens(gather, stride):
    layers = attention()
    height, width, num_frames = 4, 5, 4
    y = torch.randn(num_frames, height * width, C, dtype=torch.float64)
    strategy = TrajectoryAttention(token_px=1, frame_stride=stride, gather=gather)
    mixed = strategy.mix(y, layers, clip_of((1.0, -1.0), num_frames, height, width))
    expected = oracle(y, layers, (1, -1), (height, width), stride)
    assert torch.allclose(mixed, expected, atol=1e-10)


def test_long_clips_look_at_every_third_frame():
    strategy = TrajectoryAttention()
    assert list(strategy._other_frames(2, 7)) == [0, 1, 3, 4, 5, 6]
    assert list(strategy._other_frames(3, 8)) == [0, 6]
    assert list(strategy._other_frames(0, 1)) == []


def test_one_frame_has_no_other():
    layers = attention()
    y = torch.randn(1, 16, C, dtype=torch.float64)
    mixed = TrajectoryAttention().mix(y, layers, Clip(1, 4, 4))
    assert torch.allclose(mixed, layers.proj.bias.expand(1, 16, C))


def test_only_bilinear_reading_has_a_gradient_of_the_flow():
    layers = attention()
    y = torch.randn(3, 64, C, dtype=torch.float64)
    for gather, has_gradient in (("nearest", False), ("bilinear", True)):
        clip = clip_of((0.3, 0.4), 3, 8, 8)
        flow = clip.flows_backward.clone().requires_grad_()
        clip.flows_backward = flow
        TrajectoryAttention(token_px=2, gather=gather).mix(
            y, layers, clip
        ).square().sum().backward()
        assert (flow.grad is not None and bool(flow.grad.abs().max() > 0)) == has_gradient


def test_the_grid_may_have_no_whole_tokens():
    layers = attention()
    y = torch.randn(3, 5 * 7, C, dtype=torch.float64)
    mixed = TrajectoryAttention(token_px=2).mix(y, layers, clip_of((0.0, 0.0), 3, 5, 7))
    assert mixed.shape == y.shape
