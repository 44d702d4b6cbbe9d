"""Names of what verbs write."""

from pathlib import Path

import pytest

from tubelet.cli.paths import companion, refuse_existing
from tubelet.errors import RequestError


def test_companion_names() -> None:
    assert companion("a/new.mp4", ".compare.html") == Path("a/new.compare.html")
    assert companion("frames/%05d.png", ".compare.html") == Path("frames.compare.html")
    assert companion("frames", ".preview.png") == Path("frames.preview.png")
    assert (
        companion("%05d.png", ".preview.png")
        == companion(".", ".preview.png")
        == Path("images.preview.png")
    )


def test_an_existing_file_is_only_replaced_where_that_is_allowed(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    refuse_existing(path, overwrite=False)
    path.write_text("precious")
    refuse_existing(path, overwrite=True)
    with pytest.raises(RequestError, match=r"a\.png exists; give --overwrite to replace it"):
        refuse_existing(path, overwrite=False)
    with pytest.raises(RequestError, match="exists; name another"):
        refuse_existing(path, overwrite=False, remedy="name another")


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="absent does not exist; create it first"):
        refuse_existing(tmp_path / "absent" / "a.png", overwrite=True)
