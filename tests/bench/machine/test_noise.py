"""The noise of made-up pairs, and whether what is said to be visible is what comparisons of them scatter by."""

import math
import random
import statistics

import pytest

from bench.machine.noise import BLOCK_SECONDS, Noise


def pairs(rng: random.Random, within: float, between: float, blocks: int, each: int) -> list[list[float]]:
    return [
        [rng.gauss(offset, within) for _ in range(each)] for offset in (rng.gauss(0, between) for _ in range(blocks))
    ]


@pytest.mark.parametrize(("within", "between"), [(0.05, 0.0), (0.02, 0.03)])
def test_both_parts_are_found_again(within: float, between: float) -> None:
    found = Noise.of("w", pairs(random.Random(1), within, between, 200, 50), 0.01)
    assert found.within == pytest.approx(within, rel=0.1)
    assert found.between == pytest.approx(between, rel=0.2, abs=0.003)
    assert (found.blocks, found.pairs) == (200, 10_000)


def test_what_can_be_seen_is_what_comparisons_scatter_by() -> None:
    noise = Noise("w", 0.05, 0.01, 0.05, 6, 100)
    turns = 30.0
    blocks = round(turns / BLOCK_SECONDS)
    rng = random.Random(2)
    estimates = [
        statistics.mean(map(statistics.median, pairs(rng, 0.05, 0.01, blocks, round(turns / 0.05 / blocks))))
        for _ in range(400)
    ]
    assert math.log1p(noise.visible(60)) == pytest.approx(1.96 * statistics.stdev(estimates), rel=0.15)


def test_noise_falls_with_the_root_of_the_time_and_not_below_what_so_few_processes_differ_by() -> None:
    noise = Noise("w", 0.02, 0.01, 0.01, 6, 600)
    assert noise.visible(60) / noise.visible(6000) == pytest.approx(10, rel=0.02)
    assert noise.visible(1e-3 * 60) > noise.visible(60)
    few = Noise("w", 0.0, 0.01, 0.01, 6, 600)
    assert few.visible(1) == few.visible(30) == pytest.approx(math.expm1(1.96 * 0.01 / math.sqrt(6)))


def test_one_stalled_pair_changes_nothing() -> None:
    blocks = pairs(random.Random(3), 0.02, 0.0, 6, 50)
    calm = Noise.of("w", blocks, 0.01)
    blocks[0][0] = 3.0
    assert Noise.of("w", blocks, 0.01).visible(180) == pytest.approx(calm.visible(180), rel=0.1)
