"""Compiles what a part measures, in many processes at a time, so that its comparisons find warm caches.

Compiling a training step is a minute of work for one core, and a GPU host has many. Modes that choose kernels by timing
are left out: beside other processes they would choose badly.
"""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from bench.errors import BenchError
from bench.gpu.parts import INFERRED, TRAINED, configurations
from bench.machine.cpu import usable_cores
from bench.screen import Say
from bench.sides.crew import Crew, Needs, Spawn, spawner
from bench.sides.process import Worker
from bench.timing.workload import Conditions, Workload
from models import zoo
from models.configuration import Choice, Configuration, facts_of

PROCESS_BYTES = 20 << 30  # of a GPU's memory, that one process may take
PROCESS_CORES = 2  # one compiles, one launches and waits


@dataclass(frozen=True)
class Compiled:
    """How compiling a workload went.

    Attributes:
        workload: its id.
        seconds: from the start of the process to the end of its first step.
        reason: why it could not be compiled, else "".
    """

    workload: str
    seconds: float
    reason: str = ""


def workloads(networks: Sequence[str], batch: int, size: int, task: str, device: str) -> list[Workload]:
    """What a part compiles without timing kernels, each program once.

    Args:
        size: pixels; 0 is each network's own.
        task: "training", "inference" or "latency", whose batch is 1.
    """
    training = task == "training"
    wanted: dict[tuple[str, Configuration], Workload] = {}
    for name in networks:
        pixels, classes = size or zoo.default_size(name), zoo.default_classes(name)
        for text in configurations(TRAINED if training else INFERRED, device):
            configuration = Choice.from_text(text).on(facts_of(device), training)
            # A graph of a whole update replays the program that compile makes.
            program = replace(configuration, compile="compile") if training else configuration
            if configuration.compiles and configuration.compile != "autotune":
                images = 1 if task == "latency" else batch
                workload = Workload(task, name, program, images, pixels, classes, device=device)
                wanted.setdefault((name, program), workload)
    return list(wanted.values())


def at_once(cores: int, memory: int | None) -> int:
    """How many processes fit beside one another; `memory` is the GPU's bytes, None without one."""
    by_cores = cores // PROCESS_CORES
    return max(1, by_cores if memory is None else min(by_cores, memory // PROCESS_BYTES))


def warm(wanted: Sequence[Workload], processes: int, say: Say, spawn: Spawn = Worker) -> list[Compiled]:
    """Compile each workload in a process of its own; one that fails does not stop the others."""
    # As many threads as in the parts: the code generated for a CPU depends on their number.
    threads = usable_cores()

    def compiled(workload: Workload) -> Compiled:
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
        return list(pool.map(compiled, wanted))
