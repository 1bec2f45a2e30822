"""When a series of times changed for good, with a known rate of false answers.

Three steps, all on ranks or medians, because times have heavy tails. The best partition of the series' ranks into
stretches proposes places, generously. Each place must then stand up to an exact rank test of the stretches beside it,
as strict as if every place in the series had been tested, because the partition has looked at all of them. What is
left must exceed the margin below which a change does not matter.

A partition alone finds the best places but has no error rate; the test gives it one. Of 4,000 simulated series of 100
points without a change, for each of six kinds of noise, at most 4 show one: `python -m bench.selfcheck trend`,
results/published/simulated/trend.md. That is of independent noise: a machine whose speed wanders for days shows
changes, and they are the machine's.
"""

from __future__ import annotations

import heapq
import math
import statistics
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from results.series import Point
from results.verdict import margin_of

ALPHA = 0.001
"""What a change's p, corrected for the number of places, must stay below."""

_SHORTEST = 2
"""A single strange point is no change."""

MARKED_BREAKS = 8
"""Where machines alternate more often, their marks would cover a picture."""

_EXACT_UP_TO = 10_000
"""Above so many pairs of points the normal form of the rank test differs by less than matters."""

_NEAR = 1e-9
"""Far above what the order of a sum changes, and far below what differs."""

Places: TypeAlias = Sequence[tuple[int, float]]
Judge: TypeAlias = Callable[[Sequence[float], float], Places]
"""Comparable times and the margin -> see `judged`."""


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
        new_machine: whether the machine (its hardware, versions or settings) changed at this very place. The reference
            makes up for it only as far as the workload scales like the reference does.
    """

    index: int
    created: str
    commit: str | None
    before: float
    after: float
    ratio: float
    p: float
    relative: bool = False
    new_machine: bool = False


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


@dataclass(frozen=True)
class Trend:
    """The history of one workload, judged.

    Attributes:
        id: of the workload.
        points: oldest first, at least one.
        chains: of the points.
        changes: oldest first.
        margin: smallest relative change that matters here.
    """

    id: str
    points: tuple[Point, ...]
    chains: tuple[Chain, ...]
    changes: tuple[Change, ...]
    margin: float

    @classmethod
    def of(cls, id: str, points: Sequence[Point], judge: Judge | None = None) -> Trend:
        """Judges the points by the margin of the figure that the last one stands behind."""
        margin, parts = margin_of(points[-1].metric), chains(points)
        return cls(id, tuple(points), tuple(parts), tuple(_changes(points, parts, margin, judge or judged)), margin)

    @property
    def relative(self) -> bool:
        """Whether every point is told in steps of the same pinned reference."""
        return len(self.chains) == 1 and self.chains[0].relative

    @cached_property
    def values(self) -> tuple[float, ...]:
        """What a picture shows: steps of the reference where `relative`, else seconds a step."""
        return self.chains[0].values if self.relative else tuple(point.seconds for point in self.points)

    @cached_property
    def stretches(self) -> list[tuple[tuple[int, ...], float]]:
        """The indices between changes, chain by chain, each with the median of `values` there."""
        found = []
        starts = {change.index for change in self.changes}
        for chain in self.chains:
            stretch: list[int] = []
            for i in chain.indices:
                if i in starts and stretch:
                    found.append(stretch)
                    stretch = []
                stretch.append(i)
            found.append(stretch)
        return [(tuple(part), statistics.median(self.values[i] for i in part)) for part in found]

    @cached_property
    def breaks(self) -> list[int]:
        """Indices of points before which the machine changed: its hardware, versions or settings."""
        return [i for i in range(1, len(self.points)) if self.points[i].machine != self.points[i - 1].machine]


def chains(points: Sequence[Point]) -> list[Chain]:
    """The series in comparable parts, by their first points.

    Points with the same pinned reference belong together whatever machine they are of; of the others those of the
    same machine do. A point without reference and machine stands alone.
    """
    groups: dict[tuple[object, ...], dict[int, float]] = {}
    for i, point in enumerate(points):
        relative = point.relative
        key = ("machine", point.machine or i) if relative is None else ("reference", point.reference)
        groups.setdefault(key, {})[i] = point.seconds if relative is None else relative
    return [Chain(tuple(group), tuple(group.values()), key[0] == "reference") for key, group in groups.items()]


def changes(points: Sequence[Point], margin: float) -> list[Change]:
    """Where the series changed by more than `margin` (relative), oldest first.

    Args:
        points: oldest first.
        margin: see `verdict.margin_of`.
    """
    return _changes(points, chains(points), margin, judged)


def _changes(points: Sequence[Point], parts: Sequence[Chain], margin: float, judge: Judge) -> list[Change]:
    found = []
    for chain in parts:
        places = judge(chain.values, margin)
        beside = _beside([at for at, _ in places], len(chain.values))
        for (at, p), (before, after) in zip(places, beside, strict=True):
            low, high = (statistics.median(chain.values[part]) for part in (before, after))
            place = chain.indices[at]
            point = points[place]
            new = point.machine != points[chain.indices[at - 1]].machine
            found.append(Change(place, point.created, point.commit, low, high, high / low, p, chain.relative, new))
    return sorted(found, key=lambda change: change.index)


def judged(values: Sequence[float], margin: float) -> Places:
    """Where comparable times changed: the index of the first one after each change, and the change's p."""
    if len(values) < fewest_points():
        return []
    times = np.log(np.array(values))
    places = change_places(times, margin)
    return [
        (at, _rank_test(times[before], times[after]) * (len(times) - 1))
        for at, (before, after) in zip(places, _beside(places, len(times)), strict=True)
    ]


def fewest_points(alpha: float = ALPHA) -> int:
    """How many points a chain needs before any change can be shown: the least that reach `alpha`."""
    n = 2 * _SHORTEST
    while 2 / math.comb(n, n // 2) * (n - 1) > alpha:
        n += 1
    return n


def letter(number: int) -> str:
    """The name of a change in a picture: A to Z, then A2 and so on."""
    turn, at = divmod(number, len(string.ascii_uppercase))
    return string.ascii_uppercase[at] + (str(turn + 1) if turn else "")


def limits(values: Sequence[float], lines: Sequence[float] = ()) -> tuple[float, float]:
    """The range that a picture shows: of all values but wild ones, which would press the others flat.

    A value is wild beyond the middle 90 % by more than twice their width. `lines` are always inside.
    """
    ordered = sorted(values)
    cut = statistics.quantiles(ordered, n=20, method="inclusive") if len(ordered) > 1 else ordered
    reach = 2 * (cut[-1] - cut[0])
    inside = [x for x in ordered if cut[0] - reach <= x <= cut[-1] + reach]
    low, high = min(*inside, *lines, inside[0]), max(*inside, *lines, inside[0])
    # A series that never moves still needs a height, and noise of a thousandth is not worth a whole picture.
    room = max(0.05 * (high - low), 0.01 * high)
    return low - room, high + room


def change_places(times: NDArray[np.float64], margin: float, alpha: float = ALPHA) -> list[int]:
    """Indices of the first value after each change.

    Args:
        times: [N], logarithms.
        margin: smallest relative change that matters.
        alpha: what the corrected p of a change must not exceed.
    """
    places: list[int] = []
    if len(times) < fewest_points(alpha):
        return places
    while True:
        # Beside a step of a half, one of a twentieth does not show among the ranks of all; inside its stretch it does.
        edges = [0, *places, len(times)]
        inside = [low + cut for low, high in pairwise(edges) for cut in _partition(times[low:high])]
        kept = _kept(times, sorted({*places, *inside}), margin, alpha)
        if len(kept) <= len(places):
            return places
        places = kept


def _kept(times: NDArray[np.float64], places: list[int], margin: float, alpha: float) -> list[int]:
    """The places that stand up to the rank test and exceed the margin, each settled where it fits best."""
    n, threshold = len(times), math.log1p(margin)

    @cache
    def beside(low: int, at: int, high: int) -> tuple[float, float]:
        """The corrected p of a place between its neighbours, and how large the change is there."""
        before, after = times[low:at], times[at:high]
        return _rank_test(before, after) * (n - 1), abs(float(np.median(after) - np.median(before)))

    while places:
        edges = [0, *places, n]
        chance, size = zip(*(beside(*edges[i : i + 3]) for i in range(len(places))), strict=True)
        # The weakest goes first and alone: what is left has then more points beside it.
        if max(chance) > alpha:
            weakest = chance.index(max(chance))
        elif min(size) <= threshold:
            weakest = size.index(min(size))
        else:
            moved = _settled(times, places)
            if moved == places:
                break
            places = moved
            continue
        places = [*places[:weakest], *places[weakest + 1 :]]
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
    lengths, room = np.arange(n, 0, -1.0), np.empty(n)
    for end in range(1, n + 1):
        # A stretch's squared error is its sum of squares, the same in all partitions, less this.
        cost = np.subtract(sums[end], sums[:end], out=room[:end])
        np.multiply(cost, cost, out=cost)
        np.divide(cost, lengths[n - end :], out=cost)
        np.subtract(best[:end], cost, out=cost)
        cost += price
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
        inside = times[low:high] - np.median(times[low:high])
        ends = slice(_SHORTEST, len(inside) - _SHORTEST + 1)
        about = np.array(_errors(inside)[ends]) + _errors(inside[::-1])[::-1][ends]
        # Sums in another order differ in their last digits: of the near ones the plain sum decides.
        near = low + _SHORTEST + np.flatnonzero(about <= about.min() + _NEAR * (1 + about.min()))
        errors = {int(at): _error(times[low:at]) + _error(times[at:high]) for at in (*near, edges[i])}
        least = min(errors, key=lambda at: (errors[at], at))
        # Only what is better moves, so this ends.
        if errors[least] < errors[edges[i]]:
            edges[i] = least
    return edges[1:-1]


def _errors(times: NDArray[np.float64]) -> list[float]:
    """The absolute error about the median of the first 0, 1, 2, ... times, to about `_NEAR`."""
    # Two heaps hold the lower half, turned over, and the upper half, which has at most one more.
    lower: list[float] = []
    upper: list[float] = []
    below = above = 0.0
    found = [0.0]
    for x in map(float, times):
        if len(upper) > len(lower):
            moved = heapq.heappushpop(upper, x)
            heapq.heappush(lower, -moved)
            above += x - moved
            below += moved
        else:
            moved = -heapq.heappushpop(lower, -x)
            heapq.heappush(upper, moved)
            below += x - moved
            above += moved
        # In an upper half with one more the median is its least, which adds nothing.
        found.append(above - below - (upper[0] if len(upper) > len(lower) else 0.0))
    return found


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
