import math
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.image_parity import assert_every_parameter_learns, load, published_keys, recorded_state
from helpers.recordings import recorded, recorded_input, rules
from tubelet.errors import ConfigError
from tubelet.models.rbpn import ARCHITECTURE, RBPN, RBPNConfig
from tubelet.models.rbpn_flow import estimate_flow
from tubelet.ops import imresize

TINY: dict[str, Any] = {
    "scale": 2,
    "num_frames": 3,
    "base_channels": 6,
    "channels": 4,
    "num_blocks": 1,
}


def _seeded(**changes: Any) -> RBPN:
    torch.manual_seed(0)
    return RBPN(RBPNConfig(**{**TINY, **changes})).eval()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("case", ["rbpn_A", "rbpn_x2_A"])
def test_recorded_outputs(recordings: Path, case: str, layout: torch.memory_format) -> None:
    description, (expected,) = recorded(recordings, case)
    model = load(ARCHITECTURE, recorded_state(recordings, description)).to(memory_format=layout)
    assert isinstance(model, RBPN)
    frames = list(recorded_input(recordings, case, tuple(description["inputs"]["x"])).unbind(1))
    shape = tuple(description["inputs"]["flows"])
    flows = (
        torch.from_numpy(rules(recordings).fill(f"flow:{case}:flows", shape))
        * 3
        * math.sqrt(math.prod(shape[1:]))
    )
    middle = frames.pop(len(frames) // 2)
    with torch.inference_mode():
        sr = model.restore(middle, frames, flows.unbind(1))
    tolerance = (
        max(1e-4, 20 * description["float64_max_abs_over_std"]) * description["output_stats"]["std"]
    )
    torch.testing.assert_close(sr, expected, rtol=0, atol=tolerance)


def test_forward_estimates_the_flow_to_each_neighbor() -> None:
    model = _seeded()
    lq = torch.rand(2, 3, 3, 24, 26)
    before, frame, after = lq.unbind(1)
    with torch.inference_mode():
        flows = [estimate_flow(frame, neighbor) for neighbor in (before, after)]
        expected = model.restore(frame, [before, after], flows)
        torch.testing.assert_close(model(lq)[:, 0], expected, rtol=0, atol=1e-5)


def test_the_bicubic_skip_is_added() -> None:
    plain = _seeded()
    skipping = _seeded(skip="bicubic")
    lq = torch.rand(1, 3, 3, 8, 9)
    with torch.inference_mode():
        torch.testing.assert_close(skipping(lq)[:, 0], plain(lq)[:, 0] + imresize(lq[:, 1], 2))


@pytest.mark.parametrize("changes", [{}, {"scale": 8}, {"num_frames": 7, "num_blocks": 2}])
def test_loads_its_own_names(changes: dict[str, Any]) -> None:
    model = _seeded(**changes)
    assert load(ARCHITECTURE, model.state_dict()).config == model.config


def test_the_published_size() -> None:
    with torch.device("meta"):
        model = RBPN(RBPNConfig())
    # 12.77 M in the paper's Table 2
    assert sum(p.numel() for p in model.parameters()) == 12_771_943


def test_refuses_other_files(recordings: Path) -> None:
    lists = [path.stem for path in (recordings / "keys").glob("*.txt")]
    assert len(lists) > 40
    assert [
        file
        for file in lists
        if ARCHITECTURE.translate(published_keys(recordings, file)) is not None
    ] == []
    assert ARCHITECTURE.translate({}) is None


def test_gradients_reach_every_parameter() -> None:
    assert_every_parameter_learns(_seeded(), torch.rand(1, 3, 3, 9, 8))


def test_refuses_a_configuration_out_of_range() -> None:
    for changes in (
        {"scale": 3},
        {"num_frames": 4},
        {"channels": 0},
        {"num_blocks": -1},
        {"skip": "bilinear"},
    ):
        with pytest.raises(ConfigError):
            RBPNConfig(**{**TINY, **changes})
