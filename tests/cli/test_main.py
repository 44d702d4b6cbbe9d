"""`tubelet` itself: help, version, unknown verbs, and how errors become exit codes."""

import os
import subprocess
import sys

import pytest

from tubelet import cli
from tubelet.cli import VERBS, main
from tubelet.errors import InputError, ResourceError


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_help_lists_every_verb_and_imports_nothing_heavy() -> None:
    code = (
        "import sys; from tubelet.cli import main; code = main(['--help']); "
        "heavy = {'torch', 'av', 'numpy', 'PIL', 'rich', 'tyro'} & set(sys.modules); "
        "print('heavy', sorted(heavy), 'code', code)"
    )
    done = run_python(code)
    assert done.stdout.splitlines()[-1] == "heavy [] code 0", done.stderr
    for verb, summary in VERBS.items():
        assert f"  {verb}" in done.stdout
        assert summary in done.stdout


@pytest.mark.parametrize("verb", ["upscale", "models", "doctor", "demo"])
def test_help_of_a_verb_does_not_import_torch(verb: str) -> None:
    code = (
        "import sys, tubelet.cli\n"
        f"try: tubelet.cli.main(['{verb}', '--help'])\n"
        "except SystemExit as stop:\n"
        "    print('stop', stop.code, sorted({'torch', 'av', 'numpy'} & set(sys.modules)))"
    )
    assert run_python(code).stdout.splitlines()[-1] == "stop 0 []"


def test_no_verb_is_a_usage_error_that_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "usage: tubelet VERB" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("tubelet 0.")


def test_unknown_verb_suggests_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["upscael", "a", "b"]) == 2
    assert (
        capsys.readouterr().err == "tubelet: error: unknown verb 'upscael'; did you mean upscale?\n"
    )


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (InputError("a.mp4\n  is odd"), 3, "a.mp4 is odd"),
        (ResourceError("no room"), 4, "no room"),
        (KeyboardInterrupt(), 130, "interrupted; no unfinished output is left"),
        (MemoryError(), 4, "out of memory"),
        (OSError(28, "No space left on device", "out.mp4"), 4, "No space left on device: out.mp4"),
    ],
)
def test_errors_become_one_line_and_a_code(
    error: BaseException,
    code: int,
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(args: list[str]) -> int:
        raise error

    monkeypatch.setattr(cli, "_dispatch", fail)
    assert main(["upscale"]) == code
    written = capsys.readouterr().err
    assert written.startswith(f"tubelet: error: {line}")
    assert written.count("\n") == 1


def test_a_defect_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(args: list[str]) -> int:
        raise ZeroDivisionError

    monkeypatch.setattr(cli, "_dispatch", fail)
    with pytest.raises(ZeroDivisionError):
        main(["upscale"])


def test_a_reader_that_leaves_is_no_error_message() -> None:
    command = [
        sys.executable,
        "-c",
        "import sys; from tubelet.cli import main; sys.exit(main(['--help']))",
    ]
    read_end, write_end = os.pipe()
    os.close(read_end)  # before the command writes, however fast it starts
    done = subprocess.run(command, stdout=write_end, stderr=subprocess.PIPE, check=False)
    os.close(write_end)
    assert done.stderr == b""
    assert done.returncode == 141


def test_wrong_usage_of_a_verb_exits_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["models", "--nonsense"])
    assert stop.value.code == 2
    assert "nonsense" in capsys.readouterr().err
