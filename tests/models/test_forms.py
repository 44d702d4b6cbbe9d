"""Every network gives the same images in its reference form and prepared for inference."""

import pytest
import torch

from helpers.zoo_configs import TINY, tiny_frames, tiny_network
from tubelet.layers import convolution
from tubelet.layers.inference import (
    InferenceBackend,
    SwitchableLayer,
    prepare_for_inference,
    reference_form,
)

BACKENDS: tuple[InferenceBackend, ...] = ("auto", "winograd", "unfused")


@pytest.mark.parametrize("name", TINY)
def test_prepared_networks_give_the_same_images(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolution, "MIN_CHANNELS", 0)  # narrow layers take Winograd's way too
    torch.manual_seed(0)
    network = tiny_network(name).eval().to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    names = list(network.state_dict())
    lq = torch.rand(1, tiny_frames(name), 3, 16, 32)
    with torch.no_grad():
        expected = network(lq)
        for backend in BACKENDS:
            prepared = prepare_for_inference(network, backend)
            assert prepared is network
            torch.testing.assert_close(network(lq), expected, rtol=0, atol=1e-5)
            assert list(network.state_dict()) == names
        assert torch.equal(reference_form(network)(lq), expected)


def test_most_networks_have_layers_to_prepare() -> None:
    """The test above compares something: these networks are known to profit."""
    for name in ("BasicVSR", "DAT", "EDSR", "EDVR", "HAT", "RRDBNet", "RRN", "SwinIR"):
        modules = tiny_network(name).modules()
        assert any(isinstance(module, SwitchableLayer) for module in modules), name
