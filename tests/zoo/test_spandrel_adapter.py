import sys

import pytest
import torch

from tubelet.errors import CheckpointError, ConfigError
from tubelet.zoo.checkpoint import load_model, open_checkpoint
from tubelet.zoo.opening import open_model

UNKNOWN = {"conv.weight": torch.zeros(3)}


@pytest.fixture
def spandrel():
    return pytest.importorskip("spandrel")


@pytest.fixture
def state(spandrel):
    """Random weights of a network that Tubelet does not have."""
    from spandrel.architectures.SAFMN import SAFMN

    torch.manual_seed(0)
    return SAFMN(dim=8, n_blocks=2, ffn_scale=2.0, upscaling_factor=2).state_dict()


@torch.inference_mode()
def test_networks_of_spandrel_load_and_run(spandrel, state, tmp_path):
    torch.save({"params": state}, tmp_path / "net.pth")
    opened = open_checkpoint(tmp_path / "net.pth")
    assert (opened.architecture.name, opened.config.spandrel) == ("SAFMN", spandrel.__version__)
    assert opened.wrapping == ("params",)
    lq = torch.rand(1, 2, 3, 16, 24)
    expected = spandrel.ModelLoader().load_from_state_dict(state).eval()
    for model in (opened.model, opened.architecture.build(opened.config)):
        sr = model(lq)
        assert sr.shape == (1, 2, 3, 32, 48)
        assert torch.equal(sr[:, 1], expected(lq[:, 1]))


@torch.inference_mode()
def test_a_network_of_spandrel_opens_like_a_model_of_the_zoo(state, tmp_path):
    torch.save(state, tmp_path / "net.pth")
    opened = open_model(str(tmp_path / "net.pth"))
    spec = opened.spec
    model = opened.network
    assert (spec.architecture, spec.scale, spec.temporal.kind, spec.contract.halo_px) == (
        "SAFMN",
        2,
        "frame",
        32,
    )
    assert spec.contract.size_multiple >= 1
    assert spec.contract.min_size_px >= 1
    assert not model.training


@torch.inference_mode()
def test_gray_networks_restore_each_color(spandrel):
    from spandrel.architectures.DnCNN import DnCNN

    torch.manual_seed(0)
    state = DnCNN(in_nc=1, out_nc=1, nc=8, nb=8, act_mode="R").state_dict()
    model = load_model(state)
    lq = torch.rand(1, 1, 3, 8, 8)
    gray = lq[:, :, :1].expand(1, 1, 3, 8, 8)
    assert torch.equal(model(lq)[:, :, :1], model(gray)[:, :, :1])
    assert model(gray)[0, 0].unique(dim=0).shape[0] == 1


def test_an_error_of_spandrel_is_one_line(state):
    del state["feats.1.norm2.bias"]
    with pytest.raises(CheckpointError, match=r"but cannot load it") as info:
        load_model(state)
    assert "\n" not in str(info.value)


def test_a_damaged_name_is_not_built(state):
    state["body.987654321.weight"] = torch.zeros(3)
    with pytest.raises(CheckpointError, match="of no architecture"):
        open_checkpoint(state)


def test_a_named_architecture_is_not_loaded_by_spandrel(state):
    with pytest.raises(CheckpointError, match="of no architecture that Tubelet knows"):
        load_model(state, architecture="SwinIR")
    with pytest.raises(ConfigError):
        load_model(state, architecture="SAFMN")


def test_unknown_tensors_are_refused(spandrel):
    with pytest.raises(CheckpointError, match=r"its first tensors are conv\.weight$"):
        load_model(UNKNOWN)


def test_without_spandrel_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "spandrel", None)
    with pytest.raises(CheckpointError, match=r"conv\.weight; .*tubelet\[spandrel\]") as info:
        load_model(UNKNOWN)
    assert "\n" not in str(info.value)
