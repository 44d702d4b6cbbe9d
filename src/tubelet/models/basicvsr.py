"""BasicVSR: bidirectional propagation with features aligned by optical flow.

    lq (B, T, 3, H, W)
      t = T … 1   back(t)  = trunk [lq(t), warp(back(t+1), flow t→t+1)]        (B, C, H, W)
      t = 1 … T   front(t) = trunk [lq(t), warp(front(t-1), flow t→t-1)]       (B, C, H, W)
                  fuse [back(t), front(t)] ── conv, shuffle ×2 ── conv, shuffle ×2 ── conv ── conv ──(+)── sr(t)
                  lq(t) ────────────────────────────── bilinear ×4 ───────────────────────────────────┘
    sr (B, T, 3, 4H, 4W)

Source: Chan et al., "BasicVSR: The Search for Essential Components in Video Super-Resolution and Beyond", CVPR 2021,
Sec. 3. Published: 64 channels, 30 blocks a direction (6.3 M parameters) for REDS and for Vimeo-90K.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from tubelet.errors import ConfigError
from tubelet.layers.frames import stack_frames
from tubelet.layers.residual import ResidualTrunk
from tubelet.layers.spynet import SpyNet, rename_spynet
from tubelet.layers.store import FeatureStore
from tubelet.layers.upsampling import enlarge, shuffle_x4
from tubelet.models.architecture import Architecture, Contract, State
from tubelet.ops.warp import backward_warp
from tubelet.types import Temporal

__all__ = ["ARCHITECTURE", "BasicVSR", "BasicVSRConfig"]

_SCALE = 4
_HR_CHANNELS = 64  # of the last convolutions, whatever the width of the trunks


@dataclass(frozen=True, slots=True, kw_only=True)
class BasicVSRConfig:
    """Shape of a `BasicVSR`."""

    channels: int = 64
    """Width of the propagated features."""
    num_blocks: int = 30
    """Residual blocks of each direction."""

    def __post_init__(self) -> None:
        if self.channels < 1 or self.num_blocks < 0:
            raise ConfigError(f"{self} is out of range: channels ≥ 1, num_blocks ≥ 0")


class BasicVSR(nn.Module):
    """Bidirectional recurrent super-resolution ×4; see the drawing on top of this file.

    Args:
        config: shape of the network.
    """

    def __init__(self, config: BasicVSRConfig) -> None:
        super().__init__()
        self.config = config
        c = config.channels
        self.spynet = SpyNet()
        self.backward_trunk = ResidualTrunk(3 + c, c, config.num_blocks)
        self.forward_trunk = ResidualTrunk(3 + c, c, config.num_blocks)
        self.fusion = nn.Conv2d(2 * c, c, 1)
        self.upconv1 = nn.Conv2d(c, 4 * c, 3, padding=1)
        self.upconv2 = nn.Conv2d(c, 4 * _HR_CHANNELS, 3, padding=1)
        self.conv_hr = nn.Conv2d(_HR_CHANNELS, _HR_CHANNELS, 3, padding=1)
        self.conv_last = nn.Conv2d(_HR_CHANNELS, 3, 3, padding=1)

    def forward(self, lq: Tensor) -> Tensor:
        """Restore a clip: (B, T, 3, H, W) → (B, T, 3, 4H, 4W)."""
        return stack_frames(self.restore(lq), lq.shape[1])

    def restore(self, lq: Tensor) -> Iterator[Tensor]:
        """Restore a clip as `forward` does, and yield each frame as it is done.

        What is kept of the clip are the features of one direction, in a `FeatureStore`; every flow is used where it is
        computed, and the features of a frame are freed with the frame.

        Args:
            lq: (B, T, 3, H, W).

        Yields:
            (B, 3, 4H, 4W), from the first frame to the last.
        """
        frames = lq.unbind(1)
        with FeatureStore() as back:
            feat: Tensor | None = None
            for t in reversed(range(len(frames))):
                feat = self._propagate(self.backward_trunk, frames, t, t + 1, feat)
                back.append(t, feat)
            feat = None
            for t, frame in enumerate(frames):
                feat = self._propagate(self.forward_trunk, frames, t, t - 1, feat)
                x = functional.leaky_relu_(self.fusion(torch.cat([*back.pop(t), feat], 1)), 0.1)
                base = enlarge(frame, _SCALE)
                yield shuffle_x4(x, base, (self.upconv1, self.upconv2, self.conv_hr, self.conv_last))

    def _propagate(
        self, trunk: ResidualTrunk, frames: tuple[Tensor, ...], t: int, before: int, feat: Tensor | None
    ) -> Tensor:
        """Carry the features of frame `before` to frame `t`: (B, C, H, W), None at the start (Eqs. 2 to 5)."""
        frame = frames[t]
        if feat is None:
            batch, _, height, width = frame.shape
            aligned = frame.new_zeros(batch, self.config.channels, height, width)
        else:
            aligned = backward_warp(feat, self.spynet(frame, frames[before]))
        return trunk(torch.cat([frame, aligned], 1))


_MMAGIC = (
    ("backward_resblocks.", "backward_trunk."),
    ("forward_resblocks.", "forward_trunk."),
    ("upsample1.upsample_conv.", "upconv1."),
    ("upsample2.upsample_conv.", "upconv2."),
)
_PARTS = ("spynet", "backward_trunk", "forward_trunk", "fusion", "upconv1", "upconv2", "conv_hr", "conv_last")


def _translate(state: State) -> dict[str, Tensor] | None:
    """Map the names of BasicSR (which are ours) and of MMagic; None where they are of another network."""
    renamed = rename_spynet(state)
    for theirs, ours in _MMAGIC:
        renamed = {
            ours + name.removeprefix(theirs) if name.startswith(theirs) else name: value
            for name, value in renamed.items()
        }
    if {name.split(".", 1)[0] for name in renamed} != set(_PARTS):
        return None  # foreign, or more than a BasicVSR
    head = renamed.get("backward_trunk.main.0.weight")
    return renamed if head is not None and head.ndim == 4 else None


def _infer(state: State) -> BasicVSRConfig:
    blocks = [name for name in state if name.startswith("backward_trunk.") and name.endswith(".conv1.weight")]
    return BasicVSRConfig(channels=state["backward_trunk.main.0.weight"].shape[0], num_blocks=len(blocks))


def _contract(config: BasicVSRConfig) -> Contract:
    del config  # every configuration asks for the same
    return Contract(scale=_SCALE, temporal=Temporal("clip"), halo_px=32, streams=True)


ARCHITECTURE = Architecture(
    name="BasicVSR",
    config=BasicVSRConfig,
    build=BasicVSR,
    translate=_translate,
    infer=_infer,
    contract=_contract,
    derived=("spynet.mean", "spynet.std"),
    source="https://arxiv.org/abs/2012.02181",
)
