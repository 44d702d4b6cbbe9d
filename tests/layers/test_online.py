from typing import Any

import pytest
import torch
from torch import Tensor, nn

from helpers.zoo_configs import TINY, tiny_network
from tubelet.layers.online import Hidden, run_online
from tubelet.layers.recurrence import Edge

NETWORKS = {"FastVSR": 1, "FRVSR": 0, "RLSP": 1, "RRN": 1, "RSDN": 1}
"""Online networks, and the frames that they look ahead."""
NUM_FRAMES = 5
_SIZE_MULTIPLES = {"FRVSR": 8, "RSDN": 2}


def _network(name: str) -> Any:
    """Build a network whose state has an influence; that of FastVSR starts without one."""
    torch.manual_seed(0)
    network = tiny_network(name).double().eval()
    for parameter in network.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    return network


def _video(height: int, width: int) -> Tensor:
    return torch.rand(
        2,
        NUM_FRAMES,
        3,
        height,
        width,
        generator=torch.Generator().manual_seed(1),
        dtype=torch.float64,
    )


def _beyond(video: Tensor, stop: int, lookahead: int) -> Edge:
    """Build the edge after frame stop - 1."""
    frames = tuple(video[:, t] for t in range(stop, min(stop + lookahead, NUM_FRAMES)))
    return Edge(frames, frame_index=stop if frames else -1)


def test_steps_see_the_frames_that_follow_and_the_last_is_repeated() -> None:
    video = torch.arange(6.0).view(1, 6, 1, 1, 1)
    seen: list[list[float]] = []

    def step(lq: Tensor, hidden: Hidden | None) -> tuple[Tensor, Hidden]:
        seen.append(lq.flatten().tolist())
        return lq[:, 0], (hidden[0] + 1 if hidden else torch.tensor(1),)

    sr, hidden = run_online(step, video[:, :3], lookahead=2)
    assert torch.equal(sr, video[:, :3])
    assert seen == [[0, 1, 2], [1, 2, 2], [2, 2, 2]]
    assert hidden[0] == 3
    seen.clear()
    _, hidden = run_online(
        step, video[:, 3:5], hidden, lookahead=2, after=Edge((video[:, 5],), frame_index=5)
    )
    assert seen == [[3, 4, 5], [4, 5, 5]]
    assert hidden[0] == 5


@pytest.mark.parametrize("name", NETWORKS)
def test_two_halves_with_the_state_handed_over_are_the_whole(name: str) -> None:
    multiple = _SIZE_MULTIPLES.get(name, 1)
    network = _network(name)
    video = _video(3 * multiple, 5 * multiple)
    lookahead = NETWORKS[name]
    with torch.no_grad():
        whole, end = run_online(network.step, video, lookahead=lookahead)
        assert torch.equal(network(video), whole)
        for split in range(1, NUM_FRAMES):
            after = _beyond(video, split, lookahead)
            first, hidden = run_online(
                network.step, video[:, :split], lookahead=lookahead, after=after
            )
            second, last = run_online(network.step, video[:, split:], hidden, lookahead=lookahead)
            torch.testing.assert_close(torch.cat([first, second], 1), whole, rtol=0, atol=1e-10)
            for state, expected in zip(last, end, strict=True):
                torch.testing.assert_close(state, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_are_those_of_the_video_cut_before_the_second_half(name: str) -> None:
    network = _network(name)
    video = _video(16, 16)
    lookahead = NETWORKS[name]
    split = 2

    def gradients(sr: Tensor) -> list[Tensor]:
        weights = torch.rand(sr.shape, generator=torch.Generator().manual_seed(2), dtype=sr.dtype)
        network.zero_grad()
        (sr * weights).sum().backward()
        return [
            torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in network.parameters()
        ]

    taken = 0

    def cut(lq: Tensor, hidden: Hidden | None) -> tuple[Tensor, Hidden]:
        """Detach the state by hand at the split."""
        nonlocal taken
        if hidden is not None and taken == split:
            hidden = tuple(state.detach() for state in hidden)
        taken += 1
        return network.step(lq, hidden)

    expected = gradients(run_online(cut, video, lookahead=lookahead)[0][:, split:])
    with torch.no_grad():
        after = _beyond(video, split, lookahead)
        _, hidden = run_online(network.step, video[:, :split], lookahead=lookahead, after=after)
    actual = gradients(run_online(network.step, video[:, split:], hidden, lookahead=lookahead)[0])
    for one, other in zip(actual, expected, strict=True):
        scale = other.abs().max().clamp(min=1)
        torch.testing.assert_close(one / scale, other / scale, rtol=0, atol=1e-8)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_map_of_the_state_matters(name: str) -> None:
    network = _network(name)
    video = _video(16, 16)
    lookahead = NETWORKS[name]
    with torch.no_grad():
        _, hidden = run_online(network.step, video[:, :2], lookahead=lookahead)
        sr, _ = run_online(network.step, video[:, 2:], hidden, lookahead=lookahead)
        for i in range(len(hidden)):
            moved = [*hidden]
            moved[i] = moved[i] + 1e-2 * torch.randn_like(moved[i])
            other, _ = run_online(network.step, video[:, 2:], tuple(moved), lookahead=lookahead)
            assert (other - sr).abs().max() > 1e-9


def test_every_online_network_is_here() -> None:
    assert {name for name in TINY if hasattr(tiny_network(name), "step")} == set(NETWORKS)
