"""docs/models.md is what its script writes."""

from pathlib import Path
from types import ModuleType

import pytest

from helpers.scripts import import_script
from tubelet.zoo.architectures import ARCHITECTURES
from tubelet.zoo.weights_index import PUBLISHED_WEIGHTS

SCRIPT = Path(__file__).resolve().parents[1] / "docs" / "models_page.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return import_script(SCRIPT)


def test_the_page_is_current(script: ModuleType) -> None:
    text = script.render()
    assert script.PAGE.read_text("utf-8") == text, "run `make models-page`"


def test_the_page_has_every_file_and_every_network(script: ModuleType) -> None:
    text = script.PAGE.read_text("utf-8")
    for known in PUBLISHED_WEIGHTS:
        assert f"| `{known.id}` |" in text
        assert (known.file.url or known.file.page) in text
    for architecture in ARCHITECTURES:
        assert f"\n| {architecture.name} |" in text
