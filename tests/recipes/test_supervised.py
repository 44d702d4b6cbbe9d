import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.zoo_configs import TINY, architecture_of
from tubelet.data import Crops, CropSettings, prepare_clips
from tubelet.errors import Cancelled, ConfigError, InputError, RequestError
from tubelet.layers.spynet import SpyNet, load_spynet
from tubelet.losses import charbonnier
from tubelet.models.realbasicvsr import RealBasicVSR
from tubelet.progress import CancelToken
from tubelet.recipes.configs import read_config, write_config
from tubelet.recipes.initial_weights import init_spynets
from tubelet.recipes.published import find_recipe
from tubelet.recipes.supervised import SupervisedConfig, configure, describe, main
from tubelet.training import LoopSettings, OptimizerSettings, ScheduleSettings
from tubelet.zoo.checkpoint import load_model, read_notes, save_checkpoint
from tubelet.zoo.opening import open_model

# The clip is no larger, so that every sample is all of it, flipped and rotated.
PATCH_PX = 12
FALLS = {"SRVGGNetCompact": 0.92, "TDAN": 0.7, "RRN": 0.95, "OVSR": 0.7, "ZoomingSlowMo": 0.995}
"""A network of each temporal kind, and the bound on the ratio of its last loss to the first."""


@pytest.fixture
def clips(tmp_path) -> Path:
    """A folder with one clip of three frames: a pattern that bends."""
    folder = tmp_path / "clips" / "pattern"
    folder.mkdir(parents=True)
    y, x = np.mgrid[:48, :48]
    for t in range(3):
        pixels = 255 * (np.sin((x + t) / 5) * np.sin((y - t) / 6) > 0)
        Image.fromarray(np.stack([pixels, pixels, pixels // 2], -1).astype(np.uint8)).save(
            folder / f"{t}.png"
        )
    return tmp_path / "clips"


def _config(clips: Path, name: str = "RRN", **changes) -> SupervisedConfig:
    fields = {
        "data": (clips,),
        "out": clips.parent / "out",
        "cache": clips.parent / "cache",
        "preset": "bi",
        "spynet": "random",
        "crops": CropSettings(batch=1, frames=3, patch_px=PATCH_PX),
        "loop": LoopSettings(steps=2, lr=2e-3, warmup_steps=0, ema=0.5, log_every=1, save_every=50),
    }
    config = configure(name, **{**fields, **changes})
    network = TINY[find_recipe(name).architecture.name]
    return config if "network" in changes else dataclasses.replace(config, network=network)


def _tensors(path: Path) -> dict[str, torch.Tensor]:
    return load_model(path).state_dict()


@pytest.mark.parametrize("name", FALLS)
def test_learns_a_tiny_clip_and_writes_what_upscale_takes(clips, name):
    records = []
    # This network is far slower than the others.
    steps, evaluate = (6, None) if name == "ZoomingSlowMo" else (20, clips)
    loop = LoopSettings(steps=steps, lr=4e-3, warmup_steps=2, ema=0.5, log_every=1, save_every=100)
    path = main(
        _config(clips, name, loop=loop, evaluate=evaluate, evaluate_frames=2), on_log=records.append
    )
    losses = [record["loss"] for record in records if "loss" in record]
    assert len(losses) == steps
    assert losses[-1] < FALLS[name] * losses[0]
    assert evaluate is None or math.isfinite(records[-1]["psnr_y/pattern"])
    opened = open_model(str(path))
    spec = opened.spec
    network = opened.network
    assert spec.architecture == name
    assert network.config == TINY[name]
    assert read_notes(path)["training"]["loop"]["steps"] == steps


@pytest.mark.parametrize("name", FALLS)
def test_is_compared_with_the_frames_that_it_restores(clips, name):
    records = []
    config = _config(clips, name)
    main(config, on_log=records.append)
    clip = list(prepare_clips(config.data, config.cache, preset="bi", scale=4))
    lq, gt = Crops(clip, 4, config.crops, config.loop.seed).batch(0)
    torch.manual_seed(config.loop.seed)
    network = architecture_of(name).build(TINY[name])
    with torch.no_grad():
        sr = network(lq[:, ::2] if name == "ZoomingSlowMo" else lq)
    expected = charbonnier(sr, gt[:, 1:2] if name == "TDAN" else gt).item()
    assert records[0]["loss"] == pytest.approx(expected, rel=1e-4)


def test_collapsible_networks_are_kept_in_both_forms(clips):
    path = main(_config(clips, "SESR"))
    assert load_model(path).config.expanded_channels == 0
    wide = load_model(path.with_name("wide.safetensors"))
    lq = torch.rand(1, 1, 3, 12, 12)
    assert wide.config == TINY["SESR"]
    torch.testing.assert_close(load_model(path)(lq), wide(lq), rtol=0, atol=1e-5)


def test_a_token_also_stops_the_preparation_of_clips(clips):
    token = CancelToken()
    token.cancel()
    config = _config(clips)
    with pytest.raises(Cancelled):
        main(config, cancel=token)
    assert not config.cache.exists()


def test_resume_gives_the_same_network(clips):
    loop = LoopSettings(
        steps=4,
        warmup_steps=0,
        log_every=1,
        save_every=2,
        schedule=ScheduleSettings(kind="restarts", periods=(3, 5)),
        optimizer=OptimizerSettings(
            kind="adamw", low_lr_modules=("neuro.conv_1",), lr_multiplier=0.5, freeze_steps=3
        ),
    )
    whole = main(_config(clips, out=clips.parent / "whole", loop=loop))

    def stop(record):
        if record["step"] == 3:
            raise KeyboardInterrupt

    parts = _config(
        clips, out=clips.parent / "parts", loop=dataclasses.replace(loop, activations="recompute")
    )
    with pytest.raises(KeyboardInterrupt):
        main(parts, on_log=stop)
    steps = []
    resumed = main(parts, on_log=lambda record: steps.append(record["step"]))
    assert steps == [3, 4]
    for name, value in _tensors(whole).items():
        assert torch.equal(value, _tensors(resumed)[name]), name


def test_attention_is_trained_first_on_pretrained_weights(clips):
    network = TINY["EDVR"]
    before = main(
        _config(clips, "edvr-m-wotsa", network=dataclasses.replace(network, fusion="conv"))
    )
    recipe = configure("edvr-m").loop.optimizer
    assert recipe.warmup_only_modules == ("extractor.fusion",)
    loop = dataclasses.replace(_config(clips).loop, optimizer=recipe)
    config = _config(clips, "EDVR", loop=loop, init=before, out=clips.parent / "tsa")
    start = _tensors(before)
    after = _tensors(main(config))
    kept = [name for name in start if name in after and "fusion" not in name]
    assert len(kept) > 30
    assert all(torch.equal(start[name], after[name]) for name in kept)
    fresh = dataclasses.replace(config, init=None, out=clips.parent / "fresh")
    assert any("not only extractor.fusion" in line for line in describe(fresh))
    torch.manual_seed(0)
    random = architecture_of("EDVR").build(network).state_dict()
    after = _tensors(main(fresh))
    assert not torch.equal(
        after["reconstruction.0.conv1.weight"], random["reconstruction.0.conv1.weight"]
    )


def test_flow_starts_from_a_checkpoint_and_is_frozen_first(clips):
    spynet = SpyNet()
    save_checkpoint(clips.parent / "spynet.safetensors", spynet, {})
    recipe = configure("basicvsr").loop.optimizer
    loop = dataclasses.replace(_config(clips).loop, optimizer=recipe)
    config = _config(clips, "BasicVSR", loop=loop, spynet=str(clips.parent / "spynet.safetensors"))
    after = _tensors(main(config))
    for name, value in spynet.state_dict().items():
        assert torch.equal(after[f"spynet.{name}"], value)
    optimizer = dataclasses.replace(recipe, freeze_steps=0)
    moving = dataclasses.replace(loop, optimizer=optimizer)
    after = _tensors(main(dataclasses.replace(config, loop=moving, out=clips.parent / "moving")))
    level = "basic_module.5.basic_module.8.weight"
    rate = loop.lr * 0.125
    moved = (after[f"spynet.{level}"] - spynet.state_dict()[level]).abs().max().item()
    # Two steps of Adam.
    assert 0.5 * rate < moved <= 2.1 * rate
    assert (
        "the flow network starts from random weights"
        in describe(dataclasses.replace(config, spynet="random"))[-1]
    )


def test_flow_starts_from_the_weights_in_the_package():
    assert SupervisedConfig.__dataclass_fields__["spynet"].default == "own"
    network = architecture_of("BasicVSR").build(TINY["BasicVSR"])
    ours = SpyNet()
    init_spynets(network, "own")
    assert load_spynet(ours) == 1
    assert all(
        torch.equal(value, network.spynet.state_dict()[name])
        for name, value in ours.state_dict().items()
    )
    first = "basic_module.0.basic_module.0.weight"
    assert not torch.equal(SpyNet().state_dict()[first], network.spynet.state_dict()[first])


def test_cleaned_frames_are_compared_with_what_they_should_be(clips, monkeypatch):
    records = []
    cleaned = []
    clean = RealBasicVSR.clean
    monkeypatch.setattr(
        RealBasicVSR, "clean", lambda self, lq: (cleaned.append(len(lq)), clean(self, lq))[1]
    )
    config = dataclasses.replace(_config(clips, "RealBasicVSR"), mirrored=True, cleaning_weight=0.5)
    main(
        dataclasses.replace(config, loop=dataclasses.replace(config.loop, steps=1)),
        on_log=records.append,
    )
    # Once for both losses.
    assert cleaned == [1]
    clip = list(prepare_clips(config.data, config.cache, preset="bi", scale=4))
    lq, gt = (
        torch.cat([x, x.flip(1)], 1)
        for x in Crops(clip, 4, config.crops, config.loop.seed).batch(0)
    )
    torch.manual_seed(config.loop.seed)
    network = architecture_of("RealBasicVSR").build(TINY["RealBasicVSR"])
    with torch.no_grad():
        residue = (
            (clean(network, lq) - gt.unflatten(-1, (-1, 4)).unflatten(-3, (-1, 4)).mean((-1, -3)))
            .abs()
            .mean()
        )
        pixel = charbonnier(network(lq), gt)
    assert records[0]["loss/cleaning"] == pytest.approx(0.5 * residue.item(), rel=1e-4)
    assert records[0]["loss/pixel"] == pytest.approx(pixel.item(), rel=1e-4)
    assert records[0]["loss"] == pytest.approx((pixel + 0.5 * residue).item(), rel=1e-4)


def test_a_file_leaves_the_rest_to_the_recipe(tmp_path):
    (tmp_path / "c.yaml").write_text(
        "model: edvr-m\ndata: [clips]\nnetwork: {channels: 8}\nloop: {lr: 1e-3}\n"
    )
    default = configure("edvr-m")
    config = read_config(tmp_path / "c.yaml", type(default), default=default)
    network = dataclasses.replace(default.network, channels=8)
    loop = dataclasses.replace(default.loop, lr=1e-3)
    assert config == configure("edvr-m", data=(Path("clips"),), network=network, loop=loop)
    write_config(tmp_path / "d.yaml", config)
    assert read_config(tmp_path / "d.yaml", type(default), default=configure("edvr-m")) == config
    (tmp_path / "c.yaml").write_text("network: {chanels: 8}")
    with pytest.raises(ConfigError, match="network has unknown key 'chanels'; known are channels"):
        read_config(tmp_path / "c.yaml", type(default), default=default)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        (
            "EDVR",
            {"crops": CropSettings(frames=3, patch_px=18)},
            "patch_px=18 does not fit EDVR.* use 20",
        ),
        (
            "IconVSR",
            {"crops": CropSettings(patch_px=2)},
            "patch_px=2 does not fit IconVSR.* use 4",
        ),
        (
            "EDVR",
            {"crops": CropSettings(frames=5, patch_px=16)},
            "frames=5.*the middle one of 3 frames",
        ),
        ("EDVR", {"mirrored": True}, "mirrored=True"),
        (
            "ZoomingSlowMo",
            {"crops": CropSettings(frames=4, patch_px=16)},
            "odd number, 3 or larger",
        ),
        ("RRN", {"cleaning_weight": 1.0}, "is for networks with a cleaning module; RRN has none"),
        ("RRN", {"data": ()}, "--data FOLDER"),
        ("RRDBNet", {"network": dataclasses.replace(TINY["RRDBNet"], doublings=3)}, "upscales x8"),
        (
            "RRDBNet",
            {"network": dataclasses.replace(TINY["RRDBNet"], doublings=0)},
            "preset=bi only changes the size",
        ),
        (
            "RRN",
            {"loop": LoopSettings(optimizer=OptimizerSettings(low_lr_modules=("spynet",)))},
            "RRN has no module 'spynet'",
        ),
    ],
)
def test_unsuitable_settings_are_refused(clips, name, changes, message):
    with pytest.raises(ConfigError, match=message):
        main(_config(clips, name, **changes))


def test_weights_of_others_are_refused(clips):
    path = clips.parent / "edsr.safetensors"
    save_checkpoint(path, architecture_of("EDSR").build(TINY["EDSR"]), {})
    with pytest.raises(InputError, match="shares no convolution"):
        main(_config(clips, init=path))
    with pytest.raises(InputError, match="is EDSR, not SpyNet"):
        main(_config(clips, "BasicVSR", spynet=str(path)))
    with pytest.raises(InputError, match="RRN has no SpyNet"):
        main(_config(clips, spynet=str(path)))
    with pytest.raises(InputError, match="none of 1 clips has 64 px"):
        main(_config(clips, crops=CropSettings(frames=2, patch_px=64)))
    with pytest.raises(RequestError, match="no network to train is called 'edwr'"):
        configure("edwr")
