from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.clip_parity import assert_recognized
from helpers.image_parity import (
    assert_every_parameter_learns,
    assert_frames_are_encoded_once,
    load,
    published_keys,
    recorded_state,
)
from helpers.recordings import recorded, recorded_input
from tubelet.errors import ConfigError
from tubelet.models.tdan import ARCHITECTURE, TDAN, TDANConfig

TINY: dict[str, Any] = {
    "channels": 8,
    "groups": 2,
    "num_extract_blocks": 1,
    "num_reconstruct_blocks": 1,
    "num_frames": 3,
}


def _seeded(**changes: Any) -> TDAN:
    torch.manual_seed(0)
    model = TDAN(TDANConfig(**{**TINY, **changes})).eval()
    for name, parameter in model.named_parameters():
        if "conv_offset" in name:  # which starts at zero: no offsets
            torch.nn.init.normal_(parameter, std=0.1)
    return model


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    ("case", "subtracted", "changes"),
    [
        ("tdan_A_dcnv1", 0.0, {}),
        (
            "tdan_A",
            0.0,
            {"border": "zeros"},
        ),  # recorded with the other operation, which names cannot tell
        ("tdan_mmagic_A", 0.5, {}),  # recorded without taking the mean off the frames
    ],
)
def test_recorded_outputs(
    recordings: Path,
    case: str,
    subtracted: float,
    changes: dict[str, Any],
    layout: torch.memory_format,
) -> None:
    description, expected = recorded(recordings, case)
    model = load(ARCHITECTURE, recorded_state(recordings, description), **changes).to(
        memory_format=layout
    )
    assert isinstance(model, TDAN)
    lq = recorded_input(recordings, case, tuple(description["inputs"]["x"])) + subtracted
    with torch.inference_mode():
        sr, aligned = model(lq)[:, 0], model.align([model.encode(frame) for frame in lq.unbind(1)])
    for ours, theirs, stats in zip(
        (sr, aligned), expected, description["output_stats"], strict=True
    ):
        tolerance = max(1e-4, 20 * description["float64_max_abs_over_std"]) * stats["std"]
        torch.testing.assert_close(ours - 0.5, theirs, rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    ("file", "config", "parameters"),
    [
        ("tdan_official", TDANConfig(), 1_970_819),
        (
            "mmagic_tdan",
            TDANConfig(release="mmagic", deform="modulated", border="zeros"),
            2_095_707,
        ),
    ],
)
def test_recognizes_published_files(
    recordings: Path, file: str, config: TDANConfig, parameters: int
) -> None:
    assert_recognized(recordings, file, ARCHITECTURE, config, parameters)


@pytest.mark.parametrize(
    "changes", [{}, {"release": "mmagic", "border": "zeros"}, {"deform": "modulated"}]
)
def test_loads_its_own_names(changes: dict[str, Any]) -> None:
    model = _seeded(**changes)
    assert load(ARCHITECTURE, model.state_dict()).config == model.config


def test_leaves_other_files_alone(recordings: Path) -> None:
    others = [path.stem for path in (recordings / "keys").glob("*.txt") if "tdan" not in path.stem]
    assert len(others) > 40
    assert [
        file
        for file in others
        if ARCHITECTURE.translate(published_keys(recordings, file)) is not None
    ] == []
    assert ARCHITECTURE.translate({}) is None


@pytest.mark.parametrize(
    "changes", [{}, {"deform": "modulated", "release": "mmagic", "border": "zeros"}]
)
def test_gradients_reach_every_parameter(changes: dict[str, Any]) -> None:
    assert_every_parameter_learns(_seeded(**changes), torch.rand(1, 3, 3, 12, 13))


def test_frames_are_encoded_once_for_all_windows() -> None:
    assert_frames_are_encoded_once(_seeded(), torch.rand(1, 5, 3, 13, 11))


def test_brightness_is_kept() -> None:
    """The network sees frames less their mean: what it makes of gray is about gray, for whatever weights."""
    model = _seeded()
    with torch.inference_mode():
        for parameter in model.parameters():
            parameter.zero_()
        assert torch.equal(model(torch.rand(1, 3, 3, 8, 8)), torch.full((1, 1, 3, 32, 32), 0.5))


def test_tiles_with_the_stated_halo_equal_the_whole() -> None:
    model = _seeded(num_frames=1)
    contract = ARCHITECTURE.contract(model.config)
    assert contract is not None
    lq = torch.rand(1, 1, 3, 16, 128)
    changed = lq.clone()
    changed[..., contract.halo_px + 16 :] = 0  # beyond what the first 16 columns see
    with torch.inference_mode():
        difference: Tensor = (model(lq) - model(changed))[..., : 4 * 16]
    assert difference.abs().max() < 1e-3 * model(lq).std()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_frames": 4}, "num_frames=4 must be odd"),
        ({"groups": 3}, "groups=3 must divide channels=8"),
        ({"deform": "other"}, "deform='other' must be plain or modulated"),
        ({"release": "other"}, "release='other' must be authors or mmagic"),
        ({"border": "other"}, "border='other' must be zeros or original"),
        ({"channels": 0}, "channels=0 must be at least 1"),
        ({"num_extract_blocks": -1}, "num_extract_blocks=-1 must be at least 0"),
    ],
)
def test_refuses_a_configuration_out_of_range(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TDANConfig(**{**TINY, **changes})
