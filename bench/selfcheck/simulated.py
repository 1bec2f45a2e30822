"""How often `bench trend` shows a change in simulated series without one, and in series with one."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from bench.selfcheck.resample import upper_bound
from results.changes import change_places
from results.tables import render, to_json

MARGIN = 0.02
POINTS = 100
SCATTERS = (0.02, 0.1)
STEP, NEAR = 0.05, 2
"""A step of 5 % in the middle counts as found if it is shown at most so many points from its place."""

Draw = Callable[[np.random.Generator, int], NDArray[np.float64]]

# Name -> log times of independent noise, whose standard deviation (Student's: scale) is 1 before it is scaled.
NOISES: dict[str, Draw] = {
    "normal": lambda rng, n: rng.standard_normal(n),
    "Student's t, 3 degrees": lambda rng, n: rng.standard_t(3, n),
    "lognormal": lambda rng, n: rng.lognormal(0.0, 1.0, n) / 2.16,
}


def simulate(series: int, seed: int, format: str) -> str:
    """A row for each noise and scatter: how many series without a change show one, and with a step show it.

    Args:
        series: of each kind, 100 points each.
        seed: of the draws.
        format: text, markdown or json.
    """
    rng = np.random.default_rng(seed)
    rows: list[list[str | int]] = []
    for name, draw in NOISES.items():
        for scatter in SCATTERS:
            false = hits = 0
            for _ in range(series):
                times = np.exp(scatter * draw(rng, POINTS))
                false += bool(change_places(times, MARGIN))
                times = np.exp(scatter * draw(rng, POINTS))
                times[POINTS // 2 :] *= 1 + STEP
                hits += any(abs(place - POINTS // 2) <= NEAR for place in change_places(times, MARGIN))
            bound = f"{upper_bound(false, series):.2%}"
            rows.append([name, f"{scatter:.0%}", series, false, bound, f"{hits / series:.1%}"])
    headers = ("noise", "scatter", "series", "false changes in", "at most (95 %)", "step of 5 % found")
    if format == "json":
        return to_json([dict(zip(headers, row, strict=True)) for row in rows])
    return render(headers, rows, format)
