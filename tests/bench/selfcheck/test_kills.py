"""Killing commands: what a kill may leave is found, and nothing else; in earnest a few times."""

import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from bench.errors import BenchError, UsageError
from bench.selfcheck import kills
from bench.selfcheck.kills import Outcome, Trial, kill, loop, summary

# Writes, says so, and waits; a second start with "again" ends at once.
WAITING = """
import pathlib, subprocess, sys, time
pathlib.Path("begun").touch()
if sys.argv[1] == "orphan":
    subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(60)"], start_new_session=True)
pathlib.Path("ready").touch()
time.sleep(60 if sys.argv[1] != "again" else 0)
"""


class Scripted(Trial):
    """Runs a script in place of `bench`."""

    name = "scripted"
    kind = "waits"

    def words(self) -> list[str]:
        return [self.kind]

    def again(self) -> list[str]:
        return ["again"]

    def faults(self) -> Iterator[str]:
        if not (self.folder / "begun").exists():
            yield "it stored nothing"


@pytest.fixture
def scripted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scripted:
    start = kills.subprocess.Popen

    def started(command: Sequence[str], **options: Any) -> Any:
        words = command[command.index("bench") + 1 :]
        process = start([sys.executable, "-S", "-c", WAITING, *words], **options)
        while not Path(options["cwd"], "ready").exists():
            pass
        return process

    monkeypatch.setattr(kills.subprocess, "Popen", started)
    return Scripted(tmp_path)


@pytest.mark.parametrize("number", kills.SIGNALS)
def test_a_kill_that_did_no_harm(scripted: Scripted, number: signal.Signals) -> None:
    done = kill(scripted, number, 0.0)
    assert (done.command, done.signal, done.faults) == ("scripted", number.name, ())
    assert (done.exit_code, done.again) == (-number, 0)


def test_what_is_left_behind_is_found_and_ended(scripted: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kills, "PATIENCE", 0.5)
    scripted.kind = "orphan"
    done = kill(scripted, signal.SIGKILL, 0.0)
    assert done.faults == ("1 processes were left behind",)


def test_a_fault_names_itself(scripted: Scripted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Scripted, "faults", lambda self: iter(["row 3 is gone"]))
    monkeypatch.setattr(Scripted, "fine", (7,))
    done = kill(scripted, signal.SIGKILL, 0.0)
    assert done.faults[0] == "row 3 is gone"
    assert done.faults[1].startswith("the next start: exit code 0")
    (tmp_path / "run.json").write_text("{")
    assert [fault.partition(":")[0] for fault in kills.unreadable(tmp_path)] == [
        "run.json",
        f"{tmp_path.name} has no recipe to start again from",
    ]


def test_kills_are_counted_and_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []

    def killed(trial: Trial, number: signal.Signals, moment: float) -> Outcome:
        asked.append((trial.name, number.name))
        assert 0 <= moment <= 2
        return Outcome(trial.name, number.name, moment, -number, 0, ("lost",) if number == signal.SIGINT else ())

    monkeypatch.setattr(kills, "kill", killed)
    monkeypatch.setattr(kills, "_prepared", lambda name, folder, say: (kills.TRIALS[name](folder), 2.0))
    path = tmp_path / "kills.jsonl"
    loop(path, 4, ["export", "data make"], 0, lambda text: None)
    found = loop(path, 6, ["export", "data make"], 0, lambda text: None)
    assert asked == [(name, number.name) for number in kills.SIGNALS for name in ("export", "data make")]
    text = summary(found, "markdown")
    assert text.count("\n|") == 8
    assert text.count("lost") == 2
    with pytest.raises(UsageError, match="no command 'serve' is killed here"):
        loop(path, 7, ["serve"], 0, lambda text: None)


def test_a_command_that_does_not_run_is_an_error(scripted: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(kills.TRIALS, "scripted", Scripted)
    monkeypatch.setattr(Scripted, "words", Scripted.again)
    monkeypatch.setattr(Scripted, "faults_at_end", lambda self: iter(["it is empty"]))
    with pytest.raises(BenchError, match="does not run here even undisturbed: it is empty"):
        kills._prepared("scripted", scripted.folder, lambda text: None)


@pytest.mark.night
def test_true_commands_are_killed_without_harm(tmp_path: Path) -> None:
    """Once each; `python -m bench.selfcheck kills` kills many, at moments that chance decides."""
    found = loop(tmp_path / "kills.jsonl", 2, ["train", "export"], 0, lambda text: None)
    assert [outcome.faults for outcome in found] == [()] * 2
