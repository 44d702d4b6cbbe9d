import pytest
import torch

from helpers.image_parity import (
    assert_as_recorded,
    assert_every_parameter_learns,
    listed_state,
    load,
)
from tubelet.errors import ConfigError
from tubelet.models.edsr import ARCHITECTURE, EDSR, EDSRConfig


def _authors_names(state, blocks):
    """Rename a state dict to the names of the authors' version."""
    table = {"conv_first": "head.0", "conv_after_body": f"body.{blocks}", "conv_last": "tail.1"}
    for i in range(blocks):
        table |= {f"body.{i}.conv1": f"body.{i}.body.0", f"body.{i}.conv2": f"body.{i}.body.2"}
    table |= {f"upsample.{i}": f"tail.0.{i}" for i in (0, 2)}
    renamed = {
        "sub_mean.weight": torch.eye(3).view(3, 3, 1, 1),
        "sub_mean.bias": torch.zeros(3),
    }
    for name, value in state.items():
        layer, _, kind = name.rpartition(".")
        renamed[f"{table[layer]}.{kind}"] = value
    return renamed


def test_gives_the_recorded_output(recordings):
    assert_as_recorded(recordings, "edsr_A", ARCHITECTURE)


@pytest.mark.parametrize(
    ("name", "config"),
    [("M", EDSRConfig()), ("L", EDSRConfig(channels=256, num_blocks=32, res_scale=0.1))],
)
def test_recognizes_published_files(recordings, name, config):
    model = load(ARCHITECTURE, listed_state(recordings / "keys" / f"basicsr_edsr_{name}_x4.txt"))
    assert model.config == config


def test_claims_no_other_published_file(recordings):
    lists = sorted((recordings / "keys").glob("*.txt"))
    claimed = [
        path.name for path in lists if ARCHITECTURE.translate(listed_state(path)) is not None
    ]
    assert claimed == ["basicsr_edsr_L_x4.txt", "basicsr_edsr_M_x4.txt"]


@pytest.mark.parametrize("scale", [2, 3, 4, 8])
def test_infers_the_configuration_it_was_built_with(scale):
    config = EDSRConfig(scale=scale, channels=4, num_blocks=3)
    model = load(ARCHITECTURE, EDSR(config).state_dict())
    assert model.config == config
    assert model(torch.rand(1, 1, 3, 5, 6)).shape == (1, 1, 3, 5 * scale, 6 * scale)


def test_names_of_the_authors_give_the_same():
    torch.manual_seed(0)
    model = EDSR(EDSRConfig(channels=4, num_blocks=2))
    lq = torch.rand(1, 1, 3, 5, 6)
    other = load(ARCHITECTURE, _authors_names(model.state_dict(), 2))
    assert torch.equal(other(lq), model(lq))


@pytest.mark.parametrize(
    "state", [{}, {"conv_first.weight": torch.zeros(4, 3, 3, 3)}, {"head.0.weight": torch.ones(1)}]
)
def test_refuses_state_dicts_of_other_names(state):
    assert ARCHITECTURE.translate(state) is None


def test_residuals_are_scaled():
    torch.manual_seed(0)
    plain = EDSR(EDSRConfig(channels=4, num_blocks=1))
    lq = torch.rand(1, 1, 3, 5, 6)
    scaled = load(ARCHITECTURE, plain.state_dict(), res_scale=0.0)
    with torch.no_grad():
        plain.body[0].conv2.weight.zero_()
        plain.body[0].conv2.bias.zero_()
    torch.testing.assert_close(scaled(lq), plain(lq))


def test_every_parameter_learns():
    torch.manual_seed(0)
    assert_every_parameter_learns(
        EDSR(EDSRConfig(channels=4, num_blocks=2)), torch.rand(1, 2, 3, 9, 7)
    )


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_sees_no_further_than_the_halo(scale):
    torch.manual_seed(0)
    config = EDSRConfig(scale=scale, channels=4, num_blocks=2)
    halo = ARCHITECTURE.contract(config).halo_px
    lq = torch.rand(1, 1, 3, 25, 25, requires_grad=True)
    EDSR(config)(lq)[..., 12 * scale : 13 * scale].sum().backward()
    columns = lq.grad.abs().sum((0, 1, 2, 3)).nonzero().flatten()
    assert (columns.min(), columns.max()) == (12 - halo, 12 + halo)


@pytest.mark.parametrize(
    "fields", [{"scale": 5}, {"channels": 0}, {"num_blocks": -1}, {"img_range": 0.0}]
)
def test_refuses_a_configuration_out_of_range(fields):
    with pytest.raises(ConfigError):
        EDSRConfig(**fields)
