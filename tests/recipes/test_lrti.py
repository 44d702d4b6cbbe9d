import dataclasses
import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.processes import start
from helpers.zoo_configs import TINY
from tubelet.data import Crops, CropSettings, prepare_clips
from tubelet.errors import CheckpointError, ConfigError, DivergedError, InputError, RequestError
from tubelet.layers.spynet import SpyNet, load_spynet
from tubelet.losses import charbonnier
from tubelet.models.lrti_vsr import LRTIVSRConfig
from tubelet.recipes.configs import read_config, write_config
from tubelet.recipes.initial_weights import init_spynets
from tubelet.recipes.lrti import LRTITraining, configure, describe, main
from tubelet.recipes.lrti_presets import PRESETS
from tubelet.recipes.published import find_recipe
from tubelet.training import LoopSettings, OptimizerSettings
from tubelet.training.frozen_flow import FrozenFlowTask
from tubelet.training.long_clips import Sampling
from tubelet.zoo.checkpoint import load_model, read_notes
from tubelet.zoo.opening import open_model

PATCH_PX = 12
FRAMES = 8


@pytest.fixture
def clips(tmp_path) -> Path:
    """A folder with a clip of eight frames, a pattern that bends, and one of three frames."""
    y, x = np.mgrid[:48, :48]
    for name, frames in (("pattern", FRAMES), ("short", 3)):
        folder = tmp_path / "clips" / name
        folder.mkdir(parents=True)
        for t in range(frames):
            pixels = 127 + 127 * np.sin((x + t) / 5) * np.sin((y - t) / 6)
            image = np.stack([pixels, pixels, pixels // 2], -1).astype(np.uint8)
            Image.fromarray(image).save(folder / f"{t}.png")
    return tmp_path / "clips"


def _loop(**changes: Any) -> LoopSettings:
    fields = {"steps": 6, "lr": 2e-3, "warmup_steps": 0, "ema": 0.5, "log_every": 1}
    return LoopSettings(**{**fields, "save_every": 3, **changes})


def _config(clips: Path, model: str = "ovsr", **changes: Any) -> LRTITraining:
    """The settings of a small run; OVSR has no SpyNet, which would take most of the time."""
    fields = {
        "network": TINY[find_recipe(model).architecture.name],
        "data": (clips,),
        "out": clips.parent / "out",
        "cache": clips.parent / "cache",
        "length": 2,
        "samples": 3,
        "clip": FRAMES,
        "batch": 1,
        "patch_px": PATCH_PX,
        "loop": _loop(),
    }
    return configure(model, **{**fields, **changes})


def _tensors(path: Path) -> dict[str, torch.Tensor]:
    return load_model(path).state_dict()


@pytest.mark.parametrize("strategy", ["truncated", "plain", "plain-same-samples"])
def test_learns_a_tiny_clip_and_writes_what_upscale_takes(clips, strategy):
    records = []
    # One long clip, so that the samples of all steps are parts of the same frames.
    loop = _loop(steps=12, lr=4e-3, save_every=6)
    config = _config(clips, strategy=strategy, loop=loop, evaluate=clips, evaluate_frames=2)
    path = main(config, on_log=records.append)
    losses = [record["loss"] for record in records if "loss" in record]
    assert len(losses) == 12
    assert np.mean(losses[-3:]) < 0.9 * np.mean(losses[:3])
    assert [record["step"] for record in records if "psnr_y/pattern" in record] == [6, 12]
    assert open_model(str(path)).spec.architecture == "OVSR"
    assert read_notes(path)["training"]["strategy"] == strategy


@pytest.mark.parametrize("strategy", ["truncated", "plain-same-samples", "plain"])
def test_only_states_distinguish_truncated_from_its_control(clips, strategy):
    records = []
    config = _config(clips, "basicvsr", strategy=strategy, loop=_loop(steps=1))
    main(config, on_log=records.append)

    cached = prepare_clips(config.data, config.cache, preset="bi", scale=4)
    frames = config.length if strategy == "plain" else config.clip
    crops = Crops(
        [clip for clip in cached if len(clip.gt) >= frames],
        4,
        CropSettings(batch=1, frames=frames, patch_px=PATCH_PX, candidates=1, direction="forward"),
        config.loop.seed,
    )
    lq, gt = crops.batch(0)
    torch.manual_seed(config.loop.seed)
    network = find_recipe("basicvsr").architecture.build(config.network)
    init_spynets(network, "own")
    span = slice(0, config.length)
    if strategy != "plain":
        first = Sampling(clip=config.clip, length=2, samples=3).draw(0)[0]
        span = slice(first, first + config.length)
    with torch.no_grad():
        sr = network(lq)[:, span] if strategy == "truncated" else network(lq[:, span])
    expected = charbonnier(sr, gt[:, span], eps=config.loop.loss_eps).item()
    assert records[-1]["loss"] == pytest.approx(expected, rel=1e-4)


def _kill_at(clips: Path, step: int) -> None:
    """Train, and die as by `kill -9` at the log record of a step."""
    torch.set_num_threads(1)
    config = _config(clips, out=clips.parent / "parts")

    def die(record: dict[str, Any]) -> None:
        if record["step"] == step:
            os.kill(os.getpid(), signal.SIGKILL)

    main(config, on_log=die)


def test_a_killed_run_goes_back_to_the_start_of_its_clip(clips):
    with start(_kill_at, clips, 5) as process:
        pass
    assert process.code == -signal.SIGKILL
    steps = []
    whole = main(_config(clips, out=clips.parent / "whole"))
    parts = _config(clips, out=clips.parent / "parts")
    resumed = main(parts, on_log=lambda record: steps.append(record["step"]))
    # The second clip begins after three steps.
    assert [number for number in steps if number] == [4, 5, 6]
    for name, value in _tensors(whole).items():
        assert torch.equal(value, _tensors(resumed)[name]), name


def test_a_frozen_flow_keeps_its_weights(clips):
    for flow, is_kept in (("frozen", True), ("trained", False)):
        optimizer = OptimizerSettings(low_lr_modules=("spynet",), lr_multiplier=0.5)
        config = _config(
            clips,
            "basicvsr",
            flow=flow,
            out=clips.parent / flow,
            loop=_loop(steps=1, optimizer=optimizer),
        )
        after = _tensors(main(config))
        spynet = SpyNet()
        load_spynet(spynet)
        for name, value in spynet.state_dict().items():
            if "basic_module.5" in name:
                assert torch.equal(after[f"spynet.{name}"], value) == is_kept


def test_images_become_slow_clips_of_the_right_length(clips, tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    pixels = rng.integers(0, 255, (96, 96, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "images" / "still.png")
    records = []
    config = _config(clips, data=(tmp_path / "images",), loop=_loop(steps=1))
    main(config, on_log=records.append)
    (path,) = config.cache.glob("still-*/gt.npy")
    assert np.load(path).shape == (FRAMES, 3, 48, 48)
    # Plain training takes parts of the same clips.
    main(dataclasses.replace(config, strategy="plain", out=clips.parent / "plain"))
    assert len(list(config.cache.glob("still-*/gt.npy"))) == 1


def test_short_clips_are_left_out_with_a_note(clips):
    records = []
    main(_config(clips, loop=_loop(steps=1)), on_log=records.append)
    assert records[0] == {
        "step": 0,
        "note": "1 of 2 clips have fewer than 8 frames: not used",
    }
    with pytest.raises(InputError, match=r"none of 2 clips has 9 frames, the longest has 8"):
        main(_config(clips, clip=9, out=clips.parent / "long"))


def test_a_folder_with_other_samples_is_refused(clips):
    config = _config(clips)
    with pytest.raises(InputError, match="none of 2 clips"):
        main(dataclasses.replace(config, clip=9))
    # A run that was refused does not count.
    path = main(config)
    before = path.read_bytes()
    for changes, words in (
        ({"length": 3}, "is of a run with length=2, not length=3"),
        ({"strategy": "plain"}, "strategy=truncated, not strategy=plain"),
        ({"network": dataclasses.replace(config.network, channels=4)}, "is of a run with network="),
    ):
        with pytest.raises(CheckpointError, match=words):
            main(dataclasses.replace(config, **changes))
    assert path.read_bytes() == before
    # Where the clips are and how often it is scored may change.
    main(dataclasses.replace(config, cache=clips.parent / "other", feature_mib=1))
    assert json.loads((config.out / "samples.json").read_text())["clip"] == FRAMES
    (config.out / "samples.json").write_text("[1")
    with pytest.raises(CheckpointError, match=r"samples\.json is damaged"):
        main(config)


def test_a_diverged_run_keeps_its_checkpoint(clips):
    config = _config(clips, "basicvsr", loop=_loop(lr=1e25, lr_final=1e25, grad_clip=float("inf")))
    with pytest.raises(DivergedError, match=r"the training diverged at step [23]: .* is (nan|inf)"):
        main(config)
    assert not (config.out / "model.safetensors").exists()


def test_every_preset_is_that_of_the_paper():
    numbers = {
        name: (p.length, p.samples, p.clip, p.loop.steps, p.loop.lr, p.loop.lr_final, p.batch)
        for name, p in PRESETS.items()
    }
    assert numbers == {
        "paper": (16, 6, 100, 600_000, 2e-4, 1e-7, 24),
        "paper-small": (16, 6, 100, 600_000, 2e-4, 1e-7, 24),
        "ablation": (8, 5, 40, 300_000, 1e-4, 1e-7, 1),
        "basicvsr-tb": (15, 7, 100, 300_000, 2e-4, 1e-7, 8),
        "basicvsr_pp-tb": (30, 5, 100, 600_000, 1e-4, 1e-7, 8),
        "psrt-tb": (16, 6, 100, 100_000, 1e-4, 1e-7, 4),
        "realbasicvsr-tb": (15, 6, 100, 300_000, 1e-4, 1e-4, 16),
        "small": (4, 10, 40, 4000, 1e-3, 1e-6, 2),
        "tiny": (8, 5, 40, 2000, 4e-4, 1e-7, 1),
    }
    sizes = {}
    for name, preset in PRESETS.items():
        config = configure(preset=name, data=(Path("clips"),))
        assert config.preset == name
        first, *others = describe(config)
        sizes[name] = first.split(" M parameters")[0].split()[-1]
        assert any(f"preset {name}" in line for line in others)
        assert any("--init FILE" in line for line in others) == (name == "psrt-tb")
        # With every strategy, it fits together.
        for strategy in ("truncated", "plain", "plain-same-samples"):
            describe(dataclasses.replace(config, strategy=strategy))
        kind = "second-order" if name == "realbasicvsr-tb" else "bi-u8"
        assert preset.degradation == kind
    assert sizes["paper"] == "12.88"
    assert sizes["paper-small"] == sizes["ablation"] == "6.06"
    assert PRESETS["paper-small"].strategy == "plain"
    assert PRESETS["tiny"].network == LRTIVSRConfig(
        channels=24,
        depths=(2,),
        num_heads=(3,),
        mid_channels=24,
        hr_channels=16,
        has_unused=False,
    )


def test_the_cost_is_told_before(clips):
    (line,) = (
        line
        for line in describe(_config(clips, length=8, samples=5, clip=40, loop=_loop(save_every=5)))
        if "times as long" in line
    )
    # (3 N L + T) / N forward passes of a frame, 3 L of plain training.
    assert "about 1.33 times as long as plain training on 8 frames and 0.27 times as" in line


def test_a_file_leaves_the_rest_to_the_network(tmp_path):
    config = configure("basicvsr_pp", clip=50, strategy="plain")
    write_config(tmp_path / "c.yaml", config)
    default = configure("basicvsr_pp")
    assert read_config(tmp_path / "c.yaml", type(default), default=default) == config


@pytest.mark.parametrize(
    ("model", "changes", "words"),
    [
        ("swinir-x4", {}, "SwinIR has no boundary states .* one of BasicVSR, .*ZoomingSlowMo"),
        ("rrn", {}, "RRN has no boundary states"),
        ("MIAVSR", {}, "masks of MIAVSR .* without them: --network.no-use-mask"),
        ("basicvsr", {"strategy": "truncate"}, "strategy='truncate'; did you mean truncated"),
        ("basicvsr", {"clip": 5}, "clip=5 is too short for samples of length=2 .* at least 6"),
        ("basicvsr", {"samples": 4}, "save_every=3 must be a multiple of samples=4.* use 4"),
        ("basicvsr", {"length": 0}, "must be at least 1"),
        ("basicvsr", {"samples": 0}, "must be at least 1"),
        ("basicvsr", {"feature_mib": -1}, "must not be negative"),
        ("ovsr", {"flow": "frozen"}, "flow=frozen does not fit OVSR, which has no SpyNet"),
        ("basicvsr", {"flow": "frozen", "spynet": "random"}, "needs trained weights"),
        ("basicvsr", {"data": ()}, "--data FOLDER"),
        (
            "realbasicvsr",
            {"network": dataclasses.replace(TINY["RealBasicVSR"], dynamic_refine_thres=5)},
            "dynamic_refine_thres=5 cleans a sample",
        ),
    ],
)
def test_what_does_not_fit_is_refused(clips, model, changes, words):
    with pytest.raises(ConfigError, match=words) as caught:
        main(_config(clips, model, **changes))
    assert "\n" not in str(caught.value)
    assert not (clips.parent / "out").exists()


@pytest.mark.parametrize(("model", "is_remembered"), [("basicvsr", True), ("realbasicvsr", False)])
def test_flows_of_cleaned_frames_are_not_remembered(clips, monkeypatch, model, is_remembered):
    """Gradients flow through them to the network that cleans."""
    used = []
    losses = FrozenFlowTask.losses

    def note(self, *args):
        used.append(1)
        return losses(self, *args)

    monkeypatch.setattr(FrozenFlowTask, "losses", note)
    config = _config(clips, model, flow="frozen", loop=_loop(steps=1, save_every=3))
    main(dataclasses.replace(config, spynet="own", samples=1))
    assert bool(used) == is_remembered


def test_plain_training_needs_no_long_clip(clips):
    config = _config(clips, strategy="plain", length=8, clip=8, samples=7, loop=_loop(steps=1))
    assert main(config).is_file()


def test_names_are_checked():
    with pytest.raises(RequestError, match=r"no preset is called 'papr'; did you mean paper\?"):
        configure(preset="papr")
    with pytest.raises(ConfigError, match="preset small is for basicvsr, not basicvsr_pp"):
        configure("basicvsr_pp", preset="small")
    with pytest.raises(ConfigError, match="use --model NAME or --preset NAME"):
        configure()
    assert configure("BasicVSR", preset="small").network.channels == 24


@pytest.mark.parametrize("model", ["basicvsr_pp", "realbasicvsr"])
def test_other_networks_are_trained_too(clips, model):
    config = _config(clips, model, loop=_loop(steps=1, save_every=3), starts="all")
    path = main(dataclasses.replace(config, samples=1))
    assert read_notes(path)["training"]["starts"] == "all"
