import dataclasses
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from helpers.processes import start
from tubelet.data import CropSettings
from tubelet.errors import CheckpointError, ConfigError, DivergedError, InputError, RequestError
from tubelet.models.edsr import EDSR, EDSRConfig
from tubelet.models.pfvsr import PFVSRConfig
from tubelet.models.swinir import SwinIR, SwinIRConfig
from tubelet.recipes.configs import read_config, write_config
from tubelet.recipes.pfvsr import (
    PRESETS,
    PFVSRTraining,
    _degradation_of,
    configure,
    describe,
    main,
)
from tubelet.training import LoopSettings, OptimizerSettings
from tubelet.zoo.bases import hash_tensors
from tubelet.zoo.checkpoint import read_notes, save_checkpoint
from tubelet.zoo.opening import open_model


@pytest.fixture
def clips(tmp_path) -> Path:
    """Two clips of four frames: patterns that move."""
    y, x = np.mgrid[:48, :48]
    for number, name in enumerate(("pattern", "other")):
        folder = tmp_path / "clips" / name
        folder.mkdir(parents=True)
        for t in range(4):
            pixels = 127 + 127 * np.sin((x + t) / 4) * np.sin((y - number * t) / 3)
            image = np.stack([pixels, pixels, pixels // 2], -1).astype(np.uint8)
            Image.fromarray(image).save(folder / f"{t}.png")
    return tmp_path / "clips"


@pytest.fixture
def image_model(tmp_path) -> Path:
    torch.manual_seed(0)
    network = SwinIR(
        SwinIRConfig(
            scale=2,
            channels=8,
            depths=(2,),
            num_heads=(2,),
            window=4,
            upsampler="pixelshuffledirect",
        )
    )
    path = tmp_path / "image.safetensors"
    save_checkpoint(path, network, {"training": {"preset": "bd"}})
    return path


def _loop(**changes: Any) -> LoopSettings:
    fields = {"steps": 4, "lr": 1e-2, "warmup_steps": 0, "ema": 0.0, "log_every": 1}
    optimizer = OptimizerSettings(low_lr_modules=("spynet",), lr_multiplier=0.25)
    return LoopSettings(**{**fields, "save_every": 2, "optimizer": optimizer, **changes})


def _config(clips: Path, image_model: Path, **changes: Any) -> PFVSRTraining:
    fields = {
        "data": (clips,),
        "out": clips.parent / "out",
        "cache": clips.parent / "cache",
        "crops": CropSettings(batch=1, frames=2, patch_px=12),
        "loop": _loop(),
    }
    return configure(image_model=str(image_model), **{**fields, **changes})


def test_trains_the_adapters_alone_and_writes_what_upscale_takes(clips, image_model):
    records = []
    loop = _loop(steps=16, save_every=8)
    config = _config(clips, image_model, loop=loop, evaluate=clips, evaluate_frames=2)
    digest = hash_tensors(open_model(str(image_model)).network)
    path = main(config, on_log=records.append)
    losses = [record["loss"] for record in records if "loss" in record]
    assert np.mean(losses[-4:]) < 0.95 * np.mean(losses[:4])
    assert [record["step"] for record in records if "psnr_y/other" in record] == [8, 16]

    opened = open_model(str(path))
    assert opened.spec.architecture == "PFVSR"
    assert opened.spec.temporal.window_frames == 2
    assert hash_tensors(opened.network.backbone) == digest
    tensors = load_file(path)
    assert all(name.startswith("blocks.") for name in tensors)
    assert all(value.abs().max() > 0 for value in tensors.values())
    assert read_notes(path)["training"]["degradation"] == "bi"
    # The image network can also be named by the user.
    over = open_model(str(image_model), adapter=path)
    lq = torch.rand(1, 2, 3, 8, 8)
    with torch.inference_mode():
        assert torch.equal(over.network(lq), opened.network(lq))


def test_notes_tell_the_sizes_and_warn_of_another_degradation(clips, image_model):
    records = []
    main(_config(clips, image_model), on_log=records.append)
    size, warning = (record["note"] for record in records if "note" in record)
    assert size.startswith("304 trained parameters over 3,696 frozen")
    assert size.endswith("ones of SwinIR; spatial: adapter, temporal: t-msa; clips: 2")
    assert "was trained with degradation bd, and the adapters with bi" in warning


def test_a_convolutional_network_with_a_trained_flow(clips, tmp_path):
    path = tmp_path / "edsr.safetensors"
    save_checkpoint(path, EDSR(EDSRConfig(scale=2, channels=4, num_blocks=2)), {})
    network = PFVSRConfig(kind="convolution", temporal="neighbors", flow="trained")
    out = main(_config(clips, path, network=network, loop=_loop(steps=3)))
    tensors = load_file(out)
    assert any(name.startswith("spynet.") for name in tensors)
    assert open_model(str(out)).network.config.temporal == "neighbors"


def test_a_part_of_the_clips(clips, image_model):
    records = []
    main(_config(clips, image_model, fraction=0.5), on_log=records.append)
    # sha256("pattern") begins with 1f, sha256("other") with d9.
    assert records[0]["note"].endswith("clips: 1")
    with pytest.raises(InputError, match=r"fraction=0\.001 leaves none of 2 clips"):
        main(_config(clips, image_model, fraction=0.001, out=clips.parent / "none"))


def _kill_at(clips: Path, image_model: Path, step: int) -> None:
    """Train, and die as by `kill -9` at the log record of a step."""
    torch.set_num_threads(1)

    def on_log(record: dict[str, Any]) -> None:
        if record["step"] == step:
            os.kill(os.getpid(), signal.SIGKILL)

    main(_config(clips, image_model), on_log=on_log)


def test_a_killed_run_resumes_to_the_same_bits(clips, image_model):
    with start(_kill_at, clips, image_model, 3) as process:
        pass
    assert process.code == -signal.SIGKILL
    resumed = load_file(main(_config(clips, image_model)))
    whole = load_file(main(_config(clips, image_model, out=clips.parent / "whole")))
    assert resumed.keys() == whole.keys()
    for name, value in whole.items():
        assert torch.equal(value, resumed[name])


def test_a_folder_with_another_run_is_refused(clips, image_model, tmp_path):
    config = _config(clips, image_model)
    main(config)
    changed = dataclasses.replace(config, degradation="bd")
    with pytest.raises(CheckpointError, match="degradation=bi, not degradation=bd"):
        main(changed)
    other = tmp_path / "other.safetensors"
    save_checkpoint(other, SwinIR(open_model(str(image_model)).network.config), {})
    with pytest.raises(CheckpointError, match="is of a run with image_model="):
        main(dataclasses.replace(config, image_model=str(other)))


def test_a_diverged_run_leaves_its_batch(clips, image_model):
    config = _config(clips, image_model, loop=_loop(lr=1e30, lr_final=1e30, grad_clip=float("inf")))
    with pytest.raises(DivergedError, match=r"the training diverged .* its batch is in") as caught:
        main(config)
    batch = load_file(config.out / "diverged-batch.safetensors")
    assert "\n" not in str(caught.value)
    assert batch["lq"].shape == (1, 2, 3, 12, 12)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"image_model": ""}, ConfigError, "which image network"),
        ({"data": ()}, ConfigError, "no data"),
        ({"image_model": "fast-x2-bi"}, RequestError, "cannot be an image model"),
        ({"image_model": "bicubic-x4"}, ConfigError, "Resample has no blocks"),
        ({"network": PFVSRConfig(num_frames=9)}, ConfigError, "contradicts crops.frames=2"),
        ({"network": PFVSRConfig(temporal="neighbors")}, ConfigError, "does not fit SwinIR"),
        ({"image_model": "bicubic-x"}, RequestError, "bicubic-x"),
        ({"crops": CropSettings(batch=1, frames=2, patch_px=64)}, InputError, "none of 2 clips"),
    ],
)
def test_what_does_not_fit_is_refused(clips, image_model, changes, error, words):
    with pytest.raises(error, match=words) as caught:
        main(dataclasses.replace(_config(clips, image_model), **changes))
    assert "\n" not in str(caught.value)
    assert not (clips.parent / "out" / "model.safetensors").exists()


def test_presets_are_those_of_the_specification():
    paper = PRESETS["paper"]
    assert paper.network.temporal == "trajectory"
    assert (paper.crops.frames, paper.crops.patch_px, paper.crops.batch) == (30, 64, 8)
    assert (paper.loop.steps, paper.loop.lr, paper.loop.lr_final) == (300_000, 4e-4, 1e-7)
    assert paper.loop.optimizer.freeze_steps == 20_000
    budget = PRESETS["paper-budget"].network
    assert (budget.spatial_width, budget.temporal_width) == (246, 453)
    assert PRESETS["small-swinir"].crops == CropSettings(batch=2, frames=7, patch_px=48)
    assert PRESETS["small-dat"].crops == CropSettings(batch=1, frames=5, patch_px=32)
    assert PRESETS["small-conv"].network.temporal == "neighbors"
    for name in PRESETS:
        assert "steps of" in describe(configure(name))[0]
    with pytest.raises(RequestError, match="unknown preset 'smal-dat'; did you mean small-dat"):
        configure("smal-dat")


def test_the_settings_survive_a_file(tmp_path):
    config = configure("paper-budget", image_model="hat-x4", fraction=0.6)
    write_config(tmp_path / "config.yaml", config)
    assert read_config(tmp_path / "config.yaml", PFVSRTraining) == config


def test_a_flow_that_would_stay_frozen_is_refused(clips, image_model):
    network = PFVSRConfig(temporal="trajectory", num_frames=2)
    loop = _loop(optimizer=OptimizerSettings(low_lr_modules=("spynet",), freeze_steps=4))
    with pytest.raises(ConfigError, match=r"trains no flow: .*freeze_steps=4 of loop\.steps=4"):
        main(_config(clips, image_model, network=network, loop=loop))


def test_published_weights_tell_their_degradation(clips, image_model):
    base = dataclasses.replace(open_model(str(image_model)), path=None)
    assert _degradation_of(base) == ""
    spec = dataclasses.replace(base.spec, summary="DF2K, bicubic; light")
    assert _degradation_of(dataclasses.replace(base, spec=spec)) == "bi"
