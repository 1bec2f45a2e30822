"""A competing process that keeps one core busy at random times, so that speeds change."""

import contextlib
import os
import random
import select
import subprocess
import sys
import time
from collections.abc import Iterator

from bench.processes import SOURCE

MEAN_SECONDS = 20.0


@contextlib.contextmanager
def competing(load: str, seed: int) -> Iterator[None]:
    """Runs a competitor meanwhile; none for the load "none"."""
    if load == "none":
        yield
        return
    # It ends when its stdin closes, which the system sees to however this process ends.
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", f"from bench.selfcheck.load import compete; compete({seed}, 0)"],
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


def compete(seed: int, descriptor: int, mean: float = MEAN_SECONDS) -> None:
    """Work and rest by turns, of exponentially distributed length, until the other end of `descriptor` is closed."""
    rng = random.Random(seed)
    working = False
    while True:
        end = time.monotonic() + rng.expovariate(1 / mean)
        while (left := end - time.monotonic()) > 0:
            if select.select([descriptor], [], [], 0 if working else left)[0]:
                return
            if working:
                sum(number * number for number in range(100_000))
        working = not working
