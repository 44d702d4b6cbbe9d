"""FastVSR: a compact online recurrent network for video super-resolution on a CPU.

    lq (B, 1 + lookahead, 3, H, W)        hidden: the previous frame (B, 3, H, W) and the features
                                          of the previous step (B, C, H, W)
      previous, current, next ── head ──┐
      features of the previous step ────┴(+)─ act ─ (conv ─ act) × num_blocks ─ features
                            recall                            └ tail ─ pixel shuffle ─┐
      current ───────────────── bilinear ×s ──────────────────────────────────────────┴(+) sr

There is no alignment: neighbors are concatenated, and the recurrent features can follow motions of
a pixel or two. The network predicts the detail of luma (s² channels) and adds it equally to R, G
and B; color differences are those of the bilinear skip. With `expansion`, each convolution is wide
during training and collapses to a plain 3×3 convolution (SESR).

Source: this project; hidden state as in RLSP (Fuoli et al., ICCVW 2019), collapsible linear blocks
as in SESR (Bhardwaj et al., MLSys 2022), sub-pixel output as in ESPCN (Shi et al., CVPR 2016).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from tubelet.layers.convolution import ConvAdd
from tubelet.layers.online import Hidden, run_online
from tubelet.layers.upsampling import enlarge, shuffle_to_image
from tubelet.models.architecture import Architecture, Contract
from tubelet.models.config_checks import check_choice, check_min
from tubelet.models.state_dict import State, count_names, shape_of
from tubelet.types import Temporal

__all__ = ["ARCHITECTURE", "CollapsibleConv", "FastConfig", "FastVSR", "infer_config"]

Output = Literal["luma", "rgb"]

_SCALES = (2, 3, 4)
_OUTPUT_CHANNELS: dict[Output, Literal[1, 3]] = {"luma": 1, "rgb": 3}


@dataclass(frozen=True, slots=True, kw_only=True)
class FastConfig:
    """Configuration of a `FastVSR`."""

    FORMER_NAMES: ClassVar[Mapping[str, str]] = {
        "depth": "num_blocks",
        "recall_px": "recurrent_kernel_px",
    }

    scale: int = 4
    """Upscaling factor: 2, 3 or 4."""
    channels: int = 32
    """Width of the features; multiples of 16 fill the vector units of a CPU."""
    num_blocks: int = 4
    """Number of 3×3 convolutions between the head and the tail."""
    lookahead: Literal[0, 1] = 1
    """Future frames that the network sees."""
    recurrent: bool = True
    """Carry features from frame to frame."""
    recurrent_kernel_px: Literal[1, 3] = 3
    """Kernel size of the convolution over the recurrent features: 3 can follow small motions, 1
    costs a ninth."""
    output: Output = "luma"
    """luma predicts one residual for all three channels; rgb predicts one per channel."""
    expansion: int = 0
    """Width of the collapsible blocks in training, in multiples of `channels`; 0 trains plain
    convolutions."""

    def __post_init__(self) -> None:
        check_choice(self, "scale", _SCALES)
        check_min(self, "channels", 1)
        check_min(self, "num_blocks", 0)
        check_choice(self, "lookahead", (0, 1))
        check_choice(self, "recurrent_kernel_px", (1, 3))
        check_choice(self, "output", _OUTPUT_CHANNELS)
        check_min(self, "expansion", 0)


class CollapsibleConv(nn.Module):
    """3×3 convolution trained as a wide 3×3 and a 1×1 convolution plus a skip (SESR, Fig. 2).

    Both are linear, so the weight of the equivalent convolution is computed first and applied to
    the image once: training costs hardly more than a plain convolution. `collapse()` returns that
    plain convolution.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        width: Channels between the two convolutions.
        residual: Add the input to the output; both must have the same number of channels.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        width: int,
        *,
        residual: bool,
    ) -> None:
        super().__init__()
        self.wide = nn.Parameter(torch.empty(width, in_channels, 3, 3))
        self.narrow = nn.Parameter(torch.empty(out_channels, width))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        nn.init.kaiming_normal_(self.wide)
        nn.init.normal_(self.narrow, std=0.3 * width**-0.5)
        self.residual = residual

    def weight(self) -> Tensor:
        """Return the weight of the equivalent convolution, (out, in, 3, 3)."""
        weight = torch.einsum("ow,wikl->oikl", self.narrow, self.wide)
        if not self.residual:
            return weight
        # The skip is a 3×3 convolution, too: one in the middle of each channel's own kernel.
        identity = torch.eye(
            weight.shape[0],
            device=weight.device,
            dtype=weight.dtype,
        )
        kernel = identity[:, :, None, None]
        return weight + functional.pad(kernel, (1, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in, H, W) to (B, out, H, W)."""
        return functional.conv2d(x, self.weight(), self.bias, padding=1)

    def collapse(self) -> nn.Conv2d:
        """Return the equivalent plain convolution."""
        in_channels = self.wide.shape[1]
        out_channels = self.narrow.shape[0]
        conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        with torch.no_grad():
            conv.weight.copy_(self.weight())
            conv.bias.copy_(self.bias)  # pyright: ignore[reportOptionalMemberAccess]
        return conv


def _conv(
    in_channels: int,
    out_channels: int,
    config: FastConfig,
    *,
    residual: bool = False,
) -> CollapsibleConv | nn.Conv2d:
    """Build a 3×3 convolution, collapsible if the configuration has an expansion."""
    if config.expansion == 0:
        return nn.Conv2d(in_channels, out_channels, 3, padding=1)
    width = config.expansion * config.channels
    return CollapsibleConv(in_channels, out_channels, width, residual=residual)


def _recurrent_conv(config: FastConfig) -> CollapsibleConv | ConvAdd:
    c = config.channels
    kernel_px = config.recurrent_kernel_px
    if config.expansion and kernel_px == 3:
        return CollapsibleConv(c, c, config.expansion * c, residual=False)
    return ConvAdd(c, c, kernel_px)


class FastVSR(nn.Module):
    """Online recurrent network of plain convolutions; see the drawing at the top of this file.

    Args:
        config: Configuration of the network.
    """

    def __init__(self, config: FastConfig) -> None:
        super().__init__()
        self.config = config
        c = config.channels
        in_channels = 3 * (2 + config.lookahead)
        out_channels = config.scale**2 * _OUTPUT_CHANNELS[config.output]
        self.head = _conv(in_channels, c, config)
        # The recurrent convolution; checkpoints have this name.
        self.recall = _recurrent_conv(config) if config.recurrent else None
        self.body = nn.ModuleList()
        for _ in range(config.num_blocks):
            self.body.append(_conv(c, c, config, residual=True))
        self.acts = nn.ModuleList()
        for _ in range(config.num_blocks + 1):
            self.acts.append(nn.PReLU(c, init=0.1))
        self.tail = _conv(c, out_channels, config)
        self.zero_recurrent_path()

    def zero_recurrent_path(self) -> None:
        """Set the recurrent convolution to zero, so that at first only the frames matter."""
        if self.recall is None:
            return
        for name, parameter in self.recall.named_parameters():
            # A zero `narrow` after `wide` is enough. With both at zero, neither would learn.
            if name != "wide":
                nn.init.zeros_(parameter)

    def step(
        self,
        lq: Tensor,
        hidden: Hidden | None,
    ) -> tuple[Tensor, Hidden]:
        """Upscale one frame.

        Args:
            lq: Current frame and the frames after it, (B, 1 + lookahead, 3, H, W).
            hidden: Hidden state that the previous step returned; None at the start of a scene.

        Returns:
            sr (B, 3, sH, sW), and the hidden state for the next step.
        """
        features, hidden = self.step_features(lq, hidden)
        sr = enlarge(lq[:, 0], self.config.scale) + self.detail(features)
        return sr, hidden

    def step_features(
        self,
        lq: Tensor,
        hidden: Hidden | None,
    ) -> tuple[Tensor, Hidden]:
        """Compute the features from which `detail` computes what `step` adds to the frame.

        Args:
            lq: See `step`.
            hidden: See `step`.

        Returns:
            Features, (B, C, H, W), and the hidden state for the next step.
        """
        current = lq[:, 0]
        previous = hidden[0] if hidden else current
        x = torch.cat([previous, *lq.unbind(1)], 1)
        x = self.head(x)
        if self.recall is not None and hidden and len(hidden) > 1:
            x = self._add_recurrent(x, hidden[1])
        first_act, *acts = self.acts
        x = first_act(x)
        for conv, act in zip(self.body, acts, strict=True):
            x = act(conv(x))
        if self.recall is None:
            return x, (current,)
        return x, (current, x)

    def _add_recurrent(self, x: Tensor, features: Tensor) -> Tensor:
        """Add the convolution of the previous step's features."""
        if isinstance(self.recall, ConvAdd):
            return self.recall(features, x)
        assert self.recall is not None
        return x + self.recall(features)

    def detail(self, features: Tensor) -> Tensor:
        """Compute what `step` adds to the enlarged frame.

        Args:
            features: (B, C, H, W).

        Returns:
            Detail of the luma, (B, 1, sH, sW), or of the three channels, (B, 3, sH, sW).
        """
        return shuffle_to_image(self.tail(features), self.config.scale)

    def forward(self, lq: Tensor) -> Tensor:
        """Upscale a clip, (B, T, 3, H, W) → (B, T, 3, sH, sW), with the results of `step`."""
        sr, _ = run_online(self.step, lq, lookahead=self.config.lookahead)
        return sr

    def collapse(self) -> FastVSR:
        """Replace each collapsible convolution, in place, by the equivalent plain one.

        A recurrent convolution that is still zero after training is dropped: it would cost time
        without an effect.

        Returns:
            The network itself.
        """
        self.head = _collapsed(self.head)
        self.tail = _collapsed(self.tail)
        if isinstance(self.recall, CollapsibleConv):
            plain = self.recall.collapse()
            self.recall = ConvAdd(self.config.channels, self.config.channels)
            self.recall.load_state_dict(plain.state_dict())
        if self.recall is not None and not any(bool(p.any()) for p in self.recall.parameters()):
            self.recall = None
        self.body = nn.ModuleList(map(_collapsed, self.body))
        self.config = replace(
            self.config,
            expansion=0,
            recurrent=self.recall is not None,
        )
        return self


def _collapsed(conv: nn.Module) -> nn.Module:
    return conv.collapse() if isinstance(conv, CollapsibleConv) else conv


def infer_config(state: State) -> FastConfig | None:
    """Infer the configuration from a state dict; None if it belongs to another network."""
    wide = shape_of(state, "head.wide")
    head = shape_of(state, "head.weight") or wide
    head_bias = shape_of(state, "head.bias")
    tail_bias = shape_of(state, "tail.bias")
    if "acts.0.weight" not in state:
        return None
    if len(head_bias) != 1 or len(tail_bias) != 1:
        return None
    # Previous and current frame, and the next one with a lookahead.
    if len(head) != 4 or head[1] not in (6, 9):
        return None
    output = _infer_output(tail_bias[0])
    if output is None:
        return None
    channels = head_bias[0]
    recurrent_kernel_px = shape_of(state, "recall.weight")[-1:]
    return FastConfig(
        scale=output[0],
        channels=channels,
        num_blocks=count_names(state, r"body\..*\.bias"),
        lookahead=1 if head[1] == 9 else 0,
        recurrent="recall.bias" in state,
        recurrent_kernel_px=1 if recurrent_kernel_px == (1,) else 3,
        output=output[1],
        expansion=wide[0] // channels if wide else 0,
    )


def _infer_output(out_channels: int) -> tuple[int, Output] | None:
    """Infer scale and output from the channels of the tail; None if they fit no pair."""
    for scale in _SCALES:
        for output, colors in _OUTPUT_CHANNELS.items():
            if out_channels == scale**2 * colors:
                return scale, output
    return None


def _translate(state: State) -> dict[str, Tensor] | None:
    return None if infer_config(state) is None else dict(state)


def _contract(config: FastConfig) -> Contract:
    return Contract(
        scale=config.scale,
        temporal=Temporal("online", lookahead=config.lookahead),
        # Each 3×3 convolution reaches a pixel further: the head, the body and the tail.
        halo_px=config.num_blocks + 2,
        precisions=("fp32", "bf16"),
        skip="bilinear",
        detail_channels=_OUTPUT_CHANNELS[config.output],
        detail_halo_px=1,
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
