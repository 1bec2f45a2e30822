"""The device clock, and one slice of timed steps.

A GPU runs behind the host: the clock first waits for it, then reads the host's monotonic timer. Read twice
around many steps, it counts the launches as a user sees them and adds no synchronisation between the steps;
that is also how pytest-benchmark calls its timer.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import Any


@dataclass(frozen=True)
class Slice:
    """One side's turn.

    Attributes:
        seconds: wall time of the timed steps together, device idle at both ends.
        steps: how many were timed.
        samples: wall time of each step on its own; empty unless asked for.
        clock_hertz: the device's clock at the end of the slice, None where it cannot be read.
        throttled: the device reported that it slowed down.
    """

    seconds: float
    steps: int
    samples: tuple[float, ...] = ()
    clock_hertz: float | None = None
    throttled: bool = False

    @property
    def seconds_per_step(self) -> float:
        return self.seconds / self.steps

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Slice":
        """From its fields by name; other keys, which other versions write, are ignored."""
        known = {name: data[name] for name in ("seconds", "steps", "clock_hertz", "throttled") if name in data}
        return cls(**known, samples=tuple(data.get("samples", ())))


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
) -> Slice:
    """Call `step` drop + steps times and time the last `steps` of them.

    Args:
        drop: untimed calls first: they refill the caches that the other side's turn emptied.
        each: also time every step on its own (closed loop: the queue is empty before each).

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
        return Slice(last - begin, steps, tuple(samples))
    begin = clock()
    for _ in range(steps):
        step()
    return Slice(clock() - begin, steps)
