"""What every test of a published online network needs: recorded cases, key lists, and runs through the engine."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from helpers.image_parity import load, recorded_state
from helpers.recordings import recorded, rules
from helpers.toy_models import cuts_at, frames_of
from tubelet.models.architecture import Architecture
from tubelet.restore.engine import Engine
from tubelet.restore.settings import UpscaleSettings
from tubelet.zoo.spec import ModelSpec


def golden_case(
    recordings: Path, case: str, architecture: Architecture, kept: dict[str, Tensor] | None = None
) -> tuple[nn.Module, Tensor, list[Tensor], Any]:
    """Return the network with the weights of a case, its input, the recorded outputs and the case's description.

    `kept` are the constants that the published constructor makes.
    """
    case_json, outputs = recorded(recordings, case)
    made = rules(recordings)
    state = recorded_state(recordings, case_json)
    state.update(kept or {})
    lq = torch.from_numpy(made.image(case, tuple(case_json["inputs"]["x"])))
    return load(architecture, state), lq, outputs, case_json


def assert_recorded(sr: Tensor, expected: Tensor, case_json: Any) -> None:
    """Compare an output with the recorded one, within the tolerance of the recordings' README."""
    step = case_json["output_step"]
    tolerance = max(1e-4, 20 * case_json["float64_max_abs_over_std"]) * expected.std().item()
    torch.testing.assert_close(sr[..., ::step, ::step], expected, rtol=0, atol=tolerance)


def assert_loads_on_meta(architecture: Architecture, state: dict[str, Tensor], config: Any) -> None:
    """Check that names and shapes give this configuration, and that the network has exactly them."""
    ours = architecture.translate(state)
    assert ours is not None
    assert architecture.infer(ours) == config
    with torch.device("meta"):
        model = architecture.build(config)
    model.load_state_dict(ours, strict=True, assign=True)


def through_engine(
    architecture: Architecture, model: nn.Module, clip: Tensor, *, tile: int = 0
) -> Tensor:
    """Restore a clip (T, 3, H, W) as a stream of one scene: (T, 3, sH, sW)."""
    contract = architecture.contract(model.config)
    spec = ModelSpec(
        id=architecture.name,
        summary="for tests",
        architecture=architecture.name,
        contract=contract,
        build=lambda: model,
    )
    engine = Engine(spec, model, UpscaleSettings(device="cpu", precision="fp32", tile=tile))
    out: list[Tensor] = []
    for frame in engine.restore(frames_of(clip), starts_scene=cuts_at()):
        out.append(frame.rgb.clone())
        frame.rgb.zero_()  # as whoever takes a frame may: the state must not change with it
    return torch.stack(out)


_CLIPS = (1, 16, 18), (2, 18, 16), (5, 70, 52)


def assert_online(
    architecture: Architecture, model: nn.Module, clips: tuple[tuple[int, int, int], ...] = _CLIPS
) -> None:
    """Check that the engine gives what the network gives on clips of (T, H, W), whole and in tiles; and odd sizes."""
    torch.manual_seed(1)
    for frames, height, width in clips:
        clip = torch.rand(frames, 3, height, width)
        with torch.inference_mode():
            whole = model(clip[None])[0]
        tolerance = 1e-4 * whole.std().item()
        for tile in (0, 32):
            got = through_engine(architecture, model, clip, tile=tile)
            torch.testing.assert_close(got, whole, rtol=0, atol=tolerance)
    scale = architecture.contract(model.config).scale
    assert through_engine(architecture, model, torch.rand(2, 3, 17, 23)).shape == (
        2,
        3,
        17 * scale,
        23 * scale,
    )


def assert_causal_but_for_the_lookahead(model: nn.Module, lookahead: int) -> None:
    """Check that a frame depends on those before it, on those that the contract states, and on no later ones."""
    torch.manual_seed(1)
    lq = torch.rand(2, 5, 3, 16, 18)
    future, past = lq.clone(), lq.clone()
    future[:, 1 + lookahead :] = 0
    past[:, 0] = 0
    with torch.inference_mode():
        sr, with_future, with_past, alone = model(lq), model(future), model(past), model(lq[1:])
    assert torch.equal(with_future[:, 0], sr[:, 0])
    assert not torch.equal(with_future[:, 1 + lookahead], sr[:, 1 + lookahead])
    assert not torch.equal(with_past[:, 2], sr[:, 2])  # it is not among the inputs of that step
    torch.testing.assert_close(alone, sr[1:], rtol=0, atol=1e-4 * sr.std().item())


def assert_gradients(model: nn.Module, *outputs: Tensor) -> None:
    """Check that a loss of the outputs reaches every parameter."""
    sum(output.square().mean() for output in outputs).backward()
    dead = [
        name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0
    ]
    assert not dead


def reach_px(differs: Tensor, center: int, scale: int) -> int:
    """Measure how far, in lq pixels, the true values (..., sH, sW) lie from row and column `center` of lq."""
    rows, columns = differs.flatten(0, -3).any(0).nonzero().unbind(1)
    places = torch.cat([rows, columns]) // scale
    assert len(places)
    return int((places - center).abs().max())


def assert_halo(architecture: Architecture, model: nn.Module, *, side: int) -> None:
    """Check that what a step returns depends on no pixel of its input and state further away than the halo."""
    contract = architecture.contract(model.config)
    model.double()  # its convolutions go through no transformed tiles, which would spread not-a-numbers
    lq = torch.rand(1, 1 + contract.temporal.lookahead, 3, side, side, dtype=torch.float64)
    reached: list[int] = []
    with torch.inference_mode():
        _, hidden = model.step(lq, None)
        sr, states = model.step(lq, hidden)
        before = (sr, *states)
        for changed in range(1 + len(hidden)):
            inputs = [lq.clone(), *(state.clone() for state in hidden)]
            ratio = inputs[changed].shape[-1] // side
            inputs[changed][..., ratio * (side // 2), ratio * (side // 2)] += 1000
            sr, states = model.step(inputs[0], tuple(inputs[1:]))
            for result, unchanged in zip((sr, *states), before, strict=True):
                differs = result != unchanged
                if differs.any():
                    reached.append(reach_px(differs, side // 2, result.shape[-1] // side))
    assert max(reached) <= contract.halo_px
    assert max(reached) >= contract.halo_px - contract.size_multiple  # wider would only cost time
