import json
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from tubelet.errors import Cancelled, DivergedError
from tubelet.progress import CancelToken, Progress
from tubelet.training import Batch, LoopSettings, Losses, train

SETTINGS = LoopSettings(steps=12, lr=0.05, warmup_steps=2, log_every=4, save_every=4)


def _model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Conv2d(2, 2, 3, padding=1)


def _pair(step: int) -> tuple[Tensor, Tensor]:
    x = torch.randn(4, 2, 6, 6, generator=torch.Generator().manual_seed(step))
    return x, 2 * x


class _Fit:
    """Fit pairs of tensors."""

    def __init__(
        self, pair: Callable[[int], tuple[Tensor, Tensor]] = _pair, *, stop_at: int | None = None
    ) -> None:
        self._pair = pair
        self._stop_at = stop_at

    def batch(self, step: int) -> Batch:
        if step == self._stop_at:
            raise KeyboardInterrupt
        x, gt = self._pair(step)
        return {"x": x, "gt": gt}

    def losses(self, model: nn.Module, batch: Batch, step: int) -> Iterator[Losses]:
        yield {"error": (model(batch["x"]).float() - batch["gt"]).abs().mean()}


def test_learns_and_logs(tmp_path):
    before = _model()
    records = []
    settings = LoopSettings(
        steps=200, lr=0.05, warmup_steps=5, ema=0.9, log_every=50, save_every=100
    )
    after = train(
        before,
        _Fit(),
        settings,
        tmp_path,
        evaluate=lambda m: {"score": float(not m.training)},
        on_log=records.append,
    )
    x, gt = _pair(999)
    assert (after(x) - gt).abs().mean() < 0.05 * (_model()(x) - gt).abs().mean()
    assert not after.training
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert lines == records
    losses = [r["loss"] for r in records if "loss" in r]
    assert losses[-1] < 0.1 * losses[0]
    assert [r["step"] for r in records if r.get("score") == 1.0] == [100, 200]
    assert records[0]["eta_s"] > 0
    assert list(tmp_path.glob("events.out.tfevents.*"))


class _Twice(nn.Module):
    def __init__(self, layer: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = layer, second

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.first(x) + 0 * self.second(x)


def test_what_has_two_places_in_a_network_is_averaged_once(tmp_path):
    alone = train(_Twice(_model(), nn.Identity()), _Fit(), SETTINGS, tmp_path / "alone")
    layer = _model()
    twice = train(_Twice(layer, layer), _Fit(), SETTINGS, tmp_path / "twice")
    torch.testing.assert_close(
        twice.first.state_dict(), alone.first.state_dict(), rtol=0, atol=1e-6
    )


def test_resumes_to_the_same_numbers(tmp_path):
    whole = train(_model(), _Fit(), SETTINGS, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(_model(), _Fit(stop_at=9), SETTINGS, tmp_path / "parts")  # saved at 4 and 8
    resumed = train(_model(), _Fit(), SETTINGS, tmp_path / "parts")
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_token_stops_it_after_a_step_and_it_goes_on_to_the_same_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr("tubelet.progress.MIN_INTERVAL_S", 0.0)
    whole = train(_model(), _Fit(), SETTINGS, tmp_path / "whole")
    token, seen = CancelToken(), []

    def stop(now: Progress) -> None:
        seen.append(now)
        if now.done == 6:  # saved at 4
            token.cancel()

    with pytest.raises(Cancelled):
        train(_model(), _Fit(), SETTINGS, tmp_path / "parts", on_progress=stop, cancel=token)
    assert [(now.done, now.total, now.unit) for now in seen] == [
        (step, 12, "step") for step in range(1, 7)
    ]
    seen.clear()
    resumed = train(_model(), _Fit(), SETTINGS, tmp_path / "parts", on_progress=seen.append)
    assert [now.done for now in seen] == [*range(5, 13), 12]
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_what_is_random_in_the_network_resumes_to_the_same_numbers(tmp_path):
    def network() -> nn.Module:
        return nn.Sequential(_model(), nn.Dropout(0.5))

    whole = train(network(), _Fit(), SETTINGS, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(network(), _Fit(stop_at=9), SETTINGS, tmp_path / "parts")
    torch.rand(7)
    resumed = train(network(), _Fit(), SETTINGS, tmp_path / "parts")
    torch.testing.assert_close(resumed.state_dict(), whole.state_dict(), rtol=0, atol=0)
    other = train(network(), _Fit(), replace(SETTINGS, seed=1), tmp_path / "other")
    assert not torch.equal(other[0].weight, whole[0].weight)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (float("nan"), "diverged at step 7: error is nan"),
        (float("inf"), "diverged at step 7: error is inf"),
        ("gradient", "diverged at step 7: gradient norm is nan"),
    ],
)
def test_a_loss_or_gradient_that_is_not_finite_changes_nothing(tmp_path, fault, words):
    class Diverging(_Fit):
        def losses(self, model: nn.Module, batch: Batch, step: int) -> Iterator[Losses]:
            loss = (model(batch["x"]).float() - batch["gt"]).abs().mean()
            if step == 6:
                # The gradient of sqrt at 0 is infinite, times 0.
                loss = (0 * loss).sqrt() if fault == "gradient" else loss * fault
            yield {"error": loss}

    model = _model()
    settings = replace(SETTINGS, save_every=2)
    with pytest.raises(DivergedError, match=words) as caught:
        train(model, Diverging(), settings, tmp_path)
    assert "\n" not in str(caught.value)
    assert "--loop.lr" in str(caught.value)
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert state["step"] == 6
    torch.testing.assert_close(state["model"], dict(model.state_dict()), rtol=0, atol=0)
    # With a task that does not diverge, the run goes on.
    whole = train(_model(), _Fit(), settings, tmp_path / "whole")
    resumed = train(_model(), _Fit(), settings, tmp_path)
    torch.testing.assert_close(resumed.state_dict(), whole.state_dict(), rtol=0, atol=0)


def test_gradients_are_clipped(tmp_path):
    model = nn.Linear(1, 1, bias=False)
    seen = []
    model.weight.register_post_accumulate_grad_hook(lambda p: seen.append(p))
    settings = LoopSettings(steps=1, lr=0.1, warmup_steps=0, grad_clip=1e-3)

    def huge(step: int) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.full((1, 1), 1e3), torch.full((1, 1), -1e6)

    train(model, _Fit(huge), settings, tmp_path)
    assert seen[0].grad.norm() <= 1e-3 * 1.01


@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)]
)
def test_forward_passes_have_the_number_format_of_the_settings(tmp_path, precision, dtype):
    seen = []

    class Look(_Fit):
        def losses(self, model: nn.Module, batch: Batch, step: int) -> Iterator[Losses]:
            for _ in range(2):
                y = model(batch["x"])
                seen.append(y.dtype)
                yield {"error": (y.float() - batch["gt"]).abs().mean()}

    model = _model()
    train(model, Look(), LoopSettings(steps=1, precision=precision), tmp_path)
    assert seen == [dtype, dtype]
    assert model.weight.dtype == model.weight.grad.dtype == torch.float32
    assert not torch.is_autocast_enabled("cpu")


def test_every_forward_pass_drops_its_activations_where_the_settings_say_so(tmp_path):
    block = nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), nn.ReLU())
    trunk = nn.Sequential(block, nn.Sequential(nn.Conv2d(2, 2, 1)))
    runs = []
    block.register_forward_hook(lambda *args: runs.append("forward"))

    class Twice(_Fit):
        def losses(self, model: nn.Module, batch: Batch, step: int) -> Iterator[Losses]:
            for _ in range(2):
                yield {"error": (model(batch["x"]) - batch["gt"]).abs().mean()}

    for activations, expected in (("keep", 2), ("recompute", 4)):
        runs.clear()
        train(
            nn.Sequential(trunk),
            Twice(),
            LoopSettings(steps=1, activations=activations),
            tmp_path / activations,
        )
        assert len(runs) == expected
