import pytest

from tubelet.errors import ConfigError
from tubelet.training import LoopSettings


@pytest.mark.parametrize(
    "wrong", [{"steps": 0}, {"lr": 1e-7}, {"ema": 1.0}, {"grad_clip": 0.0}, {"loss_eps": 0.0}]
)
def test_bad_settings_are_refused(wrong):
    with pytest.raises(ConfigError):
        LoopSettings(**wrong)
