"""`bench check --baseline`: this code now against a stored check of the same machine.

Nothing is paired across the months between two runs, so each block's times are divided by those of the pinned
reference, measured in the same processes, and bounds come from the rank sum test.
"""

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.checking.facts import Question, exact
from bench.checking.looks import Duel, doubts, measured_twice
from bench.checking.sides import Spawn, open_caches
from bench.checking.trees import Tree, running
from bench.errors import UsageError
from bench.inspecting import reference
from bench.screen import Say
from bench.sides.process import Worker
from bench.timing.workload import Conditions, Workload
from results.gate import ERROR, VOID, CheckReport, Row, Side
from results.record import Record, current_id, utc_now
from results.store import list_records, load, same_machine
from results.verdict import LOOKS, REGRESSED, Decision, look_unpaired

# What is read of a machine before torch is imported; check_against() compares the rest.
HARDWARE = ("device", "cpu", "cores", "system")


def find(baseline: Path, say: Say, here: Mapping[str, Any]) -> tuple[Path, Record]:
    """The stored check a path means: the file, or the newest of a folder that can be a measure.

    A check of other hardware, one that found a slowdown, a void one and one of uncommitted changes cannot be: the next
    check would compare the slowdown with itself.

    Args:
        here: the fingerprint of this machine, or the part of it that is known.

    Raises:
        UsageError: there is none; what was skipped is said.
        RecordError: the file cannot be read.
    """
    if not baseline.is_dir():
        record = load(baseline)
        if record.kind != "check" or not record.complete:
            raise UsageError(
                f"{baseline} is a {record.kind} record; a baseline is one of bench check (kept in the history)"
            )
        return baseline, record
    stored, skipped = list_records(baseline)
    for path, reason in skipped:
        say(f"skipping {path}: {reason}")
    found = [entry for entry in stored if entry.record.kind == "check" and entry.record.complete]
    for entry in reversed(found):
        reason = unfit(entry.record, here)
        if not reason:
            return entry.path, entry.record
        say(f"skipping {entry.path}: {reason}")
    raise UsageError(
        f"{baseline} holds no check{' that can be a baseline' if found else ''}; "
        "bench check --base REF stores one in the history, or name a file"
    )


def unfit(record: Record, here: Mapping[str, Any]) -> str:
    """Why a stored check is not chosen as a baseline by itself, "" if it can be."""
    there = record.machine.get("fingerprint")
    if isinstance(there, Mapping):
        for field in HARDWARE:
            if field in there and field in here and there[field] != here[field]:
                return f"it is of another machine ({field}: {there[field]})"
    report = record.settings.get("check")
    verdict = report.get("verdict") if isinstance(report, Mapping) else None
    if not record.metrics:
        return "it timed nothing"
    if verdict in (VOID, ERROR, REGRESSED):
        return f"it is {verdict}"
    return "its working tree had uncommitted changes" if (record.commit or {}).get("dirty") else ""


def stored_values(path: Path, record: Record) -> dict[str, list[float]]:
    """Workload id of today -> log(seconds a step / seconds of the reference) of each block.

    Raises:
        UsageError: the record has no reference or another one.
    """
    pinned = record.settings.get("reference")
    if not isinstance(pinned, Mapping) or pinned.get("id") != reference.ID or not pinned.get("blocks"):
        raise UsageError(f"{path} was measured without the reference {reference.ID}; store a new one with this version")
    found: dict[str, list[float]] = {}
    for metric in record.metrics:
        name = metric.workloads.get("head")
        if name is None:
            continue
        seconds = [statistics.median(turns["head"] for turns in block) for block in metric.pairs]
        found[current_id(name, record.machine)] = relative(seconds, pinned["blocks"])
    return found


def relative(seconds: Sequence[float], references: Sequence[float]) -> list[float]:
    """log(time / time of the reference) a block; of a workload that was judged early, of the blocks it had."""
    return [math.log(s / r) for s, r in zip(seconds, references, strict=False)]


def check_against(
    path: Path,
    record: Record,
    wanted: Sequence[Workload] | None,
    conditions: Conditions,
    *,
    allow: Sequence[str] = (),
    fail_on_unsure: bool = False,
    looks: Sequence[int] = LOOKS,
    margins: Mapping[str, float] | None = None,
    seed: int = 0,
    budget: float = math.inf,
    say: Say = lambda text: None,
    spawn: Spawn = Worker,
    tree: Tree | None = None,
) -> tuple[CheckReport, dict[str, Any]]:
    """Measure the running code as a check does, and judge it against the stored times.

    Args:
        wanted: workloads; None is those of the record.

    Raises:
        UsageError: another machine, or nothing to compare.
    """
    begin = time.monotonic()
    head = tree or running()
    old = stored_values(path, record)
    workloads = list(wanted) if wanted is not None else [Workload.from_id(name) for name in old]
    missing = [workload.id for workload in workloads if workload.id not in old]
    if missing or not workloads:
        raise UsageError(
            f"{path} holds no time of {', '.join(missing) or 'anything'}; it has {', '.join(old) or 'none'}"
        )
    open_caches()
    with Question(head, head, conditions.threads, spawn, workloads) as question:
        machine = question.one("head", "machine", 60)
        differences = same_machine(record.machine, machine)
        if differences:
            raise UsageError(f"{path} is of another machine: {'; '.join(differences)}; its times say nothing here")
        # Both processes run the same code; the stored run is the base, and had them all.
        _, gone = exact(question, workloads, conditions, say, sides=("head",))
    known = [w for w in workloads if w.id not in {row.workload for row in gone}]
    rows = list(gone)
    self_test, extra, notes = None, {}, []
    if known:

        def make(wanted: Sequence[Workload], seed: int, left: float, test: Workload | None) -> Duel:
            # The second process of the same code gives the self-test its pair.
            return StoredDuel(
                old, head, head, wanted, conditions, self_test=test, looks=looks, margins=margins, seed=seed,
                budget=left, say=say, spawn=spawn,
            )  # fmt: skip

        duel, self_test, timed = measured_twice(make, known, seed, budget - (time.monotonic() - begin), say)
        rows = [*timed, *rows]
        notes = doubts(duel, rows, self_test)
        extra = {"reference": reference.to_record(duel.references), "baseline": str(path)}
    commit = record.commit or {}
    report = CheckReport(
        base=Side("base", str(path), commit.get("sha"), bool(commit.get("dirty"))),
        head=head.side,
        facts=(),
        rows=tuple(rows),
        self_test=self_test,
        notes=(
            f"the base is a stored run of {record.created}; times are compared as shares of the reference's, unpaired",
            "what changed of the machine between the two runs is in no interval here, and no error rate was measured",
            *notes,
        ),
        allow=tuple(allow),
        seconds=time.monotonic() - begin,
        machine=machine,
        created=utc_now(),
        fail_on_unsure=fail_on_unsure,
    )
    return report, extra


class StoredDuel(Duel):
    """A duel whose looks compare one side with stored blocks."""

    def __init__(self, stored: Mapping[str, list[float]], *arguments: Any, **options: Any) -> None:
        self.stored = stored
        super().__init__(*arguments, **options)

    def decide(self, workload: Workload) -> Decision | None:
        """What a workload's blocks say against the stored ones."""
        series = self.series[workload.id]
        seconds = [statistics.median(t["head"].seconds_per_step for t in block) for block in series.blocks]
        values = relative(seconds, self.references)
        if not values:
            return None
        return look_unpaired(values, self.stored[workload.id], self.margin(workload), self.looks)

    def row(self, workload: Workload) -> Row:
        """The row with the stored run's time as its base, at the speed the machine has now."""
        row = super().row(workload)
        if row.decision is None:
            return row
        now = math.exp(statistics.median(self.stored[workload.id])) * statistics.median(self.references)
        return replace(row, base_seconds=now)
