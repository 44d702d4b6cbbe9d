from pathlib import Path

import pytest
import torch

from helpers.image_parity import published_keys
from tubelet.models.spynet import ARCHITECTURE, rename_spynet


def test_recognizes_the_published_file(recordings: Path) -> None:
    state = ARCHITECTURE.translate(published_keys(recordings, "basicsr_spynet"))
    assert state is not None
    with torch.device("meta"):
        network = ARCHITECTURE.build(ARCHITECTURE.infer(state))
    network.load_state_dict(state, strict=True, assign=True)


def test_recognizes_the_names_of_mmagic(recordings: Path) -> None:
    names = published_keys(recordings, "mmagic_basicvsr")
    state = ARCHITECTURE.translate(
        {
            name.removeprefix("spynet."): value
            for name, value in names.items()
            if name.startswith("spynet.")
        }
    )
    assert state is not None
    assert set(state) == set(ARCHITECTURE.build(ARCHITECTURE.infer(state)).state_dict())


def test_names_of_mmagic() -> None:
    state = {f"spynet.basic_module.2.basic_module.{i}.conv.bias": torch.tensor(i) for i in range(5)}
    renamed = rename_spynet({**state, "fusion.conv.weight": torch.tensor(7)})
    assert {name: int(value) for name, value in renamed.items()} == {
        **{f"spynet.basic_module.2.basic_module.{2 * i}.bias": i for i in range(5)},
        "fusion.conv.weight": 7,
    }


def test_leaves_other_files_alone(recordings: Path) -> None:
    files = [
        path.stem for path in (recordings / "keys").glob("*.txt") if path.stem != "basicsr_spynet"
    ]
    assert [
        file
        for file in files
        if ARCHITECTURE.translate(published_keys(recordings, file)) is not None
    ] == []


@pytest.mark.parametrize("missing", ["basic_module.5.basic_module.8.weight"])
def test_a_pyramid_of_fewer_levels_is_another_network(missing: str) -> None:
    state = ARCHITECTURE.build(ARCHITECTURE.infer({})).state_dict()
    assert ARCHITECTURE.translate(state) is not None
    del state[missing]
    assert ARCHITECTURE.translate(state) is None
