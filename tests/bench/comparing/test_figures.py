"""From what was measured to a row: memory, compilation, ceilings, and what disturbed the turns."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from workloads import workload_of

from bench.comparing import figures
from bench.comparing.figures import Figures, Parity, Sample, best_ceilings, load_of
from bench.comparing.operands import Operand
from bench.comparing.plan import Group, Settings
from bench.machine.cpu import Load
from bench.timing.clock import Slice
from models.configuration import Choice
from results.record import Metric
from results.verdict import sentence

SETTINGS = Settings("cpu", 32, 16, 0, 0, "synthetic", 1, 0, 0, "data")
NAME = "inference_peak_bytes"


@pytest.mark.parametrize(
    ("parity", "words"),
    [
        (Parity(0.0003, 8, 8, of="a"), "logits lie 0.0003 of their spread from a's in plain fp32"),
        (Parity(1.4, 0, 8, of="a"), "has other weights than a, so their logits are not comparable"),
        (Parity(float("nan"), 0, 8, of="a"), "has other weights than a"),
        (Parity(0.0, 8, 8, "all its logits are the same", "a"), "not comparable with a's: all its logits are the same"),
    ],
)
def test_logits_of_a_file_are_never_called_those_of_another_network(parity: Parity, words: str) -> None:
    assert words in parity.text


@pytest.mark.parametrize(
    ("samples", "expected"), [([4.0], 4.0), ([1.0, 4.0], 2.0), ([9.0, 4.0, 1.0], 4.0), ([0.0, 4.0], 2.0)]
)
def test_the_middle_of_rates_is_that_of_times(samples: list[float], expected: float) -> None:
    assert figures.middle(samples) == pytest.approx(expected)


def test_of_two_turns_a_ratio_is_the_quotient_of_what_stands_beside_it() -> None:
    first, second = [9.0, 4.0], [1.0, 25.0]
    logs = [[math.log(a / b) for a, b in zip(first, second, strict=True)]]
    ratio = figures.over_blocks("first", "second", logs)
    assert ratio is not None
    values = [figures.value_over([each]).median for each in (first, second)]
    assert ratio.estimate == pytest.approx(values[0] / values[1])


def counted(peak: int, processes: Sequence[int] = (9000,)) -> dict[str, Any]:
    return {
        **{"weights": 1000, "inputs": 0, "workspace": peak - 1000, "engine": 0},
        **{"peak": peak, "counted": True, "peaks": []},
        **{"process": processes[0], "processes": list(processes), "residue": processes[0] - peak},
    }


def measured(*peaks: int) -> dict[str, Any]:
    return {**counted(sorted(peaks)[len(peaks) // 2]), "counted": False, "peaks": list(peaks)}


def peak_of(a: list[dict[str, Any]], b: list[dict[str, Any]]) -> Metric:
    workload = workload_of("inference", "lenet", "fp32-nchw-eager", 32, 32, 10)
    operands = [Operand(label, "lenet", Choice("fast")) for label in "ab"]
    group = Group("inference", {"a": (workload,), "b": (workload,)}, (NAME,))
    sample = Sample(memory={"a": a, "b": b})  # type: ignore[arg-type]
    [metric] = Figures(operands, SETTINGS, [group], {"inference": sample}, {}, {}).of_group(group)
    return metric


@pytest.mark.parametrize(
    ("bytes_of_b", "verdict"), [(100_000, "same"), (100_900, "same"), (101_100, "worse"), (98_900, "better")]
)
def test_counts_are_judged_at_a_hundredth_and_have_no_interval(bytes_of_b: int, verdict: str) -> None:
    metric = peak_of([counted(100_000)], [counted(bytes_of_b)])
    assert metric.verdict == verdict
    assert metric.ratio is not None
    assert metric.ratio.counted
    assert metric.values["b"].confidence == 1.0
    assert "measured" not in sentence(metric)
    assert not metric.one_reading


def test_the_process_is_a_range_over_all_blocks_beside_the_count() -> None:
    blocks = [counted(100_000, (9 << 30, 8 << 30)), counted(100_000, (7 << 30,))]
    metric = peak_of(blocks, blocks)
    assert metric.verdict == "same"
    assert metric.memory["a"]["processes"] == [9 << 30, 8 << 30, 7 << 30]
    assert metric.memory["a"]["process"] == 8 << 30
    assert "the process holds 8.00 GiB with its libraries (7.00 GiB to 9.00 GiB in 3 readings)" in metric.notes[0]


def test_what_is_measured_has_an_interval_and_is_never_judged_as_a_count() -> None:
    blocks = [measured(100_900, 101_000, 102_000), measured(102_000), measured(104_000)]
    metric = peak_of([counted(100_000)] * 3, blocks)
    value = metric.values["b"]
    assert (value.median, value.low, value.high, value.samples) == (102_000, 101_000, 104_000, 3)
    assert value.confidence == pytest.approx(0.75)
    assert metric.ratio is not None
    assert not metric.ratio.counted
    assert metric.ratio.low == pytest.approx(1.01)
    assert metric.ratio.high == pytest.approx(1.04)
    assert metric.verdict == "unsure"
    larger = [measured(201_000 + 1000 * number) for number in range(6)]
    assert peak_of([counted(100_000)] * 6, larger).verdict == "worse"
    alone = peak_of([counted(100_000)], [measured(201_000, 202_000, 203_000)])
    assert (alone.values["b"].low, alone.verdict) == (None, "unsure"), "one process says nothing of the next"
    assert alone.ratio is not None
    assert (alone.ratio.estimate, alone.ratio.low) == (pytest.approx(2.02, rel=1e-3), None)


def test_counts_that_differ_between_processes_are_measured() -> None:
    metric = peak_of([counted(100_000)] * 2, [counted(100_000), counted(110_000)])
    assert metric.values["a"].confidence == 1.0
    assert metric.values["b"].low == 100_000
    assert metric.values["b"].high == 110_000
    assert metric.verdict == "unsure"


def test_no_figure_has_its_reason_and_one_block_is_enough() -> None:
    metric = peak_of([counted(100_000)], [{"missing": "out of sight"}])
    assert metric.values["b"].missing == "out of sight"
    assert metric.ratio is None
    assert [note[:2] for note in metric.notes] == ["a:"]
    metric = peak_of([counted(100_000)] * 2, [{"missing": "out of sight"}, counted(100_000)])
    assert metric.values["b"].median == 100_000


def test_one_reading_of_an_interrupted_older_run_is_measured_again() -> None:
    state = {**Sample(memory={"a": [counted(1)]}).to_json()}
    assert Sample.from_json(state).memory == {"a": [counted(1)]}
    assert Sample.from_json({**state, "memory": {"a": counted(1)}}).memory == {}


def compilation(a: list[tuple[float, str]], b: list[tuple[float, str]]) -> Metric:
    operands = [Operand(label, "lenet", Choice("fast")) for label in "ab"]
    samples = {"inference": Sample(compile={"a": a, "b": b}), "latency": Sample(compile={"a": [(0.0, "none")]})}
    metrics = Figures(operands, SETTINGS, [], samples, {}, {}).summary()
    return next(metric for metric in metrics if metric.name == "compile_seconds")


def test_compiling_in_every_block_has_an_interval_and_the_cold_one_apart() -> None:
    warm = [(seconds, "warm") for seconds in (2.0, 2.1, 2.2, 2.3, 2.4, 2.5)]
    metric = compilation([(46.0, "cold"), *warm], [(30.0, "cold"), *((2 * s, "warm") for s, _ in warm)])
    value = metric.values["a"]
    assert value.median == pytest.approx(2.25)
    assert (value.low, value.high, value.samples) == (2.0, 2.5, 6)
    assert metric.notes[0] == "a: first: 46.0 s, cold cache; then warm cache"
    assert metric.ratio is not None
    assert metric.ratio.low == pytest.approx(2.0)
    assert (metric.ratio.blocks, metric.verdict) == (6, "worse")


def test_a_first_one_that_found_the_cache_warm_counts_like_the_others() -> None:
    metric = compilation([(2.0, "warm"), (3.0, "warm")], [(2.0, "warm"), (3.0, "warm")])
    assert metric.values["a"].samples == 2
    assert metric.notes[0] == "a: warm cache"


@pytest.mark.parametrize("others", [[], [(2.0, "warm")]])
def test_compiling_once_has_no_interval_and_no_verdict(others: list[tuple[float, str]]) -> None:
    metric = compilation([(46.0, "cold"), *others], [(20.0, "cold"), *others])
    assert metric.values["a"].median == 46.0
    assert (metric.values["a"].low, metric.values["a"].samples) == (None, 1)
    assert metric.notes[0] == "a: cold cache"
    assert metric.ratio is not None
    assert metric.ratio.low is None
    assert metric.verdict == "unsure"


def test_what_is_not_compiled_takes_no_time() -> None:
    metric = compilation([(0.0, "none")], [(0.0, "none")] * 3)
    assert [value.median for value in metric.values.values()] == [0.0, 0.0]
    assert metric.ratio is None
    assert metric.notes[0] == "a: nothing to compile"


def test_the_best_ceilings_keep_every_reading() -> None:
    first = {"precision": "bf16", "flops": 5.0, "bandwidth": 2.0, "readings": ()}
    best = best_ceilings({**first, "flops": 4.0, "bandwidth": 3.0}, best_ceilings(first))
    assert best == {"precision": "bf16", "flops": 5.0, "bandwidth": 3.0, "readings": [[5.0, 2.0], [4.0, 3.0]]}


def turns(*seconds: float) -> list[Mapping[str, Slice]]:
    return [{"a|inference": Slice(2 * one, 2), "b|inference": Slice(1.0, 1)} for one in seconds]


def test_a_bad_moment_is_counted_within_each_block() -> None:
    samples = {
        # A slower second block is no stall.
        "inference": Sample(blocks=[turns(1, 1, 1, 5.5), turns(6, 6, 6, 6)], load=[Load(0.1, 0.0), Load(0.3, 0.2)]),
        "training": Sample(blocks=[turns(1, 1, 4.9)], load=[Load(0.12, 0.03)]),
    }
    assert load_of(samples) == {"foreign": 0.12, "stolen": 0.03, "stalls": 1, "turns": 22}
    assert load_of({}) == {"foreign": None, "stolen": None, "stalls": 0, "turns": 0}


def test_a_count_stands_beside_every_blocks_reading_of_the_other() -> None:
    measured = [[110.0], [112.0], [108.0], [111.0], [109.0], [110.0]]
    ratio = figures._peak_ratio("engine", "torch", {"engine": measured, "torch": [[100.0]]})
    assert ratio is not None
    assert ratio.blocks == 6
    assert (ratio.low, ratio.estimate, ratio.high) == pytest.approx((1.08, 1.1, 1.12))
