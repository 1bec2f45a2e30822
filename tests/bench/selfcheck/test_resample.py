"""Our rule on fabricated traces whose answer is known; bounds against known values."""

import math
import random
from dataclasses import replace
from pathlib import Path

import pytest

from bench.errors import UsageError
from bench.selfcheck import report
from bench.selfcheck.judges import RULES
from bench.selfcheck.resample import (
    AS_USED,
    RANDOM,
    RECORDED,
    SAME_TIME,
    SWAPPED,
    Coverage,
    Draws,
    block_values,
    decide,
    judge,
    lower_bound,
    noise,
    outcome,
    tally_check,
    tally_intervals,
    tally_rules,
    upper_bound,
)
from bench.selfcheck.traces import Block, Header, Trace
from bench.timing.clock import Slice
from bench.timing.duel import Round
from results.verdict import CLEAN, IMPROVED, REGRESSED, UNSURE, Decision

INFERENCE = "inference/lenet@fp32-nchw-eager/b1/s32/c10/cpu"
LOADING = "loading/pil@float32-nhwc/b1/s32/d/cpu"


def trace(
    blocks: int = 100,
    noise: float = 0.003,
    ratio: float = 1.0,
    process: float = 0.0,
    seed: int = 0,
    load: str = "none",
    workloads: tuple[str, ...] = (INFERENCE,),
) -> Trace:
    """Blocks of 8 rounds; slices scatter by `noise`, processes by `process`, head takes `ratio` times as long."""
    rng = random.Random(seed)

    def rounds() -> tuple[Round, ...]:
        level = {"base": math.exp(rng.gauss(0, process)), "head": ratio * math.exp(rng.gauss(0, process))}

        def turn(side: str) -> Slice:
            samples = tuple(0.02 * level[side] * math.exp(rng.gauss(0, noise)) for _ in range(4))
            return Slice(sum(samples), 4, samples=samples)

        return tuple({side: turn(side) for side in ("base", "head")} for _ in range(8))

    header = Header("2026-01-01T00:00:00Z", {}, load, workloads, 0.15, 0.01, 8, 1, 0, "abc")
    made = tuple(Block(float(i), 10.0, 0.0, 0.001, tuple(rounds() for _ in workloads)) for i in range(blocks))
    return Trace(Path(f"{load}.json.gz"), header, made, 1, 0)


def test_the_bounds_are_those_of_clopper_and_pearson() -> None:
    # No hit: 1 - 0.05 ** (1 / n). One of ten, by the tables of the binomial distribution.
    assert upper_bound(0, 2000) == pytest.approx(1 - 0.05 ** (1 / 2000))
    assert upper_bound(0, 2000) < 0.002
    assert upper_bound(1, 10) == pytest.approx(0.39416, abs=1e-5)
    assert upper_bound(10, 10) == upper_bound(0, 0) == 1.0
    assert lower_bound(9, 10) == pytest.approx(1 - 0.39416, abs=1e-5)
    assert lower_bound(0, 10) == 0.0
    assert lower_bound(100, 100) == pytest.approx(0.05 ** (1 / 100))


def test_a_block_is_the_median_of_its_pairs_without_throttled_ones() -> None:
    def pair(head: float, throttled: bool = False) -> Round:
        return {"base": Slice(1.0, 1), "head": Slice(head, 1, throttled=throttled)}

    blocks = [[pair(1.1), pair(1.2), pair(1.3), pair(9.0, throttled=True)], [pair(2.0, throttled=True)]]
    assert block_values(blocks) == pytest.approx([math.log(1.2)])


def test_the_rule_stops_at_the_first_look_that_is_sure() -> None:
    quiet = [0.001 * (-1) ** i for i in range(32)]
    assert (decide(quiet, 0.02).verdict, decide(quiet, 0.02).blocks) == (CLEAN, 8)
    slow = [x + 0.05 for x in quiet]
    assert (decide(slow, 0.02).verdict, decide(slow, 0.02).blocks) == (REGRESSED, 8)
    wild = [(0.3 + 0.01 * i) * (-1) ** i for i in range(32)]
    assert (decide(wild, 0.02).verdict, decide(wild, 0.02).blocks) == (UNSURE, 32)


def test_a_check_that_may_look_once_only_decides_on_the_first_blocks() -> None:
    wild = [(0.3 + 0.01 * i) * (-1) ** i for i in range(32)]
    assert [decide(wild, 0.02, looks).blocks for looks in (1, 2, 3, 4)] == [8, 16, 24, 32]
    values = [0.05 + i * 1e-6 for i in range(66)]
    assert [len(Draws(values, 0.02, looks).disjoint(0.0)) for looks in (1, 4)] == [4, 3]
    noisy = trace(process=0.05)
    once, often = (tally_check(noisy, INFERENCE, 200, 0, levels=(0.05,), looks=looks)[0] for looks in (1, 4))
    assert once.used == 8 < often.used
    assert once.share(REGRESSED) < often.share(REGRESSED)


def test_noise_is_that_of_pairs_and_that_of_blocks() -> None:
    found = noise(trace(blocks=400, noise=0.02, process=0.03, ratio=1.01), INFERENCE)
    # A slice is the mean of four samples, a ratio has two sides, and eight pairs fall a little short by their median.
    assert found.pair == pytest.approx(0.02 / 2 * math.sqrt(2), rel=0.15)
    assert found.block == pytest.approx(0.03 * math.sqrt(2), rel=0.15)
    assert found.mean == pytest.approx(math.log(1.01), abs=0.01)
    assert found.pairs == 8


def test_equal_code_is_clean_and_slower_code_is_found() -> None:
    found = tally_check(trace(), INFERENCE, 300, 0)
    same, two, three, five, ten = (one for one in found if one.names == RANDOM)
    assert [(one.names, one.level) for one in found[5:]] == [(n, at) for n in (RECORDED, SWAPPED) for at in (0.0, 0.05)]
    assert same.share(CLEAN) == 1.0
    assert (same.alarms, same.better_alarms, same.used) == (0, 0, 8)
    assert same.bound == pytest.approx(1 - 0.05 ** (1 / 300))
    assert [one.level for one in (two, three, five, ten)] == [0.02, 0.03, 0.05, 0.10]
    for found in (three, five, ten):
        assert found.share(REGRESSED) == 1.0
        assert found.disjoint_regressed == found.disjoint


def test_disjoint_decisions_use_each_block_once() -> None:
    values = [0.0001 * (-1) ** i for i in range(100)]
    # 8 blocks a decision while 32 are left; a REGRESSED takes 16 with its confirmation.
    assert len(Draws(values, 0.02).disjoint(0.0)) == 9
    assert len(Draws(values, 0.02).disjoint(0.05)) == 5
    assert all(outcome(*pair) == REGRESSED for pair in Draws(values, 0.02).disjoint(0.05))


def test_an_alarm_that_its_confirmation_does_not_repeat_is_unsure() -> None:
    # Ten blocks of the trace are slower, as when a neighbour moved in for a while; the rest is not.
    values = [0.0001 * (-1) ** i + (0.05 if 40 <= i < 50 else 0.0) for i in range(120)]
    found = Draws(values, 0.02).disjoint(0.0)
    [(alarm, again)] = [pair for pair in found if pair[0].verdict == REGRESSED]
    assert again is not None
    assert again.verdict == CLEAN
    assert outcome(alarm, again) == UNSURE


@pytest.mark.parametrize("blocks", [64, 66, 90, 200])
def test_a_confirmation_shares_no_block_with_the_first_run(monkeypatch: pytest.MonkeyPatch, blocks: int) -> None:
    draws = Draws([0.0] * blocks, 0.02)
    seen: list[int] = []
    original = draws._stretch

    def stretch(start: int, rng: random.Random, shift: float, names: str) -> Decision:
        seen.append(start)
        return original(start, rng, shift, names)

    monkeypatch.setattr(draws, "_stretch", stretch)
    rng = random.Random(1)
    for _ in range(200):
        seen.clear()
        first, again = draws.draw(rng, 0.05)
        assert outcome(first, again) == REGRESSED
        assert 32 <= (seen[1] - seen[0]) % blocks <= blocks - 32


def test_sides_change_names_at_random_so_that_equal_code_is_as_often_faster_as_slower() -> None:
    """What one name has in excess stays in the mean and in decisions that keep the names, where it can be seen."""
    values = [0.03 + 0.0001 * i for i in range(70)]
    draws = Draws(values, 0.02)
    rng = random.Random(0)
    verdicts = [draws.draw(rng, 0.0)[0].verdict for _ in range(200)]
    assert verdicts.count(REGRESSED) < 12
    for names, verdict in ((RECORDED, REGRESSED), (SWAPPED, IMPROVED)):
        assert {outcome(*pair) for pair in draws.disjoint(0.0, names)} == {verdict}
        assert {outcome(*draws.draw(rng, 0.0, names)) for _ in range(20)} == {verdict}
    assert noise(trace(ratio=1.03), INFERENCE).mean == pytest.approx(math.log(1.03), abs=0.002)


def test_too_few_blocks_are_refused() -> None:
    with pytest.raises(
        UsageError, match="need 64 blocks, here are 63; record on, or judge with --looks 3, for which 48"
    ):
        Draws([0.0] * 63, 0.02)
    with pytest.raises(UsageError, match="need 16 blocks, here are 15; record on$"):
        Draws([0.0] * 15, 0.02, looks=1)
    with pytest.raises(UsageError, match=r"none\.json\.gz, inference/lenet"):
        tally_check(trace(blocks=3), INFERENCE, 10, 0)


def test_the_seed_fixes_every_draw() -> None:
    noisy = trace(process=0.03, noise=0.02)
    one, same, other = (tally_check(noisy, INFERENCE, 50, seed, levels=(0.03,)) for seed in (1, 1, 2))
    assert one == same
    assert one != other


def test_processes_that_differ_fool_the_others_and_not_ours() -> None:
    """Processes of equal code differ by 2 %, iterations by far less: the case that single times cannot see."""
    noisy = trace(process=0.02, blocks=200)
    same = tally_check(noisy, INFERENCE, 200, 0, levels=(0.0,))[0]
    assert same.verdicts.get(REGRESSED, 0) == 0
    found = {(one.rule, one.span): one for one in tally_rules(noisy, INFERENCE, same.used, 100, 0, levels=(0.0,))}
    google = found["google/benchmark U test 0.05", AS_USED]
    assert google.runs == 100
    assert google.found > 30
    assert found["criterion.rs, noise 1 %", AS_USED].found > 15
    assert found["github-action-benchmark 200 %", AS_USED].found == 0


def test_the_others_get_as_many_processes_as_they_use_or_as_we_do() -> None:
    found = tally_rules(trace(blocks=40), INFERENCE, 10.0, 1000, 0, levels=(0.0, 0.05))
    spans = {(one.rule, one.span): (one.processes, one.runs) for one in found}
    assert spans["pytest-benchmark mean:5%", AS_USED] == (1, 39)
    assert spans["asv continuous, factor 1.1", AS_USED] == (2, 37)
    assert spans["pytest-benchmark mean:5%", SAME_TIME] == (10, 21)
    # A trace too short for two spans as long as ours gives what it has.
    short = tally_rules(trace(blocks=20), INFERENCE, 24.0, 1000, 0, RULES[:1], levels=(0.0,))
    assert [(one.processes, one.runs) for one in short] == [(1, 19), (10, 1)]


def test_a_judgement_covers_each_workload_and_load_and_all_together() -> None:
    both = (INFERENCE, LOADING)
    traces = [trace(blocks=70, seed=s, load=load, workloads=both) for s, load in enumerate(("none", "core"))]
    found = judge(traces, 50, 0, rules=RULES[:2])
    kept = {(one.load, one.workload): one for one in found.ours if (one.level, one.names) == (0, SWAPPED)}
    same = {(one.load, one.workload): one for one in found.ours if (one.level, one.names) == (0, RANDOM)}
    assert set(kept) == set(same)
    assert set(same) == {(load, w) for load in ("none", "core") for w in both} | {
        (load, w) for load in ("none", "core", "all") for w in ("all of margin 2%", "all of margin 3%", "all")
    }
    assert [same["all", f"all of margin {m}%"].margin for m in (2, 3)] == [0.02, 0.03]
    assert same["all", "all"].decisions == 200
    # A loader's margin is 3 %, so +3 % lies on it.
    assert same["none", LOADING].verdicts == {CLEAN: 50}
    at_three = {one.workload: one for one in found.ours if one.level == 0.03 and one.load == "none"}
    assert {(one.load, one.workload) for one in found.intervals} == {
        (load, w) for load in ("none", "core") for w in both
    }
    assert at_three[INFERENCE].share(REGRESSED) > at_three[LOADING].share(REGRESSED)
    for format in report.FORMATS:
        text = report.report(found, format)
        assert "REGRESSED" in text or '"regressed"' in text
        assert INFERENCE in text
        assert "noise" in text.lower()
        assert "covered" in text
        assert "as recorded" in text


def test_levels_are_slowdowns_of_head() -> None:
    slower, faster, *_ = tally_check(trace(), INFERENCE, 50, 0, levels=(0.05, -0.05))
    assert slower.share(REGRESSED) == 1.0
    assert (faster.verdicts, faster.improved, faster.better_alarms) == ({IMPROVED: 50}, 50, 50)
    assert faster.to_json()["improved_bound"] == 1.0


def test_an_instrument_that_favours_a_side_shows_where_names_are_kept() -> None:
    found = {one.names: one for one in tally_check(trace(ratio=1.04), INFERENCE, 100, 0, levels=(0.0,))}
    assert found[RANDOM].regressed + found[RANDOM].improved <= 1
    assert (found[RECORDED].regressed, found[RECORDED].improved) == (100, 0)
    assert (found[SWAPPED].regressed, found[SWAPPED].improved) == (0, 100)
    assert found[SWAPPED].disjoint_regressed == 0 < found[RECORDED].disjoint_regressed


def test_a_run_that_errs_alone_is_in_the_tally_of_first_runs_only() -> None:
    # One side is slower in a sixth of the recording: first runs there are wrong, confirmations elsewhere are not.
    slow = trace(blocks=16, ratio=1.05)
    still = trace(blocks=80, seed=1)
    mixed = replace(still, blocks=(*still.blocks[:40], *slow.blocks, *still.blocks[40:]))
    tally = next(one for one in tally_check(mixed, INFERENCE, 300, 0, levels=(0.0,)) if one.names == RECORDED)
    assert tally.alarms > 0
    assert tally.regressed == 0


def test_intervals_of_comparisons_are_as_good_as_they_say() -> None:
    found = tally_intervals(trace(process=0.02), INFERENCE, 400, 0)
    assert [(one.names, one.size) for one in found] == [
        (n, size) for n in (RANDOM, RECORDED) for size in (6, 8, 10, 16)
    ]
    for one in found:
        assert one.intervals == (400 if one.names == RANDOM else 101 - one.size)
        if one.names == RANDOM:
            assert 0.92 < one.to_json()["coverage"] < 0.99
            assert one.wrong / one.intervals < 0.06
    widths = [one.width for one in found if one.names == RANDOM]
    assert widths == sorted(widths, reverse=True)
    assert found[3].found > found[0].found
    # Of quiet blocks every word is right.
    assert all((one.found, one.missed, one.wrong) == (one.intervals, 0, 0) for one in intervals_of(trace()))


def test_intervals_of_an_instrument_that_favours_a_side_miss_the_truth() -> None:
    drawn, kept = (
        [one for one in intervals_of(trace(ratio=1.04)) if one.names == names] for names in (RANDOM, RECORDED)
    )
    assert all(one.covered == 0 and one.wrong == one.intervals for one in kept)
    assert all(one.covered / one.intervals > 0.9 for one in drawn)
    # Where it favours head, a slowdown is called faster or the same.
    hidden = [one for one in intervals_of(trace(ratio=0.9)) if one.names == RECORDED]
    assert all(one.missed == one.intervals for one in hidden)


def intervals_of(trace: Trace) -> list[Coverage]:
    return tally_intervals(trace, INFERENCE, 100, 0)
