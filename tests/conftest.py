"""Fixtures that every test may use, and the count of the tests that compare with published code."""

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
RECORDINGS = ROOT / "tests" / "recordings"
SHARED = ROOT.parent / "shared"
PARITY_LIST = RECORDINGS / "parity-tests.txt"
NO_SHARED_DATA = "needs the shared videos"


@pytest.fixture(scope="session")
def recordings() -> Path:
    """Folder of the recorded outputs of published code; tests that take it are parity tests."""
    return RECORDINGS


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of real videos beside the repository; tests that need it are skipped without it."""
    if not SHARED.is_dir():
        pytest.skip(f"{NO_SHARED_DATA}: {SHARED}")
    return SHARED


@pytest.fixture
def wait(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Replace the clock by one that only moves when the returned function is called."""
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])

    def wait(seconds: float) -> None:
        now[0] += seconds

    return wait


class ParityCount:
    """Counts the parity tests of each file: those selected, and those that ran."""

    def __init__(self) -> None:
        self.selected: Counter[str] = Counter()
        self.ran: Counter[str] = Counter()
        self.without_shared = 0
        self.missing: list[str] = []

    @pytest.hookimpl(tryfirst=True)  # before `-m parity` selects by the marker
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            if "recordings" in getattr(item, "fixturenames", ()):
                item.add_marker(pytest.mark.parity)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        for item in session.items:
            if item.get_closest_marker("parity"):
                self.selected[_file_of(item.nodeid)] += 1

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" and not report.skipped and "parity" in report.keywords:
            self.ran[_file_of(report.nodeid)] += 1
        if report.skipped and NO_SHARED_DATA in str(report.longrepr):
            self.without_shared += 1

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        selected = sum(self.selected.values())
        if selected:
            ran = sum(self.ran.values())
            terminalreporter.write_line(
                f"parity with published code: {ran} of {selected} tests ran, {selected - ran} left out"
            )
        for line in self.missing:
            terminalreporter.write_line(f"listed parity tests did not run: {line}", red=True)
        if self.without_shared:
            terminalreporter.write_line(
                f"left out: {self.without_shared} tests that need the videos in {SHARED}"
            )

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Write the list, or fail where it is required (TUBELET_REQUIRE_PARITY=1) and tests are missing."""
        if session.config.getoption("--write-parity-list"):
            lines = [f"{name} {count}\n" for name, count in sorted(self.ran.items())]
            PARITY_LIST.write_text("".join(lines), encoding="utf-8")
        if os.environ.get("TUBELET_REQUIRE_PARITY") == "1":
            self.missing = _missing(self.ran)
            if self.missing:
                session.exitstatus = pytest.ExitCode.TESTS_FAILED


def _missing(ran: Counter[str]) -> list[str]:
    """Compare with the list: the files of which fewer tests ran."""
    missing = []
    for line in PARITY_LIST.read_text("utf-8").splitlines():
        name, count = line.split()
        if ran[name] < int(count):
            missing.append(f"{name}: {ran[name]} of {count}")
    return missing


def _file_of(nodeid: str) -> str:
    return nodeid.partition("::")[0]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that renews the list of parity tests."""
    parser.addoption(
        "--write-parity-list",
        action="store_true",
        help="write how many parity tests each file has to tests/recordings/parity-tests.txt",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Count in every run."""
    config.pluginmanager.register(ParityCount(), "parity-count")
