"""LPIPS, DISTS and CLIP-IQA by piq, and tLPIPS, which is based on LPIPS.

Weight files are found before a network is built.
"""

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
    "vgg16-397923af.pth",
    "https://download.pytorch.org/models/vgg16-397923af.pth",
    "397923af",
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
        WeightFile(
            "dists_weights.pt",
            f"{_PIQ}/piq/releases/download/v0.4.1/dists_weights.pt",
        ),
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
"""The files of each metric: first the backbone, then the weights that the metric learned for it."""

# Layers of torchvision's `features` whose outputs are compared, and their channels.
_LAYERS = {
    # relu1 .. relu5
    "alexnet": (1, 4, 7, 9, 11),
    # relu1_2 .. relu5_3
    "vgg16": (3, 8, 15, 22, 29),
}
_CHANNELS = {
    "alexnet": (64, 192, 384, 256, 256),
    "vgg16": (64, 128, 256, 512, 512),
}
_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
# The pooling of AlexNet and VGG leaves no pixels of smaller images.
_MIN_PX = 32


def perceptual_meter(
    name: str,
    *,
    border: int,
    weights: Path | None,
    device: torch.device,
) -> FrameMeter | PairMeter:
    """Create the meter of `lpips`, `lpips-vgg`, `dists`, `clip-iqa` or `tlpips`.

    Args:
        name: Name of the metric.
        border: Pixels cropped from each side.
        weights: Location of the weight files, see `find_weights`.
        device: Device of the network.

    Raises:
        ResourceError: piq, torchvision or a weight file is absent.
        CheckpointError: A weight file does not fit.
    """

    def prepare(x: Tensor) -> Tensor:
        """Crop a frame, round it to 8 bit (as in image files) and make it a batch of one."""
        _, height, width = x.shape
        x = x[:, border : height - border, border : width - border]
        if min(x.shape[-2:]) < _MIN_PX:
            raise ValueError(
                f"{x.shape[-1]}×{x.shape[-2]} pixels are too few; at least {_MIN_PX} a side"
            )
        return quantize(x.to(device).float())[None]

    if name == "tlpips":
        return _tlpips(load_lpips("alex", weights).to(device), prepare)

    if name == "clip-iqa":
        rate = load_clip_iqa(weights, device)

        def score_without_reference(sr: Tensor, gt: Tensor | None) -> float:
            return rate(prepare(sr)).item()

        return FrameMeter(name, score_without_reference, needs_reference=False)

    if name == "dists":
        network = load_dists(weights)
    else:
        network = load_lpips("vgg" if name == "lpips-vgg" else "alex", weights)
    network.to(device)

    def score(sr: Tensor, gt: Tensor | None) -> float:
        assert gt is not None
        return network(prepare(sr), prepare(gt)).item()

    return FrameMeter(name, score, needs_reference=True)


def _tlpips(lpips: nn.Module, prepare_frame: Callable[[Tensor], Tensor]) -> PairMeter:
    """Create the meter of tLPIPS, which compares the differences of consecutive frames.

    Source: Chu et al., TecoGAN, ACM TOG 2020, Sec. 5.2.
    """

    def prepare(sr: Tensor, gt: Tensor | None) -> tuple[Tensor, Tensor]:
        assert gt is not None
        return prepare_frame(sr), prepare_frame(gt)

    def score(previous: tuple[Tensor, Tensor], current: tuple[Tensor, Tensor]) -> float:
        previous_sr, previous_gt = previous
        sr, gt = current
        sr_change = lpips(previous_sr, sr).item()
        gt_change = lpips(previous_gt, gt).item()
        return abs(sr_change - gt_change)

    return PairMeter("tlpips", prepare, score, needs_reference=True)


def _import_piq(metric: str) -> Any:
    try:
        import piq
    except ImportError as error:
        raise ResourceError(
            f"{metric} needs piq and torchvision ({error}); install them: "
            "pip install 'tubelet[metrics]'"
        ) from error
    return piq


def _load_features(network: Literal["alexnet", "vgg16"], path: Path) -> nn.Module:
    """Load the feature layers of a classifier of torchvision from its published file.

    Layers after the last one that is compared are left out.
    """
    from torchvision import models

    build: Any = models.alexnet if network == "alexnet" else models.vgg16
    # On "meta", the classifier is never allocated.
    with torch.device("meta"):
        classifier: Any = build(weights=None)
    num_layers = _LAYERS[network][-1] + 1
    features: nn.Module = classifier.features[:num_layers]

    prefix = "features."
    state: dict[str, Tensor] = {}
    for name, value in read_tensors(path).items():
        if name.startswith(prefix):
            state[name.removeprefix(prefix)] = value.float()
    try:
        features.load_state_dict(state, strict=True, assign=True)
    except RuntimeError as error:
        raise CheckpointError(f"{path} does not hold {network}: {_one_line(error)}") from error
    return features.requires_grad_(False).eval()


def load_lpips(network: Literal["alex", "vgg"], weights: Path | None = None) -> nn.Module:
    """Build LPIPS v0.1.

    Args:
        network: "alex" is the choice of its authors for measuring, "vgg" that of piq.
        weights: Location of the weight files, see `find_weights`.

    Returns:
        A module that maps two (N, 3, H, W) in [0, 1] to the mean distance.

    Raises:
        ResourceError: piq, torchvision or a weight file is absent.
        CheckpointError: A weight file does not fit.

    Source: Zhang et al., CVPR 2018.
    """
    if network == "alex":
        metric = "lpips"
        backbone: Literal["alexnet", "vgg16"] = "alexnet"
    else:
        metric = "lpips-vgg"
        backbone = "vgg16"
    piq = _import_piq(metric)
    backbone_path, linear_path = find_weights(metric, WEIGHTS[metric], weights)
    features = _load_features(backbone, backbone_path)

    # One linear layer for each compared layer: the weights of its channels.
    linear = [value for _, value in sorted(read_tensors(linear_path).items())]
    shapes = [tuple(value.shape) for value in linear]
    if shapes != [(1, channels, 1, 1) for channels in _CHANNELS[backbone]]:
        raise CheckpointError(
            f"{linear_path} does not hold the linear layers of LPIPS with {backbone}"
        )
    return piq.ContentLoss(
        feature_extractor=features,
        layers=[str(layer) for layer in _LAYERS[backbone]],
        weights=linear,
        normalize_features=True,
        reduction="mean",
    )


def load_dists(weights: Path | None = None) -> nn.Module:
    """Build DISTS for frames at their original size.

    The authors' script first shrinks images to 256 pixels.

    Args:
        weights: Location of the weight files, see `find_weights`.

    Returns:
        A module that maps two (N, 3, H, W) in [0, 1] to the mean distance.

    Raises:
        ResourceError: piq, torchvision or a weight file is absent.
        CheckpointError: A weight file does not fit.

    Source: Ding et al., IEEE TPAMI 2022.
    """
    piq = _import_piq("dists")
    backbone_path, learned_path = find_weights("dists", WEIGHTS["dists"], weights)
    features = _load_features("vgg16", backbone_path)
    layer_weights = _read_dists_weights(learned_path)

    # piq's constructor downloads, and its `forward` resizes.
    class LocalDists(piq.DISTS):
        def __init__(self) -> None:
            piq.ContentLoss.__init__(
                self,
                feature_extractor=features,
                layers=[str(layer) for layer in _LAYERS["vgg16"]],
                weights=layer_weights,
                replace_pooling=True,
                allow_layers_weights_mismatch=True,
            )

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return 1 - piq.ContentLoss.forward(self, x, y)

    return LocalDists()


def _read_dists_weights(path: Path) -> list[Tensor]:
    """Read the weights of texture (alpha), then of structure (beta), layer by layer; they sum to 1.

    Raises:
        CheckpointError: The file does not hold them.
    """
    # The image itself is the first feature.
    channels = [3, *_CHANNELS["vgg16"]]
    tensors = read_tensors(path)
    shapes = {name: tuple(value.shape) for name, value in tensors.items()}
    expected_shape = (1, sum(channels), 1, 1)
    if shapes != {"alpha": expected_shape, "beta": expected_shape}:
        raise CheckpointError(f"{path} does not hold the weights alpha and beta of DISTS")

    total = tensors["alpha"].sum() + tensors["beta"].sum()
    alpha = torch.split(tensors["alpha"] / total, channels, 1)
    beta = torch.split(tensors["beta"] / total, channels, 1)
    return [*alpha, *beta]


def load_clip_iqa(weights: Path | None, device: torch.device) -> Callable[[Tensor], Tensor]:
    """Build CLIP-IQA: the similarity of an image to "Good photo." against "Bad photo." in CLIP.

    Args:
        weights: Location of the weight files, see `find_weights`.
        device: Device of the network.

    Returns:
        A function that maps one image (1, 3, H, W) in [0, 1] to a score in [0, 1].

    Raises:
        ResourceError: piq, torchvision or a weight file is absent.
        CheckpointError: A weight file does not fit.

    Source: Wang et al., AAAI 2023; ResNet-50 without position embedding, so images keep their size.
    """
    _import_piq("clip-iqa")
    from piq.feature_extractors import clip as networks

    clip_path, tokens_path = find_weights("clip-iqa", WEIGHTS["clip-iqa"], weights)
    try:
        clip: Any = cast(Any, networks).build_model(read_tensors(clip_path))
        clip = clip.float().requires_grad_(False).to(device)
    except (KeyError, RuntimeError, AssertionError, TypeError, ValueError) as error:
        raise CheckpointError(f"{clip_path} does not hold CLIP: {_one_line(error)}") from error

    tokens = list(read_tensors(tokens_path).values())
    if [tuple(prompts.shape) for prompts in tokens] != [(2, clip.context_length)]:
        raise CheckpointError(f"{tokens_path} does not hold the tokens of two prompts")
    # (2, features): of the good and of the bad prompt.
    encodings = clip.encode_text(tokens[0].to(device))
    anchors = functional.normalize(encodings, dim=-1)
    mean = torch.tensor(_CLIP_MEAN, device=device).reshape(1, 3, 1, 1)
    std = torch.tensor(_CLIP_STD, device=device).reshape(1, 3, 1, 1)

    def rate(x: Tensor) -> Tensor:
        encoding = clip.encode_image((x - mean) / std, pos_embedding=False)
        feature = functional.normalize(encoding, dim=-1)
        logits = clip.logit_scale.exp() * feature @ anchors.T
        return logits.softmax(-1)[:, 0]

    return rate


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
