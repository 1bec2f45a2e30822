"""Files of records: whole or not there, and every other file named with its reason."""

import errno
import json
import multiprocessing
import os
import re
import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest

from results import store
from results.errors import RecordError
from results.record import Record


def record(created: str = "2026-01-02T03:04:05+00:00", **machine: object) -> Record:
    return Record(
        kind="compare",
        created=created,
        command="bench compare a b",
        commit=None,
        machine={"fingerprint": {"device": "cpu", "torch": "2.15", **machine}},
        operands=("a", "b"),
        metrics=(),
    )


def test_save_and_load(tmp_path: Path) -> None:
    path = store.save(record(), tmp_path / "new folder" / "x.json")
    assert store.load(path) == record()
    assert [p.name for p in path.parent.iterdir()] == ["x.json"]


def test_default_name_sorts_by_time_and_is_unique(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    first, second = store.save(record()), store.save(record())
    assert first != second
    assert first.parent == Path(".benchmarks/pixbench")
    now = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    name = store.new_path("compare", tmp_path, now).name
    assert re.fullmatch(r"20260102T030405Z-compare-[0-9a-f]{8}\.json", name)


@pytest.mark.parametrize("fails", ["fsync", "replace"])
def test_full_disk_keeps_the_previous_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str) -> None:
    path = store.save(record(), tmp_path / "x.json")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(*((os, "fsync", full) if fails == "fsync" else (Path, "replace", full)))
    with pytest.raises(RecordError, match="No space left on device; the previous version is untouched; free"):
        store.save(record("2026-02-02T00:00:00+00:00"), path)
    monkeypatch.undo()
    assert store.load(path) == record()
    assert list(tmp_path.iterdir()) == [path]


def test_interrupted_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", stop)
    with pytest.raises(KeyboardInterrupt):
        store.save(record(), tmp_path / "x.json")
    assert list(tmp_path.iterdir()) == []


def test_a_link_and_a_pipe_stay_what_they_are(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there" / "x")
    for data in (b"a", b"b"):
        store.write_whole(tmp_path / "link", data)
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "there" / "x").read_bytes() == data
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    handle = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        store.write_whole(pipe, b"through")
        assert os.read(handle, 100) == b"through"
    finally:
        os.close(handle)
    assert not pipe.is_file()
    store.write_whole(Path("/dev/null"), b"x")
    assert Path("/dev/null").is_char_device()


def test_place_that_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RecordError, match="cannot write .*choose another place"):
        store.save(record(), tmp_path / "file" / "x.json")


def test_several_writers_leave_one_whole_version(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    errors: list[Exception] = []

    def write(day: int) -> None:
        try:
            for _ in range(10):
                store.save(record(f"2026-01-{day:02d}T00:00:00+00:00"), path)
                store.load(path)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(day,)) for day in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert list(tmp_path.iterdir()) == [path]


WHOLE = json.dumps(record().to_json(), indent=1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty; expected"),
        (b"\xff\xfe\x00", "not text in UTF-8"),
        (b"name,value\n1,2\n", r"not JSON \(line 1"),
        (WHOLE[: len(WHOLE) // 2].encode(), "ends in the middle|not JSON"),
        (WHOLE[:-1].encode(), "ends in the middle"),
        (b'{"schema": 1, "created": "2026', "ends in the middle"),
        (b'{"schema": 1, "x": NaN}', "NaN, which JSON does not have"),
        (b"[1, 2]", "no key 'schema'"),
        (b'{"machine_info": {}, "benchmarks": []}', "no key 'schema'"),
        (b'{"schema": 7}', "schema is 7, this version reads 1"),
        (b"[" * 200_000, "nested too deeply|ends in the middle"),
        (b'{"schema": 1, "kind": 1e999}', "missing"),
    ],
)
def test_load_says_what_is_wrong(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(RecordError, match=message) as caught:
        store.load(path)
    assert str(path) in str(caught.value)


def test_load_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="cannot read .*No such file"):
        store.load(tmp_path / "none.json")
    with pytest.raises(RecordError, match="cannot read"):
        store.load(tmp_path)


def test_listing_names_what_it_leaves_out(tmp_path: Path) -> None:
    assert store.list_records(tmp_path / "none") == ([], [])
    newer = store.save(record("2026-03-01T00:00:00+00:00"), tmp_path / "a.json")
    older = store.save(record("2026-02-01T00:00:00+00:00"), tmp_path / "b.json")
    (tmp_path / ".c.json.12.abcd.tmp").write_text("{")
    (tmp_path / "half.json").write_text(WHOLE[:50])
    (tmp_path / "foreign.json").write_text('{"benchmarks": []}')
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "folder").mkdir()
    stored, skipped = store.list_records(tmp_path)
    assert [s.path for s in stored] == [older, newer]
    reasons = {s.path.name: s.reason for s in skipped}
    assert sorted(reasons) == [".c.json.12.abcd.tmp", "foreign.json", "half.json", "notes.txt"]
    assert "cut off" in reasons[".c.json.12.abcd.tmp"]
    assert "no key 'schema'" in reasons["foreign.json"]
    assert not reasons["half.json"].startswith(str(tmp_path))


def test_listing_what_is_no_folder(tmp_path: Path) -> None:
    path = store.save(record(), tmp_path / "x.json")
    with pytest.raises(RecordError, match="cannot list"):
        store.list_records(path)


def test_same_machine() -> None:
    assert store.same_machine(record(), record()) == []
    assert store.same_machine(record(), record(torch="2.16")) == ["torch: 2.15 against 2.16"]
    assert store.same_machine(record(), record(gpu=None)) == ["gpu: (not recorded) against none"]
    assert store.same_machine({}, record()) == ["fingerprint: missing in the first record"]
    assert store.same_machine(record().machine, {"fingerprint": {}}) == ["fingerprint: missing in the second record"]


def claim(path: Path, number: int, links: bool) -> bool:
    if not links:
        store.os.link = _no_links
    try:
        store.save(record(f"2026-01-01T00:00:{number:02d}+00:00"), path, new=True)
    except store.TakenError:
        return False
    return True


def _no_links(*_: object) -> None:
    raise PermissionError(1, "no hard links")


@pytest.mark.parametrize("links", [True, False])
def test_of_many_writers_of_one_new_name_exactly_one_wins(tmp_path: Path, links: bool) -> None:
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        for turn in range(10):
            path = tmp_path / f"{turn}.json"
            won = pool.starmap(claim, [(path, number, links) for number in range(8)], chunksize=1)
            assert won.count(True) == 1
            assert store.load(path).created == f"2026-01-01T00:00:{won.index(True):02d}+00:00"
    assert len(list(tmp_path.iterdir())) == 10
    with pytest.raises(store.TakenError, match="is called 0 already; choose another --tag, or remove that file"):
        store.refuse_taken(tmp_path / "0.json")
