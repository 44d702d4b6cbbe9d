import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file

from tubelet.errors import CheckpointError, ConfigError
from tubelet.models.fast import FastConfig, FastVSR
from tubelet.models.fsrcnn import FSRCNN, FSRCNNConfig
from tubelet.zoo.catalog import is_checkpoint
from tubelet.zoo.checkpoint import load_model, open_checkpoint, read_notes, save_checkpoint
from tubelet.zoo.opening import open_model


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    model = FastVSR(FastConfig(channels=8, num_blocks=1, expansion=2)).eval()
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, model, {"steps": 3})
    return model, path


@torch.inference_mode()
def test_round_trip(saved):
    model, path = saved
    loaded = load_model(path)
    lq = torch.rand(1, 2, 3, 8, 8)
    assert not loaded.training
    assert torch.equal(loaded(lq), model(lq))
    assert read_notes(path) == {"steps": 3}


def test_settings_that_shapes_do_not_determine_are_stored(tmp_path):
    path = tmp_path / "x3.safetensors"
    save_checkpoint(str(path), FSRCNN(FSRCNNConfig(scale=3)), {})
    assert open_checkpoint(path).config.scale == 3
    assert open_model(str(path)).spec.scale == 3
    assert open_checkpoint(path, scale=2).config.scale == 2
    save_file(load_file(path), path)
    assert open_checkpoint(path).config.scale == FSRCNNConfig().scale


@pytest.mark.parametrize("written", ["[]", '{"scale": "3", "other": 1}', '{"scale": null}'])
def test_other_stored_content_is_ignored(tmp_path, written):
    path = tmp_path / "x4.safetensors"
    save_file(
        FSRCNN(FSRCNNConfig()).state_dict(),
        path,
        metadata={"architecture": "FSRCNN", "config": written},
    )
    assert open_checkpoint(path).config == FSRCNNConfig()
    save_file(load_file(path), path, metadata={"architecture": "EDSR", "config": '{"scale": 3}'})
    assert open_checkpoint(path).config == FSRCNNConfig()
    save_file(load_file(path), path, metadata={"architecture": "FSRCNN", "config": '{"scale"'})
    with pytest.raises(CheckpointError, match="damaged header"):
        load_model(path)


@torch.inference_mode()
def test_collapsed_networks_are_saved_as_such(saved, tmp_path):
    model, _ = saved
    lq = torch.rand(1, 2, 3, 8, 8)
    save_checkpoint(tmp_path / "c.safetensors", model.collapse(), {})
    loaded = load_model(tmp_path / "c.safetensors")
    assert loaded.config.expansion == 0
    assert torch.equal(loaded(lq), model(lq))


def test_bad_files_give_one_clear_line(saved, tmp_path):
    _, path = saved
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        load_model(tmp_path / "absent.safetensors")
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"not a whole \.safetensors"):
        load_model(cut)


def test_foreign_and_inconsistent_files_are_refused(saved, tmp_path):
    _, path = saved
    tensors = load_file(path)
    save_file({"conv.weight": torch.zeros(3)}, tmp_path / "foreign.safetensors")
    with pytest.raises(
        CheckpointError, match=r"of no architecture that Tubelet knows \(FastVSR, .*conv\.weight"
    ):
        load_model(tmp_path / "foreign.safetensors")
    tensors.pop("tail.narrow")
    save_file(tensors, tmp_path / "missing.safetensors")
    with pytest.raises(CheckpointError, match=r"tail\.narrow") as info:
        load_model(tmp_path / "missing.safetensors")
    assert "\n" not in str(info.value)
    with pytest.raises(ConfigError, match="heads"):
        load_model(path, heads=8)
    with pytest.raises(
        ConfigError, match="unknown architecture 'FastVSR2'; known are FastVSR, SRVGG"
    ):
        load_model(path, architecture="FastVSR2")


@pytest.mark.parametrize(
    "config",
    [
        FastConfig(channels=16, num_blocks=2),
        FastConfig(channels=8, num_blocks=0, scale=2, output="rgb", lookahead=0),
        FastConfig(channels=8, num_blocks=3, scale=3, recurrent=False, expansion=3),
    ],
)
def test_the_configuration_is_read_off_the_shapes(config):
    loaded = load_model(FastVSR(config).state_dict(), architecture="FastVSR")
    assert isinstance(loaded, FastVSR)
    assert loaded.config == config


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: {"params": {}, "params_ema": s},
        lambda s: {
            "state_dict": {f"generator.{k}": v for k, v in s.items()}
            | {"discriminator.conv": torch.ones(1)}
        },
        lambda s: {
            "meta": {"epoch": 3},
            "state_dict": {f"generator_ema.{k}": v for k, v in s.items()} | {"generator.a": 0},
        },
        lambda s: {f"module.{k}": v for k, v in s.items()},
        lambda s: {"state_dict": {"params": s}, "optimizer": [1, 2]},
    ],
)
@pytest.mark.parametrize("suffix", [".pth", None])
def test_wrappings_of_frameworks_are_taken_off(saved, tmp_path, wrap, suffix):
    model, _ = saved
    content = wrap(model.state_dict())
    if suffix:
        torch.save(content, tmp_path / "w.pth")
        content = tmp_path / "w.pth"
    loaded = load_model(content)
    assert all(
        torch.equal(a, b) for a, b in zip(loaded.parameters(), model.parameters(), strict=True)
    )


def test_a_pickle_with_code_is_not_executed(tmp_path):
    class Hostile:
        def __reduce__(self):
            return (open, (str(tmp_path / "owned"), "w"))

    torch.save({"params": {"conv.weight": torch.ones(1)}, "x": Hostile()}, tmp_path / "hostile.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps({"a": Hostile()}))
    for name in ("hostile.pth", "plain.pth"):
        with pytest.raises(CheckpointError, match="not read for safety") as info:
            load_model(tmp_path / name)
        assert "\n" not in str(info.value)
    assert not (tmp_path / "owned").exists()


def test_files_without_tensors_say_what_they_hold(tmp_path):
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match="contains a list"):
        load_model(tmp_path / "list.pth")
    torch.save({"epoch": 3}, tmp_path / "epoch.pth")
    with pytest.raises(CheckpointError, match="contains no tensors; its entries are epoch"):
        load_model(tmp_path / "epoch.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "epoch.pth").read_bytes()[:100])
    with pytest.raises(CheckpointError, match="damaged"):
        load_model(tmp_path / "cut.pth")


def test_missing_unexpected_and_misshapen_tensors_are_listed(saved):
    model, _ = saved
    state = dict(model.state_dict())
    state["extra"] = torch.ones(1)
    state["body.0.bias"] = torch.ones(5)
    del state["acts.1.weight"]
    with pytest.raises(CheckpointError) as info:
        load_model(state)
    for words in (
        "lacks acts.1.weight",
        "has unexpected tensors: extra",
        "body.0.bias is 5, not 8",
    ):
        assert words in str(info.value)


def test_a_checkpoint_opens_like_a_model_of_the_zoo(saved):
    model, path = saved
    assert is_checkpoint(str(path))
    assert not is_checkpoint("bicubic-x4")
    opened = open_model(str(path))
    spec = opened.spec
    loaded = opened.network
    assert (spec.id, spec.scale, spec.temporal.lookahead, spec.contract.halo_px) == (
        "model.safetensors",
        4,
        1,
        3,
    )
    assert isinstance(loaded, FastVSR)
    assert loaded.config == model.config


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_numbers_of_other_precision_become_float32(saved, tmp_path, dtype):
    model, _ = saved
    torch.save(
        {name: value.to(dtype) for name, value in model.state_dict().items()}, tmp_path / "w.pth"
    )
    loaded = load_model(tmp_path / "w.pth")
    for a, b in zip(loaded.parameters(), model.parameters(), strict=True):
        assert a.dtype == torch.float32
        assert torch.equal(a, b.to(dtype).float())


@pytest.mark.parametrize(
    "spoil",
    [
        lambda value: value.to(torch.int8),
        lambda value: value.to(torch.complex64),
        lambda value: value.to_sparse(),
        lambda value: value.to("meta"),
        lambda value: torch.quantize_per_tensor(value.detach(), 0.1, 0, torch.qint8),
    ],
    ids=["int8", "complex", "sparse", "meta", "quantized"],
)
@pytest.mark.filterwarnings("ignore:.*quantize")
def test_unusable_data_types_are_refused(saved, spoil):
    state = dict(saved[0].state_dict())
    state["tail.narrow"] = spoil(state["tail.narrow"])
    with pytest.raises(
        CheckpointError,
        match=r"does not fit FastVSR: these tensors have an unusable data type .*: tail\.narrow",
    ):
        load_model(state)


def test_a_network_of_another_size_is_refused(saved):
    model, path = saved
    with pytest.raises(CheckpointError, match="does not fit FastVSR: it lacks"):
        load_model(path, num_blocks=3)
    with pytest.raises(CheckpointError, match="has other shapes"):
        load_model(path, channels=16)
    assert load_model(path).config == model.config


def test_tensors_that_declare_more_than_is_stored_are_refused(tmp_path):
    huge = torch.zeros(1).expand(64, 3, 3, 300_000)
    torch.save({"params": {"conv_first.weight": huge}}, tmp_path / "huge.pth")
    assert (tmp_path / "huge.pth").stat().st_size < 10_000
    with pytest.raises(CheckpointError, match=r"declares 691\.2 MB of numbers and holds 0\.0 MB"):
        load_model(tmp_path / "huge.pth")


def test_odd_containers_end_in_one_line():
    endless = {}
    endless["params"] = endless
    for content in (endless, {1: torch.zeros(1)}, {(1, 2): 3}, {}):
        with pytest.raises(CheckpointError, match="the state dict contains no tensors"):
            load_model(content)


def test_removed_wrappers_are_reported(saved):
    state = {f"module.{name}": value for name, value in saved[0].state_dict().items()}
    opened = open_checkpoint({"state_dict": {"params_ema": state}})
    assert opened.wrapping == ("state_dict", "params_ema", "module.")
    assert opened.renamed == 0


def test_names_without_a_configuration_are_one_line():
    state = {"body.0.weight": torch.zeros(4, 3, 3, 3), "body.0.bias": torch.zeros(4)}
    for names in (
        state,
        {**state, "body.2.weight": torch.zeros(5, 4, 3, 3), "body.2.bias": torch.zeros(5)},
    ):
        with pytest.raises(CheckpointError) as caught:
            load_model(names)
        assert "\n" not in str(caught.value)
