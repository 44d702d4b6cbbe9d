import dataclasses
import json
import math

import pytest
import torch

from tubelet.degrade import apply_recipe, degrade, degrade_frames, draw_recipe, stream_recipe
from tubelet.degrade.recipe import DegradationRecipe, part_frames, recipe_from_json, recipe_to_json
from tubelet.degrade.steps import Blur, Codec, DegradationStep, Jpeg, Noise, Resize, apply_step
from tubelet.errors import ConfigError, InputError
from tubelet.evaluation.scene import draw_scene
from tubelet.metrics import psnr


@pytest.fixture(scope="module")
def clip() -> torch.Tensor:
    """A drawn scene of odd size."""
    return torch.stack(list(draw_scene(4)))[..., 100:190, 100:231]


def kinds(recipe: DegradationRecipe) -> list[type]:
    return [type(step) for step in recipe.steps]


def test_real_draws_what_models_were_trained_on():
    assert draw_recipe("real", seed=3).steps == (
        Blur(
            kernel="gaussian",
            taps=11,
            sigma_x=1.0353833802367614,
            sigma_y=0.8959641332384634,
            angle_rad=1.8972707566094689,
            edge="reflect",
        ),
        Resize(factor=0.25, method="bilinear"),
        Noise(kind="shot", channels=1, strength=0.021562749807918773, seed=2792834915803496409),
        Codec(
            encoder="libx265",
            options={"crf": "21.6", "preset": "veryfast", "x265-params": "log-level=none"},
        ),
    )


@pytest.mark.parametrize("preset", ["real", "second-order"])
@pytest.mark.parametrize("scale", [2, 4])
def test_a_recipe_survives_json_and_replays_to_the_bit(clip, preset, scale):
    for seed in range(3):
        recipe = draw_recipe(preset, scale=scale, seed=seed)
        again = recipe_from_json(recipe_to_json(recipe))
        assert again == recipe
        lq = apply_recipe(clip, again)
        assert lq.shape == (4, 3, math.ceil(90 / scale), math.ceil(131 / scale))
        assert torch.equal(lq, degrade(clip, preset, scale=scale, seed=seed))


def test_second_order_is_two_rounds_and_draws_every_kind():
    recipes = [draw_recipe("second-order", seed=seed) for seed in range(200)]
    for recipe in recipes:
        assert kinds(recipe)[:4] == [Blur, Resize, Noise, Jpeg]
        assert [type(s) for s in recipe.steps].count(Resize) == 3
        assert kinds(recipe).count(Jpeg) == 2
        last = [step for step in recipe.steps if isinstance(step, Resize)][-1]
        assert last.factor == 0.25
    steps: list[DegradationStep] = [step for recipe in recipes for step in recipe.steps]
    assert {s.kernel for s in steps if isinstance(s, Blur)} == {
        "gaussian",
        "generalized",
        "plateau",
        "sinc",
    }
    assert {s.method for s in steps if isinstance(s, Resize)} == {
        "area",
        "bilinear-plain",
        "bicubic-plain",
    }
    assert {(s.kind, s.channels) for s in steps if isinstance(s, Noise)} == {
        (kind, channels) for kind in ("gaussian", "poisson") for channels in (1, 3)
    }
    assert {s.encoder for s in steps if isinstance(s, Codec)} == {"libx264", "libx265", "mpeg4"}
    assert {type(recipe.steps[-1]) for recipe in recipes} == {
        Codec,
        Resize,
        Blur,
    }  # both orders of the end


def test_the_stream_of_a_short_clip_is_the_clip(clip):
    for preset in ("real", "second-order"):
        for seed in range(3):
            recipe = draw_recipe(preset, seed=seed)
            streamed = torch.stack(list(stream_recipe(iter(clip), recipe, (90, 131))))
            assert torch.equal(streamed, apply_recipe(clip, recipe))


def test_a_long_clip_is_taken_in_parts_of_the_same_steps(clip):
    recipe = DegradationRecipe(
        preset="real",
        seed=0,
        scale=2,
        steps=(
            Resize(factor=0.5, method="area"),
            Noise(kind="gaussian", channels=3, strength=0.1, seed=7),
        ),
    )
    pulled: list[int] = []

    def frames():
        for number, frame in enumerate(clip):
            pulled.append(number)
            yield frame

    stream = stream_recipe(frames(), recipe, (90, 131), max_part_frames=2)
    first = next(stream)
    assert pulled == [0, 1]  # no more than a part is held
    out = torch.stack([first, *stream])
    assert torch.equal(out[:2], apply_recipe(clip[:2], recipe))
    assert torch.equal(out[2:], apply_recipe(clip[2:], recipe, part=1))
    assert not torch.equal(out[2:], apply_recipe(clip[2:], recipe))  # noise does not repeat


def test_parts_are_as_long_as_memory_allows():
    recipe = draw_recipe("real", scale=4, seed=3)
    assert part_frames(recipe, (720, 1280)) == 300
    assert part_frames(recipe, (2160, 3840)) == 43  # of 960×540 pixels


def test_fixed_presets_stream_frame_by_frame(clip):
    for preset in ("bi", "bd", "bd-c"):
        assert torch.equal(
            torch.stack(list(degrade_frames(iter(clip), preset, (90, 131)))), degrade(clip, preset)
        )


@pytest.mark.parametrize(
    ("kind", "channels"), [("gaussian", 1), ("gaussian", 3), ("poisson", 1), ("poisson", 3)]
)
def test_noise_has_its_strength_and_color(kind, channels):
    gray = torch.full((2, 3, 64, 64), 0.5)
    strength = 0.1 if kind == "gaussian" else 1.5
    step = Noise(kind=kind, channels=channels, strength=strength, seed=1)
    noise = apply_step(step, gray, gt_size=(64, 64)) - gray
    sigma = strength if kind == "gaussian" else strength * math.sqrt(0.5 / 255)
    assert noise.std().item() == pytest.approx(sigma, rel=0.05)
    assert abs(noise.mean().item()) < 0.01
    assert torch.allclose(noise[:, 0], noise[:, 1], atol=1e-6) == (channels == 1)
    assert not torch.allclose(noise[0], noise[1])


def test_jpeg_loses_more_at_lower_quality(clip):
    fine, coarse = (apply_step(Jpeg(quality=q), clip, gt_size=(90, 131)) for q in (95, 20))
    assert psnr(fine, clip).mean() > psnr(coarse, clip).mean() + 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r["steps"][0].update(step="smear"), "step 'smear' is none of blur"),
        (lambda r: r["steps"][0].update(taps=4), "taps=4"),
        (lambda r: r["steps"][0].update(kernel="box"), "kernel='box'"),
        (lambda r: r["steps"][1].update(method="nearest"), "method='nearest'"),
        (lambda r: r["steps"][2].update(color=1), "color"),
        (lambda r: r.pop("steps"), "'steps' is missing"),
        (lambda r: r.update(scale=2), "last resize must be to 1/2"),
        (lambda r: r.update(preset="bi"), "preset 'bi' is none of real"),
    ],
)
def test_a_recipe_that_was_edited_wrongly_is_refused(change, message):
    record = json.loads(recipe_to_json(draw_recipe("real", seed=3)))
    change(record)
    with pytest.raises(InputError, match=message):
        recipe_from_json(json.dumps(record))
    with pytest.raises(InputError, match="not a recipe"):
        recipe_from_json("[1, 2]")


def test_a_recipe_is_printed_line_by_line():
    lines = str(draw_recipe("real", seed=3)).splitlines()
    assert lines[0] == "real, seed 3, 1/4:"
    assert lines[1] == "  1. blur: gaussian, σ 1.04 × 0.90 px, 11 taps"
    assert len(lines) == 5


def test_presets_without_draws_have_no_recipe():
    with pytest.raises(ConfigError, match="'bi' draws no recipe"):
        draw_recipe("bi")


def test_steps_are_values():
    with pytest.raises(dataclasses.FrozenInstanceError):
        draw_recipe("real").steps[0].factor = 3
