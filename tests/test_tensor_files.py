"""Files of tensors, and files that are something else: one line each, and nothing runs."""

import io
import os
import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tubelet.errors import CheckpointError
from tubelet.tensor_files import is_torchscript, read_content, read_safetensors

TENSORS = {"conv.weight": torch.arange(12.0).reshape(3, 4)}


class Hostile:
    """Asks to make a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (open, (str(self.path), "w"))


def saved(content: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def zipped(**entries: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name.replace("__", "/").replace("_pkl", ".pkl"), content)
    return buffer.getvalue()


def torchscript(path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the format is deprecated, and in circulation
        torch.jit.script(torch.nn.Linear(2, 2)).save(str(path))
    return path


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors", "w.bin"])
@pytest.mark.parametrize("form", ["zip", "before 1.6", "safetensors"])
def test_the_content_tells_the_format_not_the_name(tmp_path: Path, name: str, form: str) -> None:
    path = tmp_path / name
    if form == "safetensors":
        save_file(TENSORS, path)
    else:
        path.write_bytes(saved(TENSORS, _use_new_zipfile_serialization=form == "zip"))
    assert torch.equal(read_content(path)["conv.weight"], TENSORS["conv.weight"])


def test_scores_of_numpy_beside_the_weights_are_read(tmp_path: Path) -> None:
    scores = {
        "psnr": np.float64(31.4),
        "epoch": np.int64(3),
        "best": np.bool_(True),
        "loss": np.float32(0.5),
    }
    (tmp_path / "w.pth").write_bytes(saved({"state_dict": TENSORS, **scores}))
    content = read_content(tmp_path / "w.pth")
    assert {name: content[name] for name in scores} == scores


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty; fetch it again"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
            "is a pointer of git-lfs.*git lfs pull",
        ),
        (b"\n<!DOCTYPE html><html><head>", "is a web page, which a failed download left"),
        (b"<HTML><body>429", "is a web page, which a failed download left"),
        (
            b'<?xml version="1.0"?><Error><Code>AccessDenied',
            "is an XML message, which a failed download left",
        ),
        (
            b'{"message": "Not Found"}\n',
            'is text, not weights: it begins \'{"message": "Not Found"}\'',
        ),
        (b"hello", "is text, not weights: it begins 'hello'"),
        (b"GGUF\x03\x00\x00\x00", "is a GGUF file"),
        (b"\x89HDF\r\n\x1a\n", "is an HDF5 file"),
        (b"7767517\n18 18\n", "is a graph of ncnn"),
        (b"\x1f\x8b\x08\x00", "is a gzip archive; unpack it"),
        (b"\x08\x07\x12\x07pytorch\x1a\x052.0.0:\xff", "is an ONNX model"),
        (
            b"\xca\xfe\xba\xbe\x00\x00",
            "is not a file of weights: it begins with the bytes ca fe ba be",
        ),
        (
            zipped(readme=b"hi", net_pth=b"x"),
            "is a zip archive of readme, net_pth, not weights; unpack it",
        ),
        (
            zipped(a__data_pkl=b"\x80", a__data=bytes(9_000_000)),
            r"declares 9\.0 MB of numbers and holds 0\.0 MB",
        ),
        (saved(TENSORS)[:-100], "is damaged: its end is missing"),
        (
            zipped(a=b"").replace(b"PK\1\2\x14\3\x14", b"PK\1\2\x14\3\x40"),
            "is damaged",
        ),  # needs zip 6.4
        (
            saved(TENSORS, _use_new_zipfile_serialization=False)[:-20],
            "is damaged, or not a file of weights",
        ),
        (zipped(a__data_pkl=b"not a pickle"), "is damaged|holds more than tensors"),
        (pickle.dumps({"a": 1})[:4], "holds more than tensors, or is damaged|is damaged"),
        (
            saved(torch.nn.Conv2d(1, 1, 1)),
            r"holds more than tensors \(torch\.nn\.modules\.conv\.Conv2d\)",
        ),
        (saved({"a": np.zeros(2)}), "holds more than tensors"),
    ],
)
@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_what_is_no_file_of_tensors_says_what_it_is(
    tmp_path: Path, content: bytes, said: str, name: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=said) as caught:
        read_content(path)
    line = str(caught.value)
    assert line.startswith(f"{path} ")
    assert "\n" not in line
    assert len(line) < len(str(path)) + 250


def test_what_is_not_there_or_is_a_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        read_content(tmp_path / "absent.pth")
    with pytest.raises(CheckpointError, match="is a folder; give the path"):
        read_content(tmp_path)
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        read_safetensors(tmp_path / "absent.safetensors")
    (tmp_path / "m.onnx").write_bytes(b"\x08\x0a:\x00")
    with pytest.raises(CheckpointError, match="is an ONNX model"):
        read_content(tmp_path / "m.onnx")


@pytest.mark.parametrize("form", ["zip", "before 1.6", "plain pickle"])
def test_code_in_a_file_does_not_run(tmp_path: Path, form: str) -> None:
    hostile = {"conv.weight": torch.ones(1), "extra": Hostile(tmp_path / "owned")}
    data = (
        pickle.dumps(hostile)
        if form == "plain pickle"
        else saved(hostile, _use_new_zipfile_serialization=form == "zip")
    )
    (tmp_path / "hostile.pth").write_bytes(data)
    with pytest.raises(CheckpointError, match="not read for safety"):
        read_content(tmp_path / "hostile.pth")
    assert not (tmp_path / "owned").exists()
    pickle.loads(pickle.dumps(Hostile(tmp_path / "owned"))).close()  # it would have
    assert (tmp_path / "owned").exists()


def test_a_torchscript_program_is_not_run(tmp_path: Path) -> None:
    path = torchscript(tmp_path / "net.pth")
    assert is_torchscript(path)
    with pytest.raises(CheckpointError, match=r"is a TorchScript program.*state_dict\(\)"):
        read_content(path)
    (tmp_path / "w.pth").write_bytes(saved(TENSORS))
    assert not is_torchscript(tmp_path / "w.pth")


def test_a_cut_safetensors_file_is_not_whole(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "w.safetensors")
    data = (tmp_path / "w.safetensors").read_bytes()
    for name in ("cut.safetensors", "cut.pth"):
        (tmp_path / name).write_bytes(data[:-4])
        with pytest.raises(CheckpointError, match=r"is not a whole \.safetensors file"):
            read_content(tmp_path / name)


def test_random_bytes_and_flipped_bits_end_in_no_other_error(tmp_path: Path) -> None:
    random, path = np.random.default_rng(0), tmp_path / "w.pth"
    whole, refused = saved(TENSORS), 0
    for _ in range(200):
        data = bytearray(whole)
        for place in random.integers(0, len(data), 8):
            data[place] ^= 1 << int(random.integers(8))
        is_noise = random.random() >= 0.9
        path.write_bytes(os.urandom(600) if is_noise else data)
        try:
            content = read_content(path)
        except CheckpointError:
            refused += 1
        else:  # the bits were in padding, a name or a date
            assert not is_noise
            assert all(isinstance(value, torch.Tensor) for value in content.values())
    assert refused > 100
