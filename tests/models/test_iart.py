from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.chain_networks import TINY, small_clip, small_network
from helpers.clip_parity import assert_clip_as_recorded, assert_recognized
from helpers.image_parity import assert_every_parameter_learns, published_keys
from tubelet.errors import ConfigError
from tubelet.layers.inference import prepare_for_inference
from tubelet.models.iart import ARCHITECTURE, IART, IARTConfig
from tubelet.zoo.checkpoint import open_checkpoint


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_gives_the_recorded_output(recordings: Path, layout: torch.memory_format) -> None:
    assert_clip_as_recorded(recordings, "iart_A", layout)


def test_recognizes_the_published_files(recordings: Path) -> None:
    assert_recognized(recordings, "iart_reds", ARCHITECTURE, IARTConfig(), 13_410_503)


def test_infers_the_configuration_it_was_built_with() -> None:
    network = IART(IARTConfig(**TINY)).eval()
    lq = torch.rand(1, 3, 3, 9, 10)
    state = network.state_dict()
    # The codes of the neighbors follow from the number of channels.
    del state["implicit_warp.position_bias"]
    opened = open_checkpoint(state)
    assert opened.architecture is ARCHITECTURE
    assert opened.config == network.config
    with torch.no_grad():
        assert torch.equal(opened.model.eval()(lq), network(lq))


def test_leaves_files_of_other_networks_alone(recordings: Path) -> None:
    state = published_keys(recordings, "iart_reds")
    aligned_by_patches = {n: x for n, x in state.items() if not n.startswith("implicit_warp")}
    assert ARCHITECTURE.translate(aligned_by_patches) is None
    assert ARCHITECTURE.translate({**state, "another.weight": torch.zeros(1)}) is None
    assert ARCHITECTURE.translate({}) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"channels": 10, "num_heads": (2, 5)}, "channels=10 must be a multiple of 4"),
        ({"channels": 64, "num_heads": (2, 2)}, "channels=64 is not possible"),
        ({"num_heads": (3, 2)}, "must divide channels=8"),
        ({"window": 1}, "window=1 must be at least 2"),
    ],
)
def test_rejects_impossible_shapes(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        IARTConfig(**{**TINY, **changes})


@pytest.mark.parametrize("size", [(11, 14), (8, 12)])
def test_equals_the_plain_formulation(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    from plain.chain import plain_chain
    from plain.implicit_alignment import plain_implicit_alignment

    network, lq = small_network(ARCHITECTURE), small_clip(size=size)
    align = plain_implicit_alignment(network.implicit_warp)
    with torch.no_grad():
        expected = plain_chain(network, lq, align=align, second_frame="zeros")
        torch.testing.assert_close(network(lq), expected, rtol=0, atol=1e-10)
        prepare_for_inference(network)
        torch.testing.assert_close(network(lq), expected, rtol=0, atol=1e-10)
        torch.testing.assert_close(network(lq[1:]), expected[1:], rtol=0, atol=1e-10)


def test_gradients_reach_every_used_parameter() -> None:
    network = small_network(ARCHITECTURE, drop_path=0.0)
    del network.unused
    assert_every_parameter_learns(network, small_clip(frames=3))


def test_spynet_learns_from_the_alignment() -> None:
    network = IART(IARTConfig(**TINY))
    network(torch.rand(1, 2, 3, 16, 16)).square().mean().backward()
    gradients = [parameter.grad for parameter in network.spynet.parameters()]
    assert all(gradient is not None and gradient.any() for gradient in gradients)


def test_unused_layers_change_nothing() -> None:
    network, lq = small_network(ARCHITECTURE), small_clip(frames=2)
    with torch.no_grad():
        sr = network(lq)
        for parameter in network.unused.parameters():
            parameter.fill_(torch.nan)
        assert torch.equal(network(lq), sr)


@pytest.mark.parametrize("frames", [1, 2])
def test_short_clips_of_odd_size(frames: int) -> None:
    network, lq = IART(IARTConfig(**TINY)).eval(), torch.rand(1, frames, 3, 7, 9)
    with torch.no_grad():
        assert network(lq).shape == (1, frames, 3, 28, 36)
