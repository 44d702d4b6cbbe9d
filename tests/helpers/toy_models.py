"""A plain small network of each temporal kind, with fixed random weights."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from tubelet.layers.recurrence import Edge, EdgeStates, Past, StateObserver, sweep
from tubelet.layers.store import FeatureStore, open_store
from tubelet.models.architecture import Contract
from tubelet.types import Frame, Temporal
from tubelet.zoo.spec import ModelSpec

SCALE = 2


def _up(features: Tensor) -> Tensor:
    return F.pixel_shuffle(features, SCALE)


class FrameNet(nn.Module):
    """Two 3×3 convolutions of each frame."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 8, 3, padding=1)
        self.head = nn.Conv2d(8, 3 * SCALE**2, 3, padding=1)

    def forward(self, lq: Tensor) -> Tensor:
        sr = _up(self.head(self.body(lq.flatten(0, 1)).relu())) + 0.5
        return sr.unflatten(0, lq.shape[:2])


class CoarseNet(nn.Module):
    """Works on a grid of 4×4 blocks, so sizes must be multiples of 4."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 3 * SCALE**2, 3, padding=1)

    def forward(self, lq: Tensor) -> Tensor:
        assert lq.shape[-1] % 4 == lq.shape[-2] % 4 == 0
        assert min(lq.shape[-2:]) >= 8
        coarse = self.body(F.avg_pool2d(lq.flatten(0, 1), 4))
        return _up(F.interpolate(coarse, scale_factor=4.0)).unflatten(0, lq.shape[:2]) + 0.5


class WindowNet(nn.Module):
    """Three frames side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(9, 8, 3, padding=1)
        self.head = nn.Conv2d(8, 3 * SCALE**2, 3, padding=1)

    def forward(self, lq: Tensor) -> Tensor:
        assert lq.shape[1] == 3
        return (_up(self.head(self.body(lq.flatten(1, 2)).relu())) + 0.5)[:, None]


class OnlineNet(nn.Module):
    """Recurrent: a state at the size of lq and one at the size of sr; sees one frame ahead."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(6 + 8 + 3 * SCALE**2, 8, 3, padding=1)
        self.head = nn.Conv2d(8, 3 * SCALE**2, 3, padding=1)

    def step(
        self, lq: Tensor, hidden: tuple[Tensor, ...] | None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        b, _, _, h, w = lq.shape
        if hidden is None:
            hidden = lq.new_zeros(b, 8, h, w), lq.new_zeros(b, 3, SCALE * h, SCALE * w)
        features, last = hidden
        seen = torch.cat([lq.flatten(1, 2), features, F.pixel_unshuffle(last, SCALE)], 1)
        features = (3 * self.body(seen)).tanh()
        sr = _up(self.head(features)).sigmoid()
        return sr, (features, sr)

    def forward(self, lq: Tensor) -> Tensor:
        hidden, out = None, []
        padded = torch.cat([lq, lq[:, -1:]], 1)
        for t in range(lq.shape[1]):
            sr, hidden = self.step(padded[:, t : t + 2], hidden)
            out.append(sr)
        return torch.stack(out, 1)


class GlobalStateNet(nn.Module):
    """Its state is one vector, which cannot be cut into tiles."""

    def step(
        self, lq: Tensor, hidden: tuple[Tensor, ...] | None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        mean = lq.mean((-1, -2))[:, 0]
        return F.interpolate(lq[:, 0], scale_factor=SCALE), (mean,)


class ClipNet(nn.Module):
    """A 3×3×3 convolution: each frame sees one frame on each side."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv3d(3, 3 * SCALE**2, 3, padding=1)
        self.calls: list[int] = []

    def forward(self, lq: Tensor) -> Tensor:
        self.calls.append(lq.shape[1])
        out = self.body(lq.transpose(1, 2)).transpose(1, 2)
        return _up(out.flatten(0, 1)).unflatten(0, lq.shape[:2]) + 0.5


class StreamNet(nn.Module):
    """A running mean from the end to the start, then a convolution; gives its frames back one by one."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(6, 3 * SCALE**2, 3, padding=1)
        self.calls: list[int] = []
        self.places: list[tuple[int, int]] = []  # of the frames beyond both ends of each clip

    def forward(self, lq: Tensor, before: Edge = Edge(), after: Edge = Edge()) -> Tensor:
        return torch.stack(list(self.restore(lq, before=before, after=after)), 1)

    def restore(
        self,
        lq: Tensor,
        *,
        before: Edge = Edge(),
        after: Edge = Edge(),
        on_state: StateObserver | None = None,
        store: FeatureStore | None = None,
    ) -> Iterator[Tensor]:
        del on_state
        assert not before.hidden
        assert not after.hidden
        self.calls.append(lq.shape[1])
        self.places.append((before.frame_index, after.frame_index))
        feat = torch.zeros_like(lq[:, 0])
        with open_store(store) as features:
            for t in reversed(range(lq.shape[1])):
                feat = 0.2 * feat + lq[:, t]
                features.append(t, feat)
            for t in range(lq.shape[1]):
                yield _up(self.head(torch.cat([*features.pop(t), lq[:, t]], 1))) + 0.5


class RecurrentNet(nn.Module):
    """A sweep backward, one of second order forward, and a convolution of both.

    Each also sees the frame that it visited before; beyond the edges frames are black. Frames are
    taken `multiple` at a time, and each state belongs to as many.
    """

    multiple = 1

    def __init__(self) -> None:
        super().__init__()
        images = 3 * self.multiple
        self.backward_body = nn.Conv2d(2 * images + 4, 4, 3, padding=1)
        self.forward_body = nn.Conv2d(2 * images + 8, 4, 3, padding=1)
        self.head = nn.Conv2d(8, images * SCALE**2, 3, padding=1)
        self.calls: list[int] = []

    def forward(self, lq: Tensor, before: Edge = Edge(), after: Edge = Edge()) -> Tensor:
        return torch.stack(list(self.restore(lq, before=before, after=after)), 1)

    def restore(
        self,
        lq: Tensor,
        *,
        before: Edge = Edge(),
        after: Edge = Edge(),
        on_state: StateObserver | None = None,
        store: FeatureStore | None = None,
    ) -> Iterator[Tensor]:
        states = self.propagate(lq, before=before, after=after, on_state=on_state, store=store)
        for _, feats in states:
            sr = _up(self.head(torch.cat(feats, 1)) + 0.5)
            yield from sr.unflatten(1, (self.multiple, 3)).unbind(1)

    def propagate(
        self,
        lq: Tensor,
        *,
        before: Edge = Edge(),
        after: Edge = Edge(),
        on_state: StateObserver | None = None,
        store: FeatureStore | None = None,
    ) -> Iterator[tuple[int, list[Tensor]]]:
        m = self.multiple
        assert lq.shape[1] % m == 0
        self.calls.append(lq.shape[1])
        count = lq.shape[1] // m
        images = dict(enumerate(lq.unflatten(1, (count, m)).flatten(2, 3).unbind(1)))
        for frames, number, order in ((before.frames, -1, -1), (after.frames, count, 1)):
            if frames:
                images[number] = torch.cat(frames[:m][::order], 1)

        def advance(body: nn.Module, step: int, t: int, past: Past, order: int) -> Tensor:
            zeros = torch.zeros_like(images[t][:, :1]).expand(-1, 4, -1, -1)
            states = [*past, *[zeros] * (order - len(past))]
            last = images.get(t - step, torch.zeros_like(images[t]))
            return body(torch.cat([images[t], last, *states], 1)).tanh()

        with open_store(store) as features:
            for t, state in sweep(
                "backward",
                count,
                -1,
                after,
                1,
                lambda t, past: advance(self.backward_body, -1, t, past, 1),
                on_state,
            ):
                features.append(t, state)
            for t, state in sweep(
                "forward",
                count,
                1,
                before,
                2,
                lambda t, past: advance(self.forward_body, 1, t, past, 2),
                on_state,
            ):
                yield t, [*features.pop(t), state]


class PairNet(RecurrentNet):
    """Takes two frames at a time."""

    multiple = 2


class ForwardNet(RecurrentNet):
    """Its backward sweep has no effect: so windows give what the whole scene gives."""

    def __init__(self) -> None:
        super().__init__()
        nn.init.zeros_(self.backward_body.weight)
        nn.init.zeros_(self.backward_body.bias)


class SpaceTimeNet(nn.Module):
    """A 3×3 convolution of each frame; half-way between two lies their mean."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 3 * SCALE**2, 3, padding=1)
        self.calls: list[int] = []

    def forward(self, lq: Tensor) -> Tensor:
        self.calls.append(lq.shape[1])
        frames = _up(self.body(lq.flatten(0, 1))).unflatten(0, lq.shape[:2]) + 0.5
        sr = frames.repeat_interleave(2, 1)[:, :-1]
        sr[:, 1::2] = (frames[:, :-1] + frames[:, 1:]) / 2
        return sr


class NearestNet(nn.Module):
    """Repeats pixels."""

    def forward(self, lq: Tensor) -> Tensor:
        return lq.repeat_interleave(SCALE, -1).repeat_interleave(SCALE, -2)


def spec_of(network: type[nn.Module], temporal: Temporal, **fields: Any) -> ModelSpec:
    return ModelSpec(
        id=network.__name__,
        summary="for tests",
        architecture=network.__name__,
        contract=Contract(scale=SCALE, temporal=temporal, **fields),
        build=network,
    )


def with_contract(spec: ModelSpec, **fields: Any) -> ModelSpec:
    """Change fields of the contract."""
    return replace(spec, contract=replace(spec.contract, **fields))


FRAME = spec_of(FrameNet, Temporal("frame"), halo_px=2)
COARSE = spec_of(CoarseNet, Temporal("frame"), halo_px=7, size_multiple=4, min_size_px=8)
WINDOW = spec_of(WindowNet, Temporal("window", radius=1), halo_px=2)
ONLINE = spec_of(OnlineNet, Temporal("online", lookahead=1), halo_px=2)
GLOBAL_STATE = spec_of(GlobalStateNet, Temporal("online"))
CLIP = spec_of(ClipNet, Temporal("clip", window_frames=5, overlap_frames=2), halo_px=1)
WHOLE_CLIP = spec_of(ClipNet, Temporal("clip"), halo_px=1)
STREAM = spec_of(StreamNet, Temporal("clip"), halo_px=1, streams=True)
_STATES = EdgeStates(before=("forward",), after=("backward",), order=2)
RECURRENT = spec_of(
    RecurrentNet,
    Temporal("clip"),
    halo_px=16,
    streams=True,
    edge_frames=2,
    edge_states=_STATES,
    lookahead_frames=6,
)
PAIRS = spec_of(
    PairNet,
    Temporal("clip"),
    halo_px=16,
    streams=True,
    edge_frames=4,
    edge_states=_STATES,
    lookahead_frames=6,
    frame_multiple=2,
)
FORWARD = spec_of(
    ForwardNet,
    Temporal("clip"),
    halo_px=16,
    streams=True,
    edge_frames=2,
    edge_states=_STATES,
    lookahead_frames=2,
)
SPACE_TIME = spec_of(
    SpaceTimeNet, Temporal("clip", window_frames=5, overlap_frames=2, between_frames=1), halo_px=1
)
WHOLE_SPACE_TIME = spec_of(SpaceTimeNet, Temporal("clip", between_frames=1), halo_px=1)
NEAREST = spec_of(NearestNet, Temporal("frame"))
ALL = [
    FRAME,
    COARSE,
    WINDOW,
    ONLINE,
    CLIP,
    WHOLE_CLIP,
    STREAM,
    RECURRENT,
    SPACE_TIME,
    WHOLE_SPACE_TIME,
    NEAREST,
]


def build(spec: ModelSpec) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return spec.build().eval()


def clip_of(num_frames: int, height: int = 24, width: int = 32, *, seed: int = 0) -> Tensor:
    """(T, 3, H, W)."""
    return torch.rand(num_frames, 3, height, width, generator=torch.Generator().manual_seed(seed))


def frames_of(clip: Tensor) -> list[Frame]:
    """Frames at uneven times."""
    return [Frame(rgb, 10 * t + t % 3, Fraction(1, 90), 10, t) for t, rgb in enumerate(clip)]


def cuts_at(*numbers: int) -> Callable[[Tensor], bool]:
    """A detector that finds cuts at these frames."""
    seen = iter(range(1 << 30))
    return lambda _: next(seen) in numbers


def direct(spec: ModelSpec, model: nn.Module, clip: Tensor) -> Tensor:
    """The result of a whole scene without the engine, at the times of its frames: (T, 3, sH, sW)."""
    lq = clip[None]
    with torch.inference_mode():
        if spec.temporal.kind == "window":
            padded = torch.cat([lq[:, :1], lq, lq[:, -1:]], 1)
            sr = torch.cat([model(padded[:, t : t + 3]) for t in range(lq.shape[1])], 1)
        else:
            sr = model(lq)[:, :: 1 + spec.temporal.between_frames]
    return sr[0]
