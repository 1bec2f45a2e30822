"""When a series of times changed for good, with a known rate of false answers.

Three steps, all on ranks or medians, because times have heavy tails. The best partition of the series' ranks into
stretches proposes places, generously. Each place must then stand up to an exact rank test of the stretches beside it,
as strict as if every place in the series had been tested, because the partition has looked at all of them. What is
left must exceed the margin below which a change does not matter.

Why no library's answer alone: a penalised partition finds the best places but gives no error rate. By simulation
(README) the rank test turns its answer into one.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from results.series import Point

ALPHA = 0.001
"""How often a series without any change may show one, at most."""

_SHORTEST = 2
"""A single strange point is no change."""

_EXACT_UP_TO = 10_000
"""Above so many pairs of points the normal form of the rank test differs by less than matters."""


@dataclass(frozen=True)
class Change:
    """A place where a series changed.

    Attributes:
        index: of the first point after it.
        created, commit: of that point.
        before, after: medians of the stretches beside it: seconds a step, or steps of the reference where `relative`.
        ratio: after / before; above 1 is slower.
        p: of the rank test, times the number of places in the series; at most `ALPHA`.
        relative: whether times are in steps of the pinned reference.
    """

    index: int
    created: str
    commit: str | None
    before: float
    after: float
    ratio: float
    p: float
    relative: bool = False


@dataclass(frozen=True)
class Chain:
    """Points of a series that may be compared with one another.

    Attributes:
        indices: in the series, ascending.
        values: their times: in steps of the pinned reference where `relative`, else seconds a step.
    """

    indices: tuple[int, ...]
    values: tuple[float, ...]
    relative: bool


def chains(points: Sequence[Point]) -> list[Chain]:
    """The series in comparable parts, by their first points.

    Points with the same pinned reference belong together whatever machine they are of; of the others those of the
    same machine do. A point without reference and machine stands alone.
    """
    groups: dict[tuple[object, ...], list[int]] = {}
    for i, point in enumerate(points):
        if point.relative is not None:
            key: tuple[object, ...] = ("reference", point.reference)
        else:
            key = ("machine", point.machine or i)
        groups.setdefault(key, []).append(i)
    found = []
    for key, indices in groups.items():
        relative = key[0] == "reference"
        values = [points[i].relative if relative else points[i].seconds for i in indices]
        found.append(Chain(tuple(indices), tuple(float(x) for x in values if x is not None), relative))
    return found


def changes(points: Sequence[Point], margin: float, alpha: float = ALPHA) -> list[Change]:
    """Where the series changed by more than `margin` (relative), oldest first.

    Args:
        points: oldest first.
        margin: see `verdict.margin_of`.
        alpha: how often, at most, a chain of points without any change may show one.
    """
    found = []
    for chain in chains(points):
        times = np.log(np.array(chain.values))
        places = change_places(times, margin, alpha)
        for at, (before, after) in zip(places, _beside(places, len(times)), strict=True):
            low, high = (statistics.median(chain.values[part]) for part in (before, after))
            point = points[chain.indices[at]]
            p = _rank_test(times[before], times[after]) * (len(times) - 1)
            found.append(
                Change(chain.indices[at], point.created, point.commit, low, high, high / low, p, chain.relative)
            )
    return sorted(found, key=lambda change: change.index)


def fewest_points(alpha: float = ALPHA) -> int:
    """How many points a chain needs before any change can be shown: the least that reach `alpha`."""
    n = 2 * _SHORTEST
    while 2 / math.comb(n, n // 2) * (n - 1) > alpha:
        n += 1
    return n


def change_places(times: NDArray[np.float64], margin: float, alpha: float = ALPHA) -> list[int]:
    """Indices of the first value after each change.

    Args:
        times: [N], logarithms.
        margin: smallest relative change that matters.
        alpha: as in `changes`.
    """
    n = len(times)
    if n < fewest_points(alpha):
        return []
    places, threshold = _partition(times), math.log1p(margin)
    while places:
        parts = _beside(places, n)
        chance = [_rank_test(times[a], times[b]) * (n - 1) for a, b in parts]
        size = [abs(float(np.median(times[b]) - np.median(times[a]))) for a, b in parts]
        # The weakest goes first and alone: what is left has then more points beside it.
        if max(chance) > alpha:
            places.pop(chance.index(max(chance)))
        elif min(size) <= threshold:
            places.pop(size.index(min(size)))
        else:
            moved = _settled(times, places)
            if moved == places:
                break
            places = moved
    return places


def _partition(times: NDArray[np.float64]) -> list[int]:
    """Cuts of the partition with the least squared error of the ranks, at a price of log(N) variances a cut.

    Optimal partitioning (Jackson et al. 2005) on ranks, whose squares a single wild value cannot fill.
    """
    from scipy.stats import rankdata

    ranks = rankdata(times)
    spread = float(ranks.std())
    if spread == 0:
        return []
    n = len(ranks)
    sums = np.concatenate(([0.0], np.cumsum((ranks - ranks.mean()) / spread)))
    price = math.log(n)
    best, last = np.zeros(n + 1), np.zeros(n + 1, dtype=int)
    for end in range(1, n + 1):
        # A stretch's squared error is its sum of squares, the same in all partitions, less this.
        cost = best[:end] - (sums[end] - sums[:end]) ** 2 / (end - np.arange(end)) + price
        last[end] = int(cost.argmin())
        best[end] = cost[last[end]]
    cuts, end = [], int(last[n])
    while end:
        cuts.append(end)
        end = int(last[end])
    return cuts[::-1]


def _settled(times: NDArray[np.float64], places: Sequence[int]) -> list[int]:
    """Each place moved, between its neighbours, to where the absolute error about two medians is least."""
    edges = [0, *places, len(times)]
    for i in range(1, len(edges) - 1):
        low, high = edges[i - 1], edges[i + 1]
        errors = {
            at: _error(times[low:at]) + _error(times[at:high]) for at in range(low + _SHORTEST, high - _SHORTEST + 1)
        }
        least = min(errors, key=lambda at: errors[at])
        # Only what is better moves, so this ends.
        if errors[least] < errors[edges[i]]:
            edges[i] = least
    return edges[1:-1]


def _error(times: NDArray[np.float64]) -> float:
    return float(np.abs(times - np.median(times)).sum())


def _beside(places: Sequence[int], n: int) -> list[tuple[slice, slice]]:
    stretches = [slice(a, b) for a, b in pairwise([0, *places, n])]
    return list(pairwise(stretches))


def _rank_test(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Two-sided p of the Mann-Whitney test: exact, and for long stretches in its normal form."""
    from scipy.stats import mannwhitneyu

    if len(a) < _SHORTEST or len(b) < _SHORTEST:
        return 1.0
    together: Any = np.concatenate((a, b))
    if np.ptp(together) == 0:
        return 1.0
    tied = len(np.unique(together)) < len(together)
    methods = []
    if len(a) * len(b) <= _EXACT_UP_TO:
        methods.append("exact")
    if tied or not methods:
        # The exact form knows no ties; of the two the less sure one counts.
        methods.append("asymptotic")
    return max(float(mannwhitneyu(a, b, method=method).pvalue) for method in methods)
