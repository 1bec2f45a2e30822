"""Other tools' rules for "slower than before", each with its own constants, on the same times as ours.

They time one process of the old code, then one of the new, and look at single times or repetitions. A rule here takes
both sides' times and says whether it would fail a build. Where a tool only prints, the rule is what its documentation
calls a regression. Each docstring names the source it follows; the code is ours.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.errors import UsageError
from bench.timing.duel import Round
from results.stats import rank_sum_counts

Times = NDArray[np.float64]


@dataclass(frozen=True)
class Run:
    """What a tool measures of one side.

    Attributes:
        times: seconds a step, in the order they were taken [samples].
        seconds: their sum.
    """

    times: Times
    seconds: float

    def slowed(self, factor: float) -> "Run":
        """The same for code that takes `factor` times as long."""
        return Run(self.times * factor, self.seconds * factor)


@dataclass(frozen=True)
class Rule:
    """One tool's rule.

    Attributes:
        name: as tables show it.
        slower: (base, head) -> whether it would call head a regression.
        processes: how many of a side the tool times by default.
    """

    name: str
    slower: Callable[[Run, Run], bool]
    processes: int = 1


def run_of(blocks: Sequence[Sequence[Round]], side: str) -> Run:
    """One side's single times of some blocks, one process after another.

    Raises:
        UsageError: no single times were recorded.
    """
    turns = [turns[side] for rounds in blocks for turns in rounds if turns[side].samples]
    if not turns:
        raise UsageError("the trace holds no single times, which other tools' rules need; record it with samples")
    return Run(np.array([time for turn in turns for time in turn.samples]), sum(turn.seconds for turn in turns))


PERCENT = 5


def pytest_benchmark(base: Run, head: Run) -> bool:
    """`--benchmark-compare-fail=mean:5%`: the mean of all rounds is more than 5 % above the stored one.

    pytest-benchmark's own parser and PercentageRegressionCheck (pytest_benchmark/utils.py, 5.3) decide; a round is a
    single time here, as it is there for anything that takes longer than the timer's resolution.
    """
    from pytest_benchmark.utils import parse_compare_fail

    check = parse_compare_fail(f"mean:{PERCENT}%")  # type: ignore[no-untyped-call]
    return check.fails({"mean": float(head.times.mean())}, {"mean": float(base.times.mean())}) is not None


ASV_FACTOR = 1.1
ASV_P = 0.002


def asv_continuous(base: Run, head: Run) -> bool:
    """`asv continuous`: medians differ by more than the factor 1.1, and a Mann-Whitney test says p < 0.002.

    After asv/commands/compare.py (_is_result_better) and asv/_stats.py (is_different, mann_whitney_u), asv 0.6: a
    result is the median of its samples; factor and p are its defaults, both with `--factor` and without.
    """
    if np.median(base.times) >= np.median(head.times) / ASV_FACTOR:
        return False
    return mann_whitney(base.times, head.times) < ASV_P


def mann_whitney(x: Times, y: Times) -> float:
    """Two-sided p of the Mann-Whitney test as asv computes it: ties broken towards no difference.

    Exact up to 20 samples a side, else normal without a correction for continuity (asv/_stats.py).

    Raises:
        UsageError: so few samples that p < 0.002 is out of reach, where asv looks at intervals instead.
    """
    m, n = len(x), len(y)
    if 1 / math.comb(m + n, min(m, n)) >= ASV_P:
        raise UsageError(f"asv's test needs more than {m} and {n} single times; record more rounds with samples")
    ordered = np.sort(y)
    below = np.searchsorted(ordered, x, "left")
    u = int(below.sum())
    ties = int((np.searchsorted(ordered, x, "right") - below).sum())
    centre = m * n // 2
    # Somewhere between u and u + ties lies the value that is nearest to the middle.
    nearest = centre if u <= centre <= u + ties else min((u, u + ties), key=lambda value: abs(value - m * n / 2))
    tail = min(nearest, m * n - nearest)
    if max(m, n) > 20:
        z = (tail - m * n / 2) / math.sqrt(m * n * (m + n + 1) / 12)
        return math.erfc(-z / math.sqrt(2))
    counts = rank_sum_counts(m, n)
    whole = sum(counts)
    return min(1.0, 2 * sum(counts[: tail + 1]) / whole) if tail < centre else 1.0


GOOGLE_ALPHA = 0.05
GOOGLE_REPETITIONS = 9
GOOGLE_SECONDS = 0.5


def google_benchmark(base: Run, head: Run) -> bool:
    """compare.py's U test: two-sided Mann-Whitney p < 0.05 over repetitions, and the median went up.

    After tools/gbench/report.py of google/benchmark (calc_utest with scipy's mannwhitneyu, utest_alpha 0.05, "9+
    repetitions recommended"). A repetition is at least 0.5 s of steps (--benchmark_min_time); where there is not
    enough time for nine of these, there are nine shorter ones.
    """
    from scipy.stats import mannwhitneyu

    old, new = (repetitions(run) for run in (base, head))
    p = mannwhitneyu(old, new, alternative="two-sided").pvalue
    return bool(p < GOOGLE_ALPHA and np.median(new) > np.median(old))


def repetitions(run: Run) -> Times:
    """Means of consecutive stretches of a run [repetitions]."""
    count = max(GOOGLE_REPETITIONS, int(run.seconds / GOOGLE_SECONDS))
    return grouped(run.times, count)


def grouped(times: Times, count: int) -> Times:
    """Means of `count` consecutive groups, nearly equal in size; of single times where there are fewer [count]."""
    return np.array([group.mean() for group in np.array_split(times, min(count, len(times)))])


CRITERION_SAMPLES = 100
CRITERION_P = 0.05
CRITERION_NOISE = 0.01
CRITERION_CONFIDENCE = 0.95
RESAMPLES = 1000


def criterion(base: Run, head: Run) -> bool:
    """criterion.rs: bootstrapped t test p < 0.05, then the interval of the change of the mean lies above +1 %.

    After src/analysis/compare.rs and src/report.rs of criterion.rs 0.5 with its defaults: 100 samples, significance
    level 0.05, noise threshold 0.01, confidence 95 %. Its 100,000 resamples are 1,000 here, which moves a p near 0.05
    by 0.007. The t test resamples both sides from all samples together, the change resamples each side from its own.
    """
    old, new = (grouped(run.times, CRITERION_SAMPLES) for run in (base, head))
    rng = np.random.default_rng(0)
    pool = np.concatenate([new, old])
    drawn = pool[rng.integers(0, len(pool), (RESAMPLES, len(pool)))]
    observed = welch(new, old)
    hits = int((welch(drawn[:, : len(new)], drawn[:, len(new) :]) < observed).sum())
    p = 2 * min(hits, RESAMPLES - hits) / RESAMPLES
    if p >= CRITERION_P:
        return False
    means = [x[rng.integers(0, len(x), (RESAMPLES, len(x)))].mean(axis=1) for x in (new, old)]
    low = np.quantile(means[0] / means[1] - 1, (1 - CRITERION_CONFIDENCE) / 2)
    return bool(low > CRITERION_NOISE)


def welch(a: Times, b: Times) -> Any:
    """t of the last axis: difference of means over the root of the sum of their squared errors."""
    spread = a.var(axis=-1, ddof=1) / a.shape[-1] + b.var(axis=-1, ddof=1) / b.shape[-1]
    return (a.mean(axis=-1) - b.mean(axis=-1)) / np.sqrt(np.maximum(spread, np.finfo(np.float64).tiny))


ALERT = 2.0


def alert(base: Run, head: Run) -> bool:
    """github-action-benchmark: worse than before by more than its default alert-threshold of 200 %.

    After src/write.ts (findAlerts: ratio > threshold). Of pytest's files it takes operations a second, the inverse of
    the mean, so that the ratio is that of mean times.
    """
    return bool(head.times.mean() / base.times.mean() > ALERT)


RULES = (
    Rule("pytest-benchmark mean:5%", pytest_benchmark),
    Rule("asv continuous, factor 1.1", asv_continuous, processes=2),
    Rule("google/benchmark U test 0.05", google_benchmark),
    Rule("criterion.rs, noise 1 %", criterion),
    Rule("github-action-benchmark 200 %", alert),
)
