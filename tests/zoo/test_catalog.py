import hashlib
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from tubelet.downloads import RemoteFile
from tubelet.errors import CheckpointError, RequestError, ResourceError
from tubelet.models import srvgg
from tubelet.models.architecture import Contract
from tubelet.types import Temporal
from tubelet.zoo import catalog as zoo
from tubelet.zoo.catalog import (
    find_model,
    is_checkpoint,
    known_ids,
    list_models,
    model_size,
    model_weights,
)
from tubelet.zoo.opening import create_model, open_model
from tubelet.zoo.publishers import KnownFile
from tubelet.zoo.spec import ModelSpec, WeightsSpec


def test_ids_are_unique_and_found():
    ids = [spec.id for spec in list_models()]
    assert len(set(ids)) == len(ids)
    assert [find_model(id).id for id in ids] == ids


@pytest.mark.parametrize(("factor", "expected"), [(None, 4), (2, 2), (3, 3), (4, 4), (1.5, 2), (2.25, 3), (9, 4)])
def test_a_shared_name_takes_the_smallest_scale_that_suffices(factor, expected):
    assert find_model("bicubic", factor=factor).id == f"bicubic-x{expected}"


def test_default_has_a_model_for_every_scale():
    assert {find_model("default", factor=factor).scale for factor in (2, 4)} == {2, 4}
    assert find_model("default").scale == 4


@pytest.mark.parametrize("name", ["lancsoz", "bicubic-4x", "Lanczos-x4"])
def test_unknown_name_suggests_the_nearest(name):
    with pytest.raises(RequestError, match=r"did you mean .*(lanczos|bicubic)"):
        find_model(name)


def test_hopeless_name_lists_what_there_is():
    with pytest.raises(RequestError, match="known are default, bicubic"):
        find_model("zzzzzz")


@pytest.mark.parametrize("spec", list_models(), ids=lambda spec: spec.id)
def test_every_model_is_built_in_evaluation_mode_on_the_cpu(spec):
    model = create_model(spec.id)
    assert not model.training
    assert all(p.device.type == "cpu" and p.dtype == torch.float32 for p in model.parameters())


@pytest.fixture
def learned(tmp_path, monkeypatch):
    """A zoo with one learned model."""
    trained = nn.Conv2d(3, 3, 3)
    file = tmp_path / "tiny.safetensors"
    save_file(trained.state_dict(), file)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    spec = ModelSpec(
        id="tiny",
        summary="",
        architecture="Conv2d",
        contract=Contract(scale=1, temporal=Temporal("frame")),
        build=lambda: nn.Conv2d(3, 3, 3),
        weights=WeightsSpec(file=file.name, sha256=digest),
    )
    monkeypatch.setattr(zoo, "_WEIGHTS", tmp_path)
    monkeypatch.setattr(zoo, "_MODELS", (spec,))
    return trained, spec, file


@pytest.fixture
def published(tmp_path, monkeypatch):
    """A published file of a small network, at an address of this machine, and an empty cache."""
    monkeypatch.setenv("TUBELET_HOME", str(tmp_path / "home"))
    torch.manual_seed(0)
    model = srvgg.SRVGGNetCompact(srvgg.SRVGGConfig(num_feat=4, num_conv=1)).eval()
    torch.save({"params": model.state_dict()}, tmp_path / "tiny.pth")
    digest = hashlib.sha256((tmp_path / "tiny.pth").read_bytes()).hexdigest()

    def publish(**changes):
        usual = {"name": "tiny.pth", "url": (tmp_path / "tiny.pth").as_uri(), "sha256": digest[:8]}
        known = KnownFile(
            id="tiny-x4",
            architecture=srvgg.ARCHITECTURE,
            config=model.config,
            summary="",
            file=RemoteFile(**{**usual, **changes}),
            licence="MIT",
        )
        files = {known.id: known}
        monkeypatch.setattr(zoo, "_known", lambda: files)
        return known

    return publish, model, tmp_path / "home" / "models" / "tiny.pth"


def test_published_weights_are_fetched_once(published, tmp_path, capsys):
    publish, model, path = published
    publish()
    lq = torch.rand(1, 2, 3, 8, 8)
    assert torch.equal(create_model("tiny-x4")(lq), model(lq))
    assert capsys.readouterr().err.startswith("downloading tiny.pth from file://")
    assert path.is_file()
    (tmp_path / "tiny.pth").unlink()  # nobody asks again
    assert torch.equal(create_model("tiny-x4")(lq), model(lq))
    assert known_ids(path) == ["tiny-x4"]
    assert model_weights("tiny-x4") == path


def test_a_published_model_is_described_before_it_is_fetched(published):
    publish, model, path = published
    publish()
    spec = find_model("tiny-x4")
    assert (spec.scale, spec.architecture, spec.temporal.kind) == (4, "SRVGGNetCompact", "frame")
    assert spec.weights.remote.name == path.name
    assert model_size(spec) == sum(p.numel() for p in model.parameters())
    assert not torch.equal(create_model("tiny-x4", weights=False).body[0].weight, model.body[0].weight)
    assert not path.exists()


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"sha256": "00000000"}, ResourceError, "what arrived has sha256 .*deleted"),
        ({"url": "file:///nowhere/tiny.pth"}, ResourceError, "could not be downloaded .* into .*home/models"),
        ({"url": "", "page": "https://example.org"}, ResourceError, "by hand: from https://example.org into"),
    ],
)
def test_published_weights_that_cannot_be_had(published, changes, error, said):
    publish, _, path = published
    publish(**changes)
    with pytest.raises(error, match=said):
        create_model("tiny-x4")
    assert not path.exists()


def test_a_published_file_of_another_network_is_refused(published):
    publish, _, path = published
    known = publish()
    zoo._known()["tiny-x4"] = replace(known, config=srvgg.SRVGGConfig(num_feat=4, num_conv=2))
    with pytest.raises(CheckpointError, match=r"tiny-x4 should be SRVGGNetCompact, and .*tiny.pth does not fit"):
        create_model("tiny-x4")
    assert path.exists()


def test_the_path_of_a_published_file_that_is_not_there_names_the_model(published):
    published[0]()
    with pytest.raises(CheckpointError, match=r"no such checkpoint: weights/tiny\.pth; --model tiny-x4 fetches it"):
        open_model("weights/tiny.pth")


def test_a_published_file_given_by_its_path_is_what_it_is_by_its_name(published, tmp_path):
    publish, _, _ = published
    config = srvgg.SRVGGConfig(num_feat=4, num_conv=1, act="leakyrelu")  # its files look like those of relu
    torch.save(srvgg.SRVGGNetCompact(config).state_dict(), tmp_path / "leaky.pth")
    publish()
    assert open_model(str(tmp_path / "leaky.pth")).network.config.act == "relu"
    known = publish(sha256=hashlib.sha256((tmp_path / "leaky.pth").read_bytes()).hexdigest())
    zoo._known()["tiny-x4"] = replace(known, config=config)
    assert open_model(str(tmp_path / "leaky.pth")).network.config == config


def test_published_models_are_listed_when_asked_for():
    ids = {spec.id for spec in list_models()}
    more = [spec.id for spec in list_models(published=True)]
    assert len(set(more)) == len(more) > len(ids)
    assert "basicvsr_pp-reds4" in more
    assert ids <= set(more)
    assert not is_checkpoint("basicvsr_pp-reds4")


def test_parts_of_networks_have_weights_and_make_no_pictures():
    with pytest.raises(RequestError, match="spynet-sintel is a part of other networks"):
        find_model("spynet-sintel")
    with pytest.raises(RequestError, match="fast-x4-real are in the package; there is nothing to fetch"):
        model_weights("default")
    with pytest.raises(RequestError, match=r"did you mean .*basicvsr_pp-reds4"):
        find_model("basicvsrpp-reds4")


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
    monkeypatch.setattr(zoo, "_MODELS", (replace(learned[1], build=lambda: nn.Linear(3, 3)),))
    with pytest.raises(CheckpointError, match="does not fit"):
        create_model("tiny")
