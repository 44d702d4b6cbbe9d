"""Networks of ncnn: files of small ones, and a slow interpreter that runs any of them layer by layer."""

import math
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from tubelet.models.rrdb import RRDBConfig, RRDBNet
from tubelet.models.srvgg import SRVGGNetCompact

FP16_TAG = 0x01306B47
FP32_TAG = 0x0002C056
INT8_TAG = 0x000D4B38


class Graph:
    """The lines of a .param, as an exporter writes them."""

    def __init__(self) -> None:
        self.lines = ["Input in 0 1 data"]

    def add(self, kind: str, inputs: str, params: str = "") -> str:
        """Append a layer with one output, and return the name of the output."""
        name = f"blob{len(self.lines)}"
        count = len(inputs.split())
        self.lines.append(f"{kind:<24} {kind}_{len(self.lines)} {count} 1 {inputs} {name} {params}")
        return name

    def conv(self, source: str, conv: nn.Module, params: str = "") -> str:
        assert isinstance(conv, nn.Conv2d)
        count = conv.weight.numel()
        return self.add(
            "Convolution", source, f"0={conv.out_channels} 1=3 4=1 5=1 6={count} {params}"
        )

    def text(self) -> str:
        return "\n".join(["7767517", f"{len(self.lines)} {len(self.lines)}", *self.lines]) + "\n"


def srvgg_graph(model: SRVGGNetCompact) -> Graph:
    """Write the layers of a network, with its final resize."""
    graph = Graph()
    scale = model.config.scale
    x = "data"
    for layer in model.body:
        if isinstance(layer, nn.PReLU):
            x = graph.add("PReLU", x, f"0={layer.num_parameters}")
        else:
            x = graph.conv(x, layer)
    x = graph.add("PixelShuffle", x, f"0={scale}")
    skip = graph.add("Interp", "data", f"0=1 1={scale:e} 2={scale:e}")
    x = graph.add("BinaryOp", f"{x} {skip}", "0=0")
    if model.config.output_scale:
        factor = model.config.output_scale / scale
        graph.add("Interp", x, f"0=3 1={factor:e} 2={factor:e}")
    return graph


def rrdb_graph(model: RRDBNet, *, optimized: bool) -> Graph:
    """Write the layers of a network, as ncnnoptimize leaves them, or as they come from ONNX."""
    graph = Graph()

    def activated(source: str, conv: nn.Module) -> str:
        if optimized:
            return graph.conv(source, conv, "9=2 -23310=1,2.000000e-01")
        return graph.add("ReLU", graph.conv(source, conv), "0=2.000000e-01")

    def scaled_sum(residual: str, skip: str) -> str:
        if optimized:
            params = "0=1 -23301=2,2.000000e-01,1.000000e+00"
            return graph.add("Eltwise", f"{residual} {skip}", params)
        scaled = graph.add("BinaryOp", residual, "0=2 1=1 2=2.000000e-01")
        return graph.add("BinaryOp", f"{scaled} {skip}", "0=0")

    first = graph.conv("data", model.conv_first)
    x = first
    for block in model.body:
        start = x
        for dense in block.children():
            features = [x]
            *convs, last = dense.children()
            for conv in convs:
                joined = graph.add("Concat", " ".join(features)) if len(features) > 1 else x
                features.append(activated(joined, conv))
            residual = graph.conv(graph.add("Concat", " ".join(features)), last)
            x = scaled_sum(residual, x)
        x = scaled_sum(x, start)
    x = graph.add("BinaryOp", f"{first} {graph.conv(x, model.conv_body)}", "0=0")
    for i in range(model.config.doublings):
        x = graph.add("Interp", x, "0=1 1=2.000000e+00 2=2.000000e+00")
        x = activated(x, model.get_submodule(f"conv_up{i + 1}"))
    graph.conv(activated(x, model.conv_hr), model.conv_last)
    return graph


def weights_of(model: nn.Module, tag: int) -> bytes:
    """Write the weights of a network in the order of its layers; only fp16 is another format."""
    content = b""
    for layer in model.modules():
        if isinstance(layer, nn.PReLU):
            content += layer.weight.detach().numpy().tobytes()
        elif isinstance(layer, nn.Conv2d):
            assert layer.bias is not None
            number_format = "<f2" if tag == FP16_TAG else "<f4"
            weight = layer.weight.detach().numpy().astype(number_format).tobytes()
            padding = bytes(-len(weight) % 4)
            bias = layer.bias.detach().numpy().tobytes()
            content += struct.pack("<I", tag) + weight + padding + bias
    return content


def write_ncnn(
    path: Path, model: SRVGGNetCompact | RRDBNet, tag: int = FP32_TAG, *, optimized: bool = True
) -> Path:
    """Write both files of a network; return the path of the .param."""
    if isinstance(model, RRDBNet):
        graph = rrdb_graph(model, optimized=optimized)
    else:
        graph = srvgg_graph(model)
    path.write_text(graph.text(), encoding="utf-8")
    path.with_suffix(".bin").write_bytes(weights_of(model, tag))
    return path


def random_rrdb(config: RRDBConfig) -> RRDBNet:
    """Build a network whose residuals are large enough to be seen."""
    torch.manual_seed(0)
    model = RRDBNet(config).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    return model


class _Reader:
    def __init__(self, path: Path) -> None:
        self.content = path.read_bytes()
        self.position = 0

    def floats(self, count: int, number_format: str = "<f4") -> Tensor:
        values = np.frombuffer(self.content, number_format, count, self.position)
        self.position += math.ceil(values.nbytes / 4) * 4
        return torch.from_numpy(values.astype(np.float32))

    def tagged(self, count: int) -> Tensor:
        (tag,) = struct.unpack_from("<I", self.content, self.position)
        self.position += 4
        return self.floats(count, "<f2" if tag == FP16_TAG else "<f4")


def run_graph(graph: Path, image: Tensor) -> Tensor:
    """Run the layers of a .param one after the other, with the weights of its .bin.

    Args:
        graph: Path of the .param.
        image: (1, 3, H, W).

    Returns:
        Output of the last layer, (1, 3, sH, sW).
    """
    weights = _Reader(graph.with_suffix(".bin"))
    blobs: dict[str, Tensor] = {}
    result = image
    for line in graph.read_text("utf-8").splitlines()[2:]:
        kind, _, num_inputs, num_outputs, *words = line.split()
        last_input = int(num_inputs)
        last_output = last_input + int(num_outputs)
        params = dict(word.split("=") for word in words[last_output:])
        inputs = [blobs[name] for name in words[:last_input]]
        result = image if kind == "Input" else _run_layer(kind, inputs, params, weights)
        for name in words[last_input:last_output]:
            blobs[name] = result
    assert weights.position == len(weights.content)
    return result


def _run_layer(
    kind: str, inputs: Sequence[Tensor], params: dict[str, str], weights: _Reader
) -> Tensor:
    x = inputs[0]
    match kind:
        case "Split":
            return x
        case "Concat":
            return torch.cat(list(inputs), 1)
        case "Convolution":
            return _convolve(x, params, weights)
        case "PReLU":
            slopes = weights.floats(int(params["0"])).view(-1, 1, 1)
            return torch.where(x > 0, x, slopes * x)
        case "ReLU":
            return torch.where(x > 0, x, float(params["0"]) * x)
        case "PixelShuffle":
            return functional.pixel_shuffle(x, int(params["0"]))
        case "Interp" if params["0"] == "1":
            factor = int(float(params["1"]))
            return x.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
        case "Interp" if params["0"] == "3":
            x = _bicubic_rows(x, float(params["1"]))
            return _bicubic_rows(x.transpose(2, 3), float(params["2"])).transpose(2, 3)
        case "BinaryOp" if params.get("1") == "1":
            return x * float(params["2"])
        case "BinaryOp":
            return x + inputs[1]
        case "Eltwise":
            _, *coefficients = params["-23301"].split(",")
            products = [float(c) * blob for c, blob in zip(coefficients, inputs, strict=True)]
            return products[0] + products[1]
        case _:
            raise AssertionError(kind)


def _convolve(x: Tensor, params: dict[str, str], weights: _Reader) -> Tensor:
    out_channels, kernel_px = int(params["0"]), int(params["1"])
    weight = weights.tagged(int(params["6"])).view(out_channels, x.shape[1], kernel_px, kernel_px)
    y = functional.conv2d(x, weight, weights.floats(out_channels), padding=int(params["4"]))
    if params.get("9") == "2":
        slope = float(params["-23310"].split(",")[1])
        y = torch.where(y > 0, y, slope * y)
    return y


def _bicubic_rows(x: Tensor, factor: float) -> Tensor:
    """Interpolate along the height: four taps around the center of each pixel, clamped at the edges.

    Source: ncnn, src/layer/interp.cpp: Keys' kernel with a = -0.75, pixel centers, no antialiasing.
    """
    a = -0.75
    size = x.shape[2]
    rows = []
    for out_row in range(int(size * factor)):
        center = (out_row + 0.5) / factor - 0.5
        row = torch.zeros_like(x[:, :, 0])
        for tap in range(math.floor(center) - 1, math.floor(center) + 3):
            t = abs(center - tap)
            if t <= 1:
                weight = (a + 2) * t**3 - (a + 3) * t**2 + 1
            else:
                weight = a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a
            row = row + weight * x[:, :, min(max(tap, 0), size - 1)]
        rows.append(row)
    return torch.stack(rows, 2)
