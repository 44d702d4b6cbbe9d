"""Measure what the second step of two-step costs, alone and over image models, beside networks that align frames.

    python benchmarks/two_step.py                 # `tubelet bench` on ×2 and ×4, 320×180

Weights are random. Over `bicubic`, which costs next to nothing, stands for the second step alone; models of clips are
given 5 frames.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from tubelet.models import basicvsr, edvr, fsrcnn, srvgg
from tubelet.models.two_step import TwoStepConfig, TwoStepRestorer, needed_image_model
from tubelet.zoo.bases import open_base, refer_to
from tubelet.zoo.checkpoint import save_checkpoint

Scale = Literal[2, 4]


def save(folder: Path, name: str, network: nn.Module, base: dict[str, str] | None = None) -> str:
    """Save a network; return its path."""
    path = folder / f"{name}.safetensors"
    save_checkpoint(path, network, {}, base=base)
    return str(path)


def make_checkpoints(folder: Path, scale: Scale, bases: list[int]) -> list[str]:
    """Save image models of a scale, second steps over each, and what they are compared with."""
    torch.manual_seed(0)
    images = {
        "bicubic": f"bicubic-x{scale}",
        "fsrcnn": save(folder, f"fsrcnn-x{scale}", fsrcnn.FSRCNN(fsrcnn.FSRCNNConfig(scale=scale))),
        "srvgg": save(
            folder, f"srvgg-x{scale}", srvgg.SRVGGNetCompact(srvgg.SRVGGConfig(scale=scale))
        ),
    }
    paths = [images["fsrcnn"], images["srvgg"]]
    needed = needed_image_model(TwoStepConfig(scale=scale))
    for name, model in images.items():
        reference = refer_to(open_base(model, needed), folder)
        for base in bases if name == "bicubic" else bases[:1]:
            network = TwoStepRestorer(TwoStepConfig(scale=scale, channels=base, norm="none"))
            paths.append(save(folder, f"two-step-{base}-over-{name}-x{scale}", network, reference))
    if scale == 4:
        paths.append(save(folder, "basicvsr-x4", basicvsr.BasicVSR(basicvsr.BasicVSRConfig())))
        paths.append(save(folder, "edvr-m-x4", edvr.EDVR(edvr.EDVRConfig())))
    return paths


def main() -> None:
    """Bench every network of each scale."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scales", type=int, nargs="+", default=[2, 4], choices=[2, 4])
    parser.add_argument("--bases", type=int, nargs="+", default=[8, 16, 32])
    parser.add_argument("--size", default="320x180")
    options = parser.parse_args()
    for scale in options.scales:
        with tempfile.TemporaryDirectory() as folder:
            paths = make_checkpoints(Path(folder), scale, options.bases)
            names = [Path(path).name for path in paths]
            command = [
                Path(sys.executable).with_name("tubelet"),
                "bench",
                *names,
                "--size",
                options.size,
            ]
            turns = [
                "--frames",
                "5",
                "--runs",
                "3",
                "--warmup",
                "1",
                "--precision",
                "fp32",
                "--process-memory",
            ]
            subprocess.run([*command, *turns], cwd=folder, check=True)


if __name__ == "__main__":
    main()
