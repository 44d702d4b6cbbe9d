from dataclasses import dataclass

import pytest

from tubelet.errors import ConfigError
from tubelet.models.config_checks import (
    check_choice,
    check_divides,
    check_min,
    check_odd,
    check_positive,
    check_range,
)


@dataclass(frozen=True, slots=True)
class Config:
    scale: int = 2
    output: str = "luma"
    gain: float = 1.0
    gain_steps: int = 8


def test_accepts_values_in_range():
    config = Config()
    check_choice(config, "scale", (2, 3, 4))
    check_min(config, "scale", 2)
    check_positive(config, "gain")
    check_range(config, "scale", 2, 2)
    check_odd(Config(scale=3), "scale")
    check_divides(config, "scale", "gain_steps")


def test_names_the_choices():
    with pytest.raises(ConfigError, match=r"^Config: scale=5 must be 2, 3 or 4$"):
        check_choice(Config(scale=5), "scale", (2, 3, 4))


def test_names_the_only_choice():
    with pytest.raises(ConfigError, match=r"^Config: output='rgb' must be luma$"):
        check_choice(Config(output="rgb"), "output", ("luma",))


def test_names_the_minimum():
    with pytest.raises(ConfigError, match=r"^Config: scale=0 must be at least 1$"):
        check_min(Config(scale=0), "scale", 1)


@pytest.mark.parametrize("gain", [0.0, -1.0])
def test_refuses_what_is_not_positive(gain):
    with pytest.raises(ConfigError, match=rf"^Config: gain={gain} must be greater than 0$"):
        check_positive(Config(gain=gain), "gain")


@pytest.mark.parametrize("scale", [0, 5])
def test_names_the_bounds(scale):
    with pytest.raises(ConfigError, match=rf"^Config: scale={scale} must be from 1 to 4$"):
        check_range(Config(scale=scale), "scale", 1, 4)


@pytest.mark.parametrize("scale", [-1, 0, 4])
def test_names_the_field_that_is_not_odd(scale):
    with pytest.raises(ConfigError, match=rf"^Config: scale={scale} must be odd and at least 1$"):
        check_odd(Config(scale=scale), "scale")


@pytest.mark.parametrize("scale", [0, 3])
def test_names_the_field_that_does_not_divide(scale):
    with pytest.raises(ConfigError, match=rf"^Config: scale={scale} must divide gain_steps=8$"):
        check_divides(Config(scale=scale), "scale", "gain_steps")
