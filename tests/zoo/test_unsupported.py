"""Networks that Tubelet recognizes but cannot run; `test_recognition` tests published ones."""

import pytest
import torch

from tubelet.errors import CheckpointError
from tubelet.zoo.checkpoint import load_model
from tubelet.zoo.unsupported import UNSUPPORTED, recognize_unsupported


def names_of(patterns: tuple[str, ...]) -> list[str]:
    """Make a name that each pattern matches."""
    return [
        pattern.replace(r"\d+", "1").replace(r"\d", "1").replace(".*", "x").replace("\\", "")
        for pattern in patterns
    ]


@pytest.mark.parametrize("foreign", UNSUPPORTED, ids=lambda foreign: foreign.name)
def test_each_network_is_recognized_by_all_of_its_names(foreign) -> None:
    names = names_of(foreign.has)
    assert recognize_unsupported(names) is foreign
    assert all(
        recognize_unsupported([other for other in names if other != name]) is not foreign
        for name in names
    )
    for unwanted in names_of(foreign.lacks):
        assert recognize_unsupported([*names, unwanted]) is not foreign


def test_a_discriminator_is_not_unknown_but_of_no_use() -> None:
    state = {name: torch.zeros(1) for name in ("conv0.weight", "conv1.weight_orig", "conv9.weight")}
    with pytest.raises(
        CheckpointError, match="is a discriminator of BasicSR: it scores images and outputs none"
    ):
        load_model({"params": state})


def test_a_network_that_cannot_be_run_is_named() -> None:
    state = {"module.model.diffusion_model.input_blocks.0.weight": torch.zeros(1)}
    with pytest.raises(
        CheckpointError,
        match=r"is Stable Diffusion \(.*\): Tubelet has no network for it yet",
    ):
        load_model({"params": state})


def test_unknown_names_match_no_network() -> None:
    assert recognize_unsupported(["conv_first.weight"]) is None
    assert recognize_unsupported([]) is None
