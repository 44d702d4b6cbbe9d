from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from helpers.clip_parity import assert_clip_as_recorded, assert_recognized
from helpers.image_parity import assert_every_parameter_learns, published_keys, recorded_state
from helpers.recordings import recorded, recorded_input
from tubelet.errors import CheckpointError, ConfigError
from tubelet.layers.inference import prepare_for_inference, reference_form
from tubelet.models.vrt import ARCHITECTURE, VRT, VRTConfig
from tubelet.models.vrt_attention import MutualAttention, MutualBlock, SelfBlock
from tubelet.models.vrt_warping import ClipMotion, FlowGuidedAlign, nearest_four
from tubelet.ops import backward_warp
from tubelet.zoo.checkpoint import open_checkpoint

SMALL: dict[str, Any] = {
    "channels": 12,
    "group_channels": 8,
    "depths": (5, 2, 2, 2, 2, 2, 2),
    "group_depths": (2, 2),
    "num_frame_groups": 1,
    "num_heads": 2,
    "window_frames": 4,
    "window": 4,
    "groups": 4,
}
THREE_NEIGHBORS: dict[str, Any] = {"num_neighbors": 3, "groups": 6, "window_frames": 3}


def _random(**changes: Any) -> VRT:
    """A small network whose result depends on all of it."""
    torch.manual_seed(0)
    network = VRT(VRTConfig(**{**SMALL, **changes}))
    for name, parameter in network.named_parameters():
        if name.startswith("spynet"):
            continue
        if parameter.ndim > 1:
            gain = 0.05 if "conv_offset.6" in name else 1.0
            nn.init.normal_(parameter, std=gain * parameter[0].numel() ** -0.5)
        elif name.endswith("bias"):
            nn.init.normal_(parameter, std=0.05)
    return network.eval()


class _Drift(nn.Module):
    """In place of SpyNet, which takes most of the time of float64: flow of a few pixels."""

    def by_scale(self, ref: Tensor, supp: Tensor, *, num_scales: int) -> list[Tensor]:
        difference = 4 * (ref - supp)[:, :2]
        return [nn.functional.avg_pool2d(difference, 2**i) / 2**i for i in range(num_scales)]


def _assert_as_recorded(recordings: Path, case: str, output: Tensor) -> None:
    description, (expected,) = recorded(recordings, case)
    tolerance = max(1e-4, 20 * description["float64_max_abs_over_std"]) * float(expected.std())
    torch.testing.assert_close(output, expected, rtol=0, atol=tolerance)


def _module_state(recordings: Path, case: str) -> dict[str, Tensor]:
    """Make the weights of a module, without what follows from the size of its windows."""
    description, _ = recorded(recordings, case)
    state = recorded_state(recordings, description)
    return {name: value for name, value in state.items() if name not in description["kept"]}


def _module_input(recordings: Path, case: str, name: str = "x", gain: float = 2.0) -> Tensor:
    description, _ = recorded(recordings, case)
    key = case if name == "x" else f"{case}:{name}"
    return (recorded_input(recordings, key, tuple(description["inputs"][name])) - 0.5) * gain


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_recorded_output(recordings: Path, layout: torch.memory_format) -> None:
    assert_clip_as_recorded(recordings, "vrt_A_damped", layout)


def test_recorded_output_of_large_offsets(recordings: Path) -> None:
    # Ill-conditioned: rounding is amplified to 8e-3 of the standard deviation.
    assert_clip_as_recorded(recordings, "vrt_A")


def test_recorded_mutual_attention(recordings: Path) -> None:
    case = "vrt_mutual_attention_A"
    attention = MutualAttention(24, 3, (2, 8, 8))
    attention.load_state_dict(_module_state(recordings, case), strict=True)
    with torch.no_grad():
        _assert_as_recorded(recordings, case, attention(_module_input(recordings, case), (2, 8, 8)))


@pytest.mark.parametrize("case", ["vrt_tmsa_mutual_A", "vrt_tmsa_self_A"])
@pytest.mark.parametrize("is_prepared", [False, True])
def test_recorded_blocks(recordings: Path, case: str, is_prepared: bool) -> None:
    window, half = (4, 8, 8), (2, 4, 4)
    blocks = (
        [MutualBlock(24, 3, 8, is_shifted=False), MutualBlock(24, 3, 8, is_shifted=True)]
        if "mutual" in case
        else [SelfBlock(24, 3, window, (0, 0, 0)), SelfBlock(24, 3, window, half)]
    )
    network = nn.Sequential(*blocks)
    state = _module_state(recordings, case)
    if "self" in case:
        state = {name.replace("qkv_self", "qkv"): value for name, value in state.items()}
    own = {name.removeprefix("blocks."): value for name, value in state.items()}
    network.load_state_dict(own, strict=True)
    if is_prepared:
        prepare_for_inference(network)
    x = _module_input(recordings, case).permute(0, 1, 3, 4, 2).contiguous()
    with torch.no_grad():
        _assert_as_recorded(recordings, case, network(x).permute(0, 4, 1, 2, 3))


def test_recorded_alignment(recordings: Path) -> None:
    case = "vrt_dcn_warp_A"
    align = FlowGuidedAlign(16, 1, groups=4, max_residue_px=5)
    align.load_state_dict(_module_state(recordings, case), strict=True)
    x, current = (_module_input(recordings, case, name) for name in ("x", "cur"))
    flow = _module_input(recordings, case, "flow", 6.0)
    with torch.no_grad():
        _assert_as_recorded(recordings, case, align(current, [x], [flow]))


@pytest.mark.parametrize(
    ("file", "config", "parameters"),
    [
        ("vrt_001_reds_6f", VRTConfig(), 30_676_435),
        (
            "vrt_002_reds_16f",
            VRTConfig(window_frames=8, num_neighbors=3, groups=24),
            35_134_783,
        ),
    ],
)
def test_recognizes_published_files(
    recordings: Path, file: str, config: VRTConfig, parameters: int
) -> None:
    assert_recognized(recordings, file, ARCHITECTURE, config, parameters)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        THREE_NEIGHBORS,
        {"num_neighbors": 2, "groups": 8, "window_frames": 2, "num_frame_groups": 0},
        {"window": 6, "group_depths": (1,), "depths": (2, 3, 4, 5, 6, 7, 8)},
    ],
)
def test_infers_the_configuration_it_was_built_with(changes: dict[str, Any]) -> None:
    config = VRTConfig(**{**SMALL, **changes})
    with torch.device("meta"):
        state = VRT(config).state_dict()
    own = ARCHITECTURE.translate(state)
    assert own is not None
    assert ARCHITECTURE.infer(own) == config


@pytest.mark.parametrize(
    ("num_frames", "changes"),
    [
        (2, {}),
        (5, {}),
        (4, {"num_neighbors": 2, "groups": 8, "window_frames": 2}),
        (5, THREE_NEIGHBORS),
    ],
)
def test_equals_the_published_formulation(
    num_frames: int, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    from plain.vrt import plain_vrt

    network, lq = _random(**changes), torch.rand(1, num_frames, 3, 32, 40)
    network.spynet = _Drift()  # pyright: ignore[reportAttributeAccessIssue]
    with torch.no_grad():
        sr = prepare_for_inference(network.to(memory_format=torch.channels_last))(lq)  # pyright: ignore[reportCallIssue]
        # Flow and offsets amplify rounding, so equality shows in float64.
        network, lq = reference_form(network).double(), lq.double()
        expected = plain_vrt(network, lq)
        torch.testing.assert_close(network(lq), expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(sr.double(), expected, rtol=0, atol=5e-3 * float(expected.std()))


@pytest.mark.parametrize("changes", [{}, THREE_NEIGHBORS])
def test_every_parameter_learns(changes: dict[str, Any]) -> None:
    assert_every_parameter_learns(_random(**changes), torch.rand(1, 3, 3, 32, 32))


def test_training_and_inference_agree() -> None:
    network, lq = _random(), torch.rand(1, 3, 3, 32, 40)
    with torch.no_grad():
        sr = network(lq)
    assert network(lq).requires_grad
    torch.testing.assert_close(network(lq), sr, rtol=0, atol=1e-3 * float(sr.std()))


def test_a_single_frame_is_repeated() -> None:
    network, lq = _random(), torch.rand(1, 1, 3, 32, 40)
    with torch.no_grad():
        sr = network(lq)
        assert sr.shape == (1, 1, 3, 128, 160)
        twice = network(torch.cat([lq, lq], 1))
    assert torch.equal(sr, twice[:, :1])


def test_does_not_modify_its_input() -> None:
    network, lq = prepare_for_inference(_random()), torch.rand(1, 2, 3, 32, 32)
    original = lq.clone()
    with torch.no_grad():
        network(lq)
    assert torch.equal(lq, original)


def test_the_clips_of_a_batch_do_not_meet() -> None:
    network, lq = _random(), torch.rand(2, 3, 3, 32, 40)
    with torch.no_grad():
        sr = network(lq)
        torch.testing.assert_close(network(lq[1:]), sr[1:], rtol=0, atol=1e-3 * float(sr.std()))


def test_frames_of_a_pair_exchange_their_queries() -> None:
    torch.manual_seed(0)
    attention = MutualAttention(8, 2, (2, 4, 4)).eval()
    x = torch.randn(1, 32, 8)
    changed = x.clone()
    changed[:, 16:] += 1
    # The mutual half of `proj` alone: the first frame sees the second one only through its queries.
    attention.proj.weight.data[:, 8:] = 0
    with torch.no_grad():
        attention.proj.weight.data[:, :8] = torch.eye(8)
        difference = attention(changed, (2, 4, 4)) - attention(x, (2, 4, 4))
        assert difference[:, :16].any()
        # Without queries, a row is the mean of the values of its own frame.
        attention.qkv_mut.weight.data[:8] = 0
        attention.qkv_mut.bias.data[:8] = 0
        difference = attention(changed, (2, 4, 4)) - attention(x, (2, 4, 4))
    assert not difference[:, :16].any()
    assert difference[:, 16:].any()


def test_flow_over_several_frames_is_a_chain_of_hops() -> None:
    torch.manual_seed(0)
    to_next, to_last = torch.randn(2, 3, 1, 2, 9, 8)
    motion = ClipMotion(list(to_next), list(to_last))
    first, second, third = motion.chain(0, 1, 3)
    assert torch.equal(first, to_next[0])
    assert torch.equal(second, first + backward_warp(to_next[1], first))
    assert torch.equal(third, second + backward_warp(to_next[2], second))
    assert torch.equal(motion.chain(3, -1, 1)[0], to_last[2])
    assert len(motion.chain(1, -1, 3)) == 1
    assert motion.chain(3, 1, 3) == []


def test_four_samples_around_a_position() -> None:
    frame = torch.arange(20.0).view(1, 1, 4, 5)
    flow = torch.zeros(1, 2, 4, 5)
    flow[:, 0] = 0.4
    flow[:, 1] = -0.7
    samples = nearest_four(frame, flow)[0, :, 2, 1]
    # Around column 1.4 of line 1.3.
    assert samples.tolist() == [6.0, 11.0, 7.0, 12.0]
    assert nearest_four(frame, flow)[0, :, 0, 4].tolist() == [0.0, 4.0, 0.0, 0.0]


def test_what_the_engine_knows() -> None:
    contract = ARCHITECTURE.contract(VRTConfig())
    assert contract is not None
    assert (contract.scale, contract.size_multiple, contract.min_size_px) == (4, 8, 64)
    assert contract.temporal.kind == "clip"
    assert contract.temporal.overlap_frames == 2
    # No recurrent state.
    assert not contract.streams
    assert contract.edge_frames == 0


def test_leaves_other_files_alone(recordings: Path) -> None:
    state = published_keys(recordings, "vrt_001_reds_6f")
    assert ARCHITECTURE.translate({}) is None
    assert ARCHITECTURE.translate({**state, "another.weight": torch.zeros(1)}) is None
    assert ARCHITECTURE.translate({**state, "conv_first.weight": torch.zeros(120)}) is None


def test_names_the_networks_of_other_tasks(recordings: Path) -> None:
    state = published_keys(recordings, "vrt_001_reds_6f")
    deblurring = {name: value for name, value in state.items() if "upsample" not in name}
    with pytest.raises(CheckpointError, match=r"VRT for deblurring.*only .* super-resolution"):
        open_checkpoint(deblurring)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depths": (8,) * 6}, "depths=.* must be 7 numbers of at least 2"),
        ({"depths": (1,) * 7}, "depths=.* must be 7 numbers of at least 2"),
        ({"group_depths": ()}, "group_depths=.* must be numbers of at least 1"),
        ({"num_frame_groups": 3}, "num_frame_groups=3 must be from 0 to 2"),
        ({"window": 0}, "window=0 must be at least 1"),
        ({"num_heads": 7}, "num_heads=7 must divide channels=12"),
        ({"num_neighbors": 5}, "num_neighbors=5 must divide channels=12"),
        ({"num_neighbors": 3}, "num_neighbors=3 must divide groups=4"),
        ({"groups": 5}, "groups=5 must divide num_neighbors · channels=12"),
        ({"channels": 6}, "channels=6 must be a multiple of 4"),
    ],
)
def test_refuses_impossible_configurations(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        VRTConfig(**{**SMALL, **changes})
