"""The help texts: every option is explained, in words that a newcomer knows."""

import re

import pytest

from tubelet.cli import VERBS, main

COMMANDS = [
    "upscale",
    "demo",
    "models",
    "models identify",
    "models download",
    "models cache",
    "doctor",
    "evaluate",
    "compare",
    "train",
    "train online",
    "train spynet",
    "train supervised",
    "train supervised --model edvr-m",
    "train lrti",
    "train lrti --model basicvsr",
    "train two-step",
    "ablate",
    "degrade",
    "data",
    "data list",
    "data check",
    "data prepare",
    "bench",
]
# Vague or private words. Each has a term of the field, or of the command line, in its place.
UNCLEAR_WORDS = re.compile(
    r"\b(what|told|tells?|asked|persons?|people|pictures?|films?|sounds?|alone|beside|lies|stands"
    r"|least|most|whatever|goes on|gives)\b",
    re.IGNORECASE,
)
BRITISH_SPELLING = re.compile(r"\b\w*(colour|optimis|neighbour|centre|licence)\w*", re.IGNORECASE)


def help_of(command: str, capsys: pytest.CaptureFixture[str]) -> str:
    """Return the help text of a command, and check its exit code."""
    try:
        code = main([*command.split(), "--help"])
    except SystemExit as stop:
        code = stop.code
    assert code == 0
    return capsys.readouterr().out


def test_every_verb_is_in_the_list() -> None:
    assert {command.split()[0] for command in COMMANDS} == set(VERBS)


def test_the_help_of_the_command_itself(capsys: pytest.CaptureFixture[str]) -> None:
    text = help_of("", capsys)
    assert not UNCLEAR_WORDS.findall(text)
    assert not BRITISH_SPELLING.findall(text)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_no_unclear_word(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = help_of(command, capsys)
    assert not UNCLEAR_WORDS.findall(text)
    assert not BRITISH_SPELLING.findall(text)


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_a_verb_has_an_example(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = help_of(verb, capsys)
    examples = re.split(r"^examples?:$", text, flags=re.MULTILINE)[-1]
    assert f"\n  tubelet {verb}" in examples


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_explained(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The explanation is on the line of the flag, or indented on the next line."""
    monkeypatch.setenv("COLUMNS", "100")
    lines = [line.strip("│|").rstrip() for line in help_of(command, capsys).splitlines()]
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        flag = re.fullmatch(r" {1,2}(--?[a-z].*?)(\s{2,}\S.*)?", line)
        if flag is not None and flag[2] is None:
            assert following.startswith("      "), f"{command} does not explain {flag[1]}"


def test_lines_of_nested_settings_are_filled(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The line breaks of the docstrings do not show."""
    monkeypatch.setenv("COLUMNS", "80")
    lines = [line.strip("│| ") for line in help_of("train online", capsys).splitlines()]
    start = next(i for i, line in enumerate(lines) if line.startswith("--stage"))
    explanation = lines[start + 1 : start + 4]
    assert explanation[0].startswith("clips trains the recurrent network")
    assert all(len(line) > 55 for line in explanation)
