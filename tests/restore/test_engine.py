from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from torch import Tensor, nn

from helpers.toy_models import (
    ALL,
    CLIP,
    COARSE,
    FRAME,
    GLOBAL_STATE,
    NEAREST,
    ONLINE,
    STREAM,
    WHOLE_CLIP,
    WINDOW,
    build,
    clip_of,
    cuts_at,
    direct,
    frames_of,
    with_contract,
)
from helpers.zoo_configs import TINY, architecture_of, tiny_network
from tubelet.errors import ConfigError, ResourceError
from tubelet.layers import store as store_module
from tubelet.layers.convolution import ConvAct
from tubelet.layers.inference import Backend
from tubelet.layers.store import FeatureLimits
from tubelet.ops.resize import resample
from tubelet.restore import memory as memory_module
from tubelet.restore.device import resolve_device, resolve_precision
from tubelet.restore.engine import Engine
from tubelet.restore.plan import WindowPlan
from tubelet.restore.settings import UpscaleSettings
from tubelet.zoo.spec import ModelSpec

NEVER = cuts_at()
IDS = {"ids": lambda spec: spec.id if isinstance(spec, ModelSpec) else None}


def run(spec: ModelSpec, model: nn.Module, clip: Tensor, *cuts: int, **settings) -> Tensor:
    out = list(
        Engine(spec, model, UpscaleSettings(device="cpu", **settings)).restore(
            frames_of(clip), starts_scene=cuts_at(*cuts)
        )
    )
    assert len(out) == len(clip)
    return torch.stack([frame.rgb for frame in out])


@pytest.mark.parametrize("spec", ALL, **IDS)
@pytest.mark.parametrize("num_frames", [1, 2, 3, 9])
def test_engine_equals_the_network_on_the_whole_scene(spec, num_frames):
    model, clip = build(spec), clip_of(num_frames)
    torch.testing.assert_close(run(spec, model, clip), direct(spec, model, clip), rtol=0, atol=1e-5)


@pytest.mark.parametrize("spec", ALL, **IDS)
def test_times_are_kept_and_frames_come_in_order(spec):
    frames = frames_of(clip_of(7))
    out = list(Engine(spec, build(spec), UpscaleSettings(device="cpu")).restore(frames))
    assert [(f.pts, f.time_base, f.duration, f.index) for f in out] == [
        (f.pts, f.time_base, f.duration, f.index) for f in frames
    ]


@pytest.mark.parametrize("spec", [WINDOW, ONLINE, CLIP, WHOLE_CLIP], **IDS)
def test_nothing_crosses_a_cut(spec):
    model, clip = build(spec), clip_of(11)
    cut = 6
    expected = torch.cat([direct(spec, model, clip[:cut]), direct(spec, model, clip[cut:])])
    torch.testing.assert_close(run(spec, model, clip, cut), expected, rtol=0, atol=1e-5)
    across = run(spec, model, clip)
    assert (across - expected)[cut - 1 : cut + 1].abs().max() > 1e-3  # the cut matters


@pytest.mark.parametrize("spec", [WINDOW, ONLINE, CLIP], **IDS)
def test_scenes_are_found_in_the_stream_by_default(spec):
    model = build(spec)
    clip = torch.cat(
        [
            torch.rand(1, 3, 24, 32).expand(4, -1, -1, -1) * 0.4,
            torch.rand(1, 3, 24, 32).expand(4, -1, -1, -1) * 0.4 + 0.6,
        ]
    )
    out = list(Engine(spec, model, UpscaleSettings(device="cpu")).restore(frames_of(clip)))
    expected = torch.cat([direct(spec, model, clip[:4]), direct(spec, model, clip[4:])])
    torch.testing.assert_close(torch.stack([f.rgb for f in out]), expected, rtol=0, atol=1e-5)


def test_state_of_an_online_model_carries_over_many_frames():
    model, clip = build(ONLINE), clip_of(6)
    changed = clip.clone()
    changed[0] = 1 - changed[0]
    assert (run(ONLINE, model, clip) - run(ONLINE, model, changed))[4].abs().max() > 1e-5


@pytest.mark.parametrize("spec", ALL, **IDS)
@pytest.mark.parametrize("size", [(70, 100), (33, 65), (41, 37)])
def test_tiles_do_not_show(spec, size):
    model, clip = build(spec), clip_of(6, *size)
    untiled, tiled = run(spec, model, clip, tile=0), run(spec, model, clip, tile=32)
    torch.testing.assert_close(tiled, untiled, rtol=0, atol=1e-5)


def test_tiles_show_without_the_halo():
    spec = with_contract(ONLINE, halo_px=0)
    model, clip = build(spec), clip_of(6, 70, 100)
    assert (run(spec, model, clip, tile=0) - run(spec, model, clip, tile=32)).abs().max() > 1e-3


@pytest.mark.parametrize("size", [(21, 30), (22, 35), (5, 7), (1, 3)])
def test_sizes_that_the_network_does_not_take_are_padded_and_cropped(size):
    out = run(COARSE, build(COARSE), clip_of(2, *size))
    assert out.shape == (2, 3, 2 * size[0], 2 * size[1])
    assert out.std() > 0


def test_padding_mirrors_the_image():
    model, clip = build(COARSE), clip_of(1, 21, 30)
    mirrored = torch.cat([clip, clip[..., -4:-1, :].flip(-2)], -2)
    mirrored = torch.cat([mirrored, mirrored[..., -3:-1].flip(-1)], -1)
    expected = direct(COARSE, model, mirrored)[..., :42, :60]
    torch.testing.assert_close(run(COARSE, model, clip), expected, rtol=0, atol=1e-6)


def test_nearest_network_changes_no_value():
    clip = clip_of(3)
    assert torch.equal(run(NEAREST, build(NEAREST), clip)[..., ::2, ::2], clip)


@pytest.mark.parametrize(
    ("settings", "size"),
    [({"scale": 3}, (72, 96)), ({"scale": 2}, (48, 64)), ({"height": 30}, (30, 40))],
)
def test_other_sizes_are_an_exact_resize_of_the_result(settings, size):
    model, clip = build(FRAME), clip_of(2)
    with torch.inference_mode():
        native = model(clip[None])[0]
    expected = resample(native, size)
    torch.testing.assert_close(run(FRAME, model, clip, **settings), expected, rtol=0, atol=1e-5)


def test_colors_beyond_rgb_pass_and_the_result_may_be_changed_in_place():
    model = build(FRAME)
    model.head.weight.data *= 50
    frame = next(
        iter(Engine(FRAME, model, UpscaleSettings(device="cpu")).restore(frames_of(clip_of(1))))
    )
    assert frame.rgb.min() < 0
    assert frame.rgb.max() > 1
    frame.rgb.mul_(255)


def test_alpha_is_resized_with_the_image():
    frame = frames_of(clip_of(1))[0]
    frame.alpha = torch.zeros(1, 24, 32)
    frame.alpha[..., 16:] = 1
    out = next(iter(Engine(FRAME, build(FRAME), UpscaleSettings(device="cpu")).restore([frame])))
    assert out.alpha is not None
    assert out.alpha.shape == (1, 48, 64)
    assert (out.alpha.min(), out.alpha.max()) == (0, 1)
    assert out.alpha[0, 0, 8] == 0
    assert out.alpha[0, 0, 56] == 1


@pytest.mark.parametrize(
    ("spec", "ahead"), [(FRAME, 1), (WINDOW, 2), (ONLINE, 2), (CLIP, 6)], **IDS
)
def test_no_more_frames_are_held_than_the_model_needs(spec, ahead):
    pulled = 0

    def stream():
        nonlocal pulled
        for frame in frames_of(clip_of(40, 16, 16)):
            pulled += 1
            yield frame

    for done, _ in enumerate(
        Engine(spec, build(spec), UpscaleSettings(device="cpu")).restore(
            stream(), starts_scene=NEVER
        )
    ):
        assert pulled - done <= ahead


def test_empty_stream_gives_an_empty_stream():
    assert list(Engine(FRAME, build(FRAME), UpscaleSettings(device="cpu")).restore([])) == []


class OutOfMemoryAbove(nn.Module):
    """Wraps a network: calls above an area fail as torch fails, after `patience` calls."""

    def __init__(
        self, model: nn.Module, area: int, patience: int = 0, error: Exception | None = None
    ) -> None:
        super().__init__()
        self.model, self.area, self.patience = model, area, patience
        self.error = error or RuntimeError(
            "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"
        )
        self.calls = 0

    def _check(self, lq: Tensor) -> None:
        self.calls += 1
        if self.calls > self.patience and lq.shape[-1] * lq.shape[-2] > self.area:
            raise self.error

    def forward(self, lq: Tensor) -> Tensor:
        self._check(lq)
        return self.model(lq)

    def step(self, lq: Tensor, hidden):
        self._check(lq)
        return self.model.step(lq, hidden)


@pytest.mark.parametrize("spec", [FRAME, COARSE, WINDOW, ONLINE, CLIP], **IDS)
@pytest.mark.parametrize("patience", [0, 2])
@pytest.mark.parametrize(
    "error", [None, torch.OutOfMemoryError("CUDA out of memory"), MemoryError()]
)
def test_when_memory_runs_out_the_call_is_done_again_in_smaller_tiles(spec, patience, error):
    model, clip = build(spec), clip_of(9, 100, 120)
    engine = Engine(
        spec,
        OutOfMemoryAbove(model, 60 * 60, patience, error),
        UpscaleSettings(device="cpu", tile=0),
    )
    out = list(engine.restore(frames_of(clip), starts_scene=NEVER))
    assert [f.index for f in out] == list(range(9))
    result = torch.stack([f.rgb for f in out])
    torch.testing.assert_close(result, direct(spec, model, clip), rtol=0, atol=1e-5)
    assert engine.notes


def test_tiles_of_a_model_that_sees_the_whole_image_are_noted():
    spec = with_contract(FRAME, sees_whole_image=True)
    clip = clip_of(2, 100, 120)

    def notes(tile: int, model: nn.Module) -> list[str]:
        engine = Engine(spec, model, UpscaleSettings(device="cpu", tile=tile))
        list(engine.restore(frames_of(clip), starts_scene=NEVER))
        return engine.notes

    assert notes(0, build(spec)) == []
    # A tile that contains the image changes nothing.
    assert notes(128, build(spec)) == []
    (note,) = notes(64, build(spec))
    assert note.startswith("the model sees the whole image, so tiles of 64 px change its result")
    # When memory runs out twice, once is enough.
    noted = notes(0, OutOfMemoryAbove(build(spec), 50 * 50))
    assert len(noted) > 2
    assert sum("sees the whole image" in note for note in noted) == 1


def test_out_of_memory_at_the_smallest_tile_is_a_resource_error():
    engine = Engine(
        FRAME, OutOfMemoryAbove(build(FRAME), 100), UpscaleSettings(device="cpu", tile=0)
    )
    with pytest.raises(ResourceError, match="out of memory with the smallest tile"):
        list(engine.restore(frames_of(clip_of(2, 64, 64))))


def test_out_of_memory_in_the_first_estimate_begins_with_the_smallest_tile():
    model, clip = build(FRAME), clip_of(2, 100, 120)
    engine = Engine(FRAME, OutOfMemoryAbove(model, 50 * 50), UpscaleSettings(device="cpu"))
    out = torch.stack([f.rgb for f in engine.restore(frames_of(clip))])
    torch.testing.assert_close(out, direct(FRAME, model, clip), rtol=0, atol=1e-5)


def test_other_errors_of_a_model_are_not_taken_for_memory():
    engine = Engine(
        FRAME,
        OutOfMemoryAbove(build(FRAME), 0, 0, RuntimeError("shape mismatch")),
        UpscaleSettings(device="cpu", tile=0),
    )
    with pytest.raises(RuntimeError, match="shape mismatch"):
        list(engine.restore(frames_of(clip_of(2))))


def test_a_state_that_is_no_image_runs_whole_and_is_refused_in_tiles():
    model, clip = build(GLOBAL_STATE), clip_of(2, 48, 64)
    assert run(GLOBAL_STATE, model, clip, tile=0).shape == (2, 3, 96, 128)
    with pytest.raises(ResourceError, match="cannot run in tiles"):
        run(GLOBAL_STATE, model, clip, tile=32)


GIB = 1 << 30


def engine_of(spec: ModelSpec, model: nn.Module | None = None, **settings) -> Engine:
    return Engine(spec, model or build(spec), UpscaleSettings(device="cpu", **settings))


def test_tiles_are_planned_from_memory():
    assert engine_of(FRAME, memory=1024).plan(720, 1280).tile_px == 0
    budgets = (100_000_000, 25_000_000, 5_000)
    sides = [engine_of(FRAME, memory=size / GIB).plan(720, 1280).tile_px for size in budgets]
    assert sides[0] > sides[1] > sides[2] == 32


def test_memory_is_half_of_what_is_free_by_default(monkeypatch):
    monkeypatch.setattr(memory_module, "free_bytes", lambda device: 10 * GIB)
    assert engine_of(FRAME).plan(24, 32).budget.device_bytes == 4 * GIB  # of 5, rounded down
    monkeypatch.setattr(memory_module, "free_bytes", lambda device: 14 * GIB)
    assert engine_of(FRAME).plan(24, 32).budget.device_bytes == 6 * GIB


def test_windows_of_a_whole_scene_model_are_planned_from_memory():
    plan = engine_of(WHOLE_CLIP, memory=1024).plan(90, 160)
    assert plan.window is not None
    assert plan.window.frames == 100
    plan = engine_of(WHOLE_CLIP, memory=10_000_000 / GIB).plan(90, 160)
    assert plan.window is not None
    assert plan.window.frames == 16
    assert 32 <= plan.tile_px < 160
    assert 0 < plan.window.overlap < 16


def test_long_scene_of_a_whole_scene_model_is_cut_into_windows():
    model, clip = build(WHOLE_CLIP), clip_of(40, 32, 32)
    result = run(WHOLE_CLIP, model, clip, tile=0, memory=500_000 / GIB)
    assert max(model.calls) == 16
    torch.testing.assert_close(result, direct(WHOLE_CLIP, model, clip), rtol=0, atol=1e-5)


def test_a_model_that_gives_frames_one_by_one_gets_whole_scenes():
    """The frames would not fit into one call's 16."""
    model, clip = build(STREAM), clip_of(40, 32, 32)
    probes = len(model.calls)
    result = run(STREAM, model, clip, 25)
    assert model.calls[probes:][-2:] == [25, 15]
    expected = torch.cat([direct(STREAM, model, clip[:25]), direct(STREAM, model, clip[25:])])
    assert torch.equal(result, expected)


def test_features_beyond_the_bound_lie_in_a_file(monkeypatch):
    written: list[int] = []
    write = store_module._SpillFile.write
    monkeypatch.setattr(
        store_module._SpillFile,
        "write",
        lambda self, feat: written.append(feat.nbytes) or write(self, feat),
    )
    model, clip = build(STREAM), clip_of(20)
    engine = engine_of(STREAM, model)
    plan = engine.plan(24, 32)
    written.clear()  # of the probes
    plan = replace(plan, features=FeatureLimits(host_bytes=5 * 4 * 3 * 24 * 32))
    restored = engine.restore(frames_of(clip), starts_scene=NEVER, plan=plan)
    out = torch.stack([frame.rgb for frame in restored])
    assert len(written) == 20 - 5
    assert torch.equal(out, direct(STREAM, model, clip))


@pytest.mark.parametrize("streams", [True, False])
def test_streaming_models_are_told_where_in_the_scene_a_window_lies(streams):
    model = build(STREAM)
    engine = engine_of(STREAM, model)
    plan = engine.plan(24, 32)
    plan = replace(
        plan, window=WindowPlan(frames=6, overlap=2), features=plan.features if streams else None
    )
    model.places.clear()  # of the probes
    list(engine.restore(frames_of(clip_of(15)), starts_scene=cuts_at(11), plan=plan))
    assert model.places == [
        (-1, 6),
        (3, 10),
        (4, -1),
        (-1, -1),
    ]  # frames 0-5, 4-9 and 5-10, then a scene of 4


def test_a_stream_that_runs_out_of_memory_goes_on_in_windows():
    model, clip = build(STREAM), clip_of(40, 32, 32)
    expected = direct(STREAM, model, clip)
    restore = model.restore

    def fails_late(lq, **kwargs):
        for t, sr in enumerate(restore(lq, **kwargs)):
            if lq.shape[1] > 16 and t == 3:
                raise MemoryError
            yield sr

    model.restore = fails_late
    engine = engine_of(STREAM, model)
    out = torch.stack([frame.rgb for frame in engine.restore(frames_of(clip), starts_scene=NEVER)])
    assert engine.notes[-1] == "out of memory: continuing with windows of 16 frames"
    torch.testing.assert_close(
        out, expected, rtol=0, atol=0.01
    )  # a seam sees 4 frames on each side


def test_scenes_are_as_long_as_disk_and_memory_allow(monkeypatch):
    engine = engine_of(STREAM, memory=1024)
    lengths = []
    for spare in (1 << 40, 10**9, 0):
        monkeypatch.setattr(memory_module, "spare_bytes", lambda folder, spare=spare: spare)
        window = engine.plan(720, 1280).window
        assert window is not None
        lengths.append(window.frames)
    assert 3000 == lengths[0] > lengths[1] > lengths[2] >= 16
    assert engine_of(STREAM, memory=5_000_000 / GIB).plan(720, 1280).features is None


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"device": "gpu"}, ConfigError, "'gpu' is not a device"),
        ({"device": "xpu"}, ConfigError, "not supported"),
        ({"device": "cuda:99"}, ResourceError, "not available"),
        ({"device": "cpu", "precision": "fp16"}, ConfigError, "it takes fp32"),
    ],
)
def test_impossible_devices_and_precisions_are_refused(settings, error, words):
    with pytest.raises(error, match=words):
        Engine(FRAME, build(FRAME), UpscaleSettings(**settings))


def test_bf16_runs_close_to_fp32():
    spec = with_contract(ONLINE, precisions=("fp32", "bf16"))
    model, clip = build(spec), clip_of(4)
    low = run(spec, model, clip, precision="bf16")
    assert low.dtype == torch.float32
    assert 0 < (low - direct(spec, model, clip)).abs().max() < 0.05


@pytest.mark.parametrize(
    ("can", "expected"),
    [({"avx512_bf16": True}, "bf16"), ({"avx512_f": True}, "fp32"), ({}, "fp32")],
)
def test_auto_precision_is_bf16_only_where_the_processor_multiplies_it(monkeypatch, can, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: can)
    spec = with_contract(ONLINE, precisions=("fp32", "bf16"))
    assert Engine(spec, build(spec), UpscaleSettings(device="cpu")).precision == expected
    assert Engine(ONLINE, build(ONLINE), UpscaleSettings(device="cpu")).precision == "fp32"


def test_auto_precision_of_a_gpu_is_the_first_that_keeps_the_quality():
    gpu = torch.device("cuda")
    for precisions, expected in [
        (("fp32", "bf16", "fp16"), "fp16"),
        (("fp32", "bf16"), "bf16"),
        (("fp32",), "fp32"),
    ]:
        assert (
            resolve_precision("auto", with_contract(FRAME, precisions=precisions), gpu) == expected
        )


def test_auto_device_exists():
    assert resolve_device("auto").type in ("cpu", "cuda", "mps")


def test_networks_get_channels_last_frames():
    seen = []

    class Probe(nn.Module):
        def forward(self, lq: Tensor) -> Tensor:
            seen.append(lq.flatten(0, 1).is_contiguous(memory_format=torch.channels_last))
            return lq.repeat_interleave(2, -1).repeat_interleave(2, -2)

    run(with_contract(WINDOW, temporal=CLIP.temporal), Probe(), clip_of(5), tile=0)
    assert seen == [True]


def test_convolution_weights_are_channels_last():
    model = build(FRAME)
    Engine(FRAME, model, UpscaleSettings(device="cpu"))
    assert model.body.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.gpu
@pytest.mark.parametrize("spec", ALL, **IDS)
def test_cuda_equals_cpu(spec):
    model, clip = build(spec), clip_of(9, 70, 100)
    expected = direct(spec, model, clip)
    for tile in (None, 32):
        engine = Engine(spec, build(spec), UpscaleSettings(device="cuda", tile=tile))
        out = torch.stack([f.rgb for f in engine.restore(frames_of(clip), starts_scene=NEVER)])
        torch.testing.assert_close(out, expected, rtol=0, atol=2e-3)  # TF32 convolutions


class NoRoomOnCuda(OutOfMemoryAbove):
    def _check(self, lq: Tensor) -> None:
        self.calls += 1
        if self.calls > self.patience and lq.is_cuda:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


@pytest.mark.gpu
@pytest.mark.parametrize("spec", [FRAME, WINDOW, ONLINE, CLIP], **IDS)
def test_cpu_takes_over_when_cuda_memory_runs_out(spec):
    model, clip = build(spec), clip_of(9, 70, 100)
    expected = direct(spec, model, clip)
    engine = Engine(spec, NoRoomOnCuda(model, 0, 5), UpscaleSettings(device="cuda"))
    out = list(engine.restore(frames_of(clip), starts_scene=NEVER))
    assert engine.device.type == "cpu"
    assert [f.index for f in out] == list(range(9))
    torch.testing.assert_close(torch.stack([f.rgb for f in out]), expected, rtol=0, atol=2e-3)


def test_time_base_of_frames_is_exact():
    frame = frames_of(clip_of(1))[0]
    frame.time_base = Fraction(1001, 30000)
    out = next(
        iter(Engine(NEAREST, build(NEAREST), UpscaleSettings(device="cpu")).restore([frame]))
    )
    assert out.time_base == Fraction(1001, 30000)


class _Fused(nn.Module):
    """A network of single frames with a layer that has a form for inference."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = ConvAct(3, 3)
        self.backends: list[Backend] = []

    def forward(self, lq: Tensor) -> Tensor:
        self.backends.append(self.conv.backend)
        return self.conv(lq[:, 0])[:, None]


def test_networks_are_prepared_once_and_measured_as_for_large_images():
    spec = replace(FRAME, contract=replace(FRAME.contract, scale=1))
    model = _Fused()
    engine = Engine(spec, model, UpscaleSettings(device="cpu"))
    assert model.conv.backend == "auto"
    list(engine.restore(frames_of(clip_of(2))))
    assert set(model.backends[:-2]) == {"winograd"}
    assert model.backends[-2:] == ["auto", "auto"]


@pytest.mark.parametrize(("name", "tile"), [("EDVR", 0), ("EDVR", 32), ("TDAN", 0)])
def test_window_models_encode_each_frame_once(name, tile):
    torch.manual_seed(0)
    network = tiny_network(name).eval()
    contract = architecture_of(name).contract(TINY[name])
    assert contract is not None
    spec = replace(FRAME, id=name, contract=contract, build=lambda: network)
    clip = clip_of(5, 32, 36)
    settings = UpscaleSettings(device="cpu", tile=tile)
    engine = Engine(spec, network, settings)
    plan = engine.plan(32, 36)
    assert len(plan.tiles) == (2 if tile else 1)
    assert plan.keep_encodings
    encoded = []
    encode = network.encode
    network.encode = lambda frame: encoded.append(frame.shape) or encode(frame)
    once = list(engine.restore(frames_of(clip), starts_scene=cuts_at(3), plan=plan))
    assert len(encoded) == 5 * len(plan.tiles)
    again = replace(plan, keep_encodings=False)
    each_time = list(engine.restore(frames_of(clip), starts_scene=cuts_at(3), plan=again))
    for a, b in zip(once, each_time, strict=True):
        torch.testing.assert_close(a.rgb, b.rgb, rtol=0, atol=1e-5)


def test_encodings_are_dropped_when_memory_runs_out():
    torch.manual_seed(0)
    network = tiny_network("EDVR").eval()
    contract = architecture_of("EDVR").contract(TINY["EDVR"])
    spec = replace(FRAME, id="EDVR", contract=contract, build=lambda: network)
    clip = clip_of(3, 32, 36)
    engine = Engine(spec, network, UpscaleSettings(device="cpu", tile=32))
    plan = engine.plan(32, 36)
    assert len(plan.tiles) == 2
    expected = list(
        engine.restore(
            frames_of(clip), starts_scene=NEVER, plan=replace(plan, keep_encodings=False)
        )
    )

    def fuse(window):
        raise MemoryError

    network.fuse, original = fuse, network.fuse
    network.forward = lambda lq: original(
        [network.encode(frame) for frame in lq.unbind(1)]
    ).unsqueeze(1)
    out = list(engine.restore(frames_of(clip), starts_scene=NEVER, plan=plan))
    assert engine.notes == ["out of memory: continuing without the cache of frame encodings"]
    for a, b in zip(out, expected, strict=True):
        torch.testing.assert_close(a.rgb, b.rgb, rtol=0, atol=1e-5)
