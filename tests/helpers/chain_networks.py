"""Networks of the PSRT family as small as they go, with weights by which every part matters."""

from typing import Any

import torch
from torch import Tensor, nn

from tubelet.models.architecture import Architecture

TINY: dict[str, Any] = {
    "channels": 8,
    "depths": (2, 1),
    "num_heads": (2, 4),
    "window": 4,
    "mid_channels": 4,
    "hr_channels": 6,
}


class SmallFlow(nn.Module):
    """Stands in for SpyNet, which would take most of the time: flows of some pixels, by one convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(6, 2, 3, padding=1)
        nn.init.normal_(self.conv.weight, std=2.0)
        self.calls = 0

    def forward(self, ref: Tensor, supp: Tensor) -> Tensor:
        self.calls += 1
        return self.conv(torch.cat([ref, supp], 1))


def small_network(architecture: Architecture, **changes: Any) -> nn.Module:
    """Build a network in float64 and evaluation mode.

    Args:
        architecture: of the family.
        changes: of `TINY`.
    """
    torch.manual_seed(0)
    network = architecture.build(architecture.config(**TINY, **changes))
    for parameter in network.parameters():
        # Linear layers start near zero, so that attention would hardly matter.
        if parameter.ndim == 2:
            nn.init.normal_(parameter, std=0.3)
    network.spynet = SmallFlow()
    return network.double().eval()


def small_clip(*, batch: int = 2, frames: int = 5, size: tuple[int, int] = (7, 10)) -> Tensor:
    """(B, T, 3, H, W)."""
    generator = torch.Generator().manual_seed(1)
    return torch.rand(batch, frames, 3, *size, generator=generator, dtype=torch.float64)
