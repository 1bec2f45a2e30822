"""Stored files are also what pytest-benchmark's own loaders read."""

import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pytest_benchmark.logger import Logger
from pytest_benchmark.stats import Stats
from pytest_benchmark.storage.file import FileStorage

from results import store
from results.errors import RecordError
from results.pytest_json import block_seconds, samples, statistics_of
from results.record import SHARED_KEYS, Metric, Record, Value

ID = "training/lenet@fp32-nchw-eager/b8/s32/c10/cpu"
OTHER = "inference/lenet@fp32-nchw-eager/b8/s32/c10/cpu"


def metric(pairs: Any, ids: dict[str, str], name: str = "training_throughput") -> Metric:
    return Metric.named(name, {o: Value.counted(8 / 0.02) for o in ids}, batch=8, workloads=ids, pairs=pairs)


def record(*metrics: Metric, operands: tuple[str, ...] = ("base", "head"), **changed: Any) -> Record:
    given: dict[str, Any] = {
        "kind": "check",
        "created": "2026-01-02T03:04:05+00:00",
        "command": "bench check --base main",
        "commit": {"sha": "a" * 40, "dirty": True},
        "machine": {"fingerprint": {"device": "cpu", "cores": 2}},
    }
    return Record(operands=operands, metrics=metrics, **{**given, **changed})


CHECK = record(
    metric([[{"base": 0.02, "head": 0.03}, {"base": 0.021, "head": 0.031}]] * 7, {"base": ID, "head": ID}),
    Metric.named("params", {"base": Value.counted(5), "head": Value.counted(5)}),
)


def test_a_stored_record_reads_back_without_what_was_added(tmp_path: Path) -> None:
    path = store.save(CHECK, tmp_path / "x.json")
    assert set(SHARED_KEYS) <= set(json.loads(path.read_text()))
    assert store.load(path).to_json() == CHECK.to_json()
    assert not set(SHARED_KEYS) & set(CHECK.to_json())


def test_files_from_before_still_load_and_other_keys_are_still_errors(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps(CHECK.to_json()))
    assert store.load(path).to_json() == CHECK.to_json()
    path.write_text(json.dumps({**CHECK.to_json(), "benchmark": []}))
    with pytest.raises(RecordError, match="unknown key 'benchmark'"):
        store.load(path)
    path.write_text(json.dumps({"schema": 1, "benchmarks": []}))
    with pytest.raises(RecordError, match="written by pytest-benchmark"):
        store.load(path)


def test_pytest_benchmarks_storage_loads_it(tmp_path: Path) -> None:
    path = store.save(CHECK, tmp_path / "x.json")
    (loaded,) = FileStorage(str(tmp_path), Logger()).load(str(path))
    assert loaded[1]["commit_info"] == {"id": "a" * 40, "dirty": True}
    assert loaded[1]["machine_info"] == {"pixbench": {"device": "cpu", "cores": 2}}
    assert loaded[1]["datetime"] == CHECK.created
    base, head = FileStorage(str(tmp_path), Logger()).load_benchmarks(str(path))
    # The newer side has the name that `pytest bench` gives the same workload.
    assert (head["fullname"], base["fullname"]) == (ID, f"{ID} (base)")
    assert head["group"] == "training"
    assert head["median"] == pytest.approx(0.0305)
    assert head["rounds"] == 7
    assert head["extra_info"]["images"] == 8


def test_pytest_benchmarks_compare_shows_it(tmp_path: Path) -> None:
    path = store.save(CHECK, tmp_path / "x.json")
    words = ("-m", "pytest_benchmark", "compare", str(path), "--csv", str(tmp_path / "out.csv"))
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "benchmark 'training': 2 tests" in done.stdout
    assert ID in (tmp_path / "out.csv").read_text()


def test_statistics_hold_what_pytest_benchmark_reads() -> None:
    found = statistics_of([0.2, 0.1, 0.3, 0.4])
    assert (found["min"], found["median"], found["max"], found["data"]) == (0.1, 0.25, 0.4, [0.2, 0.1, 0.3, 0.4])
    assert set(Stats.fields) | {"data", "iterations"} == set(found)


def test_a_single_time_has_statistics() -> None:
    found = statistics_of([0.5])
    assert (found["stddev"], found["iqr"], found["median"], found["rounds"]) == (0.0, 0.0, 0.5, 1)


def test_what_was_not_timed_has_no_benchmark(tmp_path: Path) -> None:
    strange = [
        metric((), {"base": ID}),
        metric([[0.1, -0.2], []], {"base": ID}),
        metric([[{"base": None}, {"base": -1.0}, {"base": True}, {"other": 1.0}]], {"base": ID}),
        metric({"base": [[0.1]]}, {"base": ID}),
    ]
    for one in strange:
        assert block_seconds(one, "base") == []
    path = store.save(record(*strange, commit=None, machine={}), tmp_path / "x.json")
    data = json.loads(path.read_text())
    assert data["benchmarks"] == []
    assert data["commit_info"] == {"id": "unversioned", "dirty": False}
    assert store.load(path).commit is None


def test_samples_are_medians_of_blocks_or_all_slices() -> None:
    assert samples([[1.0, 2.0], [3.0]]) == [1.0, 2.0, 3.0]
    assert samples([[1.0, 9.0, 2.0]] * 6) == [statistics.median([1.0, 9.0, 2.0])] * 6


def test_operands_of_different_workloads_keep_their_ids(tmp_path: Path) -> None:
    pairs = [[{"base": 0.02, "head": 0.03}]]
    path = store.save(record(metric(pairs, {"base": ID, "head": OTHER})), tmp_path / "x.json")
    assert [b["name"] for b in json.loads(path.read_text())["benchmarks"]] == [ID, OTHER]
