"""Adapters: small trainable layers beside the layers of a frozen network.

    Adapter            up(GELU(down a))                         linear, for tokens of a transformer
    ConvAdapter        f + up(ReLU(down f))                     1×1 convolutions
    NeighborAdapter    f + up(ReLU(down [warp(f_{t−1}), f_t, warp(f_{t+1})]))

`down` maps C channels to a few, `up` maps them back. `up` starts at zero, so that an adapted
network begins as the frozen one, to the bit: x + 0 is x.

Source: Yang et al. (AIM), Adapting Image Models for Efficient Video Action Recognition, ICLR 2023,
Sec. 3.2; PFVSR, Sec. 3.2 and A.7.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from tubelet.ops.warp import backward_warp

__all__ = ["Adapter", "ConvAdapter", "NeighborAdapter"]


class Adapter(nn.Module):
    """Linear layer to `width` channels, GELU, linear layer back; zero before training.

    Args:
        channels: Number of channels of a token, C.
        width: Number of channels between the layers.
    """

    def __init__(
        self,
        channels: int,
        width: int,
    ) -> None:
        super().__init__()
        self.down = nn.Linear(channels, width)
        self.up = nn.Linear(width, channels)
        _zero(self.up)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map (..., C) to the same shape."""
        return self.up(functional.gelu(self.down(tokens)))


class ConvAdapter(nn.Module):
    """Adds two 1×1 convolutions with a ReLU between to features; the identity before training.

    Args:
        channels: Number of channels of the features, C.
        width: Number of channels between the layers.
    """

    def __init__(
        self,
        channels: int,
        width: int,
    ) -> None:
        super().__init__()
        self.down = nn.Conv2d(channels, width, 1)
        self.up = nn.Conv2d(width, channels, 1)
        _zero(self.up)

    def forward(self, features: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        return features + self.up(functional.relu(self.down(features)))


class NeighborAdapter(nn.Module):
    """Adds what two convolutions find in a frame and its warped neighbors to its features.

    Args:
        channels: Number of channels of the features, C.
        width: Number of channels between the layers.
    """

    def __init__(
        self,
        channels: int,
        width: int,
    ) -> None:
        super().__init__()
        self.down = nn.Conv2d(3 * channels, width, 1)
        self.up = nn.Conv2d(width, channels, 1)
        _zero(self.up)

    def forward(
        self,
        features: Tensor,
        flows_backward: Tensor | None,
        flows_forward: Tensor | None,
    ) -> Tensor:
        """Adapt the features of a clip.

        Args:
            features: (B, T, C, H, W).
            flows_backward: Flow from each frame but the first to the one before it,
                (B, T − 1, 2, H, W), pixels of the features; None for a clip of one frame.
            flows_forward: Flow from each frame but the last to the one after it, likewise.

        Returns:
            (B, T, C, H, W).
        """
        # Frame by frame, so that only three of them are in the wide layer at a time.
        frames = features.unbind(1)
        adapted: list[Tensor] = []
        for t, frame in enumerate(frames):
            # Beyond the ends of the clip stands the frame itself.
            previous = following = frame
            if t > 0 and flows_backward is not None:
                previous = backward_warp(frames[t - 1], flows_backward[:, t - 1])
            if t + 1 < len(frames) and flows_forward is not None:
                following = backward_warp(frames[t + 1], flows_forward[:, t])
            # What moved lies at the same place in all three.
            x = self.down(torch.cat([previous, frame, following], 1))
            adapted.append(frame + self.up(functional.relu(x)))
        return torch.stack(adapted, 1)


def _zero(layer: nn.Linear | nn.Conv2d) -> None:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
