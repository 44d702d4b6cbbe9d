import json

import numpy as np
import pytest
from PIL import Image

from tubelet.cli import main
from tubelet.zoo.checkpoint import load_model

TINY = [
    "--model.channels",
    "4",
    "--model.num-blocks",
    "0",
    "--crops.batch",
    "1",
    "--crops.frames",
    "2",
]
LOOP = ["--loop.steps", "2", "--loop.log-every", "1"]
TINY += ["--crops.patch-px", "6", *LOOP]


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
    assert written == (folder / "a" / "config.yaml").read_text("utf-8").replace(
        "out: a", "out: b"
    ).replace("channels: 4", "channels: 5")


def test_a_run_that_is_refused_keeps_its_configuration(folder, capsys):
    train("--data", "clips", "--out", "a", *TINY)
    before = (folder / "a" / "config.yaml").read_text("utf-8")
    assert train("--config", "a/config.yaml", "--loop.steps", "3") == 3
    assert "steps=2" in capsys.readouterr().err
    assert (folder / "a" / "config.yaml").read_text("utf-8") == before
    assert train("--config", "a/config.yaml") == 0


def test_events_for_programs(folder, capsys):
    assert train("--data", "clips", "--out", "a", *TINY, "--progress", "json") == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    kinds = [event["event"] for event in events]
    assert (kinds[0], kinds[-1]) == ("start", "end")
    assert [event["step"] for event in events if event["event"] == "log" and "loss" in event] == [
        1,
        2,
    ]
    last = [event for event in events if event["event"] == "progress"][-1]
    assert (last["done"], last["total"], last["unit"], last["eta_s"]) == (2, 2, "step", 0)
    assert train("--config", "a/config.yaml", "--loop.steps", "3", "--progress", "json") == 3
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["exit_code"] == 3


def test_trains_spynet_on_images(folder, capsys):
    flags = [
        "--hold-out",
        "3",
        "--levels",
        "1",
        "--motion.batch",
        "4",
        "--motion.patch-px",
        "8",
        *LOOP,
    ]
    assert main(["train", "spynet", "--data", "clips/noise", "--out", "a", *flags]) == 3
    assert "64" in capsys.readouterr().err  # the images are too small
    for t in range(3):
        rng = np.random.default_rng(t)
        Image.fromarray(rng.integers(0, 256, (80, 90, 3), dtype=np.uint8)).save(
            folder / "clips" / "noise" / f"{t}.png"
        )
    assert main(["train", "spynet", "--data", "clips/noise", "--out", "a", *flags]) == 0
    out = capsys.readouterr().out
    assert "epe_zero" in out
    assert (
        "wrote a/model.safetensors; train finer levels from it with: --levels N --init a/model.safe"
        in out
    )
    assert (
        main(
            [
                "train",
                "spynet",
                "--config",
                "a/config.yaml",
                "--out",
                "b",
                "--init",
                "a/model.safetensors",
            ]
        )
        == 0
    )
    assert "levels: 1" in (folder / "b" / "config.yaml").read_text("utf-8")


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["train", "offline"], 2, "unknown recipe 'offline'"),
        (["train", "online", "--config"], 2, "--config needs"),
        (["train", "online", "--progress", "jsn"], 2, "did you mean json?"),
        (
            ["train", "online", "--config", "absent.yaml"],
            2,
            "cannot read configuration absent.yaml",
        ),
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
    assert "spynet       SpyNet" in capsys.readouterr().out


SMALL = [
    "--network.channels",
    "4",
    "--network.num-blocks",
    "1",
    "--crops.batch",
    "1",
    "--crops.frames",
    "2",
]
SMALL += ["--crops.patch-px", "6", *LOOP]


def supervised(*args: str) -> int:
    return main(["train", "supervised", *args])


def test_supervised_trains_a_network_by_its_name(folder, capsys):
    assert supervised("--model", "rrn", "--data", "clips", *SMALL) == 0
    output = capsys.readouterr().out
    assert "rrn: RRN x4" in output
    assert "Isobe et al., BMVC 2020" in output
    assert "step 2/2  loss" in output
    assert "tubelet upscale IN OUT --model runs/rrn/model.safetensors" in output
    assert load_model("runs/rrn/model.safetensors").config.channels == 4
    assert supervised("--config=runs/rrn/config.yaml", "--out", "b", "--network.channels", "5") == 0
    assert load_model("b/model.safetensors").config.channels == 5
    written = (folder / "b" / "config.yaml").read_text("utf-8")
    assert "loss_reduction: sum" in written
    assert (
        supervised("--config", "b/config.yaml", "--model", "RRN") == 0
    )  # it is done, and stays as it is


def test_supervised_lists_its_networks(capsys):
    assert supervised("--help") == 0
    output = capsys.readouterr().out
    assert "basicvsr_pp      Chan et al., CVPR 2022" in output
    assert "TDAN" in output


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        ([], 2, "no network is given; use --model NAME"),
        (["--model"], 2, "--model needs the name of a network"),
        (["--model", "edvr-n"], 2, "did you mean edvr-m"),
        (["--model", "spynet"], 2, "no network to train is called 'spynet'"),
        (["--model", "edvr-m"], 2, "no data to train on"),
        (["--model", "edvr-m", "--data", "clips", "--crops.patch-px", "30"], 2, "use 32"),
        (
            ["--model", "edvr-m", "--data", "clips", "--network.num-frames", "7"],
            2,
            "the middle one of 7 frames",
        ),
        (["--model", "edvr-m", "--config", "rrn.yaml"], 2, "rrn.yaml is for model rrn, not edvr-m"),
        (
            ["--config", "rrn.yaml"],
            2,
            "network has unknown key 'groups'; known are scale, channels, num_blocks",
        ),
        (["--config", "absent.yaml"], 2, "cannot read configuration absent.yaml"),
        (["--model", "rrn", "--data", "absent"], 3, "no such folder of clips: absent"),
    ],
)
def test_mistakes_of_supervised_give_one_line(folder, capsys, args, code, message):
    (folder / "rrn.yaml").write_text("model: rrn\nnetwork: {groups: 8}\n")
    assert supervised(*args) == code
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


LONG = ["--clip", "5", "--length", "1", "--samples", "2", "--loop.save-every", "2"]
LONG += ["--network.channels", "4", "--network.num-precursor-blocks", "1"]
LONG += ["--network.num-successor-blocks", "1", "--batch", "1", "--patch-px", "6", *LOOP]


@pytest.fixture
def long_folder(folder):
    """The folder with clips of five frames and of three."""
    frames = folder / "clips" / "longer"
    frames.mkdir()
    rng = np.random.default_rng(1)
    for t in range(5):
        pixels = rng.integers(0, 256, (36, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(frames / f"{t}.png")
    return folder


def lrti(*args: str) -> int:
    return main(["train", "lrti", *args])


def test_lrti_trains_a_recurrent_network_on_long_clips(long_folder, capsys):
    assert lrti("--model", "ovsr", "--data", "clips", *LONG) == 0
    output = capsys.readouterr().out
    assert "OVSR x4" in output
    assert "strategy truncated: 2 steps, batch 1, 1 frames of 6 px" in output
    assert "times as long as plain training on 1 frames" in output
    assert "1 of 2 clips have fewer than 5 frames: not used" in output
    assert "tubelet upscale IN OUT --model runs/lrti-ovsr/model.safetensors" in output
    # Again, from the file of the run, with another strategy.
    config = ["--config", "runs/lrti-ovsr/config.yaml", "--out", "b"]
    assert lrti(*config, "--strategy=plain-same-samples") == 0
    assert "strategy: plain-same-samples" in (long_folder / "b" / "config.yaml").read_text("utf-8")
    capsys.readouterr()
    assert lrti("--config", "b/config.yaml", "--progress", "json") == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    notes = [event["note"] for event in events if event["event"] == "log"]
    assert notes == ["1 of 2 clips have fewer than 5 frames: not used"]
    assert lrti("--config", "b/config.yaml", "--length", "3", "--starts", "all") == 3
    assert "is of a run with length=1, not length=3" in capsys.readouterr().err


def test_lrti_teaches_its_strategies_networks_and_presets(capsys):
    assert lrti("--help") == 0
    output = capsys.readouterr().out
    for word in (
        "--strategy truncated",
        "--starts all",
        "BasicVSRPlusPlus",
        "psrt-tb",
        "about 1 +",
    ):
        assert word in output
    assert max(map(len, output.splitlines())) <= 100


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        ([], 2, "no network is given; use --model NAME or --preset NAME"),
        (["--preset", "papr"], 2, "no preset is called 'papr'; did you mean paper?"),
        (["--preset", "small", "--config", "c.yaml"], 2, "leave one of them out"),
        (["--model", "ovsr", "--strategy", "truncatd"], 2, "did you mean truncated?"),
        (["--model", "edvr-m", "--data", "clips"], 2, "EDVR has no boundary states"),
        (["--model", "ovsr", "--data", "clips", "--clip", "9"], 2, "clip=9 is too short"),
        (["--model", "ovsr", "--data", "clips", "--samples", "7"], 2, "use 5005"),
        (["--model", "ovsr", "--data", "clips"], 3, "none of 1 clips has 40 frames"),
        (["--model", "ovsr"], 2, "no data to train on"),
    ],
)
def test_mistakes_of_lrti_give_one_line(folder, capsys, args, code, message):
    assert lrti(*args, *(["--patch-px", "6"] if "--data" in args else [])) == code
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (folder / "runs" / "lrti-ovsr" / "state.pt").exists()


def test_a_training_that_diverges_gives_one_line(folder, capsys):
    rate = ["--loop.lr", "1e30", "--loop.lr-final", "1e30", "--loop.warmup-steps", "0"]
    assert train("--data", "clips", "--out", "a", *TINY, *rate, "--loop.steps", "9") == 5
    error = capsys.readouterr().err
    assert "the training diverged at step" in error
    assert error.count("\n") == 1
