"""Compare a training step of adapters with one of the same network whole, side by side in one process.

    python benchmarks/adapters.py                               # SwinIR and HAT of 60 channels, DAT-light
    python benchmarks/adapters.py --networks swinir --temporal none t-msa trajectory

Whole: the very same adapted network, with the weights of the image network trained too. A step has the forward and the
backward pass, and Adam. Time: median of the processor's seconds of a step; the arms take turns. Memory: the largest total
of tensors that live at once, weights and optimizer included.

Predicted time: the backward pass of a layer takes two products, one for its input and one for its weights; a frozen layer
needs the first alone. With all linear and convolution layers counted, and attention not:
1 - (multiplications of the frozen ones) / (3 × all). Bars: at most 0.80, and at most the prediction + 0.06.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from datetime import date

import torch
from torch import Tensor, nn

from tubelet.evaluation.machine import processor_name
from tubelet.models import dat, hat, rrdb, swinir
from tubelet.models.pfvsr import PFVSR, adapt
from tubelet.restore.memory import peak_tensor_bytes

BACKBONES: dict[str, Callable[[], nn.Module]] = {
    "swinir": lambda: swinir.SwinIR(
        swinir.SwinIRConfig(
            channels=60, depths=(6,) * 4, num_heads=(6,) * 4, upsampler="pixelshuffledirect"
        )
    ),
    "hat": lambda: hat.HAT(
        hat.HATConfig(channels=60, depths=(6, 6), num_heads=(6, 6), window=8, squeeze_factor=10)
    ),
    "dat-light": lambda: dat.DAT(dat.PRESETS["light"]),
    "rrdb-6": lambda: rrdb.RRDBNet(rrdb.RRDBConfig(num_blocks=6)),
}


def build(name: str, temporal: str, *, whole: bool) -> PFVSR:
    """Build an adapted network, all of which is trained if `whole`."""
    torch.manual_seed(0)
    network = adapt(BACKBONES[name](), temporal=temporal, flow="frozen")
    assert network.backbone is not None
    network.backbone.requires_grad_(whole)
    return network.to(memory_format=torch.channels_last)


def parameters(network: PFVSR) -> list[nn.Parameter]:
    """List what is trained, of the adapters and of the image network."""
    assert network.backbone is not None
    both = [*network.parameters(), *network.backbone.parameters()]
    return [parameter for parameter in both if parameter.requires_grad]


class Step:
    """A training step of an arm."""

    def __init__(self, network: PFVSR, lq: Tensor) -> None:
        self.network = network
        self.lq = lq
        self.optimizer = torch.optim.Adam(parameters(network), lr=1e-5)

    def __call__(self) -> None:
        self.optimizer.zero_grad()
        self.network(self.lq).square().mean().backward()
        self.optimizer.step()


def predict(network: PFVSR, lq: Tensor) -> float:
    """Predict the time of training the adapters over that of training everything."""
    assert network.backbone is not None
    counts = {"frozen": 0, "trained": 0}
    handles = []
    for kind, modules in (("frozen", network.backbone), ("trained", network)):
        for module in modules.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):

                def count(layer: nn.Module, _: object, out: Tensor, kind: str = kind) -> None:
                    weight = layer.get_parameter("weight")
                    values = out.numel() if weight.ndim == 2 else out.shape[0] * out[0, 0].numel()
                    per_value = weight.shape[1] if weight.ndim == 2 else weight.numel()
                    counts[kind] += values * per_value

                handles.append(module.register_forward_hook(count))
    with torch.no_grad():
        network(lq)
    for handle in handles:
        handle.remove()
    return 1 - counts["frozen"] / (3 * sum(counts.values()))


def compare(name: str, temporal: str, options: argparse.Namespace) -> None:
    """Measure both arms of a network, and print a row."""
    lq = torch.rand(options.batch, options.frames, 3, options.px, options.px)
    arms = {whole: Step(build(name, temporal, whole=whole), lq) for whole in (False, True)}
    seconds: dict[bool, list[float]] = {False: [], True: []}
    peaks: dict[bool, float] = {}
    for whole, step in arms.items():
        # The second step has the states of the optimizer.
        step()
        peaks[whole] = peak_tensor_bytes(step) / 1e6
    for _ in range(options.repeats):
        for whole, step in arms.items():
            start = time.process_time()
            step()
            seconds[whole].append(time.process_time() - start)
    adapted, whole = (statistics.median(seconds[arm]) for arm in (False, True))
    predicted = predict(arms[False].network, lq)
    print(
        f"| {name} | {temporal} | {whole:.2f} | {adapted:.2f} | {adapted / whole:.2f} | {predicted:.2f} "
        f"| {peaks[True]:.0f} | {peaks[False]:.0f} | {peaks[False] / peaks[True]:.2f} |",
        flush=True,
    )


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--networks", nargs="+", default=["swinir", "hat", "dat-light"], choices=BACKBONES
    )
    parser.add_argument("--temporal", nargs="+", default=["none", "t-msa"])
    parser.add_argument("--px", type=int, default=48, help="side of the low-quality crop")
    parser.add_argument("--frames", type=int, default=5)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(
        f"{date.today()}, {processor_name()}, {options.threads} threads; {options.batch} clips of "
        f"{options.frames} frames of {options.px} px, float32\n"
    )
    print(
        "| network | temporal | whole, s | adapters, s | time | predicted | whole, MB | adapters, MB | memory |\n"
        "|---|---|---|---|---|---|---|---|---|"
    )
    for name in options.networks:
        for temporal in options.temporal:
            compare(name, temporal, options)


if __name__ == "__main__":
    main()
