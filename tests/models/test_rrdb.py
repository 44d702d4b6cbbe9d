import pytest
import torch

from helpers.image_parity import (
    assert_as_recorded,
    assert_every_parameter_learns,
    listed_state,
    load,
)
from tubelet.errors import ConfigError
from tubelet.models.rrdb import ARCHITECTURE, RRDBConfig, RRDBNet

TINY = RRDBConfig(channels=4, num_blocks=2, growth_channels=2)


def _first_release(state, blocks, doublings):
    """Rename a state dict to the names of ESRGAN's first release."""
    table = {"conv_first": "model.0", "conv_body": f"model.1.sub.{blocks}"}
    # Each doubling is nearest, convolution, activation, from index 2 on.
    for i in range(doublings):
        table[f"conv_up{i + 1}"] = f"model.{3 + 3 * i}"
    table["conv_hr"] = f"model.{2 + 3 * doublings}"
    table["conv_last"] = f"model.{4 + 3 * doublings}"
    renamed = {}
    for name, value in state.items():
        layer, _, kind = name.rpartition(".")
        block_layer = layer.replace("body.", "model.1.sub.").replace("rdb", "RDB") + ".0"
        renamed[f"{table.get(layer, block_layer)}.{kind}"] = value
    return renamed


@pytest.mark.parametrize(
    "case",
    ["rrdbnet_x4_A", "rrdbnet_x2_A", "rrdbnet_x1_A", "rrdbnet_kair_x4_A", "rrdbnet_kair_x2_A"],
)
def test_gives_the_recorded_output(recordings, case):
    assert_as_recorded(recordings, case, ARCHITECTURE)


@pytest.mark.parametrize(
    ("name", "blocks"), [("basicsr_rrdb_x4", 23), ("basicsr_rrdb_6b_anime", 6)]
)
def test_recognizes_published_files(recordings, name, blocks):
    model = load(ARCHITECTURE, listed_state(recordings / "keys" / f"{name}.txt"))
    assert model.config == RRDBConfig(num_blocks=blocks)


def test_claims_no_other_published_file(recordings):
    lists = sorted((recordings / "keys").glob("*.txt"))
    claimed = [
        path.name for path in lists if ARCHITECTURE.translate(listed_state(path)) is not None
    ]
    assert claimed == ["basicsr_rrdb_6b_anime.txt", "basicsr_rrdb_x4.txt"]


@pytest.mark.parametrize("unshuffle", [1, 2, 4])
def test_infers_the_configuration_it_was_built_with(unshuffle):
    config = RRDBConfig(channels=4, num_blocks=1, growth_channels=2, unshuffle=unshuffle)
    model = load(ARCHITECTURE, RRDBNet(config).state_dict())
    assert model.config == config
    assert ARCHITECTURE.contract(config).scale == 4 // unshuffle
    assert model(torch.rand(1, 1, 3, 8, 4)).shape == (1, 1, 3, 32 // unshuffle, 16 // unshuffle)


@pytest.mark.parametrize("doublings", [0, 1, 2, 3])
def test_names_of_the_first_release_give_the_same(doublings):
    torch.manual_seed(0)
    model = RRDBNet(RRDBConfig(channels=4, num_blocks=2, growth_channels=2, doublings=doublings))
    other = load(ARCHITECTURE, _first_release(model.state_dict(), 2, doublings))
    lq = torch.rand(1, 1, 3, 5, 6)
    assert torch.equal(other(lq), model(lq))


@pytest.mark.parametrize(
    "name",
    ["conv_first.weight", "RRDB_trunk.0.RDB1.conv1.weight", "model.1.sub.0.RDB1.conv1.0.weight"],
)
def test_refuses_state_dicts_of_other_names(name):
    assert ARCHITECTURE.translate({name: torch.zeros(4, 3, 3, 3)}) is None


def test_every_parameter_learns():
    torch.manual_seed(0)
    assert_every_parameter_learns(RRDBNet(TINY), torch.rand(1, 2, 3, 9, 7))


def test_frames_do_not_see_each_other():
    torch.manual_seed(0)
    model = RRDBNet(TINY)
    lq = torch.rand(2, 3, 3, 9, 7)
    torch.testing.assert_close(model(lq)[1, 2], model(lq[1:, 2:])[0, 0])


def test_seams_at_the_halo_are_invisible():
    torch.manual_seed(0)
    config = RRDBConfig(channels=8, num_blocks=23, growth_channels=4)
    model = RRDBNet(config)
    halo = ARCHITECTURE.contract(config).halo_px
    lq = torch.rand(1, 1, 3, 6, 24 + 2 * halo)
    with torch.inference_mode():
        whole = model(lq)
        tile = model(lq[..., : 12 + halo])
    error = (whole[..., :48] - tile[..., :48]).abs().max()
    assert error < 1e-4 * whole.std()


@pytest.mark.parametrize(
    "fields",
    [
        {"channels": 0},
        {"num_blocks": -1},
        {"unshuffle": 3},
        {"doublings": 4},
        {"unshuffle": 4, "doublings": 1},
    ],
)
def test_refuses_a_configuration_out_of_range(fields):
    with pytest.raises(ConfigError):
        RRDBConfig(**fields)
