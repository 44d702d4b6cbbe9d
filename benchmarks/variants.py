"""Train variants of FastVSR for the same short budget and print quality against time.

    python benchmarks/variants.py --data clips/ --evaluate held-out/ base collapsible

Each variant is one change to the base. The table is for docs/log/2026-11-21.md; the budget is far below a full training,
so only differences well above the spread between seeds mean something.
"""

import argparse
import time
from pathlib import Path

import torch

from tubelet.data import CropSettings
from tubelet.models.fast import FastConfig
from tubelet.recipes.online import OnlineConfig, main
from tubelet.training import LoopSettings
from tubelet.zoo.checkpoint import load_model

VARIANTS = {
    "base": {},
    "collapsible": {"expansion": 4},
    "no-recurrence": {"recurrent": False, "depth": 4},
    "no-lookahead": {"lookahead": 0},
    "single-frame": {"recurrent": False, "lookahead": 0, "depth": 4},
    "rgb-output": {"output": "rgb", "depth": 2},
    "wide-shallow": {"channels": 48, "depth": 1},
    "narrow-deep": {"channels": 16, "depth": 13},
    "deeper": {"depth": 4},
}


def milliseconds(path: Path, runs: int = 40) -> float:
    """Measure a step at 320×180, the median of `runs`."""
    model = load_model(path).to(memory_format=torch.channels_last)
    lq = torch.rand(1, 1 + model.config.lookahead, 3, 180, 320)
    hidden, times = None, []
    with torch.inference_mode():
        for _ in range(runs):
            start = time.perf_counter()
            _, hidden = model.step(lq, hidden)
            times.append(time.perf_counter() - start)
    return 1e3 * sorted(times)[runs // 2]


def run() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "names", nargs="*", default=list(VARIANTS), help=f"of {', '.join(VARIANTS)}"
    )
    parser.add_argument("--data", type=Path, nargs="+", required=True)
    parser.add_argument("--evaluate", type=Path, required=True)
    parser.add_argument("--cache", type=Path, default=Path("cache"))
    parser.add_argument("--out", type=Path, default=Path("runs/variants"))
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for name in options.names:
        config = OnlineConfig(
            data=tuple(options.data),
            out=options.out / name,
            cache=options.cache,
            evaluate=options.evaluate,
            model=FastConfig(**{"depth": 3, "expansion": 0} | VARIANTS[name]),
            crops=CropSettings(batch=4, frames=6, patch_px=48),
            loop=LoopSettings(
                steps=options.steps, lr=options.lr, ema=0.99, save_every=options.steps // 2
            ),
        )
        scores: dict[str, float] = {}
        path = main(config, on_log=scores.update)
        ms = milliseconds(path)
        per_clip = " ".join(
            f"{k[7:]}={v:.2f}" for k, v in scores.items() if k.startswith("psnr_y/")
        )
        took = f"train {scores['s_per_step'] * options.steps:.0f} s"
        print(f"{name:14s} {scores['psnr_y']:.3f} dB {ms:6.1f} ms {took}  {per_clip}", flush=True)


if __name__ == "__main__":
    run()
