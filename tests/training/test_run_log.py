import json

import pytest
import torch

from tubelet.training.run_log import LossMeter, open_log


def test_means_of_named_losses_and_of_their_sum():
    meter = LossMeter()
    meter.add({"pixel": torch.tensor(1.0), "cleaning": torch.tensor(0.5)})
    meter.add({"pixel": torch.tensor(3.0), "cleaning": torch.tensor(0.0)})
    assert meter.take_means() == {"loss": 2.25, "loss/pixel": 2.0, "loss/cleaning": 0.25}
    assert meter.take_means() == {}


def test_a_loss_of_some_steps_is_averaged_over_these():
    meter = LossMeter()
    meter.add({"pixel": torch.tensor(1.0)})
    meter.add({"pixel": torch.tensor(1.0), "adversarial": torch.tensor(0.5)})
    assert meter.take_means() == {"loss": 1.25, "loss/pixel": 1.0, "loss/adversarial": 0.5}


def test_records_go_to_a_file_to_tensorboard_and_to_the_caller(tmp_path):
    records = []
    for number in range(2):
        with open_log(tmp_path, records.append) as log:
            log({"step": number, "loss": 0.5})
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert lines == records == [{"step": 0, "loss": 0.5}, {"step": 1, "loss": 0.5}]
    pytest.importorskip("torch.utils.tensorboard")
    assert list(tmp_path.glob("events.out.tfevents.*"))
