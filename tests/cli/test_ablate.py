import csv

import numpy as np
import pytest
import torch
from PIL import Image

from tubelet.cli import main
from tubelet.recipes import two_step
from tubelet.studies.two_step import VARIANTS

SMALL = [
    "--network.channels",
    "1",
    "--network.norm",
    "none",
    "--crops.patch-px",
    "16",
    "--score-px",
    "16",
]
SMALL += ["--crops.crops-per-triplet", "2", "--batch", "2"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder to work in, with three clips of noise in clips."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for name in ("a", "b", "c"):
        (tmp_path / "clips" / name).mkdir(parents=True)
        for t in range(3):
            pixels = rng.integers(0, 256, (72, 84, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "clips" / name / f"{t}.png")
    return tmp_path


def test_trains_two_step_over_an_image_model(folder, capsys):
    args = [
        "train",
        "two-step",
        "--data",
        "clips",
        "--image-model",
        "bicubic-x2",
        "--out",
        "a",
        *SMALL,
    ]
    assert main([*args, "--scale", "2", "--loop.steps", "1", "--loop.log-every", "1"]) == 0
    out = capsys.readouterr().out
    assert "two-step x2 over bicubic-x2: 0." in out
    assert "step 1/1  psnr_y" in out
    assert "wrote a/model.safetensors; use it with: tubelet upscale" in out
    assert (
        main(["train", "two-step", "--config", "a/config.yaml", "--out", "b", "--epochs", "1"]) == 0
    )
    out = capsys.readouterr().out
    assert "1 epochs of 2 crops, 16 px" in out
    assert "step 1  psnr_y" in out  # how many there are, only the data tells
    assert (
        main(["train", "two-step", "--config", "b/config.yaml", "--out", "c", "--loop.steps", "2"])
        == 0
    )
    assert "2 steps of 2 crops" in capsys.readouterr().out
    assert main(["train", "two-step", "--config", "b/config.yaml", "--preset", "paper"]) == 2
    assert "leave one of them out" in capsys.readouterr().err


def test_a_refused_run_leaves_the_settings_of_the_one_that_is_there(folder, capsys, monkeypatch):
    args = [
        "train",
        "two-step",
        "--data",
        "clips",
        "--image-model",
        "bicubic-x2",
        "--out",
        "a",
        *SMALL,
    ]
    with monkeypatch.context() as patch:
        patch.setattr(two_step, "train", _interrupt)
        assert main([*args, "--loop.steps", "1"]) == 130
    assert capsys.readouterr().err.endswith("interrupted; run the same command again to resume\n")
    before = (folder / "a" / "config.yaml").read_text()
    assert main([*args, "--loop.steps", "1", "--loss", "mse"]) == 3
    assert "is of a run with loss=mae, not loss=mse" in capsys.readouterr().err
    assert (folder / "a" / "config.yaml").read_text() == before
    assert main([*args, "--loop.steps", "1"]) == 0


def _interrupt(*args, **kwargs):
    raise KeyboardInterrupt


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(
    "command", [["train", "two-step", "--loop.device"], ["ablate", "two-step", "--device"]]
)
def test_a_device_that_is_not_there_gives_one_line(folder, capsys, command):
    args = ["--data", "clips", "--image-model", "bicubic-x2", "--out", "a"]
    assert main([*command, "cuda", *args]) == 4
    assert "device='cuda' is not available on this machine; give cpu" in capsys.readouterr().err


def test_help_of_two_step_teaches(capsys):
    with pytest.raises(SystemExit):
        main(["train", "two-step", "--preset", "paper", "--help"])
    out = capsys.readouterr().out
    assert "--preset small" in out
    assert "(default: 64)" in out  # crops of a step, as published


def test_clips_that_are_too_small_give_one_line(folder, capsys):
    args = [
        "ablate",
        "two-step",
        "--data",
        "clips",
        "--image-model",
        "bicubic-x2",
        "--out",
        "two-step",
        "--base",
        "1",
    ]
    assert main([*args, "--steps", "1", "--seeds", "1"]) == 3
    assert "64 px" in capsys.readouterr().err  # the clips are smaller than what preset small scores


@pytest.mark.slow
def test_ablates_to_the_end(folder, capsys):
    for clip in (folder / "clips").iterdir():
        for image in clip.iterdir():
            Image.open(image).resize((192, 192)).save(image)
    args = [
        "ablate",
        "two-step",
        "--data",
        "clips",
        "--image-model",
        "bicubic-x2",
        "--out",
        "a",
        "--base",
        "1",
    ]
    assert main([*args, "--steps", "1", "--seeds", "1"]) == 0
    out = capsys.readouterr().out
    assert "encoder loss, α = 0.08, seed 0: " in out
    assert "inconclusive    MAE > MSE" in out
    with (folder / "a" / "results.csv").open(encoding="utf-8") as lines:
        assert [row["variant"] for row in csv.DictReader(lines)] == [
            variant.name for variant in VARIANTS
        ]


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["ablate"], 2, "unknown study ''; known are two-step, lrti"),
        (["ablate", "one-step"], 2, "unknown study 'one-step'; did you mean two-step?"),
        (["ablate", "two-step", "--image-model", "bicubic-x2"], 2, "no data to train on"),
        (["ablate", "two-step", "--seeds", "0"], 2, "seeds, steps and base must be at least 1"),
        (
            ["train", "two-step", "--preset", "large"],
            2,
            "unknown preset 'large'; there are: paper, small",
        ),
        (["train", "two-step", "--data", "clips"], 2, "which image model?"),
    ],
)
def test_mistakes_give_one_line(folder, capsys, args, code, message):
    assert main(args) == code
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_help_names_the_studies(capsys):
    assert main(["ablate", "--help"]) == 0
    out = capsys.readouterr().out
    assert "--image-model" in out
    assert "frozen image model, and training with MSE, MAE" in out
    assert "tubelet ablate lrti --data clips/ --studies mechanism" in out


@pytest.mark.parametrize(
    ("study", "words"),
    [
        ("two-step", ("--image-model", "encoder\nloss")),
        ("lrti", ("--studies", "on which there is nothing to gain", "plan.json before the first")),
    ],
)
def test_help_of_a_study_teaches(capsys, study, words):
    with pytest.raises(SystemExit) as stop:
        main(["ablate", study, "--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    for word in words:
        assert word in out
