import itertools

import pytest
import torch

from helpers.recordings import recorded
from tubelet.layers.attention import (
    GatedMlp,
    Mlp,
    QueryFrameAttention,
    WindowAttention,
    attend,
    relative_position_bias,
)


def test_positions_are_the_recorded_ones(recordings):
    _, (_, _, _, swinir, hat, _) = recorded(recordings, "swin_windows_A")
    table = torch.arange(225.0)[:, None]
    assert torch.equal(relative_position_bias(table, (8, 8), (8, 8))[0], swinir.float())
    assert torch.equal(swinir, hat)


def test_positions_in_a_clip_are_the_recorded_ones(recordings):
    _, (*_, index) = recorded(recordings, "swin3d_windows_A")
    table = torch.arange(245.0)[:, None]
    assert torch.equal(relative_position_bias(table, (3, 4, 4), (3, 4, 4))[0], index.float())


@pytest.mark.parametrize(
    ("window", "size"), [((4, 4), (4, 4)), ((4, 3), (2, 3)), ((2, 3, 4), (2, 1, 3)), ((5,), (2,))]
)
def test_bias_of_every_pair_is_that_of_its_distance(window, size):
    torch.manual_seed(0)
    shape = [2 * w - 1 for w in window]
    table = torch.randn(int(torch.tensor(shape).prod()), 2)
    bias = relative_position_bias(table, window, size)
    places = torch.cartesian_prod(*(torch.arange(s) for s in size)).view(-1, len(size))
    for i, query in enumerate(places):
        for j, key in enumerate(places):
            entry = tuple((query - key + torch.tensor(window) - 1).tolist())
            assert torch.equal(bias[:, i, j], table.view(*shape, 2)[entry])


def test_attention_is_the_equation():
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 4, 6, 5)
    bias = torch.randn(4, 6, 6)
    scores = q @ k.mT / 5**0.5 + bias
    expected = (scores.softmax(-1) @ v).transpose(1, 2).reshape(2, 6, 20)
    torch.testing.assert_close(attend(q, k, v, bias), expected)
    without_bias = ((scores - bias).softmax(-1) @ v).transpose(1, 2).reshape(2, 6, 20)
    torch.testing.assert_close(attend(q, k, v), without_bias)


def test_a_bias_can_be_looked_up_before():
    torch.manual_seed(0)
    attention = WindowAttention(8, 2, (4, 4))
    x = torch.randn(3, 8, 8)
    bias = attention.position_bias((2, 4))
    assert torch.equal(attention(x, (2, 4), bias), attention(x, (2, 4)))
    assert not torch.equal(attention(x, (2, 4), bias + torch.rand(8)), attention(x, (2, 4)))


def test_the_gated_mlp_is_the_equation():
    torch.manual_seed(0)
    mlp = GatedMlp(4, 6, 3)
    x = torch.randn(2, 5, 4)
    hidden = torch.nn.GELU()(x @ mlp.fc11.weight.T + mlp.fc11.bias)
    hidden = hidden * (x @ mlp.fc12.weight.T + mlp.fc12.bias)
    torch.testing.assert_close(mlp(x), hidden @ mlp.fc2.weight.T + mlp.fc2.bias)
    assert GatedMlp(4, 6)(x).shape == x.shape


def test_a_cut_window_is_a_masked_one():
    torch.manual_seed(0)
    attention = WindowAttention(8, 2, (4, 4))
    x = torch.randn(3, 16, 8)
    left = torch.arange(16).view(4, 4)[:, :2].flatten()
    mask = torch.full((16, 16), -100.0)
    mask[left[:, None], left] = 0
    table = attention.relative_position_bias_table
    q, k, v = attention.qkv(x).view(3, 16, 3, 2, 4).permute(2, 0, 3, 1, 4)
    masked = attend(q, k, v, relative_position_bias(table, (4, 4), (4, 4)) + mask)
    torch.testing.assert_close(attention(x[:, left], (4, 2)), attention.proj(masked)[:, left])


def test_queries_of_the_last_frame_attend_to_all_frames():
    """Token by token: keys of every frame, with a bias for the distance in the window and the frame."""
    torch.manual_seed(0)
    attention = QueryFrameAttention(6, 2, window=4, frames=3).double()
    torch.nn.init.normal_(attention.relative_position_bias_table)
    height, width = 2, 3
    tokens = torch.randn(5, 3 * height * width, 6, dtype=torch.float64)
    q, k, v = attention.qkv(tokens).view(5, 3, height, width, 3, 2, 3).unbind(4)
    table = attention.relative_position_bias_table.view(3, 7, 7, 2)
    heads = torch.zeros(5, height, width, 2, 3, dtype=torch.float64)
    for y, x in itertools.product(range(height), range(width)):
        keys = list(itertools.product(range(3), range(height), range(width)))
        scores = []
        for frame, line, column in keys:
            product = (q[:, 2, y, x] * k[:, frame, line, column]).sum(-1) / 3**0.5
            scores.append(product + table[2 - frame, y - line + 3, x - column + 3])
        weights = torch.stack(scores).softmax(0)
        for weight, key in zip(weights, keys, strict=True):
            heads[:, y, x] += weight[..., None] * v[(slice(None), *key)]
    expected = attention.proj(heads.view(5, height * width, 6))
    actual = attention(tokens, (1, height, width))
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


def test_every_parameter_learns():
    torch.manual_seed(0)
    attention = WindowAttention(4, 2, (2, 2))
    network = torch.nn.Sequential(Mlp(4, 6), GatedMlp(4, 6))
    network(attention(torch.randn(3, 4, 4), (2, 2))).square().sum().backward()
    for parameter in [*attention.parameters(), *network.parameters()]:
        assert parameter.grad is not None
        assert parameter.grad.any()
    assert WindowAttention(4, 2, (2, 2), qkv_bias=False).qkv.bias is None
