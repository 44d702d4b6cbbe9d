"""Training recipes of published networks, and a default recipe for all other networks.

Batch sizes are totals over all GPUs. `loss_eps` is the eps of Charbonnier's sqrt(x² + eps²); some
sources give its square. `assumed` lists the settings that a source does not give: they are chosen
by this project.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from typing import Any

from tubelet.data import CropSettings
from tubelet.degrade import Preset
from tubelet.errors import RequestError, suggest
from tubelet.models import (
    basicvsr,
    basicvsr_pp,
    edvr,
    hat,
    iconvsr,
    ovsr,
    realbasicvsr,
    rrdb,
    rrn,
    sesr,
    swinir,
    zooming_slow_mo,
)
from tubelet.models.architecture import Architecture
from tubelet.models.edvr import EDVRConfig
from tubelet.models.sesr import SESRConfig
from tubelet.training import LoopSettings, OptimizerSettings, ScheduleSettings
from tubelet.types import Temporal, TemporalKind
from tubelet.zoo.architectures import ARCHITECTURES

__all__ = ["RECIPES", "PublishedRecipe", "find_recipe", "list_names"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedRecipe:
    """Training settings of one network.

    Attributes:
        name: Name that `--model` accepts.
        architecture: Architecture of the network.
        network: Configuration of the network.
        crops: Size of the training samples.
        loop: Steps, learning rate and loss.
        preset: Degradation of the low-quality frames.
        mirrored: Append the frames of each sample in reverse order.
        cleaning_weight: Weight of the loss on cleaned frames, for RealBasicVSR.
        source: Paper and code that the settings are from.
        assumed: Settings that the source does not give.
    """

    name: str
    architecture: Architecture
    network: Any
    crops: CropSettings
    loop: LoopSettings
    preset: Preset = "bi"
    mirrored: bool = False
    cleaning_weight: float = 0.0
    source: str
    assumed: str


def _crops(patch_px: int, frames: int, batch: int) -> CropSettings:
    return CropSettings(patch_px=patch_px, frames=frames, batch=batch, candidates=1)


_BASE = LoopSettings(
    lr_final=1e-7,
    warmup_steps=0,
    grad_clip=math.inf,
    # BasicSR and MMagic give the square, 1e-12.
    loss_eps=1e-6,
    log_every=100,
    save_every=5000,
)
"""Settings that the recipes share, unless they override them."""

# A pretrained flow network: frozen at first, then trained with a lower learning rate.
_FLOW = OptimizerSettings(low_lr_modules=("spynet",), lr_multiplier=0.125, freeze_steps=5000)
# PyTorch's default betas. The default of `OptimizerSettings` is that of BasicSR, 0.9 and 0.99.
_PYTORCH_BETAS = OptimizerSettings(betas=(0.9, 0.999))

_BASICVSR = replace(_BASE, steps=300_000, lr=2e-4, optimizer=_FLOW)
# The temporal and spatial attention of EDVR is trained alone at first, on the weights of a network
# without it.
_EDVR = replace(
    _BASE,
    steps=600_000,
    lr=4e-4,
    loss_reduction="sum",
    schedule=ScheduleSettings(
        kind="restarts", periods=(50_000, 100_000, 150_000, 150_000, 150_000)
    ),
    optimizer=OptimizerSettings(
        warmup_only_modules=("extractor.fusion",), warmup_only_steps=50_000
    ),
)
_EDVR_WOTSA = replace(
    _EDVR,
    schedule=ScheduleSettings(kind="restarts", periods=(150_000,)),
    optimizer=OptimizerSettings(),
)
_EDVR_LARGE = EDVRConfig(channels=128, num_reconstruct_blocks=40)
_EDVR_SOURCE = "Wang et al., CVPRW 2019; option files of BasicSR"
_EDVR_ASSUMED = "eps; betas"
_HAT_SOURCE = "Chen et al., CVPR 2023; option files of HAT"

# Steps of an epoch: 64 612 clips of Vimeo-90K's training list in batches of 4.
_RRN_EPOCH = 64_612 // 4
# Steps of an epoch: 64 crops of each of the 800 images of DIV2K in batches of 32.
_SESR_EPOCH = 800 * 64 // 32


def _steps(*milestones: int, factor: float = 0.5) -> ScheduleSettings:
    return ScheduleSettings(kind="steps", milestones=milestones, factor=factor)


def _hat(name: str, loop: LoopSettings, assumed: str) -> PublishedRecipe:
    return PublishedRecipe(
        name=name,
        architecture=hat.ARCHITECTURE,
        network=hat.HATConfig(),
        crops=_crops(64, 1, 32),
        loop=replace(loop, loss="l1", ema=0.999),
        source=_HAT_SOURCE,
        assumed=assumed,
    )


def _edvr(name: str, network: EDVRConfig, loop: LoopSettings) -> PublishedRecipe:
    return PublishedRecipe(
        name=name,
        architecture=edvr.ARCHITECTURE,
        network=network,
        crops=_crops(64, 5, 32),
        loop=loop,
        source=_EDVR_SOURCE,
        assumed=_EDVR_ASSUMED,
    )


def _sesr(scale: int) -> PublishedRecipe:
    return PublishedRecipe(
        name=f"sesr-x{scale}",
        architecture=sesr.ARCHITECTURE,
        network=SESRConfig(scale=scale),
        crops=_crops(64, 1, 32),
        loop=replace(
            _BASE, steps=300 * _SESR_EPOCH, lr=2e-4, lr_final=2e-4, loss="l1", loss_on="luma"
        ),
        source="Bhardwaj et al., MLSys 2022",
        assumed=(
            "crops; 64 crops of each image in an epoch of DIV2K; constant learning rate. "
            "x4 starts from x2: --init"
        ),
    )


RECIPES: tuple[PublishedRecipe, ...] = (
    PublishedRecipe(
        name="basicvsr",
        architecture=basicvsr.ARCHITECTURE,
        network=basicvsr.BasicVSRConfig(),
        crops=_crops(64, 15, 8),
        loop=_BASICVSR,
        source="Chan et al., CVPR 2021; configuration of MMagic",
        assumed="EMA",
    ),
    PublishedRecipe(
        name="iconvsr",
        architecture=iconvsr.ARCHITECTURE,
        network=iconvsr.IconVSRConfig(),
        crops=_crops(64, 15, 8),
        loop=_BASICVSR,
        source="Chan et al., CVPR 2021; configuration of MMagic",
        assumed="EMA",
    ),
    PublishedRecipe(
        name="basicvsr_pp",
        architecture=basicvsr_pp.ARCHITECTURE,
        network=basicvsr_pp.BasicVSRPlusPlusConfig(),
        crops=_crops(64, 30, 8),
        loop=replace(_BASE, steps=600_000, lr=1e-4, optimizer=replace(_FLOW, lr_multiplier=0.25)),
        source="Chan et al., CVPR 2022; configuration of MMagic",
        assumed="EMA; flow frozen as in BasicVSR",
    ),
    _edvr("edvr-m", EDVRConfig(), _EDVR),
    _edvr("edvr-l", _EDVR_LARGE, _EDVR),
    _edvr("edvr-m-wotsa", EDVRConfig(fusion="conv"), _EDVR_WOTSA),
    _edvr("edvr-l-wotsa", replace(_EDVR_LARGE, fusion="conv"), _EDVR_WOTSA),
    PublishedRecipe(
        name="rrn",
        architecture=rrn.ARCHITECTURE,
        network=rrn.RRNConfig(),
        crops=_crops(64, 7, 4),
        loop=replace(
            _BASE,
            steps=70 * _RRN_EPOCH,
            lr=1e-4,
            schedule=_steps(60 * _RRN_EPOCH, factor=0.1),
            optimizer=replace(_PYTORCH_BETAS, weight_decay=5e-4),
            loss_eps=1e-3,
            loss_reduction="sum",
        ),
        preset="bd",
        source="Isobe et al., BMVC 2020; their code",
        assumed="epochs of Vimeo-90K; crops, while their code trains on whole frames; EMA; betas",
    ),
    PublishedRecipe(
        name="ovsr",
        architecture=ovsr.ARCHITECTURE,
        network=ovsr.OVSRConfig(),
        crops=_crops(64, 9, 16),
        loop=replace(
            _BASE,
            steps=400_000,
            lr=1e-3,
            lr_final=1e-4,
            schedule=ScheduleSettings(kind="linear", periods=(120_000,)),
            optimizer=_PYTORCH_BETAS,
            loss_eps=1e-3,
        ),
        preset="bd",
        source="Yi et al., ICCV 2021; their options",
        assumed=(
            "EMA; betas; their loss also includes the results of the precursor network, and omits "
            "the outermost frames"
        ),
    ),
    PublishedRecipe(
        name="zsm",
        architecture=zooming_slow_mo.ARCHITECTURE,
        network=zooming_slow_mo.ZoomingSlowMoConfig(),
        crops=_crops(32, 7, 16),
        loop=replace(
            _BASE,
            steps=600_000,
            lr=4e-4,
            schedule=ScheduleSettings(kind="restarts", periods=(150_000,)),
            loss_eps=1e-3,
            loss_reduction="sum",
        ),
        source="Xiang et al., CVPR 2020; their options",
        assumed="eps and sum, as in EDVR's first code; EMA",
    ),
    PublishedRecipe(
        name="swinir-x4",
        architecture=swinir.ARCHITECTURE,
        network=swinir.SwinIRConfig(),
        crops=_crops(48, 1, 32),
        loop=replace(
            _BASE,
            steps=500_000,
            lr=2e-4,
            schedule=_steps(250_000, 400_000, 450_000, 475_000),
            optimizer=_PYTORCH_BETAS,
            loss="l1",
        ),
        source="Liang et al., ICCVW 2021; options of KAIR",
        assumed="8 GPUs; EMA; betas",
    ),
    _hat(
        "hat-x4",
        replace(
            _BASE,
            steps=800_000,
            lr=2e-4,
            schedule=_steps(300_000, 500_000, 650_000, 700_000, 750_000),
        ),
        "8 GPUs; milestones",
    ),
    _hat(
        "hat-x4-finetune",
        replace(_BASE, steps=250_000, lr=1e-5, schedule=_steps(125_000, 200_000, 225_000, 240_000)),
        "8 GPUs. Starts from hat-x4: --init",
    ),
    PublishedRecipe(
        name="realesrgan-x4",
        architecture=rrdb.ARCHITECTURE,
        network=rrdb.RRDBConfig(),
        crops=_crops(64, 1, 48),
        loop=replace(_BASE, steps=400_000, lr=1e-4, lr_final=1e-4, loss="l1"),
        preset="second-order",
        source="Wang et al., ICCVW 2021",
        assumed="4 GPUs; EMA; only the L1 loss, without VGG and discriminator",
    ),
    PublishedRecipe(
        name="realbasicvsr",
        architecture=realbasicvsr.ARCHITECTURE,
        network=realbasicvsr.RealBasicVSRConfig(),
        crops=_crops(64, 15, 16),
        loop=replace(
            _BASE,
            steps=300_000,
            lr=1e-4,
            lr_final=1e-4,
            loss="l1",
        ),
        preset="second-order",
        mirrored=True,
        cleaning_weight=1.0,
        source="Chan et al., CVPR 2022; configuration of MMagic",
        assumed="only its first stage, without VGG and discriminator; EMA; gt is not sharpened",
    ),
    _sesr(2),
    _sesr(4),
)
"""Recipes by the name that `--model` accepts. The first recipe of an architecture is also found by
the name of the architecture."""


def list_names() -> list[str]:
    """List the names for `find_recipe`: recipes, then architectures without a published recipe."""
    names: list[str] = []
    with_recipe: set[str] = set()
    for recipe in RECIPES:
        names.append(recipe.name)
        with_recipe.add(recipe.architecture.name)
    others: list[str] = []
    for architecture in _trainable_architectures():
        if architecture.name not in with_recipe:
            others.append(architecture.name)
    return names + sorted(others, key=str.lower)


def find_recipe(name: str) -> PublishedRecipe:
    """Find a recipe by its name or by its architecture, ignoring case and punctuation.

    Raises:
        RequestError: No recipe has this name; the message suggests similar ones.
    """
    key = _search_key(name)
    for recipe in RECIPES:
        if key == _search_key(recipe.name):
            return recipe
    for recipe in RECIPES:
        if key == _search_key(recipe.architecture.name):
            return recipe
    for architecture in _trainable_architectures():
        if key == _search_key(architecture.name):
            return _default_recipe(architecture)
    suggestion = suggest(name, list_names(), count=3)
    raise RequestError(f"no network to train is called {name!r}; {suggestion}")


def _search_key(name: str) -> str:
    # "BasicVSR++" is basicvsr_pp.
    name = name.lower().replace("+", "p")
    return re.sub(r"[^a-z0-9]", "", name)


def _trainable_architectures() -> list[Architecture]:
    """List the networks that output images; composite networks have other training procedures."""
    trainable: list[Architecture] = []
    for architecture in ARCHITECTURES:
        if architecture.base is not None:
            continue
        outputs_images = architecture.contract(architecture.config()) is not None
        if outputs_images:
            trainable.append(architecture)
    return trainable


def _default_recipe(architecture: Architecture) -> PublishedRecipe:
    """Build a recipe from the settings that most published recipes have in common."""
    network = architecture.config()
    contract = architecture.contract(network)
    assert contract is not None
    batch = 16 if contract.temporal.kind == "frame" else 8
    return PublishedRecipe(
        name=architecture.name,
        architecture=architecture,
        network=network,
        crops=_crops(64, _default_frames(contract.temporal), batch),
        loop=replace(_BASE, steps=300_000, lr=2e-4),
        source="Tubelet",
        assumed="everything",
    )


def _default_frames(temporal: Temporal) -> int:
    """Return the number of frames of a training sample."""
    if temporal.between_frames:
        # A space-time network needs an odd number.
        return 7
    frames: dict[TemporalKind, int] = {
        "frame": 1,
        "window": 2 * temporal.radius + 1,
        "online": 7,
        "clip": 15,
    }
    return frames[temporal.kind]
