from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.clip_parity import assert_clip_as_recorded, assert_recognized
from helpers.image_parity import (
    assert_every_parameter_learns,
    published_keys,
    recorded_state,
)
from helpers.recordings import recorded, recorded_input
from tubelet.errors import ConfigError
from tubelet.layers.inference import prepare_for_inference, use_backend
from tubelet.layers.store import FeatureLimits, FeatureStore
from tubelet.layers.trajectories import (
    TokenMatch,
    gather_matches,
    join_tokens,
    match_tokens,
    split_tokens,
)
from tubelet.models.ttvsr import (
    ARCHITECTURE,
    LTAM,
    TTVSR,
    TTVSRConfig,
    gather_scales,
)
from tubelet.restore.tiles import padded_size


def _seeded(**changes: Any) -> TTVSR:
    torch.manual_seed(0)
    network = TTVSR(TTVSRConfig(**{"channels": 4, "num_blocks": 1, **changes}))
    for parameter in network.parameters():
        if parameter.ndim == 4:
            torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    # Flows of a few pixels.
    for level in network.spynet.basic_module:
        level.basic_module[-1].bias.data.normal_(std=0.2)
    return network.eval()


def _clip(num_frames: int, size: tuple[int, int] = (32, 36), batch: int = 1) -> Tensor:
    torch.manual_seed(1)
    return torch.rand(batch, num_frames, 3, *size)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_recorded_outputs(recordings: Path, layout: torch.memory_format) -> None:
    assert_clip_as_recorded(recordings, "ttvsr_A", layout, keyframe_stride=2)


@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_recorded_attention(recordings: Path, backend: Any) -> None:
    case = "ttvsr_ltam_A"
    description, (expected,) = recorded(recordings, case)
    maps: dict[str, Tensor] = {}
    for name, shape in description["inputs"].items():
        maps[name] = recorded_input(recordings, f"{case}:{name}", tuple(shape)) - 0.5
    locations = torch.tensor(description["other_inputs"]["loc"]).split(2, 1)
    attention = LTAM(64)
    attention.load_state_dict(recorded_state(recordings, description))

    keys = [split_tokens(key, 4) for key in maps["keyfeat"].unbind(1)]
    match = match_tokens(split_tokens(maps["cur"], 4), zip(keys, locations, strict=True), "nearest")
    # The recorded values are not those of one image.
    scales = torch.cat([maps["s1"], maps["s2"], maps["s3"]], 2).unbind(1)
    values = gather_matches([split_tokens(scale, 4) for scale in scales], match, "nearest")
    with torch.no_grad(), use_backend(attention, backend):
        out = maps["anchor"] + attention.fuse(join_tokens(values, 4), match.similarity)
    tolerance = 1e-4 * description["output_stats"]["std"]
    torch.testing.assert_close(out, expected, rtol=0, atol=tolerance)


def test_recognizes_published_files(recordings: Path) -> None:
    assert_recognized(recordings, "ttvsr", ARCHITECTURE, TTVSRConfig(), 6_773_615)


def test_infers_what_names_and_shapes_tell() -> None:
    config = TTVSRConfig(channels=12, num_blocks=3)
    state = ARCHITECTURE.translate(TTVSR(config).state_dict())
    assert state is not None
    assert ARCHITECTURE.infer(state) == config


def test_leaves_other_files_alone(recordings: Path) -> None:
    state = published_keys(recordings, "ttvsr")
    without_attention = {n: v for n, v in state.items() if not n.startswith("LTAM")}
    assert ARCHITECTURE.translate(without_attention) is None
    assert ARCHITECTURE.translate({**state, "edvr.weight": torch.zeros(1)}) is None
    assert ARCHITECTURE.translate({**state, "LTAM.fusion.weight": torch.zeros(1)}) is None
    for other in ("mmagic_basicvsr", "mmagic_iconvsr", "mmagic_realbasicvsr"):
        assert ARCHITECTURE.translate(published_keys(recordings, other)) is None
    assert ARCHITECTURE.translate({}) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"channels": 0}, "channels=0 must be at least 1"),
        ({"num_blocks": -1}, "num_blocks=-1 must be at least 0"),
        ({"keyframe_stride": 0}, "keyframe_stride=0 must be at least 1"),
    ],
)
def test_rejects_impossible_settings(changes: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TTVSRConfig(**changes)


@pytest.mark.parametrize(
    ("num_frames", "stride", "batch"), [(1, 3, 1), (2, 3, 1), (7, 3, 1), (6, 2, 2), (4, 1, 1)]
)
def test_equals_the_published_formulation(
    num_frames: int, stride: int, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clips whose last frame is a key frame of one direction or of both, and whose first is one of the forward."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    from plain.ttvsr import plain_ttvsr

    network = _seeded(keyframe_stride=stride).double()
    lq = _clip(num_frames, batch=batch).double()
    with torch.no_grad():
        expected = plain_ttvsr(network, lq)
        torch.testing.assert_close(network(lq), expected, rtol=0, atol=1e-10)
        fast = prepare_for_inference(network.float().to(memory_format=torch.channels_last))  # pyright: ignore[reportCallIssue]
        tolerance = 1e-4 * float(expected.std())
        torch.testing.assert_close(fast(lq.float()), expected.float(), rtol=0, atol=tolerance)


def _match(num_frames: int, size: tuple[int, int], batch: int = 1) -> TokenMatch:
    """A choice among all tokens of all frames at random."""
    torch.manual_seed(0)
    frame = torch.randint(num_frames, (batch, 1, *size))
    height, width = size
    locations = torch.stack(
        [torch.randint(width, (batch, *size)), torch.randint(height, (batch, *size))], 1
    )
    return TokenMatch(torch.rand(batch, 1, *size), frame, locations.float())


def test_values_are_squares_of_three_sizes_each_pooled_to_a_token() -> None:
    images = list(torch.randn(2, 1, 3, 12, 16))
    match = _match(2, (3, 4))
    values = gather_scales(images, match)
    assert values.shape == (1, 9, 12, 16)
    for y in range(3):
        for x in range(4):
            image = images[int(match.frame[0, 0, y, x])]
            padded = torch.nn.functional.pad(image, [2] * 4)
            column, line = (4 * match.locations[0, :, y, x].int()).tolist()
            token = values[0, :, 4 * y : 4 * y + 4, 4 * x : 4 * x + 4]
            largest = padded[0, :, line : line + 8, column : column + 8]
            assert torch.equal(token[:3], largest[:, 2:6, 2:6])
            # 6 to 4 pixels: the means of the pairs (0, 1), (1, 2), (3, 4) and (4, 5).
            middle = largest[:, 1:7, 1:7]
            rows = (middle[:, [0, 1, 3, 4]] + middle[:, [1, 2, 4, 5]]) / 2
            pooled = (rows[..., [0, 1, 3, 4]] + rows[..., [1, 2, 4, 5]]) / 2
            torch.testing.assert_close(token[3:6], pooled)
            torch.testing.assert_close(token[6:], torch.nn.functional.avg_pool2d(largest, 2))


def test_values_are_read_in_parts_and_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    images, match = list(torch.randn(3, 2, 4, 24, 32)), _match(3, (6, 8), batch=2)
    values = gather_scales(images, match)
    assert values.is_contiguous(memory_format=torch.channels_last)
    monkeypatch.setattr("tubelet.models.ttvsr._TOKENS_AT_ONCE", 5)
    assert torch.equal(gather_scales(images, match), values)
    monkeypatch.setattr("torch.compiler.is_compiling", lambda: True)
    assert torch.equal(gather_scales(images, match), values)


def test_gradients_reach_every_parameter() -> None:
    assert_every_parameter_learns(_seeded(keyframe_stride=1), _clip(4, (32, 32)))


def test_attention_counts() -> None:
    network, lq = _seeded(keyframe_stride=1), _clip(6)
    state = network.state_dict()
    with torch.no_grad():
        sr = network(lq)
        state["attention.fusion.weight"].zero_()
        state["attention.fusion.bias"].zero_()
        assert (network(lq) - sr)[:, -1].abs().mean() > 0.01 * sr.std()


def test_every_frame_is_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    network, lq = _seeded(), _clip(5)
    calls: list[int] = []
    extract = network.extractor.forward

    def counted(frame: Tensor) -> Tensor:
        calls.append(1)
        return extract(frame)

    monkeypatch.setattr(network.extractor, "forward", counted)
    with torch.no_grad():
        network(lq)
    assert len(calls) == 5


def test_the_store_holds_two_maps_a_frame_and_the_key_frames() -> None:
    network, lq, store = _seeded(), _clip(7), FeatureStore()
    bytes_per_map = 4 * 32 * 36 * network.config.channels
    with torch.no_grad():
        for t, _ in enumerate(network.restore(lq, store=store)):
            num_key_frames = t // 3 + 1
            # Backward states and tokens of the frames to come; states and tokens of key frames.
            assert len(store) == 2 * (6 - t) + 2 * num_key_frames
    # Of the first frame, the forward state comes before its backward state goes.
    assert store.peak_bytes == (2 * 7 + 1) * bytes_per_map
    assert len(store) == 0


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_spilled_features_change_no_bit(layout: torch.memory_format) -> None:
    network, lq = _seeded().to(memory_format=layout), _clip(5, batch=2)  # pyright: ignore[reportCallIssue]
    with torch.no_grad():
        kept = network(lq)
        store = FeatureStore(FeatureLimits(host_bytes=50_000))
        assert torch.equal(torch.stack(list(network.restore(lq, store=store)), 1), kept)


def test_bfloat16_halves_the_store_and_stays_close() -> None:
    network, lq, store = _seeded(keyframe_stride=2), _clip(5), FeatureStore()
    with torch.no_grad():
        sr = network(lq)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = torch.stack(list(network.restore(lq, store=store)), 1)
    assert store.peak_bytes == (2 * 5 + 1) * 2 * 32 * 36 * network.config.channels
    error = (rounded - sr).square().mean().sqrt()
    assert 0 < error < 0.05 * sr.std()


def test_states_of_both_sweeps_are_shown() -> None:
    seen: list[tuple[str, int]] = []
    with torch.no_grad():
        for _ in _seeded().restore(_clip(3), on_state=lambda name, t, _: seen.append((name, t))):
            pass
    assert seen == [("backward", t) for t in (2, 1, 0)] + [("forward", t) for t in (0, 1, 2)]


def test_training_and_inference_agree() -> None:
    network, lq = _seeded(keyframe_stride=2), _clip(4, batch=2)
    with torch.no_grad():
        sr = network(lq)
    assert network(lq).requires_grad
    torch.testing.assert_close(network(lq), sr, rtol=0, atol=1e-6)


def test_the_clips_of_a_batch_do_not_meet() -> None:
    network, lq = _seeded(keyframe_stride=2), _clip(4, batch=2)
    with torch.no_grad():
        torch.testing.assert_close(network(lq)[1:], network(lq[1:]), rtol=0, atol=1e-5)


def test_sizes_that_are_no_whole_tokens() -> None:
    with pytest.raises(ValueError, match="34×32 px cannot be cut into tokens of 4 px"):
        _seeded()(_clip(2, (32, 34)))


@pytest.mark.parametrize(
    ("size", "padded"), [((180, 320), (180, 320)), ((67, 77), (68, 80)), ((17, 90), (64, 92))]
)
def test_the_engine_pads_to_whole_tokens(size: tuple[int, int], padded: tuple[int, int]) -> None:
    """The published code takes no side below 64."""
    assert padded_size(*size, ARCHITECTURE.contract(TTVSRConfig())) == padded
