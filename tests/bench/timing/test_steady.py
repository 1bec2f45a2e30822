"""Warming up on fabricated times, steps made slower, and waiting for rest."""

import random
import statistics
from collections.abc import Callable, Iterable, Iterator
from itertools import repeat
from pathlib import Path
from types import SimpleNamespace

import pytest

from bench.timing import steady
from bench.timing.steady import settle, slowed, warm_up


class Ticking:
    """A clock on which each step takes what the list says."""

    def __init__(self, durations: Iterable[float]) -> None:
        self.now, self.durations, self.steps = 0.0, iter(durations), 0

    def __call__(self) -> float:
        return self.now

    def step(self) -> None:
        self.steps += 1
        self.now += next(self.durations)


def test_warm_up_ends_when_three_slices_agree() -> None:
    clock = Ticking([9.0, 5.0, 1.0, 1.005, 1.0, 77.0])
    assert warm_up(clock.step, clock, cap=100.0) == (pytest.approx(1.0), True)
    assert next(clock.durations) == 77.0


def test_warm_up_ends_at_its_cap_and_says_so() -> None:
    clock = Ticking([4.0, 3.0, 2.0, 1.0])
    assert warm_up(clock.step, clock, cap=8.0) == (3.0, False)


def noisy(trend: Callable[[int], float], noise: float, seed: int) -> Iterator[float]:
    """Seconds of step after step."""
    rng = random.Random(seed)
    number = 0
    while True:
        yield trend(number) * (1 + rng.uniform(-noise, noise))
        number += 1


def test_noise_alone_does_not_prolong_a_warm_up() -> None:
    """Three slices of a step with 20 % of noise hardly ever agree within 1 %."""
    counts = []
    for seed in range(200):
        clock = Ticking(noisy(lambda number: 1.0, 0.2, seed))
        assert warm_up(clock.step, clock, cap=1000.0)[1]
        counts.append(clock.steps)
    assert statistics.median(counts) <= 5
    assert max(counts) <= 15


@pytest.mark.parametrize("noise", [0.0, 0.01])
def test_what_still_gets_faster_is_warmed_up_further(noise: float) -> None:
    """As compiled code, clocks and page faults do: 4 % faster from slice to slice, for twenty slices."""
    for seed in range(100):
        clock = Ticking(noisy(lambda number: 0.96 ** min(number, 20), noise, seed))
        seconds, stable = warm_up(clock.step, clock, cap=1000.0)
        assert stable
        assert clock.steps > 20
        assert seconds == pytest.approx(0.96**20, rel=0.05)


def test_a_slice_has_a_tenth_of_a_second_and_what_a_loader_holds_ready() -> None:
    clock = Ticking(repeat(0.001))
    warm_up(clock.step, clock, cap=10.0)
    assert clock.steps == 1 + 100 + 100
    clock = Ticking(repeat(0.02))
    warm_up(clock.step, clock, cap=10.0, least=9)
    assert clock.steps == 3 * 9


def test_a_slowed_step_goes_on_for_a_share_of_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Ticking([1.0, 3.0])

    def tick() -> float:
        clock.now += 0.001
        return clock.now

    monkeypatch.setattr(steady, "time", SimpleNamespace(perf_counter=tick))
    call = slowed(clock.step, 0.05, "cpu")
    for seconds in (1.0, 3.0):
        begin = clock.now
        call()
        assert clock.now - begin == pytest.approx(1.05 * seconds, abs=0.01)


def test_on_a_gpu_every_twentieth_step_is_done_twice() -> None:
    clock = Ticking(repeat(1.0))
    call = slowed(clock.step, 0.05, "cuda")
    for _ in range(40):
        call()
    assert clock.steps == 42


class Machine:
    """A process that computes in windows of 2 ms as the list says, and then rests."""

    def __init__(self, busy: list[float]) -> None:
        self.now = self.used = 0.0
        self.busy = iter(busy)

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.used += next(self.busy, 0.0)

    def settled(self, monkeypatch: pytest.MonkeyPatch, nothing: Path, limit: float = 3.0) -> float:
        clock = {"perf_counter": lambda: self.now, "process_time": lambda: self.used, "sleep": self.sleep}
        monkeypatch.setattr(steady, "time", SimpleNamespace(**clock))
        return settle(limit, nothing)


@pytest.mark.parametrize(
    ("busy", "windows"),
    [
        ([], 2),
        ([0.002] * 10, 12),
        # On a busy machine what still runs may not get a core within a window.
        ([0.002, 0.0, 0.002, 0.0, 0.002], 7),
        # A fifth of a window is rest.
        ([0.0004] * 50, 2),
    ],
)
def test_settling_waits_until_two_windows_are_quiet(
    busy: list[float], windows: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert Machine(busy).settled(monkeypatch, tmp_path) == pytest.approx(0.002 * windows)


def test_settling_gives_up_at_its_limit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert Machine([0.002] * 10_000).settled(monkeypatch, tmp_path, limit=0.1) == pytest.approx(0.1, abs=0.003)


def test_settling_waits_for_what_the_process_started_in_windows_that_its_ticks_allow(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "self" / "task" / "1").mkdir(parents=True)
    (tmp_path / "self" / "task" / "1" / "children").write_text("77")
    (tmp_path / "77").mkdir()

    class Loading(Machine):
        ticks = 0

        def sleep(self, seconds: float) -> None:
            assert seconds == 0.02
            self.now += seconds
            self.ticks += int(next(self.busy, 0))
            (tmp_path / "77" / "stat").write_text(f"77 (w) S {'0 ' * 10}{self.ticks} 0 0 0 0")

    assert Loading([2, 1, 2]).settled(monkeypatch, tmp_path) == pytest.approx(0.02 * 5)
