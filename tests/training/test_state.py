from dataclasses import replace

import pytest
import torch
from torch import nn

from tubelet.errors import CheckpointError
from tubelet.training import LoopSettings, result_settings
from tubelet.training.state import TrainingState

SETTINGS = LoopSettings(steps=12, lr=0.05, warmup_steps=2)


def _state(path, model: nn.Module, settings: LoopSettings = SETTINGS) -> TrainingState:
    average = nn.Linear(model.in_features, model.out_features)
    return TrainingState(path, model, average, torch.optim.Adam(model.parameters()), settings)


def test_what_was_saved_comes_back(tmp_path):
    saved = _state(tmp_path / "state.pt", nn.Linear(2, 3))
    saved.model(torch.ones(1, 2)).sum().backward()
    saved.optimizer.step()
    saved.save(7)
    resumed = _state(tmp_path / "state.pt", nn.Linear(2, 3))
    assert resumed.resume() == 7
    for before, after in ((saved.model, resumed.model), (saved.average, resumed.average)):
        torch.testing.assert_close(after.state_dict(), before.state_dict(), rtol=0, atol=0)
    moments = resumed.optimizer.state_dict()["state"][0]
    assert torch.equal(moments["exp_avg"], saved.optimizer.state_dict()["state"][0]["exp_avg"])
    assert [path.name for path in tmp_path.iterdir()] == ["state.pt"]


def test_a_run_begins_where_there_is_no_file(tmp_path):
    assert _state(tmp_path / "state.pt", nn.Linear(2, 3)).resume() == 0


def test_other_settings_do_not_resume(tmp_path):
    path = tmp_path / "state.pt"
    _state(path, nn.Linear(2, 3)).save(1)
    with pytest.raises(CheckpointError, match="steps=12, not steps=13"):
        _state(path, nn.Linear(2, 3), replace(SETTINGS, steps=13)).resume()
    with pytest.raises(CheckpointError, match=r"lr=0\.05, not lr=0\.01"):
        _state(path, nn.Linear(2, 3), replace(SETTINGS, lr=0.01)).resume()
    with pytest.raises(CheckpointError, match="another model"):
        _state(path, nn.Linear(2, 4)).resume()
    assert (
        _state(
            path, nn.Linear(2, 3), replace(SETTINGS, log_every=3, activations="recompute")
        ).resume()
        == 1
    )


def test_a_file_of_a_version_without_a_setting_has_its_default(tmp_path):
    path = tmp_path / "state.pt"
    _state(path, nn.Linear(2, 3)).save(1)
    state = torch.load(path, weights_only=True)
    del state["settings"]["loss_eps"]
    torch.save(state, path)
    assert _state(path, nn.Linear(2, 3)).resume() == 1
    with pytest.raises(CheckpointError, match=r"loss_eps=0\.001, not loss_eps=0\.1"):
        _state(path, nn.Linear(2, 3), replace(SETTINGS, loss_eps=0.1)).resume()


def test_a_file_of_version_0_1_resumes(tmp_path):
    """Its settings and its optimizer have former names."""
    path = tmp_path / "state.pt"
    _state(path, nn.Linear(2, 3)).save(4)
    state = torch.load(path, weights_only=True)
    former = {
        "optimizer.low_lr_modules": "optimiser.slow",
        "optimizer.lr_multiplier": "optimiser.slow_factor",
        "optimizer.betas": "optimiser.betas",
    }
    state["settings"] = {former.get(name, name): v for name, v in state["settings"].items()}
    state["optimiser"] = state.pop("optimizer")
    assert set(former.values()) <= state["settings"].keys()
    torch.save(state, path)
    assert _state(path, nn.Linear(2, 3)).resume() == 4


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off", b"hello\n"])
def test_a_damaged_file_is_named(tmp_path, content):
    (tmp_path / "state.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"state\.pt is damaged"):
        _state(tmp_path / "state.pt", nn.Linear(2, 3)).resume()


def test_settings_that_change_the_result():
    settings = result_settings(SETTINGS)
    assert settings["lr"] == 0.05
    assert settings["schedule.kind"] == "cosine"
    assert settings["optimizer.betas"] == (0.9, 0.99)
    assert not {"log_every", "save_every", "device", "activations", "schedule", "optimizer"} & set(
        settings
    )
