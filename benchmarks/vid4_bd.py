"""Measure bicubic enlargement on Vid4 ×4 under every benchmark degradation: BD is a name for several conventions.

    python benchmarks/vid4_bd.py --data ../shared/data/dev_eval

PSNR, dB, and SSIM of luma (BT.601 limited, not rounded), mean over the frames of a clip, then over the clips. The low
quality frames are rounded to 8 bit, enlarged with MATLAB's bicubic, and scored as the protocols say.
"""

import argparse
from pathlib import Path

import torch

from tubelet.data import read_clip
from tubelet.data.datasets import find_clips
from tubelet.degrade import degrade
from tubelet.metrics import psnr, ssim
from tubelet.metrics.protocols import find_protocol
from tubelet.ops import imresize

PRESETS = ("bi", "bd", "bd-b", "bd-c")
WAYS = ("", "-crop8", "-crop8-drop2")
PUBLISHED = {"bi": (23.78, 0.6347), "bd": (21.80, 0.5246)}


def scores(gt: torch.Tensor, preset: str) -> dict[str, tuple[float, float]]:
    """Score one clip (T, 3, H, W): way of scoring → mean PSNR and SSIM."""
    values: dict[int, list[tuple[float, float]]] = {0: [], 8: []}
    for frame in gt:
        lq = degrade(frame[None], preset)[0]
        sr = imresize(lq, 4)
        for border, rows in values.items():
            rows.append(
                (psnr(sr, frame, border=border).item(), ssim(sr, frame, border=border).item())
            )
    found = {}
    for way in WAYS:
        protocol = find_protocol(f"vid4-{preset}-x4{way}")
        rows = torch.tensor([values[protocol.border][t] for t in protocol.scored_frames(len(gt))])
        found[way] = tuple(rows.mean(0).tolist())
    return found


def main() -> None:
    """Score every degradation, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of Vid4")
    options = parser.parse_args()
    clips = find_clips(find_protocol("vid4-bi-x4"), options.data)
    print(
        f"| protocol | {' | '.join(clip.name for clip in clips)} | Vid4 |\n{'|---' * (len(clips) + 2)}|"
    )
    for preset in PRESETS:
        by_clip = []
        for clip in clips:
            gt = (
                torch.from_numpy(read_clip(clip.gt, max_frames=1000, size_multiple=4)).float() / 255
            )
            by_clip.append(scores(gt, preset))
        for way in WAYS:
            rows = [found[way] for found in by_clip]
            mean = tuple(sum(column) / len(rows) for column in zip(*rows, strict=True))
            cells = " | ".join(f"{p:.2f} / {s:.4f}" for p, s in [*rows, mean])
            print(f"| vid4-{preset}-x4{way} | {cells} |", flush=True)
    for name, (p, s) in PUBLISHED.items():
        print(f"published, {name}: {p:.2f} / {s:.4f}")


if __name__ == "__main__":
    main()
