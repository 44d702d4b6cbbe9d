"""Checks of configuration fields; each error names the configuration, the field and its value.

check_choice(self, "scale", (2, 3, 4))    FastConfig: scale=5 must be 2, 3 or 4
check_min(self, "channels", 1)            FastConfig: channels=0 must be at least 1
check_odd(self, "num_frames")             EDVRConfig: num_frames=4 must be odd and at least 1
check_positive(self, "img_range")         EDSRConfig: img_range=0.0 must be greater than 0
check_divides(self, "groups", "channels") EDVRConfig: groups=3 must divide channels=64
check_attention_groups(self)              HATConfig: each of num_heads=(7,) must divide channels=64
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from tubelet.errors import ConfigError

__all__ = [
    "check_attention_groups",
    "check_choice",
    "check_divides",
    "check_min",
    "check_odd",
    "check_positive",
    "check_range",
]


def check_choice(config: object, field: str, choices: Iterable[object]) -> None:
    """Require that a field has one of the allowed values.

    Args:
        config: Configuration dataclass.
        field: Name of the field.
        choices: Allowed values, in the order in which the error lists them.

    Raises:
        ConfigError: The field has another value.
    """
    allowed = list(choices)
    if getattr(config, field) in allowed:
        return
    *first, last = map(str, allowed)
    listing = f"{', '.join(first)} or {last}" if first else last
    raise _error(config, field, listing)


def check_min(config: object, field: str, minimum: int) -> None:
    """Require that a field is not smaller than a minimum.

    Args:
        config: Configuration dataclass.
        field: Name of the field.
        minimum: Smallest allowed value.

    Raises:
        ConfigError: The field is smaller.
    """
    if getattr(config, field) < minimum:
        raise _error(config, field, f"at least {minimum}")


def check_odd(config: object, field: str) -> None:
    """Require that a field is a positive odd number, such as the length of a window.

    Args:
        config: Configuration dataclass.
        field: Name of the field.

    Raises:
        ConfigError: The field is even or below 1.
    """
    value = getattr(config, field)
    if value < 1 or value % 2 == 0:
        raise _error(config, field, "odd and at least 1")


def check_positive(config: object, field: str) -> None:
    """Require that a field is greater than zero.

    Args:
        config: Configuration dataclass.
        field: Name of the field.

    Raises:
        ConfigError: The field is zero or negative.
    """
    if getattr(config, field) <= 0:
        raise _error(config, field, "greater than 0")


def check_range(config: object, field: str, minimum: int, maximum: int) -> None:
    """Require that a field is within two bounds.

    Args:
        config: Configuration dataclass.
        field: Name of the field.
        minimum: Smallest allowed value.
        maximum: Largest allowed value.

    Raises:
        ConfigError: The field is outside the bounds.
    """
    if not minimum <= getattr(config, field) <= maximum:
        raise _error(config, field, f"from {minimum} to {maximum}")


def check_divides(config: object, divisor: str, dividend: str) -> None:
    """Require that a field is positive and divides another one without remainder.

    Args:
        config: Configuration dataclass.
        divisor: Name of the field that divides.
        dividend: Name of the field that is divided.

    Raises:
        ConfigError: The field does not divide the other one.
    """
    value = getattr(config, divisor)
    total = getattr(config, dividend)
    if value < 1 or total % value:
        name = type(config).__name__
        raise ConfigError(f"{name}: {divisor}={value} must divide {dividend}={total}")


class _AttentionConfig(Protocol):
    @property
    def channels(self) -> int: ...
    @property
    def depths(self) -> tuple[int, ...]: ...
    @property
    def num_heads(self) -> tuple[int, ...]: ...


def check_attention_groups(config: _AttentionConfig) -> None:
    """Require a depth and a number of heads for each group of a transformer.

    Args:
        config: Configuration dataclass, with the fields `channels`, `depths` and `num_heads`.

    Raises:
        ConfigError: There is no group, a group has no blocks, the two fields differ in length, or
            a number of heads does not divide the channels.
    """
    name = type(config).__name__
    depths = config.depths
    num_heads = config.num_heads
    if not depths or min(depths) < 1:
        raise ConfigError(f"{name}: depths={depths} must hold one or more numbers, each at least 1")
    if len(depths) != len(num_heads):
        raise ConfigError(
            f"{name}: depths={depths} and num_heads={num_heads} must have the same length"
        )
    for heads in num_heads:
        if heads < 1 or config.channels % heads:
            raise ConfigError(
                f"{name}: each of num_heads={num_heads} must divide channels={config.channels}"
            )


def _error(config: object, field: str, requirement: str) -> ConfigError:
    value = getattr(config, field)
    return ConfigError(f"{type(config).__name__}: {field}={value!r} must be {requirement}")
