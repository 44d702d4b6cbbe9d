import pytest
import torch

from helpers.small_flow import replace_spynets
from helpers.zoo_configs import TINY
from tubelet.errors import ConfigError
from tubelet.layers.recurrence import Edge
from tubelet.losses import l1
from tubelet.models.basicvsr import BasicVSR
from tubelet.models.realbasicvsr import RealBasicVSR
from tubelet.training.restoration import RestorationLoss


def _network() -> RealBasicVSR:
    torch.manual_seed(0)
    network = RealBasicVSR(TINY["RealBasicVSR"])
    replace_spynets(network)
    return network


def test_cleaned_frames_are_compared_with_small_ground_truth() -> None:
    network = _network()
    lq, gt = torch.rand(2, 2, 3, 8, 8), torch.rand(2, 2, 3, 32, 32)
    losses = RestorationLoss(pixel=l1, cleaning_weight=0.5)(network, lq, gt)
    small = gt.unflatten(-1, (-1, 4)).unflatten(-3, (-1, 4)).mean((-1, -3))
    torch.testing.assert_close(losses["pixel"], l1(network(lq), gt))
    torch.testing.assert_close(losses["cleaning"], 0.5 * l1(network.clean(lq), small))
    assert RestorationLoss(pixel=l1)(network, lq, gt).keys() == {"pixel"}


def test_frames_of_edges_are_cleaned_too() -> None:
    network = _network()
    video, gt = torch.rand(2, 4, 3, 8, 8), torch.rand(2, 2, 3, 32, 32)
    before = Edge((video[:, 0],), {"forward": (torch.rand(2, 8, 8, 8),)}, 0)
    after = Edge((video[:, 3],), {"backward": (torch.rand(2, 8, 8, 8),)}, 3)
    loss = RestorationLoss(pixel=l1, cleaning_weight=1.0)
    for edges in ((before, after), (Edge(), after), (before, Edge())):
        expected = l1(network(video[:, 1:3], *edges), gt)
        losses = loss(network, video[:, 1:3], gt, *edges)
        torch.testing.assert_close(losses["pixel"], expected)
        alone = loss(network, video[:, 1:3], gt)
        assert not torch.allclose(alone["pixel"], expected, rtol=0, atol=1e-7)


def test_a_network_that_cleans_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"BasicVSR has no method clean"):
        RestorationLoss(pixel=l1, cleaning_weight=1.0)(
            BasicVSR(TINY["BasicVSR"]), torch.rand(1, 1, 3, 8, 8), torch.rand(1, 1, 3, 32, 32)
        )
