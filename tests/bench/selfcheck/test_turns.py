"""The ways of taking turns side by side, on fake processes with known noise."""

import pytest
from fake_worker import Machine, keep_time, spawner
from workloads import workload_of

from bench.errors import UsageError
from bench.selfcheck import turns
from bench.timing.workload import Conditions

WORKLOAD = workload_of("inference", "lenet", "fp32-nchw-eager", 2, 32, 10)


def test_every_way_is_measured_and_less_time_between_steps_leaves_less_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's speed wanders by a percent with every turn, so what comes later differs more."""
    machine = Machine(drift=0.01)
    keep_time(machine, monkeypatch)
    monkeypatch.setattr(turns, "PAUSE_SECONDS", 0.0)
    spawn = spawner(machine, lambda side, workload: 0.05)
    monkeypatch.setattr(turns, "spawner", lambda threads: lambda name: spawn(name, {}))
    found = turns.measure(WORKLOAD, Conditions(threads=1), 5, 10.0, 0, lambda text: None)
    assert machine.alive == 0
    assert [noise.way for noise in found] == list(turns.WAYS)
    by_way = {noise.way: noise for noise in found}
    # Ten seconds have a fifth as many rounds of five steps as of single ones.
    assert by_way["together"].pairs == pytest.approx(5 * by_way["before"].pairs, rel=0.1)
    assert by_way["before"].deviation > by_way["together"].deviation > 0
    for format in ("text", "markdown", "json"):
        assert "3 steps, 2 untimed" in turns.report(found, 10.0, format) or format == "json"


def test_tasks_of_which_nothing_is_known_are_refused() -> None:
    assert [w.task for w in turns.chosen(["training", "end_to_end"], "cpu", "sample")] == ["training", "end_to_end"]
    with pytest.raises(UsageError, match="no turns are measured of 'flying'"):
        turns.chosen(["flying"], "cpu", "sample")
