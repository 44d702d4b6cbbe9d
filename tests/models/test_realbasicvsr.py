from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.clip_parity import assert_clip_as_recorded, assert_recognized
from helpers.image_parity import assert_every_parameter_learns, published_keys
from tubelet.errors import ConfigError
from tubelet.layers.store import FeatureLimits, FeatureStore
from tubelet.models.realbasicvsr import ARCHITECTURE, RealBasicVSR, RealBasicVSRConfig


def _seeded(**changes: Any) -> RealBasicVSR:
    torch.manual_seed(0)
    return RealBasicVSR(
        RealBasicVSRConfig(**{"channels": 4, "num_blocks": 1, "num_cleaning_blocks": 1, **changes})
    ).eval()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_recorded_outputs(recordings: Path, layout: torch.memory_format) -> None:
    assert_clip_as_recorded(recordings, "realbasicvsr_A", layout)


def test_recorded_output_of_three_cleanings(recordings: Path) -> None:
    assert_clip_as_recorded(recordings, "realbasicvsr_A_3clean", dynamic_refine_thres=1)


def test_recognizes_published_files(recordings: Path) -> None:
    assert_recognized(
        recordings, "mmagic_realbasicvsr", ARCHITECTURE, RealBasicVSRConfig(), 6_294_834
    )


def test_infers_what_names_and_shapes_tell() -> None:
    config = RealBasicVSRConfig(channels=8, num_blocks=3, num_cleaning_blocks=2)
    state = ARCHITECTURE.translate(RealBasicVSR(config).state_dict())
    assert state is not None
    assert ARCHITECTURE.infer(state) == config


def test_leaves_other_files_alone(recordings: Path) -> None:
    state = published_keys(recordings, "mmagic_realbasicvsr")
    assert (
        ARCHITECTURE.translate(
            {n: v for n, v in state.items() if not n.startswith("basicvsr.conv_hr")}
        )
        is None
    )
    assert ARCHITECTURE.translate({**state, "fusion.weight": torch.zeros(1)}) is None
    assert ARCHITECTURE.translate({}) is None


def test_rejects_impossible_shapes() -> None:
    with pytest.raises(ConfigError, match="dynamic_refine_thres=-1 must be at least 0"):
        RealBasicVSRConfig(dynamic_refine_thres=-1)


def _halving() -> RealBasicVSR:
    """A network whose cleaning takes half of every value away."""
    net = _seeded(num_cleaning_blocks=0)
    first, last = net.image_cleaning[0].main[0], net.image_cleaning[1]  # type: ignore[index,union-attr]
    for conv, factor in ((first, 1.0), (last, -0.5)):
        for parameter in conv.parameters():
            torch.nn.init.zeros_(parameter)
        for channel in range(3):
            conv.weight.data[channel, channel, 1, 1] = factor
    return net


@pytest.mark.parametrize(("threshold", "times"), [(255, 1), (30, 2), (20, 3), (0, 3)])
def test_cleans_until_the_change_is_below_the_threshold(threshold: float, times: int) -> None:
    net, lq = (
        _halving(),
        torch.full((1, 3, 3, 8, 8), 100 / 255),
    )  # changes of 50, 25 and 12.5 levels
    net.config = RealBasicVSRConfig(dynamic_refine_thres=threshold)
    with torch.no_grad():
        torch.testing.assert_close(net.clean(lq), lq / 2**times)
    torch.testing.assert_close(net.clean(lq), lq / 2**times)


def test_clips_of_a_batch_are_judged_by_themselves() -> None:
    net, lq = _halving(), torch.rand(2, 3, 3, 9, 10)
    lq[1] *= 0.1
    net.config = RealBasicVSRConfig(dynamic_refine_thres=40)
    with torch.no_grad():
        cleaned = net.clean(lq)
        torch.testing.assert_close(cleaned[0], lq[0] / 4)
        torch.testing.assert_close(cleaned[1], lq[1] / 2)


def test_the_input_stays_as_it_is() -> None:
    net, lq = _seeded(dynamic_refine_thres=0), torch.rand(1, 2, 3, 8, 8)
    before = lq.clone()
    with torch.no_grad():
        net(lq)
    assert torch.equal(lq, before)


def test_gradients_reach_every_parameter() -> None:
    assert_every_parameter_learns(_seeded(dynamic_refine_thres=0), torch.rand(1, 3, 3, 12, 13))


def test_spilled_features_change_no_bit() -> None:
    net, lq = _seeded(), torch.rand(2, 5, 3, 12, 13)
    with torch.no_grad():
        kept = net(lq)
        store = FeatureStore(FeatureLimits(host_bytes=10_000))
        assert torch.equal(torch.stack(list(net.restore(lq, store=store)), 1), kept)


def test_training_and_inference_agree() -> None:
    net, lq = _seeded(dynamic_refine_thres=0), torch.rand(1, 3, 3, 18, 17)
    with torch.no_grad():
        sr = net(lq)
        assert torch.equal(torch.stack(list(net.restore(lq)), 1), sr)
    assert net(lq).requires_grad
    torch.testing.assert_close(net(lq), sr, rtol=0, atol=1e-6)


@pytest.mark.parametrize("frames", [1, 2])
def test_short_clips_of_odd_size(frames: int) -> None:
    with torch.no_grad():
        assert _seeded()(torch.rand(1, frames, 3, 7, 9)).shape == (1, frames, 3, 28, 36)
