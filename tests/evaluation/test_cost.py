"""The cost of a model, compared with counts by hand."""

from pathlib import Path

import psutil
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from helpers import toy_models
from tubelet.errors import Cancelled, CheckpointError, ConfigError, RequestError, ResourceError
from tubelet.evaluation import cost as module
from tubelet.evaluation.cost import Cost, CostSettings, measure_costs
from tubelet.evaluation.counting import count_flops
from tubelet.evaluation.machine import describe_machine, peak_resident_bytes
from tubelet.layers.convolution import ConvAct, ConvAdd, LeakyReLU, UpsampleConv
from tubelet.layers.inference import prepare_for_inference
from tubelet.progress import CancelToken, Progress
from tubelet.restore.runner import TorchRunner
from tubelet.types import Temporal
from tubelet.zoo.opening import OpenedModel, open_model
from tubelet.zoo.spec import ModelSpec

WIDTH, HEIGHT = 32, 24
TINY = CostSettings(size=f"{WIDTH}x{HEIGHT}", runs=3, warmup=1, device="cpu", precision="fp32")


def candidate(spec: ModelSpec) -> OpenedModel:
    return OpenedModel(spec.id, spec, toy_models.build(spec))


def cost_of(spec: ModelSpec, settings: CostSettings = TINY) -> Cost:
    report = measure_costs([candidate(spec)], settings)
    assert not report.failures
    return report.costs[0]


class Hungry(nn.Module):
    """Runs out of memory at its n-th call."""

    def __init__(self, calls: int) -> None:
        super().__init__()
        self.left = calls

    def forward(self, lq: Tensor) -> Tensor:
        self.left -= 1
        if self.left < 0:
            raise torch.OutOfMemoryError(
                "CUDA out of memory. Tried to allocate 2 GiB. GPU 0 has 1 GiB. See docs"
            )
        return F.interpolate(lq[0], scale_factor=2)[None]


def test_parameters_and_flops_equal_a_count_by_hand() -> None:
    cost = cost_of(toy_models.FRAME)
    assert cost.parameters == (3 * 9 + 1) * 8 + (8 * 9 + 1) * 12
    assert cost.flops == 2 * WIDTH * HEIGHT * (
        3 * 9 * 8 + 8 * 9 * 12
    )  # two per multiply-add, biases are not counted
    assert (cost.frames_in, cost.frames_out, cost.kind, cost.scale) == (1, 1, "frame", 2)


def test_a_window_pays_for_its_neighbors() -> None:
    cost = cost_of(toy_models.WINDOW)
    assert (cost.frames_in, cost.frames_out) == (3, 1)
    assert cost.flops == 2 * WIDTH * HEIGHT * (9 * 9 * 8 + 8 * 9 * 12)


def test_an_online_model_is_measured_with_its_state() -> None:
    first_step_only: list[bool] = []

    class Net(toy_models.OnlineNet):
        def step(self, lq, hidden):
            first_step_only.append(hidden is None)
            return super().step(lq, hidden)

    cost = cost_of(toy_models.spec_of(Net, Temporal("online", lookahead=1)))
    assert (cost.frames_in, cost.frames_out) == (2, 1)
    assert first_step_only[0]
    assert not any(first_step_only[1:])


def test_memory_is_what_stays_and_what_a_call_adds(monkeypatch: pytest.MonkeyPatch) -> None:
    state = (8 + 3 * toy_models.SCALE**2) * WIDTH * HEIGHT
    both = cost_of(toy_models.ONLINE).peak_bytes
    monkeypatch.setattr(module, "peak_bytes", lambda *_: 0)
    cost = cost_of(toy_models.ONLINE)
    assert cost.peak_bytes == 4 * (cost.parameters + 2 * 3 * WIDTH * HEIGHT + state)
    assert both >= cost.peak_bytes + 4 * state  # a call makes the next one


@pytest.mark.parametrize(
    ("spec", "requested", "frames"),
    [
        (toy_models.CLIP, None, 5),  # its window
        (toy_models.CLIP, 3, 3),
        (toy_models.CLIP, 50, 5),  # the engine never gives it more
        (toy_models.WHOLE_CLIP, None, 16),
        (toy_models.WHOLE_CLIP, 20, 20),
    ],
)
def test_a_clip_is_shared_by_its_frames(
    spec: ModelSpec, requested: int | None, frames: int
) -> None:
    cost = cost_of(
        spec, CostSettings(size="32x24", runs=1, warmup=0, frames=requested, device="cpu")
    )
    assert (cost.frames_in, cost.frames_out) == (frames, frames)
    assert cost.flops == 2 * WIDTH * HEIGHT * 3 * 27 * 12


def test_times_of_a_clip_are_a_frames_share(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(1000))
    monkeypatch.setattr(
        module.time, "perf_counter", lambda: float(next(clock))
    )  # a call takes a second
    cost = cost_of(toy_models.CLIP)
    assert cost.times_s == (0.2, 0.2, 0.2)
    assert cost.median_s == 0.2
    assert cost.spread_s == (0.2, 0.2)


def test_a_network_gets_the_size_that_it_needs() -> None:
    cost = cost_of(toy_models.COARSE, CostSettings(size="33x17", runs=1, device="cpu"))
    assert (cost.width, cost.height) == (36, 20)


def test_the_network_is_called_as_the_engine_calls_it(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[bool, bool, torch.dtype]] = []

    class Net(toy_models.FrameNet):
        def forward(self, lq):
            last = lq[0].is_contiguous(memory_format=torch.channels_last)
            seen.append((last, torch.is_grad_enabled(), self.body(lq[0]).dtype))
            return super().forward(lq)

    spec = toy_models.spec_of(Net, Temporal("frame"), precisions=("fp32", "bf16"))
    assert (
        cost_of(spec, CostSettings(size="32x24", runs=1, device="cpu", precision="bf16")).precision
        == "bf16"
    )
    assert set(seen) == {(True, False, torch.bfloat16)}


def test_models_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    call = TorchRunner.call

    def spy(self, lq, hidden):
        order.append(self.contract.temporal.kind)
        return call(self, lq, hidden)

    monkeypatch.setattr(TorchRunner, "call", spy)
    report = measure_costs([candidate(toy_models.FRAME), candidate(toy_models.WINDOW)], TINY)
    assert [cost.model for cost in report.costs] == ["FrameNet", "WindowNet"]
    assert order[-8:] == ["frame", "window"] * 4
    assert all(len(cost.times_s) == 3 for cost in report.costs)


def test_progress_counts_calls_and_names_the_stage() -> None:
    seen: list[Progress] = []
    measure_costs(
        [candidate(toy_models.FRAME), candidate(toy_models.WINDOW)],
        TINY,
        on_progress=seen.append,
    )
    labels = list(dict.fromkeys(now.label for now in seen))
    assert labels[:3] == [
        "FrameNet: FLOPs and memory",
        "WindowNet: FLOPs and memory",
        "timing, turn 1 of 4",
    ]
    assert (seen[-1].done, seen[-1].total, seen[-1].unit) == (10, 10, "call")


def test_a_token_ends_it_after_a_call() -> None:
    token = CancelToken()
    token.cancel()
    with pytest.raises(Cancelled):
        measure_costs([candidate(toy_models.FRAME)], TINY, cancel=token)


def test_a_slow_model_gets_its_share_of_time_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(1000))
    monkeypatch.setattr(module.time, "perf_counter", lambda: float(next(clock)))
    settings = CostSettings(size="32x24", runs=50, warmup=2, max_seconds=0.5, device="cpu")
    assert len(cost_of(toy_models.FRAME, settings).times_s) == 3


@pytest.mark.parametrize("calls", [0, 2, 5])
def test_a_model_that_runs_out_of_memory_does_not_stop_the_others(calls: int) -> None:
    spec = toy_models.spec_of(Hungry, Temporal("frame"))  # type: ignore[arg-type]
    hungry = OpenedModel("hungry", spec, Hungry(calls))
    report = measure_costs([hungry, candidate(toy_models.FRAME)], TINY)
    assert [cost.model for cost in report.costs] == ["FrameNet"]
    assert len(report.costs[0].times_s) == 3
    (failure,) = report.failures
    assert failure.model == "hungry"
    assert failure.reason == (
        "memory does not suffice for 32x24: CUDA out of memory. Tried to allocate 2 GiB; try a smaller --size"
    )


def test_a_call_that_will_not_fit_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "free_bytes", lambda _: 1_000_000)
    largest: list[int] = []

    class Net(toy_models.FrameNet):
        def forward(self, lq):
            largest.append(lq.shape[-1])
            return super().forward(lq)

    net = candidate(toy_models.spec_of(Net, Temporal("frame")))
    report = measure_costs([net], CostSettings(size="4000x4000", device="cpu"))
    assert "a call needs about" in report.failures[0].reason
    assert max(largest) == 64


def test_other_errors_are_not_treated_as_out_of_memory() -> None:
    class Broken(toy_models.FrameNet):
        def forward(self, lq):
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        cost_of(toy_models.spec_of(Broken, Temporal("frame")))


@pytest.mark.parametrize(
    "fields",
    [
        {"size": "320"},
        {"size": "0x180"},
        {"size": "-320x180"},
        {"size": "320x180x3"},
        {"size": "99999x180"},
        {"frames": 0},
        {"runs": 0},
        {"warmup": -1},
        {"max_seconds": 0.0},
        {"max_seconds": float("nan")},
    ],
)
def test_settings_that_make_no_sense_are_refused(fields: dict) -> None:
    with pytest.raises(ConfigError, match=next(iter(fields))):
        CostSettings(**fields)


def test_sizes_are_read_with_either_sign() -> None:
    for size in ("64x48", "64×48", "64X48"):
        assert (CostSettings(size=size).width, CostSettings(size=size).height) == (64, 48)


def test_devices_and_precisions_that_do_not_work_are_refused_before_anything_runs() -> None:
    with pytest.raises(ConfigError, match="abacus"):
        measure_costs([candidate(toy_models.FRAME)], CostSettings(size="32x24", device="abacus"))
    with pytest.raises(ResourceError, match="cuda:99"):
        measure_costs([candidate(toy_models.FRAME)], CostSettings(size="32x24", device="cuda:99"))
    with pytest.raises(ConfigError, match="fp32"):
        measure_costs(
            [candidate(toy_models.FRAME)],
            CostSettings(size="32x24", device="cpu", precision="bf16"),
        )


def test_models_come_from_the_zoo_or_from_files(tmp_path: Path) -> None:
    assert open_model("bicubic-x2").name == "bicubic-x2"
    assert open_model("default").name == open_model("default").spec.id
    with pytest.raises(RequestError, match="did you mean bicubic-x4"):
        open_model("bicubic-x44")
    with pytest.raises(CheckpointError, match=r"none\.safetensors"):
        open_model(str(tmp_path / "none.safetensors"))


def test_a_separate_process_reports_its_own_peak() -> None:
    held = bytearray(b"\1") * (1 << 30)  # Linux passes the peak of `getrusage` to child processes
    settings = CostSettings(size="32x24", runs=1, device="cpu", process_memory=True)
    peak = measure_costs([open_model("bicubic-x2")], settings).costs[0].process_bytes
    assert peak is not None
    assert 50e6 < peak < len(held)  # torch itself, not this image


def test_a_process_that_dies_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CHILD_CODE", "import os; os.kill(os.getpid(), 9)")
    settings = CostSettings(size="32x24", runs=1, device="cpu", process_memory=True)
    report = measure_costs([open_model("bicubic-x2")], settings)
    assert not report.costs
    assert "-9 (killed)" in report.failures[0].reason


def test_attention_counts_on_a_cpu() -> None:
    q = torch.rand(2, 4, 16, 8)  # batch, heads, tokens, channels
    with torch.no_grad():
        flops = count_flops(nn.Identity(), lambda: F.scaled_dot_product_attention(q, q, q))
    assert flops == 2 * (2 * 2 * 4 * 16 * 16 * 8)  # q·k and scores·v


def test_fused_convolutions_count_as_their_unfused_form() -> None:
    x = torch.rand(1, 64, 144, 256).contiguous(memory_format=torch.channels_last)
    product = 2 * 64 * 64 * 9 * 144 * 256
    with torch.no_grad():
        conv = prepare_for_inference(ConvAct(64, 64, act=LeakyReLU(0.1)))
        assert count_flops(conv, lambda: conv(x)) == product
        add = prepare_for_inference(ConvAdd(64, 64))
        assert count_flops(add, lambda: add(x, x)) == product
        up = prepare_for_inference(UpsampleConv(64, 64))
        assert count_flops(up, lambda: up(x)) == 4 * product
        assert up.backend == "auto"


def test_deformable_convolution_counts_as_a_convolution() -> None:
    ops = pytest.importorskip("torchvision.ops")
    x, weight, offset = torch.rand(1, 8, 10, 12), torch.rand(6, 4, 3, 3), torch.zeros(1, 18, 10, 12)
    with torch.no_grad():
        flops = count_flops(nn.Identity(), lambda: ops.deform_conv2d(x, offset, weight, padding=1))
    assert flops == 2 * 10 * 12 * 6 * 4 * 9  # two groups: each output sees four channels


def test_the_peak_of_this_process_is_in_bytes() -> None:
    assert (
        psutil.Process().memory_info().rss <= peak_resident_bytes() < psutil.virtual_memory().total
    )


def test_the_machine_has_a_name() -> None:
    machine = describe_machine(torch.device("cpu"))
    assert machine.processor
    assert machine.device == "cpu"
    assert machine.torch == torch.__version__
    assert machine.torch_threads == torch.get_num_threads()
