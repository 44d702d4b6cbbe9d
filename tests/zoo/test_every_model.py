"""What every model must do, through the engine; each architecture with random weights, too."""

from fractions import Fraction

import pytest
import torch
from torch import Tensor, nn

from tubelet.degrade import degrade
from tubelet.evaluation.scene import draw_scene
from tubelet.metrics import psnr
from tubelet.models.fast import FastConfig, FastVSR
from tubelet.restore.engine import Engine
from tubelet.restore.settings import UpscaleSettings
from tubelet.types import Frame, Precision
from tubelet.zoo.catalog import list_models
from tubelet.zoo.checkpoint import save_checkpoint
from tubelet.zoo.opening import create_model, open_model
from tubelet.zoo.spec import ModelSpec

RANDOM = {
    "random FastVSR": FastConfig(channels=8, num_blocks=2),
    "random FastVSR x2, rgb, no lookahead": FastConfig(
        channels=8, num_blocks=1, scale=2, output="rgb", lookahead=0
    ),
    "random FastVSR x3, no recurrence": FastConfig(
        channels=8, num_blocks=1, scale=3, recurrent=False, expansion=2
    ),
}


@pytest.fixture(params=[*(spec.id for spec in list_models()), *RANDOM])
def opened(request, tmp_path) -> tuple[ModelSpec, nn.Module]:
    if request.param not in RANDOM:
        return next(spec for spec in list_models() if spec.id == request.param), create_model(
            request.param
        )
    torch.manual_seed(0)
    network = FastVSR(RANDOM[request.param])
    # The recurrent path starts at zero, which would hide errors in it.
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    save_checkpoint(tmp_path / "model.safetensors", network, {})
    opened = open_model(str(tmp_path / "model.safetensors"))
    return opened.spec, opened.network


def restore(
    spec: ModelSpec, model: nn.Module, clip: Tensor, *, tile: int, precision: Precision = "fp32"
) -> list[Frame]:
    frames = (Frame(rgb, 3 * t, Fraction(1, 75), duration=3, index=t) for t, rgb in enumerate(clip))
    engine = Engine(spec, model, UpscaleSettings(device="cpu", tile=tile, precision=precision))
    return list(engine.restore(frames, starts_scene=lambda _: False))


@pytest.fixture(scope="module")
def scene() -> Tensor:
    """A corner of the first frames of the drawn scene."""
    return torch.stack(list(draw_scene(4)))[..., :240, :320]


@pytest.mark.parametrize(
    "spec", [s for s in list_models() if "bf16" in s.contract.precisions], ids=lambda s: s.id
)
def test_bf16_costs_less_than_it_may(spec, scene):
    clip = degrade(scene, "bi", scale=spec.scale)
    scores = []
    for precision in ("fp32", "bf16"):
        frames = restore(spec, create_model(spec.id), clip, tile=0, precision=precision)
        scores.append(psnr(torch.stack([frame.rgb for frame in frames]), scene).mean())
    assert scores[0] != scores[1]
    assert scores[0] - scores[1] < 0.02


def test_odd_sizes_through_the_engine(opened):
    spec, model = opened
    frames = restore(spec, model, torch.rand(4, 3, 17, 23), tile=0)
    assert [frame.pts for frame in frames] == [0, 3, 6, 9]
    assert {tuple(frame.rgb.shape) for frame in frames} == {(3, 17 * spec.scale, 23 * spec.scale)}


def test_the_engine_gives_what_the_network_gives(opened):
    spec, model = opened
    clip = torch.rand(4, 3, 16, 24)
    with torch.inference_mode():
        whole = model(clip[None])[0]
    restored = torch.stack([frame.rgb for frame in restore(spec, model, clip, tile=0)])
    torch.testing.assert_close(restored, whole, atol=1e-4, rtol=1e-4)


def test_tiles_leave_no_seam(opened):
    spec, model = opened
    clip = torch.rand(4, 3, 50, 70)
    whole, tiled = (
        torch.stack([f.rgb for f in restore(spec, model, clip, tile=tile)]) for tile in (0, 32)
    )
    torch.testing.assert_close(tiled, whole, atol=1e-4, rtol=1e-4)
