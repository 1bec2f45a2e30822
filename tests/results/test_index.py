"""What is remembered of a folder's files: the same answers as without, and no file is read twice."""

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fabricated_history import INFERENCE, TRAINING, fill, record

from results import index as indexes
from results import series, store, trend
from results.changes import Trend
from results.errors import RecordError
from results.index import Index
from results.series import Content, collect, look_at
from results.tables import to_json


class Said:
    """What an index tells a user."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.counted: list[tuple[str, int, int]] = []

    def say(self, text: str) -> None:
        self.lines.append(text)

    def steps(self, what: str, done: int, total: int) -> None:
        self.counted.append((what, done, total))

    def clear(self) -> None:
        pass


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Records, a copy, a baseline, a void check, pytest-benchmark's files, a profile, and what is none of these."""
    place = fill(tmp_path / "store")
    shutil.copy(place / "03.json", place / "copy.json")
    store.save(record(41, {TRAINING: 0.02}, "other", 0.01), place / "baseline.json")
    store.save(replace(record(42, {TRAINING: 0.02}), settings={"check": {"verdict": "VOID"}}), place / "void.json")
    store.save(replace(record(43, {}), complete=False), place / "begun.json")
    stats = {"median": 0.02, "data": [1, 2, 10**30], "rounds": 3}
    foreign: dict[str, Any] = {
        "machine_info": {},
        "commit_info": {"id": "c" * 40},
        "benchmarks": [
            {"fullname": INFERENCE, "stats": stats, "extra_info": {"workload": {}, "images": 8}},
            {"fullname": f"{TRAINING}\ud800", "stats": stats, "extra_info": {"workload": {}, "images": 8}},
        ],
        "datetime": "2026-02-20T00:00:00",
    }
    (place / "pytest.json").write_text(json.dumps(foreign))
    (place / "foreign.json").write_text(json.dumps({**foreign, "benchmarks": []}))
    (place / "profile.json").write_text(json.dumps({"kind": "profile", "created": "2026-01-01T00:00:00+00:00"}))
    (place / "half.json").write_text('{"schema": 1, "kin')
    (place / "empty.json").write_text("")
    (place / "newer.json").write_text(json.dumps({"schema": 99}))
    (place / os.fsdecode(b"\xff.json")).write_text("[]")
    (place / "notes.txt").write_text("")
    (place / "folder.json").mkdir()
    return place


def answers(place: Path, index: Index | None = None) -> str:
    histories, skipped = trend.load(place, index=index)
    trends = trend.judge(histories, index)
    every = [trend.one(one, "json") for one in trends]
    return to_json([trend.listing(trends, "json"), every, [(repr(path), reason) for path, reason in skipped]])


def ask(place: Path, cache: Path) -> tuple[str, list[str]]:
    """The answers with an index, and what it said."""
    said = Said()
    with Index(place, cache, said) as index:
        found = answers(place, index)
    return found, said.lines


def counting(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are read from now on."""
    opened: list[str] = []
    plain: Callable[[Path], Any] = store.read_json

    def read(path: Path) -> Any:
        opened.append(path.name)
        return plain(path)

    monkeypatch.setattr(store, "read_json", read)
    return opened


def test_answers_are_those_without(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = answers(folder)
    assert plain.count("half.json") == 1
    opened = counting(monkeypatch)
    assert ask(folder, tmp_path) == (plain, [])
    assert len(opened) == len(store.list_files(folder)[0])
    opened.clear()
    assert ask(folder, tmp_path) == (plain, [])
    assert opened == []
    files, _ = store.list_files(folder)
    with Index(folder, tmp_path, Said()) as index:
        assert index.contents(files) == look_at(files)
        assert index.contents(files[3:5]) == look_at(files[3:5])


def test_a_folder_has_one_index_by_whatever_name(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "link").symlink_to(folder)
    ask(folder, tmp_path)
    opened = counting(monkeypatch)
    found, _ = ask(tmp_path / "link", tmp_path)
    assert opened == []
    assert str(tmp_path / "link" / "39.json") in found
    assert len(list((tmp_path / indexes.FOLDER).iterdir())) == 1


def test_what_is_changed_replaced_or_removed_is_noticed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask(folder, tmp_path)
    store.save(record(5, {TRAINING: 0.5}), folder / "05.json")
    with (folder / "half.json").open("a") as file:
        file.write("d")
    # Another file of the same size and time.
    before, other = (folder / "07.json").stat(), tmp_path / "other.json"
    other.write_text((folder / "07.json").read_text().replace("2026-01-08", "2026-01-09"))
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(folder / "07.json")
    assert (folder / "07.json").stat().st_size == before.st_size
    (folder / "09.json").unlink()
    store.save(record(44, {TRAINING: 0.02}), folder / "new.json")
    opened = counting(monkeypatch)
    found, _ = ask(folder, tmp_path)
    assert sorted(opened) == ["05.json", "07.json", "half.json", "new.json"]
    assert found == answers(folder)
    with Index(folder, tmp_path, Said()) as index:
        assert {name for (name,) in index._ask("select name from files")} == {
            os.fsencode(path.name) for path in store.list_files(folder)[0]
        }


def test_what_could_not_be_read_is_read_again(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = store.read_text

    def refuse(path: Path, what: str) -> str:
        if path.name != "05.json":
            return plain(path, what)
        raise RecordError(f"cannot read {path}") from PermissionError(13, "no")

    with monkeypatch.context() as patched:
        patched.setattr(store, "read_text", refuse)
        assert "cannot read" in ask(folder, tmp_path)[0]
    assert ask(folder, tmp_path)[0] == answers(folder)


@pytest.mark.parametrize("keep", [0, 10, 100, 5000, -1000])
def test_a_damaged_index_is_made_anew(folder: Path, tmp_path: Path, keep: int) -> None:
    ask(folder, tmp_path)
    [file] = (tmp_path / indexes.FOLDER).iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[:keep] + bytes(keep and (b * 7 + 1) % 256 for b in whole[keep:]) if keep else b"")
    found, said = ask(folder, tmp_path)
    assert found == answers(folder)
    assert len(said) <= 1
    assert all(f"{file} was damaged and is made anew" in line for line in said)
    assert ask(folder, tmp_path) == (found, [])


def test_a_damaged_entry_is_read_again(folder: Path, tmp_path: Path) -> None:
    ask(folder, tmp_path)
    with Index(folder, tmp_path, Said()) as index:
        index._write("update files set content = ? where name = ?", [("{", b"05.json"), ("{}", b"06.json")])
        index._write("update changes set places = ?", [("x",)])
    assert ask(folder, tmp_path) == (answers(folder), [])


def test_it_may_go_away_at_any_moment(folder: Path, tmp_path: Path) -> None:
    with Index(folder, tmp_path, Said()) as index:
        shutil.rmtree(tmp_path / indexes.FOLDER)
        assert answers(folder, index) == answers(folder)
    assert ask(folder, tmp_path) == (answers(folder), [])


def test_another_version_makes_it_anew(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ask(folder, tmp_path)
    with Index(folder, tmp_path, Said()) as index:
        index._write("update files set content = ?", [('{"points": [[], []], "operands": []}',)])
    monkeypatch.setattr(indexes, "_version", lambda: 7)
    assert ask(folder, tmp_path) == (answers(folder), [])


def test_where_nothing_can_be_written_every_file_is_read(folder: Path, tmp_path: Path) -> None:
    (tmp_path / indexes.FOLDER).write_text("in the way")
    found, said = ask(folder, tmp_path)
    assert found == answers(folder)
    [line] = said
    assert line.startswith("note: what stored results hold is not remembered: ")


def test_nothing_is_written_into_the_store(folder: Path, tmp_path: Path) -> None:
    before = sorted((path.name, path.lstat().st_mtime_ns) for path in [folder, *folder.iterdir()])
    folder.chmod(0o555)
    for _ in range(2):
        assert ask(folder, tmp_path) == (answers(folder), [])
    assert before == sorted((path.name, path.lstat().st_mtime_ns) for path in [folder, *folder.iterdir()])


def test_many_files_are_read_by_several_processes_and_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "store"
    text = store.save(record(0, {TRAINING: 0.02}), place / "0000.json").read_text()
    for i in range(1, 1000):
        made = f"2026-{1 + i % 9:02d}-{1 + i // 9 % 28:02d}T{i // 252:02d}:00:00+00:00"
        (place / f"{i:04d}.json").write_text(text.replace("2026-01-01T00:00:00+00:00", made))
    said = Said()
    with Index(place, tmp_path, said) as index:
        found, _ = trend.load(place, index=index)
        trends = trend.judge(found, index)
    assert len(found[TRAINING]) == 1000
    assert [done for what, done, _ in said.counted if what.startswith("reading")] == list(range(1, 1001))
    opened = counting(monkeypatch)
    with Index(place, tmp_path, Said()) as index:
        assert trend.load(place, index=index)[0] == found
        assert trend.judge(found, index) == trends
    assert opened == []
    store.save(record(300, {TRAINING: 0.02}), place / "new.json")
    ask(place, tmp_path)
    assert opened == ["new.json"]


def test_an_interruption_keeps_what_was_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "store"
    for i in range(5):
        store.save(record(i, {TRAINING: 0.02}), place / f"{i}.json")
    monkeypatch.setattr(indexes, "_BATCH", 2)

    class Stopping(Said):
        def steps(self, what: str, done: int, total: int) -> None:
            if done == 3:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), Index(place, tmp_path, Stopping()) as index:
        collect(place, index.contents)
    opened = counting(monkeypatch)
    ask(place, tmp_path)
    assert opened == ["2.json", "3.json", "4.json"]


def test_two_processes_build_at_once(folder: Path, tmp_path: Path) -> None:
    plain = answers(folder)
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        for _ in range(3):
            shutil.rmtree(tmp_path / indexes.FOLDER, ignore_errors=True)
            assert pool.starmap(ask, [(folder, tmp_path)] * 2) == [(plain, [])] * 2
    assert ask(folder, tmp_path) == (plain, [])


def test_changes_are_remembered_by_what_was_asked(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indexes, "_CHANGES", 4)
    points = collect(folder)[0][TRAINING]
    with Index(folder, tmp_path, Said()) as index:
        plain = Trend.of(TRAINING, points)
        assert plain.changes
        assert Trend.of(TRAINING, points, index.judged) == plain
        monkeypatch.setattr("results.changes.judged", lambda *_: pytest.fail("asked again"))
        assert Trend.of(TRAINING, points, index.judged) == plain
        monkeypatch.setattr("results.changes.judged", lambda *_: [(20, 0.5)])
        assert index.judged([1.0, 2.0], 0.5) == [(20, 0.5)]
        for i in range(9):
            index.judged([float(i)], 0.1)
        assert len(index._ask("select * from changes")) == 4


WRITER = """
import sys
from pathlib import Path
sys.path[:0] = sys.argv[4:]
from fabricated_history import TRAINING, record
from results import store
for i in range(int(sys.argv[2])):
    store.save(record(i, {TRAINING: 0.02 + int(sys.argv[3]) / 1000}), store.new_path("check", Path(sys.argv[1])))
"""


def test_many_writers_lose_nothing_beside_readers(tmp_path: Path) -> None:
    place, writers, each = tmp_path / "store", 8, 50
    paths: Sequence[str] = [path for path in sys.path if path]
    running = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(place), str(each), str(number), *paths])
        for number in range(writers)
    ]
    try:
        seen: list[int] = []
        while any(process.poll() is None for process in running):
            with Index(place, tmp_path, Said()) as index:
                found, skipped = collect(place, index.contents)
            seen.append(len(found.get(TRAINING, [])))
            assert all(".tmp" in path.name for path, _ in skipped), skipped
        assert [process.wait() for process in running] == [0] * writers
    finally:
        for process in running:
            process.kill()
    assert seen == sorted(seen)
    with Index(place, tmp_path, Said()) as index:
        found, skipped = collect(place, index.contents)
    assert (len(found[TRAINING]), skipped) == (writers * each, [])
    assert found == collect(place)[0]


def test_a_content_survives_being_written_down(folder: Path) -> None:
    for path in store.list_files(folder)[0]:
        content: Content = series.look(path)
        assert indexes._content(indexes._text(content), path) == content, path
