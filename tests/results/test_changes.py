"""Places where a series changed: found, not invented, never across what cannot be compared."""

import math
import random
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import rankdata

from results import changes as module
from results.changes import ALPHA, Trend, chains, change_places, changes, fewest_points, letter, limits
from results.series import Point

START = datetime(2026, 1, 1, tzinfo=UTC)


def points(
    seconds: Sequence[float],
    reference: Sequence[float | None] | None = None,
    machine: Sequence[str] | None = None,
    metric: str = "training_throughput",
) -> list[Point]:
    return [
        Point(
            created=(START + timedelta(days=i)).isoformat(),
            commit=f"{i:040x}",
            dirty=False,
            seconds=time,
            low=time * 0.99,
            high=time * 1.01,
            images=8,
            reference_seconds=reference[i] if reference else None,
            machine=machine[i] if machine else "m",
            path=Path("x.json"),
            operand="head",
            metric=metric,
            reference="matmul" if reference and reference[i] else None,
        )
        for i, time in enumerate(seconds)
    ]


def series(steps: Sequence[float], length: int, noise: float = 0.02, seed: int = 1) -> list[float]:
    """Stretches of `length` at these levels with normal noise."""
    rng = random.Random(seed)
    return [level * math.exp(rng.gauss(0, noise)) for level in steps for _ in range(length)]


def test_a_step_is_found_with_its_size() -> None:
    found = changes(points(series([1.0, 1.05], 40)), 0.02)
    assert len(found) == 1
    (change,) = found
    assert abs(change.index - 40) <= 2
    assert change.commit == f"{change.index:040x}"
    assert change.ratio == pytest.approx(1.05, abs=0.015)
    assert change.ratio == pytest.approx(change.after / change.before)
    assert change.p < ALPHA
    assert not change.relative


def test_noise_shows_no_change() -> None:
    """The rate itself was simulated with thousands of series; here a hundred with tails heavier than normal."""
    rng = np.random.default_rng(5)
    shown = sum(bool(change_places(rng.standard_t(3, 100) * scale, 0.02)) for scale in (0.02, 0.1) for _ in range(50))
    assert shown <= 1


def test_small_steps_beside_a_large_one_and_back() -> None:
    levels = [1.0, 1.5, 1.57, 1.0]
    found = changes(points(series(levels, 30, 0.01)), 0.02)
    assert [round(change.index / 30) for change in found] == [1, 2, 3]
    assert all(abs(change.index - 30 * (i + 1)) <= 2 for i, change in enumerate(found))


def test_what_does_not_matter_is_left_out() -> None:
    times = series([1.0, 1.015], 60, 0.003)
    assert changes(points(times), 0.02) == []
    assert len(changes(points(times), 0.01)) == 1


def test_single_wild_points_are_no_change() -> None:
    times = series([1.0], 60)
    times[20] = times[21] = times[59] = 3.0
    assert changes(points(times), 0.02) == []


def test_too_few_points_say_nothing() -> None:
    least = fewest_points()
    assert least == 18
    sharp = [1.0 + 1e-4 * i for i in range(least // 2)]
    times = sharp + [2 * x for x in sharp]
    assert len(changes(points(times), 0.02)) == 1
    assert changes(points(times[:-1]), 0.02) == []
    assert changes([], 0.02) == []


def test_times_that_never_vary() -> None:
    assert changes(points([1.0] * 50), 0.02) == []
    (change,) = changes(points([1.0] * 25 + [1.1] * 25), 0.02)
    assert change.index == 25


def test_the_reference_joins_machines() -> None:
    times = series([1.0], 60)
    faster = [x * (1 if i < 30 else 0.5) for i, x in enumerate(times)]
    reference = [0.1 if i < 30 else 0.05 for i in range(60)]
    machine = ["old" if i < 30 else "new" for i in range(60)]
    joined = points(faster, reference, machine)
    assert len(chains(joined)) == 1
    assert changes(joined, 0.02) == []
    slower = [x * (1 if i < 45 else 1.2) for i, x in enumerate(faster)]
    (change,) = changes(points(slower, reference, machine), 0.02)
    assert abs(change.index - 45) <= 2
    assert change.relative
    assert not change.new_machine
    # Whatever scales otherwise than the reference changes with the machine, which is then said.
    (change,) = changes(points(times, reference, machine), 0.02)
    assert (change.index, change.new_machine) == (30, True)


def test_other_machines_without_a_reference_are_never_joined() -> None:
    times = [x * (1 if i < 30 else 0.5) for i, x in enumerate(series([1.0], 60))]
    machine = ["old" if i < 30 else "new" for i in range(60)]
    apart = points(times, machine=machine)
    assert [len(chain.indices) for chain in chains(apart)] == [30, 30]
    assert changes(apart, 0.02) == []
    mixed = points(times, [None] * 30 + [0.1] * 30, ["m"] * 60)
    assert [chain.relative for chain in chains(mixed)] == [False, True]
    unknown = points(times[:3], machine=[""] * 3)
    assert [chain.indices for chain in chains(unknown)] == [(0,), (1,), (2,)]


def test_two_machines_taking_turns_are_two_series() -> None:
    slow, fast = series([1.0, 1.1], 25, 0.01, 1), series([0.5], 50, 0.01, 2)
    both = [x for pair in zip(slow, fast, strict=True) for x in pair]
    (change,) = changes(points(both, machine=["a", "b"] * 50), 0.02)
    assert abs(change.index - 50) <= 4
    assert change.index % 2 == 0


def test_a_trend_takes_its_margin_from_the_figure() -> None:
    times = series([1.0, 1.025], 60, 0.003)
    assert len(Trend.of("x", points(times)).changes) == 1
    assert Trend.of("x", points(times, metric="loader_throughput")).changes == ()


def test_stretches_and_breaks() -> None:
    trend = Trend.of("x", points(series([1.0, 1.2], 20, 0.01), machine=["a"] * 5 + ["b"] * 35))
    assert [len(chain.indices) for chain in trend.chains] == [5, 35]
    first, second, third = trend.stretches
    assert first[0] == (0, 1, 2, 3, 4)
    assert second[0][-1] + 1 == third[0][0] == trend.changes[0].index
    assert third[1] / second[1] == pytest.approx(1.2, abs=0.02)
    assert trend.breaks == [5]
    assert not trend.relative


def test_limits_leave_wild_values_out() -> None:
    values = [1 + 0.01 * (i % 5) for i in range(50)] + [9.0]
    low, high = limits(values)
    assert low < 1.0 < 1.04 < high < 1.2
    low, high = limits([2.0])
    assert low < 2.0 < high
    assert limits(values, [5.0])[1] > 5.0


def test_letters() -> None:
    assert [letter(i) for i in (0, 25, 26, 52)] == ["A", "Z", "A2", "A3"]


def settled(times: NDArray[np.float64], places: list[int]) -> list[int]:
    """`changes._settled` with every error summed anew."""

    def error(part: NDArray[np.float64]) -> float:
        return float(np.abs(part - np.median(part)).sum())

    edges = [0, *places, len(times)]
    for i in range(1, len(edges) - 1):
        low, high = edges[i - 1], edges[i + 1]
        errors = {at: error(times[low:at]) + error(times[at:high]) for at in range(low + 2, high - 1)}
        least = min(errors, key=lambda at: errors[at])
        if errors[least] < errors[edges[i]]:
            edges[i] = least
    return edges[1:-1]


def partition(times: NDArray[np.float64]) -> list[int]:
    """`changes._partition` as its recursion is written."""
    ranks = rankdata(times)
    if ranks.std() == 0:
        return []
    n, sums = len(ranks), np.concatenate(([0.0], np.cumsum((ranks - ranks.mean()) / float(ranks.std()))))
    best, last = np.zeros(n + 1), np.zeros(n + 1, dtype=int)
    for end in range(1, n + 1):
        cost = best[:end] - (sums[end] - sums[:end]) ** 2 / (end - np.arange(end)) + math.log(n)
        last[end] = int(cost.argmin())
        best[end] = cost[last[end]]
    cuts, end = [], int(last[n])
    while end:
        cuts.append(end)
        end = int(last[end])
    return cuts[::-1]


def test_the_fast_ways_give_the_answers_of_the_plain_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit, also where rounded times make many places equally good."""
    draw = np.random.default_rng(0)
    series = []
    for number in range(120):
        times = 0.01 * draw.standard_t(3, draw.integers(8, 160)) + draw.choice([0.0, -7.0])
        for _ in range(number % 4):
            times[draw.integers(0, len(times)) :] += 0.06 * draw.normal()
        series.append(np.round(times, 2) if number % 3 == 0 else times)
    margins = [(0.0, 0.5), (0.02, 0.001)]
    fast = [change_places(times, *margin) for times in series for margin in margins]
    assert sum(map(len, fast)) > 100
    monkeypatch.setattr(module, "_settled", settled)
    monkeypatch.setattr(module, "_partition", partition)
    assert [change_places(times, *margin) for times in series for margin in margins] == fast
    times = series[1]
    plain = [np.abs(times[:at] - np.median(times[:at])).sum() if at else 0.0 for at in range(len(times) + 1)]
    assert module._errors(times) == pytest.approx(plain, abs=1e-12)
