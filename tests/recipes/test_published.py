import math

import pytest

from tubelet.errors import RequestError
from tubelet.recipes.published import RECIPES, find_recipe, list_names
from tubelet.zoo.architectures import ARCHITECTURES

TABLE = {
    # name: patch, frames, batch, steps, lr, lr_final, loss, reduction
    "basicvsr": (64, 15, 8, 300_000, 2e-4, 1e-7, "charbonnier", "mean"),
    "iconvsr": (64, 15, 8, 300_000, 2e-4, 1e-7, "charbonnier", "mean"),
    "basicvsr_pp": (64, 30, 8, 600_000, 1e-4, 1e-7, "charbonnier", "mean"),
    "edvr-m": (64, 5, 32, 600_000, 4e-4, 1e-7, "charbonnier", "sum"),
    "edvr-l": (64, 5, 32, 600_000, 4e-4, 1e-7, "charbonnier", "sum"),
    "edvr-m-wotsa": (64, 5, 32, 600_000, 4e-4, 1e-7, "charbonnier", "sum"),
    "edvr-l-wotsa": (64, 5, 32, 600_000, 4e-4, 1e-7, "charbonnier", "sum"),
    "rrn": (64, 7, 4, 70 * 16_153, 1e-4, 1e-7, "charbonnier", "sum"),
    "ovsr": (64, 9, 16, 400_000, 1e-3, 1e-4, "charbonnier", "mean"),
    "zsm": (32, 7, 16, 600_000, 4e-4, 1e-7, "charbonnier", "sum"),
    "swinir-x4": (48, 1, 32, 500_000, 2e-4, 1e-7, "l1", "mean"),
    "hat-x4": (64, 1, 32, 800_000, 2e-4, 1e-7, "l1", "mean"),
    "hat-x4-finetune": (64, 1, 32, 250_000, 1e-5, 1e-7, "l1", "mean"),
    "realesrgan-x4": (64, 1, 48, 400_000, 1e-4, 1e-4, "l1", "mean"),
    "realbasicvsr": (64, 15, 16, 300_000, 1e-4, 1e-4, "l1", "mean"),
    "sesr-x2": (64, 1, 32, 480_000, 2e-4, 2e-4, "l1", "mean"),
    "sesr-x4": (64, 1, 32, 480_000, 2e-4, 2e-4, "l1", "mean"),
}


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_recipes_are_as_published(recipe):
    crops = recipe.crops
    loop = recipe.loop
    got = (
        crops.patch_px,
        crops.frames,
        crops.batch,
        loop.steps,
        loop.lr,
        loop.lr_final,
        loop.loss,
        loop.loss_reduction,
    )
    assert got == TABLE[recipe.name]
    assert loop.grad_clip == math.inf
    assert loop.warmup_steps == 0
    assert recipe.source


def test_settings_of_single_recipes():
    def optimizer(name):
        return find_recipe(name).loop.optimizer

    def schedule(name):
        return find_recipe(name).loop.schedule

    for name, factor in (("basicvsr", 0.125), ("iconvsr", 0.125), ("basicvsr_pp", 0.25)):
        flow = optimizer(name)
        assert (flow.low_lr_modules, flow.lr_multiplier, flow.freeze_steps) == (
            ("spynet",),
            factor,
            5000,
        )
        assert find_recipe(name).loop.loss_eps == 1e-6
    for name in ("edvr-m", "edvr-l"):
        assert (optimizer(name).warmup_only_modules, optimizer(name).warmup_only_steps) == (
            ("extractor.fusion",),
            50_000,
        )
        assert schedule(name).periods == (50_000, 100_000, 150_000, 150_000, 150_000)
        assert optimizer(f"{name}-wotsa").warmup_only_modules == ()
    assert schedule("zsm").periods == (150_000,)
    assert schedule("swinir-x4").milestones == (250_000, 400_000, 450_000, 475_000)
    assert (schedule("rrn").milestones, schedule("rrn").factor) == ((60 * 16_153,), 0.1)
    assert (optimizer("rrn").weight_decay, find_recipe("rrn").loop.loss_eps) == (5e-4, 1e-3)
    assert (schedule("ovsr").kind, find_recipe("ovsr").loop.loss_eps) == ("linear", 1e-3)
    assert find_recipe("hat-x4").loop.ema == 0.999
    assert find_recipe("sesr-x4").loop.loss_on == "luma"
    real = find_recipe("realbasicvsr")
    assert (real.preset, real.mirrored, real.cleaning_weight) == ("second-order", True, 1.0)


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("edvr", "edvr-m"),
        ("EDVR_L", "edvr-l"),
        ("BasicVSR++", "basicvsr_pp"),
        ("BasicVSRPlusPlus", "basicvsr_pp"),
        ("swinir", "swinir-x4"),
        ("HAT", "hat-x4"),
        ("tdan", "TDAN"),
        ("SRVGGNetCompact", "SRVGGNetCompact"),
    ],
)
def test_names_as_they_are_typed(typed, name):
    assert find_recipe(typed).name == name


def test_every_network_that_outputs_images_can_be_trained():
    names = list_names()
    for architecture in ARCHITECTURES:
        if architecture.name in ("SpyNet", "ConditionalEncoder", "TwoStepRestorer", "PFVSR"):
            with pytest.raises(
                RequestError, match=f"no network to train is called '{architecture.name}'"
            ):
                find_recipe(architecture.name)
            continue
        recipe = find_recipe(architecture.name)
        contract = architecture.contract(recipe.network)
        assert recipe.name in names
        assert recipe.crops.patch_px % contract.size_multiple == 0
        if contract.temporal.kind == "window":
            assert recipe.crops.frames == 2 * contract.temporal.radius + 1


def test_unknown_names_suggest_similar_ones():
    with pytest.raises(RequestError, match="called 'basicvrs'; did you mean basicvsr"):
        find_recipe("basicvrs")
    with pytest.raises(RequestError, match="known are basicvsr, iconvsr"):
        find_recipe("zzz")
