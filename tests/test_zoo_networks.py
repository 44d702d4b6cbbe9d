"""Every architecture, from a checkpoint through the engine: odd sizes, short clips, a cut, and a video file."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import tubelet
from helpers.toy_models import clip_of, cuts_at, frames_of
from helpers.videos import make_video
from helpers.zoo_configs import TINY, base_of
from tubelet.models.architecture import Architecture
from tubelet.models.two_step import TwoStepRestorer
from tubelet.restore.engine import Engine
from tubelet.restore.plan import MemoryCost
from tubelet.restore.runner import TorchRunner
from tubelet.restore.settings import UpscaleSettings
from tubelet.zoo.architectures import ARCHITECTURES
from tubelet.zoo.checkpoint import save_checkpoint
from tubelet.zoo.opening import open_model

IMAGES = [a for a in ARCHITECTURES if a.contract(a.config()) is not None]


# Their published code takes clips of any size without padding.
ANY_SIZE = [
    a
    for a in IMAGES
    if a.name in ("BasicVSR", "BasicVSRPlusPlus", "IART", "LRTIVSR", "MIAVSR", "PSRT", "RVRT")
]


@pytest.fixture(scope="module", params=IMAGES, ids=lambda a: a.name)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _save_random(request.param, tmp_path_factory.mktemp(request.param.name))


def _save_random(architecture: Architecture, folder: Path) -> Path:
    """Save a small network with random weights."""
    torch.manual_seed(0)
    path = folder / "small.safetensors"
    network = architecture.build(TINY[architecture.name])
    # Weights that let a neighbor be seen; all but the end of two-step have them from the start.
    for parameter in (
        network.head if isinstance(network, TwoStepRestorer) else network
    ).parameters():
        if parameter.ndim in (2, 4):
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    save_checkpoint(path, network, {}, base=base_of(architecture.name, folder))
    return path


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three frames whose size is a multiple of two alone."""
    return make_video(tmp_path_factory.mktemp("video") / "in.mp4", frames=3, size=(26, 18))


def restored(engine: Engine, clip: Tensor, *cuts: int) -> Tensor:
    out = torch.stack([f.rgb for f in engine.restore(frames_of(clip), starts_scene=cuts_at(*cuts))])
    scale = engine.spec.scale
    assert out.shape == (len(clip), 3, scale * clip.shape[-2], scale * clip.shape[-1])
    assert out.isfinite().all()
    return out


@pytest.fixture
def unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    """A given memory cost; the test with a video file measures it, which is slow."""
    cost = MemoryCost(
        call_bytes_per_px=1000.0,
        stream_bytes_per_px=1000.0,
        feature_bytes_per_px=10.0,
        encoding_bytes_per_px=10.0,
    )
    monkeypatch.setattr(TorchRunner, "memory_cost", lambda _: cost)


@pytest.mark.usefixtures("unmeasured")
def test_odd_sizes_short_clips_and_a_cut(checkpoint: Path) -> None:
    opened = open_model(str(checkpoint))
    engine = Engine(
        opened.spec, opened.network, UpscaleSettings(device="cpu", precision="fp32", tile=0)
    )
    clip = clip_of(3, 17, 21)
    before, after = restored(engine, clip[:2]), restored(engine, clip[2:])
    assert after.std() > 0
    torch.testing.assert_close(
        restored(engine, clip, 2), torch.cat([before, after]), rtol=0, atol=1e-4
    )
    crossed = (restored(engine, clip) - torch.cat([before, after])).abs().max()
    assert (crossed == 0) if engine.spec.temporal.kind == "frame" else (crossed > 1e-3)


@pytest.mark.usefixtures("unmeasured")
@pytest.mark.parametrize("architecture", ANY_SIZE, ids=lambda a: a.name)
def test_the_engine_pads_nothing_that_published_code_does_not(
    architecture: Architecture, tmp_path: Path
) -> None:
    opened = open_model(str(_save_random(architecture, tmp_path)))
    engine = Engine(
        opened.spec, opened.network, UpscaleSettings(device="cpu", precision="fp32", tile=0)
    )
    clip = clip_of(2, 67, 77)
    with torch.inference_mode():
        whole = opened.network(clip[None])[0]
    torch.testing.assert_close(restored(engine, clip), whole, rtol=0, atol=1e-4)


@pytest.mark.usefixtures("unmeasured")
@pytest.mark.parametrize(
    "architecture", [a for a in ANY_SIZE if a.name in ("PSRT", "RVRT")], ids=lambda a: a.name
)
def test_tiles_begin_at_whole_windows(architecture: Architecture, tmp_path: Path) -> None:
    opened = open_model(str(_save_random(architecture, tmp_path)))
    engine = Engine(
        opened.spec, opened.network, UpscaleSettings(device="cpu", precision="fp32", tile=64)
    )
    tiles = engine.plan(64, 109).tiles
    assert {tile.x.start for tile in tiles} > {0}
    # A multiple of the window, which is 8 in published files; those of the test are smaller.
    window = opened.network.config.window  # type: ignore[union-attr]
    assert all(tile.x.start % window == tile.y.start % window == 0 for tile in tiles)
    restored(engine, clip_of(2, 64, 109))


def test_a_video_file(checkpoint: Path, video: Path, tmp_path: Path) -> None:
    result = tubelet.upscale(video, tmp_path / "out.mp4", model=str(checkpoint))
    assert (result.frames, result.model) == (3, checkpoint.name)
    assert (tmp_path / "out.mp4").stat().st_size > 0
