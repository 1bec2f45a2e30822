"""Where a command's data goes: a file is replaced as a whole, anything else is written to."""

import os
import threading
from pathlib import Path

import pytest

from bench.output import write
from results import store


def test_a_kill_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "table.txt"
    write("old", str(path))

    def killed(handle: int) -> None:
        raise SystemExit

    monkeypatch.setattr(store.os, "fsync", killed)
    with pytest.raises(SystemExit):
        write("new", str(path))
    assert path.read_text() == "old\n"
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_stays_one_and_a_private_file_private(tmp_path: Path) -> None:
    path, link = tmp_path / "table.txt", tmp_path / "link.txt"
    path.touch(0o600)
    link.symlink_to(path)
    write("text", str(link))
    assert link.is_symlink()
    assert path.read_text() == "text\n"
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_pipe_is_written_to(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    write("text", str(pipe))
    reader.join()
    assert read == ["text\n"]
    assert pipe.is_fifo()
