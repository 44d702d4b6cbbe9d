"""Files that are written whole or not at all, and locks."""

import threading
import time
from pathlib import Path

import pytest

from tubelet.files import atomic_write, file_lock


def test_the_name_appears_when_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with atomic_write(path) as part:
        part.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new"
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failure_leaves_what_was_there(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")

    def write_half() -> None:
        with atomic_write(path) as part:
            part.write_text("ne")
            raise error

    with pytest.raises(error):
        write_half()
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


def test_what_a_killed_run_left_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with atomic_write(path) as part:
        name = part.name
        part.write_text("x")
    (tmp_path / name).write_text("half of an earlier run")
    with atomic_write(path) as part:
        part.write_text("new")
    assert path.read_text() == "new"
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


def test_a_lock_excludes_others_until_its_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    with file_lock(path) as is_free:
        assert is_free
        with file_lock(path, waits=False) as is_free_for_others:
            assert not is_free_for_others
        assert path.exists()
    assert not path.exists()
    with file_lock(path, waits=False) as is_free:
        assert is_free


def test_a_lock_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    order: list[str] = []

    def wait() -> None:
        with file_lock(path):
            order.append("second")

    thread = threading.Thread(target=wait)
    with file_lock(path):
        thread.start()
        time.sleep(0.1)
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"]
