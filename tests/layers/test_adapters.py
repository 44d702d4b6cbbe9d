import torch
from torch.nn import functional

from tubelet.layers.adapters import Adapter, ConvAdapter, NeighborAdapter
from tubelet.ops.warp import backward_warp


def test_adapters_start_at_nothing():
    x = torch.randn(2, 5, 6)
    assert torch.equal(Adapter(6, 3)(x), torch.zeros_like(x))
    features = torch.randn(2, 6, 4, 4)
    assert torch.equal(ConvAdapter(6, 3)(features), features)
    clip = torch.randn(1, 2, 6, 4, 4)
    flow = torch.randn(1, 1, 2, 4, 4)
    assert torch.equal(NeighborAdapter(6, 3)(clip, flow, flow), clip)


def test_neighbors_are_warped_to_the_frame():
    torch.manual_seed(0)
    adapter = NeighborAdapter(4, 2)
    torch.nn.init.normal_(adapter.up.weight)
    clip = torch.randn(1, 3, 4, 5, 5)
    backward = torch.randn(1, 2, 2, 5, 5)
    forward = torch.randn(1, 2, 2, 5, 5)
    adapted = adapter(clip, backward, forward)
    first, second, third = clip[0, :, None]
    neighbors = {
        0: (first, first, backward_warp(second, forward[:, 0])),
        1: (backward_warp(first, backward[:, 0]), second, backward_warp(third, forward[:, 1])),
        2: (backward_warp(second, backward[:, 1]), third, third),
    }
    for t, frames in neighbors.items():
        x = functional.relu(adapter.down(torch.cat(frames, 1)))
        assert torch.allclose(adapted[:, t], clip[:, t] + adapter.up(x), atol=1e-6)
