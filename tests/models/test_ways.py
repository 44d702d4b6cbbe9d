import pytest
import torch
from torch import Tensor

from tiny_networks import TINY, tiny_frames, tiny_network
from tubelet.layers import convolution
from tubelet.layers.convolution import Way, convolving


@pytest.mark.parametrize("name", TINY)
def test_pictures_are_the_same_whichever_way_convolutions_take(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolution, "_LEAST_CHANNELS", 0)
    torch.manual_seed(0)
    network = tiny_network(name).eval().to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    lq = torch.rand(1, tiny_frames(name), 3, 64, 64)

    def run(way: Way) -> Tensor:
        with torch.no_grad(), convolving(way):
            return network(lq)

    expected = run("as written")
    for way in ("fast", "as large"):
        torch.testing.assert_close(run(way), expected, rtol=0, atol=1e-5)
