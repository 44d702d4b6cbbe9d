import pytest
import torch
from torch import nn

from helpers.zoo_configs import TINY, architecture_of, gradients, tiny_frames, tiny_network
from tubelet.training.activation_checkpointing import activation_checkpointing, find_trunks

QUICK = ("EDSR", "EDVR", "FRVSR", "OVSR", "RRDBNet", "RRN", "RSDN", "SESR", "SwinIR", "TDAN")


def _input(name: str) -> torch.Tensor:
    return torch.rand(1, tiny_frames(name), 3, 16, 16)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in sorted(TINY)],
)
def test_no_number_changes(name):
    torch.manual_seed(0)
    network = tiny_network(name).train()
    for parameter in network.parameters():  # some begin at zero, which would hide errors
        nn.init.normal_(parameter, std=0.1)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    lq = _input(name)
    sr = network(lq)
    weights = torch.linspace(0, 1, sr.numel()).view_as(sr)
    expected = gradients(network, (sr * weights).sum())
    network.load_state_dict(before)
    with activation_checkpointing(network):
        again = network(lq)
    got = gradients(network, (again * weights).sum())
    assert torch.equal(again, sr)
    assert got.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(
            got[key], value, rtol=0, atol=1e-6 * max(1.0, value.abs().max().item())
        )


def test_less_is_kept():
    network = architecture_of("EDSR").build(TINY["EDSR"])

    def kept() -> int:
        sizes: list[int] = []
        pack = torch.autograd.graph.saved_tensors_hooks(
            lambda x: sizes.append(x.numel()) or x, lambda x: x
        )
        with pack:
            network(_input("EDSR"))
        return sum(sizes)

    everything = kept()
    with activation_checkpointing(network):
        assert kept() < everything
    assert kept() == everything  # outside, the network is as it was


def test_batch_statistics_are_counted_once():
    assert find_trunks(architecture_of("DUF").build(TINY["DUF"])) == []


def test_a_trunk_is_the_outermost_sequence_of_blocks():
    def layers() -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(3, 3, 3), nn.ReLU())

    trunk, pair = nn.Sequential(layers(), layers()), nn.ModuleList([layers(), layers()])
    model = nn.ModuleDict(
        {"head": layers(), "trunk": trunk, "pair": pair, "inner": nn.ModuleDict({"trunk": trunk})}
    )
    assert find_trunks(model) == [trunk, pair[0], pair[1], trunk]
    with activation_checkpointing(model):
        assert "forward" in vars(trunk)
    assert "forward" not in vars(trunk)
