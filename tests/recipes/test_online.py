import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tubelet.data import Crops, CropSettings, prepare_clips
from tubelet.errors import InputError
from tubelet.losses import luma
from tubelet.models.fast import FastConfig, FastVSR
from tubelet.ops import imresize, resample
from tubelet.recipes.online import OnlineConfig, main
from tubelet.training import LoopSettings
from tubelet.zoo.checkpoint import load_model, read_notes


@pytest.fixture
def clips(tmp_path) -> Path:
    """A folder with one clip of drifting sharp texture."""
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.random((1, 12, 12), dtype=np.float32))
    field = (imresize(coarse, 10).clamp(0, 1) > 0.5).float().expand(3, -1, -1)
    folder = tmp_path / "clips" / "texture"
    folder.mkdir(parents=True)
    for t in range(6):
        pixels = (field.roll(t, -1).movedim(0, -1) * 255).byte().numpy()
        Image.fromarray(pixels).save(folder / f"{t:03d}.png")
    return tmp_path / "clips"


def _config(clips: Path, **changes) -> OnlineConfig:
    fields = {
        "data": (clips,),
        "out": clips.parent / "out",
        "cache": clips.parent / "cache",
        "model": FastConfig(channels=16, num_blocks=1, expansion=0),
        "crops": CropSettings(batch=2, frames=2, patch_px=12),
        "loop": LoopSettings(steps=5, lr=1e-2, warmup_steps=0, ema=0.9, save_every=50),
    }
    return OnlineConfig(**{**fields, **changes})


def test_overfits_a_tiny_clip_and_writes_what_it_is(clips):
    loop = LoopSettings(steps=200, lr=1e-2, warmup_steps=5, ema=0.9, log_every=10, save_every=50)
    path = main(_config(clips, loop=loop, evaluate=clips))
    lines = [
        json.loads(line) for line in (clips.parent / "out" / "log.jsonl").read_text().splitlines()
    ]
    scores = [line["psnr_y"] for line in lines if "psnr_y" in line]
    assert len(scores) == 4
    assert scores[-1] > scores[0] + 1
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < 0.8 * losses[0]
    notes = read_notes(path)
    assert notes["training"]["loop"]["steps"] == 200
    assert load_model(path).config.channels == 16


def test_begins_with_another_model_where_shapes_agree(clips):
    path = main(_config(clips))
    loop = LoopSettings(steps=1, lr=1e-6, lr_final=1e-6, warmup_steps=0)
    changes = {"init": path, "loop": loop, "out": clips.parent / "x2"}
    after = load_model(
        main(
            _config(
                clips, **changes, model=FastConfig(channels=16, num_blocks=1, expansion=0, scale=2)
            )
        )
    )
    torch.testing.assert_close(
        after.body[0].weight, load_model(path).body[0].weight, atol=1e-5, rtol=0
    )
    assert after.tail.weight.shape[0] == 4
    with pytest.raises(InputError, match="shares no convolution"):
        main(
            _config(
                clips,
                **changes | {"out": clips.parent / "other"},
                model=FastConfig(channels=8, num_blocks=1, expansion=3),
            )
        )


def test_triplets_train_everything_but_the_memory(clips):
    crops = CropSettings(batch=2, frames=3, patch_px=12)
    path = main(
        _config(clips, stage="triplets", crops=crops, loop=LoopSettings(steps=20, save_every=20))
    )
    model = load_model(path)
    # The untrained recurrent path is not saved.
    assert model.recall is None
    torch.manual_seed(0)
    before = FastVSR(dataclasses.replace(model.config, recurrent=True))
    assert not torch.equal(model.head.weight, before.head.weight)
    loop = LoopSettings(steps=3, lr=1e-3, warmup_steps=0)
    after = load_model(main(_config(clips, out=clips.parent / "clips-stage", init=path, loop=loop)))
    assert after.recall.weight.abs().max() > 0
    main(
        _config(
            clips,
            stage="triplets",
            crops=crops,
            out=clips.parent / "again",
            init=clips.parent / "clips-stage" / "model.safetensors",
            loop=loop,
        )
    )
    again = load_model(clips.parent / "again" / "model.safetensors")
    assert again.recall is None


@pytest.mark.parametrize("stage", ["clips", "triplets"])
def test_harm_counts_only_where_lanczos_is_better(clips, stage):
    crops = CropSettings(batch=2, frames=3, patch_px=12)
    long = LoopSettings(steps=200, lr=1e-2, warmup_steps=5, ema=0.9)
    good = main(_config(clips, stage=stage, crops=crops, loop=long))

    def first_loss(init: Path | None, harm_weight: float) -> float:
        records = []
        config = _config(
            clips,
            stage=stage,
            init=init,
            harm_weight=harm_weight,
            crops=crops,
            out=clips.parent / f"{init is None}-{harm_weight}",
            loop=LoopSettings(steps=1, log_every=1, loss="mse", loss_on="luma"),
        )
        main(config, on_log=records.append)
        return records[0]["loss"]

    assert first_loss(None, 10.0) > 1.01 * first_loss(None, 0.0)
    assert first_loss(good, 10.0) == first_loss(good, 0.0)


@pytest.mark.parametrize("stage", ["clips", "triplets"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_harm_is_what_is_worse_than_lanczos(clips, stage, precision):
    records = []
    crops = CropSettings(batch=2, frames=3, patch_px=12)
    loop = LoopSettings(steps=1, log_every=1, precision=precision)
    config = _config(clips, stage=stage, crops=crops, loop=loop, harm_weight=10.0)
    main(config, on_log=records.append)
    torch.manual_seed(config.loop.seed)
    network = FastVSR(config.model)
    lq, gt = Crops(
        list(prepare_clips(config.data, config.cache, preset="bi", scale=4)), 4, crops, 0
    ).batch(0)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
        if stage == "triplets":
            network.zero_recurrent_path()
            sr = network.step(lq[:, 1:3], (lq[:, 0],))[0][:, None]
            lq = lq[:, 1:2]
            gt = gt[:, 1:2]
        else:
            sr = network(lq)
    lanczos = resample(luma(lq), (48, 48), kernel="lanczos3")
    worse = (luma(sr.float()) - luma(gt)).square() - (lanczos - luma(gt)).square()
    expected = 10 * worse.mean((1, 2, 3, 4)).clamp(min=0).mean().item()
    assert expected > 0
    assert records[0]["loss/harm"] == pytest.approx(expected, rel=1e-4)
    assert records[0]["loss"] == pytest.approx(records[0]["loss/pixel"] + expected, rel=1e-4)
