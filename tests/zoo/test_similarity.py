"""The architectures with the names that are closest to those of an unknown state dict."""

import torch

from tubelet.models import fsrcnn, srvgg
from tubelet.zoo.similarity import compare, nearest


def test_a_network_is_identical_to_itself() -> None:
    with torch.device("meta"):
        state = srvgg.SRVGGNetCompact(srvgg.SRVGGConfig()).state_dict()
    like = compare(state, srvgg.ARCHITECTURE)
    assert (like.share, like.unexpected, like.missing, like.shapes) == (1.0, (), (), ())


def test_differences_are_named() -> None:
    state = dict(fsrcnn.FSRCNN(fsrcnn.FSRCNNConfig()).state_dict())
    del state["last_part.bias"]
    state["tail.other"] = torch.zeros(1)
    state["first_part.0.bias"] = torch.zeros(3)
    best, *_ = nearest(state)
    assert best.architecture == "FSRCNN"
    assert 0.5 < best.share < 1
    assert best.missing == ("last_part.bias",)
    assert best.unexpected == ("tail.other",)
    assert best.shapes == (f"first_part.0.bias 3 for {fsrcnn.FSRCNNConfig().channels}",)


def test_an_unrelated_state_dict_has_no_nearest_architecture() -> None:
    assert nearest({"zzz": torch.zeros(1)}) == []
