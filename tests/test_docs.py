"""The documents: links lead somewhere, and the commands that they show exist."""

import re
import shlex
from pathlib import Path

import pytest

from tubelet.cli import VERBS

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


def flags_of(verb: str, capsys: pytest.CaptureFixture[str]) -> set[str]:
    from tubelet.cli import main

    with pytest.raises(SystemExit):
        main([verb, "--help"])
    return set(re.findall(r"(?<![\w-])--?[a-zA-Z][\w-]*", capsys.readouterr().out))


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_relative_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)", path.read_text("utf-8")):
        if "://" not in target and not target.startswith("mailto:"):
            assert (path.parent / target).exists(), f"{path.name} links to {target}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_commands_that_are_shown_exist(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = path.read_text("utf-8")
    blocks = re.findall(r"```(?:console|sh|bash)\n(.*?)```", text, re.DOTALL)
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for line in "\n".join(blocks).splitlines():
        for command in re.split(r"[|;]|&&", line.split("  #")[0]):
            words = shlex.split(command, comments=True)
            if words[:1] == ["make"]:
                for goal in (word for word in words[1:] if "=" not in word):
                    assert re.search(rf"^{goal}:", makefile, re.MULTILINE), f"no goal {goal} in the Makefile"
            if words[:1] == ["tubelet"] and words[1:2] and words[1] in VERBS and words[1] != "train":
                known = flags_of(words[1], capsys)
                for word in words[2:]:
                    if word.startswith("-") and word != "-":
                        assert word.split("=")[0] in known, f"tubelet {words[1]} has no {word}"
