"""Measure the embedded models on held-out clips, through the engine that `tubelet upscale` runs.

    python benchmarks/quality.py --clips ../shared/data/dev_eval

Each folder of frames is degraded by a preset, restored, and compared: PSNR and SSIM of luma (BT.601 limited, not
rounded), border 0, mean over frames, then over clips. Vid4 is the mean over the folders named vid4_*.
"""

import argparse
from fractions import Fraction
from pathlib import Path

import torch

from tubelet.data import read_clip
from tubelet.degrade import degrade
from tubelet.metrics import psnr, ssim
from tubelet.restore.engine import Engine
from tubelet.restore.settings import UpscaleSettings
from tubelet.types import Frame
from tubelet.zoo.opening import open_model


def score(model: str, lq: torch.Tensor, gt: torch.Tensor) -> tuple[float, float]:
    """Restore a clip through the engine: mean PSNR, dB, and SSIM."""
    opened = open_model(model)
    engine = Engine(opened.spec, opened.network, UpscaleSettings(device="cpu"))
    frames = (Frame(rgb, t, Fraction(1, 25), index=t) for t, rgb in enumerate(lq))
    restored = [frame.rgb for frame in engine.restore(frames)]
    pairs = list(zip(restored, gt, strict=True))
    values = torch.tensor([[psnr(a, b).item(), ssim(a, b).item()] for a, b in pairs]).mean(0)
    return values[0].item(), values[1].item()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clips", type=Path, required=True, help="folder of folders of frames")
    parser.add_argument("--presets", nargs="+", default=["bi", "real"])
    parser.add_argument("--scales", nargs="+", type=int, default=[4, 2])
    parser.add_argument(
        "--model", action="append", help="id or checkpoint instead of the embedded ones"
    )
    options = parser.parse_args()
    folders = sorted(p for p in options.clips.iterdir() if p.is_dir())
    for scale in options.scales:
        for preset in options.presets:
            models = options.model or [
                f"bicubic-x{scale}",
                f"lanczos-x{scale}",
                f"fast-x{scale}-{preset}",
            ]
            print(f"\n{preset} x{scale}: PSNR / SSIM of luma")
            print(f"| clip | {' | '.join(models)} |\n{'|---' * (len(models) + 1)}|")
            table: dict[str, list[tuple[float, float]]] = {}
            for seed, folder in enumerate(folders):
                gt = (
                    torch.from_numpy(
                        read_clip(folder, max_frames=1000, size_multiple=scale)
                    ).float()
                    / 255
                )
                lq = degrade(gt, preset, scale=scale, seed=seed)
                table[folder.name] = [score(model, lq, gt) for model in models]
                print_row(folder.name, table[folder.name])
            print_row("**mean**", means(list(table.values())))
            print_row(
                "**Vid4**", means([row for name, row in table.items() if name.startswith("vid4_")])
            )


def means(rows: list[list[tuple[float, float]]]) -> list[tuple[float, float]]:
    """Average over clips."""
    return (
        [tuple(torch.tensor(column).mean(0).tolist()) for column in zip(*rows, strict=True)]
        if rows
        else []
    )


def print_row(name: str, values: list[tuple[float, float]]) -> None:
    """Print a line of the table."""
    if values:
        print(f"| {name} | {' | '.join(f'{p:.2f} / {s:.4f}' for p, s in values)} |", flush=True)


if __name__ == "__main__":
    main()
