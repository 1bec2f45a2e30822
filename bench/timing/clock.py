"""The device clock, and one slice of timed steps.

A GPU runs behind the host: the clock first waits for it, then reads the host's monotonic timer. Read twice
around many steps, it counts the launches as a user sees them and adds no synchronisation between the steps;
that is also how pytest-benchmark calls its timer.
"""

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter


@dataclass(frozen=True)
class Slice:
    """One side's turn.

    Attributes:
        seconds: wall time of the timed steps together, device idle at both ends.
        steps: how many were timed.
        device_seconds: the same between two CUDA events; None on a CPU.
        samples: wall time of each step on its own; empty unless asked for.
        clock_hertz: the device's clock at the end of the slice, None where it cannot be read.
        throttled: the device reported that it slowed down.
    """

    seconds: float
    steps: int
    device_seconds: float | None = None
    samples: tuple[float, ...] = ()
    clock_hertz: float | None = None
    throttled: bool = False

    @property
    def seconds_per_step(self) -> float:
        return self.seconds / self.steps


def cpu_clock() -> float:
    """Seconds on the host's monotonic timer: CPU work is done when the call returns."""
    return perf_counter()


def cuda_clock() -> float:
    """Seconds on the host's monotonic timer once everything queued on the device has finished."""
    import torch

    torch.cuda.synchronize()
    return perf_counter()


CLOCKS: dict[str, Callable[[], float]] = {"cpu": cpu_clock, "cuda": cuda_clock}


def time_slice(
    step: Callable[[], object],
    steps: int,
    drop: int,
    clock: Callable[[], float],
    each: bool = False,
    device_timer: "Callable[[], Callable[[], float]] | None" = None,
) -> Slice:
    """Call `step` drop + steps times and time the last `steps` of them.

    Args:
        drop: untimed calls first: they refill the caches that the other side's turn emptied.
        each: also time every step on its own (closed loop: the queue is empty before each).
        device_timer: starts a device-side measurement and returns what ends it, in seconds.

    Raises:
        ValueError: steps is below 1.
    """
    if steps < 1:
        raise ValueError(f"a slice needs at least one step, got {steps}")
    for _ in range(drop):
        step()
    if each:
        samples = []
        begin = last = clock()
        for _ in range(steps):
            step()
            now = clock()
            samples.append(now - last)
            last = now
        return Slice(last - begin, steps, None, tuple(samples))
    begin = clock()
    finish = device_timer() if device_timer else None
    for _ in range(steps):
        step()
    device_seconds = finish() if finish else None
    return Slice(clock() - begin, steps, device_seconds)


def cuda_timer() -> Callable[[], float]:
    """Record a CUDA event now; the returned function records a second one and gives the seconds between them.

    elapsed_time is milliseconds from the first to the second event, and needs both to have happened.
    """
    import torch

    start = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    start.record()

    def finish() -> float:
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3

    return finish
