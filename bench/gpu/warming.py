"""Compiles what the later parts measure, many processes at a time, so that they find the caches warm.

Compiling a training step is a minute of one core's work, and a GPU host has many cores. Only modes that choose nothing
by timing: beside other processes they would choose badly.
"""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from bench.errors import BenchError
from bench.gpu.parts import INFERRED, TRAINED
from bench.sides.crew import Crew, Needs, Spawn, spawner
from bench.sides.process import Worker
from bench.timing.workload import Conditions, Workload
from models import zoo
from models.configuration import Choice, Configuration

EACH = 20 << 30  # bytes of a GPU's memory that one process may take
CORES = 2  # of each process: one compiles, one launches and waits


@dataclass(frozen=True)
class Compiled:
    """One workload.

    Attributes:
        workload: its id.
        seconds: from the process's start to its first step's end.
        reason: why it could not be compiled, else "".
    """

    workload: str
    seconds: float
    reason: str = ""


def workloads(networks: Sequence[str], batch: int, size: int, device: str) -> list[Workload]:
    """What the parts compile by default and as graphs; the longest first."""
    found = []
    for name in networks:
        pixels, classes = size or zoo.default_size(name), zoo.default_classes(name)
        for task, configurations in (("training", TRAINED), ("inference", INFERRED)):
            chosen = [Choice.from_text(text) for text in configurations]
            chosen = [one for one in chosen if "compile" in one.levers]
            if task == "training" and device == "cuda":
                chosen.append(Choice.from_text("amp-nhwc-graphs"))
            resolved = [Configuration(**one.changes) for one in chosen]
            found += [Workload(task, name, one, batch, pixels, classes, device=device) for one in resolved]
            if task == "inference":
                found.append(Workload("latency", name, resolved[0], 1, pixels, classes, device=device))
    return sorted(found, key=lambda workload: not workload.training)


def at_once(cores: int, memory: int | None) -> int:
    """How many processes fit beside one another; `memory` is the GPU's, None for none."""
    fitting = cores // CORES if memory is None else min(cores // CORES, memory // EACH)
    return max(1, fitting)


def warm(
    wanted: Sequence[Workload],
    processes: int,
    say: Callable[[str], None],
    spawn: Spawn = Worker,
) -> list[Compiled]:
    """Compile each in a process of its own; what fails is named and leaves the others."""
    # As many threads as in the parts: code that is generated for a CPU knows their number.
    from bench.machine.cpu import usable_cores

    threads = usable_cores()

    def one(workload: Workload) -> Compiled:
        begin, reason = time.monotonic(), ""
        try:
            with Crew(spawner(threads, spawn)) as crew:
                crew.start([workload.id], Needs.of([workload]))
                crew[workload.id].build([workload], Conditions(threads=threads))
        except BenchError as error:
            reason = error.summary
        seconds = time.monotonic() - begin
        say(f"{workload.id}: {reason or f'{seconds:.0f} s'}")
        return Compiled(workload.id, seconds, reason)

    with ThreadPoolExecutor(processes) as pool:
        return list(pool.map(one, wanted))
