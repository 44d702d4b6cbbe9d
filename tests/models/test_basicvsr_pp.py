from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.clip_parity import assert_clip_as_recorded, assert_recognized
from helpers.image_parity import assert_every_parameter_learns, published_keys
from tubelet.errors import ConfigError
from tubelet.layers.store import FeatureLimits, FeatureStore, Key
from tubelet.models.basicvsr_pp import ARCHITECTURE, BasicVSRPlusPlus, BasicVSRPlusPlusConfig
from tubelet.ops import backward_warp


def _seeded(**changes: Any) -> BasicVSRPlusPlus:
    """A tiny network whose alignment moves: its last offset convolution starts at zero."""
    torch.manual_seed(0)
    network = BasicVSRPlusPlus(
        BasicVSRPlusPlusConfig(**{"channels": 4, "num_blocks": 1, "groups": 2, **changes})
    )
    for align in network.deform_align.values():
        torch.nn.init.normal_(align.conv_offset[-1].weight, std=0.1)  # type: ignore[index,union-attr]
    return network.eval()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("case", ["basicvsrpp_A", "basicvsrpp_A_hr", "basicvsrpp_mmagic_A"])
def test_recorded_outputs(recordings: Path, case: str, layout: torch.memory_format) -> None:
    assert_clip_as_recorded(recordings, case, layout)


def test_recorded_output_of_a_mirrored_clip(recordings: Path) -> None:
    assert_clip_as_recorded(
        recordings, "basicvsrpp_mmagic_A_mirror", prepare=lambda lq: torch.cat([lq, lq.flip(1)], 1)
    )


def test_recorded_output_of_two_frames(recordings: Path) -> None:
    assert_clip_as_recorded(recordings, "basicvsrpp_mmagic_A_short", max_residue_magnitude=5)


@pytest.mark.parametrize(
    ("file", "config", "parameters"),
    [
        ("basicsr_basicvsrpp_64_7", BasicVSRPlusPlusConfig(), 7_322_927),
        ("mmagic_basicvsrpp_c64n7", BasicVSRPlusPlusConfig(), 7_322_927),
        (
            "basicsr_basicvsrpp_128_25",
            BasicVSRPlusPlusConfig(channels=128, num_blocks=25),
            43_780_463,
        ),
        (
            "mmagic_basicvsrpp_c128n25",
            BasicVSRPlusPlusConfig(channels=128, num_blocks=25),
            43_780_463,
        ),
    ],
)
def test_recognizes_published_files(
    recordings: Path, file: str, config: BasicVSRPlusPlusConfig, parameters: int
) -> None:
    assert_recognized(recordings, file, ARCHITECTURE, config, parameters)


def test_infers_what_names_and_shapes_tell() -> None:
    config = BasicVSRPlusPlusConfig(channels=12, num_blocks=3, groups=4, input="full")
    state = ARCHITECTURE.translate(BasicVSRPlusPlus(config).state_dict())
    assert state is not None
    assert ARCHITECTURE.infer(state) == config
    contract = ARCHITECTURE.contract(config)
    assert contract is not None
    assert (contract.scale, contract.size_multiple) == (1, 4)


def test_leaves_damaged_files_alone(recordings: Path) -> None:
    state = published_keys(recordings, "basicsr_basicvsrpp_64_7")
    assert (
        ARCHITECTURE.translate({n: v for n, v in state.items() if not n.startswith("upconv1")})
        is None
    )
    assert ARCHITECTURE.translate({**state, "another.weight": torch.zeros(1)}) is None
    assert ARCHITECTURE.translate({}) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"channels": 0}, "channels=0 must be at least 1"),
        ({"num_blocks": 0}, "num_blocks=0 must be at least 1"),
        ({"groups": 0}, "groups=0 must be at least 2"),
        ({"groups": 3}, "groups=3 must be even"),
        ({"channels": 3, "groups": 4}, "groups=4 must divide twice the channels=3"),
    ],
)
def test_rejects_impossible_shapes(changes: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        BasicVSRPlusPlusConfig(**changes)


@pytest.mark.parametrize("kind", ["low", "full"])
def test_gradients_reach_every_parameter(kind: str) -> None:
    lq = torch.rand(1, 3, 3, 12, 16) if kind == "low" else torch.rand(1, 3, 3, 32, 36)
    assert_every_parameter_learns(_seeded(input=kind), lq)


def _plainly(net: BasicVSRPlusPlus, lq: Tensor) -> Tensor:
    """Equations in the order of the paper: all flows first, all features kept, nothing in place."""
    frames, length = lq.unbind(1), lq.shape[1]
    feats = [[net.feat_extract(frame)] for frame in frames]
    for sweep in ("backward_1", "forward_1", "backward_2", "forward_2"):
        order = list(range(length)) if "forward" in sweep else list(range(length))[::-1]
        made: list[Tensor] = []
        flows = [net.spynet(frames[t], frames[before]) for before, t in pairwise(order)]
        for i, t in enumerate(order):
            zero = torch.zeros_like(feats[t][0])
            aligned = zero
            if i > 0:
                flow_1, last = flows[i - 1], made[i - 1]
                older, flow_2 = zero, torch.zeros_like(flow_1)
                if i > 1:
                    older, flow_2 = made[i - 2], flow_1 + backward_warp(flows[i - 2], flow_1)
                guide = [backward_warp(last, flow_1), feats[t][0], backward_warp(older, flow_2)]
                aligned = net.deform_align[sweep](
                    torch.cat([last, older], 1), torch.cat(guide, 1), flow_1, flow_2
                )
            made.append(aligned + net.backbone[sweep](torch.cat([*feats[t], aligned], 1)))
        for t, feat in zip(order, made, strict=True):
            feats[t].append(feat)
    return torch.stack([net._reconstruct(feats[t], frame) for t, frame in enumerate(frames)], 1)


def test_equals_the_equations_written_plainly() -> None:
    net, lq = _seeded(), torch.rand(2, 5, 3, 20, 21)
    with torch.no_grad():
        torch.testing.assert_close(net(lq), _plainly(net, lq), rtol=0, atol=1e-6)


def test_each_flow_and_feature_is_computed_once() -> None:
    net, lq = _seeded(), torch.rand(1, 6, 3, 8, 9)
    calls: dict[str, int] = {"flow": 0, "feature": 0}

    def count(name: str, module: torch.nn.Module) -> None:
        module.register_forward_hook(lambda *_: calls.update({name: calls[name] + 1}))

    count("flow", net.spynet)
    count("feature", net.feat_extract)
    with torch.no_grad():
        net(lq)
    assert calls == {"flow": 2 * 5, "feature": 6}


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_spilled_features_change_no_bit(layout: torch.memory_format) -> None:
    net, lq = _seeded().to(memory_format=layout), torch.rand(2, 5, 3, 12, 13)  # pyright: ignore[reportCallIssue]
    with torch.no_grad():
        kept = net(lq)
        for host_bytes in (None, 20_000, 0):
            store = FeatureStore(FeatureLimits(host_bytes=host_bytes))
            assert torch.equal(torch.stack(list(net.restore(lq, store=store)), 1), kept)


def test_frames_come_one_by_one_and_leave_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    net, lq = _seeded(), torch.rand(1, 4, 3, 8, 8)
    held: list[int] = []
    pop = FeatureStore.pop

    def watched(store: FeatureStore, frame: Key) -> list[Tensor]:
        feats = pop(store, frame)
        if isinstance(frame, int):
            held.append(len(store))
        return feats

    monkeypatch.setattr(FeatureStore, "pop", watched)
    with torch.no_grad():
        frames = list(net.restore(lq))
        # Frames to come; and flows to the last frame, from this one, those to come and the one before.
        assert held == [3 + 3, 2 + 3, 1 + 3, 0 + 2]
        assert torch.equal(torch.stack(frames, 1), net(lq))


def test_training_and_inference_agree() -> None:
    net, lq = _seeded(), torch.rand(1, 3, 3, 18, 17)
    with torch.no_grad():
        sr = net(lq)
    assert net(lq).requires_grad
    torch.testing.assert_close(net(lq), sr, rtol=0, atol=1e-6)


@pytest.mark.parametrize("frames", [1, 2])
def test_short_clips_of_odd_size(frames: int) -> None:
    with torch.no_grad():
        assert _seeded()(torch.rand(1, frames, 3, 7, 9)).shape == (1, frames, 3, 28, 36)
        assert _seeded(input="full")(torch.rand(1, frames, 3, 12, 8)).shape == (1, frames, 3, 12, 8)


def test_the_clips_of_a_batch_do_not_meet() -> None:
    net, lq = _seeded(), torch.rand(2, 3, 3, 17, 20)
    with torch.no_grad():
        torch.testing.assert_close(net(lq)[1:], net(lq[1:]), rtol=0, atol=1e-5)
