"""The loop of whole checks, without a check: outcomes are stored, counted and continued."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import fabricated_check
import pytest

from bench.errors import BenchError, UsageError
from bench.selfcheck import live
from bench.selfcheck.live import Outcome, scratch, summary
from results.errors import RecordError
from results.lines import LineFile, read_lines
from results.verdict import CLEAN, REGRESSED, UNSURE

WORKLOADS = ("a", "b")


def run(slow: int = 0, verdict: str = CLEAN, exit_code: int = 0, code: str = "code") -> Outcome:
    return Outcome(slow, code, WORKLOADS, 90.0, 0.0, 60.0, exit_code, verdict, dict.fromkeys(WORKLOADS, verdict))


@pytest.fixture
def no_repository(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(live, "scratch", lambda folder, slow: (folder, "HEAD", "code"))


def looping(
    path: Path, runs: int, slow: int = 0, code: str = "code", budget: float = 90.0
) -> tuple[list[Outcome], int]:
    asked = []

    def once(root: Path, base: str, slow: int, code_: str, workloads: Any, budget: float, timeout: float) -> Outcome:
        asked.append(base)
        return run(slow, REGRESSED if slow else CLEAN, 1 if slow else 0, code)

    found = live.loop(path, runs, slow, WORKLOADS, budget, lambda text: None, once=once)
    return found, len(asked)


@pytest.mark.usefixtures("no_repository")
def test_a_loop_goes_on_where_it_was_interrupted(tmp_path: Path) -> None:
    path = tmp_path / "live.jsonl"
    assert looping(path, 2)[1] == 2
    with path.open("a") as file:
        file.write('{"slow": 0, "co')
    found, asked = looping(path, 3)
    assert (len(found), asked) == (3, 1)
    assert read_lines(Outcome, path) == found
    # Runs of another slowdown are counted on their own.
    assert looping(path, 2, slow=5)[1] == 2
    assert len(read_lines(Outcome, path)) == 5


@pytest.mark.usefixtures("no_repository")
def test_runs_of_other_code_are_named_and_stay_what_they_are(tmp_path: Path) -> None:
    path = tmp_path / "live.jsonl"
    with LineFile(path) as file:
        file.add(run(code="other"))
    messages: list[str] = []
    live.loop(path, 2, 0, WORKLOADS, 90.0, messages.append, once=lambda *of: run())
    assert "also holds runs of other code (other, now code)" in messages[0]
    assert [outcome.code for outcome in read_lines(Outcome, path)] == ["other", "code"]


@pytest.mark.usefixtures("no_repository")
def test_runs_of_another_budget_are_not_mixed(tmp_path: Path) -> None:
    path = tmp_path / "live.jsonl"
    looping(path, 1)
    with pytest.raises(UsageError, match="a budget of 90 s; now it is a, b, 30 s"):
        looping(path, 2, budget=30.0)


def test_another_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "live.jsonl"
    path.write_text('{"slow": 0}\n')
    with pytest.raises(RecordError, match="live.jsonl, line 1: missing 'code'"):
        looping(path, 1)


def test_the_summary_counts_false_alarms_and_what_was_missed() -> None:
    found = [run()] * 29 + [run(verdict=UNSURE)] + [run(5, REGRESSED, 1)] * 2 + [run(5)]
    text = summary(found, "markdown")
    assert "58 CLEAN" in text
    assert "0 false alarms, at most 4.9% with 95 %" in text
    assert "4 found, 2 missed (CLEAN)" in text
    assert len(json.loads(summary(found, "json"))) == 33


@pytest.mark.parametrize(
    ("report", "verdict", "error"),
    [(json.dumps(fabricated_check.report().to_json()), CLEAN, ""), ("", "", "no report")],
)
def test_a_run_is_what_its_report_says(
    report: str, verdict: str, error: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    code = "import pathlib, sys; pathlib.Path(sys.argv[1]).write_text(sys.argv[2]); sys.exit('last words')"
    root = tmp_path / "repository"
    root.mkdir()
    monkeypatch.setattr(live, "command", lambda base, of, budget, path: [sys.executable, "-Sc", code, path, report])
    outcome = live.run_once(root, "HEAD", 0, "code", WORKLOADS, 90.0, timeout=60)
    assert (outcome.exit_code, outcome.verdict) == (1, verdict)
    assert outcome.rows == ({fabricated_check.INFERENCE: CLEAN} if verdict else {})
    assert outcome.error.startswith(error)
    assert outcome.error.endswith("last words" if error else "")


def test_a_check_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    root = tmp_path / "repository"
    root.mkdir()
    hanging = [sys.executable, "-S", "-c", "while True: pass"]
    monkeypatch.setattr(live, "command", lambda base, workloads, budget, output: hanging)
    outcome = live.run_once(root, "HEAD", 0, "code", WORKLOADS, 90.0, timeout=0.2)
    assert (outcome.exit_code, outcome.verdict) == (124, "")
    assert "did not end within" in outcome.error


def test_extra_work_is_the_given_share_of_whole_steps(tmp_path: Path) -> None:
    """The text appended to a step's module, run on a stand-in for it."""
    calls = []

    class Step:
        call = staticmethod(lambda: calls.append(1))

    module: dict[str, Any] = {"build": lambda workloads, conditions: [Step()]}
    head = "from __future__ import annotations\n"
    exec(head + live.SLOWER.replace("{percent}", "5"), module)
    [step] = module["build"]([], None)
    for _ in range(19):
        step.call()
    assert len(calls) == 19, "what is counted exactly must not change"
    for _ in range(181):
        step.call()
    assert len(calls) == 210


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small repository in place of this one, with an uncommitted change."""
    top = tmp_path / "top"
    for name in ("bench/worker.py", "bench/inspecting/exact.py", "bench/timing/step.py"):
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_text("x = 1\n")
    live_git(top, "init", "--quiet")
    live_git(top, "add", "--all")
    live_git(top, "commit", "--quiet", "--message", "one")
    (top / "bench" / "new.py").write_text("y = 2\n")
    monkeypatch.setattr(live, "SOURCE", top)
    return top


def live_git(folder: Path, *words: str) -> None:
    live.git(folder, *words)


def shown(root: Path, ref: str, name: str) -> str:
    return subprocess.run(["git", "-C", str(root), "show", f"{ref}:{name}"], capture_output=True, text=True).stdout


def test_the_scratch_repository_holds_this_code_and_a_slower_head(repository: Path, tmp_path: Path) -> None:
    folder = tmp_path / "scratch"
    folder.mkdir()
    root, base, code = scratch(folder, 5)
    assert shown(root, base, "bench/new.py") == "y = 2\n"
    assert shown(root, base, "bench/timing/step.py") == "x = 1\n"
    assert "owed += 5" in shown(root, "HEAD", "bench/timing/step.py")
    assert code
    other = tmp_path / "equal"
    other.mkdir()
    assert scratch(other, 0)[1:] == ("HEAD", code)


def test_git_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="git commit failed"):
        live.git(tmp_path, "commit")
