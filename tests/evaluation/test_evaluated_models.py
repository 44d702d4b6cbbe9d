"""The models of an evaluation: in the protocol's scale, with distinct names, checked early."""

import hashlib
from pathlib import Path

import pytest

from tubelet.errors import CheckpointError, RequestError
from tubelet.evaluation.evaluated_models import find_evaluated_models
from tubelet.models.fast import FastConfig, FastVSR
from tubelet.zoo.catalog import find_model
from tubelet.zoo.checkpoint import save_checkpoint


def checkpoint(path: Path, channels: int = 8) -> str:
    save_checkpoint(path, FastVSR(FastConfig(channels=channels, num_blocks=1)), {})
    return str(path)


def test_a_name_for_all_scales_means_that_of_the_protocol() -> None:
    assert [model.name for model in find_evaluated_models(["bicubic", "lanczos-x3"], scale=3)] == [
        "bicubic-x3",
        "lanczos-x3",
    ]
    assert find_evaluated_models(["default"], scale=4)[0].spec.id == "fast-x4-real"


def test_a_model_is_evaluated_once() -> None:
    assert [
        e.name for e in find_evaluated_models(["bicubic", "lanczos", "bicubic-x4"], scale=4)
    ] == [
        "bicubic-x4",
        "lanczos-x4",
    ]


def test_a_scale_that_no_model_of_a_name_has_is_refused() -> None:
    with pytest.raises(RequestError, match="default enlarges ×4, and the protocol asks for ×3"):
        find_evaluated_models(["default"], scale=3)


def test_weights_and_parameters_are_reported(tmp_path: Path) -> None:
    embedded, own = find_evaluated_models(
        ["fast-x4-bi", checkpoint(tmp_path / "own.safetensors")], scale=4
    )
    weights = find_model("fast-x4-bi").weights
    assert weights is not None
    assert embedded.weights_sha256 == weights.sha256
    assert (
        own.weights_sha256
        == hashlib.sha256((tmp_path / "own.safetensors").read_bytes()).hexdigest()
    )
    assert own.parameters == sum(p.numel() for p in own.load().parameters())
    assert find_evaluated_models(["bicubic"], scale=4)[0].weights_sha256 is None


def test_checkpoints_of_one_name_get_distinct_names(tmp_path: Path) -> None:
    paths = [
        checkpoint(tmp_path / folder / "model.safetensors", n)
        for folder, n in (("a", 8), ("b", 16))
    ]
    first, second = find_evaluated_models([*paths, paths[0]], scale=4)
    assert (first.name, second.name) == ("a-model", "b-model")
    assert first.parameters < second.parameters


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.safetensors").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match=r"bad\.safetensors"):
        find_evaluated_models([str(tmp_path / "bad.safetensors")], scale=4)
