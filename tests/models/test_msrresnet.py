import pytest
import torch

from helpers.image_parity import (
    assert_as_recorded,
    assert_every_parameter_learns,
    listed_state,
    load,
)
from tubelet.errors import ConfigError
from tubelet.models import edsr
from tubelet.models.msrresnet import ARCHITECTURE, MSRResNet, MSRResNetConfig


def test_gives_the_recorded_output(recordings):
    assert_as_recorded(recordings, "msrresnet_A", ARCHITECTURE)


def test_claims_no_other_published_file(recordings):
    assert not [
        p
        for p in (recordings / "keys").glob("*.txt")
        if ARCHITECTURE.translate(listed_state(p)) is not None
    ]


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_infers_the_configuration_it_was_built_with(scale):
    config = MSRResNetConfig(scale=scale, channels=4, num_blocks=3)
    model = load(ARCHITECTURE, MSRResNet(config).state_dict())
    assert model.config == config
    assert edsr.ARCHITECTURE.translate(model.state_dict()) is None
    assert model(torch.rand(1, 1, 3, 5, 6)).shape == (1, 1, 3, 5 * scale, 6 * scale)


@pytest.mark.parametrize("state", [{}, {"conv_first.weight": torch.zeros(4, 3, 3, 3)}])
def test_refuses_state_dicts_of_other_names(state):
    assert ARCHITECTURE.translate(state) is None


def test_every_parameter_learns():
    torch.manual_seed(0)
    assert_every_parameter_learns(
        MSRResNet(MSRResNetConfig(channels=4, num_blocks=2)), torch.rand(1, 2, 3, 9, 7)
    )


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_sees_no_further_than_the_halo(scale):
    torch.manual_seed(0)
    config = MSRResNetConfig(scale=scale, channels=4, num_blocks=2)
    halo = ARCHITECTURE.contract(config).halo_px
    lq = torch.rand(1, 1, 3, 25, 25, requires_grad=True)
    MSRResNet(config)(lq)[..., 12 * scale : 13 * scale].square().sum().backward()
    columns = lq.grad.abs().sum((0, 1, 2, 3)).nonzero().flatten()
    assert (columns.min(), columns.max()) == (12 - halo, 12 + halo)


@pytest.mark.parametrize("fields", [{"scale": 5}, {"channels": 0}, {"num_blocks": -1}])
def test_refuses_a_configuration_out_of_range(fields):
    with pytest.raises(ConfigError):
        MSRResNetConfig(**fields)
