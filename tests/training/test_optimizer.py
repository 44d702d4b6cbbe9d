import pytest
import torch
from torch import nn

from tubelet.errors import ConfigError
from tubelet.training import OptimizerSettings
from tubelet.training.optimizer import ParameterGroups


def _model() -> nn.Module:
    torch.manual_seed(0)
    return nn.ModuleDict(
        {"flow": nn.Linear(2, 2), "trunk": nn.Linear(2, 2), "fusion": nn.Linear(2, 1)}
    )


def _moved(model: nn.Module, groups: ParameterGroups, step: int) -> dict[str, float]:
    """Do one step at learning rate 1e-2, and return how far each module moved."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    groups.prepare(step, 1e-2)
    groups.optimizer.zero_grad()
    model["fusion"](model["trunk"](model["flow"](torch.ones(1, 2)))).sum().backward()
    groups.optimizer.step()
    far = {
        name: (value - before[name]).abs().max().item()
        for name, value in model.state_dict().items()
    }
    return {part: max(far[f"{part}.weight"], far[f"{part}.bias"]) for part in model}


def test_slow_parts_wait_and_then_move_at_their_own_rate():
    model = _model()
    groups = ParameterGroups(
        model, OptimizerSettings(low_lr_modules=("flow",), lr_multiplier=0.125, freeze_steps=2)
    )
    for step in range(2):
        moved = _moved(model, groups, step)
        assert moved["flow"] == 0
        assert moved["trunk"] > 1e-3
    moved = _moved(model, groups, 2)
    assert moved["flow"] == pytest.approx(0.125 * 1e-2, rel=1e-3)  # Adam's first step is its rate
    assert [group["lr"] for group in groups.optimizer.param_groups] == [0.00125, 0.01]


def test_parts_learn_alone_at_first():
    model = _model()
    groups = ParameterGroups(
        model, OptimizerSettings(warmup_only_modules=("fusion",), warmup_only_steps=1)
    )
    moved = _moved(model, groups, 0)
    assert moved["fusion"] > 0
    assert moved["flow"] == moved["trunk"] == 0
    assert min(_moved(model, groups, 1).values()) > 0


@pytest.mark.parametrize(
    ("kind", "rule"), [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)]
)
def test_rules(kind, rule):
    optimizer = ParameterGroups(
        _model(), OptimizerSettings(kind=kind, betas=(0.8, 0.9), weight_decay=0.1)
    ).optimizer
    assert type(optimizer) is rule
    assert optimizer.param_groups[0]["betas"] == (0.8, 0.9)
    assert optimizer.param_groups[0]["weight_decay"] == 0.1


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"low_lr_modules": ("flwo",)}, "ModuleDict has no module 'flwo'; did you mean flow"),
        ({"low_lr_modules": ("xyz",)}, "known are flow, trunk, fusion"),
        (
            {
                "low_lr_modules": ("fusion",),
                "freeze_steps": 5,
                "warmup_only_modules": ("fusion",),
                "warmup_only_steps": 2,
            },
            "no module would be trained",
        ),
        ({"lr_multiplier": -1.0}, "must not be negative"),
        ({"betas": (0.9, 1.0)}, "below 1"),
    ],
)
def test_bad_settings_are_refused(wrong, message):
    with pytest.raises(ConfigError, match=message):
        ParameterGroups(_model(), OptimizerSettings(**wrong))
