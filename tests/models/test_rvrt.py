from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.clip_parity import (
    assert_clip_as_recorded,
    assert_recognized,
    recorded_clip,
    recorded_network,
)
from helpers.image_parity import assert_every_parameter_learns, published_keys, recorded_state
from helpers.recordings import recorded
from tubelet.errors import ConfigError
from tubelet.layers.inference import prepare_for_inference
from tubelet.layers.recurrence import Edge
from tubelet.layers.store import FeatureLimits, FeatureStore, Key
from tubelet.models.rvrt import ARCHITECTURE, RVRT, RVRTConfig
from tubelet.zoo.checkpoint import open_checkpoint

SMALL: dict[str, Any] = {
    "channels": 8,
    "num_blocks": (1, 2, 1),
    "depths": (2, 2, 1),
    "num_heads": (2, 4, 1),
    "window": 4,
    "groups": 4,
    "attention_heads": 4,
}


def _seeded(**changes: Any) -> RVRT:
    """A small network whose alignment moves: its last offset convolution starts at zero."""
    torch.manual_seed(0)
    network = RVRT(RVRTConfig(**{**SMALL, **changes}))
    for name, parameter in network.named_parameters():
        if "conv_offset.5" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return network.eval()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_recorded_outputs(recordings: Path, layout: torch.memory_format) -> None:
    assert_clip_as_recorded(recordings, "rvrt_A", layout)


def test_recorded_outputs_prepared(recordings: Path) -> None:
    description, outputs = recorded(recordings, "rvrt_A")
    network = prepare_for_inference(recorded_network(recordings, "rvrt_A"))
    network = network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    with torch.inference_mode():
        sr = network(recorded_clip(recordings, "rvrt_A"))
    step, tolerance = description["output_step"], 1e-4 * description["output_stats"]["std"]
    torch.testing.assert_close(sr[..., ::step, ::step], outputs[0], rtol=0, atol=tolerance)


def test_recognizes_published_files(recordings: Path) -> None:
    assert_recognized(
        recordings, "rvrt_001_reds_30f", ARCHITECTURE, RVRTConfig(), parameters=10_782_295
    )


def test_infers_what_names_and_shapes_tell(recordings: Path) -> None:
    config = RVRTConfig(**SMALL, mlp_ratio=1.5)
    opened = open_checkpoint(RVRT(config).state_dict())
    assert opened.architecture is ARCHITECTURE
    assert opened.config == config
    description, _ = recorded(recordings, "rvrt_A")
    opened = open_checkpoint(recorded_state(recordings, description), attention_heads=2)
    assert opened.config.attention_heads == 2


def test_leaves_damaged_files_alone(recordings: Path) -> None:
    state = published_keys(recordings, "rvrt_001_reds_30f")
    for part in ("conv_last", "upsampler.5", "feat_extract.main.5.0.residual_group.blocks.0.mlp"):
        kept = {name: value for name, value in state.items() if not name.startswith(part)}
        assert ARCHITECTURE.translate(kept) is None
    assert ARCHITECTURE.translate({**state, "another.weight": torch.zeros(1)}) is None
    first = {"feat_extract.main.1.weight": torch.zeros(144, 4, 1, 3, 3)}
    assert ARCHITECTURE.translate(state | first) is None
    assert ARCHITECTURE.translate({}) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depths": (2, 2)}, r"depths=\(2, 2\) must hold three numbers above 0"),
        ({"num_blocks": (1, 0, 1)}, r"num_blocks=\(1, 0, 1\) must hold three"),
        ({"num_heads": (2, 3, 2)}, r"num_heads=\(2, 3, 2\) must divide channels=8"),
        ({"window": 0}, "window=0 must be at least 1"),
        ({"groups": 5}, "groups=5 must be even"),
        ({"groups": 0}, "groups=0 must be at least 2"),
        ({"attention_heads": 3}, "attention_heads=3 must divide twice the channels=8"),
        ({"groups": 12}, "half the groups=12 must divide it"),
        ({"mlp_ratio": 0.0}, "mlp_ratio=0.0 must be greater than 0"),
    ],
)
def test_rejects_impossible_shapes(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RVRTConfig(**{**SMALL, **changes})


def test_gradients_reach_every_parameter() -> None:
    assert_every_parameter_learns(_seeded(), torch.rand(1, 4, 3, 9, 13))


@pytest.mark.parametrize("frames", [4, 5])
def test_equals_the_published_formulation(frames: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    from plain.rvrt import plain_rvrt

    net, lq = _seeded(), torch.rand(2, frames, 3, 19, 22)
    with torch.no_grad():
        expected = plain_rvrt(net, lq)
        tolerance = 1e-4 * float(expected.std())
        torch.testing.assert_close(net(lq), expected, rtol=0, atol=tolerance)
        prepare_for_inference(net.to(memory_format=torch.channels_last))  # pyright: ignore[reportCallIssue]
        torch.testing.assert_close(net(lq), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("frames", [1, 3])
def test_the_last_frame_of_an_odd_video_is_repeated(frames: int) -> None:
    net, lq = _seeded(), torch.rand(2, frames, 3, 7, 9)
    with torch.no_grad():
        sr = net(lq)
        repeated = net(torch.cat([lq, lq[:, -1:]], 1))
    assert sr.shape == (2, frames, 3, 28, 36)
    torch.testing.assert_close(sr, repeated[:, :frames], rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (33, 2)])
def test_small_sizes(size: tuple[int, int]) -> None:
    height, width = size
    net, lq = _seeded(), torch.rand(1, 3, 3, *size)
    with torch.no_grad():
        expected = net(lq)
        assert expected.shape == (1, 3, 3, 4 * height, 4 * width)
        torch.testing.assert_close(prepare_for_inference(net)(lq), expected, rtol=0, atol=1e-5)


def test_clips_inside_a_video_consist_of_whole_steps() -> None:
    net, lq = _seeded(), torch.rand(1, 3, 3, 5, 6)
    frames, state = (lq[:, 0], lq[:, 1]), torch.zeros(1, 2, 8, 5, 6)
    with pytest.raises(ValueError, match="starts at frame 3, which is odd"):
        net(lq, before=Edge(frames, {"forward_1": (state,)}, 2))
    with pytest.raises(ValueError, match="has 3 frames, which is odd"):
        net(lq, after=Edge(frames, {"backward_1": (state,)}, 3))
    # A window without states can begin and end anywhere.
    with torch.no_grad():
        assert torch.equal(net(lq, Edge(frame_index=2), Edge(frame_index=6)), net(lq))


def test_each_flow_and_feature_is_computed_once() -> None:
    net, lq = _seeded(), torch.rand(1, 6, 3, 8, 9)
    calls = {"flow": 0, "feature": 0, "image": 0}

    def count(name: str, module: torch.nn.Module) -> None:
        module.register_forward_hook(lambda *_: calls.update({name: calls[name] + 1}))

    count("flow", net.spynet)
    count("feature", net.feat_extract)
    count("image", net.reconstruction)
    with torch.no_grad():
        net(lq[:, :5])
    # The flow between the frames of the last step is used in one direction only.
    assert calls == {"flow": 2 * 5, "feature": 3, "image": 5}


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_spilled_features_change_no_bit(layout: torch.memory_format) -> None:
    net, lq = _seeded().to(memory_format=layout), torch.rand(2, 5, 3, 7, 6)  # pyright: ignore[reportCallIssue]
    with torch.no_grad():
        kept = net(lq)
        for host_bytes in (None, 20_000, 0):
            store = FeatureStore(FeatureLimits(host_bytes=host_bytes))
            assert torch.equal(torch.stack(list(net.restore(lq, store=store)), 1), kept)


def test_frames_come_one_by_one_and_leave_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    net, lq = _seeded(), torch.rand(1, 6, 3, 5, 5)
    held: list[int] = []
    pop = FeatureStore.pop

    def watched(store: FeatureStore, frame: Key) -> list[Tensor]:
        feats = pop(store, frame)
        held.append(len(store))
        return feats

    monkeypatch.setattr(FeatureStore, "pop", watched)
    store = FeatureStore()
    with torch.no_grad():
        frames = list(net.restore(lq, store=store))
        assert torch.equal(torch.stack(frames, 1), net(lq))
    # Flows of two steps in each direction, then features of three steps.
    assert held[:7] == [6, 5, 4, 3, 2, 1, 0]
    assert len(store) == 0


def test_training_and_inference_agree() -> None:
    net, lq = _seeded(), torch.rand(1, 4, 3, 11, 10)
    with torch.no_grad():
        sr = prepare_for_inference(net)(lq)
    assert net(lq).requires_grad
    torch.testing.assert_close(net(lq), sr, rtol=0, atol=1e-5)


def test_the_clips_of_a_batch_do_not_meet() -> None:
    net, lq = prepare_for_inference(_seeded()), torch.rand(2, 4, 3, 10, 9)
    with torch.no_grad():
        torch.testing.assert_close(net(lq)[1:], net(lq[1:]), rtol=0, atol=1e-5)


def test_the_backbone_sees_the_order_of_the_frames() -> None:
    trunk = _seeded().backbone["forward_1"]
    x = torch.rand(2, 24, 8, 8)
    with torch.no_grad():
        backward = trunk(x, direction=-1)
        assert (backward - trunk(x)).abs().max() > 1e-4
        torch.testing.assert_close(backward, trunk(x.flip(0)).flip(0), rtol=0, atol=1e-5)
