"""The models in the package: intact, described correctly, stable, and better than Lanczos."""

import hashlib
import json
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path

import pytest
import torch

import tubelet
from tubelet.data import read_clip
from tubelet.degrade import degrade
from tubelet.metrics import psnr, ssim
from tubelet.restore.engine import Engine
from tubelet.restore.settings import UpscaleSettings
from tubelet.types import Frame
from tubelet.zoo.catalog import find_model
from tubelet.zoo.checkpoint import load_model
from tubelet.zoo.opening import create_model

WEIGHTS = Path(tubelet.__path__[0]) / "weights"
MANIFEST = {
    entry["id"]: entry
    for entry in json.loads((WEIGHTS / "manifest.json").read_text(encoding="utf-8"))
}
CLIPS = ("davis_goat", "editly_lofoten", "vid4_calendar", "vid4_city", "vid4_foliage", "vid4_walk")


def clip(shared: Path, name: str, frames: int) -> torch.Tensor:
    """The first frames of a held-out clip, (T, 3, H, W)."""
    gt = read_clip(shared / "data" / "dev_eval" / name, max_frames=frames, size_multiple=4)
    return torch.from_numpy(gt).float() / 255


def restore(id: str, lq: torch.Tensor) -> torch.Tensor:
    engine = Engine(find_model(id), create_model(id), UpscaleSettings(device="cpu"))
    frames = (Frame(rgb, t, Fraction(1, 25), index=t) for t, rgb in enumerate(lq))
    return torch.stack([frame.rgb for frame in engine.restore(frames)])


def test_all_four_are_there_and_the_default_is_for_people():
    assert set(MANIFEST) == {"fast-x4-bi", "fast-x4-real", "fast-x2-bi", "fast-x2-real"}
    assert find_model("default").id == "fast-x4-real"
    assert find_model("default", factor=2).id == "fast-x2-real"
    assert find_model("default", factor=3).id == "fast-x4-real"


@pytest.mark.parametrize("id", MANIFEST)
def test_the_manifest_tells_the_truth(id):
    entry = MANIFEST[id]
    path = WEIGHTS / f"{id}.safetensors"
    assert hashlib.sha256(path.read_bytes()).hexdigest() == entry["sha256"]
    assert asdict(load_model(path).config) == entry["config"]
    assert {"license", "data", "stages", "scores"} <= set(entry)
    assert "/work" not in path.read_bytes()[:2000].decode("utf-8", "replace")


@pytest.mark.slow
@pytest.mark.parametrize("name", CLIPS)
@pytest.mark.parametrize("id", MANIFEST)
def test_beats_bicubic_and_lanczos(shared, id, name):
    scale = MANIFEST[id]["config"]["scale"]
    preset = id.rsplit("-", 1)[1]
    gt = clip(shared, name, 15)
    lq = degrade(gt, preset, scale=scale, seed=CLIPS.index(name))
    restored = [restore(model, lq) for model in (id, f"bicubic-x{scale}", f"lanczos-x{scale}")]
    for metric in (psnr, ssim):
        ours, *others = (metric(sr, gt).mean().item() for sr in restored)
        assert ours > max(others), (metric.__name__, ours, others)


@pytest.mark.parametrize("id", MANIFEST)
@torch.inference_mode()
def test_colors_stay_and_a_long_still_scene_does_not_drift(id):
    model = create_model(id)
    torch.manual_seed(0)
    still = torch.nn.functional.interpolate(
        torch.rand(1, 3, 6, 8), scale_factor=6.0, mode="bicubic"
    ).clamp(0, 1)
    lq = still[:, None].expand(-1, 2, -1, -1, -1)
    hidden = None
    results = []
    for _ in range(400):
        sr, hidden = model.step(lq, hidden)
        results.append(sr)
    assert (results[-1] - results[50]).abs().max() < 1 / 255
    color = torch.nn.functional.avg_pool2d(results[-1], find_model(id).scale) - still
    assert color.mean((0, 2, 3)).abs().max() < 1 / 255
