"""What errors suggest."""

import pytest

from tubelet.errors import suggest

KNOWN = ("bicubic", "lanczos", "basicvsr")


@pytest.mark.parametrize(
    ("name", "count", "text"),
    [
        ("bicubc", 1, "did you mean bicubic?"),
        ("BICUBIC", 1, "did you mean bicubic?"),
        ("basicubic", 2, "did you mean bicubic or basicvsr?"),
        ("@", 1, "known are bicubic, lanczos, basicvsr"),
    ],
)
def test_near_names_are_suggested_and_otherwise_all_are_listed(
    name: str, count: int, text: str
) -> None:
    assert suggest(name, KNOWN, count=count) == text


def test_a_long_list_can_be_told_in_short() -> None:
    assert suggest("@", KNOWN, listing="bicubic and two more") == "known are bicubic and two more"
    assert suggest("lancos", KNOWN, listing="bicubic and two more") == "did you mean lanczos?"
