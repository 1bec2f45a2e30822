"""Warming up until a step is steady, for how long at most, and waiting until a process is at rest."""

import statistics
import time
from collections.abc import Callable
from pathlib import Path

from bench.machine.cpu import children, cpu_seconds
from bench.timing.clock import time_slice

WARM_UP_CAP = 30.0  # seconds


def slowed(call: Callable[[], object], share: float, device: str) -> Callable[[], object]:
    """`call`, taking longer by a share of its time: 0.05 makes it 5 % slower.

    On a CPU each call goes on computing for that share of what it took. On a GPU, where a call only asks for work,
    every 20th is done twice (for 0.05).
    """
    done = 0

    def again() -> object:
        nonlocal done
        done += 1
        if done % round(1 / share) == 0:
            call()
        return call()

    def on() -> object:
        begin = time.perf_counter()
        result = call()
        end = time.perf_counter()
        while time.perf_counter() < end + share * (end - begin):
            pass
        return result

    return on if device == "cpu" else again


def warm_up(
    step: Callable[[], object], clock: Callable[[], float], cap: float, agreement: float = 0.01, least: int = 1
) -> tuple[float, bool]:
    """Run slices until the step no longer gets faster, at most `cap` seconds of them (at least one).

    That is when three slices in a row agree within `agreement`, or, where noise keeps them apart, when two slices in a
    row are not faster by that much than the fastest before them: what warms up only ever gets faster.

    Args:
        least: steps of a slice at least. A loader hands out what it made ahead in bursts, each step of which takes no
            time at all.

    Returns:
        seconds a step, the median of the last three slices; and whether the step was steady before the cap.
    """
    times: list[float] = []
    steps = least
    begin = clock()
    while True:
        times.append(time_slice(step, steps, 0, clock).seconds_per_step)
        recent, before = times[-3:], times[:-2]
        if len(recent) == 3:
            agree = max(recent) <= (1 + agreement) * min(recent)
            if agree or min(recent[1:]) >= min(before) / (1 + agreement):
                return statistics.median(recent), True
        if clock() - begin >= cap:
            return statistics.median(recent), False
        # About a tenth of a second a slice: long enough that the timer and the launch do not matter.
        steps = max(least, min(1000, round(0.1 / max(times[-1], 1e-6))))


def settle(limit: float = 3.0, proc: Path = Path("/proc")) -> float:
    """Wait until this process and its children have stopped using the CPU, so that the other side has it alone.

    After a turn a loader goes on filling its queue, and a team of threads spins for some milliseconds; those seconds
    would be charged to the side that measures next.

    Returns:
        seconds waited.
    """
    begin = time.perf_counter()
    helpers = children(proc=proc)
    # The time of a child is counted in ticks of 10 ms, this process's own in nanoseconds.
    window = 0.02 if helpers else 0.002

    def used() -> float:
        return time.process_time() + sum(cpu_seconds(child, proc) for child in helpers)

    before, quiet = used(), 0
    while quiet < 2 and time.perf_counter() - begin < limit:
        time.sleep(window)
        now = used()
        # Twice: on a busy machine what still runs may not get a core within one window.
        quiet = quiet + 1 if now - before <= window / 5 else 0
        before = now
    return time.perf_counter() - begin
