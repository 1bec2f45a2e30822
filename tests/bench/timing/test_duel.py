"""Taking turns, on fakes with known ratios."""

import math
import random
import statistics
from dataclasses import replace

import pytest

from bench.timing.clock import Slice
from bench.timing.duel import log_ratios, plan_slice, steady_rounds, take_turns
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


def test_the_order_of_turns_is_random_and_every_side_has_one_a_round() -> None:
    order: list[str] = []

    def turn(name: str):
        return lambda: (order.append(name), Slice(1.0, 1))[1]

    take_turns({"a": turn("a"), "b": turn("b"), "c": turn("c")}, 30, random.Random(3))
    rounds = [order[i : i + 3] for i in range(0, 90, 3)]
    assert all(sorted(names) == ["a", "b", "c"] for names in rounds)
    assert {names[0] for names in rounds} == {"a", "b", "c"}


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
    ("seconds", "prefetch", "steps", "drop"),
    [(0.001, 0, 250, 2), (0.05, 0, 5, 1), (1.0, 0, 1, 0), (0.05, 4, 5, 5), (1.0, 2, 1, 3)],
)
def test_slices_are_a_quarter_second_and_drop_what_a_pause_spoiled(
    seconds: float, prefetch: int, steps: int, drop: int
) -> None:
    planned = plan_slice(seconds, prefetch=prefetch)
    assert (planned.steps, planned.drop) == (steps, drop)
