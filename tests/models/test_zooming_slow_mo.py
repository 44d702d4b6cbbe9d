from pathlib import Path

import pytest
import torch
from torch import nn

from helpers.image_parity import assert_every_parameter_learns, load, published_keys, recorded_state
from helpers.recordings import recorded, recorded_input
from tubelet.layers.recurrence import Edge
from tubelet.layers.store import FeatureLimits, FeatureStore
from tubelet.models import tmnet
from tubelet.models.zooming_slow_mo import ARCHITECTURE, ZoomingSlowMo, ZoomingSlowMoConfig
from tubelet.restore.boundary import BoundaryRecorder

TINY = ZoomingSlowMoConfig(channels=4, groups=2, num_front_blocks=1, num_back_blocks=1)


def _seeded(config: ZoomingSlowMoConfig = TINY) -> ZoomingSlowMo:
    """A network with random weights; offsets begin at zero, which would hide them."""
    torch.manual_seed(0)
    network = ZoomingSlowMo(config).eval()
    for name, parameter in network.named_parameters():
        if ".conv_offset." in name:
            nn.init.normal_(parameter, std=0.1)
    return network


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("case", ["zsm_A", "zsm_A_4to7"])
def test_recorded_outputs(recordings: Path, case: str, layout: torch.memory_format) -> None:
    description, (expected,) = recorded(recordings, case)
    network = load(ARCHITECTURE, recorded_state(recordings, description)).to(memory_format=layout)
    lq = recorded_input(recordings, case, tuple(description["inputs"]["x"]))
    with torch.inference_mode():
        sr = network(lq)
    assert list(sr.shape) == description["output_shape"]
    step = description["output_step"]
    tolerance = (
        max(1e-4, 20 * description["float64_max_abs_over_std"]) * description["output_stats"]["std"]
    )
    torch.testing.assert_close(sr[..., ::step, ::step], expected, rtol=0, atol=tolerance)


def test_recognizes_the_published_file(recordings: Path) -> None:
    network = load(ARCHITECTURE, published_keys(recordings, "zsm_lunatokis"), groups=8)
    assert network.config == ZoomingSlowMoConfig()
    assert sum(p.numel() for p in network.parameters()) == 11_102_771


@pytest.mark.parametrize(
    "config",
    [TINY, ZoomingSlowMoConfig(channels=6, groups=1, num_front_blocks=0, num_back_blocks=3)],
)
def test_its_own_names_are_recognized(config: ZoomingSlowMoConfig) -> None:
    state = ZoomingSlowMo(config).state_dict()
    own = ARCHITECTURE.translate(state)
    assert own is not None
    assert own.keys() == state.keys()
    assert ARCHITECTURE.infer(own) == config


def test_leaves_other_files_alone(recordings: Path) -> None:
    others = [
        path.stem for path in (recordings / "keys").glob("*.txt") if path.stem != "zsm_lunatokis"
    ]
    assert len(others) > 40
    assert [
        file
        for file in others
        if ARCHITECTURE.translate(published_keys(recordings, file)) is not None
    ] == []
    assert ARCHITECTURE.translate({}) is None
    with torch.device("meta"):
        assert (
            ARCHITECTURE.translate(tmnet.TMNet(tmnet.TMNetConfig(num_back_blocks=1)).state_dict())
            is None
        )


def test_gradients_reach_every_parameter() -> None:
    assert_every_parameter_learns(_seeded(), torch.rand(1, 3, 3, 16, 20))


def test_training_and_inference_agree() -> None:
    network, lq = _seeded(), torch.rand(1, 3, 3, 8, 12)
    with torch.inference_mode():
        sr = network(lq)
    assert network(lq).requires_grad
    torch.testing.assert_close(network(lq), sr, rtol=0, atol=1e-6)


def test_streaming_with_features_on_the_disk_equals_forward(tmp_path: Path) -> None:
    network, lq = _seeded(), torch.rand(1, 4, 3, 8, 12)
    with torch.inference_mode():
        store = FeatureStore(FeatureLimits(host_bytes=1000, folder=tmp_path))
        frames = list(network.restore(lq, store=store))
        assert torch.equal(torch.stack(frames, 1), network(lq))


@pytest.mark.parametrize("frames", [1, 2, 5])
def test_frames_are_doubled_but_for_the_last(frames: int) -> None:
    with torch.inference_mode():
        assert _seeded()(torch.rand(1, frames, 3, 4, 8)).shape == (1, 2 * frames - 1, 3, 16, 32)


def test_every_frame_depends_on_the_first_and_the_last() -> None:
    network = _seeded()
    for name, parameter in network.named_parameters():
        if not name.endswith("bias"):
            parameter.data *= 2
    lq = torch.rand(1, 3, 3, 16, 16)
    with torch.inference_mode():
        sr = network(lq)
        for changed in (0, 2):
            other = lq.clone()
            other[:, changed] = 1 - other[:, changed]
            assert ((network(other) - sr).abs().amax((0, 2, 3, 4)) > 1e-6).all()


def test_the_seam_between_windows_is_invisible(recordings: Path) -> None:
    description, _ = recorded(recordings, "zsm_A")
    network = load(ARCHITECTURE, recorded_state(recordings, description)).to(
        memory_format=torch.channels_last
    )
    contract = ARCHITECTURE.contract(network.config)
    assert contract is not None
    lookahead = contract.lookahead_frames
    lq = recorded_input(recordings, "zsm_A", (1, lookahead + 2, 3, 16, 16))
    recorder = BoundaryRecorder(contract, num_frames=1)
    with torch.inference_mode():
        whole = network(lq)
        # The first frame and the moment after it, then the others from the states there.
        window = lq[:, :-1]
        first = torch.stack(list(network.restore(window, on_state=recorder.observe)), 1)
        second = network(lq[:, 1:], before=recorder.next_edge(window, Edge()))
    assert psnr_of(first[:, :2], whole[:, :2]) > 90
    assert psnr_of(second, whole[:, 2:]) > 90


def psnr_of(one: torch.Tensor, other: torch.Tensor) -> float:
    """PSNR of the worst frame, peak 1."""
    return -10 * float((one - other).square().mean((0, 2, 3, 4)).max().clamp(min=1e-20).log10())


def test_the_clips_of_a_batch_do_not_meet() -> None:
    network, lq = _seeded(), torch.rand(2, 2, 3, 16, 20)
    with torch.inference_mode():
        torch.testing.assert_close(network(lq)[1:], network(lq[1:]), rtol=0, atol=1e-5)
