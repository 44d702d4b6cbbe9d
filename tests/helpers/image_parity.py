"""Published networks by their names and shapes: weights as recorded, the lists of keys, and what all of them keep."""

import ast
import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from helpers.recordings import recorded, rules
from tubelet.models.architecture import Architecture


def recorded_state(recordings: Path, description: dict[str, Any]) -> dict[str, Tensor]:
    """Make the weights that a case was recorded with, by their published names."""
    fill, gains = rules(recordings).fill, description.get("fill_gain", {})
    state: dict[str, Tensor] = {}
    for name, (_, shape) in description["state_dict"].items():
        gain = next((value for ending, value in gains.items() if name.endswith(ending)), 1.0)
        state[name] = torch.as_tensor(fill(name, tuple(shape))) * gain
    return state


def listed_state(path: Path) -> dict[str, Tensor]:
    """Read a list of names and shapes as tensors without values."""
    lines = [
        line.split("\t")
        for line in path.read_text(encoding="utf-8").splitlines()
        if not line.startswith("#")
    ]
    return {name: torch.empty(ast.literal_eval(shape), device="meta") for name, shape, _ in lines}


def published_keys(recordings: Path, name: str) -> dict[str, Tensor]:
    """Read the list of a published file by its name."""
    return listed_state(recordings / "keys" / f"{name}.txt")


def load(architecture: Architecture, state: dict[str, Tensor], **config: Any) -> nn.Module:
    """Translate, infer, build and load strictly, on the device of the tensors."""
    own = architecture.translate(state)
    assert own is not None
    device = next(iter(state.values())).device
    with torch.device(device):
        model = architecture.build(
            architecture.config(**{**_fields(architecture.infer(own)), **config})
        )
    # Entries that the constructor computes are not recorded.
    derived = {
        name: value
        for name, value in model.state_dict().items()
        if architecture.derived and name.endswith(architecture.derived)
    }
    model.load_state_dict({**derived, **own}, strict=True)
    return model.eval()


def _fields(config: Any) -> dict[str, Any]:
    return {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}


def assert_as_recorded(
    recordings: Path, case: str, architecture: Architecture, **config: Any
) -> None:
    """Compare the output of a case of an image network with the recorded one, within the stated tolerance."""
    description, outputs = recorded(recordings, case)
    model = load(architecture, recorded_state(recordings, description), **config)
    lq = torch.from_numpy(rules(recordings).image(case, tuple(description["inputs"]["x"])))
    with torch.inference_mode():
        sr = model(lq.unsqueeze(1)).squeeze(1)
    (expected,) = outputs
    tolerance = (
        max(1e-4, 20 * description["float64_max_abs_over_std"]) * description["output_stats"]["std"]
    )
    torch.testing.assert_close(sr, expected, rtol=0, atol=tolerance)


def assert_every_parameter_learns(model: nn.Module, lq: Tensor) -> None:
    """Check that the loss of a network's output depends on each of its parameters."""
    model.train()(lq).square().mean().backward()
    dead = [
        name
        for name, value in model.named_parameters()
        if value.grad is None or not value.grad.any()
    ]
    assert not dead


def assert_frames_are_encoded_once(model: Any, clip: Tensor) -> None:
    """Check that what `encode` makes of a frame serves every window, to the bit, and `fuse` leaves it as it is.

    Args:
        model: takes windows of an odd number of frames.
        clip: (B, T, 3, H, W), longer than a window.
    """
    size = model.config.num_frames
    with torch.inference_mode():
        features = [model.encode(frame) for frame in clip.unbind(1)]
        before = [[part.clone() for part in frame] for frame in features]
        for t in range(clip.shape[1] - size + 1):
            assert torch.equal(
                model.fuse(features[t : t + size])[:, None], model(clip[:, t : t + size])
            )
    assert all(
        torch.equal(x, y)
        for f, g in zip(features, before, strict=True)
        for x, y in zip(f, g, strict=True)
    )
