"""FastVSR: a compact online recurrent network for video super-resolution on a CPU.

    lq (B, 1 + lookahead, 3, H, W)        hidden: the previous frame (B, 3, H, W), features (B, C, H, W)
      └ previous, current, next ──conv──┐
        features of the last step ─conv─┴─ act ─ conv, act × depth ─ features ─ conv ─ pixel shuffle ─┐
        current ────────────────────────── bilinear ×s ───────────────────────────────────────────────┴ sr

No alignment: neighbors enter side by side, the hidden features follow motions of a pixel or two by themselves.
The network predicts the detail of luma (s² channels) and adds it to R, G and B alike; color differences come from
the bilinear skip. With `expansion`, every convolution is trained wide and collapses to a plain 3×3 one (SESR).

Source: this project; hidden state as in RLSP (Fuoli et al., ICCVW 2019), collapsible linear blocks as in SESR
(Bhardwaj et al., MLSys 2022), sub-pixel output as in ESPCN (Shi et al., CVPR 2016).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from tubelet.errors import ConfigError
from tubelet.layers.online import Hidden, run_online
from tubelet.models.architecture import Architecture, Contract
from tubelet.models.state_dict import State, count_names, shape_of
from tubelet.types import Temporal

__all__ = ["ARCHITECTURE", "CollapsibleConv", "FastConfig", "FastVSR", "infer_config"]

_OUTPUTS: tuple[tuple[int, Literal["luma", "rgb"]], ...] = ((1, "luma"), (3, "rgb"))


@dataclass(frozen=True, slots=True, kw_only=True)
class FastConfig:
    """Configuration of `FastVSR`."""

    FORMER_NAMES: ClassVar[Mapping[str, str]] = {
        "depth": "num_blocks",
        "recall_px": "recurrent_kernel_px",
    }

    scale: int = 4
    """Upscaling factor: 2, 3 or 4."""
    channels: int = 32
    """Width of the features; multiples of 16 fill the vector units of a CPU."""
    num_blocks: int = 4
    """3×3 convolutions between the head and the output."""
    lookahead: Literal[0, 1] = 1
    """Future frames that the network sees."""
    recurrent: bool = True
    """Carry features from frame to frame."""
    recurrent_kernel_px: Literal[1, 3] = 3
    """Kernel size of the convolution over the recurrent features: 3 can follow small motions, 1
    costs a ninth."""
    output: Literal["luma", "rgb"] = "luma"
    """luma predicts one residual for all three channels; rgb predicts one per channel."""
    expansion: int = 0
    """Width of the collapsible blocks in training, in multiples of `channels`; 0 trains plain
    convolutions."""

    def __post_init__(self) -> None:
        if (
            self.scale not in (2, 3, 4)
            or self.channels < 1
            or self.num_blocks < 0
            or self.expansion < 0
        ):
            raise ConfigError(
                f"{self} is out of range: scale 2, 3 or 4; channels ≥ 1; depth, expansion ≥ 0"
            )
        if (
            self.lookahead not in (0, 1)
            or self.output not in dict(_OUTPUTS).values()
            or self.recurrent_kernel_px not in (1, 3)
        ):
            raise ConfigError(
                f"{self} is out of range: lookahead 0 or 1; output luma or rgb; recurrent_kernel_px 1 or 3"
            )


class CollapsibleConv(nn.Module):
    """A 3×3 convolution trained as 3×3 (wide) then 1×1, plus a skip inside the body (SESR, Fig. 2).

    Both are linear, so their product is computed first and the image is convolved once: training costs hardly more
    than a plain convolution. `collapse()` gives that plain convolution.
    """

    def __init__(self, in_channels: int, out_channels: int, width: int, *, residual: bool) -> None:
        super().__init__()
        self.wide = nn.Parameter(torch.empty(width, in_channels, 3, 3))
        self.narrow = nn.Parameter(torch.empty(out_channels, width))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        nn.init.kaiming_normal_(self.wide)
        nn.init.normal_(self.narrow, std=0.3 * width**-0.5)
        self.residual = residual

    def weight(self) -> Tensor:
        """Collapse: (out, in, 3, 3)."""
        weight = torch.einsum("ow,wikl->oikl", self.narrow, self.wide)
        if self.residual:
            identity = torch.eye(weight.shape[0], device=weight.device, dtype=weight.dtype)
            weight = weight + functional.pad(identity[:, :, None, None], (1, 1, 1, 1))
        return weight

    def forward(self, x: Tensor) -> Tensor:
        """Convolve (B, in, H, W) → (B, out, H, W) with the collapsed weight."""
        return functional.conv2d(x, self.weight(), self.bias, padding=1)

    def collapse(self) -> nn.Conv2d:
        """Make the plain convolution that gives the same result."""
        out_channels, in_channels = self.narrow.shape[0], self.wide.shape[1]
        conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        with torch.no_grad():
            conv.weight.copy_(self.weight())
            conv.bias.copy_(self.bias)  # pyright: ignore[reportOptionalMemberAccess]
        return conv


def _conv(
    in_channels: int, out_channels: int, config: FastConfig, *, residual: bool = False
) -> CollapsibleConv | nn.Conv2d:
    if config.expansion:
        return CollapsibleConv(
            in_channels, out_channels, config.expansion * config.channels, residual=residual
        )
    return nn.Conv2d(in_channels, out_channels, 3, padding=1)


def _recall(config: FastConfig) -> CollapsibleConv | nn.Conv2d:
    c = config.channels
    return nn.Conv2d(c, c, 1) if config.recurrent_kernel_px == 1 else _conv(c, c, config)


class FastVSR(nn.Module):
    """Online recurrent super-resolution; see the drawing on top of this file.

    Args:
        config: shape of the network.
    """

    def __init__(self, config: FastConfig) -> None:
        super().__init__()
        self.config = config
        c, s = config.channels, config.scale
        self.head = _conv(3 * (2 + config.lookahead), c, config)
        self.recall = _recall(config) if config.recurrent else None
        self.body = nn.ModuleList(
            _conv(c, c, config, residual=True) for _ in range(config.num_blocks)
        )
        self.acts = nn.ModuleList(nn.PReLU(c, init=0.1) for _ in range(config.num_blocks + 1))
        self.tail = _conv(c, s * s * (1 if config.output == "luma" else 3), config)
        self.forget()

    def forget(self) -> None:
        """Set the path of the memory to zero, so that training begins with the frame and its neighbors alone."""
        if self.recall is None:
            return
        for name, parameter in self.recall.named_parameters():
            if name != "wide":  # zero behind it is enough, and lets it learn
                nn.init.zeros_(parameter)

    def step(self, lq: Tensor, hidden: Hidden | None) -> tuple[Tensor, Hidden]:
        """Restore one frame.

        Args:
            lq: (B, 1 + lookahead, 3, H, W), the frame and those that follow it.
            hidden: what the last step returned, None at the start of a scene.

        Returns:
            sr (B, 3, sH, sW), and the hidden state for the next step.
        """
        current = lq[:, 0]
        previous = hidden[0] if hidden else current
        x = self.head(torch.cat([previous, *lq.unbind(1)], 1))
        if self.recall is not None and hidden and len(hidden) > 1:
            x = x + self.recall(hidden[1])
        x = self.acts[0](x)
        for conv, act in zip(self.body, list(self.acts)[1:], strict=True):
            x = act(conv(x))
        detail = functional.pixel_shuffle(self.tail(x), self.config.scale)  # (B, 1 or 3, sH, sW)
        skip = functional.interpolate(
            current.contiguous(),
            scale_factor=float(self.config.scale),
            mode="bilinear",
            align_corners=False,
        )
        return skip.add_(detail), (current,) if self.recall is None else (current, x)

    def forward(self, lq: Tensor) -> Tensor:
        """Restore a clip: (B, T, 3, H, W) → (B, T, 3, sH, sW), the same as `step` by `step`."""
        sr, _ = run_online(self.step, lq, lookahead=self.config.lookahead)
        return sr

    def collapse(self) -> FastVSR:
        """Replace, in place, every collapsible block by the convolution that it equals; returns self.

        A memory path that training left at zero is dropped: it would cost time and change nothing.
        """
        self.head, self.tail = _collapsed(self.head), _collapsed(self.tail)
        self.recall = _collapsed(self.recall) if self.recall is not None else None
        if self.recall is not None and not any(
            bool(parameter.any()) for parameter in self.recall.parameters()
        ):
            self.recall = None
        self.body = nn.ModuleList(_collapsed(conv) for conv in self.body)
        self.config = replace(self.config, expansion=0, recurrent=self.recall is not None)
        return self


def infer_config(state: State) -> FastConfig | None:
    """Read the configuration off the names and shapes of a state dict; None where they are not of a `FastVSR`."""
    wide = shape_of(state, "head.wide")
    head = shape_of(state, "head.weight") or wide
    bias = shape_of(state, "head.bias")
    tail = shape_of(state, "tail.bias")
    if len(bias) != 1 or len(tail) != 1 or "acts.0.weight" not in state:
        return None
    shapes: dict[int, tuple[int, Literal["luma", "rgb"]]] = {
        s * s * n: (s, output) for s in (2, 3, 4) for n, output in _OUTPUTS
    }
    if tail[0] not in shapes or len(head) != 4 or head[1] not in (6, 9):
        return None
    scale, output = shapes[tail[0]]
    channels = bias[0]
    return FastConfig(
        scale=scale,
        channels=channels,
        num_blocks=count_names(state, r"body\..*\.bias"),
        lookahead=1 if head[1] == 9 else 0,
        recurrent="recall.bias" in state,
        recurrent_kernel_px=1 if shape_of(state, "recall.weight")[-1:] == (1,) else 3,
        output=output,
        expansion=wide[0] // channels if wide else 0,
    )


def _collapsed(conv: nn.Module) -> nn.Module:
    return conv.collapse() if isinstance(conv, CollapsibleConv) else conv


def _translate(state: State) -> dict[str, Tensor] | None:
    return None if infer_config(state) is None else dict(state)


def _contract(config: FastConfig) -> Contract:
    return Contract(
        scale=config.scale,
        temporal=Temporal("online", lookahead=config.lookahead),
        halo_px=config.num_blocks + 2,  # every convolution reaches a pixel further
        precisions=("fp32", "bf16"),
    )


ARCHITECTURE = Architecture(
    name=FastVSR.__name__,
    config=FastConfig,
    build=FastVSR,
    translate=_translate,
    infer=infer_config,
    contract=_contract,
    source="Tubelet",
)
