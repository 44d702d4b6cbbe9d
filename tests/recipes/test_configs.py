from pathlib import Path

import pytest

from tubelet.errors import ConfigError
from tubelet.models.fast import FastConfig
from tubelet.recipes.configs import read_config, write_config
from tubelet.recipes.online import OnlineConfig
from tubelet.training import LoopSettings


def test_round_trip(tmp_path):
    config = OnlineConfig(
        data=(Path("a"), Path("b")),
        init=Path("c"),
        model=FastConfig(scale=2),
        loop=LoopSettings(lr=3e-4),
    )
    write_config(tmp_path / "c.yaml", config)
    assert read_config(tmp_path / "c.yaml", OnlineConfig) == config


def test_fields_left_out_keep_their_defaults(tmp_path):
    (tmp_path / "c.yaml").write_text("data: [clips]\nloop:\n  lr: 1e-4\n")
    config = read_config(tmp_path / "c.yaml", OnlineConfig)
    assert config == OnlineConfig(data=(Path("clips"),), loop=LoopSettings(lr=1e-4))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data: [a]\nlopp: {}", "unknown key 'lopp'; known are data"),
        ("data: [a]\nloop:\n  stepz: 5", "loop has unknown key 'stepz'"),
        ("data: [a]\nloop:\n  steps: many", "loop: steps is 'many'; it must be int"),
        ("data: [a]\nloop:\n  steps: true", "it must be int"),
        ("data: [a]\npreset: blurry", "must be one of bi, bi-u8"),
        ("data: [a]\nloop:\n  steps: 0", "at least 1"),
        ("data: clips", "data is 'clips'"),
        ("out: x", "data"),
        ("- a", "must hold `name: value` lines"),
        ("a: [", "is not YAML"),
    ],
)
def test_mistakes_are_named(tmp_path, text, message):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_config(tmp_path / "c.yaml", OnlineConfig)


def test_missing_file(tmp_path):
    with pytest.raises(ConfigError, match="cannot read configuration"):
        read_config(tmp_path / "absent.yaml", OnlineConfig)
