"""The two files of a network of ncnn: its layers as text (.param), and their weights (.bin).

    7767517
    41 42                                                    numbers of layers, of blobs
    Convolution  Conv_2  1 1 56 57  0=64 1=3 4=1 5=1 6=36864
    kind, name, numbers of inputs and outputs, their names, parameters

The .bin has the weights in the order of the layers: of convolutions as fp16 or fp32 after a tag,
then biases; biases and slopes are always fp32 and have no tag. All become float32.

Source: https://github.com/Tencent/ncnn, "param and model file structure" in its wiki.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tubelet.errors import CheckpointError

__all__ = ["Layer", "WeightReader", "find_graph", "read_layers", "weights_path"]

_MAGIC = "7767517"
"""First line of every .param."""
_ARRAY_KEY = -23300
"""The key of an array is this minus its ordinary key. The first value of an array is its length."""

_FP16_TAG = 0x01306B47
_FP32_TAGS = (0x00000000, 0x0002C056)
_INT8_TAG = 0x000D4B38
_FIRST_TAGS = (_FP16_TAG, *_FP32_TAGS, _INT8_TAG)
_ALIGNMENT_BYTES = 4


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer of a network.

    Attributes:
        kind: Class of the layer in ncnn.
        params: Values by their keys; of an array, without its length.
    """

    kind: str
    params: Mapping[int, tuple[float, ...]]

    def number(self, key: int, default: float = 0) -> float:
        """Return the value of a parameter."""
        # An array can be empty.
        values = self.params.get(key) or (default,)
        return values[0]

    def integer(self, key: int, default: int = 0) -> int:
        """Return the value of an integer parameter."""
        return int(self.number(key, default))


def find_graph(path: Path) -> Path | None:
    """Return the .param of a network of ncnn.

    Args:
        path: Path of either file of the network, or of any other file.

    Returns:
        Path of the .param, which may be missing; None if the file is not of ncnn.
    """
    if not path.is_file():
        return None
    with path.open("rb") as file:
        head = file.read(len(_MAGIC))
    if head == _MAGIC.encode():
        return path
    graph = path.with_suffix(".param")
    # Files of PyTorch are called .bin, too: those begin with other bytes.
    first_word = int.from_bytes(head[:4], "little")
    if path.suffix == ".bin" and (graph.is_file() or first_word in _FIRST_TAGS):
        return graph
    return None


def weights_path(path: Path) -> Path:
    """Return the file that has the weights: for a .param of ncnn its .bin, otherwise the path."""
    graph = find_graph(path)
    if graph is None:
        return path
    return graph.with_suffix(".bin")


def read_layers(graph: Path) -> list[Layer]:
    """Read a .param.

    Args:
        graph: Path of the file.

    Returns:
        The layers in the order in which they run.

    Raises:
        CheckpointError: The file is missing, damaged, or of another format.
    """
    if not graph.is_file():
        raise CheckpointError(
            f"no such file: {graph}; a network of ncnn needs it beside {graph.stem}.bin"
        )
    try:
        lines = graph.read_text("utf-8").splitlines()
        if lines[0].strip() != _MAGIC:
            raise CheckpointError(f"{graph} is not a graph of ncnn: its first line is not {_MAGIC}")
        # The second number of the line, that of blobs, is not needed.
        num_layers = int(lines[1].split()[0])
        layers = [_parse_layer(line) for line in lines[2:] if line.strip()]
    except (ValueError, LookupError) as error:
        raise CheckpointError(f"{graph} is damaged: {error}; fetch it again") from error
    if len(layers) != num_layers:
        raise CheckpointError(
            f"{graph} has {len(layers)} layers and declares {num_layers}: it was cut short; "
            "fetch it again"
        )
    return layers


def _parse_layer(line: str) -> Layer:
    """Read one line of a .param."""
    kind, _, num_inputs, num_outputs, *words = line.split()
    # The names of inputs and outputs come before the parameters.
    num_blobs = int(num_inputs) + int(num_outputs)
    params: dict[int, tuple[float, ...]] = {}
    for word in words[num_blobs:]:
        key, _, text = word.partition("=")
        values = tuple(map(float, text.split(",")))
        if not all(map(math.isfinite, values)):
            raise ValueError(f"{word} is not a number")
        if int(key) <= _ARRAY_KEY:
            params[_ARRAY_KEY - int(key)] = values[1:]
        else:
            params[int(key)] = values
    return Layer(kind, params)


class WeightReader:
    """Reads the numbers of a .bin in their order.

    Args:
        graph: Path of the .param of the network.

    Raises:
        CheckpointError: The .bin is missing; the methods raise it for a file that does not fit.
    """

    def __init__(self, graph: Path) -> None:
        self._graph = graph
        self._path = graph.with_suffix(".bin")
        if not self._path.is_file():
            raise CheckpointError(
                f"no such file: {self._path}; the weights of {graph.name} must be beside it"
            )
        self._content = self._path.read_bytes()
        self._position = 0

    def read_tagged(self, count: int) -> Tensor:
        """Read the weights of a convolution, in the format that the tag before them names.

        Returns:
            (count,), float32.
        """
        tag = int.from_bytes(self._content[self._position : self._position + 4], "little")
        tag_position = self._position
        self._position += 4
        if tag == _FP16_TAG:
            return self.read_floats(count, "<f2")
        if tag in _FP32_TAGS:
            return self.read_floats(count)
        if tag == _INT8_TAG:
            raise CheckpointError(
                f"{self._path} has int8 weights, which Tubelet does not read; use the file with "
                "fp16 or fp32 weights"
            )
        raise CheckpointError(
            f"{self._path} has neither fp16 nor fp32 weights at byte {tag_position}: it is "
            f"quantized, or of another network than {self._graph.name}"
        )

    def read_floats(self, count: int, number_format: str = "<f4") -> Tensor:
        """Read numbers without a tag.

        Args:
            count: Number of values.
            number_format: "<f4" or "<f2", as in NumPy.

        Returns:
            (count,), float32.
        """
        num_bytes = count * np.dtype(number_format).itemsize
        if not 0 < num_bytes <= len(self._content) - self._position:
            raise CheckpointError(
                f"{self._path} ends before the weights that {self._graph.name} lists: it was cut "
                "short, or is of another network"
            )
        values = np.frombuffer(self._content, number_format, count, self._position)
        # ncnn pads an odd number of fp16 values.
        self._position += math.ceil(num_bytes / _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES
        return torch.from_numpy(values.astype(np.float32))

    def check_end(self) -> None:
        """Check that every byte was read.

        Raises:
            CheckpointError: There are more.
        """
        num_unread = len(self._content) - self._position
        if num_unread > 0:
            raise CheckpointError(
                f"{self._path} has {num_unread} bytes more than {self._graph.name} lists: it is of "
                "another network"
            )
