from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.image_parity import (
    assert_every_parameter_learns,
    assert_frames_are_encoded_once,
    load,
    published_keys,
    recorded_state,
)
from helpers.recordings import recorded, recorded_input
from tubelet.errors import ConfigError
from tubelet.models.toflow import ARCHITECTURE, TOFlow, TOFlowConfig
from tubelet.ops import imresize


def _seeded(**changes: Any) -> TOFlow:
    torch.manual_seed(0)
    return TOFlow(TOFlowConfig(**{"num_frames": 3, **changes})).eval()


def _recorded_state(recordings: Path, description: dict[str, Any]) -> dict[str, Tensor]:
    """Make the weights of a case; what keeps its constructor's value is zero, but for ImageNet's mean and deviation."""
    state = recorded_state(recordings, description)
    for name in description["kept"]:
        state[name] = torch.zeros_like(state[name])
    state["mean"] = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
    state["std"] = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
    return state


def _mmagic(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Name a state dict of BasicSR as MMagic would."""
    renamed: dict[str, Tensor] = {}
    for name, value in state.items():
        parts = name.split(".")
        if parts[0] == "spynet":
            index = int(parts[4])
            name = ".".join([*parts[:4], str(index // 3), "bn" if index % 3 else "conv", parts[5]])
        elif parts[0] in ("mean", "std"):
            continue
        renamed[name.replace("conv_", "conv")] = value
    return renamed


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_recorded_outputs(recordings: Path, layout: torch.memory_format) -> None:
    description, (expected,) = recorded(recordings, "toflow_A")
    model = load(ARCHITECTURE, _recorded_state(recordings, description), scale=1).to(
        memory_format=layout
    )
    with torch.inference_mode():  # of frames that were enlarged before
        sr = model(recorded_input(recordings, "toflow_A", tuple(description["inputs"]["x"])))
    tolerance = (
        max(1e-4, 20 * description["float64_max_abs_over_std"]) * description["output_stats"]["std"]
    )
    torch.testing.assert_close(sr[:, 0], expected, rtol=0, atol=tolerance)


def test_frames_are_enlarged_first() -> None:
    model, enlarged, lq = _seeded(), _seeded(scale=1), torch.rand(1, 3, 3, 6, 4)
    with torch.inference_mode():
        assert torch.equal(model(lq), enlarged(imresize(lq, 4)))


@pytest.mark.parametrize("file", ["basicsr_tof", "mmagic_tof"])
def test_recognizes_published_files(recordings: Path, file: str) -> None:
    state = ARCHITECTURE.translate(published_keys(recordings, file))
    assert state is not None
    assert ARCHITECTURE.infer(state) == TOFlowConfig()
    with torch.device("meta"):
        model = TOFlow(TOFlowConfig())
    derived = {
        name: value
        for name, value in model.state_dict().items()
        if name.endswith(ARCHITECTURE.derived)
    }
    model.load_state_dict({**derived, **state}, strict=True, assign=True)
    assert sum(p.numel() for p in model.parameters()) == 1_405_899


def test_the_converted_file_of_mmagic_wants_the_middle_frame_first(recordings: Path) -> None:
    """Its convolution takes [3, 0, 1, 2, 4, 5, 6]; read, it takes frames in the order of time."""
    state = _recorded_state(recordings, recorded(recordings, "toflow_A")[0])
    first = load(ARCHITECTURE, state, order="middle_first", scale=1)
    own = ARCHITECTURE.translate(_mmagic(state))
    assert own is not None
    model = TOFlow(TOFlowConfig(scale=1)).eval()
    model.load_state_dict({**model.state_dict(), **own})
    lq = torch.rand(1, 7, 3, 16, 16)
    with torch.inference_mode():
        torch.testing.assert_close(model(lq), first(lq), rtol=0, atol=1e-5)
        assert (load(ARCHITECTURE, state, scale=1)(lq) - first(lq)).abs().max() > 1e-2


def test_loads_its_own_names() -> None:
    assert load(ARCHITECTURE, _seeded().state_dict()).config == TOFlowConfig(num_frames=3)


def test_leaves_other_files_alone(recordings: Path) -> None:
    others = [path.stem for path in (recordings / "keys").glob("*.txt") if "_tof" not in path.stem]
    assert len(others) > 40
    assert [
        file
        for file in others
        if ARCHITECTURE.translate(published_keys(recordings, file)) is not None
    ] == []
    assert ARCHITECTURE.translate({}) is None


def test_gradients_reach_every_parameter() -> None:
    assert_every_parameter_learns(_seeded(), torch.rand(2, 3, 3, 4, 6))


def test_flow_points_from_the_middle_frame_into_the_neighbor() -> None:
    """With a network that finds one pixel to the right at the finest level, that is where neighbors are read."""
    model = _seeded(scale=1)
    with torch.inference_mode():
        for parameter in model.parameters():
            parameter.zero_()
        last = model.flow[-1].last
        last.bias[0] = 1.0
        middle, neighbor = (model.encode(torch.rand(1, 3, 8, 16)) for _ in range(2))
        flow = model.estimate_flow(middle, neighbor)
    assert torch.equal(flow[:, 0], torch.ones(1, 8, 16))
    assert not flow[:, 1].any()


def test_frames_are_encoded_once_for_all_windows() -> None:
    assert_frames_are_encoded_once(_seeded(scale=2), torch.rand(1, 5, 3, 8, 4))


@pytest.mark.parametrize(("scale", "multiple"), [(1, 8), (2, 4), (3, 8), (4, 2)])
def test_the_smallest_size(scale: int, multiple: int) -> None:
    model = _seeded(scale=scale, num_frames=1)
    contract = ARCHITECTURE.contract(model.config)
    assert contract is not None
    assert contract.size_multiple == contract.min_size_px == multiple
    with torch.inference_mode():
        sr = model(torch.rand(1, 1, 3, multiple, 2 * multiple))
    assert sr.shape == (1, 1, 3, scale * multiple, scale * 2 * multiple)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scale": 0}, "scale=0 must be at least 1"),
        ({"num_frames": 4}, "num_frames=4 must be odd"),
        ({"order": "backwards"}, "order='backwards' must be time or middle_first"),
    ],
)
def test_refuses_a_configuration_out_of_range(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TOFlowConfig(**changes)
