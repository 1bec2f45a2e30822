"""A stored comparison belongs to one process while it is measured, and to the next one when it was interrupted."""

import contextlib
import os
from pathlib import Path
from typing import Any

import pytest

from bench.comparing.run_log import RunLog
from bench.screen import Screen
from results import store
from results.errors import RecordError
from results.record import Metric
from results.stats import summarise

METRIC = Metric.named("inference_throughput", {"a": summarise([1.0, 2.0, 3.0])}, batch=4)


class Source:
    """A comparison that has come to its first row."""

    machine: dict[str, Any] = {}
    references: list[float] = []

    def state(self) -> dict[str, Any]:
        return {"row": 1}


def log(folder: Path, **settings: Any) -> RunLog:
    made = RunLog("compare", "bench compare a", ["a"], settings, folder)
    made.follow(Source())
    return made


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def interrupted(folder: Path) -> Path:
    begun = log(folder)
    with contextlib.suppress(KeyboardInterrupt), begun.kept(Screen(silent=True)):
        begun.add(METRIC)
        raise KeyboardInterrupt
    return begun.path


def test_an_interrupted_one_is_continued_in_its_file(tmp_path: Path) -> None:
    path, said = interrupted(tmp_path), list[str]()
    assert names(tmp_path) == [path.name]
    again = log(tmp_path)
    assert again.resume(said.append) == {"row": 1}
    with again.kept(Screen(silent=True)):
        again.add(METRIC)
    assert (again.path, said) == (path, [f"going on with {path}"])
    assert names(tmp_path) == [path.name]
    assert store.load(path).complete


def test_one_that_is_being_measured_is_not_continued(tmp_path: Path) -> None:
    """Neither by a process that resumes it too, nor by one that resumes while it is measured for the first time."""
    for resumed in (True, False):
        folder = tmp_path / str(resumed)
        living, said = log(folder), list[str]()
        if resumed:
            interrupted(folder)
            living.resume(lambda text: None)
        with living.kept(Screen(silent=True)):
            living.add(METRIC)
            other = log(folder)
            assert other.resume(said.append) is None
            assert said[0] == f"{living.path} is being measured by process {os.getpid()}"
            assert said[1].startswith("nothing to resume")
            assert other.path != living.path
        assert names(folder) == [living.path.name]


def test_one_of_other_settings_or_that_ended_meanwhile_is_not_continued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(tmp_path)
    assert log(tmp_path, budget=1).resume(lambda text: None) is None
    hold = RunLog._hold

    def late(self: RunLog, path: Path) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(RunLog, "_hold", hold)
            quicker = log(tmp_path)
            quicker.resume(lambda text: None)
            with quicker.kept(Screen(silent=True)):
                quicker.add(METRIC)
        hold(self, path)

    monkeypatch.setattr(RunLog, "_hold", late)
    assert log(tmp_path).resume(lambda text: None) is None


def test_a_place_that_cannot_be_written_is_said_by_storing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    made = log(tmp_path / "file")
    with made.kept(Screen(silent=True)):
        made.add(METRIC)
    assert "cannot write" in made.failure


def tagged(folder: Path) -> RunLog:
    made = RunLog("compare", "bench compare a", ["a"], {}, folder, tag="x")
    made.follow(Source())
    return made


def test_a_name_is_given_once(tmp_path: Path) -> None:
    """To the first that begins to measure, also after it has ended; the others are told before they measure."""
    first, second, third = (tagged(tmp_path) for _ in range(3))
    with first.kept(Screen(silent=True)):
        with pytest.raises(RecordError, match=r"x.json is being measured by process \d+; choose another --tag"):
            second.kept(Screen(silent=True)).__enter__()
        first.add(METRIC)
    whole = first.path.read_bytes()
    with pytest.raises(RecordError, match="is called x already; choose another --tag"):
        third.kept(Screen(silent=True)).__enter__()
    assert (names(tmp_path), first.path.read_bytes()) == (["x.json"], whole)


def test_without_locks_a_name_is_given_once_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RunLog, "_hold", lambda *_: None)
    first, second = tagged(tmp_path), tagged(tmp_path)
    with first.kept(Screen(silent=True)), second.kept(Screen(silent=True)):
        first.add(METRIC)
        second.add(METRIC)
    assert (first.path.name, first.taken) == ("x.json", "")
    assert second.taken.endswith(f"this result is {second.path}")
    assert names(tmp_path) == sorted(["x.json", second.path.name])
    assert all(store.load(log.path).complete for log in (first, second))


def test_a_named_one_is_continued(tmp_path: Path) -> None:
    begun = tagged(tmp_path)
    with contextlib.suppress(KeyboardInterrupt), begun.kept(Screen(silent=True)):
        begun.add(METRIC)
        raise KeyboardInterrupt
    again = tagged(tmp_path)
    assert again.resume(lambda _: None) == {"row": 1}
    with again.kept(Screen(silent=True)):
        again.add(METRIC)
    assert names(tmp_path) == ["x.json"]
    assert store.load(again.path).complete
