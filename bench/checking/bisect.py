"""Which commit made a workload slower: halving a history by duels.

Every commit is measured against the same good one, so each duel asks for the whole change and not for a part of it.
How two commits are measured is handed in: here are only the search and its report.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.checking.trees import commit_of, git, top_of
from bench.errors import BenchError, UsageError
from bench.screen import Say
from bench.timing.workload import Workload
from results.gate import ERROR, Row
from results.tables import render
from results.verdict import CLEAN, IMPROVED, REGRESSED, UNSURE

Duellist = Callable[[str, str, Workload], Row]

GOOD = "good"
BAD = "bad"
SKIPPED = "skipped"


@dataclass(frozen=True)
class Commit:
    """A commit: full hash, date of the committer in ISO 8601, first line of its message."""

    hash: str
    date: str
    subject: str

    @property
    def text(self) -> str:
        """For reading: short hash, day, subject."""
        return f"{self.hash[:10]} {self.date[:10]} {self.subject}"


@dataclass(frozen=True)
class Trial:
    """One duel of the good commit against another.

    Attributes:
        commit: the other.
        verdict: as in a Row; ERROR where it could not be measured.
        estimate: its time / the good one's time, None without a number.
        side: "good", "bad" or "skipped".
        by_half: the duel was UNSURE, and the side follows from whether more than half of the change was there.
        reason: why there is no number.
    """

    commit: Commit
    verdict: str
    estimate: float | None
    side: str
    by_half: bool = False
    reason: str | None = None


@dataclass(frozen=True)
class Bisection:
    """What the search found.

    Attributes:
        workload: its id.
        good, bad: the commits it began with.
        trials: in the order they were measured, the whole change first.
        suspects: the first bad commit; more than one, oldest first, where commits between could not be measured.
    """

    workload: str
    good: Commit
    bad: Commit
    trials: tuple[Trial, ...]
    suspects: tuple[Commit, ...]

    @property
    def first_bad(self) -> Commit | None:
        """The commit, None where more than one may be it."""
        return self.suspects[0] if len(self.suspects) == 1 else None

    def to_json(self) -> dict[str, Any]:
        """Plain types, `first_bad` included."""
        first = self.first_bad
        return {**asdict(self), "first_bad": None if first is None else asdict(first)}

    def text(self, format: str = "text") -> str:
        """The answer, then every duel as a table; csv has the table alone."""
        rows = [
            [t.commit.hash[:10], t.commit.date[:10], t.verdict, _percent(t.estimate), _side(t), t.commit.subject]
            for t in self.trials
        ]
        table = render(("commit", "date", "verdict", "time", "taken as", "subject"), rows, format)
        if format == "csv":
            return table
        if self.first_bad is not None:
            said = [f"{self.workload} became slower with {self.first_bad.text}"]
        else:
            said = [f"{self.workload} became slower with one of these; those between could not be measured:"]
            said += [f"- {commit.text}" for commit in self.suspects]
        if any(trial.by_half for trial in self.trials):
            said.append("Where a duel was UNSURE, more than half of the whole change counts as bad.")
        return "\n".join(said) + "\n\n" + table


def bisect(good: str, bad: str, workload: Workload, repository: Path, duel: Duellist, say: Say) -> Bisection:
    """Finds the first commit after `good`, along first parents to `bad`, that has the slowdown between the two.

    Args:
        good, bad: commits, branches or tags.
        repository: any folder of their repository.
        duel: measures a base against a head, both given as full hashes.
        say: gets one line for each duel.

    Raises:
        UsageError: no repository, no such commit, or `good` does not come before `bad`.
        BenchError: `bad` is not found slower than `good`, so that there is nothing to look for.
    """
    top = top_of(repository)
    first, between = _history(top, good, bad)
    last = between[-1]
    say(f"{len(between)} commits after {first.text}; the whole change first")
    row = duel(first.hash, last.hash, workload)
    whole = row.decision.estimate if row.decision is not None else None
    if row.verdict != REGRESSED or whole is None:
        found = _percent(whole) if whole is not None else row.reason or "no number"
        raise BenchError(
            f"{bad} is not found slower than {good} on {workload.id}: {row.verdict} ({found}); "
            "choose other commits, or another workload"
        )
    trials = [Trial(last, row.verdict, whole, BAD)]
    say(_line(trials[0]))
    skipped: set[int] = set()
    low, high = -1, len(between) - 1
    while (at := _next(low, high, skipped)) is not None:
        trial = _try(first, between[at], workload, duel, whole)
        trials.append(trial)
        say(_line(trial))
        if trial.side == SKIPPED:
            skipped.add(at)
        elif trial.side == BAD:
            high = at
        else:
            low = at
    return Bisection(workload.id, first, last, tuple(trials), tuple(between[low + 1 : high + 1]))


def _next(low: int, high: int, skipped: set[int]) -> int | None:
    """The untried commit nearest to the middle of those between `low` and `high`; None if there is none."""
    middle = (low + high) // 2
    left = [at for at in range(low + 1, high) if at not in skipped]
    return min(left, key=lambda at: (abs(at - middle), at), default=None)


def _try(good: Commit, commit: Commit, workload: Workload, duel: Duellist, whole: float) -> Trial:
    try:
        row = duel(good.hash, commit.hash, workload)
    except BenchError as error:
        # A commit that cannot be built or measured says nothing about its neighbours.
        return Trial(commit, ERROR, None, SKIPPED, reason=str(error))
    estimate = row.decision.estimate if row.decision is not None else None
    if row.verdict == REGRESSED:
        return Trial(commit, row.verdict, estimate, BAD)
    if row.verdict in (CLEAN, IMPROVED):
        return Trial(commit, row.verdict, estimate, GOOD)
    if row.verdict == UNSURE and estimate is not None:
        side = BAD if math.log(estimate) > math.log(whole) / 2 else GOOD
        return Trial(commit, row.verdict, estimate, side, by_half=True)
    return Trial(commit, row.verdict, None, SKIPPED, reason=row.reason)


def _history(top: Path, good: str, bad: str) -> tuple[Commit, list[Commit]]:
    """The good commit, and those after it, oldest first, of which the bad one is the last."""
    base, head = commit_of(top, good), commit_of(top, bad)
    if base == head:
        raise UsageError(f"{good} and {bad} are the same commit, {base[:10]}; name an earlier GOOD")
    if _git(top, "merge-base", base, head).strip() != base:
        swapped = _git(top, "merge-base", head, base).strip() == head
        raise UsageError(
            f"{good} does not come before {bad}" + ("; GOOD is named first" if swapped else ": the histories part")
        )
    words = ("log", "--no-show-signature", "--first-parent", "--reverse", "--format=%H%x00%cI%x00%s")
    between = [Commit(*line.split("\0")) for line in _git(top, *words, f"{base}..{head}").split("\n") if line]
    return Commit(*_git(top, *words, "-1", base).split("\n")[0].split("\0")), between


def _git(top: Path, *words: str) -> str:
    # merge-base says by 1 that the histories have nothing in common.
    return git(top, *words, fine=(0, 1)).decode("utf-8", errors="replace")


def _line(trial: Trial) -> str:
    why = f": {trial.reason}" if trial.reason else ""
    return f"{trial.commit.text}: {trial.verdict} {_percent(trial.estimate)} -> {_side(trial)}{why}"


def _side(trial: Trial) -> str:
    return f"{trial.side} (by half)" if trial.by_half else trial.side


def _percent(estimate: float | None) -> str:
    return "-" if estimate is None else f"{100 * (estimate - 1):+.1f} %"
