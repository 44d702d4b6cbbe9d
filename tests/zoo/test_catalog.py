import pytest
import torch

from tubelet.errors import RequestError
from tubelet.zoo.catalog import (
    find_model,
    is_checkpoint,
    list_models,
    model_size,
    model_weights,
)
from tubelet.zoo.opening import create_model


def test_ids_are_unique_and_found():
    ids = [spec.id for spec in list_models()]
    assert len(set(ids)) == len(ids)
    assert [find_model(id).id for id in ids] == ids


@pytest.mark.parametrize(
    ("factor", "expected"), [(None, 4), (2, 2), (3, 3), (4, 4), (1.5, 2), (2.25, 3), (9, 4)]
)
def test_a_shared_name_takes_the_smallest_scale_that_suffices(factor, expected):
    assert find_model("bicubic", factor=factor).id == f"bicubic-x{expected}"


def test_default_has_a_model_for_every_scale():
    assert {find_model("default", factor=factor).scale for factor in (2, 4)} == {2, 4}
    assert find_model("default").scale == 4


@pytest.mark.parametrize("name", ["lancsoz", "bicubic-4x", "Lanczos-x4"])
def test_unknown_name_suggests_the_nearest(name):
    with pytest.raises(RequestError, match=r"did you mean .*(lanczos|bicubic)"):
        find_model(name)


def test_a_name_without_similar_ones_lists_the_models():
    with pytest.raises(RequestError, match="known are default, bicubic"):
        find_model("zzzzzz")


def test_a_published_model_is_described_before_it_is_fetched(published):
    publish, model, path = published
    publish()
    spec = find_model("tiny-x4")
    assert (spec.scale, spec.architecture, spec.temporal.kind) == (4, "SRVGGNetCompact", "frame")
    assert spec.weights.remote.name == path.name
    assert model_size(spec) == sum(p.numel() for p in model.parameters())
    assert not torch.equal(
        create_model("tiny-x4", weights=False).body[0].weight, model.body[0].weight
    )
    assert not path.exists()


def test_published_models_are_listed_on_request():
    ids = {spec.id for spec in list_models()}
    more = [spec.id for spec in list_models(published=True)]
    assert len(set(more)) == len(more) > len(ids)
    assert "basicvsr_pp-reds4" in more
    assert ids <= set(more)
    assert not is_checkpoint("basicvsr_pp-reds4")


def test_components_of_networks_are_not_models():
    with pytest.raises(RequestError, match="spynet-sintel is a component of other networks"):
        find_model("spynet-sintel")
    with pytest.raises(
        RequestError, match="fast-x4-real are in the package; there is nothing to download"
    ):
        model_weights("default")
    with pytest.raises(RequestError, match=r"did you mean .*basicvsr_pp-reds4"):
        find_model("basicvsrpp-reds4")
