import os

import pytest

from tubelet.cli.startup import loading


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    # `setenv` before `delenv`: then the variable is restored even if `loading` sets it.
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    return monkeypatch


def test_waiting_threads_block_soon(environment):
    with loading():
        assert int(os.environ["GOMP_SPINCOUNT"]) > 0


@pytest.mark.parametrize(
    ("name", "value"), [("OMP_WAIT_POLICY", "passive"), ("GOMP_SPINCOUNT", "7")]
)
def test_a_choice_of_the_user_takes_precedence(environment, name, value):
    environment.setenv(name, value)
    with loading():
        assert os.environ[name] == value
        assert os.environ.get("GOMP_SPINCOUNT", "7") == "7"
