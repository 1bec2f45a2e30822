"""From what was measured of memory to a row: counted, measured, or why there is none."""

from collections.abc import Sequence
from typing import Any

import pytest
from workloads import workload_of

from bench.comparing.figures import Figures, Sample
from bench.comparing.operands import Operand
from bench.comparing.plan import Group, Settings
from models.configuration import Choice
from results.record import Metric
from results.verdict import sentence

SETTINGS = Settings("cpu", 32, 16, 0, 0, "synthetic", 1, 0, 0, "data")
NAME = "inference_peak_bytes"


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
    metric = peak_of([counted(100_000)], [measured(101_000, 102_000, 104_000)])
    value = metric.values["b"]
    assert (value.median, value.low, value.high, value.samples) == (102_000, 101_000, 104_000, 3)
    assert value.confidence == pytest.approx(0.75)
    assert metric.ratio is not None
    assert not metric.ratio.counted
    assert metric.ratio.low == pytest.approx(1.01)
    assert metric.ratio.high == pytest.approx(1.04)
    assert metric.verdict == "unsure"
    assert peak_of([counted(100_000)], [measured(201_000, 202_000, 203_000)]).verdict == "worse"


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
