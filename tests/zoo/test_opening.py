"""Models are opened by id or path, with weights of the package, published ones or checkpoints."""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from tubelet.errors import CheckpointError, RequestError, ResourceError
from tubelet.models import srvgg
from tubelet.models.fast import FastConfig, FastVSR
from tubelet.zoo import catalog as zoo
from tubelet.zoo import checkpoint
from tubelet.zoo.catalog import list_models, model_weights, published_ids
from tubelet.zoo.checkpoint import save_checkpoint
from tubelet.zoo.opening import create_model, open_model


def test_a_listed_model_is_opened_with_all_that_runs_it() -> None:
    opened = open_model("default", factor=2)
    assert opened.name == opened.spec.id == "fast-x2-real"
    assert opened.weights_sha256 == opened.spec.weights.sha256
    assert opened.path is None
    assert not opened.network.training
    assert open_model("bicubic-x2").weights_sha256 is None


def test_a_checkpoint_is_opened_by_its_path(tmp_path: Path) -> None:
    path = tmp_path / "own.safetensors"
    save_checkpoint(path, FastVSR(FastConfig(channels=8, num_blocks=1)), {})
    opened = open_model(str(path), factor=2)
    assert (opened.name, opened.path, opened.spec.id) == (str(path), path, "own.safetensors")
    assert opened.weights_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert opened.spec.scale == 4


def test_a_file_is_read_and_hashed_once(
    published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one that is published, and whose hash tells more than its names and shapes."""
    publish, model, _ = published
    publish()
    counted = []
    for module, name in ((zoo, "hash_file"), (checkpoint, "read_content")):
        monkeypatch.setattr(module, name, partial(count_call, counted, getattr(module, name)))
    opened = open_model(str(tmp_path / "tiny.pth"))
    assert opened.network.config == model.config
    assert sorted(counted) == ["hash_file", "read_content"]


def count_call(counted: list[str], function: Callable[[Path], object], path: Path) -> object:
    counted.append(function.__name__)
    return function(path)


def test_a_model_that_is_neither_listed_nor_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="did you mean bicubic-x4"):
        open_model("bicubic-x44")
    with pytest.raises(CheckpointError, match=r"no such checkpoint: .*none\.pth"):
        open_model(str(tmp_path / "none.pth"))
    with pytest.raises(RequestError, match="no model is called"):
        create_model(str(tmp_path / "none.pth"))


@pytest.mark.parametrize("spec", list_models(), ids=lambda spec: spec.id)
def test_every_model_is_built_in_evaluation_mode_on_the_cpu(spec):
    model = create_model(spec.id)
    assert not model.training
    assert all(p.device.type == "cpu" and p.dtype == torch.float32 for p in model.parameters())


def test_published_weights_are_fetched_once(published, tmp_path, capsys):
    publish, model, path = published
    publish()
    lq = torch.rand(1, 2, 3, 8, 8)
    assert torch.equal(create_model("tiny-x4")(lq), model(lq))
    assert capsys.readouterr().err.startswith("downloading tiny.pth from file://")
    assert path.is_file()
    # The second call must not download.
    (tmp_path / "tiny.pth").unlink()
    assert torch.equal(create_model("tiny-x4")(lq), model(lq))
    assert published_ids(path) == ["tiny-x4"]
    assert model_weights("tiny-x4") == path


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"sha256": "00000000"}, ResourceError, "what arrived has sha256 .*deleted"),
        (
            {"url": "file:///nowhere/tiny.pth"},
            ResourceError,
            "could not be downloaded .* into .*home/models",
        ),
        (
            {"url": "", "page": "https://example.org"},
            ResourceError,
            "by hand: from https://example.org into",
        ),
    ],
)
def test_unavailable_published_weights_are_refused(published, changes, error, said):
    publish, _, path = published
    publish(**changes)
    with pytest.raises(error, match=said):
        create_model("tiny-x4")
    assert not path.exists()


def test_a_published_file_of_another_network_is_refused(published):
    publish, _, path = published
    known = publish()
    zoo.published_by_id()["tiny-x4"] = replace(
        known, config=srvgg.SRVGGConfig(channels=4, num_blocks=2)
    )
    with pytest.raises(
        CheckpointError, match=r"tiny-x4 should be SRVGGNetCompact, but .*tiny.pth does not fit"
    ):
        create_model("tiny-x4")
    assert path.exists()


def test_the_path_of_a_published_file_that_is_not_there_names_the_model(published):
    published[0]()
    with pytest.raises(
        CheckpointError,
        match=r"no such checkpoint: weights/tiny\.pth; --model tiny-x4 downloads it",
    ):
        open_model("weights/tiny.pth")


def test_the_hash_of_a_published_file_determines_its_settings(published, tmp_path):
    publish, _, _ = published
    # Its files have the same names and shapes as with relu.
    config = srvgg.SRVGGConfig(channels=4, num_blocks=1, act="leakyrelu")
    torch.save(srvgg.SRVGGNetCompact(config).state_dict(), tmp_path / "leaky.pth")
    publish()
    assert open_model(str(tmp_path / "leaky.pth")).network.config.act == "relu"
    known = publish(sha256=hashlib.sha256((tmp_path / "leaky.pth").read_bytes()).hexdigest())
    zoo.published_by_id()["tiny-x4"] = replace(known, config=config)
    assert open_model(str(tmp_path / "leaky.pth")).network.config == config


def test_weights_are_loaded(learned):
    trained, spec, _ = learned
    assert torch.equal(create_model(spec.id).weight, trained.weight)
    assert not torch.equal(create_model(spec.id, weights=False).weight, trained.weight)


def test_missing_weights(learned):
    learned[2].unlink()
    with pytest.raises(CheckpointError, match="is missing"):
        create_model("tiny")


def test_damaged_weights(learned):
    data = bytearray(learned[2].read_bytes())
    data[-1] ^= 1
    learned[2].write_bytes(data)
    with pytest.raises(CheckpointError, match="sha256"):
        create_model("tiny")


def test_weights_of_another_network(learned, monkeypatch):
    monkeypatch.setattr(zoo, "MODELS", (replace(learned[1], build=lambda: nn.Linear(3, 3)),))
    with pytest.raises(CheckpointError, match="does not fit"):
        create_model("tiny")
