import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from helpers.image_parity import recorded_state
from helpers.recordings import recorded, recorded_input
from tubelet.layers.inference import use_backend
from tubelet.layers.sweep_transformer import (
    BlockConfig,
    SweepTransformer,
    TemporalBlock,
    build_iiab,
    build_mfsab,
)
from tubelet.models.psrt import PSRTConfig


def _tokens(images: Tensor) -> Tensor:
    """(B, [D,] C, H, W) → (B, D, H, W, C)."""
    frames = images if images.ndim == 5 else images[:, None]
    return frames.permute(0, 1, 3, 4, 2).contiguous()


def _load(block: nn.Module, recordings: Path, description: dict[str, Any]) -> nn.Module:
    state = recorded_state(recordings, description)
    names = block.state_dict().keys()
    block.load_state_dict({name: state[name] for name in names})
    assert {name for name in state.keys() - names if "predmask" not in name} == {
        "attn.relative_position_index"
    }
    return block.eval()


@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_mfsab_gives_the_recorded_output(recordings: Path, backend: Any) -> None:
    description, (expected,) = recorded(recordings, "psrt_mfsab_A")
    block = build_mfsab(BlockConfig(channels=24, heads=3, window=8, shift=4))
    _load(block, recordings, description)
    shape = tuple(description["inputs"]["x"])
    x = _tokens((recorded_input(recordings, "psrt_mfsab_A", shape) - 0.5) * 2)
    height, width = x.shape[2:4]
    padded = functional.pad(x, (0, 0, 0, 4))
    # The values of the padding must not matter.
    padded[:, :, :, width:] = torch.rand(24)
    inside = torch.zeros(1, 3, height, width + 4, 1)
    inside[:, :, :, :width] = 1
    with torch.no_grad(), use_backend(block, backend):
        y = block(padded, (), inside)[:, :, :, :width]
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-4 * float(expected.std()))


@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_iiab_gives_the_recorded_outputs(recordings: Path, backend: Any) -> None:
    case = "mia_iiab_nomask_A"
    description, (first, second) = recorded(recordings, case)
    block = build_iiab(BlockConfig(channels=24, heads=3, window=8))
    _load(block, recordings, description)

    def image(name: str) -> Tensor:
        shape = tuple(description["inputs"][name])
        return _tokens((recorded_input(recordings, f"{case}:{name}", shape) - 0.5) * 2)

    frames = [
        (image("x1"), image("cond1"), first),
        (image("x1") + 0.3 * image("dx"), image("cond2"), second),
    ]
    for x, past, expected in frames:
        with torch.no_grad(), use_backend(block, backend):
            y = block(x, (past[:, :1].contiguous(), past[:, 1:].contiguous()))
        torch.testing.assert_close(y[:, 0], expected, rtol=0, atol=1e-4 * float(expected.std()))


def _config(**changes: Any) -> PSRTConfig:
    fields: dict[str, Any] = {
        "channels": 8,
        "depths": (2, 1),
        "num_heads": (2, 2),
        "window": 4,
        "drop_path": 0.0,
    }
    return PSRTConfig(**{**fields, **changes})


KINDS: dict[str, dict[str, Any]] = {
    "psrt": {"build_block": build_mfsab, "order": "current-middle", "updates": "all"},
    "mfsab, current last": {
        "build_block": build_mfsab,
        "order": "current-last",
        "updates": "all",
    },
    "mia": {"build_block": build_iiab, "order": "current-last", "updates": "current"},
}


def _transformer(kind: str, **changes: Any) -> SweepTransformer:
    torch.manual_seed(0)
    transformer = SweepTransformer(_config(**changes), **KINDS[kind])
    for parameter in transformer.parameters():
        if parameter.ndim == 2:
            nn.init.normal_(parameter, std=0.3)
    return transformer.double().eval()


def _features(*size: int, batch: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """Current, newer and older."""
    current, newer, older = torch.randn(3, batch, 8, *size, dtype=torch.float64)
    return current, newer, older


def _window_mask(size: tuple[int, int], shift: int) -> Tensor:
    """Whether two pixels of an image are in the same window: (H·W, H·W)."""
    lines = (torch.arange(size[0]) - shift) // 4
    columns = (torch.arange(size[1]) - shift) // 4
    number = (100 * lines[:, None] + columns).flatten()
    return number[:, None] == number


def _attend_plainly(block: TemporalBlock, stack: Tensor, num_queries: int) -> Tensor:
    """Attend among all pixels of all frames (B, 3, H, W, C) that share a window; (B, D, H, W, C) of the last D."""
    batch, frames, height, width, channels = stack.shape
    attn, pixels = block.attn, height * width
    q, k, v = attn.qkv(stack.flatten(1, 3)).chunk(3, -1)
    heads = (batch, -1, attn.heads, channels // attn.heads)
    q, k, v = (part.view(heads).transpose(1, 2) for part in (q, k, v))
    table = attn.relative_position_bias_table.view(-1, 7, 7, attn.heads)
    bias = torch.zeros(attn.heads, frames * pixels, frames * pixels, dtype=stack.dtype)
    lines, columns = torch.arange(height), torch.arange(width)
    dy = (lines[:, None, None, None] - lines[None, None, :, None]).expand(
        height, width, height, width
    )
    dx = (columns[None, :, None, None] - columns[None, None, None]).expand(
        height, width, height, width
    )
    near = (dy.abs() < 4) & (dx.abs() < 4)
    for query, key in itertools.product(range(frames), range(frames)):
        depth = query - key + frames - 1 if len(table) == 2 * frames - 1 else frames - 1 - key
        entry = table[depth, dy.clamp(-3, 3) + 3, dx.clamp(-3, 3) + 3] * near[..., None]
        rows = slice(query * pixels, (query + 1) * pixels)
        bias[:, rows, key * pixels : (key + 1) * pixels] = entry.permute(4, 0, 1, 2, 3).view(
            attn.heads, pixels, pixels
        )
    scores = q @ k.mT / (channels // attn.heads) ** 0.5 + bias
    mask = _window_mask((height, width), block.shift[-1]).repeat(frames, frames)
    weights = scores.masked_fill(~mask, -torch.inf).softmax(-1)
    out = attn.proj((weights @ v).transpose(1, 2).reshape(batch, -1, channels))
    return out.view(batch, frames, height, width, channels)[:, -num_queries:]


def _plainly(net: SweepTransformer, current: Tensor, newer: Tensor, older: Tensor) -> Tensor:
    """The drawing of the module, with a mask over all pixels in place of windows."""
    is_last = net.order == "current-last"
    frames = [older, newer, current] if is_last else [newer, current, older]
    height, width = current.shape[-2:]
    x = net.patch_norm(torch.stack(frames, 1).permute(0, 1, 3, 4, 2))
    past = x[:, :0]
    if net.updates == "current":
        past, x = x[:, :2], x[:, 2:]
    for group in net.groups:
        y = x
        for block in group.blocks:
            stack = block.norm1(torch.cat([past, y], 1))
            stack = functional.pad(stack, (0, 0, 0, -width % 4, 0, -height % 4))
            attended = _attend_plainly(block, stack, y.shape[1])
            y = y + attended[:, :, :height, :width]
            y = y + block.mlp(block.norm2(y))
        image = functional.conv2d(
            y.flatten(0, 1).permute(0, 3, 1, 2), group.conv.weight, group.conv.bias, padding=1
        )
        x = x + image.permute(0, 2, 3, 1).view(x.shape)
    x = net.norm(x[:, -1] if is_last else x[:, 1]).permute(0, 3, 1, 2)
    conv = net.conv_after_body
    return functional.conv2d(x, conv.weight, conv.bias, padding=1) + current


@pytest.mark.parametrize("size", [(8, 8), (7, 10), (3, 5)])
@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_drawing(kind: str, size: tuple[int, int]) -> None:
    net, features = _transformer(kind), _features(*size)
    with torch.no_grad():
        expected = _plainly(net, *features)
        torch.testing.assert_close(net(*features), expected, rtol=0, atol=1e-11)
        with use_backend(net, "auto"):
            torch.testing.assert_close(net(*features), expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_learns(kind: str) -> None:
    net = _transformer(kind)
    net(*_features(7, 10)).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in net.parameters())


def test_dropped_branches_are_made_up_for_on_average() -> None:
    """The last block keeps each branch with a probability of one half, for each element of the batch."""
    torch.manual_seed(0)
    config = BlockConfig(channels=4, heads=2, window=4, shift=2, drop_path=0.5)
    block = build_iiab(config).double().train()
    nn.init.zeros_(block.mlp.fc2.weight)
    nn.init.zeros_(block.mlp.fc2.bias)
    x, newer, older = torch.randn(3, 400, 1, 6, 6, 4, dtype=torch.float64)
    with torch.no_grad():
        added = block(x, (older, newer)) - x
        full = block.eval()(x, (older, newer)) - x
    # With an MLP of zero, an element gets twice the result of the attention, or nothing.
    kept = added.flatten(1).any(1)
    torch.testing.assert_close(added[kept], 2 * full[kept])
    assert 0.4 < kept.double().mean() < 0.6


def test_probabilities_rise_over_the_blocks_of_a_sweep() -> None:
    net = SweepTransformer(_config(depths=(2, 1), drop_path=0.2), **KINDS["mia"])
    rates = [block.drop_path for group in net.groups for block in group.blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2])
    single = SweepTransformer(_config(depths=(1,), num_heads=(2,), drop_path=0.2), **KINDS["mia"])
    assert single.groups[0].blocks[0].drop_path == 0
