from torch import nn

from tubelet.layers.frozen import FrozenModel, all_modules, all_parameters, all_tensors


class Above(nn.Module):
    """A network that holds another one twice."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.own = nn.Conv2d(3, 3, 1)
        self.base = FrozenModel(base)
        self.again = FrozenModel(base)


def test_a_frozen_network_is_no_part_of_the_one_above():
    base = nn.BatchNorm2d(3).train()
    network = Above(base)
    assert not base.training
    assert not any(parameter.requires_grad for parameter in base.parameters())
    assert set(network.state_dict()) == {"own.weight", "own.bias"}
    assert [name for name, _ in network.named_parameters()] == ["own.weight", "own.bias"]
    network.train()
    assert not base.training


def test_all_finds_what_lies_below_at_any_depth():
    below = nn.BatchNorm2d(3)
    middle = Above(below)
    network = nn.Sequential(Above(middle))
    assert {type(module) for module in all_modules(network)} >= {
        nn.Sequential,
        Above,
        nn.BatchNorm2d,
    }
    expected = [*network[0].own.parameters(), *middle.own.parameters(), *below.parameters()]
    assert {id(p) for p in all_parameters(network)} == {id(p) for p in expected}
    assert len(list(all_parameters(network))) == len(expected)
    assert any(tensor is below.running_mean for tensor in all_tensors(network))
