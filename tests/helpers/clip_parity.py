"""Compare networks that restore clips or windows with the recorded outputs of published code."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from helpers.image_parity import published_keys, recorded_state
from helpers.recordings import recorded, recorded_input
from tubelet.models.architecture import Architecture
from tubelet.zoo.architectures import ARCHITECTURES
from tubelet.zoo.checkpoint import open_checkpoint


def recorded_network(recordings: Path, case: str, **config: Any) -> nn.Module:
    """Build the network of a case from its state dict alone, and what `config` says that names do not tell."""
    description, _ = recorded(recordings, case)
    state = recorded_state(recordings, description)
    return open_checkpoint(
        {n: v for n, v in state.items() if n not in description["kept"]}, **config
    ).model


def recorded_clip(recordings: Path, case: str) -> Tensor:
    """Make the input of a case, (B, T, 3, H, W)."""
    description, _ = recorded(recordings, case)
    # A few cases have the input of another one.
    made_with = re.match(r'image\("([^"]+)"', description["input_make"]["x"])
    key = made_with[1] if made_with else case
    return recorded_input(recordings, key, tuple(description["inputs"]["x"]))


def assert_clip_as_recorded(
    recordings: Path,
    case: str,
    layout: torch.memory_format = torch.contiguous_format,
    *,
    prepare: Callable[[Tensor], Tensor] = lambda lq: lq,
    arrange: Callable[[Tensor], Tensor] = lambda sr: sr,
    **config: Any,
) -> None:
    """Compare the result of a case with the first recorded output, within the stated tolerance.

    Args:
        recordings: folder of the recorded cases.
        case: name.
        layout: of the network's weights in memory.
        prepare: makes the input of what the case names.
        arrange: brings the result into the axes of the recorded one.
        config: what names and shapes do not tell.
    """
    description, outputs = recorded(recordings, case)
    network = recorded_network(recordings, case, **config).to(memory_format=layout)  # pyright: ignore[reportCallIssue]
    with torch.no_grad():
        sr = arrange(network(prepare(recorded_clip(recordings, case))))
    shape, stats = description["output_shape"], description["output_stats"]
    if isinstance(stats, list):
        shape, stats = shape[0], stats[0]
    step = description["output_step"]
    tolerance = max(1e-4, 20 * description["float64_max_abs_over_std"]) * stats["std"]
    assert list(sr.shape) == shape
    torch.testing.assert_close(sr[..., ::step, ::step], outputs[0], rtol=0, atol=tolerance)


def assert_recognized(
    recordings: Path, file: str, architecture: Architecture, config: Any, parameters: int
) -> None:
    """Check that a published list of names is claimed by `architecture` alone, and fits it strictly."""
    state = published_keys(recordings, file)
    assert [a.name for a in ARCHITECTURES if a.translate(state) is not None] == [architecture.name]
    own = architecture.translate(state)
    assert own is not None
    assert architecture.infer(own) == config
    with torch.device("meta"):
        network = architecture.build(config)
    network.load_state_dict(own, strict=True, assign=True)
    assert sum(p.numel() for p in network.parameters()) == parameters
