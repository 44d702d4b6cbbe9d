"""LPIPS, DISTS and CLIP-IQA by piq, with weights that are found before anything is built, and tLPIPS on top."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from tubelet.errors import CheckpointError, ResourceError
from tubelet.metrics.meters import FrameMeter, PairMeter
from tubelet.metrics.weights import WeightFile, find_weights, read_tensors
from tubelet.ops.pixels import quantize

__all__ = ["WEIGHTS", "load_clip_iqa", "load_dists", "load_lpips", "perceptual_meter"]

_ALEXNET = WeightFile(
    "alexnet-owt-7be5be79.pth",
    "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
    "7be5be79",
)
_VGG16 = WeightFile(
    "vgg16-397923af.pth", "https://download.pytorch.org/models/vgg16-397923af.pth", "397923af"
)
_PIQ = "https://github.com/photosynthesis-team"

WEIGHTS: dict[str, tuple[WeightFile, ...]] = {
    "lpips": (
        _ALEXNET,
        WeightFile(
            "alex.pth",
            "https://github.com/richzhang/PerceptualSimilarity/raw/master/lpips/weights/v0.1/alex.pth",
        ),
    ),
    "lpips-vgg": (
        _VGG16,
        WeightFile(
            "lpips_weights.pt",
            f"{_PIQ}/photosynthesis.metrics/releases/download/v0.4.0/lpips_weights.pt",
        ),
    ),
    "dists": (
        _VGG16,
        WeightFile("dists_weights.pt", f"{_PIQ}/piq/releases/download/v0.4.1/dists_weights.pt"),
    ),
    "clip-iqa": (
        WeightFile(
            "RN50.pt",
            "https://openaipublic.azureedge.net/clip/models/"
            "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762/RN50.pt",
            "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762",
            also_in="~/.cache/clip",
        ),
        WeightFile(
            "clipiqa_tokens.pt",
            f"{_PIQ}/piq/releases/download/v0.7.1/clipiqa_tokens.pt",
            also_in="~/.cache/clip",
        ),
    ),
}
"""The files of each metric: the backbone first, then what was learned on top of it."""

_LAYERS = {
    "alexnet": (1, 4, 7, 9, 11),
    "vgg16": (3, 8, 15, 22, 29),
}  # relu1 .. relu5; relu1_2 .. relu5_3
_CHANNELS = {"alexnet": (64, 192, 384, 256, 256), "vgg16": (64, 128, 256, 512, 512)}
_CLIP_MEAN, _CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_MIN_PX = 32  # AlexNet's and VGG's pooling leave nothing of less


def perceptual_meter(
    name: str, *, border: int, weights: Path | None, device: torch.device
) -> FrameMeter | PairMeter:
    """Make the meter of `lpips`, `lpips-vgg`, `dists`, `clip-iqa` or `tlpips`.

    Args:
        name: of the metric.
        border: pixels cropped from each side.
        weights: see `find_weights`.
        device: where the network runs.

    Raises:
        ResourceError: piq, torchvision or a weight file is absent.
        CheckpointError: a weight file does not fit.
    """

    def ready(x: Tensor) -> Tensor:
        """Round to 8 bit, as images are that the field scores from files, crop, and make a batch of one."""
        x = x[:, border : x.shape[-2] - border, border : x.shape[-1] - border]
        if min(x.shape[-2:]) < _MIN_PX:
            raise ValueError(
                f"{x.shape[-1]}×{x.shape[-2]} pixels are too few; at least {_MIN_PX} a side"
            )
        return quantize(x.to(device).float())[None]

    if name == "tlpips":
        return _tlpips(load_lpips("alex", weights).to(device), ready)
    if name == "clip-iqa":
        rate = load_clip_iqa(weights, device)
        return FrameMeter(name, lambda sr, gt: rate(ready(sr)).item(), needs_reference=False)
    network = (
        load_dists(weights)
        if name == "dists"
        else load_lpips("vgg" if name == "lpips-vgg" else "alex", weights)
    )
    network.to(device)

    def score(sr: Tensor, gt: Tensor | None) -> float:
        assert gt is not None
        return network(ready(sr), ready(gt)).item()

    return FrameMeter(name, score, needs_reference=True)


def _tlpips(lpips: nn.Module, ready: Callable[[Tensor], Tensor]) -> PairMeter:
    """Compare how much consecutive frames differ.

    Source: Chu et al., TecoGAN, ACM TOG 2020, Sec. 5.2.
    """

    def prepare(sr: Tensor, gt: Tensor | None) -> tuple[Tensor, Tensor]:
        assert gt is not None
        return ready(sr), ready(gt)

    def score(before: tuple[Tensor, Tensor], now: tuple[Tensor, Tensor]) -> float:
        return abs(lpips(before[0], now[0]).item() - lpips(before[1], now[1]).item())

    return PairMeter("tlpips", prepare, score, needs_reference=True)


def _import_piq(metric: str) -> Any:
    try:
        import piq
    except ImportError as error:
        raise ResourceError(
            f"{metric} needs piq and torchvision ({error}); install them: pip install 'tubelet[metrics]'"
        ) from error
    return piq


def _load_features(network: Literal["alexnet", "vgg16"], path: Path) -> nn.Module:
    """Load the layers of a classifier of torchvision, up to the last one that counts, from its published file."""
    from torchvision import models

    with torch.device("meta"):  # the classifier is never allocated
        classifier: Any = (models.alexnet if network == "alexnet" else models.vgg16)(weights=None)
    features: nn.Module = classifier.features[: _LAYERS[network][-1] + 1]
    prefix = "features."
    state = {
        name.removeprefix(prefix): v.float()
        for name, v in read_tensors(path).items()
        if name.startswith(prefix)
    }
    try:
        features.load_state_dict(state, strict=True, assign=True)
    except RuntimeError as error:
        raise CheckpointError(f"{path} does not hold {network}: {_one_line(error)}") from error
    return features.requires_grad_(False).eval()


def load_lpips(network: Literal["alex", "vgg"], weights: Path | None = None) -> nn.Module:
    """Build LPIPS v0.1.

    Args:
        network: "alex" is what its authors use to measure, "vgg" what piq has.
        weights: see `find_weights`.

    Returns:
        a module that maps two (N, 3, H, W) in [0, 1] to the mean distance.

    Raises:
        ResourceError: piq, torchvision or a weight file is absent.
        CheckpointError: a weight file does not fit.

    Source: Zhang et al., CVPR 2018.
    """
    name, base = ("lpips", "alexnet") if network == "alex" else ("lpips-vgg", "vgg16")
    piq = _import_piq(name)
    backbone, learned = find_weights(name, WEIGHTS[name], weights)
    features = _load_features(base, backbone)
    linear = [value for _, value in sorted(read_tensors(learned).items())]
    if [tuple(w.shape) for w in linear] != [(1, size, 1, 1) for size in _CHANNELS[base]]:
        raise CheckpointError(f"{learned} does not hold the linear layers of LPIPS with {base}")
    return piq.ContentLoss(
        feature_extractor=features,
        layers=[str(layer) for layer in _LAYERS[base]],
        weights=linear,
        normalize_features=True,
        reduction="mean",
    )


def load_dists(weights: Path | None = None) -> nn.Module:
    """Build DISTS, for frames at their own size; the authors' script first shrinks images to 256 pixels.

    Args:
        weights: see `find_weights`.

    Returns:
        a module that maps two (N, 3, H, W) in [0, 1] to the mean distance.

    Raises:
        ResourceError: piq, torchvision or a weight file is absent.
        CheckpointError: a weight file does not fit.

    Source: Ding et al., IEEE TPAMI 2022.
    """
    piq = _import_piq("dists")
    backbone, learned = find_weights("dists", WEIGHTS["dists"], weights)
    features = _load_features("vgg16", backbone)
    found = read_tensors(learned)
    channels = (3, *_CHANNELS["vgg16"])  # the image itself is the first feature
    if {name: tuple(value.shape) for name, value in found.items()} != {
        name: (1, sum(channels), 1, 1) for name in ("alpha", "beta")
    }:
        raise CheckpointError(f"{learned} does not hold the weights alpha and beta of DISTS")
    total = found["alpha"].sum() + found["beta"].sum()
    split: list[Tensor] = [
        p for key in ("alpha", "beta") for p in torch.split(found[key] / total, list(channels), 1)
    ]

    class LocalDists(piq.DISTS):  # piq's constructor downloads; its `forward` resizes
        def __init__(self) -> None:
            piq.ContentLoss.__init__(
                self,
                feature_extractor=features,
                layers=[str(layer) for layer in _LAYERS["vgg16"]],
                weights=split,
                replace_pooling=True,
                allow_layers_weights_mismatch=True,
            )

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return 1 - piq.ContentLoss.forward(self, x, y)

    return LocalDists()


def load_clip_iqa(weights: Path | None, device: torch.device) -> Callable[[Tensor], Tensor]:
    """Build CLIP-IQA: how much nearer an image is to "Good photo." than to "Bad photo." in CLIP's space.

    Args:
        weights: see `find_weights`.
        device: where the network runs.

    Returns:
        a function of one image (1, 3, H, W) in [0, 1], to a score in [0, 1].

    Raises:
        ResourceError: piq, torchvision or a weight file is absent.
        CheckpointError: a weight file does not fit.

    Source: Wang et al., AAAI 2023; ResNet-50 without position embedding, so images keep their size.
    """
    _import_piq("clip-iqa")
    from piq.feature_extractors import clip as networks

    network, tokens = find_weights("clip-iqa", WEIGHTS["clip-iqa"], weights)
    try:
        clip: Any = (
            cast(Any, networks)
            .build_model(read_tensors(network))
            .float()
            .requires_grad_(False)
            .to(device)
        )
    except (KeyError, RuntimeError, AssertionError, TypeError, ValueError) as error:
        raise CheckpointError(f"{network} does not hold CLIP: {_one_line(error)}") from error
    mean, std = (
        torch.tensor(v, device=device).reshape(1, 3, 1, 1) for v in (_CLIP_MEAN, _CLIP_STD)
    )
    prompts = list(read_tensors(tokens).values())
    if [tuple(prompt.shape) for prompt in prompts] != [(2, clip.context_length)]:
        raise CheckpointError(f"{tokens} does not hold the tokens of two prompts")
    anchors = functional.normalize(clip.encode_text(prompts[0].to(device)), dim=-1)

    def rate(x: Tensor) -> Tensor:
        feature = functional.normalize(
            clip.encode_image((x - mean) / std, pos_embedding=False), dim=-1
        )
        return (clip.logit_scale.exp() * feature @ anchors.T).softmax(-1)[:, 0]

    return rate


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
