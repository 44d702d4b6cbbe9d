import dataclasses
import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tubelet.data import CachedClip, prepare_clips
from tubelet.errors import Cancelled, CheckpointError, ConfigError, InputError, RequestError
from tubelet.losses import encoder_distance, l1, l1_and_ssim, mse
from tubelet.metrics import psnr
from tubelet.models.edvr import EDVR, EDVRConfig
from tubelet.models.srvgg import SRVGGConfig, SRVGGNetCompact
from tubelet.models.two_step import TwoStepConfig, TwoStepRestorer, needed_image_model
from tubelet.progress import CancelToken
from tubelet.recipes import two_step_data
from tubelet.recipes.two_step import TwoStepTraining, configure, describe, main, read_scores
from tubelet.recipes.two_step_data import (
    HeldOutCrops,
    TrainingCrops,
    TripletSettings,
    enlarge,
    frozen_outputs,
    split_videos,
)
from tubelet.tensor_files import read_header
from tubelet.training import LoopSettings
from tubelet.zoo.bases import hash_tensors, open_base
from tubelet.zoo.checkpoint import load_model, read_notes, read_state, save_checkpoint
from tubelet.zoo.opening import OpenedModel, open_model

PATCH_PX = 16


@pytest.fixture
def calls(monkeypatch) -> list[int]:
    """How many images the image model enlarged, call by call."""
    counted = []

    def count(model, lq):
        counted.append(len(lq))
        return enlarge(model, lq)

    monkeypatch.setattr(two_step_data, "enlarge", count)
    return counted


def _open(image_model: str) -> OpenedModel:
    return open_base(image_model, needed_image_model(TwoStepConfig()))


def _config(clips: Path, image_model: str = "bicubic-x2", **changes) -> TwoStepTraining:
    fields = {
        "image_model": image_model,
        "network": TwoStepConfig(channels=1, norm="none"),
        "data": (clips,),
        "out": clips.parent / "out",
        "cache": clips.parent / "cache",
        "batch": 2,
        "crops": TripletSettings(patch_px=PATCH_PX, frames_per_video=4),
        "score_px": PATCH_PX,
        "score_frames": 2,
        "loop": LoopSettings(steps=2, lr=5e-3, warmup_steps=0, ema=0.5, log_every=1, save_every=50),
    }
    return TwoStepTraining(**{**fields, **changes})


def _clip(name: str, frames: int = 5, size: tuple[int, int] = (24, 30)) -> CachedClip:
    rng = np.random.default_rng(len(name))
    lq = rng.integers(0, 256, (frames, 3, *size), dtype=np.uint8)
    return CachedClip(name, lq.repeat(2, -1).repeat(2, -2), (lq,))


def test_learns_and_saves_the_network_and_its_image_model(gratings, image_model):
    records = []
    loop = LoopSettings(lr=2e-2, warmup_steps=0, ema=0.5, log_every=1)
    config = _config(
        gratings,
        image_model,
        epochs=20,
        loop=loop,
        network=TwoStepConfig(channels=2, residual=False),
    )
    path = main(config, on_log=records.append)
    losses = [record["loss"] for record in records if "loss" in record]
    # Two triplets of one video in a batch of two.
    assert len(losses) == 20
    assert losses[-1] < 0.9 * losses[0]
    notes = read_notes(path)
    network = load_model(path)
    assert isinstance(network, TwoStepRestorer)
    assert network.config == config.network
    assert not any("image_model" in name for name in read_state(path)[0])
    sha256 = hash_tensors(_open(image_model).network)
    expected = {
        "model": "../image.safetensors",
        "architecture": "SRVGGNetCompact",
        "sha256": sha256,
    }
    assert json.loads(read_header(path)["base"]) == expected
    assert notes["training"]["loss"] == "mae"
    # As `tubelet upscale --model` opens it.
    opened = open_model(str(path))
    spec = opened.spec
    both = opened.network
    assert (spec.architecture, spec.scale, spec.temporal.radius) == ("TwoStepRestorer", 2, 1)
    assert type(both.image_model).__name__ == "SRVGGNetCompact"
    scores = read_scores(path.parent)
    assert scores == notes["scores"]
    assert scores["validation"].items() <= records[-1].items()


def test_a_token_stops_it_while_the_image_model_runs(gratings, image_model, calls, monkeypatch):
    token = CancelToken()
    config = _config(gratings, image_model)
    counting = two_step_data.enlarge

    def cancel(model, lq):
        token.cancel()
        return counting(model, lq)

    monkeypatch.setattr(two_step_data, "enlarge", cancel)
    with pytest.raises(Cancelled):
        main(config, cancel=token)
    assert len(calls) == 1
    assert not (config.out / "state.pt").exists()


def test_scores_are_those_of_both_steps_run_on_the_video(gratings, image_model):
    config = _config(gratings, image_model)
    path = main(config)
    lq, gt = _held_out(config, "test")
    network = load_model(path).with_image_model(load_model(image_model))
    with torch.inference_mode():
        sr = network(lq)[:, 0]
        hq = network.enlarge(lq[:, 1])
        kept = (hq * 255).round() / 255
        sr_of_kept = network.restore(kept, lq[:, 0], lq[:, 2])
    scores = read_scores(path.parent)["test"]
    assert scores["psnr_y"] == pytest.approx(psnr(sr_of_kept, gt).mean().item(), abs=1e-4)
    assert scores["psnr_y"] == pytest.approx(psnr(sr, gt).mean().item(), abs=0.05)
    assert scores["psnr_y/frozen"] == pytest.approx(psnr(hq, gt).mean().item(), abs=1e-6)
    assert abs(scores["gain"]) > 0.01


def _held_out(config: TwoStepTraining, part: str) -> tuple[torch.Tensor, torch.Tensor]:

    videos = split_videos(list(prepare_clips(config.data, config.cache, preset="bi", scale=2)))
    samples = HeldOutCrops(
        getattr(videos, part), 2, size_px=config.score_px, frames=config.score_frames
    )
    pairs = [samples.sample(index) for index in range(len(samples))]
    lq, gt = (
        torch.from_numpy(np.stack(arrays)).float() / 255 for arrays in zip(*pairs, strict=True)
    )
    return lq, gt


@pytest.mark.parametrize(
    ("loss", "alpha"), [("mse", 0.05), ("mae", 0.05), ("mae+ssim", 0.3), ("encoder", 0.03)]
)
def test_loss_is_that_of_its_formula(gratings, image_model, loss, alpha):
    records = []
    config = _config(
        gratings,
        image_model,
        loss=loss,
        alpha=alpha,
        network=TwoStepConfig(channels=1, residual=False),
    )
    main(config, on_log=records.append)
    torch.manual_seed(config.loop.seed)
    network = TwoStepRestorer(config.network).train()
    lq, gt, hq = _first_batch(config, image_model)
    sr, (left, middle, right) = network.restore_with_features(hq, lq[:, 0], lq[:, 2])
    expected = {
        "mse": mse(sr, gt),
        "mae": l1(sr, gt),
        "mae+ssim": l1_and_ssim(sr, gt, alpha=alpha),
        "encoder": l1(sr, gt) + encoder_distance(left, middle, right, alpha=alpha),
    }
    assert records[0]["loss"] == pytest.approx(expected.pop(loss).item(), rel=1e-4)
    assert all(
        records[0]["loss"] != pytest.approx(other.item(), rel=1e-3) for other in expected.values()
    )


def _first_batch(
    config: TwoStepTraining, image_model: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The only two crops there are, in the order of the first pass: lq, gt, hq."""

    clips = split_videos(
        list(prepare_clips(config.data, config.cache, preset="bi", scale=2))
    ).training
    crops = TrainingCrops(clips, 2, config.crops)
    order = np.random.default_rng((config.loop.seed, 0)).permutation(len(crops))
    pairs = [crops.sample(index) for index in order]
    lq, gt = (
        torch.from_numpy(np.stack(arrays)).float() / 255 for arrays in zip(*pairs, strict=True)
    )
    hq = enlarge(_open(image_model), lq[:, 1])
    return lq, gt, (hq * 255).round() / 255


def test_resume_gives_the_same_network(gratings):
    loop = dataclasses.replace(_config(gratings).loop, steps=4, save_every=2)
    whole = main(_config(gratings, out=gratings.parent / "whole", loop=loop))

    def stop(record):
        if record["step"] == 3:
            raise KeyboardInterrupt

    parts = _config(gratings, out=gratings.parent / "parts", loop=loop)
    with pytest.raises(KeyboardInterrupt):
        main(parts, on_log=stop)
    steps = []
    resumed = main(parts, on_log=lambda record: steps.append(record["step"]))
    assert steps == [3, 4, 4]
    expected = load_model(whole).state_dict()
    found = load_model(resumed).state_dict()
    assert all(torch.equal(value, found[name]) for name, value in expected.items())
    assert main(parts, on_log=lambda record: steps.append(record["step"])) == resumed
    # A finished run is not repeated.
    assert len(steps) == 3


@pytest.mark.parametrize("finished", [False, True])
def test_another_run_in_its_folder_is_refused(gratings, *, finished):
    def stop(record):
        raise KeyboardInterrupt

    config = _config(gratings)
    if finished:
        main(config)
    else:
        with pytest.raises(KeyboardInterrupt):
            main(config, on_log=stop)
    for changes, message in (
        ({"loss": "mse"}, "with loss=mae, not loss=mse"),
        ({"network": TwoStepConfig(channels=1)}, "with network="),
        ({"score_frames": 1}, "with score_frames=2, not score_frames=1"),
        (
            {"loop": LoopSettings(steps=2, lr=1e-3, warmup_steps=0, ema=0.5)},
            "with loop.lr=0.005, not loop.lr=0.001",
        ),
        ({"image_model": "lanczos-x2"}, "over bicubic-x2, not lanczos-x2"),
        ({"degradation": "bd"}, "with degradation=bi, not degradation=bd"),
    ):
        match = f"is of a run {message}.*name another output folder"
        with pytest.raises(CheckpointError, match=match):
            main(dataclasses.replace(config, **changes))


def test_other_clips_and_other_weights_are_another_run(gratings, image_model):
    config = _config(gratings, image_model)
    path = main(config)
    moved = Path(image_model).with_name("moved.safetensors")
    moved.write_bytes(Path(image_model).read_bytes())
    # The same weights at another path.
    assert main(dataclasses.replace(config, image_model=str(moved))) == path
    save_checkpoint(moved, SRVGGNetCompact(SRVGGConfig(scale=2, channels=4, num_blocks=1)), {})
    with pytest.raises(CheckpointError, match="or the weights of the image model have changed"):
        main(dataclasses.replace(config, image_model=str(moved)))
    for image in (gratings / "one").iterdir():
        Image.fromarray(255 - np.asarray(Image.open(image))).save(image)
    with pytest.raises(CheckpointError, match="is of a run with clips="):
        main(config)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"image_model": 3}'])
def test_a_damaged_record_of_a_run_gives_one_line(gratings, text):
    config = _config(gratings)
    config.out.mkdir()
    (config.out / "run.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"run\.json is damaged; name another output folder"):
        main(config)


def test_the_image_model_runs_once(gratings, image_model, calls):
    shared = {"frozen": gratings.parent / "frozen"}
    main(_config(gratings, image_model, out=gratings.parent / "a", **shared))
    # The crops of one video, two frames of either held-out one.
    assert sum(calls) == 2 + 2 + 2
    calls.clear()
    loop = dataclasses.replace(_config(gratings).loop, seed=1)
    main(_config(gratings, image_model, out=gratings.parent / "b", loop=loop, loss="mse", **shared))
    assert calls == []
    # Another image model.
    main(_config(gratings, out=gratings.parent / "c", **shared))
    assert sum(calls) == 6
    calls.clear()
    # This image model has no tensors, either.
    main(_config(gratings, "lanczos-x2", out=gratings.parent / "d", **shared))
    assert sum(calls) == 6


def test_an_interrupted_run_of_the_image_model_resumes(tmp_path, image_model, calls):
    crops = TrainingCrops([_clip("a", frames=25)], 2, TripletSettings(patch_px=16))
    model = _open(image_model)
    whole = frozen_outputs(crops, model, tmp_path / "whole")
    assert calls == [16, 7]
    calls.clear()
    token = CancelToken()
    token.cancel()
    with pytest.raises(Cancelled):
        frozen_outputs(crops, model, tmp_path / "parts", cancel=token)
    assert calls == [16]
    calls.clear()
    resumed = np.array(frozen_outputs(crops, model, tmp_path / "parts"))
    assert calls == [7]
    assert np.array_equal(whole, resumed)
    (file,) = (tmp_path / "parts").iterdir()
    file.write_bytes(b"")
    assert np.array_equal(frozen_outputs(crops, model, tmp_path / "parts"), whole)
    lq = torch.from_numpy(crops.sample(20)[0][1:2]).float() / 255
    assert np.array_equal(
        resumed[20], (two_step_data.enlarge(model, lq)[0] * 255).round().byte().numpy()
    )


@pytest.mark.parametrize("count", [3, 10, 52])
def test_the_split_keeps_videos_apart(count):
    # Two files of each name.
    clips = [_clip(f"video {number}") for number in range(count) for _ in range(2)]
    parts = split_videos(clips)
    names = [{clip.name for clip in part} for part in parts]
    held = max(1, round(count / 10))
    assert [len(part) for part in names] == [count - 2 * held, held, held]
    assert len(set.union(*names)) == count
    assert sum(map(len, parts)) == len(clips)
    again = split_videos(clips[::-1])
    assert [{clip.name for clip in part} for part in again] == names


def test_unusable_clips_do_not_count_in_the_split(gratings):
    for name, frames in (("four", 2), ("five", 1), ("six", 2)):
        shutil.copytree(gratings / "one", gratings / name)
        for image in sorted((gratings / name).iterdir())[frames:]:
            image.unlink()
    assert "gain" in read_scores(main(_config(gratings)).parent)["test"]


def test_clips_too_small_to_score_leave_the_folder_free(gratings, calls):
    with pytest.raises(
        InputError, match=r"none of 3 clips .* of 32 px .* or lower crops\.patch_px and score_px"
    ):
        main(_config(gratings, score_px=32))
    assert calls == []
    assert main(_config(gratings)).is_file()


def test_runs_that_begin_together_share_what_the_image_model_makes(tmp_path, image_model):
    crops = TrainingCrops([_clip("a", frames=25)], 2, TripletSettings(patch_px=16))
    model = _open(image_model)
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda _: frozen_outputs(crops, model, tmp_path / "made"), range(4)))
    assert all(np.array_equal(other, made[0]) for other in made)
    assert [path.suffix for path in (tmp_path / "made").iterdir()] == [".npy"]


def _numbered(frames: int) -> CachedClip:
    """A clip whose pixels hold the number of their frame."""
    lq = np.empty((frames, 3, 24, 30), np.uint8)
    lq[:] = np.arange(frames, dtype=np.uint8)[:, None, None, None]
    return CachedClip("a", lq.repeat(2, -1).repeat(2, -2), (lq,))


def test_every_triplet_of_the_first_frames_is_a_crop():
    clips = [_numbered(40), _clip("short", frames=2), _clip("narrow", size=(24, 15))]
    crops = TrainingCrops(clips, 2, TripletSettings(patch_px=16, crops_per_triplet=2))
    assert len(crops) == 2 * 23
    seen = []
    for index in range(len(crops)):
        lq, gt = crops.sample(index)
        assert lq.shape == (3, 3, 16, 16)
        assert gt.shape == (3, 32, 32)
        times = sorted(int(frame[0, 0, 0]) for frame in lq)
        assert times[1] == gt[0, 0, 0] == lq[1, 0, 0, 0]
        assert times == [times[1] - 1, times[1], times[1] + 1]
        seen.append(times[1])
    assert seen == [t for t in range(1, 24) for _ in range(2)]


def test_the_middle_of_held_out_frames_is_scored():
    clips = [_numbered(40), _clip("short", frames=4)]
    samples = HeldOutCrops(clips, 2, size_px=16, frames=3)
    assert samples.names == ["a"] * 3 + ["short"] * 2
    for index in range(3):
        lq, gt = samples.sample(index)
        assert [int(frame[0, 0, 0]) for frame in lq] == [index, index + 1, index + 2]
        assert gt[0, 0, 0] == index + 1
    lq, gt = samples.sample(4)
    assert np.array_equal(lq, clips[1].lqs[0][1:4, :, 4:20, 7:23])
    assert np.array_equal(gt, clips[1].gt[2, :, 8:40, 14:46])


def test_crops_describe_everything_they_depend_on():
    base = TrainingCrops([_clip("a")], 2, TripletSettings(patch_px=16)).describe()
    for clip, settings in (
        (_clip("ab"), TripletSettings(patch_px=16)),
        (_clip("a"), TripletSettings(patch_px=16, seed=1)),
        (_clip("a"), TripletSettings(patch_px=16, crops_per_triplet=2)),
    ):
        assert TrainingCrops([clip], 2, settings).describe() != base
    assert TrainingCrops([_clip("a")], 2, TripletSettings(patch_px=16)).describe() == base


@pytest.mark.parametrize(("loss", "alpha"), [("mae+ssim", "0.8"), ("encoder", "0.02")])
def test_alpha_is_what_the_paper_found_best(loss, alpha):
    assert describe(TwoStepTraining(loss=loss))[0].endswith(f"loss {loss}, alpha {alpha}")


def test_presets():
    paper = configure("paper", scale=2)
    assert (paper.loop.lr, paper.epochs, paper.batch, paper.crops.patch_px) == (1e-4, 10, 64, 64)
    assert paper.loop.optimizer.betas == (0.9, 0.999)
    assert not paper.network.residual
    assert "10 epochs of 64 crops, 64 px" in describe(paper)[0]
    assert configure("small", scale=4).network.scale == 4
    assert configure("small").network.channels < 64


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"image_model": ""}, ConfigError, "which image model"),
        ({"data": ()}, ConfigError, "no data to train on"),
        ({"image_model": "bicubic-x4"}, RequestError, "it upscales ×4, and ×2 is needed"),
        ({"image_model": "fast-x2-bi"}, RequestError, "FastVSR is of kind 'online'"),
        (
            {"crops": TripletSettings(patch_px=20)},
            ConfigError,
            "crops.patch_px=20 does not fit two-step",
        ),
        ({"score_px": 24}, ConfigError, "score_px=24 does not fit two-step"),
        (
            {"crops": TripletSettings(patch_px=64)},
            InputError,
            "none of 3 clips .* has three frames of 64 px",
        ),
    ],
)
def test_mistakes_give_one_line(gratings, changes, error, message):
    with pytest.raises(error, match=message) as caught:
        main(_config(gratings, **changes))
    assert "\n" not in str(caught.value)


def test_a_window_model_cannot_be_frozen(gratings, tmp_path):
    small = EDVRConfig(
        channels=8, num_frames=3, groups=2, num_extract_blocks=1, num_reconstruct_blocks=1
    )
    save_checkpoint(tmp_path / "edvr.safetensors", EDVR(small), {})
    with pytest.raises(RequestError, match="EDVR is of kind 'window'"):
        main(_config(gratings, str(tmp_path / "edvr.safetensors")))


def test_too_few_videos_or_none(gratings, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no video, image or folder of frames in"):
        main(_config(gratings, data=(tmp_path / "empty",)))
    with pytest.raises(InputError, match="2 videos are too few"):
        split_videos([_clip("a"), _clip("b")])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": "mae+ssim", "alpha": 1.5}, "alpha=1.5 is out of range: 0 to 1 for loss mae.ssim"),
        ({"loss": "encoder", "alpha": 0.8}, "alpha=0.8 is out of range: 0 to 0.1 for loss encoder"),
        ({"loop": LoopSettings(loss="mse")}, "loop.loss=mse is not used by two-step"),
        ({"batch": 0}, "batch, epochs, score_px and score_frames must be at least 1"),
    ],
)
def test_settings_out_of_range(changes, message):
    with pytest.raises(ConfigError, match=message):
        TwoStepTraining(**changes)
