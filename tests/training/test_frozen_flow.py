from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tubelet.errors import DivergedError
from tubelet.layers.spynet import SpyNet, load_spynet
from tubelet.losses import l1
from tubelet.models.basicvsr import ARCHITECTURE, BasicVSR, BasicVSRConfig
from tubelet.training import LoopSettings, RestorationLoss, train
from tubelet.training.frozen_flow import FrozenFlowTask
from tubelet.training.long_clips import Samples, SampleTask, Sampling
from tubelet.training.optimizer import OptimizerSettings
from tubelet.training.task import TrainingTask
from tubelet.training.truncated import TruncatedTask

CLIP, LENGTH, NUM_SAMPLES = 7, 3, 2


class _Clips:
    def pixels(self, step: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(step)
        size = (2, CLIP, 3, 128, 128)
        gt = torch.randint(0, 256, size, dtype=torch.uint8, generator=generator)
        return gt[..., ::4, ::4].contiguous(), gt


def _network() -> BasicVSR:
    torch.manual_seed(0)
    network = BasicVSR(BasicVSRConfig(channels=4, num_blocks=1, hr_channels=4))
    load_spynet(network)
    return network


def _task(kind: str, samples: Samples) -> TrainingTask:
    loss = RestorationLoss(pixel=l1)
    if kind == "samples":
        return SampleTask(samples, loss)
    contract = ARCHITECTURE.contract(_network().config)
    assert contract is not None
    return TruncatedTask(samples, loss, contract)


def _train(tmp_path: Any, kind: str, *, remembers: bool) -> tuple[nn.Module, int]:
    """Train on two long clips, and count the flows that are estimated."""
    network = _network()
    samples = Samples(_Clips(), Sampling(clip=CLIP, length=LENGTH, samples=NUM_SAMPLES))
    task = _task(kind, samples)
    if remembers:
        task = FrozenFlowTask(task, samples)
    num_flows = 0

    def count(module: nn.Module, args: Any) -> None:
        nonlocal num_flows
        num_flows += 1

    network.spynet.basic_module[0].register_forward_pre_hook(count)
    steps = 2 * NUM_SAMPLES
    frozen = OptimizerSettings(low_lr_modules=("spynet",), freeze_steps=steps)
    settings = LoopSettings(steps=steps, lr=1e-2, warmup_steps=0, optimizer=frozen)
    train(network, task, settings, tmp_path / f"{kind}-{remembers}")
    return network, num_flows


@pytest.mark.parametrize("kind", ["truncated", "samples"])
def test_training_gives_the_same_weights(tmp_path: Any, kind: str) -> None:
    expected, num_all = _train(tmp_path, kind, remembers=False)
    actual, num_once = _train(tmp_path, kind, remembers=True)
    for name, value in expected.state_dict().items():
        assert torch.equal(actual.state_dict()[name], value), name
    moved = (actual.state_dict()["fusion.weight"] != _network().fusion.weight).any()
    assert moved
    assert num_once < num_all
    if kind == "truncated":
        # Both directions of every pair of neighbors, of two clips.
        assert num_once == 2 * 2 * (CLIP - 1)


def test_a_loss_that_is_not_finite_leaves_the_network_as_it_was(tmp_path: Any) -> None:
    network = _network()
    samples = Samples(_Clips(), Sampling(clip=CLIP, length=LENGTH, samples=NUM_SAMPLES))
    loss = RestorationLoss(pixel=lambda sr, gt: l1(sr, gt) / 0)
    task = FrozenFlowTask(SampleTask(samples, loss), samples)
    settings = LoopSettings(steps=1, lr=1e-2, warmup_steps=0)
    with pytest.raises(DivergedError) as caught:
        train(network, task, settings, tmp_path)
    # The error keeps its frames alive, and with them the suspended task.
    assert caught.value.__traceback__ is not None
    assert "forward" not in vars(network.spynet)


def test_only_the_training_looks_flows_up(tmp_path: Any) -> None:
    network, _ = _train(tmp_path, "truncated", remembers=True)
    assert all(
        "forward" not in vars(module) for module in network.modules() if isinstance(module, SpyNet)
    )


def test_an_error_in_the_task_leaves_the_network_as_it_was() -> None:
    network = _network()
    samples = Samples(_Clips(), Sampling(clip=CLIP, length=LENGTH, samples=NUM_SAMPLES))

    def fail(sr: Tensor, gt: Tensor) -> Tensor:
        raise RuntimeError("no loss")

    task = FrozenFlowTask(SampleTask(samples, RestorationLoss(pixel=fail)), samples)
    with pytest.raises(RuntimeError, match="no loss"):
        next(iter(task.losses(network, task.batch(0), 0)))
    assert "forward" not in vars(network.spynet)
