"""The cache folder: where it is, and that nobody changes the same file at the same time."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from loaders.cache import cache_folder, updating
from loaders.errors import DataError


def test_it_is_where_the_user_wants_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "pixbench"


def test_what_many_change_at_once_has_all_changes(tmp_path: Path) -> None:
    path = tmp_path / "new" / "count"

    def add(number: int) -> None:
        with updating(path) as alone:
            assert alone
            before = int(path.read_text()) if path.exists() else 0
            path.write_text(str(before + number))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, range(200)))
    assert path.read_text() == str(sum(range(200)))


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot write .*file/x"), updating(tmp_path / "file" / "x"):
        pass
