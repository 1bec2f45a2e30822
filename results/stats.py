"""How sure a number is: exact order-statistic and signed-rank intervals, assuming no distribution.

Pure functions over plain floats in the caller's unit. Nothing here decides whether a difference matters; that
is verdict.py. Why these and not others: the process is the random effect, a run has few of them, and their
scatter has heavy tails, so only ranks are trusted.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from functools import lru_cache

from results.errors import RecordError
from results.record import Ratio, Value

_EXACT_UP_TO = 150
"""Above this many samples the normal form of the signed-rank distribution differs by less than matters."""


def median(values: Sequence[float]) -> float:
    """The median. Raises RecordError on no values or on values that are not finite."""
    return statistics.median(_finite(values))


def hodges_lehmann(values: Sequence[float]) -> float:
    """Median of the Walsh averages (x_i + x_j) / 2, i <= j (Hodges and Lehmann 1963).

    As robust as asks for 29 % of wild values and 95 % as sharp as the mean on normal ones.
    """
    return statistics.median(_walsh(_finite(values)))


def signed_rank_bounds(values: Sequence[float], alpha: float) -> tuple[float, float]:
    """Lower and upper bound for the centre of the values, each wrong with probability at most `alpha`.

    Inverts the exact Wilcoxon signed-rank test over the Walsh averages (Hollander, Wolfe and Chicken 2014,
    3.4). A bound is -inf or inf where so few values cannot reach `alpha`: n values reach 2**-n at best.
    """
    walsh = _walsh(_finite(values))
    k = _rank(len(values), alpha)
    return (walsh[k - 1], walsh[-k]) if k else (-math.inf, math.inf)


def shift(values: Sequence[float], against: Sequence[float]) -> float:
    """How far `values` lie above `against`: the median of all differences (Hodges and Lehmann 1963)."""
    return statistics.median(_differences(values, against))


def rank_sum_bounds(values: Sequence[float], against: Sequence[float], alpha: float) -> tuple[float, float]:
    """Lower and upper bound of that shift, each wrong with probability at most `alpha`.

    Inverts the exact rank sum test of Mann and Whitney over the ordered differences (Hollander, Wolfe and Chicken
    2014, 4.3). -inf or inf where so few values cannot reach `alpha`.
    """
    ordered = _differences(values, against)
    counts = rank_sum_counts(len(values), len(against))
    allowed, k = alpha * sum(counts), 0
    for below in itertools.accumulate(counts):
        if below > allowed:
            break
        k += 1
    return (ordered[k - 1], ordered[-k]) if k else (-math.inf, math.inf)


def _differences(values: Sequence[float], against: Sequence[float]) -> list[float]:
    return sorted(a - b for a in _finite(values) for b in _finite(against))


@lru_cache(maxsize=2048)
def rank_sum_counts(m: int, n: int) -> tuple[int, ...]:
    """In how many of the orders of m and n values so many of the m * n pairs are the right way round: 0..m * n."""
    if m == 0 or n == 0:
        return (1,)
    # The largest value is one of the m, then it is above all n, or one of the n.
    first, second = rank_sum_counts(m - 1, n), rank_sum_counts(m, n - 1)
    counts = [0] * (m * n + 1)
    for s, c in enumerate(first):
        counts[s + n] += c
    for s, c in enumerate(second):
        counts[s] += c
    return tuple(counts)


def median_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float, float]:
    """Low, high and exact confidence of the median, from order statistics and the binomial distribution.

    Too few values for `confidence` give their whole range with the confidence that it has, 1 - 2**(1 - n).
    """
    return quantile_interval(values, 0.5, confidence)


def quantile_interval(values: Sequence[float], q: float, confidence: float = 0.95) -> tuple[float, float, float]:
    """Low, high and exact confidence of the quantile `q`, each side given half of what may go wrong."""
    ordered = sorted(_finite(values))
    n, tail = len(ordered), (1 - confidence) / 2
    # P(the k-th smallest lies above the quantile) = P(fewer than k of n fall below it).
    below = _binomial_cdf(n, q)
    low = max((k for k in range(1, n + 1) if below[k - 1] <= tail), default=1)
    high = min((k for k in range(1, n + 1) if 1 - below[k - 1] <= tail), default=n)
    return ordered[low - 1], ordered[high - 1], max(0.0, below[high - 1] - below[low - 1])


def required_samples(q: float, confidence: float = 0.99) -> int:
    """How many samples a percentile needs: enough that one lies beyond it with `confidence`.

    The binomial rule n = ceil(ln(1 - confidence) / ln(q)): 459 for p99, 44 for p90. Mirrored below one half.
    """
    if not 0 < q < 1:
        raise RecordError(f"a percentile lies between 0 and 1, not at {q}")
    return math.ceil(math.log(1 - confidence) / math.log(max(q, 1 - q)))


def percentile(values: Sequence[float], q: float) -> float:
    """The quantile `q`, interpolated linearly between order statistics.

    Raises RecordError "needs 459 samples, has 120" below `required_samples(q)`.
    """
    needed = required_samples(q)
    if len(values) < needed:
        raise RecordError(f"needs {needed} samples, has {len(values)}")
    ordered = sorted(_finite(values))
    at = q * (len(ordered) - 1)
    i = math.floor(at)
    return ordered[i] + (at - i) * (ordered[min(i + 1, len(ordered) - 1)] - ordered[i])


def summarise(values: Sequence[float], confidence: float = 0.95) -> Value:
    """Median of the samples with its interval; `Value.missing` on none."""
    if not values:
        return Value.none("no samples")
    low, high, reached = median_interval(values, confidence)
    return Value(median(values), low, high, samples=len(values), confidence=reached)


def percentile_value(values: Sequence[float], q: float, confidence: float = 0.95) -> Value:
    """The quantile `q` with its interval, or a Value that says how many samples it lacks."""
    try:
        estimate = percentile(values, q)
    except RecordError as error:
        return Value.none(str(error), samples=len(values))
    low, high, reached = quantile_interval(values, q, confidence)
    return Value(estimate, min(low, estimate), max(high, estimate), samples=len(values), confidence=reached)


def block_values(log_ratios_by_block: Sequence[Sequence[float]]) -> list[float]:
    """The sample of every duel: each block's median over its pairs. Blocks without pairs are left out."""
    return [median(block) for block in log_ratios_by_block if block]


def ratio_of(of: str, to: str, log_ratios_by_block: Sequence[Sequence[float]], confidence: float = 0.95) -> Ratio:
    """The ratio that the pairs of slices of each block show, given log(value[of] / value[to]) of each pair.

    From 6 blocks up: Hodges-Lehmann with signed-rank bounds over the block values. 2 to 5 blocks cannot reach
    95 %: their range, with the confidence that a range has, 1 - 2**(1 - n). One block: the same two rules
    over its pairs, so that the difference between processes is not in the interval. A single pair has no bounds.
    Raises RecordError without any pair.
    """
    blocks = [list(b) for b in log_ratios_by_block if b]
    if not blocks:
        raise RecordError("no pair was measured, or every one was dropped; measure again, longer or on an idle machine")
    values = _finite(blocks[0]) if len(blocks) == 1 else block_values(blocks)
    low = high = None
    reached = 0.0
    if _rank(len(values), (1 - confidence) / 2):
        (low, high), reached = signed_rank_bounds(values, (1 - confidence) / 2), confidence
    elif len(values) > 1:
        low, high, reached = min(values), max(values), 1 - 2.0 ** (1 - len(values))
    estimate, low, high = (None if x is None else _exp(x) for x in (hodges_lehmann(values), low, high))
    return Ratio(of, to, estimate, low, high, reached, len(blocks), sum(map(len, blocks)))


def supported_decimals(value: float, low: float | None, high: float | None, most: int = 4) -> int:
    """How many digits after the point the interval supports; negative: digits before it that are noise.

    The last digit shown is the first digit of the half width, or the next one while that first digit is 1 or
    2, so that rounding never adds more than a fifth of the uncertainty. Without bounds 3 significant digits
    are shown, with bounds that coincide 4, and never more than `most`.
    """
    magnitude = math.floor(math.log10(abs(value))) if value else 0
    if low is None or high is None or not (math.isfinite(low) and math.isfinite(high)):
        return 2 - magnitude
    half = (high - low) / 2
    if half <= 0:
        return 3 - magnitude
    lead = math.floor(math.log10(half))
    decimals = -lead + (1 if half / 10.0**lead < 3 else 0)
    return min(max(decimals, -magnitude), most - 1 - magnitude)


def _exp(x: float) -> float:
    try:
        return math.exp(x)
    except OverflowError:
        return math.inf


def _finite(values: Sequence[float]) -> list[float]:
    if not values:
        raise RecordError("no samples")
    wrong = [v for v in values if not math.isfinite(v)]
    if wrong:
        raise RecordError(f"{len(wrong)} of {len(values)} samples are not finite (first: {wrong[0]})")
    return list(values)


def _walsh(values: Sequence[float]) -> list[float]:
    return sorted((a + b) / 2 for i, a in enumerate(values) for b in values[i:])


@lru_cache(maxsize=64)
def signed_rank_counts(n: int) -> tuple[int, ...]:
    """How many of the 2**n equally likely sign patterns give each signed-rank sum 0..n(n+1)/2."""
    counts = [1] + [0] * (n * (n + 1) // 2)
    top = 0
    for rank in range(1, n + 1):
        top += rank
        for s in range(top, rank - 1, -1):
            counts[s] += counts[s - rank]
    return tuple(counts)


@lru_cache(maxsize=512)
def _rank(n: int, alpha: float) -> int:
    """Which Walsh average from either end is the one-sided bound; 0 when n values cannot reach alpha."""
    if n > _EXACT_UP_TO:
        mean, spread = n * (n + 1) / 4, math.sqrt(n * (n + 1) * (2 * n + 1) / 24)
        return max(0, math.floor(mean + statistics.NormalDist().inv_cdf(alpha) * spread + 0.5))
    total, allowed, k = 0, alpha * 2.0**n, 0
    for count in signed_rank_counts(n):
        total += count
        if total > allowed:
            break
        k += 1
    return k


def _binomial_cdf(n: int, q: float) -> list[float]:
    """P(at most k of n fall below the quantile q) for k = 0..n."""
    # By logarithms: 2**-n leaves the range of floats near n = 1000.
    log_q, log_p = math.log(q), math.log1p(-q)
    whole = math.lgamma(n + 1)
    terms = (
        math.exp(whole - math.lgamma(k + 1) - math.lgamma(n - k + 1) + k * log_q + (n - k) * log_p)
        for k in range(n + 1)
    )
    out: list[float] = []
    total = 0.0
    for term in terms:
        total += term
        out.append(min(total, 1.0))
    return out
