import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from tubelet.data.motion import MotionSettings, MovingImages, MovingPair, find_images
from tubelet.errors import ConfigError, InputError
from tubelet.layers.spynet import SpyNet
from tubelet.models.fsrcnn import FSRCNN, FSRCNNConfig
from tubelet.ops import backward_warp, imresize
from tubelet.recipes.handcrafted_spynet import handcrafted_spynet
from tubelet.recipes.spynet import SpynetConfig, main, score_clip, score_pairs, split_images
from tubelet.training import LoopSettings
from tubelet.zoo.checkpoint import load_model, read_notes, save_checkpoint


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three images of smooth texture."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for i in range(3):
        coarse = torch.from_numpy(rng.random((3, 24, 24), dtype=np.float32))
        pixels = (imresize(coarse, 6).clamp(0, 1).movedim(0, -1) * 255).byte().numpy()
        Image.fromarray(pixels).save(root / f"{i}.png")
    return root


def _config(data: Path, out: Path, **changes: object) -> SpynetConfig:
    fields = {
        "data": (data,),
        "out": out,
        "hold_out": 3,
        "evaluate_pairs": 4,
        "levels": 2,
        "motion": MotionSettings(batch=4, patch_px=16, max_px=2.0),
        "loop": LoopSettings(steps=4, lr=1e-3, warmup_steps=1, log_every=1, save_every=2),
    }
    return SpynetConfig(**{**fields, **changes})


def test_finer_levels_stay_as_they_were(data: Path, tmp_path: Path) -> None:
    path = main(_config(data, tmp_path / "a"))
    network = load_model(path)
    assert isinstance(network, SpyNet)
    torch.manual_seed(0)
    start = handcrafted_spynet().state_dict()
    for name, value in network.state_dict().items():
        trained = name.startswith(("basic_module.0.", "basic_module.1."))
        assert trained or torch.equal(value, start[name])
    assert not torch.equal(
        network.basic_module[1].basic_module[8].bias, start["basic_module.1.basic_module.8.bias"]
    )
    assert read_notes(path)["training"]["levels"] == 2
    begun = load_model(
        main(_config(data, tmp_path / "b", init=path, loop=LoopSettings(steps=1, lr=1e-6)))
    )
    torch.testing.assert_close(begun.state_dict(), network.state_dict(), atol=1e-5, rtol=0)


def test_shared_levels_are_one_network_that_all_levels_train(data: Path, tmp_path: Path) -> None:
    network = load_model(main(_config(data, tmp_path / "a", shared=True)))
    assert isinstance(network, SpyNet)
    torch.manual_seed(0)
    start = handcrafted_spynet().basic_module[1].state_dict()
    for level in network.basic_module:
        torch.testing.assert_close(
            level.state_dict(), network.basic_module[0].state_dict(), rtol=0, atol=0
        )
        assert not torch.equal(
            level.state_dict()["basic_module.8.bias"], start["basic_module.8.bias"]
        )


def test_sees_motion_from_the_first_step(data: Path, tmp_path: Path) -> None:
    records: list[dict[str, float]] = []
    motion = MotionSettings(batch=4, patch_px=32, max_px=1.5, things=0, noise=0, change=0)
    loop = LoopSettings(steps=1, lr=1e-6, save_every=1)
    main(
        _config(data, tmp_path / "a", levels=1, motion=motion, loop=loop, evaluate_pairs=8),
        on_log=records.append,
    )
    assert records[-1]["epe"] < 0.7 * records[-1]["epe_zero"]


def test_each_level_is_judged_in_its_own_pixels(data: Path, tmp_path: Path) -> None:
    records: list[dict[str, float]] = []
    motion = MotionSettings(batch=4, patch_px=32, max_px=6.0, things=3)
    config = _config(
        data,
        tmp_path / "a",
        hidden_weight=0.25,
        motion=motion,
        loop=LoopSettings(steps=1, log_every=1),
    )
    main(config, on_log=records.append)
    known, _ = split_images(find_images(config.data), config.hold_out)
    frames, flow, visible = MovingImages(known, config.motion, config.loop.seed).batch(0)
    torch.manual_seed(config.loop.seed)
    coarse, fine = handcrafted_spynet().levels(frames[:, 0], frames[:, 1], 2)
    assert 0.01 < 1 - visible.mean() < 0.99
    weight = 0.25 + 0.75 * visible
    small_weight = functional.interpolate(weight, scale_factor=0.5, mode="area")
    small_flow = functional.interpolate(flow, scale_factor=0.5, mode="area") / 2
    for name, estimate, truth, of_pixels in (
        ("loss/level_0", coarse, small_flow, small_weight),
        ("loss/level_1", fine, flow, weight),
    ):
        distance = (estimate - truth).norm(dim=1, keepdim=True)
        expected = (distance * of_pixels).sum() / of_pixels.sum()
        assert records[0][name] == pytest.approx(expected.item(), rel=1e-4)
    assert records[0]["loss"] == pytest.approx(
        records[0]["loss/level_0"] + records[0]["loss/level_1"], rel=1e-6
    )


def test_overfits_a_batch(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = MovingImages.batch
    monkeypatch.setattr(MovingImages, "batch", lambda self, step: draw(self, 3))
    losses: list[float] = []
    loop = LoopSettings(steps=40, lr=1e-4, warmup_steps=10, log_every=1, save_every=40)
    main(
        _config(data, tmp_path / "a", loop=loop),
        on_log=lambda record: losses.append(record.get("loss", 0)),
    )
    assert losses[-2] < 0.6 * losses[0]


def test_resume_gives_the_same_network(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = load_model(main(_config(data, tmp_path / "whole"))).state_dict()

    def stop(record: dict[str, float]) -> None:
        if record["step"] == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        main(_config(data, tmp_path / "parts"), on_log=stop)
    resumed = load_model(main(_config(data, tmp_path / "parts"))).state_dict()
    steps = [
        json.loads(line)["step"]
        for line in (tmp_path / "parts" / "log.jsonl").read_text("utf-8").splitlines()
    ]
    assert steps == [1, 2, 2, 3, 3, 4, 4]
    assert all(torch.equal(value, whole[name]) for name, value in resumed.items())


def test_scores_of_pairs() -> None:
    flow = torch.zeros(2, 8, 8)
    flow[0, :, :4] = 3.0
    flow[1, :, :4] = 4.0
    visible = torch.zeros(1, 8, 8)
    visible[:, :, 4:] = 1
    pair = MovingPair(torch.rand(2, 3, 8, 8), flow, visible)
    assert score_pairs(lambda ref, supp: flow[None], [pair])["epe"] == pytest.approx(0, abs=1e-5)
    scores = score_pairs(lambda ref, supp: torch.ones(1, 2, 8, 8), [pair])
    assert scores["epe_zero"] == pytest.approx(2.5)
    assert scores["epe_visible"] == pytest.approx(2**0.5)
    assert scores["epe"] == pytest.approx((2**0.5 + 13**0.5) / 2)


def test_scores_of_clips() -> None:
    """Supp is ref, shifted: the true flow leaves no error, within the frame."""
    wide = imresize(torch.rand(3, 8, 8), 4).clamp(0, 1)
    frames = torch.stack([wide[:, :, t : t + 24] for t in (2, 1, 0)])
    exact = score_clip(
        lambda ref, supp: torch.tensor([1.0, 0.0]).view(1, 2, 1, 1).expand(1, 2, 32, 24), frames
    )
    assert exact["flow"] < 0.2 * exact["zero"]
    still = score_clip(lambda ref, supp: torch.zeros(1, 2, 32, 24), frames)
    assert still["flow"] == pytest.approx(still["zero"])
    warped = backward_warp(
        frames[1:2], torch.tensor([1.0, 0.0]).view(1, 2, 1, 1).expand(1, 2, 32, 24)
    )
    torch.testing.assert_close(warped[..., :-1], frames[:1, ..., :-1])


def test_images_are_held_out() -> None:
    paths = [Path(f"{i}.png") for i in range(1, 9)]
    known, unseen = split_images(paths, 4)
    assert unseen == [Path("4.png"), Path("8.png")]
    assert sorted(known + unseen) == paths
    with pytest.raises(InputError, match="too few"):
        split_images(paths, 9)


@pytest.mark.parametrize(
    "changes", [{"levels": 7}, {"hold_out": 1}, {"hidden_weight": 1.5}, {"levels": 6}]
)
def test_settings_out_of_range(data: Path, changes: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        _config(data, Path("out"), **changes)


def test_starts_only_from_a_spynet(data: Path, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "other.safetensors", FSRCNN(FSRCNNConfig()), {})
    with pytest.raises(InputError, match="FSRCNN, not SpyNet"):
        main(_config(data, tmp_path / "a", init=tmp_path / "other.safetensors"))
    with pytest.raises(InputError, match="no such folder"):
        main(_config(data, tmp_path / "a", evaluate=tmp_path / "absent"))
