"""Whole checks in a loop: `bench check` as a user runs it, on equal code or with head made slower.

Each run's outcome is a JSON line, on the disk before the next run begins, so that an interrupted loop can go on.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.checking.trees import top_of, working
from bench.errors import BenchError, UsageError
from bench.processes import SOURCE
from bench.screen import Say
from bench.selfcheck.resample import upper_bound
from results.errors import RecordError
from results.gate import GRAVITY, CheckReport
from results.lines import LineFile, read_lines
from results.store import read_json
from results.tables import Cell, render, to_json
from results.verdict import CLEAN, REGRESSED

# Its steps take half a millisecond: a slice holds a hundred or so, and nearly the same share of extra work each time.
WORKLOADS = ("inference/lenet@fp32-nchw-eager-keep/b4/s32/c10/cpu",)
TIMEOUT = 3600.0

# Appended to STEP on the slower side. The extra work is whole steps, so that it is real work of the right kind on any
# device; the first calls, which are counted and compared, stay single.
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
        seconds: how long it took.
        exit_code: of the process.
        verdict: of the whole check; "" where there was none.
        rows: verdict of each workload.
        error: why there is no report, and the last line that the process wrote.
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
        exit_code, stderr = done.returncode, done.stderr
    except subprocess.TimeoutExpired:
        exit_code, stderr = 124, f"did not end within {timeout:.0f} s"
    seconds = time.monotonic() - begin
    verdict, rows, error = "", {}, ""
    try:
        report = CheckReport.from_json(read_json(output), str(output))
        verdict, rows = report.verdict, {row.workload: row.verdict for row in report.rows}
    except RecordError as reason:
        error = f"no report ({reason}): {(stderr.strip().splitlines() or [''])[-1]}"
    return Outcome(slow, code, tuple(workloads), budget, started, seconds, exit_code, verdict, rows, error)


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
    outcomes = read_lines(Outcome, path) if path.exists() else []
    with tempfile.TemporaryDirectory(prefix="bench-selfcheck-", ignore_cleanup_errors=True) as folder:
        root, base, code = scratch(Path(folder), slow)
        for earlier in outcomes:
            if (earlier.workloads, earlier.budget) != (tuple(workloads), budget):
                theirs = f"{', '.join(earlier.workloads)}, a budget of {earlier.budget:g} s"
                ours = f"{', '.join(workloads)}, {budget:g} s"
                raise UsageError(f"{path} holds runs of {theirs}; now it is {ours}: name another file")
        others = sorted({earlier.code for earlier in outcomes} - {code})
        if others:
            say(f"{path} also holds runs of other code ({', '.join(others)}, now {code}); continuing with this one")
        with LineFile(path) as file:
            for number in range(sum(earlier.slow == slow for earlier in outcomes), runs):
                outcome = once(root, base, slow, code, workloads, budget, timeout)
                file.add(outcome)
                outcomes.append(outcome)
                result = outcome.verdict or outcome.error
                say(f"run {number + 1} of {runs}: {result}, exit code {outcome.exit_code}, {outcome.seconds:.0f} s")
    return outcomes


HEADERS = ("head slower by", "runs", "exit codes", "verdicts", "rows", "of rows", "median seconds", "judgement")


def summary(outcomes: Sequence[Outcome], format: str = "text") -> str:
    """A row for each slowdown: exit codes, verdicts of whole runs and of single rows, and what they amount to."""
    if format == "json":
        return to_json([asdict(outcome) for outcome in outcomes])
    rows: list[list[Cell]] = []
    for slow in sorted({outcome.slow for outcome in outcomes}):
        part = [outcome for outcome in outcomes if outcome.slow == slow]
        of_rows = Counter(verdict for outcome in part for verdict in outcome.rows.values())
        rows.append(
            [
                f"{slow} %",
                len(part),
                _counts(Counter(str(outcome.exit_code) for outcome in part)),
                _counts(Counter(outcome.verdict or "no report" for outcome in part)),
                sum(of_rows.values()),
                _counts(of_rows),
                f"{statistics.median(outcome.seconds for outcome in part):.0f}",
                _judgement(slow, of_rows),
            ]
        )
    return render(HEADERS, rows, format)


def _counts(counter: Counter[str]) -> str:
    order = {verdict: place for place, verdict in enumerate(GRAVITY)}
    return ", ".join(
        f"{counter[name]} {name}" for name in sorted(counter, key=lambda name: (order.get(name, -1), name))
    )


def _judgement(slow: int, of_rows: Counter[str]) -> str:
    total = sum(of_rows.values())
    if not total:
        return "nothing was measured"
    if not slow:
        alarms = of_rows[REGRESSED]
        return f"{alarms} false alarms, at most {upper_bound(alarms, total):.1%} with 95 %"
    return f"{of_rows[REGRESSED]} found, {of_rows[CLEAN]} missed (CLEAN)"
