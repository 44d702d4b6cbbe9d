"""Every architecture at its published size, from a checkpoint through the command: real clips, odd sizes, a cut."""

from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from helpers.videos import add_video, mux
from helpers.zoo_configs import base_of
from tubelet.cli import main
from tubelet.data import read_clip
from tubelet.models.architecture import Architecture
from tubelet.ops import imresize
from tubelet.video.reader import open_reader
from tubelet.zoo.architectures import ARCHITECTURES
from tubelet.zoo.checkpoint import save_checkpoint

pytestmark = pytest.mark.slow

IMAGES = [a for a in ARCHITECTURES if a.contract(a.config()) is not None]
WIDTH, HEIGHT = 45, 35
CLIPS = {
    "thirty with a cut": (("vid4_walk", 20), ("vid4_city", 10)),
    "two": (("vid4_city", 2),),
    "one": (("vid4_walk", 1),),
}


@pytest.fixture(scope="module", params=IMAGES, ids=lambda a: a.name)
def network(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Architecture, Path]:
    """Save a network of the published configuration, with random weights."""
    torch.manual_seed(0)
    architecture: Architecture = request.param
    model = architecture.build(architecture.config())
    for name, parameter in model.named_parameters():
        if "offset" in name:  # which starts at zero
            nn.init.normal_(parameter, std=0.01)
    path = tmp_path_factory.mktemp(architecture.name) / "published.safetensors"
    save_checkpoint(path, model, {}, base=base_of(architecture.name, path.parent))
    return architecture, path


def small(shared: Path, name: str, frames: int) -> Tensor:
    """Read a real clip and shrink it: (T, 3, H, W)."""
    gt = (
        torch.from_numpy(read_clip(shared / "data" / "dev_eval" / name, max_frames=frames)).float()
        / 255
    )
    lq = imresize(gt, 0.08).clamp(0, 1)[..., :HEIGHT, :WIDTH]
    assert lq.shape[-2:] == (HEIGHT, WIDTH)
    return lq


def write_video(shared: Path, path: Path, parts: Sequence[tuple[str, int]]) -> Path:
    lq = torch.cat([small(shared, *part) for part in parts])
    images = (lq * 255).round().byte().permute(0, 2, 3, 1).numpy()
    container = av.open(str(path), "w")
    times_ms = tuple(40 * t for t in range(len(images)))
    _, packets = add_video(container, times_ms, (WIDTH, HEIGHT), "ffv1", "bgr0", images=images)
    mux(container, packets)
    return path


@pytest.mark.parametrize("clip", CLIPS)
def test_a_real_clip_through_the_command(
    shared: Path, tmp_path: Path, network: tuple[Architecture, Path], clip: str
) -> None:
    architecture, weights = network
    source, target = write_video(shared, tmp_path / "in.mkv", CLIPS[clip]), tmp_path / "out.mkv"
    assert (
        main(["upscale", str(source), str(target), "--model", str(weights), "--progress", "none"])
        == 0
    )
    with open_reader(source) as before, open_reader(target) as after:
        times = [frame.time_s for frame in before]
        frames = [(frame.time_s, frame.rgb) for frame in after]
    contract = architecture.contract(architecture.config())
    assert contract is not None
    assert [time for time, _ in frames] == pytest.approx(times, abs=1e-3)
    assert len(frames) == sum(count for _, count in CLIPS[clip])
    for _, rgb in frames:
        assert rgb.shape == (3, contract.scale * HEIGHT, contract.scale * WIDTH)
        assert np.std(rgb.numpy()) > 0
