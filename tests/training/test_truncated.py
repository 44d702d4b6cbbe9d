"""Truncated back-propagation: states, edges, gradients, memory, and the order of Algorithm 1."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from helpers.small_flow import replace_spynets
from helpers.zoo_configs import TINY, architecture_of
from tubelet.layers.recurrence import Edge
from tubelet.layers.store import FeatureLimits
from tubelet.losses import l1
from tubelet.models.architecture import Contract
from tubelet.models.basicvsr import BasicVSR
from tubelet.models.contracts import as_recurrent
from tubelet.ops.pixels import to_float
from tubelet.restore.memory import peak_tensor_bytes
from tubelet.training import LoopSettings, ScheduleSettings, train
from tubelet.training.long_clips import Samples, Sampling
from tubelet.training.restoration import RestorationLoss
from tubelet.training.truncated import TruncatedTask, record_states
from tubelet.types import Temporal


def _contract(name: str) -> Contract | None:
    return architecture_of(name).contract(TINY[name])


RECURRENT = [name for name in TINY if (c := _contract(name)) is not None and c.edge_states.sweeps]
SLOW = {"TMNet"}
"""Takes as long as all the others together."""


class Noise:
    """Long clips of noise."""

    def __init__(self, frames: int, side: int = 8) -> None:
        self.frames = frames
        self.side = side

    def pixels(self, step: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(step)
        size = (2, self.frames, 3, 4 * self.side, 4 * self.side)
        gt = torch.randint(0, 256, size, dtype=torch.uint8, generator=generator)
        return gt[..., ::4, ::4].contiguous(), gt


def _network(name: str) -> nn.Module:
    """Build a network whose alignments move: their last offset convolutions start at zero."""
    torch.manual_seed(0)
    network = architecture_of(name).build(TINY[name])
    replace_spynets(network)
    for parameter_name, parameter in network.named_parameters():
        if "conv_offset" in parameter_name and parameter_name.endswith("weight"):
            nn.init.normal_(parameter, std=0.1)
    return network


def _samples(name: str, starts: list[int], *, clip: int, length: int) -> Samples:
    """Samples that start at these frames, in the network's input."""
    contract = _contract(name)
    assert contract is not None
    between = contract.temporal.between_frames
    sampling = _Given(clip=clip, length=length, samples=len(starts), starts="all")
    object.__setattr__(sampling, "given", starts)
    side = max(8, contract.min_size_px)
    return Samples(Noise((1 + between) * (clip - 1) + 1, side), sampling, between_frames=between)


class _Given(Sampling):
    """Starts are given, not drawn."""

    given: list[int]

    def draw(self, clip: int) -> list[int]:
        return self.given


def _task(name: str, samples: Samples, pixel: Any = l1, **options: Any) -> TruncatedTask:
    contract = _contract(name)
    assert contract is not None
    return TruncatedTask(samples, RestorationLoss(pixel=pixel), contract, **options)


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in RECURRENT],
)
def test_a_sample_gives_the_frames_of_the_long_clip(name: str) -> None:
    network = _network(name)
    starts, clip, length = ([1], 3, 1) if name in SLOW else ([0, 1, 2, 3], 5, 2)
    if (contract := _contract(name)) is not None and (multiple := contract.frame_multiple) > 1:
        starts = [multiple * start for start in starts]
        clip, length = multiple * clip, multiple * length
    samples = _samples(name, starts, clip=clip, length=length)
    restored = []
    task = _task(name, samples, pixel=lambda sr, gt: restored.append(sr.detach()) or l1(sr, gt))
    whole = None
    for step, start in enumerate(starts):
        batch = task.batch(step)
        if step == 0:
            with torch.no_grad():
                whole = torch.stack(list(as_recurrent(network).restore(batch["clip"])), 1)
        (_,) = task.losses(network, batch, step)
        first = samples.frame_step * start
        last = samples.frame_step * (start + length - 1)
        assert batch["gt"].shape[1] == last - first + 1
        torch.testing.assert_close(restored[-1], whole[:, first : last + 1], rtol=0, atol=1e-5)


class _Cut:
    """Lets no gradient through the states outside of a span."""

    def __init__(self, span: range) -> None:
        self._span = span

    def __call__(self, sweep: str, moment: int, state: Tensor) -> None:
        if moment not in self._span:
            state.register_hook(torch.zeros_like)


def _gradients(network: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    network.zero_grad()
    loss.backward()
    gradients = {}
    for name, parameter in network.named_parameters():
        if parameter.grad is not None and parameter.grad.any():
            gradients[name] = parameter.grad.clone()
    return gradients


@pytest.mark.parametrize("is_frozen", [False, True])
@pytest.mark.parametrize("name", ["BasicVSR", "BasicVSRPlusPlus", "RealBasicVSR"])
def test_gradients_are_those_of_the_long_clip_cut_at_the_edges(name: str, is_frozen: bool) -> None:
    network = _network(name).double()
    for parameter_name, parameter in network.named_parameters():
        parameter.requires_grad_(not (is_frozen and "spynet" in parameter_name))
    weights = torch.rand(2, 2, 3, 32, 32, dtype=torch.float64)
    samples = _samples(name, [2, 0, 5], clip=7, length=2)
    task = _task(name, samples, pixel=lambda sr, gt: (weights * (sr - gt).square()).sum())
    for step in range(3):
        batch = {key: value.double() for key, value in task.batch(step).items()}
        (losses,) = task.losses(network, batch, step)
        actual = _gradients(network, losses["pixel"])

        span = samples.span(step)
        lq, gt = (to_float(x).double() for x in samples.long_clip(step))
        full = torch.stack(list(network.restore(lq, on_state=_Cut(span))), 1)  # type: ignore[operator]
        error = full[:, span.start : span.stop] - gt[:, span.start : span.stop]
        expected = _gradients(network, (weights * error.square()).sum())

        assert actual.keys() == expected.keys()
        assert any("spynet" in parameter_name for parameter_name in actual) != is_frozen
        for parameter_name, gradient in actual.items():
            scale = expected[parameter_name].abs().max()
            torch.testing.assert_close(
                gradient / scale, expected[parameter_name] / scale, rtol=0, atol=1e-8
            )


def test_states_of_edges_are_constants_and_exactly_those_of_the_samples() -> None:
    network = _network("BasicVSRPlusPlus")
    edges: list[Edge] = []

    class Look(nn.Module):
        def forward(self, lq: Tensor, *given: Edge) -> Tensor:
            edges.extend(given)
            return network(lq, *given)

        def propagate(self, lq: Tensor, **options: Any) -> Iterator[Any]:
            return network.propagate(lq, **options)  # type: ignore[operator]

        restore = propagate

    samples = _samples("BasicVSRPlusPlus", [3, 0], clip=8, length=3)
    task = _task("BasicVSRPlusPlus", samples)
    for step in range(2):
        batch = task.batch(step)
        (losses,) = task.losses(Look(), batch, step)
        losses["pixel"].backward()
    lq = to_float(samples.long_clip(0)[0])
    for edge, sweeps, frames in (
        (edges[0], ("forward_1", "forward_2"), (2, 1)),
        (edges[1], ("backward_1", "backward_2"), (6, 7)),
        (edges[3], ("backward_1", "backward_2"), (3, 4)),
    ):
        assert edge.frame_index == frames[0]
        for number, frame in enumerate(frames):
            assert torch.equal(edge.frames[number], lq[:, frame])
        wanted = [(sweep, frame) for sweep in sweeps for frame in frames]
        states = record_states(as_recurrent(network), lq, wanted)
        assert set(edge.hidden) == set(sweeps)
        for sweep in sweeps:
            expected = [states[sweep, frame] for frame in frames]
            for state, value in zip(edge.hidden[sweep], expected, strict=True):
                assert torch.equal(state, value)
                assert not state.requires_grad
                assert state.grad is None
    assert edges[2].is_video_boundary


class _Counted(BasicVSR):
    """Counts passes over long clips, and the restored frames."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(TINY["BasicVSR"])
        replace_spynets(self)
        self.drop = nn.Dropout(0.0)
        self.lengths: list[tuple[int, bool]] = []
        self.restored = 0

    def propagate(self, lq: Tensor, **options: Any) -> Any:
        self.lengths.append((lq.shape[1], self.drop.training))
        return super().propagate(lq, **options)

    def _upsample(self, feat: Tensor, frame: Tensor) -> Tensor:
        self.restored += 1
        return super()._upsample(feat, frame)


@pytest.mark.parametrize("long_pass", ["eval", "train"])
def test_a_long_clip_is_run_once_for_its_samples_and_not_restored(tmp_path, long_pass) -> None:
    network = _Counted()
    samples = Samples(Noise(9), Sampling(clip=9, length=2, samples=3))
    task = _task("BasicVSR", samples, long_pass=long_pass)
    train(network, task, LoopSettings(steps=6, lr=1e-3, warmup_steps=0), tmp_path)
    one_clip = [(9, long_pass == "train"), *[(2, True)] * 3]
    assert network.lengths == 2 * one_clip
    assert network.restored == 6 * 2
    assert network.training


@torch.no_grad()
def _all_states(network: nn.Module, lq: Tensor) -> dict[tuple[str, int], Tensor]:
    states = {}

    def keep(sweep: str, t: int, state: Tensor) -> None:
        states[sweep, t] = state

    for _ in network.propagate(lq, on_state=keep):  # type: ignore[operator]
        pass
    return states


def test_states_stay_as_they_were_before_the_samples(tmp_path) -> None:
    """Algorithm 1 step by step: stale states, a step of the optimizer after every sample."""
    samples = _samples("BasicVSR", [2, 4, 3], clip=9, length=2)
    settings = LoopSettings(
        steps=6,
        lr=1e-2,
        warmup_steps=0,
        schedule=ScheduleSettings(kind="steps"),
        grad_clip=float("inf"),
    )
    network = _network("BasicVSR")
    train(network, _task("BasicVSR", samples), settings, tmp_path)

    expected = _network("BasicVSR").train()
    optimizer = torch.optim.Adam(expected.parameters(), lr=1e-2, betas=(0.9, 0.99))
    for step in range(6):
        lq, gt = map(to_float, samples.long_clip(step))
        if step % 3 == 0:
            states = _all_states(expected, lq)
        span = samples.span(step)
        start, stop = span.start, span.stop
        before = Edge((lq[:, start - 1],), {"forward": (states["forward", start - 1],)}, start - 1)
        after = Edge((lq[:, stop],), {"backward": (states["backward", stop],)}, stop)
        optimizer.zero_grad()
        l1(expected(lq[:, start:stop], before, after), gt[:, start:stop]).backward()
        optimizer.step()
    torch.testing.assert_close(network.state_dict(), expected.state_dict(), rtol=0, atol=1e-5)


def test_weights_get_gradients_in_bfloat16_after_the_long_pass(tmp_path) -> None:
    network = _network("BasicVSR")
    before = {name: value.clone() for name, value in network.named_parameters()}
    samples = _samples("BasicVSR", [2], clip=6, length=2)
    settings = LoopSettings(steps=1, lr=1e-2, warmup_steps=0, precision="bf16")
    train(network, _task("BasicVSR", samples), settings, tmp_path)
    moved = [name for name, value in network.named_parameters() if (value != before[name]).any()]
    assert any("trunk" in name for name in moved)
    assert len(moved) == len(before)


@pytest.mark.parametrize("name", ["BasicVSR", "BasicVSRPlusPlus"])
def test_the_memory_of_a_long_pass_does_not_depend_on_its_length(name: str) -> None:
    network = as_recurrent(_network(name).eval())
    wanted = [(sweep, 10) for sweep in _contract(name).edge_states.sweeps]  # type: ignore[union-attr]
    peaks = []
    for frames in (20, 80):
        lq = torch.rand(1, frames, 3, 16, 16)
        limits = FeatureLimits(host_bytes=0)
        peaks.append(
            peak_tensor_bytes(
                lambda lq=lq, limits=limits: record_states(network, lq, wanted, limits)
            )
        )
    assert peaks[1] < 1.1 * peaks[0]


def test_a_state_that_a_network_does_not_compute_is_named() -> None:
    network = as_recurrent(_network("BasicVSR"))
    with pytest.raises(ValueError, match=r"BasicVSR computed no state for \[\('sideways', 1\)\]"):
        record_states(network, torch.rand(1, 3, 3, 8, 8), [("forward", 1), ("sideways", 1)])


def test_every_network_with_states_is_here() -> None:
    assert {"BasicVSR", "BasicVSRPlusPlus", "IconVSR", "OVSR", "ZoomingSlowMo"} <= set(RECURRENT)
    assert Contract(scale=4, temporal=Temporal("clip")).edge_states.sweeps == ()
