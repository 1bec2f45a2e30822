"""`bench check`: two trees compared by exact facts and by times taken in turns; what fails is repeated.

Each side's processes run that side's code. Many workloads share the processes of a block, so start-up and compilation
are paid once a block; compile caches last from block to block and from check to check, and each side has its own.
"""

import math
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench.checking.facts import Question, computed, exact
from bench.checking.looks import Duel, confirmed, doubts, measured_twice
from bench.checking.sides import OUTPUTS, Spawn, only_one, open_caches, said_by
from bench.checking.trees import Tree, two_commits
from bench.defaults import IMAGES
from bench.errors import BenchError, UsageError, WorkloadError
from bench.inspecting import reference
from bench.screen import Say
from bench.sides.crew import worker_environment
from bench.sides.process import Worker
from bench.timing.listed import chosen, listed
from bench.timing.workload import METRIC, Conditions, LoaderOutput, Workload
from models.configuration import Configuration, facts_of, has_glibc
from models.names import split
from models.project import find
from results.gate import ERROR, CheckReport, Fact, Row
from results.record import Metric, Record, utc_now
from results.stats import ratio_of, summarise
from results.verdict import (
    LOOKS,
)


def default_workloads(device: str, data: str) -> list[Workload]:
    """Small enough for two cores: inference, training step and loading around ResNet-18 and EfficientNet-B0.

    Args:
        data: name of the image set that the loaders read.
    """
    cuda = device == "cuda"
    batch, size = (128, 128) if cuda else (4, 64)
    # Without freezing: graphs of frozen weights are compiled anew in each process. On two cores one compiled network
    # has to do: every process of every block traces it again, code that is kept or not.
    keep = has_glibc()
    inference = Configuration("bf16", "nhwc", "compile", keep=keep and not cuda)
    training = Configuration("amp", "nhwc", "compile" if cuda else "eager", keep=keep and not cuda)
    networks = [
        Workload(task, model, configuration, batch, size, 1000, device=device)
        for task, model, configuration in (
            ("inference", "resnet18", inference),
            ("inference", "efficientnet_b0", inference if cuda else replace(inference, compile="eager")),
            ("training", "resnet18", training),
            ("training", "efficientnet_b0", training),
        )
    ]
    loaded = LoaderOutput("bfloat16", keep=keep)
    return [*networks, Workload("loading", "dali", loaded, 32, size, data=data, device=device)]


def duel_refs(repository: Path, base_ref: str, head_ref: str, workload: Workload, say: Say) -> Row:
    """One workload of two commits, with confirmation; for looking back through a history."""
    from bench.machine.cpu import usable_cores
    from bench.timing.images import find_data

    root = ""
    if workload.reads_files:
        name, folder = find_data(None, say)
        if name != workload.data:
            raise WorkloadError(f"{workload.id} reads {workload.data}, and only {name} is here")
        root = str(folder.absolute())
    conditions = Conditions(data_root=root, threads=usable_cores())
    with only_one(workload.device, True, say), two_commits(repository, base_ref, head_ref) as (base, head):
        open_caches()

        def once(seed: int) -> Row:
            duel = Duel(base, head, [workload], conditions, seed=seed, say=say)
            duel.run()
            return duel.row(workload)

        return confirmed([once(0)], lambda names: {workload.id: once(1)})[0]


def check(
    base: Tree,
    head: Tree,
    workloads: Sequence[Workload],
    conditions: Conditions,
    *,
    exact_only: bool = False,
    allow: Sequence[str] = (),
    fail_on_unsure: bool = False,
    looks: Sequence[int] = LOOKS,
    margins: Mapping[str, float] | None = None,
    seed: int = 0,
    budget: float = math.inf,
    say: Say = lambda text: None,
    spawn: Spawn = Worker,
) -> tuple[CheckReport, dict[str, Any]]:
    """The whole check.

    Args:
        margins: workload id -> the smallest relative change that matters, in place of the usual one.
        budget: seconds after which no further look is begun; what looks slower or faster is still measured a
            second time.

    Returns:
        the report, and what else a record keeps: {"reference": {"id", "seconds", "blocks"}, "apart": why the sides had
        processes of their own, or null where they shared one}; empty with exact_only.
    """
    begin = time.monotonic()
    folder = open_caches()
    notes: list[str] = []
    if head.side.dirty:
        notes.append("the working tree has uncommitted changes; they were measured")
    if base.digest == head.digest:
        notes.append("base and head have the same code")
    extra: dict[str, Any] = {}
    machine: dict[str, Any] = {}
    facts: list[Fact] = []
    rows: list[Row] = []
    try:
        with (
            tempfile.TemporaryDirectory(dir=folder, prefix=OUTPUTS) as place,
            Question(base, head, conditions.threads, spawn, workloads) as question,
        ):
            machine = question.one("head", "machine", 60)
            facts, rows = exact(question, workloads, conditions, say, exact_only)
            known = [w for w in workloads if w.id not in {row.workload for row in rows}]
            found, failed, blind = computed(question, known, conditions, Path(place), say, exact_only)
            facts, rows, notes = [*facts, *found], [*rows, *failed], [*notes, *blind]
    except BenchError as error:
        if not error.side:
            raise
        # A side that does not even start (it does not import, it does not install) can do none of them.
        reason = said_by(error)
        done = {row.workload for row in rows}
        rows += [Row(w.id, ERROR, images=w.batch, reason=reason) for w in workloads if w.id not in done]
    known = [w for w in workloads if w.id not in {row.workload for row in rows}]
    self_test = None
    if not exact_only and known:

        def make(wanted: Sequence[Workload], seed: int, budget: float, test: Workload | None) -> Duel:
            return Duel(
                base,
                head,
                wanted,
                conditions,
                self_test=test,
                looks=looks,
                margins=margins,
                seed=seed,
                budget=budget,
                say=say,
                spawn=spawn,
            )

        duel, self_test, timed = measured_twice(make, known, seed, budget - (time.monotonic() - begin), say)
        rows = [*timed, *rows]
        notes += doubts(duel, rows, self_test)
        extra = {"reference": reference.to_record(duel.references), "apart": duel.apart or None}
    order = {workload.id: number for number, workload in enumerate(workloads)}
    rows.sort(key=lambda row: order[row.workload])
    report = CheckReport(
        base=base.side,
        head=head.side,
        facts=tuple(facts),
        rows=tuple(rows),
        self_test=self_test,
        notes=tuple(notes),
        allow=tuple(allow),
        seconds=time.monotonic() - begin,
        machine=machine,
        created=utc_now(),
        fail_on_unsure=fail_on_unsure,
    )
    return report, extra


def record_of(report: CheckReport, extra: Mapping[str, Any], command: str) -> Record:
    """The check as a stored record: a metric for each workload with a number, and the whole report beside them.

    Against a stored run both processes ran the head's code: only its times are kept, and no ratio of the two.
    """
    sides = ("head",) if "baseline" in extra else ("base", "head")
    metrics = []
    for row in report.rows:
        if not row.blocks:
            continue
        workload = Workload.from_id(row.workload)
        name = METRIC[workload.task]
        per_block = {
            side: [statistics.median(turns[side] for turns in block) for block in row.blocks] for side in sides
        }
        values = {
            side: summarise(seconds if workload.task == "latency" else [workload.batch / s for s in seconds])
            for side, seconds in per_block.items()
        }
        logs = [[math.log(t["base"] / t["head"]) for t in block] for block in row.blocks]
        if workload.task == "latency":
            logs = [[-value for value in block] for block in logs]
        # Only the head has this record's commit, so only its times belong to a series.
        metric = Metric.named(
            name,
            values,
            batch=workload.batch,
            ratio=ratio_of("head", "base", logs) if len(sides) == 2 else None,
            verdict=row.verdict,
            workloads={"head": row.workload},
            notes=(row.reason,) if row.reason else (),
            pairs=[[{side: turns[side] for side in sides} for turns in block] for block in row.blocks],
        )
        metrics.append(metric)
    stored = report.to_json()
    # Raw times stand in the metrics already.
    stored["rows"] = [{**row, "blocks": (), "again_blocks": ()} for row in stored["rows"]]
    commit = {"sha": report.head.commit, "dirty": report.head.dirty} if report.head.commit else None
    machine = {k: v for k, v in stored.pop("machine").items() if k != "commit"}
    return Record(
        kind="check",
        created=utc_now(),
        command=command,
        commit=commit,
        machine=machine,
        operands=sides,
        metrics=tuple(metrics),
        settings={**extra, "check": stored},
    )


def refuse_unknown(allow: tuple[str, ...]) -> None:
    """Raises UsageError for a name in --allow that is no fact and no verdict."""
    from results.gate import FACTS, VANISHED

    known = (*FACTS, VANISHED)
    for name in allow:
        if name not in known:
            raise UsageError(f"--allow {name}: there is no such fact or verdict; there are {', '.join(known)}")


@dataclass(frozen=True)
class Subjects:
    """What a check measures.

    Attributes:
        workloads: in the order of the report.
        conditions: under which they are built.
        margins: workload id -> the smallest relative change that matters, where the settings say so.
    """

    workloads: Sequence[Workload]
    conditions: Conditions
    margins: Mapping[str, float]


def subjects(words: tuple[str, ...], device: str, threads: int, data: Path | None, seed: int, say: Say) -> Subjects:
    """What a check measures: of the workloads that the repository's settings list, else of those here, what words name.

    Raises:
        UsageError, WorkloadError: a word names none, or what reads images cannot be measured on those that are here.
    """
    from bench.timing.images import data_name, find_data

    project, wanted = find(), ids(words)
    if len(set(wanted)) != len(wanted):
        raise UsageError("a workload was named twice")
    name, root = data_name(data, IMAGES), ""
    margins: dict[str, float] = {}
    if project.workloads and not (wanted and all(map(_is_id, wanted))):

        def describe(names: Sequence[str]) -> Sequence[Mapping[str, int]]:
            say("asking for sizes and classes")
            worker = Worker(names[0], worker_environment(threads))
            try:
                found: list[Mapping[str, int]] = worker.ask("described", 600, names=list(names))["networks"]
            finally:
                worker.close()
            return found

        margins_of = listed(project, facts_of(device), name, describe)
        known, margins = list(margins_of), {workload.id: margin for workload, margin in margins_of.items()}
    else:
        known = default_workloads(device, name)
    found = chosen(wanted, known) if wanted else known
    if any(workload.data for workload in found):
        name, folder = find_data(data, say)
        root = str(folder.absolute())
    for workload in found:
        if workload.data and workload.data != name:
            raise UsageError(f"{workload.id} reads {workload.data}; the images here are {name} (choose by --data)")
        if workload.device != device:
            raise UsageError(f"{workload.id} is of {workload.device}, and this check runs on {device}")
    return Subjects(found, Conditions(data_root=root, threads=threads, seed=seed), margins)


def _is_id(text: str) -> bool:
    try:
        Workload.from_id(text)
    except WorkloadError:
        return False
    return True


def ids(words: tuple[str, ...]) -> list[str]:
    """Names out of comma lists and files; empty lines and lines that begin with # are skipped."""
    found: list[str] = []
    for word in words:
        path = Path(word)
        if path.is_file():
            try:
                lines = path.read_text(encoding="utf-8").splitlines()
            except (OSError, UnicodeDecodeError) as error:
                raise UsageError(f"cannot read {word}: {error}") from error
            named = [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]
            if not named:
                raise UsageError(f"{word} names no workload; it holds one a line")
            found += named
        else:
            found += [part.strip() for part in split(word)]
    return found
