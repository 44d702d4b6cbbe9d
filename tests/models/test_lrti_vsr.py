import math
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from helpers.chain_networks import TINY, small_clip, small_network
from helpers.clip_parity import recorded_clip, recorded_network
from helpers.image_parity import published_keys
from helpers.recordings import recorded
from tubelet.errors import ConfigError
from tubelet.evaluation.counting import count_flops
from tubelet.layers.inference import prepare_for_inference, use_backend
from tubelet.layers.sweep_transformer import BlockConfig, TemporalBlock
from tubelet.models.architecture import Architecture
from tubelet.models.lrti_vsr import (
    ARCHITECTURE,
    LRTIVSR,
    RITB,
    LRTIVSRConfig,
    RefocusedGate,
    _attend_squared_heads,
    attend_positive,
    attend_squared,
    build_ritb,
)
from tubelet.models.mia_vsr import ARCHITECTURE as MIA_VSR
from tubelet.models.psrt import ARCHITECTURE as PSRT
from tubelet.zoo.checkpoint import load_model, open_checkpoint, save_checkpoint

SMALL: dict[str, Any] = {"depths": (6,), "num_heads": (6,)}
"""LRTI-VSR-small."""
TINY_PRESET: dict[str, Any] = {
    "channels": 24,
    "depths": (2,),
    "num_heads": (3,),
    "mid_channels": 24,
    "hr_channels": 16,
    "has_unused": False,
}
KINDS: list[dict[str, Any]] = [
    {},
    {"gate": "two-thirds", "score_norm": "keys"},
    {"gate": "none", "activation": "softmax-positive"},
    {"activation": "softmax", "has_unused": False},
    {"block": "iiab"},
    {"block": "mfsab", "stack_order": "current-middle", "second_frame": "zeros"},
]


def _count(architecture: Architecture, **config: Any) -> int:
    with torch.device("meta"):
        network = architecture.build(architecture.config(**config))
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        ({**SMALL, "has_unused": False}, 5_780_287),
        ({"has_unused": False}, 12_605_407),
        (SMALL, 6_057_023),
        ({}, 12_882_143),
        ({**SMALL, "gate": "two-thirds"}, 6_058_943),
        ({"gate": "two-thirds"}, 12_887_903),
        (TINY_PRESET, 1_580_879),
        ({**TINY_PRESET, "gate": "two-thirds"}, 1_581_007),
    ],
)
def test_parameters_are_those_of_the_paper(config: dict[str, Any], parameters: int) -> None:
    assert _count(ARCHITECTURE, **config) == parameters


def test_parameters_of_a_block_and_of_a_sweep() -> None:
    block = build_ritb(BlockConfig(channels=120, heads=6, window=8))
    counts = {
        name: sum(p.numel() for p in part.parameters()) for name, part in block.named_children()
    }
    assert counts == {"norm1": 240, "attn": 43_560 + 14_520 + 4_050, "norm2": 240, "mlp": 57_960}
    network = LRTIVSR(LRTIVSRConfig(**SMALL))
    assert sum(p.numel() for p in network.sweeps["forward_1"].parameters()) == 983_340
    assert sum(p.numel() for p in network.spynet.parameters()) == 1_440_300


def test_parameters_of_the_networks_with_other_blocks() -> None:
    """Two more unused layers a sweep in the files of PSRT and MIA-VSR, and the masks of the latter."""
    unused = 4 * (3 * 9 * 120 + 120 + 64 * 9 * 120 + 120)
    assert _count(ARCHITECTURE, **SMALL, block="iiab") + unused == 6_347_423
    assert _count(ARCHITECTURE, block="iiab") + unused == 13_172_543
    assert _count(ARCHITECTURE, **SMALL, block="mfsab") + unused == 6_412_223
    assert _count(PSRT, **SMALL) == 6_412_223
    assert _count(MIA_VSR, **SMALL) == 6_347_423 + 4 * 6 * 121


@torch.no_grad()
def test_multiplications_are_those_of_the_specification() -> None:
    """Of a frame of 180×320 with two flows; the paper prints what its parents' counter gives.

    Counted are the network with one block a sweep, and the layers that the published ones have besides.
    """
    lq = torch.empty(1, 3, 180, 320, device="meta")
    maps = [torch.empty(1, 1, 184, 320, 120, device="meta") for _ in range(3)]
    image = torch.empty(1, 120, 180, 320, device="meta")
    with torch.device("meta"):
        # The number of heads changes the number of operations and not that of multiplications.
        network = LRTIVSR(LRTIVSRConfig(depths=(1,), num_heads=(1,))).eval()
        blocks = [
            build_ritb(BlockConfig(channels=120, heads=1, window=8, shift=shift)).eval()
            for shift in (0, 4)
        ]
    group = network.sweeps["forward_1"].groups[0]
    plain, shifted = (
        count_flops(block, lambda block=block: block(maps[2], (maps[0], maps[1])))
        for block in blocks
    )
    conv = count_flops(group, lambda: group.conv(image, image))
    flow = count_flops(network, lambda: network.spynet(lq, lq))
    one_block = count_flops(network, lambda: network(lq[:, None]))
    for groups, tera_macs in ((1, 0.531), (3, 1.291)):
        more = (3 * groups - 1) * plain + 3 * groups * shifted + (groups - 1) * conv
        flops = one_block + 2 * flow + 4 * more
        assert flops / 2e12 == pytest.approx(tera_macs, rel=0.01)


@pytest.mark.parametrize(
    ("case", "config"),
    [
        ("miavsr_nomask_A", {"block": "iiab"}),
        (
            "psrt_recurrent_A",
            {"block": "mfsab", "stack_order": "current-middle", "second_frame": "zeros"},
        ),
    ],
)
def test_with_the_blocks_of_its_parents_it_gives_their_recorded_output(
    recordings: Path, case: str, config: dict[str, Any]
) -> None:
    description, (expected,) = recorded(recordings, case)
    parent = recorded_network(recordings, case)
    own = {
        name: value
        for name, value in parent.state_dict().items()
        if ".mask_predictor." not in name and ".conv_first" not in name
    }
    opened = open_checkpoint(own, **config)
    assert opened.architecture is ARCHITECTURE
    assert opened.config.block == config["block"]
    with torch.no_grad():
        sr = opened.model(recorded_clip(recordings, case))
    step = description["output_step"]
    stats = description["output_stats"]
    tolerance = max(1e-4, 20 * description["float64_max_abs_over_std"]) * stats["std"]
    torch.testing.assert_close(sr[..., ::step, ::step], expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("kind", KINDS)
def test_files_and_their_networks(kind: dict[str, Any], tmp_path: Path) -> None:
    network = small_network(ARCHITECTURE, **kind)
    network = LRTIVSR(network.config).eval()
    save_checkpoint(tmp_path / "network.safetensors", network, {})
    opened = open_checkpoint(tmp_path / "network.safetensors")
    assert opened.config == network.config
    # Names and shapes alone tell the layers, with or without them the settings of functions.
    inferred = open_checkpoint(network.state_dict())
    assert inferred.architecture is ARCHITECTURE
    inferred.model.load_state_dict(network.state_dict(), strict=True)
    lq = small_clip(batch=1, frames=2, size=(8, 8)).float()
    with torch.no_grad():
        assert torch.equal(load_model(tmp_path / "network.safetensors")(lq), network(lq))


def test_leaves_files_of_its_parents_alone(recordings: Path) -> None:
    for file in ("psrt_recurrent_reds", "miavsr_reds", "iart_reds"):
        assert ARCHITECTURE.translate(published_keys(recordings, file)) is None
    own = LRTIVSR(LRTIVSRConfig(**TINY)).state_dict()
    assert ARCHITECTURE.translate(own) is not None
    assert ARCHITECTURE.translate({**own, "another.weight": torch.zeros(1)}) is None
    assert ARCHITECTURE.translate({}) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block": "swin"}, "block='swin' must be ritb, iiab or mfsab"),
        ({"activation": "gelu"}, "activation='gelu' must be relu2, softmax or softmax-positive"),
        ({"gate": "full"}, "gate='full' must be shared, two-thirds or none"),
        ({"score_norm": "mean"}, "score_norm='mean' must be none or keys"),
        ({"stack_order": "current-middle"}, "does not go with block='ritb'"),
        ({"second_frame": "mirror"}, "second_frame='mirror' must be repeat or zeros"),
        ({"drop_path": 1.0}, "drop_path=1.0 must be at least 0 and below 1"),
        ({"num_heads": (5,) * 3}, "each of num_heads=.* must divide channels=8"),
        ({"window": 1}, "window=1 must be at least 2"),
    ],
)
def test_rejects_impossible_settings(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LRTIVSRConfig(**{"channels": 8, "num_heads": (2,) * 3, **changes})


@pytest.mark.parametrize("kind", KINDS)
def test_every_used_parameter_learns(kind: dict[str, Any]) -> None:
    """SpyNet gives positions that are rounded to pixels, and so has no gradient."""
    network = small_network(ARCHITECTURE, **kind, drop_path=0.1)
    network(small_clip()).square().sum().backward()
    dead = {n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()}
    assert dead == {
        name for name, _ in network.named_parameters() if name.startswith(("unused.", "spynet."))
    }


@pytest.mark.parametrize("kind", KINDS)
def test_training_and_inference_agree(kind: dict[str, Any]) -> None:
    network, lq = small_network(ARCHITECTURE, **kind), small_clip(frames=3, size=(11, 14))
    with torch.no_grad():
        sr = network(lq)
        with use_backend(network, "auto"):
            torch.testing.assert_close(network(lq), sr, rtol=0, atol=1e-10)
            torch.testing.assert_close(network(lq[1:]), sr[1:], rtol=0, atol=1e-10)
    single = prepare_for_inference(network.float().to(memory_format=torch.channels_last))
    with torch.no_grad():
        tolerance = 1e-4 * float(sr.std())
        torch.testing.assert_close(single(lq.float()), sr.float(), rtol=0, atol=tolerance)


@pytest.mark.parametrize("kind", [{}, {"gate": "two-thirds"}, *KINDS[4:]])
def test_equals_the_plain_formulation(
    kind: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    from plain.chain import plain_chain

    network, lq = small_network(ARCHITECTURE, **kind), small_clip(size=(11, 16))
    with torch.no_grad():
        expected = plain_chain(network, lq, second_frame=network.config.second_frame)
        torch.testing.assert_close(network(lq), expected, rtol=0, atol=1e-10)


# The block, by loops over windows, heads, queries and keys.


def _normalized(norm: nn.LayerNorm, token: Tensor) -> Tensor:
    mean = token.sum() / len(token)
    variance = ((token - mean) ** 2).sum() / len(token)
    return (token - mean) / torch.sqrt(variance + norm.eps) * norm.weight + norm.bias


def _linear(layer: nn.Linear, token: Tensor) -> Tensor:
    return torch.stack([(row * token).sum() for row in layer.weight]) + layer.bias


def _attention_of_a_pixel(
    block: TemporalBlock, stack: Tensor, y: int, x: int, size: tuple[int, int]
) -> Tensor:
    """Eq. 6 for one query: stack (3, H', W', C) is normalized and padded with zeros to whole windows.

    Args:
        block: the block.
        stack: older, newer and current.
        y: line of the query.
        x: column of the query.
        size: of the padded image.
    """
    attn, shift, w = block.attn, block.shift[-1], block.window[-1]
    channels = stack.shape[-1]
    d = channels // attn.heads
    q = _linear(attn.qkv, stack[2, y, x])[:channels]
    out = torch.zeros(channels, dtype=stack.dtype)
    for frame, line, column in product(range(3), range(size[0]), range(size[1])):
        same_row = (line - shift) // w == (y - shift) // w
        same_column = (column - shift) // w == (x - shift) // w
        if not (same_row and same_column):
            continue
        qkv = _linear(attn.qkv, stack[frame, line, column])
        k, v = qkv[channels : 2 * channels], qkv[2 * channels :]
        row = ((2 - frame) * (2 * w - 1) + y - line + w - 1) * (2 * w - 1) + x - column + w - 1
        for head in range(attn.heads):
            part = slice(head * d, (head + 1) * d)
            score = float((q[part] * k[part]).sum()) / math.sqrt(d)
            score += float(attn.relative_position_bias_table[row, head])
            if score > 0:
                out[part] += score**2 * v[part]
    return _linear(attn.proj, out)


def _gated(block: TemporalBlock, token: Tensor, newer: Tensor) -> Tensor:
    """Eq. 7 for one token."""
    unit = block.mlp
    layer = unit.fc_in if unit.fc_newer is None else unit.fc_newer
    first = _linear(unit.fc_in, _normalized(block.norm2, token))
    second = _linear(layer, _normalized(block.norm2, newer))
    values = [max(float(a), 0.0) ** 2 * float(b) for a, b in zip(first, second, strict=True)]
    return _linear(unit.fc_out, torch.tensor(values, dtype=token.dtype))


def _by_loops(block: TemporalBlock, older: Tensor, newer: Tensor, x: Tensor) -> Tensor:
    """Run the block on one image: three maps (H, W, C)."""
    height, width, channels = x.shape
    w = block.window[-1]
    size = (math.ceil(height / w) * w, math.ceil(width / w) * w)
    stack = torch.zeros(3, *size, channels, dtype=x.dtype)
    for frame, image in enumerate((older, newer, x)):
        for line, column in product(range(height), range(width)):
            stack[frame, line, column] = _normalized(block.norm1, image[line, column])
    out = torch.zeros_like(x)
    for line, column in product(range(height), range(width)):
        token = x[line, column] + _attention_of_a_pixel(block, stack, line, column, size)
        out[line, column] = token + _gated(block, token, newer[line, column])
    return out


def _block(*, shift: int = 2, **kind: Any) -> TemporalBlock:
    """A block of windows of four, in float64."""
    torch.manual_seed(0)
    block = build_ritb(BlockConfig(channels=6, heads=2, window=4, shift=shift), **kind)
    for parameter in block.parameters():
        nn.init.normal_(parameter, mean=float(parameter is block.norm1.weight), std=0.5)
    return block.double().eval()


def _maps(height: int = 8, width: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    """Older, newer and x, (2, 1, H, W, C) each."""
    older, newer, x = torch.randn(3, 2, 1, height, width, 6, dtype=torch.float64)
    return older, newer, x


def _pad(token_map: Tensor) -> Tensor:
    """Extend (2, 1, H, W, C) to whole windows, with values that must not matter."""
    height, width = token_map.shape[2:4]
    padded = torch.randn(2, 1, math.ceil(height / 4) * 4, math.ceil(width / 4) * 4, 6)
    padded = padded.to(token_map.dtype)
    padded[:, :, :height, :width] = token_map
    return padded


@pytest.mark.parametrize("backend", ["reference", "auto"])
@pytest.mark.parametrize("gate", ["shared", "two-thirds"])
@pytest.mark.parametrize(("shift", "size"), [(0, (4, 8)), (2, (8, 4)), (2, (5, 6))])
@torch.no_grad()
def test_the_block_is_the_equations_by_loops(
    shift: int, size: tuple[int, int], gate: Any, backend: Any
) -> None:
    block, maps = _block(shift=shift, gate=gate), _maps(*size)
    padded = [_pad(x) for x in maps]
    inside = torch.zeros(*padded[0].shape[:-1], 1, dtype=torch.float64)
    inside[:, :, : size[0], : size[1]] = 1
    with use_backend(block, backend):
        out = block(padded[2], (padded[0], padded[1]), inside)[:, :, : size[0], : size[1]]
    older, newer, x = maps
    expected = _by_loops(block, older[1, 0], newer[1, 0], x[1, 0])
    torch.testing.assert_close(out[1, 0], expected, rtol=0, atol=1e-12)


def _scores(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries, keys, values and bias of four windows with two heads."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return draw(4, 2, 5, 3), draw(4, 2, 15, 3), draw(4, 2, 15, 3), draw(2, 5, 15)


def test_attention_is_of_degree_two_in_the_scores() -> None:
    q, k, v, bias = _scores()
    bias = torch.zeros_like(bias)
    once = attend_squared(q, k, v, bias)
    torch.testing.assert_close(attend_squared(2**0.5 * q, 2**0.5 * k, v, bias), 4 * once)


def test_a_query_without_positive_scores_gets_nothing() -> None:
    q, k, v, bias = _scores()
    bias[:, 2] = -1e3
    for attend in (attend_squared, attend_positive):
        out = attend(q, k, v, bias)
        assert not out[:, 2].any()
        assert out[:, 1].all()
    block, (older, newer, x) = _block(), _maps(4, 4)
    nn.init.constant_(block.attn.relative_position_bias_table, -1e3)
    with torch.no_grad():
        tokens = block.norm1(torch.cat([older, newer, x], 1).flatten(1, 3))
        attended = block.attn(tokens, (1, 4, 4))
        assert torch.equal(attended, block.attn.proj.bias.expand_as(attended))


def test_the_sum_can_be_divided_by_the_number_of_keys() -> None:
    q, k, v, bias = _scores()
    torch.testing.assert_close(
        attend_squared(q, k, v, bias, score_norm="keys"), attend_squared(q, k, v, bias) / 15
    )


def test_a_softmax_over_scores_that_are_not_negative() -> None:
    q, k, v, bias = _scores()
    q.requires_grad_(True)
    bias[:, 2] = -1e3
    out = attend_positive(q, k, v, bias)
    scores = (q @ k.mT / 3**0.5 + bias)[1, 0, 3]
    kept = scores >= 0
    assert 1 < kept.sum() < 15
    torch.testing.assert_close(out[1, 3, :3], scores[kept].softmax(0) @ v[1, 0, kept])
    (gradient,) = torch.autograd.grad(out.sum(), q)
    assert gradient.isfinite().all()
    assert not gradient[:, :, 2].any()


@pytest.mark.parametrize("attend", [attend_squared, attend_positive])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_large_scores_under_autocast(attend: Any, dtype: torch.dtype) -> None:
    """The square of a score of 600 exceeds the range of float16."""
    q, k, v, bias = (x.float() for x in _scores())
    q = 300 * q
    expected = attend(q, k, v, bias)
    if attend is attend_squared:
        assert expected.abs().max() > 65_504
    with torch.autocast("cpu", dtype=dtype):
        assert torch.equal(attend(q, k, v, bias), expected)
        # As they come from layers in half precision.
        half = attend(q.to(dtype), k.to(dtype), v.to(dtype), bias)
    assert half.dtype == torch.float32
    assert half.isfinite().all()
    assert (half - expected).std() < 0.02 * expected.std()


def test_other_windows_contribute_exactly_nothing() -> None:
    block, (older, newer, x) = _block(shift=2), _maps(8, 8)
    with torch.no_grad():
        out = block(x, (older, newer))
        # Windows of the shifted partition along the width: columns 0-1, 2-5, 6-7.
        changed = [y.clone() for y in (older, newer, x)]
        for y in changed:
            y[:, :, :, 6:] += 100.0
        again = block(changed[2], (changed[0], changed[1]))
    assert torch.equal(again[:, :, :, :6], out[:, :, :, :6])
    assert not torch.equal(again[:, :, :, 6:], out[:, :, :, 6:])


def test_the_gate_ignores_the_older_state_and_the_attention_does_not() -> None:
    block, (older, newer, x) = _block(), _maps()
    tokens = [part.flatten(1, 3) for part in (older, newer, x)]
    old = tokens[0].requires_grad_(True)
    gated = block.feed_forward(tokens[2], (old, tokens[1]))
    assert torch.autograd.grad(gated.sum(), old, allow_unused=True) == (None,)
    older.requires_grad_(True)
    (gradient,) = torch.autograd.grad(block(x, (older, newer)).sum(), older)
    assert gradient.any()


def test_a_gate_without_state_gives_its_bias() -> None:
    block, (_, newer, x) = _block(), _maps(4, 4)
    assert isinstance(block, RITB)
    for bias in (block.norm2.bias, block.mlp.fc_in.bias):
        nn.init.zeros_(bias)
    zero = torch.zeros_like(newer).flatten(1, 3)
    with torch.no_grad():
        out = block.feed_forward(x.flatten(1, 3), (zero, zero))
    assert torch.equal(out, block.mlp.fc_out.bias.expand_as(out))


def test_two_thirds_of_the_width_have_the_parameters_of_a_shared_gate() -> None:
    shared = RefocusedGate(120, 240, is_shared=True)
    separate = RefocusedGate(120, 160, is_shared=False)
    assert sum(p.numel() for p in shared.parameters()) == 57_960
    assert sum(p.numel() for p in separate.parameters()) == 58_040


def test_the_fields_of_the_published_code_are_known() -> None:
    config = LRTIVSRConfig(**SMALL)
    assert replace(config, depths=(6, 6, 6), num_heads=(6, 6, 6)) == LRTIVSRConfig()
    contract = ARCHITECTURE.contract(config)
    assert contract is not None
    assert (contract.size_multiple, contract.tile_multiple) == (1, 8)
    assert (contract.edge_frames, contract.streams) == (2, True)


@pytest.mark.parametrize("is_bf16", [False, True])
def test_a_training_keeps_no_scores(is_bf16: bool) -> None:
    torch.manual_seed(0)
    q = torch.randn(5, 2, 16, 4, requires_grad=True)
    k, v = (torch.randn(5, 2, 48, 4, requires_grad=True) for _ in range(2))
    bias = torch.randn(2, 16, 48, requires_grad=True)
    kept: list[tuple[int, ...]] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tuple(tensor.shape))
        return tensor

    gradients: list[tuple[Tensor, ...]] = []
    for attend in (attend_squared, partial(_attend_squared_heads, factor=1.0)):
        with (
            torch.autocast("cpu", torch.bfloat16, enabled=is_bf16),
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        ):
            out = attend(q, k, v, bias)
        has_scores = (5, 16, 48) in kept
        assert has_scores == (attend is not attend_squared)
        if attend is attend_squared:
            gradients.append(torch.autograd.grad(out.square().sum(), (q, k, v, bias)))
    plain = _attend_squared_heads(q, k, v, bias, factor=1.0)
    gradients.append(torch.autograd.grad(plain.square().sum(), (q, k, v, bias)))
    for actual, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
