from pathlib import Path

import pytest
import torch

from helpers.clip_parity import assert_recognized
from helpers.image_parity import assert_as_recorded, assert_every_parameter_learns, recorded_state
from helpers.recordings import recorded, recorded_input
from tubelet.errors import ConfigError
from tubelet.layers.inference import prepare_for_inference, use_backend
from tubelet.models.hat import ARCHITECTURE, HAT, OCAB, HATConfig, overlapping_position_bias
from tubelet.zoo.checkpoint import open_checkpoint

SMALL = {"channels": 12, "depths": (2, 3), "num_heads": (3, 2), "window": 4, "squeeze_factor": 4}
KINDS = [
    HATConfig(scale=2, **SMALL),
    HATConfig(
        scale=3, **SMALL, overlap_ratio=1.0, compress_ratio=4, mlp_ratio=1.5, upsample_channels=8
    ),
    HATConfig(scale=4, **SMALL, overlap_ratio=0.0, upsample_channels=8, qkv_bias=False),
    HATConfig(scale=8, **SMALL, resi_connection="identity", patch_norm=False, upsample_channels=4),
]


def _random(config):
    torch.manual_seed(0)
    net = HAT(config).eval()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, mean=float(parameter.ndim == 1), std=0.2)
    return net


@pytest.mark.parametrize("case", ["hat_x2_A", "hat_x4_A"])
def test_gives_the_recorded_output(recordings, case):
    assert_as_recorded(recordings, case, ARCHITECTURE)


@pytest.mark.parametrize("recording", [True, False])
def test_overlapping_attention_gives_the_recorded_output(recordings, recording):
    description, (expected,) = recorded(recordings, "hat_ocab_A")
    block = OCAB(HATConfig(channels=24, depths=(1,), num_heads=(3,), window=8, squeeze_factor=6), 3)
    block.load_state_dict(recorded_state(recordings, description))
    image = recorded_input(recordings, "hat_ocab_A", tuple(description["inputs"]["x"]))
    with torch.set_grad_enabled(recording):
        out = block(((image - 0.5) * 2).permute(0, 2, 3, 1).contiguous())
    torch.testing.assert_close(
        out.flatten(1, 2), expected, rtol=0, atol=1e-4 * description["output_stats"]["std"]
    )


def test_overlapping_positions_are_the_recorded_ones(recordings):
    description, _ = recorded(recordings, "hat_ocab_A")
    # Negative indexes count from the end of the table.
    index = torch.tensor(description["index_table"])
    bias = overlapping_position_bias(torch.arange(361.0)[:, None], 8, 12)
    assert torch.equal(bias[0], (index % 361).float())


@pytest.mark.parametrize(
    ("file", "config", "parameters"),
    [
        ("hat_x4", HATConfig(), 20_772_507),
        ("hat_x2", HATConfig(scale=2), 20_624_795),
        ("hat_S_x4", HATConfig(channels=144, compress_ratio=24, squeeze_factor=24), 9_621_183),
        ("hat_L_x4", HATConfig(depths=(6,) * 12, num_heads=(6,) * 12), 40_846_575),
    ],
)
def test_recognizes_published_files(recordings, file, config, parameters):
    assert_recognized(recordings, file, ARCHITECTURE, config, parameters)


@pytest.mark.parametrize("config", KINDS, ids=lambda config: f"x{config.scale}")
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


@pytest.mark.parametrize("config", KINDS, ids=lambda config: f"x{config.scale}")
def test_equals_the_published_formulation(config, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    from plain.hat import plain_forward

    net = _random(config)
    lq = torch.rand(1, 2, 3, 10, 13)
    with torch.inference_mode():
        expected = plain_forward(net, lq)
        sr = prepare_for_inference(net.to(memory_format=torch.channels_last))(lq)
    torch.testing.assert_close(sr, expected, rtol=1e-4, atol=1e-4 * float(expected.std()))


@pytest.mark.parametrize("config", [KINDS[1], KINDS[3]], ids=lambda config: f"x{config.scale}")
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


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (4, 9)])
def test_tiny_images(size):
    height, width = size
    net = _random(KINDS[0])
    with torch.inference_mode():
        sr = net(torch.rand(1, 1, 3, height, width))
    assert sr.shape == (1, 1, 3, 2 * height, 2 * width)


def test_asks_the_engine_for_whole_windows():
    contract = ARCHITECTURE.contract(HATConfig())
    assert contract.scale == 4
    assert contract.size_multiple == 16
    assert contract.min_size_px == 9
    assert contract.halo_px == 32


@pytest.mark.parametrize(
    "state",
    [
        {},
        {
            "conv_first.weight": torch.zeros(4, 3, 3, 3),
            "layers.0.overlap.norm1.weight": torch.zeros(4),
        },
        _random(KINDS[0]).state_dict() | {"conv_first.weight": torch.zeros(12, 1, 3, 3)},
        _random(KINDS[0]).state_dict()
        | {"layers.0.overlap.relative_position_bias_table": torch.zeros(48, 3)},
        _random(KINDS[0]).state_dict() | {"upsample.0.weight": torch.zeros(64)},
    ],
)
def test_refuses_state_dicts_of_other_networks(state):
    assert ARCHITECTURE.translate(state) is None


@pytest.mark.parametrize(
    "fields",
    [
        {"scale": 5},
        {"depths": (2,)},
        {"num_heads": (7,) * 6},
        {"compress_ratio": 181},
        {"squeeze_factor": 0},
        {"overlap_ratio": 0.3125},
        {"img_range": 0.0},
    ],
)
def test_refuses_a_configuration_out_of_range(fields):
    with pytest.raises(ConfigError):
        HATConfig(**fields)
