import hashlib
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from tubelet.errors import CheckpointError, RequestError
from tubelet.models import zoo
from tubelet.models.spec import ModelSpec, WeightsSpec
from tubelet.models.zoo import create_model, find_model, list_models
from tubelet.types import Temporal


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
        scale=1,
        temporal=Temporal("frame"),
        build=lambda: nn.Conv2d(3, 3, 3),
        weights=WeightsSpec(file=file.name, sha256=digest),
    )
    monkeypatch.setattr(zoo, "_WEIGHTS", tmp_path)
    monkeypatch.setattr(zoo, "_MODELS", (spec,))
    return trained, spec, file


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
