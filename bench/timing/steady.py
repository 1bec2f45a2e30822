"""Warming up until a step is steady, for how long at most, and waiting until a process is at rest."""

import contextlib
import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from bench.timing.clock import time_slice

# Seconds of warm-up at most. Where a step takes a second, three slices that agree within 1 % never come on a shared
# machine, and a whole comparison has four minutes. What is left after these shows as scatter between the rounds and
# is in the interval.
WARM_UP_CAP = {
    "latency": 1.0,
    "inference": 1.0,
    "training": 1.0,
    "end_to_end": 0.5,
    "loading": 1.0,
    "kernel": 1.0,
}


def slowed(call: Callable[[], object], every: int, skip: int = 0) -> Callable[[], object]:
    """`call`, doing its work twice at every `every`-th call: 20 makes it 5 % slower, by real work on any device.

    Args:
        skip: calls that pass before counting begins: the untimed ones of a slice.
    """
    done = -skip

    def step() -> object:
        nonlocal done
        done += 1
        if done > 0 and done % every == 0:
            call()
        return call()

    return step


def warm_up(
    step: Callable[[], object], clock: Callable[[], float], cap: float, agreement: float = 0.01, least: int = 1
) -> tuple[float, bool]:
    """Run slices until three in a row agree within `agreement`, at most `cap` seconds of them (at least one).

    Args:
        least: steps of a slice at least. A loader hands out what it made ahead in bursts, each step of which takes no
            time at all.

    Returns:
        seconds a step in the last slice, or their median where the last three did not agree; and whether they did.
    """
    recent: list[float] = []
    steps = least
    begin = clock()
    while True:
        turn = time_slice(step, steps, 0, clock)
        recent = [*recent[-2:], turn.seconds_per_step]
        if len(recent) == 3 and max(recent) <= (1 + agreement) * min(recent):
            return turn.seconds_per_step, True
        if clock() - begin >= cap:
            return statistics.median(recent), False
        # About a tenth of a second a slice: long enough that the timer and the launch do not matter.
        steps = max(least, min(1000, round(0.1 / max(turn.seconds_per_step, 1e-6))))


def settle(limit: float = 3.0, proc: Path = Path("/proc")) -> float:
    """Wait until this process and its children have stopped using the CPU, so that the other side has it alone.

    After a turn a loader goes on filling its queue, and a team of threads spins for some milliseconds; those seconds
    would be charged to the side that measures next.

    Returns:
        seconds waited.
    """
    begin = time.perf_counter()
    helpers = children(proc)
    # The time of a child is counted in ticks of 10 ms, this process's own in nanoseconds.
    window = 0.02 if helpers else 0.002
    used = cpu_seconds(helpers, proc)
    while time.perf_counter() - begin < limit:
        time.sleep(window)
        now = cpu_seconds(helpers, proc)
        if now - used <= window / 5:
            break
        used = now
    return time.perf_counter() - begin


def children(proc: Path = Path("/proc")) -> list[str]:
    """Process numbers of this process's living children; none where /proc does not list them."""
    found: list[str] = []
    for listed in (proc / "self" / "task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += listed.read_text().split()
    return found


def cpu_seconds(helpers: Sequence[str], proc: Path = Path("/proc")) -> float:
    """CPU time of this process and of its children, in seconds."""
    total = time.process_time()
    ticks = os.sysconf("SC_CLK_TCK")
    for child in helpers:
        with contextlib.suppress(OSError, IndexError, ValueError):
            fields = (proc / child / "stat").read_text().rsplit(")", 1)[1].split()
            total += (int(fields[11]) + int(fields[12])) / ticks
    return total
