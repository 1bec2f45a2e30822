"""The exact intervals against scipy, against brute force, and against their own coverage."""

import itertools
import math
import random
from collections.abc import Sequence
from statistics import median

import numpy as np
import pytest
from scipy import stats as reference

from results import stats
from results.errors import RecordError
from results.record import Ratio


@pytest.mark.parametrize("n", [1, 2, 5, 8, 10])
def test_signed_rank_counts_by_brute_force(n: int) -> None:
    counts = [0] * (n * (n + 1) // 2 + 1)
    for signs in itertools.product((0, 1), repeat=n):
        counts[sum(rank for rank, sign in enumerate(signs, 1) if sign)] += 1
    assert list(stats.signed_rank_counts(n)) == counts


@pytest.mark.parametrize("n", [6, 10, 16, 24])
@pytest.mark.parametrize("alpha", [0.025, 0.001, 0.0005])
def test_bounds_are_where_the_exact_test_stops_rejecting(n: int, alpha: float) -> None:
    rng = random.Random(n)
    values = [rng.gauss(0.3, 1) for _ in range(n)]
    low, high = stats.signed_rank_bounds(values, alpha)
    if not math.isfinite(low):
        assert 2.0**-n > alpha
        assert (low, high) == (-math.inf, math.inf)
        return
    for bound, side, inward in ((low, "greater", 1e-9), (high, "less", -1e-9)):

        def p(centre: float, side: str = side) -> float:
            shifted = [v - centre for v in values]
            return float(reference.wilcoxon(shifted, alternative=side, method="exact").pvalue)

        assert p(bound - inward) <= alpha < p(bound + inward)


def test_smallest_samples_that_reach_an_alpha() -> None:
    assert stats.signed_rank_bounds([1.0, 2, 3, 4, 5], 0.025) == (-math.inf, math.inf)
    assert stats.signed_rank_bounds([1.0, 2, 3, 4, 5, 6], 0.025) == (1.0, 6.0)
    ten = [float(i) for i in range(10)]
    assert stats.signed_rank_bounds(ten, 0.001) == (0.0, 9.0)
    assert stats.signed_rank_bounds(ten[:9], 0.001) == (-math.inf, math.inf)


def test_many_samples_meet_the_normal_form() -> None:
    values = [math.sin(i) for i in range(151)]
    exact_n = stats.signed_rank_bounds(values[:150], 0.025)
    normal_n = stats.signed_rank_bounds(values, 0.025)
    assert normal_n == pytest.approx(exact_n, abs=0.02)


def test_signed_rank_coverage() -> None:
    rng = random.Random(1)
    missed = 0
    for _ in range(2000):
        # Heavy tails: one block in ten from a process that fell badly.
        values = [rng.gauss(0, 5 if rng.random() < 0.1 else 1) for _ in range(8)]
        low, high = stats.signed_rank_bounds(values, 0.025)
        missed += not low <= 0 <= high
    assert missed / 2000 <= 0.06


def test_hodges_lehmann() -> None:
    assert stats.hodges_lehmann([1.0, 2.0, 6.0]) == 2.75
    assert stats.hodges_lehmann([1.0, 1.1, 0.9, 1.05, 0.95, 900.0]) == pytest.approx(1.025, abs=0.05)
    values = [random.Random(2).gauss(0, 1) for _ in range(9)]
    walsh = [(a + b) / 2 for a, b in itertools.combinations_with_replacement(values, 2)]
    assert stats.hodges_lehmann(values) == median(walsh)


@pytest.mark.parametrize("n", [6, 7, 20, 101])
def test_median_interval_is_the_binomial_one(n: int) -> None:
    values = [float(i) for i in range(1, n + 1)]
    low, high, confidence = stats.median_interval(values)
    assert low + high == n + 1
    binomial = reference.binom(n, 0.5)
    assert confidence == pytest.approx(binomial.cdf(high - 1) - binomial.cdf(low - 1))
    assert confidence >= 0.95
    assert binomial.cdf(low) > 0.025


def test_median_interval_of_too_few() -> None:
    assert stats.median_interval([3.0, 1.0, 2.0]) == (1.0, 3.0, pytest.approx(0.75))
    assert stats.median_interval([3.0]) == (3.0, 3.0, 0.0)


def test_binomial_survives_many_samples() -> None:
    values = [float(i) for i in range(20_000)]
    low, high, confidence = stats.median_interval(values)
    assert 0.95 <= confidence < 0.952
    assert (low, high) == (pytest.approx(10_000 - 139, abs=2), pytest.approx(10_000 + 139, abs=2))


@pytest.mark.parametrize(("q", "n"), [(0.99, 459), (0.9, 44), (0.5, 7), (0.1, 44), (0.999, 4603)])
def test_required_samples(q: float, n: int) -> None:
    assert stats.required_samples(q) == n
    rest = max(q, 1 - q)
    assert rest**n < 0.01 <= rest ** (n - 1)


def test_percentile_needs_its_samples() -> None:
    values = list(np.random.default_rng(0).exponential(size=459))
    assert stats.percentile(values, 0.99) == pytest.approx(float(np.percentile(values, 99)))
    with pytest.raises(RecordError, match="needs 459 samples, has 458"):
        stats.percentile(values[:458], 0.99)
    missing = stats.percentile_value(values[:120], 0.99)
    assert (missing.median, missing.missing, missing.samples) == (None, "needs 459 samples, has 120", 120)
    with pytest.raises(RecordError, match="between 0 and 1"):
        stats.required_samples(1.0)


def test_percentile_interval_covers() -> None:
    rng = random.Random(3)
    truth = -math.log(0.1)
    missed = 0
    for _ in range(400):
        value = stats.percentile_value([rng.expovariate(1) for _ in range(100)], 0.9)
        assert value.low is not None
        assert value.median is not None
        assert value.high is not None
        assert value.low <= value.median <= value.high
        missed += not value.low <= truth <= value.high
    assert missed / 400 < 0.08


def test_summarise() -> None:
    value = stats.summarise([float(i) for i in range(1, 12)])
    assert (value.median, value.low, value.high, value.samples) == (6.0, 2.0, 10.0, 11)
    assert stats.summarise([]).missing == "no samples"


def ratio_of(blocks: Sequence[Sequence[float]]) -> Ratio:
    return stats.ratio_of("a", "b", blocks)


def test_a_ratio_of_one_block_is_within_process() -> None:
    pairs = [0.70, 0.71, 0.72, 0.73, 0.74, 0.75, 0.76, 0.77]
    found = ratio_of([pairs])
    assert (found.of, found.to, found.within_process) == ("a", "b", True)
    assert (found.confidence, found.blocks, found.pairs) == (0.95, 1, 8)
    assert found.estimate == pytest.approx(math.exp(0.735))
    assert (found.low, found.high) == tuple(map(math.exp, stats.signed_rank_bounds(pairs, 0.025)))


@pytest.mark.parametrize("n", [2, 3, 5])
def test_a_ratio_of_a_few_blocks_has_their_range(n: int) -> None:
    found = ratio_of([[0.1 * i, 0.1 * i, 9.0] for i in range(1, n + 1)])
    assert (found.low, found.high) == (pytest.approx(math.exp(0.1)), pytest.approx(math.exp(0.1 * n)))
    assert found.confidence == 1 - 2.0 ** (1 - n)
    assert (found.blocks, found.pairs, found.within_process) == (n, 3 * n, False)


def test_a_ratio_of_many_blocks() -> None:
    blocks = [[0.01 * i] * 3 for i in range(10)]
    found = ratio_of([*blocks, []])
    values = stats.block_values(blocks)
    assert found.estimate == math.exp(stats.hodges_lehmann(values))
    assert (found.low, found.high) == tuple(map(math.exp, stats.signed_rank_bounds(values, 0.025)))
    assert (found.confidence, found.blocks) == (0.95, 10)


def test_a_ratio_of_next_to_nothing() -> None:
    found = ratio_of([[0.5]])
    assert (found.low, found.high, found.confidence) == (None, None, 0.0)
    assert ratio_of([[0.1, 0.2, 0.3]]).confidence == 0.75
    with pytest.raises(RecordError, match="measure again"):
        ratio_of([[], []])
    with pytest.raises(RecordError, match="not finite"):
        ratio_of([[math.nan, 0.1]])
    assert ratio_of([[1e6, 1e6]]).estimate is None


@pytest.mark.parametrize(
    ("value", "low", "high", "decimals"),
    [
        (2.07, 1.98, 2.15, 2),
        (2.103, 2.095, 2.112, 3),
        (187.6, 180, 195, 0),
        (1876.0, 1700, 2000, -1),
        (1876.0, 1000, 3000, -2),
        (5.0, None, None, 2),
        (5.0, 5.0, 5.0, 3),
        (1.0, 0.99999999, 1.00000001, 3),
        (0.0, None, None, 2),
    ],
)
def test_supported_decimals(value: float, low: float | None, high: float | None, decimals: int) -> None:
    assert stats.supported_decimals(value, low, high) == decimals


def test_rank_sum_counts_are_those_of_the_published_tables() -> None:
    # C(5, 2) orders of 2 and 3 values: 1, 1, 2, 2, 2, 1, 1.
    assert stats.rank_sum_counts(2, 3) == (1, 1, 2, 2, 2, 1, 1)
    assert sum(stats.rank_sum_counts(10, 24)) == math.comb(34, 10)
    assert stats.rank_sum_counts(7, 4) == stats.rank_sum_counts(4, 7)


def test_rank_sum_bounds_enclose_the_shift() -> None:
    old, new = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [2.5, 3.5, 4.5, 5.5, 6.5, 7.5]
    assert stats.shift(new, old) == 1.5
    low, high = stats.rank_sum_bounds(new, old, 0.05)
    assert low < 1.5 < high
    wider = stats.rank_sum_bounds(new, old, 0.005)
    assert wider[0] <= low
    assert wider[1] >= high
    assert stats.rank_sum_bounds([1.0], [2.0, 3.0], 0.01) == (-math.inf, math.inf)


def test_rank_sum_bounds_are_wrong_as_seldom_as_they_say() -> None:
    rng = random.Random(3)
    wrong = 0
    for _ in range(400):
        old, new = ([rng.gauss(0, 1) for _ in range(8)] for _ in range(2))
        wrong += stats.rank_sum_bounds(new, old, 0.05)[0] > 0
    assert wrong <= 35
