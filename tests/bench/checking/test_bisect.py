"""The search for the commit that made a workload slower, on a real little history and with made-up duels."""

import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from workloads import workload_of

from bench.checking.bisect import Bisection, bisect
from bench.errors import BenchError, UsageError, WorkerError
from bench.timing.workload import Workload
from results.gate import ERROR, Row
from results.verdict import CLEAN, IMPROVED, REGRESSED, UNSURE, Decision

WORKLOAD = workload_of("inference", "lenet", "fp32-nchw-eager", 4, 32, 10)
COMMITS = 9


def git(folder: Path, *words: str) -> str:
    settings = ("-c", "user.name=A", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false")
    done = subprocess.run(["git", *settings, *words], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A repository of nine commits on a line, and their hashes, oldest first."""
    folder = tmp_path_factory.mktemp("repository")
    git(folder, "init", "-q", "-b", "main")
    hashes = []
    for number in range(COMMITS):
        git(folder, "commit", "-q", "--allow-empty", "-m", f"change {number}\n\nmore words")
        hashes.append(git(folder, "rev-parse", "HEAD"))
    git(folder, "tag", "old", hashes[0])
    return folder, hashes


def row(verdict: str, estimate: float | None) -> Row:
    decision = None if estimate is None else Decision(verdict, 0.02, 10, estimate, None, None, None, None, None, None)
    return Row(WORKLOAD.id, verdict, decision, reason="it crashed" if verdict == ERROR else None)


def duellist(
    hashes: list[str], said: Mapping[int, tuple[str, float | None]], first_bad: int, asked: list[int]
) -> Callable[[str, str, Workload], Row]:
    """Answers of `said` by commit; else slower by 10 % from `first_bad` on."""

    def duel(base: str, head: str, workload: Workload) -> Row:
        assert base == hashes[0]
        assert workload == WORKLOAD
        at = hashes.index(head)
        asked.append(at)
        return row(*said.get(at, (REGRESSED, 1.1) if at >= first_bad else (CLEAN, 1.0)))

    return duel


def search(
    history: tuple[Path, list[str]], first_bad: int, said: Mapping[int, tuple[str, float | None]] | None = None
) -> tuple[Bisection, list[int]]:
    folder, hashes = history
    asked: list[int] = []
    found = bisect("old", "main", WORKLOAD, folder, duellist(hashes, said or {}, first_bad, asked), lambda text: None)
    return found, asked


@pytest.mark.parametrize("first_bad", range(1, COMMITS))
def test_every_place_is_found_by_halving(history: tuple[Path, list[str]], first_bad: int) -> None:
    found, asked = search(history, first_bad)
    assert found.first_bad is not None
    assert found.first_bad.hash == history[1][first_bad]
    assert found.first_bad.subject == f"change {first_bad}"
    assert asked[0] == COMMITS - 1
    assert len(asked) == len(set(asked)) <= 1 + 3
    assert found.good.hash == history[1][0]


def test_the_answer_in_words(history: tuple[Path, list[str]]) -> None:
    found, _ = search(history, 3, {4: (UNSURE, 1.07)})
    text = found.text()
    assert found.first_bad is not None
    assert text.startswith(f"{WORKLOAD.id} became slower with {found.first_bad.hash[:10]} ")
    assert "+10.0 %" in text
    assert "bad (by half)" in text
    assert "more than half of the whole change counts as bad" in text
    assert found.text("csv").startswith("commit,date,verdict,time")
    data = found.to_json()
    assert data["first_bad"]["subject"] == "change 3"
    assert [trial["verdict"] for trial in data["trials"]][:2] == [REGRESSED, UNSURE]


@pytest.mark.parametrize(("estimate", "expected"), [(1.06, 4), (1.03, 5)])
def test_unsure_goes_by_half_of_the_change(history: tuple[Path, list[str]], estimate: float, expected: int) -> None:
    found, _ = search(history, 5, {4: (UNSURE, estimate), 3: (CLEAN, 1.0)})
    assert found.first_bad is not None
    assert found.first_bad.hash == history[1][expected]
    assert found.trials[1].by_half


def test_faster_is_good(history: tuple[Path, list[str]]) -> None:
    found, _ = search(history, 7, {4: (IMPROVED, 0.9)})
    assert found.first_bad is not None
    assert found.first_bad.subject == "change 7"


def test_commits_that_do_not_run_are_passed_over(history: tuple[Path, list[str]]) -> None:
    found, asked = search(history, 6, {4: (ERROR, None), 3: (UNSURE, None)})
    assert found.first_bad is not None
    assert found.first_bad.subject == "change 6"
    assert asked[1] == 4
    assert "skipped" in found.text()


def test_a_range_that_does_not_run_is_reported_whole(history: tuple[Path, list[str]]) -> None:
    found, _ = search(history, 5, {4: (ERROR, None), 5: (ERROR, None)})
    assert found.first_bad is None
    assert [commit.subject for commit in found.suspects] == ["change 4", "change 5", "change 6"]
    assert "one of these" in found.text()
    assert found.to_json()["first_bad"] is None


def test_a_duel_that_raises_is_a_commit_that_does_not_run(history: tuple[Path, list[str]]) -> None:
    folder, hashes = history
    lines: list[str] = []

    def duel(base: str, head: str, workload: Workload) -> Row:
        if head == hashes[4]:
            raise WorkerError("no module named models")
        return row(REGRESSED, 1.1) if hashes.index(head) >= 6 else row(CLEAN, 1.0)

    found = bisect(hashes[0], hashes[-1], WORKLOAD, folder, duel, lines.append)
    assert found.first_bad is not None
    assert found.first_bad.subject == "change 6"
    assert any("change 4: ERROR - -> skipped: no module named models" in line for line in lines)


def test_nothing_to_look_for(history: tuple[Path, list[str]]) -> None:
    for verdict, estimate, words in ((CLEAN, 1.004, r"CLEAN \(\+0.4 %\)"), (ERROR, None, r"ERROR \(it crashed\)")):
        with pytest.raises(BenchError, match=f"main is not found slower than old on {WORKLOAD.id}: {words}"):
            search(history, 1, {COMMITS - 1: (verdict, estimate)})


def test_commits_that_make_no_sense(history: tuple[Path, list[str]], tmp_path: Path) -> None:
    folder, hashes = history

    def never(base: str, head: str, workload: Workload) -> Row:
        raise AssertionError

    for good, bad, words in (
        ("none", "main", "no commit is called 'none'"),
        ("main", "main", "the same commit"),
        ("main", "old", "main does not come before old; GOOD is named first"),
    ):
        with pytest.raises(UsageError, match=words):
            bisect(good, bad, WORKLOAD, folder, never, lambda text: None)
    with pytest.raises(UsageError, match="not in a git repository"):
        bisect("a", "b", WORKLOAD, tmp_path, never, lambda text: None)


def test_side_branches_are_one_step(tmp_path: Path) -> None:
    """Along first parents a merge stands for all it brought."""
    git(tmp_path, "init", "-q", "-b", "main")
    git(tmp_path, "commit", "-q", "--allow-empty", "-m", "root")
    git(tmp_path, "checkout", "-q", "-b", "side")
    git(tmp_path, "commit", "-q", "--allow-empty", "-m", "on the side")
    git(tmp_path, "checkout", "-q", "main")
    git(tmp_path, "commit", "-q", "--allow-empty", "-m", "on main")
    git(tmp_path, "merge", "-q", "--no-ff", "-m", "join", "side")
    merged = git(tmp_path, "rev-parse", "main")

    def duel(base: str, head: str, workload: Workload) -> Row:
        return row(REGRESSED, 1.1) if head == merged else row(CLEAN, 1.0)

    found = bisect("main~2", "main", WORKLOAD, tmp_path, duel, lambda text: None)
    assert [trial.commit.subject for trial in found.trials] == ["join", "on main"]
    assert found.first_bad is not None
    assert found.first_bad.subject == "join"
