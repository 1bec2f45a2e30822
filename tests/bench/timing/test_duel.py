"""Taking turns, on fakes with known ratios."""

import math
import random
import statistics
from dataclasses import replace
from types import SimpleNamespace

import pytest

from bench.errors import WorkerError
from bench.timing import duel
from bench.timing.clock import Slice
from bench.timing.duel import (
    LEAST_ROUNDS,
    Rounds,
    SlicePlan,
    log_ratios,
    pairs_of,
    plan_slice,
    steady_rounds,
    switching_drop,
    take_turns,
)
from results.stats import ratio_of


def noisy_sides(ratio: float, seed: int) -> tuple[dict, random.Random]:
    """Two sides on one machine that slows down by half while they take turns, with 2 % noise."""
    rng = random.Random(seed)
    state = {"slow": 1.0}

    def side(seconds: float):
        def turn() -> Slice:
            state["slow"] *= 1.03
            return Slice(seconds * state["slow"] * math.exp(rng.gauss(0, 0.02)), 1)

        return turn

    return {"a": side(1.0), "b": side(ratio)}, rng


def test_pairs_recover_a_known_ratio_on_a_machine_that_drifts() -> None:
    estimates = []
    for seed in range(40):
        sides, rng = noisy_sides(1.10, seed)
        rounds = take_turns(sides, 8, rng)
        estimates.append(statistics.median(log_ratios(rounds, "b", "a")))
    assert statistics.mean(estimates) == pytest.approx(math.log(1.10), abs=0.01)


def test_the_interval_over_blocks_covers_the_truth_as_often_as_it_says() -> None:
    covered = 0
    for run in range(100):
        blocks = []
        for block in range(8):
            rng = random.Random(1000 * run + block)
            # Processes differ by 3 %: the part that iterations of one process never see.
            sides, turns_rng = noisy_sides(1.10 * math.exp(rng.gauss(0, 0.03)), 7 * run + block)
            blocks.append(log_ratios(take_turns(sides, 8, turns_rng), "b", "a"))
        found = ratio_of("b", "a", blocks)
        covered += found.low <= 1.10 <= found.high
    assert covered >= 88


def turns_in_order(order: list[str], seconds: float = 1.0, clock: list[float] | None = None) -> dict:
    """Three sides that write down whose turn it was."""

    def turn(name: str):
        def take() -> Slice:
            order.append(name)
            if clock is not None:
                clock[0] += seconds
            return Slice(seconds, 1)

        return take

    return {name: turn(name) for name in "abc"}


def test_the_order_of_turns_is_random_and_the_next_round_has_it_the_other_way_round() -> None:
    order: list[str] = []
    take_turns(turns_in_order(order), 60, random.Random(3))
    rounds = [order[i : i + 3] for i in range(0, 180, 3)]
    assert all(sorted(names) == ["a", "b", "c"] for names in rounds)
    assert all(second == first[::-1] for first, second in zip(rounds[::2], rounds[1::2], strict=True))
    assert len({tuple(names) for names in rounds[::2]}) == 6, "every order comes first"


@pytest.mark.parametrize(
    ("rounds", "taken"),
    [
        # A round is three seconds; the one that is begun in time is completed.
        (Rounds(30.0), 11),
        (Rounds(30.0, most=4), 4),
        (Rounds(0.0), LEAST_ROUNDS),
        (Rounds(0.0, least=5), 5),
        (Rounds.exactly(7), 7),
        (7, 7),
    ],
)
def test_rounds_are_taken_by_the_clock(rounds: Rounds | int, taken: int, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(duel, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    assert len(take_turns(turns_in_order([], 1.0, clock), rounds, random.Random(0))) == taken


def test_whose_turn_it_was_is_told_with_an_error() -> None:
    def dead() -> Slice:
        raise WorkerError("it died")

    with pytest.raises(WorkerError) as caught:
        take_turns({"a": lambda: Slice(1.0, 1), "b": dead}, 3, random.Random(0))
    assert caught.value.side == "b"


def test_work_that_slows_down_steadily_falls_on_both_sides_alike() -> None:
    """Each turn takes 1 % longer than the one before. Always the same side first would see half of it."""
    clock = [1.0]

    def turn() -> Slice:
        clock[0] *= 1.01
        return Slice(clock[0], 1)

    for seed in range(20):
        logs = log_ratios(take_turns({"a": turn, "b": turn}, 40, random.Random(seed)), "a", "b")
        assert statistics.median(logs) == pytest.approx(0.0, abs=1e-9)


def switching(first: float, seed: int, noise: float = 0.03) -> dict[str, int]:
    """What is found where the first step of a after b's takes so many times as long as the next."""
    rng = random.Random(seed)

    def run(factor: float):
        def steps(number: int) -> list[float]:
            assert number == 2
            return [0.01 * one * math.exp(rng.gauss(0, noise)) for one in (factor, 1.0)]

        return steps

    return switching_drop({"a": run(first), "b": run(1.0)}, {"a": 0.01, "b": 0.01})


def test_a_first_step_that_is_measurably_longer_is_dropped_and_noise_is_not_taken_for_it() -> None:
    found = [switching(1.15, seed) for seed in range(200)]
    assert sum(one["a"] for one in found) > 190
    alike = [*(one["b"] for one in found), *(one["a"] for one in (switching(1.0, seed) for seed in range(200)))]
    assert sum(alike) < 0.1 * len(alike)
    assert switching(1.15, 0, noise=0.0) == {"a": 1, "b": 0}
    assert switching(1.005, 0, noise=0.0) == {"a": 0, "b": 0}


def test_long_steps_and_one_side_alone_have_no_step_dropped() -> None:
    def never(number: int) -> list[float]:
        raise AssertionError("asked")

    assert switching_drop({"a": never, "b": never}, {"a": 0.06, "b": 0.06}) == {"a": 0, "b": 0}
    assert switching_drop({"a": never}, {"a": 0.001}) == {"a": 0}


def test_sides_with_different_batches_are_compared_per_image() -> None:
    rounds = [{"a": Slice(1.0, 1), "b": Slice(2.0, 1)}]
    assert log_ratios(rounds, "b", "a", {"a": 16, "b": 64}) == [pytest.approx(math.log(0.5))]


def test_a_throttled_slice_takes_its_whole_round_with_it() -> None:
    good = {"a": Slice(1.0, 1, clock_hertz=1e9), "b": Slice(1.0, 1, clock_hertz=8e8)}
    throttled = {**good, "b": replace(good["b"], throttled=True)}
    slow = {**good, "a": replace(good["a"], clock_hertz=0.94e9)}
    assert steady_rounds([good, throttled, good, slow, good]) == [good, good, good]


def test_two_sides_may_run_at_clocks_of_their_own() -> None:
    rounds = [{"a": Slice(1.0, 1, clock_hertz=1.9e9), "b": Slice(1.0, 1, clock_hertz=1.2e9)}] * 4
    assert steady_rounds(rounds) == rounds


def test_without_clocks_nothing_is_dropped() -> None:
    rounds = [{"a": Slice(1.0, 1)}] * 3
    assert steady_rounds(rounds) == rounds


@pytest.mark.parametrize(
    ("seconds", "device", "prefetch", "plan"),
    [
        (0.05, "cpu", 0, SlicePlan(1)),
        (2.0, "cpu", 0, SlicePlan(1)),
        # Changing sides would be most of the work.
        (0.0001, "cpu", 0, SlicePlan(40)),
        (0.0, "cpu", 0, SlicePlan(4_000_000)),
        # Its queue has to fill.
        (0.001, "cuda", 0, SlicePlan(30)),
        (0.05, "cuda", 0, SlicePlan(1)),
        # What a loader made ahead during the other side's turn is taken out untimed.
        (0.025, "cpu", 5, SlicePlan(12, 6)),
        (0.4, "cpu", 2, SlicePlan(1, 3)),
    ],
)
def test_a_turn_is_a_single_step_where_that_is_long_enough(
    seconds: float, device: str, prefetch: int, plan: SlicePlan
) -> None:
    assert plan_slice(seconds, device, prefetch) == plan


def test_a_step_to_drop_is_dropped() -> None:
    assert plan_slice(1.0, drop=1) == SlicePlan(1, 1)


def test_a_slowdown_of_every_fourth_step_is_in_the_pairs_of_many_rounds() -> None:
    rounds = [{"a": Slice(1.0, 1), "b": Slice(2.0 if number % 4 == 3 else 1.0, 1)} for number in range(96)]
    assert statistics.median(log_ratios(rounds, "b", "a")) == 0.0
    pairs = pairs_of(rounds)
    assert len(pairs) == 16
    assert {turns["a"].steps for turns in pairs} == {6}
    assert statistics.median(log_ratios(pairs, "b", "a")) == pytest.approx(math.log(1.25), abs=0.1)


def test_a_stall_spoils_one_pair_and_few_rounds_stay_as_they_are() -> None:
    rounds = [{"a": Slice(1.0, 1, (1.0,)), "b": Slice(1.0, 1, (1.0,))} for _ in range(70)]
    rounds[5] = {"a": Slice(1.0, 1, (1.0,)), "b": Slice(50.0, 1, (50.0,))}
    pairs = pairs_of(rounds)
    assert [round(ratio) for ratio in log_ratios(pairs, "b", "a")].count(0) == len(pairs) - 1
    assert pairs[0]["b"].samples == (1.0,) * 4
    assert pairs_of(rounds[:31]) == rounds[:31]
