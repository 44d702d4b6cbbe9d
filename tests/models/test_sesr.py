import pytest
import torch
from torch.nn import functional

from helpers.image_parity import assert_every_parameter_learns, listed_state, load
from tubelet.errors import ConfigError
from tubelet.models.sesr import ARCHITECTURE, SESR, LinearBlock, SESRConfig
from tubelet.ops.resize import imresize

TINY = SESRConfig(scale=2, channels=4, num_blocks=2, expanded_channels=8)


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("side", [3, 5])
def test_block_equals_its_two_convolutions(side, skip):
    torch.manual_seed(0)
    block = LinearBlock(4, 4, side, 32, skip=skip)
    x = torch.rand(2, 4, 9, 8)
    expected = block.narrow(block.wide(x)) + (x if skip else 0)
    torch.testing.assert_close(block(x), expected)
    torch.testing.assert_close(block.collapse()(x), expected)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_collapsed_network_gives_the_same(scale):
    torch.manual_seed(0)
    model = SESR(SESRConfig(scale=scale, channels=4, num_blocks=2, expanded_channels=8))
    lq = torch.rand(1, 2, 3, 9, 7)
    with torch.no_grad():
        trained = model(lq)
        collapsed = model.collapse()
        assert trained.shape == (1, 2, 3, 9 * scale, 7 * scale)
        torch.testing.assert_close(collapsed(lq), trained)
    assert not any(isinstance(module, LinearBlock) for module in collapsed.modules())


def test_collapsed_network_has_the_published_number_of_parameters():
    model = SESR(SESRConfig(scale=2, channels=16, num_blocks=5)).collapse()
    weights = sum(value.numel() for value in model.parameters() if value.ndim == 4)
    assert weights == 13_520  # Table 1: SESR-M5 ×2, 13.52K


@pytest.mark.parametrize("p", [0, 8])
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_infers_the_configuration_it_was_built_with(scale, p):
    config = SESRConfig(scale=scale, channels=4, num_blocks=3, expanded_channels=p)
    assert load(ARCHITECTURE, SESR(config).state_dict()).config == config


def test_claims_no_published_file(recordings):
    assert not [
        p
        for p in (recordings / "keys").glob("*.txt")
        if ARCHITECTURE.translate(listed_state(p)) is not None
    ]


@pytest.mark.parametrize("state", [{}, {"first.weight": torch.zeros(4, 1, 5, 5)}])
def test_refuses_state_dicts_of_other_names(state):
    assert ARCHITECTURE.translate(state) is None


def test_without_a_residual_luma_is_nearest_and_color_bicubic():
    model = SESR(TINY)
    for value in model.last.parameters():
        torch.nn.init.zeros_(value)
    lq = torch.rand(1, 1, 3, 9, 7)
    luma = torch.tensor([65.481, 128.553, 24.966]).view(3, 1, 1) / 255
    sr = model(lq)[0]
    bicubic = imresize(lq[0], 2)
    nearest = functional.interpolate(lq[0], scale_factor=2, mode="nearest")
    torch.testing.assert_close((sr * luma).sum(1), (nearest * luma).sum(1), rtol=0, atol=2e-6)
    torch.testing.assert_close(
        sr[:, 0] - sr[:, 2], bicubic[:, 0] - bicubic[:, 2], rtol=0, atol=2e-6
    )


def test_every_parameter_learns():
    torch.manual_seed(0)
    assert_every_parameter_learns(SESR(TINY), torch.rand(1, 2, 3, 9, 7))


def test_sees_no_further_than_the_halo():
    torch.manual_seed(0)
    halo = ARCHITECTURE.contract(TINY).halo_px
    lq = torch.rand(1, 1, 3, 25, 25, requires_grad=True)
    SESR(TINY)(lq)[..., 24:26].square().sum().backward()
    columns = lq.grad.abs().sum((0, 1, 2, 3)).nonzero().flatten()
    assert (columns.min(), columns.max()) == (12 - halo, 12 + halo)


@pytest.mark.parametrize(
    "fields", [{"scale": 5}, {"channels": 0}, {"num_blocks": -1}, {"expanded_channels": -1}]
)
def test_refuses_a_configuration_out_of_range(fields):
    with pytest.raises(ConfigError):
        SESRConfig(**fields)
