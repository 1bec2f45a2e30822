"""A competing process that keeps one core busy, always or at random times, so that speeds change."""

import contextlib
import os
import random
import select
import subprocess
import sys
import time
from collections.abc import Iterator

from bench.processes import SOURCE

LOADS = ("none", "core", "busy")
MEAN_SECONDS = 20.0


@contextlib.contextmanager
def competing(load: str, seed: int) -> Iterator[None]:
    """Runs a competitor meanwhile: "core" by turns works and rests, "busy" always works; none for the load "none"."""
    if load == "none":
        yield
        return
    # It ends when its stdin closes, which the system sees to however this process ends.
    process = subprocess.Popen(
        [
            sys.executable,
            "-P",
            "-c",
            f"from bench.sides.load import compete; compete({seed}, 0, always={load == 'busy'})",
        ],
        stdin=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
        start_new_session=True,
    )
    try:
        yield
    finally:
        assert process.stdin is not None
        process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=5)
        process.kill()
        process.wait()


def compete(seed: int, descriptor: int, mean: float = MEAN_SECONDS, always: bool = False) -> None:
    """Work and rest by turns, of exponentially distributed length, until the other end of `descriptor` is closed.

    Args:
        always: never rest.
    """
    rng = random.Random(seed)
    working = always
    while True:
        end = time.monotonic() + rng.expovariate(1 / mean)
        while (left := end - time.monotonic()) > 0:
            if select.select([descriptor], [], [], 0 if working else left)[0]:
                return
            if working:
                sum(number * number for number in range(100_000))
        working = always or not working
