"""Recognize networks of ncnn by their layers, and name their weights as in our state dicts.

    x.param ── layers ── recognized by their kinds, order and shapes ── names ─┐
    x.bin ──── weights in the order of the layers ─────────────────────────────┴─ state dict

Only the layers of SRVGGNetCompact and RRDBNet are known. Exporters number the layers, so their
names say nothing.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from tubelet.errors import CheckpointError
from tubelet.models.rrdb import RRDBNet
from tubelet.models.srvgg import SRVGGNetCompact
from tubelet.zoo.ncnn_files import Layer, WeightReader, read_layers

__all__ = ["read_ncnn", "read_ncnn_header"]

# Values of the parameter 9 of a convolution, 0 of Interp, and 0 of BinaryOp and Eltwise.
_LEAKY_RELU = 2
_NEAREST = 1
_BICUBIC = 3
_ADD = 0
_MULTIPLY = 2
_SUM = 1

# β and the slope of ESRGAN, Section 3.1, as in `tubelet.models.rrdb`.
_RESIDUAL_SCALE = 0.2
_SLOPE = 0.2
_CONVS_PER_RRDB = 15
_FACTOR_TOLERANCE = 1e-4
_MAX_LISTED_KINDS = 12
_KINDS_OF_RRDBNET = frozenset(
    ("BinaryOp", "Concat", "Convolution", "Eltwise", "Input", "Interp", "ReLU", "Split")
)


@dataclass(frozen=True, slots=True)
class _Network:
    """A recognized network.

    Attributes:
        architecture: Class name of the network.
        names: Our names of the layers with weights, in their order.
        config: Fields of the configuration that names and shapes do not determine.
    """

    architecture: str
    names: list[str]
    config: Mapping[str, int] = field(default_factory=dict[str, int])


def read_ncnn(graph: Path) -> dict[str, Tensor]:
    """Read the weights of a network of ncnn.

    Args:
        graph: Path of the .param; the .bin has the same name but for the suffix.

    Returns:
        State dict with our names, float32.

    Raises:
        CheckpointError: A file is missing, damaged, of another network or of a format that is not
            supported.
    """
    layers = read_layers(graph)
    network = _recognize(layers, graph)
    weighted = [layer for layer in layers if layer.kind in ("Convolution", "PReLU")]
    weights = WeightReader(graph)
    state: dict[str, Tensor] = {}
    for name, layer in zip(network.names, weighted, strict=True):
        # Only weights of convolutions have a tag.
        if layer.kind == "PReLU":
            state[f"{name}.weight"] = weights.read_floats(layer.integer(0))
            continue
        shape = _weight_shape(layer)
        state[f"{name}.weight"] = weights.read_tagged(math.prod(shape)).reshape(shape)
        if layer.integer(5):
            state[f"{name}.bias"] = weights.read_floats(shape[0])
    weights.check_end()
    return state


def read_ncnn_header(graph: Path) -> dict[str, str]:
    """Read what `save_checkpoint` stores in a header: the architecture, and its configuration.

    Args:
        graph: Path of the .param.

    Raises:
        CheckpointError: The .param is missing, damaged, or of an unknown network.
    """
    network = _recognize(read_layers(graph), graph)
    return {"architecture": network.architecture, "config": json.dumps(network.config)}


def _recognize(layers: Sequence[Layer], graph: Path) -> _Network:
    """Find the network that has these layers.

    Raises:
        CheckpointError: There is none.
    """
    network = _recognize_srvgg(layers) or _recognize_rrdb(layers)
    if network is not None:
        return network
    # An unknown graph can have hundreds of layers, but only a few kinds.
    counts = Counter(layer.kind for layer in layers)
    listing = ", ".join(f"{count} {kind}" for kind, count in counts.most_common(_MAX_LISTED_KINDS))
    raise CheckpointError(
        f"{graph} is of no network of ncnn that Tubelet knows (SRVGGNetCompact, RRDBNet); its "
        f"layers are {listing}"
    )


def _recognize_srvgg(layers: Sequence[Layer]) -> _Network | None:
    """Recognize SRVGGNetCompact.

    Convolution ─ PReLU ─ … ─ Convolution ─ PixelShuffle ─┐
    Interp, nearest ──────────────────────────────────────┴ BinaryOp, add ─ perhaps Interp, bicubic
    """
    body = [layer for layer in layers if layer.kind in ("Convolution", "PReLU")]
    others = ("Convolution", "PReLU", "Input", "Split")
    rest = [layer for layer in layers if layer.kind not in others]
    convs = body[::2]
    acts = body[1::2]
    # A final Interp is never the one before the addition.
    resize = rest.pop() if rest and rest[-1].kind == "Interp" else None
    if sorted(layer.kind for layer in rest) != ["BinaryOp", "Interp", "PixelShuffle"]:
        return None
    add, enlarge, shuffle = sorted(rest, key=lambda layer: layer.kind)
    scale = shuffle.integer(0)
    fits = (
        len(convs) == len(acts) + 1,
        len(acts) > 0,
        all(layer.kind == "PReLU" for layer in acts),
        all(map(_is_linear, convs)),
        add.integer(0) == _ADD,
        _interp_factor(enlarge, _NEAREST) == scale,
        # The order of the channels of PyTorch.
        shuffle.integer(1) == 0,
    )
    if not all(fits):
        return None
    names = [f"body.{i}" for i in range(len(body))]
    if resize is None:
        return _Network(SRVGGNetCompact.__name__, names)
    factor = scale * _interp_factor(resize, _BICUBIC)
    output_scale = round(factor)
    # Files have seven digits of a factor such as 2/3.
    if output_scale < 1 or abs(factor - output_scale) > _FACTOR_TOLERANCE:
        return None
    return _Network(SRVGGNetCompact.__name__, names, {"output_scale": output_scale})


def _recognize_rrdb(layers: Sequence[Layer]) -> _Network | None:
    """Recognize RRDBNet, by the numbers of its layers: see the drawing in `tubelet.models.rrdb`.

    Optimized files have the activations in the convolutions, and multiply and add in one Eltwise.
    """
    if not _KINDS_OF_RRDBNET.issuperset(layer.kind for layer in layers):
        return None
    convs = [layer for layer in layers if layer.kind == "Convolution"]
    interps = [layer for layer in layers if layer.kind == "Interp"]
    doublings = len(interps)
    num_blocks, remainder = divmod(len(convs) - 4 - doublings, _CONVS_PER_RRDB)
    num_acts = 12 * num_blocks + doublings + 1
    num_scalings = 4 * num_blocks
    fits = (
        num_blocks > 0,
        remainder == 0,
        all(map(_keeps_size, convs)),
        all(_interp_factor(layer, _NEAREST) == 2 for layer in interps),
        sum(map(_is_activated, layers)) == num_acts,
        sum(map(_is_linear, convs)) + sum(map(_is_activated, convs)) == len(convs),
        sum(map(_is_scaling, layers)) == num_scalings,
        # Each scaled residual is added, and the one around all blocks.
        sum(map(_is_addition, layers)) == num_scalings + 1,
    )
    if not all(fits):
        return None
    # ONNX and ncnn list layers in the order in which they run.
    names = ["conv_first"]
    for block in range(num_blocks):
        for dense in range(1, 4):
            names += [f"body.{block}.rdb{dense}.conv{conv}" for conv in range(1, 6)]
    names.append("conv_body")
    names += [f"conv_up{i + 1}" for i in range(doublings)]
    names += ["conv_hr", "conv_last"]
    return _Network(RRDBNet.__name__, names)


def _keeps_size(layer: Layer) -> bool:
    """Return whether a convolution is an ordinary one, whose result has the size of its input."""
    kernel_px = layer.integer(1)
    fits = (
        layer.integer(11, kernel_px) == kernel_px,
        # Dilation, stride and padding.
        layer.integer(2, 1) == 1,
        layer.integer(3, 1) == 1,
        2 * layer.integer(4) == kernel_px - 1,
        math.prod(_weight_shape(layer)) == layer.integer(6),
    )
    return all(fits)


def _is_linear(layer: Layer) -> bool:
    """Return whether a layer is a convolution that keeps the size, without an activation."""
    return layer.kind == "Convolution" and _keeps_size(layer) and layer.integer(9) == 0


def _is_activated(layer: Layer) -> bool:
    """Return whether a layer is or ends with the leaky ReLU of RRDBNet."""
    if layer.kind == "ReLU":
        return layer.number(0) == _SLOPE
    is_leaky = layer.kind == "Convolution" and layer.integer(9) == _LEAKY_RELU
    return is_leaky and layer.number(10) == _SLOPE


def _is_scaling(layer: Layer) -> bool:
    """Return whether a layer multiplies a residual by 0.2."""
    if layer.kind == "Eltwise":
        return sorted(layer.params.get(1, ())) == [_RESIDUAL_SCALE, 1.0]
    is_product = layer.kind == "BinaryOp" and layer.integer(0) == _MULTIPLY
    return is_product and layer.integer(1) == 1 and layer.number(2) == _RESIDUAL_SCALE


def _is_addition(layer: Layer) -> bool:
    """Return whether a layer adds two features."""
    if layer.kind == "Eltwise":
        return layer.integer(0) == _SUM
    return layer.kind == "BinaryOp" and layer.integer(0) == _ADD and layer.integer(1) == 0


def _interp_factor(layer: Layer, kernel: int) -> float:
    """Return the factor by which a layer resizes, or 0 if it is not such an interpolation."""
    height_factor = layer.number(1, 1)
    is_uniform = layer.number(2, 1) == height_factor
    # Fixed sizes, and pixels at the corners instead of their centers.
    is_fixed = any(layer.integer(key) for key in (3, 4, 5, 6))
    if layer.integer(0) != kernel or not is_uniform or is_fixed:
        return 0
    return height_factor


def _weight_shape(layer: Layer) -> tuple[int, int, int, int]:
    """Return the shape of the weight of a convolution: (out, in, kernel, kernel)."""
    num_weights = layer.integer(6)
    out_channels = layer.integer(0)
    kernel_px = layer.integer(1)
    in_channels = num_weights // max(1, out_channels * kernel_px**2)
    return out_channels, in_channels, kernel_px, kernel_px
