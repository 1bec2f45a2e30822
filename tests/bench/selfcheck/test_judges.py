"""Each tool's rule on series whose answer is known."""

from collections.abc import Callable

import numpy as np
import pytest

from bench.errors import UsageError
from bench.selfcheck import judges
from bench.selfcheck.judges import RULES, Run, mann_whitney, repetitions, run_of
from bench.timing.clock import Slice


def run(mean: float = 0.01, count: int = 200, noise: float = 0.01, seed: int = 0, seconds: float = 2.0) -> Run:
    """Normal single times; the same seed gives the same ones."""
    times = mean * (1 + noise * np.random.default_rng(seed).standard_normal(count))
    return Run(times, seconds)


@pytest.mark.parametrize(
    ("rule", "silent", "fires"),
    [
        (judges.pytest_benchmark, 1.04, 1.06),
        (judges.asv_continuous, 1.08, 1.12),
        (judges.google_benchmark, 1.0, 1.02),
        (judges.criterion, 1.005, 1.03),
        (judges.alert, 1.95, 2.05),
    ],
)
def test_each_rule_fires_beyond_its_threshold_and_not_before(
    rule: Callable[[Run, Run], bool], silent: float, fires: float
) -> None:
    base, head = run(seed=1), run(seed=2)
    assert not rule(base, head.slowed(silent))
    assert rule(base, head.slowed(fires))
    assert not rule(head.slowed(fires), base), "faster is no regression"


def test_google_does_not_know_of_a_margin_and_asv_and_criterion_do() -> None:
    base, head = run(noise=0.001, seed=1), run(noise=0.001, seed=2).slowed(1.005)
    assert judges.google_benchmark(base, head)
    assert not judges.criterion(base, head)
    assert not judges.asv_continuous(base, head)


def test_asv_is_silent_beyond_its_factor_where_the_scatter_is_wide() -> None:
    base, head = run(count=8, noise=0.4, seed=3), run(count=8, noise=0.4, seed=4)
    head = Run(head.times * np.median(base.times) / np.median(head.times) * 1.2, 1.0)
    assert np.median(head.times) > 1.1 * np.median(base.times)
    assert not judges.asv_continuous(base, head)


def test_mann_whitney_gives_the_values_of_asv() -> None:
    # Computed with asv 0.6.6, asv._stats.mann_whitney_u: exact, exact with ties, normal.
    assert mann_whitney(np.array([1, 2, 3, 4, 5, 6, 7.0]), np.array([4.5, 6.5, 8, 9, 10, 11, 12])) == pytest.approx(
        0.006993006993007152
    )
    assert mann_whitney(np.array([1, 2, 2, 3, 4, 5, 6.0]), np.array([2, 5, 6, 7, 8, 9, 9.0])) == pytest.approx(
        0.05303030303030312
    )
    assert mann_whitney(np.arange(25.0), np.arange(25.0) + 6.5) == pytest.approx(0.006041816435766512)


def test_mann_whitney_refuses_samples_that_cannot_reach_its_p() -> None:
    with pytest.raises(UsageError, match="5 and 5"):
        mann_whitney(np.arange(5.0), np.arange(5.0))


def test_repetitions_are_nine_or_last_half_a_second() -> None:
    assert len(repetitions(run(seconds=2.0))) == 9
    assert len(repetitions(run(seconds=20.0))) == 40
    assert len(repetitions(run(count=5))) == 5
    assert repetitions(run()).mean() == pytest.approx(run().times.mean(), rel=1e-3)


def test_a_run_is_the_single_times_of_one_side_in_order() -> None:
    def turn(*samples: float) -> Slice:
        return Slice(sum(samples), len(samples), samples=samples)

    rounds = [{"base": turn(1.0, 2.0), "head": turn(9.0, 9.0)}, {"base": turn(3.0), "head": turn(9.0)}]
    found = run_of([rounds, rounds[:1]], "base")
    assert found.times.tolist() == [1.0, 2.0, 3.0, 1.0, 2.0]
    assert found.seconds == 9.0
    with pytest.raises(UsageError, match="no single times"):
        run_of([[{"base": Slice(1.0, 1), "head": Slice(1.0, 1)}]], "base")


def test_rules_have_names_of_their_own() -> None:
    assert len({rule.name for rule in RULES}) == len(RULES)
