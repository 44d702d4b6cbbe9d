import pytest
import torch
from torch import Tensor

from tubelet.models.state_dict import (
    below,
    count_blocks,
    count_names,
    first_words,
    has_convolutions,
    indexes,
    rename,
    shape_of,
    shuffle_scale,
    without,
    zero_based,
)


def state(*names: str, shape: tuple[int, ...] = (4, 4, 3, 3)) -> dict[str, Tensor]:
    return {name: torch.zeros(shape) for name in names}


def test_rules_are_applied_in_their_order():
    rules = [(r"^trunk\.", "body."), (r"^body\.(\d)\.", r"blocks.\1."), (r"\.conv\.", ".")]
    renamed = rename(state("trunk.0.conv.weight", "body.1.weight", "head.weight"), rules)
    assert list(renamed) == ["blocks.0.weight", "blocks.1.weight", "head.weight"]


def test_renaming_keeps_the_tensors_themselves():
    before = state("a.weight", "b.weight")
    after = rename(before, [("^a", "c")])
    assert after["c.weight"] is before["a.weight"]


def test_numbers_from_one_become_numbers_from_zero():
    renamed = rename(state("up1.weight", "up12.weight"), [(r"^up(\d+)\.", zero_based("ups.{}."))])
    assert list(renamed) == ["ups.0.weight", "ups.11.weight"]


def test_parts_of_a_state():
    whole = state("flow.0.weight", "flow.1.weight", "trunk.weight", "mean")
    assert first_words(whole) == {"flow", "trunk", "mean"}
    assert list(below(whole, "flow.")) == ["0.weight", "1.weight"]
    assert list(without(whole, r"flow\..*|mean")) == ["trunk.weight"]


def test_indexes_are_sorted_numbers():
    whole = state(
        "model.10.weight",
        "model.2.weight",
        "model.2.bias",
        "model.1.sub.0.weight",
        "model.a.weight",
    )
    assert indexes(whole, r"model\.(\d+)\.weight") == [2, 10]
    assert indexes(whole, r"model\.(\d+)\..*") == [1, 2, 10]
    assert indexes(whole, r"body\.(\d+)") == []


def test_shapes_of_what_is_absent_are_empty():
    assert shape_of(state("a"), "a") == (4, 4, 3, 3)
    assert shape_of(state("a"), "b") == ()
    assert shape_of(state("a", shape=()), "a") == ()


def test_convolutions_are_weights_of_four_dimensions():
    whole = state("a.weight", "b.weight") | state("c.weight", shape=(4, 4))
    assert has_convolutions(whole, "a", "b")
    assert not has_convolutions(whole, "a", "c")
    assert not has_convolutions(whole, "d")


def test_blocks_are_counted_once_each():
    whole = state(
        "body.0.conv1.weight", "body.0.conv2.weight", "body.10.conv1.weight", "bodyguard.weight"
    )
    assert count_blocks(whole, "body.") == 2
    assert count_names(whole, r"body\.\d+\.conv1\.weight") == 2
    assert count_names(whole, r"body\.\d+") == 0


@pytest.mark.parametrize(
    ("shapes", "scale"),
    [
        ([(16, 4, 3, 3)], 2),
        ([(16, 4, 3, 3), (16, 4, 3, 3)], 4),
        ([(36, 4, 3, 3)], 3),
        ([(36, 4, 3, 3), (36, 4, 3, 3)], 0),
        ([(8, 4, 3, 3)], 0),
        ([(16, 4)], 0),
        ([(16, 0, 3, 3)], 0),
        ([], 0),
    ],
)
def test_the_scale_of_pixel_shuffles(shapes: list[tuple[int, ...]], scale: int):
    whole = {
        f"upsample.{2 * index}.weight": torch.zeros(shape) for index, shape in enumerate(shapes)
    }
    assert shuffle_scale(whole, "upsample") == scale
