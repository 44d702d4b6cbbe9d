"""The documents: links lead somewhere, the commands that they show exist, and their examples run."""

import re
import shlex
import sys
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from helpers.videos import make_plain
from tubelet.cli import VERBS
from tubelet.models.contracts import check_contract
from tubelet.models.fast import FastConfig, FastVSR
from tubelet.restore.engine import Engine
from tubelet.restore.settings import UpscaleSettings
from tubelet.types import Frame
from tubelet.zoo import catalog as zoo
from tubelet.zoo import checkpoint
from tubelet.zoo.checkpoint import save_checkpoint
from tubelet.zoo.spec import ModelSpec

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


def flags_of(command: list[str], capsys: pytest.CaptureFixture[str]) -> set[str]:
    from tubelet.cli import main

    with pytest.raises(SystemExit):
        main([*command, "--help"])
    return set(re.findall(r"(?<![\w-])--?[a-zA-Z][\w-]*", capsys.readouterr().out))


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_relative_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)", path.read_text("utf-8")):
        if "://" not in target and not target.startswith("mailto:"):
            assert (path.parent / target).exists(), f"{path.name} links to {target}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_commands_that_are_shown_exist(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = path.read_text("utf-8")
    blocks = re.findall(r"```(?:console|sh|bash)\n(.*?)```", text, re.DOTALL)
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for line in "\n".join(blocks).splitlines():
        for command in re.split(r"[|;]|&&", line.split("  #")[0]):
            words = shlex.split(command, comments=True)
            if words[:1] == ["make"]:
                for goal in (word for word in words[1:] if "=" not in word):
                    assert re.search(rf"^{goal}:", makefile, re.MULTILINE), (
                        f"no goal {goal} in the Makefile"
                    )
            if (
                words[:1] == ["tubelet"]
                and words[1:2]
                and words[1] in VERBS
                and words[1] != "train"
            ):
                # Every study of "ablate" has its own flags.
                num_words = 3 if words[1] == "ablate" else 2
                known = flags_of(words[1:num_words], capsys)
                for word in words[2:]:
                    if word.startswith("-") and word != "-":
                        assert word.split("=")[0] in known, f"tubelet {words[1]} has no {word}"


def python_blocks(name: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / "docs" / name).read_text("utf-8"), re.DOTALL)


def test_examples_of_the_python_api_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_plain(tmp_path / "old.mp4", size=(48, 32))
    save_checkpoint(
        Path("runs/mine/model.safetensors"), FastVSR(FastConfig(channels=8, num_blocks=1)), {}
    )
    names: dict[str, object] = {}
    for block in python_blocks("python.md"):
        exec(block, names)
    assert {path.name for path in tmp_path.glob("*.m*")} == {
        "old.mp4",
        "new.mp4",
        "new.mkv",
        "part.mp4",
        "brighter.mkv",
        "copy.mkv",
    }


def test_the_training_task_of_the_guide_learns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (block,) = python_blocks("training.md")
    exec(compile(block, "training.md", "exec"), {})
    lines = (tmp_path / "runs" / "truncated" / "log.jsonl").read_text("utf-8").splitlines()
    assert len(lines) == 2
    assert all('"loss/pixel"' in line for line in lines)


def test_the_training_on_long_clips_of_the_guide_learns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (block,) = python_blocks("long-clips.md")
    exec(compile(block, "long-clips.md", "exec"), {})
    lines = (tmp_path / "runs" / "long-clips" / "log.jsonl").read_text("utf-8").splitlines()
    assert len(lines) == 2
    assert all('"loss/pixel"' in line for line in lines)


def test_the_model_of_the_guide_works(monkeypatch: pytest.MonkeyPatch) -> None:
    network, entry, test, *_ = python_blocks("add-a-model.md")
    module = ModuleType("tubelet.models.espcn")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(network, module.__dict__)
    names: dict[str, Any] = dict(module.__dict__)
    exec(entry, names)
    monkeypatch.setattr(
        checkpoint, "ARCHITECTURES", (*checkpoint.ARCHITECTURES, module.ARCHITECTURE)
    )
    state = module.ESPCN(module.ESPCNConfig(scale=3, channels=8)).state_dict()
    loaded: Any = checkpoint.load_model({"params": state})
    assert loaded.config == module.ESPCNConfig(scale=3, channels=8)
    spec = zoo._published_spec(names["ESPCN_X4"])
    frames = [Frame(torch.rand(3, 40, 60), t, Fraction(1, 25), index=t) for t in range(2)]
    whole, tiled = (
        list(Engine(spec, model, UpscaleSettings(device="cpu", tile=tile)).restore(frames))
        for model in [spec.build()]
        for tile in (0, 32)
    )
    torch.testing.assert_close(tiled[1].rgb, whole[1].rgb, atol=1e-5, rtol=0)
    exec(test, names)
    for name in [name for name in names if name.startswith("test_")]:
        names[name]()


def test_the_recurrent_model_of_the_guide_works(monkeypatch: pytest.MonkeyPatch) -> None:
    *_, network, test = python_blocks("add-a-model.md")
    module = ModuleType("tubelet.models.two_way")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(network, module.__dict__)
    monkeypatch.setattr(
        checkpoint, "ARCHITECTURES", (*checkpoint.ARCHITECTURES, module.ARCHITECTURE)
    )
    model: Any = checkpoint.load_model(
        {"params": module.TwoWay(module.TwoWayConfig(channels=8)).state_dict()}
    )
    assert model.config == module.TwoWayConfig(channels=8)
    contract = module.ARCHITECTURE.contract(model.config)
    check_contract(model, contract)
    spec = ModelSpec(
        id="two-way", summary="", architecture="TwoWay", contract=contract, build=lambda: model
    )
    clip = torch.rand(5, 3, 20, 30)
    frames = [Frame(rgb, t, Fraction(1, 25), index=t) for t, rgb in enumerate(clip)]
    engine = Engine(spec, model, UpscaleSettings(device="cpu"))
    restored = torch.stack(
        [frame.rgb for frame in engine.restore(frames, starts_scene=lambda _: False)]
    )
    with torch.inference_mode():
        torch.testing.assert_close(restored, model(clip[None])[0], atol=1e-5, rtol=0)
    names: dict[str, Any] = {}
    exec(test, names)
    names["test_a_clip_inside_a_video"]()
