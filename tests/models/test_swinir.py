from pathlib import Path

import pytest
import torch

from helpers.clip_parity import assert_recognized
from helpers.image_parity import assert_as_recorded, assert_every_parameter_learns
from tubelet.errors import ConfigError
from tubelet.layers.inference import prepare_for_inference, use_backend
from tubelet.models.swinir import ARCHITECTURE, SwinIR, SwinIRConfig
from tubelet.zoo.checkpoint import open_checkpoint

SMALL = {"channels": 12, "depths": (2, 3), "num_heads": (3, 2), "window": 4}
KINDS = [
    SwinIRConfig(scale=2, **SMALL),
    SwinIRConfig(scale=3, **SMALL, resi_connection="3conv", upsample_channels=8),
    SwinIRConfig(scale=8, **SMALL, upsample_channels=4),
    SwinIRConfig(scale=3, **SMALL, upsampler="pixelshuffledirect", mlp_ratio=1.5),
    SwinIRConfig(scale=2, **SMALL, upsampler="nearest+conv", upsample_channels=8),
    SwinIRConfig(scale=4, **SMALL, upsampler="nearest+conv", upsample_channels=8, qkv_bias=False),
    SwinIRConfig(scale=1, **SMALL, upsampler="none", patch_norm=False),
    SwinIRConfig(scale=1, **SMALL | {"window": 7}, upsampler="none", img_range=255.0),
    SwinIRConfig(scale=1, **SMALL, upsampler="none", image_channels=1),
]


def _name(config):
    return f"{config.upsampler} x{config.scale} window {config.window} channels {config.image_channels}"


def _random(config):
    torch.manual_seed(0)
    net = SwinIR(config).eval()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, mean=float(parameter.ndim == 1), std=0.2)
    return net


@pytest.mark.parametrize(
    "case",
    ["swinir_x4_A", "swinir_x2_A", "swinir_x3_3conv_A", "swinir_light_x4_A", "swinir_nearest_x4_A"],
)
def test_gives_the_recorded_output(recordings, case):
    assert_as_recorded(recordings, case, ARCHITECTURE)


@pytest.mark.parametrize(
    ("file", "config", "parameters"),
    [
        ("classical_x4", SwinIRConfig(), 11_900_199),
        (
            "light_x4",
            SwinIRConfig(
                channels=60, depths=(6,) * 4, num_heads=(6,) * 4, upsampler="pixelshuffledirect"
            ),
            929_628,
        ),
        ("real_M_x4", SwinIRConfig(upsampler="nearest+conv"), 11_715_559),
    ],
)
def test_recognizes_published_files(recordings, file, config, parameters):
    assert_recognized(recordings, f"basicsr_swinir_{file}", ARCHITECTURE, config, parameters)


@pytest.mark.parametrize("config", KINDS, ids=_name)
def test_infers_the_configuration_it_was_built_with(config):
    net = _random(config)
    opened = open_checkpoint(net.state_dict())
    assert opened.architecture is ARCHITECTURE
    assert opened.config == config
    lq = torch.rand(1, 2, 3, 9, 6)
    with torch.inference_mode():
        sr = opened.model(lq)
        assert sr.shape == (1, 2, 3, 9 * config.scale, 6 * config.scale)
        assert torch.equal(sr, net(lq))


@pytest.mark.parametrize("config", KINDS, ids=_name)
def test_equals_the_published_formulation(config, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    from plain.swinir import plain_forward

    net = _random(config)
    lq = torch.rand(1, 2, 3, 10, 13)
    if config.image_channels == 1:
        lq = lq[:, :, :1].expand(1, 2, 3, 10, 13)  # gray: all three channels get the same result
    with torch.inference_mode():
        expected = plain_forward(net, lq[:, :, : config.image_channels])
        sr = prepare_for_inference(net.to(memory_format=torch.channels_last))(lq)
    torch.testing.assert_close(
        sr, expected.expand_as(sr), rtol=1e-4, atol=1e-4 * float(expected.std())
    )


@pytest.mark.parametrize("config", [KINDS[1], KINDS[5], KINDS[8]], ids=_name)
def test_every_parameter_learns(config):
    assert_every_parameter_learns(_random(config), torch.rand(1, 2, 3, 9, 7))


def test_training_and_inference_agree():
    net = _random(KINDS[0])
    lq = torch.rand(2, 1, 3, 12, 40)
    with torch.inference_mode(), use_backend(net, "auto"):
        sr = net(lq)
        tolerance = 1e-4 * float(sr.std())
        torch.testing.assert_close(net(lq[1:]), sr[1:], rtol=1e-4, atol=tolerance)
    assert net(lq).requires_grad
    torch.testing.assert_close(net(lq), sr, rtol=1e-4, atol=tolerance)


def test_does_not_modify_its_input():
    net = _random(KINDS[6])
    lq = torch.rand(1, 1, 3, 8, 8)
    original = lq.clone()
    with torch.inference_mode():
        net(lq)
    assert torch.equal(lq, original)


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (4, 9)])
def test_tiny_images(size):
    height, width = size
    net = _random(KINDS[0])
    with torch.inference_mode():
        sr = net(torch.rand(1, 1, 3, height, width))
    assert sr.shape == (1, 1, 3, 2 * height, 2 * width)


def test_asks_the_engine_for_whole_windows():
    contract = ARCHITECTURE.contract(KINDS[7])
    assert contract.scale == 1
    assert contract.size_multiple == 7
    assert contract.min_size_px == 4
    assert contract.halo_px == 35


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"conv_first.weight": torch.zeros(4, 3, 3, 3)},
        {
            "conv_first.weight": torch.zeros(4),
            "layers.0.residual_group.blocks.0.norm1.weight": torch.zeros(4),
        },
        _random(KINDS[0]).state_dict() | {"conv_first.weight": torch.zeros(12, 12, 3, 3)},
        _random(KINDS[0]).state_dict()
        | {"layers.0.blocks.0.attn.relative_position_bias_table": torch.zeros(48, 3)},
        _random(KINDS[0]).state_dict() | {"upsample.0.weight": torch.zeros(64)},
    ],
)
def test_refuses_state_dicts_of_other_networks(state):
    assert ARCHITECTURE.translate(state) is None


@pytest.mark.parametrize(
    "fields",
    [
        {"scale": 5},
        {"scale": 1},
        {"scale": 2, "upsampler": "none"},
        {"scale": 3, "upsampler": "nearest+conv"},
        {"depths": (2,)},
        {"num_heads": (7,) * 6},
        {"window": 0},
        {"image_channels": 2},
        {"img_range": 0.0},
    ],
)
def test_refuses_a_configuration_out_of_range(fields):
    with pytest.raises(ConfigError):
        SwinIRConfig(**fields)
