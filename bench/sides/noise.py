"""This machine's noise, measured as a comparison measures: one process has the same code twice."""

import random
import statistics
import time
from dataclasses import replace

from bench.errors import WorkloadError
from bench.machine.cpu import Busy
from bench.machine.noise import Noise
from bench.screen import Say
from bench.sides.crew import Crew, Needs, Spawn, enter, spawner
from bench.sides.process import Worker
from bench.timing.duel import Rounds, log_ratios, pairs_of
from bench.timing.workload import Conditions, Workload
from models.configuration import Configuration

SECONDS = 8.0  # after the first process has started
TURNS_SECONDS = 0.7  # in each process
LEAST_BLOCKS, MOST_BLOCKS = 3, 12
SIDES = ("one", "other")


def measure(device: str, threads: int, say: Say, seconds: float = SECONDS, spawn: Spawn = Worker) -> Noise:
    """Fresh processes for about so many seconds, three at least.

    Raises:
        BenchError: a process failed, or there were not enough pairs.
    """
    # Convolutions of a few milliseconds.
    workload = Workload("inference", "resnet18", Configuration(), 1, 64, 10, device=device)
    conditions, rng = Conditions(threads=threads), random.Random(0)
    needs = replace(Needs.of([workload]), compiler=False)
    blocks, spent, loads = [], [], []
    with Crew(spawner(threads, spawn), forks=device == "cpu") as crew:
        begin = None
        for number in range(MOST_BLOCKS):
            if begin is not None and number >= LEAST_BLOCKS and time.monotonic() - begin > seconds:
                break
            say(f"measuring this machine's noise: process {number + 1}")
            crew.start(rng.sample(SIDES, 2), needs, dict.fromkeys(SIDES, "both"))
            begin = time.monotonic() if begin is None else begin
            entrants = crew.settled({name: enter(crew, name, workload, conditions) for name in SIDES})
            processes = [crew[SIDES[0]].pid]
            before, turns_begin = Busy.now(processes), time.monotonic()
            rounds = crew.take_turns(entrants, Rounds(TURNS_SECONDS), rng)
            spent.append((time.monotonic() - turns_begin) / len(rounds))
            load = Busy.now(processes).since(before)
            loads += [] if load is None else [load]
            pairs = log_ratios(pairs_of(rounds), *SIDES)
            blocks += [pairs] if pairs else []
            crew.end_block()
    if len(blocks) < 2:
        raise WorkloadError("no pair of turns was steady: the device throttled or its clock moved")
    found = Noise.of(workload.id, blocks, statistics.median(spent))
    if not loads:
        return found
    foreign, stolen = (statistics.median(getattr(load, name) for load in loads) for name in ("foreign", "stolen"))
    return replace(found, foreign=foreign, stolen=stolen)
