"""Every architecture, from a checkpoint through the engine: odd sizes, short clips, a cut, and a video file."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

import tubelet
from media import make_video
from small_models import clip_of, cuts_at, frames_of
from tiny_networks import TINY
from tubelet.models.architecture import Architecture
from tubelet.models.checkpoint import ARCHITECTURES, save_checkpoint
from tubelet.models.zoo import checkpoint_spec
from tubelet.restore.engine import Engine
from tubelet.restore.settings import UpscaleSettings

PICTURES = [a for a in ARCHITECTURES if a.name != "SpyNet"]
EVERY = pytest.mark.parametrize("architecture", PICTURES, ids=lambda a: a.name)


def checkpoint(architecture: Architecture, folder: Path) -> Path:
    """Save a small network with random weights."""
    torch.manual_seed(0)
    path = folder / "small.safetensors"
    save_checkpoint(path, architecture.build(TINY[architecture.name]), {})
    return path


def restored(path: Path, clip: Tensor, *cuts: int) -> Tensor:
    spec, model = checkpoint_spec(str(path))
    engine = Engine(spec, model, UpscaleSettings(device="cpu", precision="fp32"))
    out = torch.stack([f.rgb for f in engine.restore(frames_of(clip), starts_scene=cuts_at(*cuts))])
    assert out.shape == (len(clip), 3, spec.scale * clip.shape[-2], spec.scale * clip.shape[-1])
    assert out.isfinite().all()
    return out


@EVERY
def test_odd_sizes_short_clips_and_a_cut(architecture: Architecture, tmp_path: Path) -> None:
    path = checkpoint(architecture, tmp_path)
    clip = clip_of(3, 33, 37)
    assert restored(path, clip[:1]).std() > 0
    parts = torch.cat([restored(path, clip[:2]), restored(path, clip[2:])])
    torch.testing.assert_close(restored(path, clip, 2), parts, rtol=0, atol=1e-4)


@EVERY
def test_a_video_file(architecture: Architecture, tmp_path: Path) -> None:
    source = make_video(tmp_path / "in.mp4")
    path = checkpoint(architecture, tmp_path)
    result = tubelet.upscale(source, tmp_path / "out.mp4", model=str(path))
    assert (result.frames, result.model) == (10, path.name)
    assert (tmp_path / "out.mp4").stat().st_size > 0
