"""BasicVSR and BasicVSR++ as they were published, with the weights of ours: all flows first, every feature kept.

Plain PyTorch: default layout, grid_sample, torchvision's deformable convolution, convolutions in their reference form.
The comparison of `benchmarks/zoo.py`; equal to the networks' `forward` within rounding.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from tubelet.layers.deform import SecondOrderAlign
from tubelet.layers.residual import ResidualTrunk
from tubelet.layers.spynet import SpyNet
from tubelet.models.basicvsr import BasicVSR
from tubelet.models.basicvsr_pp import BasicVSRPlusPlus

__all__ = ["plain_basicvsr", "plain_basicvsr_pp", "warp"]


def warp(x: Tensor, flow: Tensor, padding: str = "zeros") -> Tensor:
    """Sample x (B, C, H, W) where flow (B, 2, H, W) points."""
    height, width = x.shape[-2:]
    y, across = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    grid = torch.stack(
        [2 * (across + flow[:, 0]) / (width - 1) - 1, 2 * (y + flow[:, 1]) / (height - 1) - 1], -1
    )
    return functional.grid_sample(x, grid, padding_mode=padding, align_corners=True)


def trunk(module: ResidualTrunk, x: Tensor) -> Tensor:
    """Run a trunk, each result in a tensor of its own."""
    first, _, blocks = module.main
    x = functional.leaky_relu(first(x), 0.1)
    for block in blocks:
        x = block.conv2(block.conv1(x), x)
    return x


def flows(spynet: SpyNet, lq: Tensor) -> tuple[Tensor, Tensor]:
    """Estimate all flows of a clip: to the next frame and to the last one, (B, T-1, 2, H, W) each."""
    batch, frames, channels, height, width = lq.shape
    before = lq[:, :-1].reshape(-1, channels, height, width)
    after = lq[:, 1:].reshape(-1, channels, height, width)
    shape = (batch, frames - 1, 2, height, width)
    return spynet(before, after).view(shape), spynet(after, before).view(shape)


def reconstruct(model: BasicVSR | BasicVSRPlusPlus, x: Tensor, frame: Tensor) -> Tensor:
    """Make an image (B, 3, 4H, 4W) of features (B, C, H, W)."""
    x = model.upconv1(x)
    x = model.upconv2(x)
    x = model.conv_last(model.conv_hr(x))
    return x + functional.interpolate(frame, scale_factor=4.0, mode="bilinear", align_corners=False)


def plain_basicvsr(model: BasicVSR, lq: Tensor) -> Tensor:
    """Restore `lq` (B, T, 3, H, W)."""
    to_next, to_last = flows(model.spynet, lq)
    frames = lq.shape[1]
    black = lq.new_zeros(lq.shape[0], model.config.channels, *lq.shape[-2:])
    back: list[Tensor] = []
    feat = black
    for t in reversed(range(frames)):
        feat = warp(feat, to_next[:, t]) if t < frames - 1 else feat
        feat = trunk(model.backward_trunk, torch.cat([lq[:, t], feat], 1))
        back.insert(0, feat)
    out: list[Tensor] = []
    feat = black
    for t in range(frames):
        feat = warp(feat, to_last[:, t - 1]) if t else feat
        feat = trunk(model.forward_trunk, torch.cat([lq[:, t], feat], 1))
        fused = functional.leaky_relu(model.fusion(torch.cat([back[t], feat], 1)), 0.1)
        out.append(reconstruct(model, fused, lq[:, t]))
    return torch.stack(out, 1)


def plain_basicvsr_pp(model: BasicVSRPlusPlus, lq: Tensor) -> Tensor:
    """Restore `lq` (B, T, 3, H, W)."""
    frames = lq.shape[1]
    feats = {"spatial": _spatial(model, lq)}
    to_next, to_last = flows(model.spynet, lq)
    for sweep, module in model.backbone.items():
        backward = sweep.startswith("backward")
        order = list(range(frames))[::-1] if backward else list(range(frames))
        feats[sweep] = _sweep(model, sweep, module, feats, to_next if backward else to_last, order)
    out = [
        reconstruct(
            model,
            trunk(model.reconstruction, torch.cat([kept[t] for kept in feats.values()], 1)),
            lq[:, t],
        )
        for t in range(frames)
    ]
    return torch.stack(out, 1)


def _spatial(model: BasicVSRPlusPlus, lq: Tensor) -> list[Tensor]:
    return list(trunk(model.feat_extract, lq.flatten(0, 1)).unflatten(0, lq.shape[:2]).unbind(1))


def _sweep(
    model: BasicVSRPlusPlus,
    name: str,
    module: nn.Module,
    feats: dict[str, list[Tensor]],
    flow: Tensor,
    order: list[int],
) -> list[Tensor]:
    black = torch.zeros_like(feats["spatial"][0])
    done: list[Tensor] = []
    feat = black
    for i, t in enumerate(order):
        current = feats["spatial"][t]
        if i:
            between = min(t, order[i - 1])
            flow_1 = flow[:, between]
            guide_1 = warp(feat, flow_1)
            older, flow_2, guide_2 = black, torch.zeros_like(flow_1), black
            if i > 1:
                older = done[-2]
                flow_2 = flow_1 + warp(flow[:, min(order[i - 1], order[i - 2])], flow_1)
                guide_2 = warp(older, flow_2)
            guide = torch.cat([guide_1, current, guide_2], 1)
            feat = _align(
                model.deform_align[name], torch.cat([feat, older], 1), guide, (flow_1, flow_2)
            )
        known = [current, *(feats[other][t] for other in feats if other != "spatial"), feat]
        feat = feat + trunk(module, torch.cat(known, 1))
        done.append(feat)
    return done[::-1] if order[0] else done


def _align(
    align: SecondOrderAlign, x: Tensor, guide: Tensor, flow: tuple[Tensor, Tensor]
) -> Tensor:
    out = torch.cat([guide, *flow], 1)
    for part in align.conv_offset:
        out = functional.leaky_relu(out, 0.1) if isinstance(part, nn.LeakyReLU) else part(out)
    first, second, mask = out.chunk(3, 1)
    offset_1, offset_2 = (align.max_residue_px * torch.tanh(torch.cat([first, second], 1))).chunk(
        2, 1
    )
    offset_1 = offset_1 + flow[0].flip(1).repeat(1, offset_1.shape[1] // 2, 1, 1)
    offset_2 = offset_2 + flow[1].flip(1).repeat(1, offset_2.shape[1] // 2, 1, 1)
    offset = torch.cat([offset_1, offset_2], 1)
    # Imported here, because the runs that are compared with this one do without it.
    from torchvision.ops import deform_conv2d

    return deform_conv2d(x, offset, align.weight, align.bias, padding=1, mask=torch.sigmoid(mask))
