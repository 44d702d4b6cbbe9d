from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv2d, interpolate, leaky_relu, pixel_shuffle

from helpers.clip_parity import assert_clip_as_recorded, assert_recognized
from helpers.image_parity import published_keys
from tubelet.models.basicvsr import ARCHITECTURE, BasicVSR, BasicVSRConfig
from tubelet.ops import backward_warp

TINY = BasicVSRConfig(channels=4, num_blocks=1)


def _seeded(config: BasicVSRConfig = TINY) -> BasicVSR:
    torch.manual_seed(0)
    return BasicVSR(config).eval()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("case", ["basicvsr_A", "basicvsr_A_batch2", "basicvsr_mmagic_A"])
def test_recorded_outputs(recordings: Path, case: str, layout: torch.memory_format) -> None:
    assert_clip_as_recorded(recordings, case, layout)


@pytest.mark.parametrize("file", ["basicsr_basicvsr_reds_b30", "mmagic_basicvsr"])
def test_recognizes_published_files(recordings: Path, file: str) -> None:
    assert_recognized(
        recordings, file, ARCHITECTURE, BasicVSRConfig(channels=64, num_blocks=30), 6_291_311
    )


def test_leaves_other_files_alone(recordings: Path) -> None:
    ours = {"basicsr_basicvsr_reds_b30", "mmagic_basicvsr"}
    others = [path.stem for path in (recordings / "keys").glob("*.txt") if path.stem not in ours]
    assert len(others) > 40
    assert [
        file
        for file in others
        if ARCHITECTURE.translate(published_keys(recordings, file)) is not None
    ] == []
    assert ARCHITECTURE.translate({}) is None


def test_gradients_reach_every_parameter() -> None:
    network = _seeded()
    network(torch.rand(1, 3, 3, 33, 34)).square().sum().backward()
    assert [
        name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()
    ] == []


def test_equals_the_equations_written_plainly() -> None:
    """All flows first, all features kept, nothing in place: the order of the paper."""
    net, lq = _seeded(), torch.rand(2, 4, 3, 20, 21)
    with torch.no_grad():
        features: dict[str, list[Tensor]] = {}
        for trunk, clip in ((net.backward_trunk, lq.flip(1)), (net.forward_trunk, lq)):
            flows = [net.spynet(clip[:, t], clip[:, t - 1]) for t in range(1, 4)]
            kept = [trunk(torch.cat([clip[:, 0], torch.zeros(2, 4, 20, 21)], 1))]
            for t in range(1, 4):
                kept.append(
                    trunk(torch.cat([clip[:, t], backward_warp(kept[-1], flows[t - 1])], 1))
                )
            features["back" if trunk is net.backward_trunk else "front"] = kept
        for t, (back, front) in enumerate(
            zip(features["back"][::-1], features["front"], strict=True)
        ):
            x = leaky_relu(net.fusion(torch.cat([back, front], 1)), 0.1)
            for conv in (net.upconv1, net.upconv2):
                x = leaky_relu(conv2d(x, conv.weight, conv.bias, padding=1), 0.1)
                x = pixel_shuffle(x, 2)
            expected = net.conv_last(net.conv_hr(x)) + interpolate(
                lq[:, t], scale_factor=4.0, mode="bilinear"
            )
            torch.testing.assert_close(net(lq)[:, t], expected, rtol=0, atol=1e-6)


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


def test_the_clips_of_a_batch_do_not_meet() -> None:
    net, lq = _seeded(), torch.rand(2, 3, 3, 33, 40)
    with torch.no_grad():
        torch.testing.assert_close(net(lq)[1:], net(lq[1:]), rtol=0, atol=1e-5)
