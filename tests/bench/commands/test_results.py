"""Names of stored results: given with --tag, listed by `bench results`, taken by compare and report."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from command_line import bench_here

from bench.comparing.words import with_tags
from results import store
from results.errors import RecordError
from results.record import Metric, Record, Value


def record(rate: float, created: str = "2026-01-01T00:00:00+00:00") -> Record:
    metric = Metric.named("inference_throughput", {"lenet": Value(rate, rate, rate, samples=9)}, batch=8)
    machine = {"fingerprint": {"cpu": "one"}}
    return Record("compare", created, "bench compare lenet", None, machine, ("lenet",), (metric,))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / store.FOLDER
    store.save(record(100.0), store.tagged_path("before", folder))
    store.save(record(200.0, "2026-01-02T00:00:00+00:00"), store.tagged_path("after", folder))
    store.save(replace(record(1.0), complete=False), store.new_path("compare", folder))
    return tmp_path


def test_results_are_listed_with_their_names(place: Path) -> None:
    done = bench_here("results", "--format", "json", cwd=place)
    rows = {row["name"]: row for row in json.loads(done.stdout)}
    assert {"before", "after"} < set(rows)
    assert rows["before"]["operands"] == "lenet"
    [other] = set(rows) - {"before", "after"}
    assert rows[other]["says first"] == "interrupted"
    assert bench_here("results", "--format", "json", cwd=place).stdout == done.stdout
    newest = bench_here("results", "--last", "1", cwd=place)
    assert "2 older ones: --last 3 shows all" in newest.stderr
    # By when they were made: a checkout gives files another time, and another order.
    for number, name in enumerate(("after", "before")):
        os.utime(place / store.FOLDER / f"{name}.json", (number, number))
    again = json.loads(bench_here("results", "--format", "json", cwd=place).stdout)
    assert [row["name"] for row in again if row["name"] in ("before", "after")] == ["after", "before"]
    nothing = bench_here("results", "--store", "nowhere", cwd=place)
    assert (nothing.returncode, nothing.stdout) == (0, "")
    assert "no results in nowhere" in nothing.stderr


def test_a_name_is_an_operand(place: Path) -> None:
    done = bench_here("compare", "before", "after", "--format", "csv", cwd=place)
    assert done.returncode == 0, done.stderr
    assert "before" in done.stdout
    assert ",after," in done.stdout
    assert bench_here("report", "before", "-o", "page.html", cwd=place).returncode == 0
    bench_here("compare", "before", "aftr", cwd=place).refused("no result is named aftr; did you mean after?")
    bench_here("compare", "before", "--tag", "other", cwd=place).refused("--tag other names what is measured")


def test_what_has_another_meaning_keeps_it(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    store.save(record(1.0), store.tagged_path("lenet", store.FOLDER))
    (place / "after").mkdir()
    assert with_tags(["lenet", "after", "before", "gone"]) == (
        "lenet", "after", str(store.FOLDER / "before.json"), "gone",
    )  # fmt: skip


@pytest.mark.parametrize("tag", ["a/b", "", ".hidden", "20260101T000000Z-compare-ab"])
def test_what_is_no_name_is_refused(tag: str) -> None:
    with pytest.raises(RecordError, match="cannot name a result"):
        store.tagged_path(tag)


def test_a_check_is_listed_with_its_verdict(place: Path) -> None:
    checked = replace(record(1.0), kind="check", settings={"check": {"verdict": "CHANGED"}})
    store.save(checked, store.new_path("check", place / store.FOLDER))
    rows = json.loads(bench_here("results", "--format", "json", cwd=place).stdout)
    assert [row["says first"] for row in rows if row["kind"] == "check"] == ["CHANGED"]


def test_where_nothing_can_be_stored_nothing_is_measured(place: Path) -> None:
    (place / "file").touch()
    done = bench_here("compare", "lenet", "--quick", "--store", "file/deeper", cwd=place)
    done.refused("cannot make the folder file/deeper: file is a file; choose another place")


def test_a_name_is_given_once(place: Path) -> None:
    words = ("compare", "lenet", "--tasks", "loading", "--quick")
    bench_here(*words, "--tag", "before", cwd=place).refused("is called before already; choose another --tag")
    bench_here(*words, "--tag", "lenet", cwd=place).refused("choose another name")
    assert store.load(place / store.FOLDER / "before.json").metrics[0].values["lenet"].median == 100.0
