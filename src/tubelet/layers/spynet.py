"""SpyNet: optical flow from coarse to fine, with one small network per pyramid level.

    ref, supp (B, 3, H, W) ── resize up to multiples of 32, normalize, halve 5 times
      level 0 (1/32)       [ref, supp, 0] ──────────── 5 convolutions ── flow
      level l (1/16 … 1)   flow = 2 · up(flow)
                           [ref, warp(supp, flow), flow] ── 5 convolutions ──(+ flow)── flow
    resize back, in pixels of the input ── flow (B, 2, H, W)

Warping `supp` with the flow gives `ref`.

Source: Ranjan and Black, CVPR 2017, Sec. 3 and Fig. 1; sizes, padding and normalization as in the
PyTorch networks that the published recurrent models were trained with.
"""

from __future__ import annotations

import hashlib
import json
from itertools import pairwise
from pathlib import Path

import torch
from safetensors.torch import load
from torch import Tensor, nn
from torch.nn import functional

from tubelet.errors import CheckpointError
from tubelet.ops.sizes import round_up
from tubelet.ops.warp import backward_warp

__all__ = ["SpyNet", "load_spynet"]

_LEVELS = 6
_MULTIPLE = 2 ** (_LEVELS - 1)
# Sec. 3.2: channels from the input (ref, warped supp and flow) to the output (flow).
_WIDTHS = (8, 32, 64, 32, 16, 2)
# Of ImageNet, R, G, B.
_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)
_WEIGHTS = Path(__file__).parents[1] / "weights"


class _Level(nn.Module):
    """The network of one level: (B, 8, h, w) → the residual of the flow (B, 2, h, w)."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for in_channels, out_channels in pairwise(_WIDTHS):
            layers.append(nn.Conv2d(in_channels, out_channels, 7, padding=3))
            layers.append(nn.ReLU(inplace=True))
        # Flow can be negative: no activation at the end.
        self.basic_module = nn.Sequential(*layers[:-1])

    def forward(self, x: Tensor) -> Tensor:
        return self.basic_module(x)


class SpyNet(nn.Module):
    """Network that estimates optical flow; see the drawing on top of this file."""

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.basic_module = nn.ModuleList(_Level() for _ in range(_LEVELS))
        self.register_buffer("mean", torch.tensor(_MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(_STD).view(1, 3, 1, 1))

    def forward(self, ref: Tensor, supp: Tensor) -> Tensor:
        """Estimate the displacement of each pixel of `ref` to its position in `supp`.

        Args:
            ref: (B, 3, H, W), RGB in [0, 1].
            supp: (B, 3, H, W), the other frame.

        Returns:
            (B, 2, H, W), pixels, dx then dy.
        """
        return self.by_scale(ref, supp, num_scales=1)[0]

    def by_scale(self, ref: Tensor, supp: Tensor, *, num_scales: int) -> list[Tensor]:
        """Estimate flow as `forward` does, and return the results of the finest levels.

        Args:
            ref: (B, 3, H, W), RGB in [0, 1].
            supp: (B, 3, H, W), the other frame.
            num_scales: Number of results, up to 6.

        Returns:
            Flow at full size, a half, a quarter, …: (B, 2, H, W), (B, 2, H // 2, W // 2), …, each
            in pixels of its size.
        """
        height, width = ref.shape[-2:]
        # Published weights expect the frame stretched, not padded.
        size = (round_up(height, _MULTIPLE), round_up(width, _MULTIPLE))
        refs = self._pyramid(ref, _LEVELS, size)
        supps = self._pyramid(supp, _LEVELS, size)
        finest_first = self._estimate(refs, supps)[::-1]
        flows: list[Tensor] = []
        for i, flow in enumerate(finest_first[:num_scales]):
            flows.append(_resize_flow(flow, (height // 2**i, width // 2**i)))
        return flows

    def levels(self, ref: Tensor, supp: Tensor, levels: int = _LEVELS) -> list[Tensor]:
        """Estimate flow with the coarsest networks only and return all their results, for training.

        Args:
            ref: (B, 3, H, W), RGB in [0, 1]; both sides are multiples of 2 ** (levels - 1).
            supp: (B, 3, H, W), the other frame.
            levels: Number of networks to run; the frames are the input of the finest of them.

        Returns:
            Flow after each network, coarsest first, in pixels of its level:
            (B, 2, H / 2 ** (levels - 1), ...) to (B, 2, H, W).
        """
        size = (ref.shape[-2], ref.shape[-1])
        refs = self._pyramid(ref, levels, size)
        supps = self._pyramid(supp, levels, size)
        return self._estimate(refs, supps)

    def _pyramid(self, frame: Tensor, levels: int, size: tuple[int, int]) -> list[Tensor]:
        """Normalize a frame and halve it: coarsest first."""
        if frame.shape[-2:] != size:
            frame = functional.interpolate(frame, size, mode="bilinear", align_corners=False)
        pyramid = [(frame - self.mean) / self.std]
        for _ in range(levels - 1):
            pyramid.append(functional.avg_pool2d(pyramid[-1], 2))
        return pyramid[::-1]

    def _estimate(self, refs: list[Tensor], supps: list[Tensor]) -> list[Tensor]:
        """Estimate the flow of every level of two pyramids, coarsest first."""
        flows: list[Tensor] = []
        for level, ref, supp in zip(self.basic_module, refs, supps, strict=False):
            if not flows:
                # The coarsest level starts from a flow of zero, which moves nothing.
                zero_flow = torch.zeros_like(ref[:, :2])
                residual = level(torch.cat([ref, supp, zero_flow], 1))
                flows.append(residual.to(ref.dtype))
                continue

            flow = 2 * functional.interpolate(
                flows[-1],
                scale_factor=2.0,
                mode="bilinear",
                align_corners=True,
            )
            warped = backward_warp(supp, flow, padding="border")
            residual = level(torch.cat([ref, warped, flow], 1))
            # Eq. 6; under autocast the sum keeps full precision, which the flow in pixels needs.
            flows.append(flow + residual.to(ref.dtype))
        return flows


def _resize_flow(flow: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize flow (B, 2, h, w) to another size, and convert it to pixels of that size."""
    height, width = flow.shape[-2:]
    if size == (height, width):
        return flow
    resized = functional.interpolate(flow, size, mode="bilinear", align_corners=False)
    unit = flow.new_tensor([size[1] / width, size[0] / height])
    return resized * unit.view(1, 2, 1, 1)


def load_spynet(network: nn.Module, *, folder: Path = _WEIGHTS) -> int:
    """Load the weights that are shipped with Tubelet into every SpyNet of a network.

    Published checkpoints of flow-based models contain the flow network that they were trained with;
    training from scratch begins with this one.

    Args:
        network: A SpyNet, or a network that contains some.
        folder: Folder of the weights and their hashes; default: that of the package.

    Returns:
        The number of SpyNets; 0 leaves the network unchanged.

    Raises:
        CheckpointError: The file is missing or damaged.
    """
    spynets = [module for module in network.modules() if isinstance(module, SpyNet)]
    if spynets:
        weights = _read_embedded(folder)
        for spynet in spynets:
            # The file has the parameters; the buffers are those of the network.
            spynet.load_state_dict({**spynet.state_dict(), **weights})
    return len(spynets)


def _read_embedded(folder: Path) -> dict[str, Tensor]:
    """Read the weights of SpyNet from a folder, after checking their hash."""
    index = json.loads((folder / "parts.json").read_text(encoding="utf-8"))
    path = folder / "spynet.safetensors"
    data = path.read_bytes() if path.is_file() else b""
    if hashlib.sha256(data).hexdigest() != index["spynet"]["sha256"]:
        raise CheckpointError(
            f"weight file {path} is missing or damaged; install the package again"
        )
    return load(data)
