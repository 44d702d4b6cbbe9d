from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from helpers.clip_parity import assert_clip_as_recorded, assert_recognized
from helpers.image_parity import assert_every_parameter_learns, published_keys
from tubelet.errors import ConfigError
from tubelet.layers.store import FeatureLimits, FeatureStore
from tubelet.models.iconvsr import ARCHITECTURE, IconVSR, IconVSRConfig, keyframes, window_of
from tubelet.ops import backward_warp


def _seeded(**changes: Any) -> IconVSR:
    torch.manual_seed(0)
    network = IconVSR(IconVSRConfig(**{"channels": 4, "num_blocks": 1, "groups": 2, **changes}))
    for name, parameter in network.named_parameters():  # the offsets start at zero
        if "conv_offset" in name and name.endswith("weight"):
            torch.nn.init.normal_(parameter, std=0.1)
    return network.eval()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("case", "stride"), [("iconvsr_A", 3), ("iconvsr_A_tp3", 5)])
def test_recorded_outputs(
    recordings: Path, case: str, stride: int, layout: torch.memory_format
) -> None:
    assert_clip_as_recorded(recordings, case, layout, keyframe_stride=stride)


@pytest.mark.parametrize(
    ("file", "padding", "parameters"),
    [
        ("basicsr_iconvsr_b30", 2, 8_694_991),
        ("mmagic_iconvsr", 2, 8_694_991),
        ("basicsr_iconvsr_vimeo_tp3", 3, 8_711_375),
    ],
)
def test_recognizes_published_files(
    recordings: Path, file: str, padding: int, parameters: int
) -> None:
    assert_recognized(
        recordings, file, ARCHITECTURE, IconVSRConfig(temporal_padding=padding), parameters
    )


def test_infers_what_names_and_shapes_tell() -> None:
    config = IconVSRConfig(channels=12, num_blocks=3, groups=4, temporal_padding=1)
    state = ARCHITECTURE.translate(IconVSR(config).state_dict())
    assert state is not None
    assert ARCHITECTURE.infer(state) == config


def test_leaves_other_files_alone(recordings: Path) -> None:
    state = published_keys(recordings, "mmagic_iconvsr")
    assert (
        ARCHITECTURE.translate({n: v for n, v in state.items() if not n.startswith("conv_hr")})
        is None
    )
    assert ARCHITECTURE.translate({**state, "fusion.weight": torch.zeros(1)}) is None
    assert ARCHITECTURE.translate({}) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"groups": 3}, "groups=3 must divide channels=64"),
        ({"keyframe_stride": 0}, "keyframe_stride=0 must be at least 1"),
        ({"temporal_padding": -1}, "temporal_padding=-1 must be at least 0"),
    ],
)
def test_rejects_impossible_shapes(changes: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        IconVSRConfig(**changes)


def test_key_frames_and_their_windows() -> None:
    assert keyframes(0, 12, stride=5, ends_video=True) == [0, 5, 10, 11]
    assert keyframes(0, 11, stride=5, ends_video=True) == [0, 5, 10]
    assert keyframes(0, 1, stride=5, ends_video=True) == [0]
    assert window_of(0, 2, 0, 8) == [4, 3, 0, 1, 2]
    assert window_of(5, 2, 0, 8) == [3, 4, 5, 6, 7]
    assert window_of(8, 2, 0, 8) == [6, 7, 8, 5, 4]
    assert window_of(0, 3, 0, 6) == [6, 5, 4, 0, 1, 2, 3]
    assert window_of(6, 3, 0, 6) == [3, 4, 5, 6, 2, 1, 0]
    assert window_of(0, 2, 0, 1) == [1, 1, 0, 1, 0]
    assert window_of(0, 3, 0, 0) == [0] * 7


def test_key_frames_and_windows_inside_a_film() -> None:
    assert keyframes(7, 12, stride=5, ends_video=False) == [3, 8]
    assert keyframes(7, 12, stride=5, ends_video=True) == [3, 8, 11]
    assert keyframes(6, 2, stride=5, ends_video=False) == []
    assert window_of(0, 2, -4, 8) == [-2, -1, 0, 1, 2]
    assert window_of(0, 2, -1, 8) == [
        2,
        -1,
        0,
        1,
        2,
    ]  # the video begins with the frame before the clip
    assert window_of(3, 2, -4, 4) == [1, 2, 3, 4, 1]


def _plainly(net: IconVSR, lq: Tensor) -> Tensor:
    """Equations in the order of the paper: key frames and flows first, all features kept, nothing in place."""
    height, width = lq.shape[-2:]
    lq = functional.pad(
        lq.flatten(0, 1), (0, -width % 4, 0, -height % 4), mode="reflect"
    ).unflatten(0, lq.shape[:2])
    frames, length, radius = lq.unbind(1), lq.shape[1], net.config.temporal_padding
    at = keyframes(0, length, stride=net.config.keyframe_stride, ends_video=True)
    refill = {t: net.edvr(lq[:, window_of(t, radius, 0, length - 1)]) for t in at}
    back: dict[int, Tensor] = {}
    for t in range(length)[::-1]:
        x = torch.zeros_like(lq[:, 0, :1]).repeat(1, net.config.channels, 1, 1)
        if t < length - 1:
            x = backward_warp(back[t + 1], net.spynet(frames[t], frames[t + 1]))
        x = net.backward_fusion(torch.cat([x, refill[t]], 1)) if t in at else x
        back[t] = net.backward_trunk(torch.cat([frames[t], x], 1))
    front: dict[int, Tensor] = {}
    for t in range(length):
        x = torch.zeros_like(back[t])
        if t > 0:
            x = backward_warp(front[t - 1], net.spynet(frames[t], frames[t - 1]))
        x = net.forward_fusion(torch.cat([x, refill[t]], 1)) if t in at else x
        front[t] = net.forward_trunk(torch.cat([frames[t], back[t], x], 1))
    sr = torch.stack([net._upsample(front[t], frame) for t, frame in enumerate(frames)], 1)
    return sr[..., : 4 * height, : 4 * width]


@pytest.mark.parametrize("length", [1, 2, 5])
def test_equals_the_equations_written_plainly(length: int) -> None:
    net, lq = _seeded(keyframe_stride=2, temporal_padding=1), torch.rand(1, length, 3, 8, 9)
    with torch.no_grad():
        torch.testing.assert_close(net(lq), _plainly(net, lq), rtol=0, atol=1e-6)


def test_what_windows_share_is_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    net, lq = _seeded(keyframe_stride=2, temporal_padding=2), torch.rand(1, 8, 3, 8, 8)
    calls: list[int] = []
    encode = net.edvr.encode

    def counted(frame: Tensor) -> tuple[Tensor, ...]:
        calls.append(1)
        return encode(frame)

    monkeypatch.setattr(net.edvr, "encode", counted)
    with torch.no_grad():
        net(lq)
    assert len(calls) == 8 + 1  # one is met again where it stands in beyond the last frame


@pytest.mark.parametrize("padding", [2, 3])
def test_gradients_reach_every_parameter(padding: int) -> None:
    assert_every_parameter_learns(_seeded(temporal_padding=padding), torch.rand(1, 3, 3, 12, 13))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_spilled_features_change_no_bit(layout: torch.memory_format) -> None:
    net, lq = _seeded().to(memory_format=layout), torch.rand(2, 5, 3, 12, 13)  # pyright: ignore[reportCallIssue]
    with torch.no_grad():
        kept = net(lq)
        store = FeatureStore(FeatureLimits(host_bytes=10_000))
        assert torch.equal(torch.stack(list(net.restore(lq, store=store)), 1), kept)


def test_training_and_inference_agree() -> None:
    net, lq = _seeded(), torch.rand(1, 3, 3, 18, 17)
    with torch.no_grad():
        sr = net(lq)
        assert torch.equal(torch.stack(list(net.restore(lq)), 1), sr)
    assert net(lq).requires_grad
    torch.testing.assert_close(net(lq), sr, rtol=0, atol=1e-6)


@pytest.mark.parametrize("frames", [1, 2])
def test_short_clips_of_odd_size(frames: int) -> None:
    with torch.no_grad():
        assert _seeded(temporal_padding=3)(torch.rand(1, frames, 3, 7, 9)).shape == (
            1,
            frames,
            3,
            28,
            36,
        )


def test_the_clips_of_a_batch_do_not_meet() -> None:
    net, lq = _seeded(), torch.rand(2, 3, 3, 17, 20)
    with torch.no_grad():
        torch.testing.assert_close(net(lq)[1:], net(lq[1:]), rtol=0, atol=1e-5)
