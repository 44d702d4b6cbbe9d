import torch
from torch.nn import functional

from tubelet.layers.residual import ResidualBlock, ResidualTrunk


def test_block_adds_its_input_and_leaves_it_alone() -> None:
    block = ResidualBlock(4)
    x = torch.randn(2, 4, 5, 6)
    before = x.clone()
    expected = x + functional.conv2d(
        functional.conv2d(x, block.conv1.weight, block.conv1.bias, padding=1).clamp(min=0),
        block.conv2.weight,
        block.conv2.bias,
        padding=1,
    )
    torch.testing.assert_close(block(x), expected)
    assert torch.equal(x, before)


def test_trunk_without_blocks_is_a_convolution_and_its_activation() -> None:
    trunk = ResidualTrunk(3, 8, 0)
    x = torch.randn(1, 3, 5, 6)
    conv = trunk.main[0]
    expected = functional.leaky_relu(functional.conv2d(x, conv.weight, conv.bias, padding=1), 0.1)
    torch.testing.assert_close(trunk(x), expected)


def test_gradients_through_the_activations_in_place() -> None:
    trunk = ResidualTrunk(3, 4, 2).double()
    x = torch.randn(
        1,
        3,
        4,
        5,
        dtype=torch.float64,
        requires_grad=True,
    )
    assert torch.autograd.gradcheck(trunk, (x,))
