from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers.zoo_configs import TINY, architecture_of
from tubelet.data import CachedClip
from tubelet.errors import CheckpointError
from tubelet.metrics import psnr
from tubelet.recipes.frame_scores import (
    FrameScores,
    mean_psnr,
    psnr_by_distance,
    run_arm,
    score_frames,
)
from tubelet.recipes.lrti import configure
from tubelet.training import LoopSettings


def _clips() -> list[CachedClip]:
    rng = np.random.default_rng(0)
    clips = []
    for name, frames in (("a", 6), ("b", 5)):
        gt = rng.integers(0, 256, (frames, 3, 32, 40), dtype=np.uint8)
        clips.append(CachedClip(name, gt, (np.ascontiguousarray(gt[..., ::4, ::4]),)))
    return clips


def _scores(*videos: tuple[float, ...]) -> list[FrameScores]:
    return [
        FrameScores(name=str(n), psnr_y=values, psnr_rgb=tuple(value - 2 for value in values))
        for n, values in enumerate(videos)
    ]


def test_every_frame_is_restored_in_its_video_and_scored() -> None:
    torch.manual_seed(0)
    network = architecture_of("OVSR").build(TINY["OVSR"])
    scores = score_frames(network, _clips(), num_frames=4)
    assert [video.name for video in scores] == ["a", "b"]
    for clip, video in zip(_clips(), scores, strict=True):
        lq = torch.from_numpy(clip.lqs[0][:4]).float() / 255
        gt = torch.from_numpy(clip.gt[:4]).float() / 255
        with torch.inference_mode():
            sr = network(lq[None])[0]
        np.testing.assert_allclose(video.psnr_y, psnr(sr, gt), atol=1e-4)
        np.testing.assert_allclose(video.psnr_rgb, psnr(sr, gt, channel="rgb"), atol=1e-4)


def test_means_leave_out_the_ends_and_weigh_videos_equally() -> None:
    scores = _scores((1.0, 2.0, 6.0, 9.0), (20.0, 30.0))
    assert mean_psnr(scores) == (4.5 + 25) / 2
    assert mean_psnr(scores[:1], margin=1) == 4.0
    assert mean_psnr(scores[:1], channel="rgb") == 2.5


def test_scores_by_distance_from_the_nearer_end() -> None:
    scores = _scores((1.0, 4.0, 8.0, 6.0, 3.0), (2.0, 2.0))
    assert psnr_by_distance(scores) == [2.0, 5.0, 8.0]
    assert psnr_by_distance(scores, channel="rgb") == [0.0, 3.0, 6.0]


def test_an_arm_is_trained_and_scored_once(tmp_path: Path, monkeypatch: Any) -> None:
    config = configure(
        "ovsr",
        network=TINY["OVSR"],
        data=(Path("two clips"),),
        out=tmp_path / "arm",
        length=1,
        samples=2,
        clip=5,
        batch=1,
        patch_px=8,
        loop=LoopSettings(steps=2, log_every=1, save_every=2),
    )
    clips = _clips()
    first = run_arm(config, clips, clips[:1], num_frames=3)
    assert len(first.scores[0].psnr_y) == 3
    # The state of the training is only for resuming.
    (tmp_path / "arm" / "state.pt").unlink()
    monkeypatch.setattr("tubelet.recipes.frame_scores.main", lambda *_, **__: 1 / 0)
    assert run_arm(config, clips, clips[:1], num_frames=3) == first
    with pytest.raises(CheckpointError, match="is of a run with length=1, not length=3"):
        run_arm(replace(config, length=3, starts="all"), clips, clips[:1], num_frames=3)
