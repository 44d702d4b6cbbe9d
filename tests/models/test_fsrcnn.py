import pytest
import torch

from helpers.image_parity import (
    assert_as_recorded,
    assert_every_parameter_learns,
    listed_state,
    load,
)
from tubelet.errors import ConfigError
from tubelet.models.fsrcnn import ARCHITECTURE, FSRCNN, FSRCNNConfig
from tubelet.ops.resize import imresize

TINY = FSRCNNConfig(scale=2, channels=6, shrunk_channels=3, num_blocks=1)


def test_gives_the_recorded_output(recordings):
    assert_as_recorded(recordings, "fsrcnn_x4_A", ARCHITECTURE)


def test_gives_the_recorded_output_at_a_scale_that_files_do_not_store(recordings):
    assert_as_recorded(recordings, "fsrcnn_x3_A", ARCHITECTURE, scale=3)


def test_claims_no_other_published_file(recordings):
    assert not [
        p
        for p in (recordings / "keys").glob("*.txt")
        if ARCHITECTURE.translate(listed_state(p)) is not None
    ]


@pytest.mark.parametrize("channels", [1, 3])
def test_infers_the_configuration_it_was_built_with(channels):
    config = FSRCNNConfig(image_channels=channels, channels=8, shrunk_channels=4, num_blocks=3)
    assert load(ARCHITECTURE, FSRCNN(config).state_dict()).config == config


@pytest.mark.parametrize("state", [{}, {"first_part.0.weight": torch.zeros(4, 1, 5, 5)}])
def test_refuses_state_dicts_of_other_names(state):
    assert ARCHITECTURE.translate(state) is None


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_rgb_gets_the_luma_of_the_network_and_bicubic_color(scale):
    torch.manual_seed(0)
    model = FSRCNN(FSRCNNConfig(scale=scale, channels=6, shrunk_channels=3, num_blocks=1))
    lq = torch.rand(2, 2, 3, 9, 7)
    to_ycc = (
        torch.tensor(
            [[65.481, 128.553, 24.966], [-37.797, -74.203, 112.0], [112.0, -93.786, -18.214]]
        )
        / 255
    )
    offset = torch.tensor([16, 128, 128]).view(3, 1, 1) / 255
    with torch.no_grad():
        sr = model(lq)
        lq_ycc = torch.einsum("oc,btchw->btohw", to_ycc, lq) + offset
        expected = torch.cat([model(lq_ycc[:, :, :1]), imresize(lq_ycc[:, :, 1:], scale)], 2)
    ycc = torch.einsum("oc,btchw->btohw", to_ycc, sr) + offset
    torch.testing.assert_close(ycc, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("channels", [1, 3])
def test_every_parameter_learns(channels):
    torch.manual_seed(0)
    model = FSRCNN(
        FSRCNNConfig(scale=2, image_channels=channels, channels=6, shrunk_channels=3, num_blocks=1)
    )
    assert_every_parameter_learns(model, torch.rand(1, 2, 3, 9, 7))


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_sees_no_further_than_the_halo(scale):
    torch.manual_seed(0)
    config = FSRCNNConfig(scale=scale, channels=6, shrunk_channels=3, num_blocks=1)
    halo = ARCHITECTURE.contract(config).halo_px
    lq = torch.rand(1, 1, 3, 25, 25, requires_grad=True)
    FSRCNN(config)(lq)[..., 12 * scale : 13 * scale].square().sum().backward()
    columns = lq.grad.abs().sum((0, 1, 2, 3)).nonzero().flatten()
    assert columns.min() >= 12 - halo
    assert columns.max() <= 12 + halo
    # The halo is not larger than necessary.
    assert columns.numel() >= 2 * halo


@pytest.mark.parametrize(
    "fields", [{"scale": 5}, {"image_channels": 2}, {"channels": 0}, {"num_blocks": -1}]
)
def test_refuses_a_configuration_out_of_range(fields):
    with pytest.raises(ConfigError):
        FSRCNNConfig(**fields)
