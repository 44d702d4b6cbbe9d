"""Flags are made from dataclasses."""

from dataclasses import dataclass
from typing import Literal

import pytest

from tubelet.cli.flags import field_help, flags_from, parse, pick
from tubelet.restore.settings import UpscaleSettings


@dataclass(frozen=True, kw_only=True)
class Paint:
    """Paint a wall."""

    wall: str
    """Which wall."""
    color: Literal["red", "blue"] = "red"
    """What it gets; Default: the
    color of the house."""
    coats: int | None = None
    """How often."""
    dry: bool = False


def test_field_help_joins_lines() -> None:
    assert field_help(Paint) == {
        "wall": "Which wall.",
        "color": "What it gets; Default: the color of the house.",
        "coats": "How often.",
    }


@dataclass(frozen=True, kw_only=True)
class Mix:
    """Mix colors."""

    pots: tuple[str, ...] | None = None
    into: tuple[str, ...] = ()
    coats: int = 1


@pytest.mark.parametrize(
    "args",
    [
        ["-p", "red", "blue", "--coats", "2", "--into", "x"],
        ["-p", "red", "--pots", "blue", "--into", "x", "--coats", "2"],
        ["--pots=red", "--coats", "2", "--into=x", "-p=blue"],
    ],
)
def test_several_values_may_follow_one_flag_or_several(args: list[str]) -> None:
    command = parse(flags_from(Mix, aliases={"pots": "-p"}), args, verb="mix")
    assert pick(command, Mix) == Mix(pots=("red", "blue"), into=("x",), coats=2)
    assert pick(parse(flags_from(Mix), [], verb="mix"), Mix) == Mix()


def test_fields_without_default_are_positional_and_the_rest_flags() -> None:
    flags = flags_from(Paint, aliases={"coats": "-c"})
    command = parse(flags, ["north", "-c", "2", "--dry", "--color", "blue"], verb="paint")
    assert pick(command, Paint) == Paint(wall="north", color="blue", coats=2, dry=True)
    assert pick(parse(flags, ["north"], verb="paint"), Paint) == Paint(wall="north")


def test_help_has_the_texts_and_no_default_of_none(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parse(flags_from(Paint, metavars={"coats": "N"}), ["--help"], verb="paint")
    text = " ".join(capsys.readouterr().out.split())
    assert stop.value.code == 0
    assert "Paint a wall." in text
    assert "--coats N" in text
    assert "None" not in text


def test_wrong_values_exit_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parse(flags_from(Paint), ["north", "--color", "green"], verb="paint")
    assert stop.value.code == 2
    assert "green" in capsys.readouterr().err


def test_every_setting_of_upscale_has_a_help_text() -> None:
    assert set(field_help(UpscaleSettings)) == set(UpscaleSettings.__dataclass_fields__)
