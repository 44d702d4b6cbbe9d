"""Other names of configuration fields: published names always, those of version 0.1 with a note."""

import dataclasses
import warnings
from pathlib import Path

import pytest

from tubelet.cli import main, train
from tubelet.cli.nested_flags import current_flags
from tubelet.errors import ConfigError
from tubelet.field_names import current_fields, current_path
from tubelet.models.edsr import EDSRConfig
from tubelet.models.fsrcnn import FSRCNNConfig
from tubelet.plain_data import build
from tubelet.recipes.supervised import configure
from tubelet.training import LoopSettings
from tubelet.zoo.architectures import ARCHITECTURES


def test_published_names_are_fields_without_a_note() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        config = build(EDSRConfig, {"num_feat": 8, "num_block": 2}, "edsr.yaml")
    assert config == EDSRConfig(channels=8, num_blocks=2)


def test_names_of_version_0_1_are_accepted_with_a_note() -> None:
    with pytest.warns(FutureWarning, match="'optimiser' is now 'optimizer'"):
        fields = current_fields(LoopSettings, {"optimiser": 1, "steps": 2})
    assert fields == {"optimizer": 1, "steps": 2}


def test_a_saved_configuration_of_version_0_1_keeps_its_meaning() -> None:
    """`channels` were those of the images there."""
    old = {"scale": 2, "channels": 3, "d": 20, "s": 6, "m": 1}
    fields = current_fields(FSRCNNConfig, old, quiet=True)
    assert FSRCNNConfig(**fields) == FSRCNNConfig(
        scale=2, image_channels=3, channels=20, shrunk_channels=6, num_blocks=1
    )
    assert current_fields(FSRCNNConfig, dataclasses.asdict(FSRCNNConfig())) == dataclasses.asdict(
        FSRCNNConfig()
    )


def test_every_part_of_a_path_is_renamed() -> None:
    with pytest.warns(FutureWarning):
        path = current_path(LoopSettings, "optimiser.slow_factor")
    assert path == "optimizer.lr_multiplier"
    assert current_path(LoopSettings, "schedule.kind") == "schedule.kind"


def test_a_wrong_name_is_still_refused() -> None:
    with pytest.raises(ConfigError, match="unknown key 'num_feats'; known are scale, channels"):
        build(EDSRConfig, {"num_feats": 8}, "edsr.yaml")


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda a: a.name)
def test_other_names_lead_to_fields(architecture) -> None:
    fields = {field.name for field in dataclasses.fields(architecture.config)}
    for table in ("PUBLISHED_NAMES", "FORMER_NAMES"):
        assert set(getattr(architecture.config, table, {}).values()) <= fields


@pytest.mark.filterwarnings("default::FutureWarning")
def test_a_former_flag_still_works_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", "online", "--data", str(tmp_path), "--out", str(tmp_path / "run")]
    code = main([*command, "--loop.optimiser.kind", "adamw", "--model.depth", "1"])
    error = capsys.readouterr().err.splitlines()
    assert code == 3  # the folder holds no clips
    assert error[:2] == [
        "tubelet: note: 'optimiser' is now 'optimizer'; the old name is accepted until version 0.2",
        "tubelet: note: 'depth' is now 'num_blocks'; the old name is accepted until version 0.2",
    ]


OPTIMIZER = "--loop.optimizer."
FORMER_OPTIMIZER = "--loop.optimiser."


@pytest.mark.parametrize(
    ("recipe", "former", "current"),
    [
        ("online", "--model.depth", "--model.num-blocks"),
        ("online", "--model.recall-px", "--model.recurrent-kernel-px"),
        ("online", f"{FORMER_OPTIMIZER}betas", f"{OPTIMIZER}betas"),
        ("online", f"{FORMER_OPTIMIZER}kind", f"{OPTIMIZER}kind"),
        ("online", f"{FORMER_OPTIMIZER}weight-decay", f"{OPTIMIZER}weight-decay"),
        ("spynet", f"{FORMER_OPTIMIZER}slow", f"{OPTIMIZER}low-lr-modules"),
        ("spynet", f"{FORMER_OPTIMIZER}slow-factor", f"{OPTIMIZER}lr-multiplier"),
        ("spynet", f"{FORMER_OPTIMIZER}frozen-steps", f"{OPTIMIZER}freeze-steps"),
        ("two-step", f"{FORMER_OPTIMIZER}alone", f"{OPTIMIZER}warmup-only-modules"),
        ("two-step", f"{FORMER_OPTIMIZER}alone_steps", f"{OPTIMIZER}warmup-only-steps"),
        ("two-step", "--network.base", "--network.channels"),
    ],
)
def test_flags_of_version_0_1_are_accepted(recipe: str, former: str, current: str) -> None:
    config = train._find_recipe(recipe).config
    with pytest.warns(FutureWarning, match="old name is accepted"):
        assert current_flags(config, [former, "1"]) == [current, "1"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert current_flags(config, [f"{current}=1"]) == [f"{current}=1"]


@pytest.mark.parametrize(
    ("model", "former", "current"),
    [
        ("edvr-m", "--network.extract-blocks", "--network.num-extract-blocks"),
        ("edvr-m", "--network.reconstruct-blocks", "--network.num-reconstruct-blocks"),
        ("FSRCNN", "--network.d", "--network.channels"),
        ("FSRCNN", "--network.s", "--network.shrunk-channels"),
        ("FSRCNN", "--network.m", "--network.num-blocks"),
    ],
)
def test_flags_of_networks_of_version_0_1_are_accepted(
    model: str, former: str, current: str
) -> None:
    config = type(configure(model))
    with warnings.catch_warnings():
        # Names that are also the published ones give no note.
        warnings.simplefilter("ignore", FutureWarning)
        assert current_flags(config, [former, "1"]) == [current, "1"]
