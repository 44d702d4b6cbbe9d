from pathlib import Path

import pytest
import torch
from torch import nn

from helpers.image_parity import load, published_keys, recorded_state
from helpers.recordings import recorded, recorded_input
from tubelet.models.tmnet import ARCHITECTURE, TMNet, TMNetConfig

TINY = TMNetConfig(groups=1, num_front_blocks=0, num_back_blocks=1)


@pytest.fixture(scope="module")
def network() -> TMNet:
    """A network with random weights; offsets begin at zero, which would hide them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = TMNet(TINY).eval()
        for name, parameter in network.named_parameters():
            if ".conv_offset." in name or name.startswith("modulation"):
                nn.init.normal_(parameter, std=0.1)
    return network


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("case", ["tmnet_A_none", "tmnet_A_t"])
def test_recorded_outputs(recordings: Path, case: str, layout: torch.memory_format) -> None:
    description, (expected,) = recorded(recordings, case)
    network = load(ARCHITECTURE, recorded_state(recordings, description)).to(memory_format=layout)
    lq = recorded_input(recordings, case, tuple(description["inputs"]["x"]))
    with torch.inference_mode():
        sr = network(lq, times=description["times"])
    assert list(sr.shape) == description["output_shape"]
    step = description["output_step"]
    tolerance = (
        max(1e-4, 20 * description["float64_max_abs_over_std"]) * description["output_stats"]["std"]
    )
    torch.testing.assert_close(sr[..., ::step, ::step], expected, rtol=0, atol=tolerance)


def test_the_published_size() -> None:
    with torch.device("meta"):
        network = TMNet(TMNetConfig())
    assert sum(p.numel() for p in network.parameters()) == 12_263_523


@pytest.mark.parametrize(
    "config", [TINY, TMNetConfig(groups=4, num_front_blocks=2, num_back_blocks=3)]
)
def test_its_own_names_are_recognized(config: TMNetConfig) -> None:
    with torch.device("meta"):
        state = TMNet(config).state_dict()
    own = ARCHITECTURE.translate(state)
    assert own is not None
    assert own.keys() == state.keys()
    assert ARCHITECTURE.infer(own) == config


def test_leaves_other_files_alone(recordings: Path) -> None:
    files = [path.stem for path in (recordings / "keys").glob("*.txt")]
    assert "zsm_lunatokis" in files
    assert [
        file
        for file in files
        if ARCHITECTURE.translate(published_keys(recordings, file)) is not None
    ] == []
    assert ARCHITECTURE.translate({}) is None


def test_gradients_reach_every_parameter(network: TMNet) -> None:
    network.zero_grad()
    network(torch.rand(1, 2, 3, 8, 8), times=[0.3]).square().mean().backward()
    assert [
        name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()
    ] == []
    network.zero_grad()
    network(torch.rand(1, 2, 3, 8, 8)).square().mean().backward()
    unused = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert unused == [
        name for name, _ in network.named_parameters() if name.startswith("modulation")
    ]


@pytest.mark.parametrize(
    ("frames", "times", "expected"), [(1, None, 1), (3, None, 5), (1, [0.5], 1), (3, [0.2, 0.7], 7)]
)
def test_number_of_frames(
    network: TMNet, frames: int, times: list[float] | None, expected: int
) -> None:
    with torch.inference_mode():
        assert network(torch.rand(1, frames, 3, 4, 8), times=times).shape == (
            1,
            expected,
            3,
            16,
            32,
        )


def test_streaming_equals_forward(network: TMNet) -> None:
    lq = torch.rand(1, 3, 3, 4, 8)
    with torch.inference_mode():
        assert torch.equal(torch.stack(list(network.restore(lq)), 1), network(lq))


def test_the_engine_is_told_of_the_frames_half_way() -> None:
    contract = ARCHITECTURE.contract(TINY)
    assert contract is not None
    assert (contract.scale, contract.size_multiple, contract.temporal.between_frames) == (4, 4, 1)


def test_times_may_differ_within_a_batch(network: TMNet) -> None:
    lq, times = torch.rand(2, 2, 3, 8, 8), torch.tensor([[0.25, 0.5], [0.6, 0.9]])
    with torch.inference_mode():
        both = network(lq, times=times)
        for clip in range(2):
            alone = network(lq[clip : clip + 1], times=times[clip])
            torch.testing.assert_close(both[clip : clip + 1], alone, rtol=0, atol=1e-5)


def test_the_time_matters_and_half_way_is_the_default(network: TMNet) -> None:
    lq = torch.rand(1, 2, 3, 8, 8)
    with torch.inference_mode():
        default, half, early = network(lq), network(lq, times=[0.5]), network(lq, times=[0.1])
    torch.testing.assert_close(half, default, rtol=0, atol=1e-6)
    assert (early - default).abs().max() > 5e-6
