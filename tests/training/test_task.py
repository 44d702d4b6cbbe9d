"""Tasks of several passes a batch, and of several optimizer steps a batch: truncated back-propagation."""

import json
import weakref
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from helpers.zoo_configs import TINY
from tubelet.layers.recurrence import Edge
from tubelet.losses import l1
from tubelet.models.basicvsr import BasicVSR
from tubelet.training import Batch, LoopSettings, Losses, OptimizerSettings, ScheduleSettings, train

FRAMES = 6
PART = 2  # frames of a pass
CONSTANT_RATE = LoopSettings(
    steps=1,
    lr=1e-2,
    warmup_steps=0,
    schedule=ScheduleSettings(kind="steps"),
    optimizer=OptimizerSettings(betas=(0.9, 0.99)),
    grad_clip=float("inf"),
    log_every=1,
)


class _Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.cell = nn.Conv2d(3, 2, 3, padding=1)
        self.drop = nn.Dropout(0.0)  # told apart by `training`
        self.head = nn.Conv2d(2, 1, 1)
        self.double()

    def step(self, frame: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        hidden = torch.tanh(self.cell(torch.cat([frame, hidden], 1)))
        return self.head(self.drop(hidden)), hidden


def _clip(number: int, frames: int = FRAMES) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(number)
    lq = torch.randn(2, frames, 1, 5, 5, generator=generator, dtype=torch.float64)
    return lq, lq.cumsum(1)


def _zeros() -> Tensor:
    return torch.zeros(2, 2, 5, 5, dtype=torch.float64)


def _run(model: _Recurrent, lq: Tensor, gt: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Restore frames from a state: the loss, and the state after them."""
    loss = torch.zeros((), dtype=torch.float64)
    for t in range(lq.shape[1]):
        sr, hidden = model.step(lq[:, t], hidden)
        loss = loss + (sr - gt[:, t]).square().mean()
    return loss, hidden


class _Saved:
    """A tensor that a graph keeps for its backward pass."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


class _TruncatedPasses:
    """One optimizer step a clip, and a pass for each part of it; the state goes from part to part."""

    def __init__(self) -> None:
        self.kept: list[tuple[int, int]] = []
        """Tensors that graphs keep, before and after the backward pass."""

    def batch(self, step: int) -> Batch:
        lq, gt = _clip(step)
        return {"lq": lq, "gt": gt}

    def losses(self, model: nn.Module, batch: Batch, step: int) -> Iterator[Losses]:
        assert isinstance(model, _Recurrent)
        alive: weakref.WeakSet[_Saved] = weakref.WeakSet()

        def pack(tensor: Tensor) -> _Saved:
            saved = _Saved(tensor)
            alive.add(saved)
            return saved

        hidden = _zeros()
        for start in range(0, FRAMES, PART):
            part = slice(start, start + PART)
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved.tensor):
                loss, hidden = _run(
                    model, batch["lq"][:, part], batch["gt"][:, part], hidden.detach()
                )
            before = len(alive)
            yield {"pixel": loss}
            self.kept.append((before, len(alive)))


def test_gradients_of_truncated_passes_add_up(tmp_path):
    model = _Recurrent()
    train(model, _TruncatedPasses(), CONSTANT_RATE, tmp_path)
    expected, whole = _Recurrent(), _Recurrent()
    lq, gt = _clip(0)
    hidden = _zeros()
    for start in range(0, FRAMES, PART):
        part = slice(start, start + PART)
        loss, hidden = _run(expected, lq[:, part], gt[:, part], hidden.detach())
        loss.backward()
    _run(whole, lq, gt, _zeros())[0].backward()
    for name, parameter in model.named_parameters():
        gradient = expected.get_parameter(name).grad
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(model.cell.weight.grad, whole.cell.weight.grad, rtol=1e-3)


def test_a_pass_frees_its_graph_before_the_next_one(tmp_path):
    task = _TruncatedPasses()
    train(_Recurrent(), task, CONSTANT_RATE, tmp_path)
    assert len(task.kept) == FRAMES // PART
    for before, after in task.kept:
        assert before > 0
        assert after == 0


def test_losses_of_all_passes_are_logged_by_name(tmp_path):
    class Two(_TruncatedPasses):
        def losses(self, model: nn.Module, batch: Batch, step: int) -> Iterator[Losses]:
            yield {
                "near": 1.0 + 0 * model.head.weight.sum(),
                "far": 2.0 + 0 * model.head.weight.sum(),
            }
            yield {"near": 0.5 + 0 * model.head.weight.sum()}

    records = []
    train(_Recurrent(), Two(), CONSTANT_RATE, tmp_path, on_log=records.append)
    assert (records[0]["loss"], records[0]["loss/near"], records[0]["loss/far"]) == (3.5, 1.5, 2.0)
    assert json.loads((tmp_path / "log.jsonl").read_text())["loss/near"] == 1.5


def test_a_task_without_a_loss_is_named(tmp_path):
    class Nothing(_TruncatedPasses):
        def losses(self, model: nn.Module, batch: Batch, step: int) -> Iterator[Losses]:
            yield from ()

    with pytest.raises(ValueError, match=r"Nothing\.losses yielded no loss at step 0"):
        train(_Recurrent(), Nothing(), CONSTANT_RATE, tmp_path)


class _LongClips:
    """Several optimizer steps a clip: states of the whole clip, then samples that begin with them.

    Source: LRTI-VSR, Algorithm 1.
    """

    samples = 3  # of a clip
    starts = (3, 1, 4)

    def __init__(self) -> None:
        self._states: dict[int, Tensor] = {}
        self.modes: list[bool] = []

    def batch(self, step: int) -> Batch:
        clip, sample = divmod(step, self.samples)
        lq, gt = _clip(clip, frames=8)
        start = self.starts[sample]
        part = slice(start, start + PART)
        batch = {"lq": lq[:, part], "gt": gt[:, part]}
        return batch | {"clip": lq} if sample == 0 else batch

    def losses(self, model: nn.Module, batch: Batch, step: int) -> Iterator[Losses]:
        assert isinstance(model, _Recurrent)
        if "clip" in batch:
            self._states = self._run_clip(model, batch["clip"])
        hidden = self._states[self.starts[step % self.samples]]
        yield {"pixel": _run(model, batch["lq"], batch["gt"], hidden)[0]}

    @torch.no_grad()
    def _run_clip(self, model: _Recurrent, lq: Tensor) -> dict[int, Tensor]:
        model.eval()
        states = _states(model, lq)
        self.modes.append(model.training)
        model.train()
        return {start: states[start] for start in self.starts}


def _states(model: _Recurrent, lq: Tensor) -> list[Tensor]:
    """Return the state before every frame of a clip."""
    states = [_zeros()]
    for t in range(lq.shape[1]):
        states.append(model.step(lq[:, t], states[-1])[1])
    return states


def test_states_of_a_long_clip_serve_several_optimizer_steps(tmp_path):
    task, model = _LongClips(), _Recurrent()
    train(model, task, replace(CONSTANT_RATE, steps=6), tmp_path)
    expected = _Recurrent()
    optimizer = torch.optim.Adam(expected.parameters(), lr=1e-2, betas=(0.9, 0.99))
    for number in range(2):
        lq, gt = _clip(number, frames=8)
        with torch.no_grad():
            states = _states(expected, lq)
        for start in _LongClips.starts:
            part = slice(start, start + PART)
            optimizer.zero_grad()
            _run(expected, lq[:, part], gt[:, part], states[start])[0].backward()
            optimizer.step()
    torch.testing.assert_close(model.state_dict(), expected.state_dict(), rtol=1e-12, atol=1e-12)
    assert task.modes == [False, False]
    assert model.training


def test_a_run_of_long_clips_resumes_between_two_of_them(tmp_path):
    class Stopped(_LongClips):
        def batch(self, step: int) -> Batch:
            if step == 5:
                raise KeyboardInterrupt
            return super().batch(step)

    settings = replace(CONSTANT_RATE, steps=9, save_every=3)
    whole = train(_Recurrent(), _LongClips(), settings, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(_Recurrent(), Stopped(), settings, tmp_path / "parts")
    resumed = train(_Recurrent(), _LongClips(), settings, tmp_path / "parts")
    torch.testing.assert_close(resumed.state_dict(), whole.state_dict(), rtol=0, atol=0)


class _TruncatedBasicVSR:
    """Algorithm 1 for a network of the zoo: edges of samples come from a pass over the long clip."""

    frames = 4
    length = 1  # frames of a sample
    starts = (2, 1)

    def __init__(self) -> None:
        self._hidden: dict[tuple[str, int], Tensor] = {}

    def batch(self, step: int) -> Batch:
        clip, sample = divmod(step, len(self.starts))
        generator = torch.Generator().manual_seed(clip)
        gt = torch.rand(1, self.frames, 3, 32, 32, generator=generator)
        lq = gt[..., ::4, ::4]
        start = self.starts[sample]
        stop = start + self.length
        batch = {
            "lq": lq[:, start:stop],
            "gt": gt[:, start:stop],
            "last": lq[:, start - 1],
            "next": lq[:, stop],
        }
        return batch | {"clip": lq} if sample == 0 else batch

    def losses(self, model: nn.Module, batch: Batch, step: int) -> Iterator[Losses]:
        assert isinstance(model, BasicVSR)
        if "clip" in batch:
            self._hidden = states_of(model, batch["clip"])
        start = self.starts[step % len(self.starts)]
        yield {"pixel": sample_loss(model, batch, self._hidden, start, start + self.length)}


@torch.no_grad()
def states_of(model: BasicVSR, lq: Tensor) -> dict[tuple[str, int], Tensor]:
    """Run both sweeps over a clip, and return their states by the name of the sweep and the frame."""
    states: dict[tuple[str, int], Tensor] = {}

    def keep(sweep: str, t: int, state: Tensor) -> None:
        states[sweep, t] = state

    model.eval()
    for _ in model.propagate(lq, on_state=keep):
        pass
    model.train()
    return states


def sample_loss(
    model: BasicVSR, batch: Batch, hidden: dict[tuple[str, int], Tensor], start: int, stop: int
) -> Tensor:
    before = Edge((batch["last"],), {"forward": (hidden["forward", start - 1],)}, start - 1)
    after = Edge((batch["next"],), {"backward": (hidden["backward", stop],)}, stop)
    return l1(model(batch["lq"], before, after).float(), batch["gt"])


def test_a_recurrent_network_of_the_zoo_is_trained_on_long_clips(tmp_path):
    def build() -> BasicVSR:
        torch.manual_seed(0)
        return BasicVSR(TINY["BasicVSR"])

    model, task = build(), _TruncatedBasicVSR()
    settings = replace(CONSTANT_RATE, steps=4, lr=1e-3, activations="recompute")
    train(model, task, settings, tmp_path)
    expected = build().train()
    optimizer = torch.optim.Adam(expected.parameters(), lr=1e-3, betas=(0.9, 0.99))
    states: dict[tuple[str, int], Tensor] = {}
    for step in range(4):
        batch = task.batch(step)
        if step % 2 == 0:
            states = states_of(expected, batch["clip"])
        start = task.starts[step % 2]
        optimizer.zero_grad()
        sample_loss(expected, batch, states, start, start + task.length).backward()
        optimizer.step()
    torch.testing.assert_close(model.state_dict(), expected.state_dict(), rtol=0, atol=1e-6)
