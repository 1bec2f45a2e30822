"""Records traces: blocks of this code against itself, measured by the engine of `bench check`."""

import contextlib
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from bench.checking.looks import Duel
from bench.checking.sides import Spawn, only_one, open_side
from bench.checking.trees import Tree, top_of, working
from bench.errors import UsageError, WorkloadError
from bench.processes import SOURCE
from bench.screen import Say
from bench.selfcheck.traces import SAMPLE_SECONDS, Block, Header, TraceWriter, read
from bench.sides.load import competing
from bench.sides.process import Worker
from bench.timing.duel import MOST_ROUNDS, TURN_SECONDS
from bench.timing.workload import Conditions, Workload
from results.gate import Side
from results.record import utc_now
from results.store import same_machine


class Recorder(Duel):
    """The check's duel, which also times each step on its own: other tools' rules need single times."""

    each = True

    def block(self) -> Block:
        """One block of every workload.

        Raises:
            WorkloadError: a workload could not be measured, with the reason.
        """
        start, begin = time.time(), time.monotonic()
        self.load.clear()
        with contextlib.suppress(IndexError):
            self.references.pop()
        try:
            self.refer()
            for workload in self.workloads:
                self.measure(workload, False)
        finally:
            self.crew.end_block()
        rounds = []
        for workload in self.workloads:
            series = self.series[workload.id]
            if series.reason:
                raise WorkloadError(f"{workload.id}: {series.reason}")
            rounds.append(tuple(series.blocks.pop()) if series.blocks else ())
        foreign = statistics.median(self.load) if self.load else None
        return Block(start, time.monotonic() - begin, foreign, self.references[-1], tuple(rounds))


@contextmanager
def snapshot() -> Iterator[Tree]:
    """A copy of this code, so that edits do not change what a long recording measures."""
    with tempfile.TemporaryDirectory(prefix="bench-selfcheck-") as folder:
        yield working(top_of(SOURCE), Path(folder))


def record(
    path: Path,
    tree: Tree,
    blocks: int,
    seconds: float,
    load: str,
    workloads: Sequence[Workload],
    conditions: Conditions,
    say: Say,
    sampled_rounds: int = MOST_ROUNDS,
    spawn: Spawn = Worker,
) -> int:
    """Measure `tree` against itself until `path` holds `blocks` blocks or `seconds` have passed; how many it holds.

    Raises:
        UsageError: `path` was begun under other settings or on another machine.
        RecordError: it is not a trace, or cannot be written.
        WorkloadError: a workload could not be measured.
    """
    begin = time.monotonic()
    worker = open_side(tree, "base", conditions.threads, spawn)
    try:
        machine = worker.ask("machine", 300)
    finally:
        worker.close()
    header = Header(
        created=utc_now(),
        machine=machine,
        load=load,
        workloads=tuple(workload.id for workload in workloads),
        slice_seconds=TURN_SECONDS[workloads[0].device],
        sample_seconds=SAMPLE_SECONDS,
        sampled_rounds=sampled_rounds,
        threads=conditions.threads,
        seed=conditions.seed,
        code=tree.digest,
    )
    done = blocks_in(path, header, say)
    base = replace(tree, side=Side("base", tree.side.ref, tree.side.commit, tree.side.dirty))
    with (
        TraceWriter(path, header) as writer,
        only_one(workloads[0].device, True, say),
        competing(load, done),
        contextlib.ExitStack() as opened,
    ):
        recorder = Recorder(base, tree, workloads, conditions, say=say, spawn=spawn)
        opened.callback(recorder.close)
        while done < blocks and time.monotonic() - begin < seconds:
            # Another order of turns in each block, and the same again if it has to be repeated.
            recorder.rng.seed(conditions.seed * 1_000_003 + done)
            block = recorder.block()
            writer.add(block)
            done += 1
            others = "" if block.foreign is None else f", others used {block.foreign:.0%} of the machine"
            say(f"block {done} of {blocks}: {block.seconds:.0f} s{others}")
    return done


def blocks_in(path: Path, header: Header, say: Say) -> int:
    """How many blocks `path` holds already.

    Raises:
        UsageError: it was begun under other settings or on another machine.
        RecordError: it is not a trace.
    """
    if not path.exists() or not path.stat().st_size:
        return 0
    trace = read(path)
    for name in ("load", "workloads", "slice_seconds", "sample_seconds", "sampled_rounds", "threads", "seed"):
        old, new = getattr(trace.header, name), getattr(header, name)
        if old != new:
            raise UsageError(f"{path} was begun with {name} {old}, not {new}; name another file, or the same settings")
    other = same_machine(trace.header.machine, header.machine)
    if other:
        raise UsageError(f"{path} was begun on another machine ({'; '.join(other)}); name another file")
    if trace.torn:
        say(f"{path} ends within a block, which is measured again")
    if trace.header.code != header.code:
        say(f"{path} was begun with other code ({trace.header.code}, now {header.code}); continuing with this one")
    say(f"continuing after block {len(trace.blocks)} of {path}")
    return len(trace.blocks)
