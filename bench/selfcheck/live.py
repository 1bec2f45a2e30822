"""Whole checks in a loop: `bench check` as a user runs it, on code that is known to be equal or known to be slower.

Each run's outcome is one JSON line, on the disk before the next run begins: an interrupted loop goes on.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from bench.checking.trees import top_of, working
from bench.errors import BenchError, UsageError
from bench.processes import SOURCE
from bench.screen import Say
from bench.selfcheck.resample import upper_bound
from results.errors import RecordError
from results.gate import GRAVITY
from results.store import GrowingFile
from results.tables import Cell, render, to_json
from results.verdict import CLEAN, REGRESSED

# Steps of half a millisecond: a slice holds a hundred or so, and with them nearly the same share of extra work.
WORKLOADS = ("inference/lenet@fp32-nchw-eager/b4/s32/c10/cpu",)
TIMEOUT = 3600.0


# Appended to STEP of the slower side. The share is made up of whole steps, so that it is real work of the
# right kind on any device; the first calls, which are counted and compared, stay single.
STEP = Path("bench", "timing", "step.py")
SLOWER = """

_build_plain = build


def build(workloads: Sequence[Workload], conditions: Conditions) -> list[Step]:
    steps = _build_plain(workloads, conditions)
    for step in steps:
        step.call = _with_extra_work(step.call)
    return steps


def _with_extra_work(call: Callable[[], object]) -> Callable[[], object]:
    owed = 0

    def step() -> object:
        nonlocal owed
        owed += {percent}
        if owed >= 100:
            owed -= 100
            call()
        return call()

    return step
"""


@dataclass(frozen=True)
class Outcome:
    """One run.

    Attributes:
        slow: how much more work head did, in percent.
        code: digest of the code that was checked.
        workloads: ids.
        budget: seconds, as given to the check.
        started: Unix time, seconds.
        seconds: it took.
        exit_code: of the process.
        verdict: of the whole; "" where there was none.
        rows: verdict of each workload.
        error: last line that the process wrote, where it gave no report.
    """

    slow: int
    code: str
    workloads: tuple[str, ...]
    budget: float
    started: float
    seconds: float
    exit_code: int
    verdict: str
    rows: dict[str, str]
    error: str = ""


class OutcomeFile(GrowingFile):
    """Adds runs to a file, a JSON line each, behind its last whole line. Raises RecordError as `outcomes` does."""

    def __init__(self, path: Path) -> None:
        whole = _read(path)[1] if path.exists() else 0
        super().__init__(path, binary=True)
        with self._writing():
            self._file.truncate(whole)

    def add(self, outcome: Outcome) -> None:
        """Store a run; on return it is on the disk."""
        with self._writing():
            self._file.write((json.dumps(vars(outcome), allow_nan=False) + "\n").encode())
        self.flush()


def outcomes(path: Path) -> list[Outcome]:
    """The runs in a file, none where there is no file; a last line without its end is passed over.

    Raises:
        RecordError: it cannot be read, or holds something else.
    """
    return _read(path)[0] if path.exists() else []


def _read(path: Path) -> tuple[list[Outcome], int]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RecordError(f"cannot read {path}: {error.strerror or error}") from error
    whole = data.rfind(b"\n") + 1
    known = {field.name for field in fields(Outcome)}
    found = []
    for number, line in enumerate(data[:whole].splitlines(), 1):
        try:
            row = json.loads(line)
            if not isinstance(row, dict) or set(row) != known:
                raise ValueError(f"a run has {', '.join(sorted(known))}")
        except ValueError as error:
            raise RecordError(f"{path}, line {number} is no run of this program: {error}") from error
        found.append(Outcome(**{**row, "workloads": tuple(row["workloads"])}))
    return found, whole


def scratch(folder: Path, slow: int) -> tuple[Path, str, str]:
    """A repository in `folder` that holds this code, uncommitted changes included.

    Its last commit makes each step do `slow` percent more work; 0 leaves head as base.

    Returns:
        its folder, the ref of base, and the digest of the code.
    """
    tree = working(top_of(SOURCE), folder)
    git(tree.root, "init", "--quiet")
    git(tree.root, "add", "--all")
    git(tree.root, "commit", "--quiet", "--message", "base")
    if not slow:
        return tree.root, "HEAD", tree.digest
    with (tree.root / STEP).open("a", encoding="utf-8") as file:
        file.write(SLOWER.replace("{percent}", str(slow)))
    git(tree.root, "commit", "--quiet", "--all", "--message", f"{slow} % more work")
    return tree.root, "HEAD~1", tree.digest


def git(folder: Path, *words: str) -> None:
    """Run git with an identity of its own and without the user's hooks. Raises BenchError where it fails."""
    settings = ("user.name=selfcheck", "user.email=selfcheck@localhost", "commit.gpgsign=false", "core.hooksPath=")
    options = [part for setting in settings for part in ("-c", setting)]
    done = subprocess.run(["git", "-C", str(folder), *options, *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchError(f"git {words[0]} failed in {folder}: {done.stderr.strip() or 'it gave no reason'}")


def command(base: str, workloads: Sequence[str], budget: float, output: Path) -> list[str]:
    """What is run: this code's check, in the scratch repository."""
    words = ["check", "--base", base, "--workloads", ",".join(workloads), "--budget", f"{budget:g}"]
    return [sys.executable, "-P", "-m", "bench", *words, "--format", "json", "-o", str(output), "--no-store"]


def run_once(
    root: Path, base: str, slow: int, code: str, workloads: Sequence[str], budget: float, timeout: float
) -> Outcome:
    """One check, to its end."""
    output = root.parent / "report.json"
    output.unlink(missing_ok=True)
    started, begin = time.time(), time.monotonic()
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("BENCH_", "GITHUB_"))}
    environment["PYTHONPATH"] = str(SOURCE)
    try:
        done = subprocess.run(
            command(base, workloads, budget, output),
            cwd=root,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        exit_code, said = done.returncode, done.stderr
    except subprocess.TimeoutExpired:
        exit_code, said = 124, f"did not end within {timeout:.0f} s"
    seconds = time.monotonic() - begin
    verdict, rows, error = report_of(output)
    if error:
        error = f"{error}: {(said.strip().splitlines() or [''])[-1]}"
    return Outcome(slow, code, tuple(workloads), budget, started, seconds, exit_code, verdict, rows, error)


def report_of(path: Path) -> tuple[str, dict[str, str], str]:
    """Verdict of a report, verdict of each of its rows, and why there is none."""
    try:
        report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return str(report["verdict"]), {row["workload"]: row["verdict"] for row in report["rows"]}, ""
    except (OSError, ValueError, KeyError, TypeError) as error:
        return "", {}, f"no report ({type(error).__name__})"


def loop(
    path: Path,
    runs: int,
    slow: int,
    workloads: Sequence[str],
    budget: float,
    say: Say,
    timeout: float = TIMEOUT,
    once: Callable[..., Outcome] = run_once,
) -> list[Outcome]:
    """Check until `path` holds `runs` runs with this slowdown; all runs in it.

    Raises:
        UsageError: the file holds runs of other workloads, or with another budget.
        RecordError: it is no such file, or cannot be written.
        BenchError: this code lies in no repository, or git fails.
    """
    found = outcomes(path)
    folder = Path(tempfile.mkdtemp(prefix="bench-selfcheck-"))
    try:
        root, base, code = scratch(folder, slow)
        for one in found:
            if (one.workloads, one.budget) != (tuple(workloads), budget):
                what = f"{', '.join(one.workloads)}, a budget of {one.budget:g} s"
                now = f"{', '.join(workloads)}, {budget:g} s"
                raise UsageError(f"{path} holds runs of {what}; now it is {now}: name another file")
        others = sorted({one.code for one in found} - {code})
        if others:
            say(f"{path} also holds runs of other code ({', '.join(others)}, now {code}); going on with this one")
        done = sum(one.slow == slow for one in found)
        with OutcomeFile(path) as file:
            for number in range(done, runs):
                outcome = once(root, base, slow, code, workloads, budget, timeout)
                file.add(outcome)
                found.append(outcome)
                what = outcome.verdict or outcome.error
                say(f"run {number + 1} of {runs}: {what}, exit code {outcome.exit_code}, {outcome.seconds:.0f} s")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return found


HEADERS = ("head slower by", "runs", "exit codes", "verdicts", "rows", "of rows", "median seconds", "judgement")


def summary(found: Sequence[Outcome], format: str = "text") -> str:
    """A row for each slowdown: exit codes, verdicts of whole runs and of single rows, and what that means."""
    if format == "json":
        return to_json([{**vars(one), "workloads": list(one.workloads)} for one in found])
    rows: list[list[Cell]] = []
    for slow in sorted({one.slow for one in found}):
        part = [one for one in found if one.slow == slow]
        of_rows = Counter(verdict for one in part for verdict in one.rows.values())
        rows.append(
            [
                f"{slow} %",
                len(part),
                _counts(Counter(str(one.exit_code) for one in part)),
                _counts(Counter(one.verdict or "no report" for one in part)),
                sum(of_rows.values()),
                _counts(of_rows),
                f"{statistics.median(one.seconds for one in part):.0f}",
                _meaning(slow, of_rows),
            ]
        )
    return render(HEADERS, rows, format)


def _counts(counter: Counter[str]) -> str:
    order = {verdict: place for place, verdict in enumerate(GRAVITY)}
    return ", ".join(
        f"{counter[name]} {name}" for name in sorted(counter, key=lambda name: (order.get(name, -1), name))
    )


def _meaning(slow: int, of_rows: Counter[str]) -> str:
    total = sum(of_rows.values())
    if not total:
        return "nothing was measured"
    if not slow:
        alarms = of_rows[REGRESSED]
        return f"{alarms} false alarms, at most {upper_bound(alarms, total):.1%} with 95 %"
    return f"{of_rows[REGRESSED]} found, {of_rows[CLEAN]} missed (CLEAN)"
