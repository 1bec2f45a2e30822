"""How much noise ways of taking turns leave: the same code on both sides, all ways by turns in one run."""

import json
import math
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bench.checking.check import default_workloads
from bench.errors import UsageError
from bench.screen import Say
from bench.sides.crew import Crew, Entrant, Needs, enter, spawner
from bench.timing.clock import Slice
from bench.timing.duel import Rounds, SlicePlan, Turn, log_ratios, take_turns
from bench.timing.workload import Conditions, Workload
from results.tables import render, to_json

PAUSE_SECONDS = 0.01
# Way -> what it does; the first is what `bench check` did before its sides shared a process.
WAYS = {
    "before": "3 steps, 2 untimed, a pause, two processes",
    "one untimed": "1 step, 1 untimed, no pause, two processes",
    "none untimed": "1 step, none untimed, no pause, two processes",
    "together": "1 step, none untimed, both in one process",
}


@dataclass(frozen=True)
class Noise:
    """What one way left of one workload.

    Attributes:
        workload: its id.
        way: a key of WAYS.
        step: seconds a step, the median.
        pairs: in a window, the median.
        windows: how many there were.
        deviation: standard deviation of what the windows say, as a share of the time.
    """

    workload: str
    way: str
    step: float
    pairs: float
    windows: int
    deviation: float


def chosen(tasks: Sequence[str], device: str, data: str) -> list[Workload]:
    """The check's workloads of these tasks around ResNet-18; end to end is its training step fed by DALI.

    Raises:
        UsageError: a task that is none of them.
    """
    found = {w.task: w for w in reversed(default_workloads(device, data)) if w.subject in ("resnet18", "dali")}
    found["end_to_end"] = replace(found["training"], task="end_to_end", loader="dali", data=data)
    for task in tasks:
        if task not in found:
            raise UsageError(f"no turns are measured of {task!r}; there are {', '.join(found)}")
    return [found[task] for task in tasks]


def measure(
    workload: Workload, conditions: Conditions, windows: int, seconds: float, seed: int, say: Say
) -> list[Noise]:
    """Windows of about so many seconds of each way, in random order, of one workload against itself."""
    rng = random.Random(seed)
    with Crew(spawner(conditions.threads), forks=workload.device == "cpu") as crew:
        crew.start(["a", "b", "c", "d"], Needs.of([workload]), {"c": "both", "d": "both"})
        entrants = {name: enter(crew, name, workload, conditions) for name in ("a", "b", "c", "d")}
        apart = {name: entrants[name] for name in ("a", "b")}
        both = {name: entrants[name] for name in ("c", "d")}
        ways: dict[str, Callable[[], list[float]]] = {
            "before": lambda: ratios(crew, apart, seconds, rng, SlicePlan(3, 2), pause=True),
            "one untimed": lambda: ratios(crew, apart, seconds, rng, SlicePlan(1, 1)),
            "none untimed": lambda: ratios(crew, apart, seconds, rng, SlicePlan(1)),
            "together": lambda: ratios(crew, both, seconds, rng, SlicePlan(1)),
        }
        said: dict[str, list[list[float]]] = {way: [] for way in ways}
        for number in range(windows):
            say(f"{workload.id}: window {number + 1} of {windows}")
            for way in rng.sample(list(ways), len(ways)):
                said[way].append(ways[way]())
    step = statistics.median(one.warm.seconds_per_step for one in entrants.values())
    return [
        Noise(
            workload.id,
            way,
            step,
            statistics.median(map(len, found)),
            len(found),
            statistics.stdev(map(statistics.median, found)),
        )
        for way, found in said.items()
    ]


def ratios(
    crew: Crew,
    entrants: Mapping[str, Entrant],
    seconds: float,
    rng: random.Random,
    plan: SlicePlan,
    pause: bool = False,
) -> list[float]:
    """log(time of one / time of the other) of the pairs of one window."""
    # A queue is emptied first, whichever way is taken.
    plans = {name: one.plan if one.rest else plan for name, one in entrants.items()}
    ready = {name: replace(one, plan=plans[name]) for name, one in entrants.items()}
    wanted = Rounds(seconds, 10_000)
    if not pause:
        rounds = crew.take_turns(ready, wanted, rng)
    else:

        def paused(one: Entrant) -> Turn:
            def take() -> Slice:
                turn = crew[one.side].slice(one.workload, one.plan)
                time.sleep(PAUSE_SECONDS)
                return turn

            return take

        rounds = take_turns({name: paused(one) for name, one in ready.items()}, wanted, rng)
    one, other = ready
    return log_ratios(rounds, one, other)


def report(found: Sequence[Noise], seconds: float, format: str) -> str:
    """A table: a line for each way, a column for each workload."""
    workloads = list(dict.fromkeys(noise.workload for noise in found))
    if format == "json":
        data: dict[str, Any] = {"seconds": seconds, "noise": [vars(noise) for noise in found]}
        return to_json(json.loads(json.dumps(data)))
    steps = {noise.workload: f"{noise.step * 1e3:.0f} ms a step" for noise in found}
    headers = [
        f"how two sides take turns, {seconds:g} s",
        *(f"{name.partition('/')[0]}, {steps[name]}" for name in workloads),
    ]
    rows: list[list[Any]] = []
    for way, words in WAYS.items():
        cells = [next(n for n in found if (n.workload, n.way) == (name, way)) for name in workloads]
        rows.append([words, *(f"{deviation(noise)}" for noise in cells)])
    return render(headers, rows, format)


def deviation(noise: Noise) -> str:
    """In percent, with the standard error that a deviation of so many windows has."""
    error = noise.deviation / math.sqrt(2 * max(1, noise.windows - 1))
    return f"{100 * noise.deviation:.1f} ± {100 * error:.1f} %"
