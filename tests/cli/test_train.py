import numpy as np
import pytest
from PIL import Image

from tubelet.cli import main
from tubelet.models.checkpoint import load_model

TINY = ["--model.channels", "4", "--model.depth", "0", "--crops.batch", "1", "--crops.frames", "2"]
TINY += ["--crops.patch-px", "6", "--loop.steps", "2", "--loop.log-every", "1"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder to work in, with a clip of noise in clips/noise."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clips" / "noise").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for t in range(3):
        pixels = rng.integers(0, 256, (36, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "clips" / "noise" / f"{t}.png")
    return tmp_path


def train(*args: str) -> int:
    return main(["train", "online", *args])


def test_trains_and_reads_its_own_configuration(folder, capsys):
    assert train("--data", "clips", "--out", "a", *TINY) == 0
    assert "wrote a/model.safetensors" in capsys.readouterr().out
    assert load_model("a/model.safetensors").config.channels == 4
    assert train("--config=a/config.yaml", "--out", "b", "--model.channels", "5") == 0
    assert load_model("b/model.safetensors").config.channels == 5
    written = (folder / "b" / "config.yaml").read_text("utf-8")
    assert written == (folder / "a" / "config.yaml").read_text("utf-8").replace("out: a", "out: b").replace(
        "channels: 4", "channels: 5"
    )


def test_a_run_that_is_refused_keeps_its_configuration(folder, capsys):
    train("--data", "clips", "--out", "a", *TINY)
    before = (folder / "a" / "config.yaml").read_text("utf-8")
    assert train("--config", "a/config.yaml", "--loop.steps", "3") == 3
    assert "steps=2" in capsys.readouterr().err
    assert (folder / "a" / "config.yaml").read_text("utf-8") == before
    assert train("--config", "a/config.yaml") == 0


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["train", "offline"], 2, "no recipe 'offline'"),
        (["train", "online", "--config"], 2, "--config needs"),
        (["train", "online", "--config", "absent.yaml"], 2, "cannot read configuration absent.yaml"),
        (["train", "online", "--data", "absent"], 3, "no such folder of clips: absent"),
    ],
)
def test_mistakes_give_one_line(folder, capsys, args, code, message):
    assert main(args) == code
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_help(capsys):
    assert main(["train", "--help"]) == 0
    assert main(["train"]) == 2
    assert "online   FastVSR" in capsys.readouterr().out
