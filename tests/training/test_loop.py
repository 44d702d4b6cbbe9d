import json
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import nn

from tubelet.errors import CheckpointError, ConfigError
from tubelet.training import LoopSettings, train
from tubelet.training.schedule import learning_rate

SETTINGS = LoopSettings(steps=12, lr=0.05, warmup_steps=2, log_every=4, save_every=4)


def _model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Conv2d(2, 2, 3, padding=1)


def _batches(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(4, 2, 6, 6, generator=torch.Generator().manual_seed(step))
    return x, 2 * x


def _stop_after(last: int):
    def batches(step: int) -> tuple[torch.Tensor, torch.Tensor]:
        if step == last:
            raise KeyboardInterrupt
        return _batches(step)

    return batches


def test_learns_and_logs(tmp_path):
    before = _model()
    records = []
    settings = LoopSettings(steps=200, lr=0.05, warmup_steps=5, ema=0.9, log_every=50, save_every=100)
    after = train(
        before,
        _batches,
        settings,
        tmp_path,
        evaluate=lambda m: {"score": float(not m.training)},
        on_log=records.append,
    )
    x, gt = _batches(999)
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
    alone = train(_Twice(_model(), nn.Identity()), _batches, SETTINGS, tmp_path / "alone")
    layer = _model()
    twice = train(_Twice(layer, layer), _batches, SETTINGS, tmp_path / "twice")
    torch.testing.assert_close(twice.first.state_dict(), alone.first.state_dict(), rtol=0, atol=1e-6)


def test_resumes_to_the_same_numbers(tmp_path):
    whole = train(_model(), _batches, SETTINGS, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(_model(), _stop_after(9), SETTINGS, tmp_path / "parts")  # saved at 4 and 8
    resumed = train(_model(), _batches, SETTINGS, tmp_path / "parts")
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_other_settings_do_not_resume(tmp_path):
    train(_model(), _batches, SETTINGS, tmp_path)
    with pytest.raises(CheckpointError, match="steps=12, not steps=13"):
        train(_model(), _batches, LoopSettings(steps=13, warmup_steps=2), tmp_path)
    with pytest.raises(CheckpointError, match=r"lr=0\.05, not lr=0\.01"):
        train(_model(), _batches, replace(SETTINGS, lr=0.01), tmp_path)
    with pytest.raises(CheckpointError, match="another model"):
        train(nn.Conv2d(2, 3, 3), _batches, SETTINGS, tmp_path)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off", b"hello\n"])
def test_a_damaged_checkpoint_is_named(tmp_path, content):
    (tmp_path / "state.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"state\.pt is damaged"):
        train(_model(), _batches, SETTINGS, tmp_path)


def test_gradients_are_clipped(tmp_path):
    model = nn.Linear(1, 1, bias=False)
    seen = []
    model.weight.register_post_accumulate_grad_hook(lambda p: seen.append(p))
    settings = LoopSettings(steps=1, lr=0.1, warmup_steps=0, grad_clip=1e-3)

    def huge(step: int) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.full((1, 1), 1e3), torch.full((1, 1), -1e6)

    train(model, huge, settings, tmp_path)
    assert seen[0].grad.norm() <= 1e-3 * 1.01


def test_schedule():
    s = LoopSettings(steps=100, lr=1.0, lr_final=0.1, warmup_steps=10)
    rates = [learning_rate(step, s) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[10] == pytest.approx(1.0)
    assert rates[100] == pytest.approx(0.1)
    assert rates[55] == pytest.approx(0.55)
    assert all(a >= b for a, b in pairwise(rates[10:]))


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"lr": 1e-7}, {"ema": 1.0}, {"grad_clip": 0.0}])
def test_bad_settings_are_refused(wrong):
    with pytest.raises(ConfigError):
        LoopSettings(**wrong)
