from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from helpers.clip_parity import assert_clip_as_recorded, assert_recognized
from helpers.image_parity import assert_every_parameter_learns, published_keys
from tubelet.errors import ConfigError
from tubelet.layers.chain import CHAIN_SWEEPS
from tubelet.layers.inference import prepare_for_inference
from tubelet.layers.upsampling import shuffle_x4
from tubelet.models.iart import ARCHITECTURE, IART, IARTConfig
from tubelet.ops.warp import backward_warp
from tubelet.zoo.checkpoint import open_checkpoint

TINY: dict[str, Any] = {
    "channels": 8,
    "depths": (2, 1),
    "num_heads": (2, 4),
    "window": 4,
    "mid_channels": 4,
    "hr_channels": 6,
}


def _seeded(**changes: Any) -> IART:
    torch.manual_seed(0)
    network = IART(IARTConfig(**{**TINY, **changes}))
    for name, parameter in network.named_parameters():
        # Linear layers start near zero, so that alignment and attention would hardly matter.
        if parameter.ndim == 2:
            nn.init.normal_(parameter, std=0.3)
        if name.startswith("spynet") and name.endswith("8.weight"):
            nn.init.normal_(parameter, std=0.1)
    return network.eval()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_gives_the_recorded_output(recordings: Path, layout: torch.memory_format) -> None:
    assert_clip_as_recorded(recordings, "iart_A", layout)


def test_recognizes_the_published_files(recordings: Path) -> None:
    assert_recognized(recordings, "iart_reds", ARCHITECTURE, IARTConfig(), 13_410_503)


def test_infers_the_configuration_it_was_built_with() -> None:
    network, lq = _seeded(drop_path=0.1), torch.rand(1, 3, 3, 9, 10)
    state = network.state_dict()
    # The codes of the neighbors follow from the number of channels.
    del state["implicit_warp.position_bias"]
    opened = open_checkpoint(state)
    assert opened.architecture is ARCHITECTURE
    assert opened.config == network.config
    with torch.no_grad():
        assert torch.equal(opened.model.eval()(lq), network(lq))


def test_leaves_files_of_other_networks_alone(recordings: Path) -> None:
    state = published_keys(recordings, "iart_reds")
    aligned_by_patches = {n: x for n, x in state.items() if not n.startswith("implicit_warp")}
    assert ARCHITECTURE.translate(aligned_by_patches) is None
    assert ARCHITECTURE.translate({**state, "another.weight": torch.zeros(1)}) is None
    assert ARCHITECTURE.translate({}) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"channels": 10, "num_heads": (2, 5)}, "channels=10 must be a multiple of 4"),
        ({"channels": 64, "num_heads": (2, 2)}, "channels=64 is not possible"),
        ({"num_heads": (3, 2)}, "must divide channels=8"),
        ({"window": 1}, "window=1 must be at least 2"),
    ],
)
def test_rejects_impossible_shapes(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        IARTConfig(**{**TINY, **changes})


def _plainly(net: IART, lq: Tensor) -> Tensor:
    """The chain in the order of the paper, one frame after the other."""
    frames = lq.unbind(1)
    feats = [net.conv_first(frame) for frame in frames]
    for name in CHAIN_SWEEPS:
        order = list(range(len(frames)))[:: -1 if "backward" in name else 1]
        states: list[Tensor] = []
        for i, t in enumerate(order):
            newer = older = feats[t]
            if i > 0:
                flow_1 = net.spynet(frames[t], frames[order[i - 1]])
                newer = net.implicit_warp(states[-1], flow_1, feats[t])
                older = torch.zeros_like(newer)
            if i > 1:
                hop = net.spynet(frames[order[i - 1]], frames[order[i - 2]])
                flow_2 = flow_1 + backward_warp(hop, flow_1)
                older = net.implicit_warp(states[-2], flow_2, feats[t])
            states.append(net.sweeps[name](feats[t], newer, older))
        feats = states[:: -1 if "backward" in name else 1]
    return torch.stack([_reconstruct(net, *both) for both in zip(feats, frames, strict=True)], 1)


def _reconstruct(net: IART, feat: Tensor, frame: Tensor) -> Tensor:
    base = functional.interpolate(frame, scale_factor=4, mode="bilinear")
    convs = (net.upconv1, net.upconv2, net.conv_hr, net.conv_last)
    return shuffle_x4(net.conv_before_upsample(feat), base, convs)


class _Flow(nn.Module):
    """Stands in for SpyNet, which takes most of the time: flows of a pixel or so."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(6, 2, 3, padding=1)

    def forward(self, ref: Tensor, supp: Tensor) -> Tensor:
        return 3 * self.conv(torch.cat([ref, supp], 1))


def test_equals_the_equations_written_plainly() -> None:
    net, lq = _seeded(), torch.rand(2, 4, 3, 11, 14, dtype=torch.float64)
    net.spynet = _Flow()  # type: ignore[assignment]
    net.double()
    with torch.no_grad():
        sr = net(lq)
        torch.testing.assert_close(sr, _plainly(net, lq), rtol=0, atol=1e-10)
        torch.testing.assert_close(prepare_for_inference(net)(lq), sr, rtol=0, atol=1e-10)
        torch.testing.assert_close(net(lq[1:]), sr[1:], rtol=0, atol=1e-10)


def test_gradients_reach_every_used_parameter() -> None:
    net, lq = _seeded(drop_path=0.0), torch.rand(1, 3, 3, 12, 16)
    del net.unused
    assert_every_parameter_learns(net, lq)


def test_unused_layers_change_nothing() -> None:
    net, lq = _seeded(), torch.rand(1, 2, 3, 8, 8)
    with torch.no_grad():
        sr = net(lq)
        for parameter in net.unused.parameters():
            parameter.fill_(torch.nan)
        assert torch.equal(net(lq), sr)


@pytest.mark.parametrize("frames", [1, 2])
def test_short_clips_of_odd_size(frames: int) -> None:
    with torch.no_grad():
        assert _seeded()(torch.rand(1, frames, 3, 7, 9)).shape == (1, frames, 3, 28, 36)
