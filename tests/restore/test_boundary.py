"""What a window hands over to the next one."""

from typing import Any

import torch
from torch import Tensor

from tubelet.layers import store as store_module
from tubelet.layers.recurrence import Edge, EdgeStates
from tubelet.layers.store import FeatureLimits
from tubelet.models.architecture import Contract
from tubelet.restore.boundary import BoundaryRecorder, edge_tensors, with_tensors
from tubelet.types import Temporal


def contract_of(*, between_frames: int = 0, **fields: Any) -> Contract:
    temporal = Temporal("clip", between_frames=between_frames)
    order = fields.get("edge_frames", 0) // fields.get("frame_multiple", 1)
    states = EdgeStates(before=("forward", "last"), after=("backward",), order=order)
    if not order:
        states = EdgeStates()
    return Contract(scale=4, temporal=temporal, streams=True, edge_states=states, **fields)


def state(value: float) -> Tensor:
    return torch.full((1, 2, 3, 4), float(value))


def observe_sweep(recorder: BoundaryRecorder, name: str, numbers: range, first: float = 0) -> None:
    for t in numbers:
        recorder.observe(name, t, state(first + t))


def values(edge: Edge) -> dict[str, list[float]]:
    return {name: [float(s.mean()) for s in states] for name, states in edge.hidden.items()}


def frame_values(edge: Edge) -> list[float]:
    return [float(frame.mean()) for frame in edge.frames]


def window(num_frames: int, first: int = 0) -> Tensor:
    """Frames whose values are their numbers."""
    numbers = torch.arange(first, first + num_frames).float()
    return numbers[None, :, None, None, None].expand(1, -1, 3, 6, 8)


def test_the_last_states_of_forward_sweeps_before_the_seam_are_handed_over() -> None:
    recorder = BoundaryRecorder(contract_of(edge_frames=2), 5)
    observe_sweep(recorder, "backward", range(8)[::-1])
    observe_sweep(recorder, "forward", range(8), first=100)
    observe_sweep(recorder, "last", range(5), first=200)
    edge = recorder.next_edge(window(8), Edge())
    assert values(edge) == {"forward": [104, 103], "last": [204, 203]}
    assert frame_values(edge) == [4, 3]
    assert edge.frame_index == 4


def test_frames_do_not_keep_the_window_in_memory() -> None:
    lq = window(4).clone(memory_format=torch.contiguous_format)
    edge = BoundaryRecorder(contract_of(edge_frames=1), 2).next_edge(lq, Edge())
    assert edge.frames[0].untyped_storage().nbytes() == lq[:, 0].nbytes


def test_a_window_shorter_than_an_edge_hands_on_what_it_got() -> None:
    contract = contract_of(edge_frames=3)
    before = Edge()
    for first in (0, 2, 3):
        num_frames = 2 if first == 0 else 1
        recorder = BoundaryRecorder(contract, num_frames)
        observe_sweep(recorder, "forward", range(4), first=first)
        before = recorder.next_edge(window(4, first), before)
    assert values(before) == {"forward": [3, 2, 1]}
    assert frame_values(before) == [3, 2, 1]
    assert before.frame_index == 3


def test_a_space_time_network_hands_over_the_moment_next_to_the_seam() -> None:
    recorder = BoundaryRecorder(contract_of(edge_frames=1, between_frames=1), 3)
    observe_sweep(recorder, "forward", range(6))
    edge = recorder.next_edge(window(5), Edge(frame_index=9))
    assert values(edge) == {"forward": [5]}  # half-way between frames 2 and 3
    assert frame_values(edge) == [2]
    assert edge.frame_index == 12


def test_a_state_may_belong_to_several_frames() -> None:
    recorder = BoundaryRecorder(contract_of(edge_frames=4, frame_multiple=2), 6)
    observe_sweep(recorder, "forward", range(4))
    edge = recorder.next_edge(window(8), Edge())
    assert values(edge) == {"forward": [2, 1]}
    assert frame_values(edge) == [5, 4, 3, 2]


def test_networks_without_states_hand_over_their_position() -> None:
    recorder = BoundaryRecorder(contract_of(), 3)
    observe_sweep(recorder, "forward", range(5))
    edge = recorder.next_edge(window(5), Edge(frame_index=6))
    assert edge_tensors(edge) == ()
    assert edge.frame_index == 9


def test_states_beyond_the_limits_lie_in_a_file(monkeypatch: Any) -> None:
    written: list[int] = []
    write = store_module._SpillFile.write
    monkeypatch.setattr(
        store_module._SpillFile,
        "write",
        lambda self, feat: written.append(feat.nbytes) or write(self, feat),
    )
    limits = FeatureLimits(host_bytes=state(0).nbytes)
    with BoundaryRecorder(contract_of(edge_frames=2), 3, limits) as recorder:
        observe_sweep(recorder, "forward", range(3))
        assert len(written) == 1
        edge = recorder.next_edge(window(3), Edge())
    assert values(edge) == {"forward": [2, 1]}


def test_tensors_of_an_edge_are_replaced_in_order() -> None:
    edge = Edge((state(1), state(2)), {"a": (state(3),), "b": (state(4), state(5))}, 7)
    moved = with_tensors(edge, [tensor + 10 for tensor in edge_tensors(edge)])
    assert frame_values(moved) == [11, 12]
    assert values(moved) == {"a": [13], "b": [14, 15]}
    assert moved.frame_index == 7
    assert with_tensors(Edge(frame_index=3), ()).frame_index == 3
