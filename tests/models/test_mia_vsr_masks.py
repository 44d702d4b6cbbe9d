"""MIA-VSR with masks: recorded output, and the caches at the ends of a clip."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
import torch
from torch import Tensor

from helpers.chain_networks import TINY, small_network
from helpers.clip_parity import assert_clip_as_recorded
from tubelet.errors import RequestError
from tubelet.layers.chain import CHAIN_SWEEPS
from tubelet.layers.inference import prepare_for_inference
from tubelet.layers.masked_attention import KeepRatio, MaskedBlock, cache_names
from tubelet.layers.recurrence import Edge
from tubelet.models.mia_vsr import ARCHITECTURE, MIAVSR, MIAVSRConfig

States = dict[tuple[str, int], Tensor]

CONFIG = MIAVSRConfig(**TINY)
FRAMES = 6


def _network(*, use_mask: bool = True) -> MIAVSR:
    """A network in float64 whose masks keep a part of the tokens."""
    network = small_network(ARCHITECTURE, use_mask=use_mask)
    # Flows that do not leave these small frames.
    network.spynet.conv.weight.data *= 0.2
    for name, parameter in network.named_parameters():
        if name.endswith("mask_predictor.weight"):
            # Half of the channels speak for a token, half against it.
            parameter.data[0] = torch.linspace(-1, 1.1, parameter.shape[1])
    return cast(MIAVSR, network)


@pytest.fixture(scope="module")
def video() -> Tensor:
    """Frames that resemble each other."""
    generator = torch.Generator().manual_seed(1)
    still = torch.rand(2, 1, 3, 7, 9, generator=generator, dtype=torch.float64)
    noise = torch.rand(2, FRAMES, 3, 7, 9, generator=generator, dtype=torch.float64)
    return 0.7 * still + 0.3 * noise


def _restore(network: MIAVSR, lq: Tensor, **edges: Edge) -> tuple[Tensor, States]:
    states: States = {}

    def record(name: str, t: int, state: Tensor) -> None:
        states[name, t] = state

    with torch.no_grad():
        sr = torch.stack(list(network.restore(lq, on_state=record, **edges)), 1)
    return sr, states


def _edges(video: Tensor, states: States, start: int, stop: int) -> tuple[Edge, Edge]:
    before = _edge(video, states, range(start)[::-1], "forward")
    return before, _edge(video, states, range(stop, FRAMES), "backward")


def _edge(video: Tensor, states: States, frames: range, direction: str) -> Edge:
    """Build an edge with all states and caches of the sweeps of a direction."""
    if not frames:
        return Edge()
    hidden = {}
    for sweep in CHAIN_SWEEPS:
        if sweep.startswith(direction):
            hidden[sweep] = tuple(states[sweep, t] for t in frames[:2])
            for name in cache_names(CONFIG.depths):
                hidden[f"{sweep}/{name}"] = (states[f"{sweep}/{name}", frames[0]],)
    return Edge(tuple(video[:, t] for t in frames[:2]), hidden, frames[0])


def test_gives_the_recorded_output(recordings: Path) -> None:
    assert_clip_as_recorded(recordings, "miavsr_A")


def test_equals_the_published_formulation(video: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    from plain.chain import plain_chain
    from plain.masks import plain_masks

    network = _network()
    with torch.no_grad():
        expected = plain_chain(network, video, refine=plain_masks())
        torch.testing.assert_close(network(video), expected, rtol=0, atol=1e-10)
        prepare_for_inference(network)
        torch.testing.assert_close(network(video), expected, rtol=0, atol=1e-10)


@pytest.fixture
def logits(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Tensor]]:
    """Logits of all masks that networks compute."""
    seen: list[Tensor] = []
    compute = MaskedBlock._mask_logits

    def record(block: MaskedBlock, x: Tensor, last_x: Tensor) -> Tensor:
        result = compute(block, x, last_x)
        # Those of the padding are the bias.
        seen.append(result[:, :, :7, :9])
        return result

    monkeypatch.setattr(MaskedBlock, "_mask_logits", record)
    return iter([seen])


@pytest.mark.parametrize("prepared", [False, True])
def test_every_clip_of_a_video_gives_the_frames_of_the_video(
    video: Tensor, logits: Iterator[list[Tensor]], prepared: bool
) -> None:
    network = _network()
    if prepared:
        prepare_for_inference(network)
    sr, states = _restore(network, video)
    if not prepared:
        (seen,) = logits
        # No decision hangs on rounding, and many tokens are kept and skipped.
        assert min(float(x.abs().min()) for x in seen) > 1e-8
        assert 0.2 < torch.cat([x.flatten() for x in seen]).ge(0).double().mean() < 0.8
    spans = [(0, 1), (0, 3), (1, 2), (1, 5), (2, 4), (2, 6), (5, 6)]
    for start, stop in spans:
        before, after = _edges(video, states, start, stop)
        clip = video[:, start:stop]
        part, recorded = _restore(network, clip, before=before, after=after)
        torch.testing.assert_close(part, sr[:, start:stop], rtol=0, atol=1e-10)
        for (name, t), state in recorded.items():
            torch.testing.assert_close(state, states[name, start + t], rtol=0, atol=1e-10)


def test_every_map_of_an_edge_matters(video: Tensor) -> None:
    network, video = _network(), video[:1]
    _, states = _restore(network, video)
    edges = dict(zip(("before", "after"), _edges(video, states, 2, 4), strict=True))
    sr, _ = _restore(network, video[:, 2:4], **edges)
    for side, edge in edges.items():
        assert len(edge.hidden) == 2 * (1 + len(cache_names(CONFIG.depths)))
        for name, maps in edge.hidden.items():
            for i, state in enumerate(maps):
                moved = state + torch.randn_like(state)
                changed = (*maps[:i], moved, *maps[i + 1 :])
                other = replace(edge, hidden={**edge.hidden, name: changed})
                result, _ = _restore(network, video[:, 2:4], **{**edges, side: other})
                assert (result - sr).abs().max() > 1e-6, name


def test_masks_need_their_caches(video: Tensor) -> None:
    network = _network()
    _, states = _restore(network, video)
    before, after = _edges(video, states, 2, 4)
    states_only = {name: maps for name, maps in before.hidden.items() if "/" not in name}
    without = replace(before, hidden=states_only)
    with pytest.raises(RequestError, match=r"the edge lacks 'forward_1/0/input'; .*use_mask=False"):
        network(video[:, 2:4], without, after)
    hidden = {n: maps for n, maps in after.hidden.items() if n != "backward_2/0.1/residual"}
    with pytest.raises(RequestError, match=r"the edge lacks 'backward_2/0.1/residual'"):
        network(video[:, 2:4], before, replace(after, hidden=hidden))
    # Without states, or without masks, none are needed.
    with torch.no_grad():
        network(video[:, 2:4], Edge(frame_index=1), Edge(frame_index=4))
        _network(use_mask=False)(video[:, 2:4], without, after)


def test_masks_are_a_setting_that_files_do_not_tell(video: Tensor) -> None:
    masked, unmasked = _network(), _network(use_mask=False)
    assert list(masked.state_dict()) == list(unmasked.state_dict())
    sr, states = _restore(unmasked, video)
    assert {name for name, _ in states} == set(CHAIN_SWEEPS)
    assert (_restore(masked, video)[0] - sr).abs().max() > 1e-3


def test_the_share_of_computed_tokens_can_be_trained_down(video: Tensor) -> None:
    network, lq = _network(), video[:1, :2]
    shares: list[float] = []
    optimizer = torch.optim.SGD(network.parameters(), lr=10.0)
    network.train()
    for _ in range(6):
        ratio = KeepRatio()
        for _ in network.restore(lq, on_state=ratio):
            pass
        optimizer.zero_grad()
        ratio.mean().backward()
        optimizer.step()
        shares.append(ratio.mean().item())
    assert shares[-1] < shares[0] - 0.1
    assert all(0 < share < 1 for share in shares)


def test_the_share_is_the_mean_of_all_masks(video: Tensor) -> None:
    ratio, network = KeepRatio(), _network()
    assert ratio.mean() == 1
    _, states = _restore(network, video)
    masks = [state for (name, _), state in states.items() if name.endswith("/keep")]
    for (name, t), state in states.items():
        ratio(name, t, state)
    # Four sweeps of three blocks; the first frame of a sweep has no masks.
    assert len(masks) == 4 * 3 * (FRAMES - 1)
    torch.testing.assert_close(ratio.mean(), torch.stack(masks).mean())


def test_caches_are_those_of_the_last_frame_alone(video: Tensor) -> None:
    """Nothing of a video is kept in the network."""
    network = _network()
    first, _ = _restore(network, video)
    _restore(network, video.flip(1))
    assert torch.equal(_restore(network, video)[0], first)
