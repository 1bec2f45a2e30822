"""What all stored runs of a folder say about each workload."""

import json
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from results import store
from results.errors import RecordError
from results.record import Metric, Record, Value, current_id
from results.series import LATENCY, collect, digest

ID = "training/lenet@fp32-nchw-eager/b8/s32/c10/cpu"
MACHINE = {"device": "cpu", "cores": 2}


def record(day: int, seconds: float, **changed: Any) -> Record:
    turns = [[{"base": seconds / 2, "head": seconds * (1 + 0.01 * i)} for i in (-1, 0, 1)] for _ in range(6)]
    values = {o: Value.counted(8 / seconds) for o in ("base", "head")}
    metric = Metric.named("training_throughput", values, batch=8, workloads={"base": ID, "head": ID}, pairs=turns)
    given: dict[str, Any] = {
        "kind": "check",
        "created": f"2026-01-{day:02d}T00:00:00+00:00",
        "command": "bench check",
        "commit": {"sha": f"{day:040x}", "dirty": False},
        "machine": {"fingerprint": MACHINE},
        "operands": ("base", "head"),
        "metrics": (metric,),
        "settings": {"reference": {"id": "matmul", "seconds": 0.01}},
    }
    return Record(**{**given, **changed})


def foreign(day: int, **changed: Any) -> dict[str, Any]:
    """What `pytest bench --benchmark-json` writes."""
    stats = {"median": 0.02, "mean": 0.021, "data": [0.019, 0.02, 0.03], "rounds": 3}
    extra = {"workload": {"task": "training"}, "images": 8, "training_throughput": 400.0}
    given: dict[str, Any] = {
        "machine_info": {"node": "here", "pixbench": MACHINE},
        "commit_info": {"id": "unversioned", "dirty": False},
        "benchmarks": [{"name": ID, "fullname": ID, "stats": stats, "extra_info": extra}],
        "datetime": f"2026-01-{day:02d}T00:00:00+00:00",
        "version": "5.3.1",
        "schema": 1,
        "machine": {"fingerprint": MACHINE, "commit": {"sha": "c" * 40, "dirty": True}},
    }
    return {**given, **changed}


def write(path: Path, data: Any) -> Path:
    path.write_text(json.dumps(data))
    return path


def test_points_are_the_newer_sides_oldest_first(tmp_path: Path) -> None:
    store.save(record(2, 0.022), tmp_path / "a.json")
    first = store.save(record(1, 0.02), tmp_path / "b.json")
    found, skipped = collect(tmp_path)
    assert skipped == []
    assert list(found) == [ID]
    one, two = found[ID]
    assert (one.seconds, two.seconds) == (pytest.approx(0.02), pytest.approx(0.022))
    assert one.low is not None
    assert one.high is not None
    assert one.low <= one.seconds <= one.high
    assert (one.operand, one.images, one.commit, one.path) == ("head", 8, f"{1:040x}", first)
    assert (one.reference, one.reference_seconds, one.relative) == ("matmul", 0.01, pytest.approx(2.0))
    assert one.machine == digest(MACHINE) != ""
    assert one.metric == "training_throughput"
    assert json.loads(json.dumps(one.to_json()))["relative"] == pytest.approx(2.0)


def test_files_of_pytest_benchmark_are_points_too(tmp_path: Path) -> None:
    store.save(record(1, 0.02), tmp_path / "a.json")
    write(tmp_path / "pytest.json", foreign(2))
    found, skipped = collect(tmp_path)
    assert skipped == []
    old, new = found[ID]
    assert (new.seconds, new.low, new.high, new.images) == (0.02, 0.019, 0.03, 8)
    assert (new.commit, new.dirty, new.operand) == ("c" * 40, True, "")
    assert new.machine == old.machine
    assert new.metric == "training_throughput"
    assert new.relative is None


def test_a_file_of_pytest_benchmark_without_its_samples(tmp_path: Path) -> None:
    data = foreign(2, machine={}, reference={"id": "matmul", "seconds": 0.01})
    benchmark = data["benchmarks"][0]
    del benchmark["stats"]["data"], benchmark["extra_info"]["training_throughput"]
    write(tmp_path / "x.json", data)
    (point,) = collect(tmp_path)[0][ID]
    assert (point.low, point.high, point.commit, point.metric) == (None, None, None, LATENCY)
    assert point.machine == digest(MACHINE)
    assert point.relative == pytest.approx(2.0)


def test_what_is_no_run_is_named(tmp_path: Path) -> None:
    whole = store.save(record(1, 0.02), tmp_path / "a.json").read_text()
    (tmp_path / "half.json").write_text(whole[: len(whole) // 2])
    (tmp_path / ".b.json.1.ab.tmp").write_text("{")
    (tmp_path / "notes.txt").write_text("hello")
    write(tmp_path / "other.json", {"a": 1})
    write(tmp_path / "list.json", [1])
    write(tmp_path / "timeless.json", foreign(1, datetime=None))
    write(tmp_path / "theirs.json", foreign(1, benchmarks=[{"fullname": "test_x", "stats": {"median": 1}}, 3]))
    write(tmp_path / "newer.json", {**json.loads(whole), "schema": 2})
    store.save(record(2, 0.02, settings={"beside": "busy"}), tmp_path / "loaded.json")
    store.save(record(3, 0.02, settings={"over": "threads=1,2"}), tmp_path / "threads.json")
    store.save(record(1, 0.02, settings={"beside": "none", "over": ""}), tmp_path / "a.json")
    found, skipped = collect(tmp_path)
    assert len(found[ID]) == 1
    reasons = {path.name: reason for path, reason in skipped}
    assert sorted(reasons) == sorted(p.name for p in tmp_path.iterdir() if p.name != "a.json")
    assert "datetime is None" in reasons["timeless.json"]
    assert "none of its benchmarks is a workload" in reasons["theirs.json"]
    assert "newer version" in reasons["newer.json"]
    assert "beside a busy core on purpose" in reasons["loaded.json"]
    assert "over numbers of threads" in reasons["threads.json"]
    assert "cut off" in reasons[".b.json.1.ab.tmp"]


KEPT = {"fingerprint": MACHINE, "settings": {"allocator": "keeps freed memory"}}


def test_naive_of_a_run_that_kept_freed_memory_is_another_series(tmp_path: Path) -> None:
    store.save(record(1, 0.02, machine=KEPT), tmp_path / "a.json")
    write(tmp_path / "b.json", foreign(2, machine=KEPT))
    store.save(record(3, 0.05), tmp_path / "c.json")
    found, _ = collect(tmp_path)
    kept = ID.replace("-eager", "-eager-keep")
    assert {id: len(points) for id, points in found.items()} == {kept: 2, ID: 1}


@pytest.mark.parametrize(
    ("id", "today"),
    [
        ("inference/a@bf16-nhwc-compile-freeze/b1/s2/c3/cpu", "inference/a@bf16-nhwc-compile-freeze-keep/b1/s2/c3/cpu"),
        ("loading/pil@float32-nhwc-w4/b1/s2/my data/cuda", "loading/pil@float32-nhwc-w4-keep/b1/s2/my data/cuda"),
        ("inference/a@amp-nhwc-graphs/b1/s2/c3/cuda", None),
        ("inference/a@openvino-fp32/b1/s2/c3/cpu", None),
        ("inference/timm:a/b@fp32-nchw-eager-keep/b1/s2/c3/cpu", None),
        ("no id", None),
    ],
)
def test_what_a_stored_workload_is_called_today(id: str, today: str | None) -> None:
    assert current_id(id, KEPT) == (today or id)
    assert current_id(id, {"fingerprint": MACHINE}) == id
    assert current_id(id, {"settings": {"allocator": "default"}}) == id


def test_a_copy_counts_once(tmp_path: Path) -> None:
    path = store.save(record(1, 0.02), tmp_path / "a.json")
    shutil.copy(path, tmp_path / "copy.json")
    assert len(collect(tmp_path)[0][ID]) == 1


def test_times_without_a_zone_are_utc(tmp_path: Path) -> None:
    store.save(record(1, 0.02, created="2026-01-01T00:00:00"), tmp_path / "a.json")
    store.save(record(2, 0.02), tmp_path / "b.json")
    assert [p.created for p in collect(tmp_path)[0][ID]] == ["2026-01-01T00:00:00", "2026-01-02T00:00:00+00:00"]


def test_no_folder_holds_nothing_and_a_file_is_none(tmp_path: Path) -> None:
    assert collect(tmp_path / "none") == ({}, [])
    with pytest.raises(RecordError, match="is it a folder"):
        collect(store.save(record(1, 0.02), tmp_path / "a.json"))


def test_runs_without_machine_or_reference_say_so(tmp_path: Path) -> None:
    store.save(record(1, 0.02, machine={}, settings={"reference": {"id": "matmul"}}, commit=None), tmp_path / "a.json")
    (point,) = collect(tmp_path)[0][ID]
    assert (point.machine, point.reference, point.relative, point.commit) == ("", None, None, None)


def test_readers_and_several_writers_at_once(tmp_path: Path) -> None:
    """Whatever is read in the meantime is whole."""
    problems: list[object] = []
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            found, skipped = collect(tmp_path)
            problems.extend(s for s in skipped if s.path.suffix == ".json")

    def add(writer: int) -> None:
        for i in range(5):
            store.save(record(1 + i, 0.02 + 0.001 * writer), store.new_path("check", tmp_path))

    reader = threading.Thread(target=read)
    writers = [threading.Thread(target=add, args=(writer,)) for writer in range(3)]
    reader.start()
    for thread in writers:
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    reader.join()
    assert problems == []
    assert len(collect(tmp_path)[0][ID]) == 15
