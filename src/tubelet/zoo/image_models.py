"""Image models as the frozen first step of two-step networks: found by name, and known again by their tensors.

    notes of a checkpoint: {"image_model": {"model": id or path, "architecture": ..., "sha256": of its tensors}}

A path is looked for from the folder of the checkpoint on, then from the current one; then a file of its name beside the
checkpoint. The first that has these tensors is it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from tubelet.errors import CheckpointError, RequestError, ResourceError
from tubelet.models.two_step import TwoStepConfig, TwoStepRestorer
from tubelet.ops.sizes import round_up
from tubelet.tensor_files import read_header
from tubelet.zoo.catalog import checkpoint_spec, create_model, find_model, is_checkpoint
from tubelet.zoo.spec import ModelSpec

__all__ = ["ImageModel", "attach_image_model", "hash_tensors", "open_image_model"]

_PUBLISHED_WITH = "hat-x2"
"""What the authors ran: HAT ×2, trained on ImageNet first."""


@dataclass(frozen=True, slots=True)
class ImageModel:
    """A network of single frames with its weights, frozen.

    Attributes:
        name: id in the zoo, or the path as it was given.
        spec: how to run it.
        network: in evaluation mode, without gradients, float32.
        sha256: of its tensors; see `hash_tensors`.
    """

    name: str
    spec: ModelSpec
    network: nn.Module
    sha256: str

    @property
    def identity(self) -> dict[str, str]:
        """What a checkpoint of the second step keeps of the first."""
        return {"model": self.name, "architecture": self.spec.architecture, "sha256": self.sha256}

    @property
    def fingerprint(self) -> str:
        """Sha256 of all that its results depend on, wherever its file lies."""
        known = "" if is_checkpoint(self.name) else self.name  # bicubic and lanczos have no tensors
        shape = repr(getattr(self.network, "config", None))
        return hashlib.sha256(f"{self.spec.architecture} {known} {shape} {self.sha256}".encode()).hexdigest()

    def identify_from(self, folder: Path) -> dict[str, str]:
        """Return the identity with a path as it is seen from a folder: both can then be moved together."""
        if not is_checkpoint(self.name):
            return self.identity
        try:
            path = os.path.relpath(Path(self.name).resolve(), folder.resolve())
        except ValueError:  # on another drive
            path = str(Path(self.name).resolve())
        return self.identity | {"model": Path(path).as_posix()}

    @torch.inference_mode()
    def enlarge(self, lq: Tensor) -> Tensor:
        """Enlarge pictures of any size, each by itself: (B, 3, H, W) → (B, 3, sH, sW), clipped to [0, 1]."""
        height, width = lq.shape[-2:]
        scale, multiple, least = self.spec.scale, self.spec.contract.size_multiple, self.spec.contract.min_size_px
        down = round_up(max(height, least), multiple) - height
        across = round_up(max(width, least), multiple) - width
        padded = functional.pad(lq, (0, across, 0, down), mode="replicate") if down or across else lq
        return self.network(padded[:, None])[:, 0, :, : scale * height, : scale * width].clamp(0, 1)


def hash_tensors(network: nn.Module) -> str:
    """Compute the sha256 of names, shapes, formats and numbers of a state dict, in the order of the names."""
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def open_image_model(name: str, scale: int) -> ImageModel:
    """Open a model that can be the first step of a two-step network.

    Args:
        name: id of the zoo, a name that stands for one model per scale ("bicubic"), or path of a checkpoint.
        scale: that it must have.

    Raises:
        RequestError: no model has this name, or it is not one of single frames, or has another scale.
        CheckpointError: the file is missing, damaged, or of no known architecture.
        ResourceError: published weights cannot be fetched.
    """
    network = None
    if is_checkpoint(name):
        spec, network = checkpoint_spec(name, steps="own")
    else:
        spec = find_model(name, factor=scale)
        name = spec.id
    if spec.temporal.kind != "frame":
        raise RequestError(
            f"{name} cannot be an image model: {spec.architecture} is of the kind {spec.temporal.kind}; "
            "take one of the kind frame, as `tubelet models` calls those that see one frame"
        )
    if spec.scale != scale:
        raise RequestError(f"{name} cannot be this image model: it enlarges ×{spec.scale}, and ×{scale} is needed")
    network = (network or create_model(name)).requires_grad_(requires_grad=False)
    return ImageModel(name, spec, network, hash_tensors(network))


def attach_image_model(restorer: TwoStepRestorer, path: Path, spec: ModelSpec) -> ModelSpec:
    """Give a two-step network the image model that its checkpoint names.

    Args:
        restorer: the network.
        path: of its checkpoint.
        spec: how the second step alone is run.

    Returns:
        how both steps are run: what the image model sees and asks for is added.

    Raises:
        CheckpointError: no image model is named, it is missing, cannot be one, or has other weights.
        ResourceError: it cannot be fetched.
    """
    name, sha256 = _named(restorer.config, path)
    try:
        image = _open_named(name, sha256, restorer.config.scale, path)
    except (RequestError, CheckpointError) as error:
        raise CheckpointError(f"{path} needs the image model {name}, and {error}") from error
    except ResourceError as error:
        raise ResourceError(f"{path} needs the image model {name}, and {error}") from error
    if sha256 and image.sha256 != sha256:
        raise CheckpointError(
            f"{path} was trained over other weights than those of {image.name}: its tensors have sha256 "
            f"{image.sha256[:12]}…, and {sha256[:12]}… is expected; put those weights there"
        )
    restorer.with_image_model(image.network)
    own, base = spec.contract, image.spec.contract
    contract = dataclasses.replace(
        own,
        halo_px=own.halo_px + base.halo_px,
        size_multiple=math.lcm(own.size_multiple, base.size_multiple),
        min_size_px=max(own.min_size_px, base.min_size_px),
    )
    return dataclasses.replace(spec, summary=f"{spec.summary}, over {name}", contract=contract)


def _named(config: TwoStepConfig, path: Path) -> tuple[str, str]:
    """Read which image model a checkpoint names, and the sha256 of its tensors, "" where it is not known."""
    try:
        notes: Any = json.loads(read_header(path).get("notes", "{}"))
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{path} has a damaged header: {error}") from error
    note: Any = cast(dict[str, Any], notes).get("image_model") if isinstance(notes, dict) else None
    if isinstance(note, dict):
        entries = cast(dict[str, Any], note)
        name, sha256 = entries.get("model"), entries.get("sha256", "")
        if isinstance(name, str) and name and isinstance(sha256, str):
            return name, sha256
    if config.variant == "published":
        return _PUBLISHED_WITH, ""
    raise CheckpointError(
        f"{path} does not name the image model that it was trained over, as `tubelet train two-step` writes it; "
        "in Python, give it one: load_model(path).with_image_model(create_model(ID))"
    )


def _open_named(name: str, sha256: str, scale: int, checkpoint: Path) -> ImageModel:
    """Open the image model that a checkpoint names; of several files, the one with these tensors, or else the first."""
    if not is_checkpoint(name):
        return open_image_model(name, scale)
    places = dict.fromkeys((checkpoint.parent / name, Path(name), checkpoint.parent / Path(name).name))
    places = [place for place in places if not (place.is_file() and place.samefile(checkpoint))]
    files = [place for place in places if place.is_file()]
    if not files:
        raise CheckpointError(f"it is not at {' or '.join(map(str, places))}; put it there")
    opened: list[ImageModel] = []
    failed: list[RequestError | CheckpointError] = []
    for file in files:
        try:
            opened.append(open_image_model(str(file), scale))
        except (RequestError, CheckpointError) as error:
            failed.append(error)
        else:
            if opened[-1].sha256 == sha256:
                return opened[-1]
    if not opened:
        raise failed[0]
    return opened[0]
