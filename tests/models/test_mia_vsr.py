"""MIA-VSR without masks; `test_mia_vsr_masks.py` has the others."""

from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.chain_networks import TINY, small_clip, small_network
from helpers.clip_parity import assert_clip_as_recorded, assert_recognized
from helpers.image_parity import published_keys
from tubelet.errors import ConfigError
from tubelet.layers.inference import prepare_for_inference, use_backend
from tubelet.models.mia_vsr import ARCHITECTURE, MIAVSR, MIAVSRConfig
from tubelet.zoo.checkpoint import open_checkpoint


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_gives_the_recorded_output(recordings: Path, layout: torch.memory_format) -> None:
    assert_clip_as_recorded(recordings, "miavsr_nomask_A", layout, use_mask=False)


def test_recognizes_the_published_files(recordings: Path) -> None:
    assert_recognized(recordings, "miavsr_reds", ARCHITECTURE, MIAVSRConfig(), 16_596_719)


def test_infers_the_configuration_it_was_built_with() -> None:
    config = MIAVSRConfig(**{**TINY, "window": 6, "mlp_ratio": 1.5})
    opened = open_checkpoint(MIAVSR(config).state_dict())
    assert opened.architecture is ARCHITECTURE
    assert opened.config == config


def test_leaves_files_of_other_networks_alone(recordings: Path) -> None:
    state = published_keys(recordings, "miavsr_reds")
    unmasked = {n: x for n, x in state.items() if ".predmask." not in n}
    assert ARCHITECTURE.translate(unmasked) is None
    assert ARCHITECTURE.translate({**state, "another.weight": torch.zeros(1)}) is None
    assert ARCHITECTURE.translate(published_keys(recordings, "psrt_recurrent_reds")) is None
    assert ARCHITECTURE.translate({}) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"channels": 64, "num_heads": (2, 2)}, "channels=64 is not possible"),
        ({"channels": 3, "num_heads": (1, 3)}, "channels=3 is not possible"),
        ({"num_heads": (3, 2)}, "must divide channels=8"),
        ({"window": 1}, "window=1 must be at least 2"),
        ({"mid_channels": 0}, "mid_channels=0 must be at least 1"),
        ({"mlp_ratio": 0.0}, "mlp_ratio=0.0 must be greater than 0"),
        ({"drop_path": -0.1}, "drop_path=-0.1 must be at least 0 and below 1"),
    ],
)
def test_rejects_impossible_settings(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MIAVSRConfig(**{**TINY, **changes})


def test_equals_the_plain_formulation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    from plain.chain import plain_chain

    network, lq = small_network(ARCHITECTURE, use_mask=False), small_clip(size=(11, 16))
    with torch.no_grad():
        expected = plain_chain(network, lq)
        torch.testing.assert_close(network(lq), expected, rtol=0, atol=1e-10)
        with use_backend(network, "auto"):
            torch.testing.assert_close(network(lq), expected, rtol=0, atol=1e-10)
        torch.testing.assert_close(network(lq[1:]), expected[1:], rtol=0, atol=1e-10)
        fast = prepare_for_inference(network.float().to(memory_format=torch.channels_last))
        tolerance = 1e-4 * float(expected.std())
        torch.testing.assert_close(fast(lq.float()), expected.float(), rtol=0, atol=tolerance)


def test_every_used_parameter_learns() -> None:
    """SpyNet gives positions that are rounded to pixels, and so has no gradient."""
    network = small_network(ARCHITECTURE, use_mask=False, drop_path=0.1)
    network(small_clip()).square().sum().backward()
    dead = {n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()}
    without_gradient = ("unused.", "spynet.", "mask_predictor")
    assert dead == {
        name
        for name, _ in network.named_parameters()
        if any(part in name for part in without_gradient)
    }


@pytest.mark.parametrize("size", [(1, 1), (7, 9)])
@pytest.mark.parametrize("frames", [1, 2])
def test_short_clips_of_odd_size(frames: int, size: tuple[int, int]) -> None:
    lq = small_clip(batch=1, frames=frames, size=size)
    with torch.no_grad():
        sr = small_network(ARCHITECTURE, use_mask=False)(lq)
    assert sr.shape == (1, frames, 3, 4 * size[0], 4 * size[1])
    assert sr.isfinite().all()
