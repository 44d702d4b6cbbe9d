from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.clip_parity import assert_clip_as_recorded, assert_recognized
from helpers.image_parity import assert_every_parameter_learns, published_keys
from tubelet.errors import ConfigError
from tubelet.layers.store import FeatureLimits, FeatureStore
from tubelet.models.ovsr import ARCHITECTURE, OVSR, OVSRConfig

KINDS = ("local", "global")


def _seeded(**changes: Any) -> OVSR:
    torch.manual_seed(0)
    shape = {"channels": 4, "num_precursor_blocks": 2, "num_successor_blocks": 1}
    return OVSR(OVSRConfig(**{**shape, **changes})).eval()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("kind", KINDS)
def test_recorded_outputs(recordings: Path, kind: str, layout: torch.memory_format) -> None:
    assert_clip_as_recorded(
        recordings, f"ovsr_{kind}_A", layout, arrange=lambda sr: sr.transpose(1, 2), kind=kind
    )


@pytest.mark.parametrize(("channels", "parameters"), [(80, 7_061_672), (56, 3_480_368)])
def test_recognizes_published_files(recordings: Path, channels: int, parameters: int) -> None:
    assert_recognized(
        recordings, f"govsr_8+4_{channels}", ARCHITECTURE, OVSRConfig(channels=channels), parameters
    )


def test_infers_what_names_and_shapes_tell() -> None:
    config = OVSRConfig(channels=6, num_precursor_blocks=3, num_successor_blocks=2)
    state = ARCHITECTURE.translate(OVSR(config).state_dict())
    assert state is not None
    assert ARCHITECTURE.infer(state) == config


def test_leaves_other_files_alone(recordings: Path) -> None:
    state = published_keys(recordings, "govsr_8+4_56")
    assert ARCHITECTURE.translate({**state, "fusion.weight": torch.zeros(1)}) is None
    assert (
        ARCHITECTURE.translate({**state, "precursor.conv_sup.weight": torch.zeros(56, 12, 3, 3)})
        is None
    )
    assert ARCHITECTURE.translate({}) is None


@pytest.mark.parametrize("changes", [{"kind": "both"}, {"channels": 0}])
def test_rejects_impossible_shapes(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(changes))):
        OVSRConfig(**changes)


def _plainly(net: OVSR, lq: Tensor) -> Tensor:
    """Both passes in full, every result kept."""
    length = lq.shape[1]
    windows = [
        [lq[:, max(t - 1, 0)], lq[:, t], lq[:, min(t + 1, length - 1)]] for t in range(length)
    ]
    zero = lq.new_zeros(lq.shape[0], net.config.channels, *lq.shape[3:])
    before: dict[int, Tensor] = {}
    hidden = zero
    for t in range(length) if net.config.kind == "local" else range(length)[::-1]:
        hidden = before[t] = net.precursor(windows[t], hidden)
    hidden, out = zero, []
    for t in range(length):
        hidden = net.successor(windows[t], [hidden, before[t], before[min(t + 1, length - 1)]])
        out.append(net.successor.upscale(hidden) + net.precursor.upscale(before[t]))
    return torch.stack(out, 1)


@pytest.mark.parametrize("length", [1, 2, 5])
@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_equations_written_plainly(kind: str, length: int) -> None:
    net, lq = _seeded(kind=kind), torch.rand(2, length, 3, 7, 9)
    with torch.no_grad():
        sr = net(lq)
        assert sr.shape == (2, length, 3, 28, 36)
        torch.testing.assert_close(sr, _plainly(net, lq), rtol=0, atol=1e-6)
    assert net(lq).requires_grad
    torch.testing.assert_close(net(lq), sr, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("kind", "most"), [("local", 0), ("global", 5)])
def test_a_local_precursor_keeps_nothing(
    monkeypatch: pytest.MonkeyPatch, kind: str, most: int
) -> None:
    held = [0]
    append = FeatureStore.append

    def watched(store: FeatureStore, frame: int, feat: Tensor) -> None:
        append(store, frame, feat)
        held.append(len(store))

    monkeypatch.setattr(FeatureStore, "append", watched)
    with torch.no_grad():
        _seeded(kind=kind)(torch.rand(1, 5, 3, 4, 4))
    assert max(held) == most


def test_spilled_features_change_no_bit() -> None:
    net, lq = _seeded(), torch.rand(2, 5, 3, 12, 13)
    with torch.no_grad():
        kept = net(lq)
        store = FeatureStore(FeatureLimits(host_bytes=10_000))
        assert torch.equal(torch.stack(list(net.restore(lq, store=store)), 1), kept)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_every_parameter(kind: str) -> None:
    assert_every_parameter_learns(_seeded(kind=kind), torch.rand(1, 3, 3, 6, 7))


def test_the_clips_of_a_batch_do_not_meet() -> None:
    net, lq = _seeded(), torch.rand(2, 3, 3, 7, 8)
    with torch.no_grad():
        torch.testing.assert_close(net(lq)[1:], net(lq[1:]), rtol=0, atol=1e-5)
