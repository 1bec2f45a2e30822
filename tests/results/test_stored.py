"""Stored results beside one another."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from results import store
from results.errors import RecordError
from results.record import Metric, Record, Value
from results.stored import compare_files


def record(
    rate: float, device: str = "fake", operands: tuple[str, ...] = ("resnet34",), spread: float = 0.01
) -> Record:
    values = {
        operand: Value(rate * (i + 1), rate * (i + 1) * (1 - spread), rate * (i + 1) * (1 + spread), 8, confidence=0.95)
        for i, operand in enumerate(operands)
    }
    params = {operand: Value.counted(1000) for operand in operands}
    return Record(
        "compare",
        "2026-01-01T00:00:00+00:00",
        "bench compare",
        None,
        {"fingerprint": {"device": device}},
        operands,
        (Metric.named("params", params), Metric.named("inference_throughput", values, batch=32)),
    )


def stored(folder: Path, *records: Any) -> list[Path]:
    return [store.save(r, folder / f"{chr(ord('a') + i)}.json") for i, r in enumerate(records)]


def test_two_runs_of_one_machine(tmp_path: Path) -> None:
    found = compare_files(stored(tmp_path, record(100.0), record(120.0)), across=False)
    assert found.operands == ("a", "b")
    metric = found.metric("inference_throughput")
    assert metric is not None
    assert metric.ratio is not None
    assert metric.ratio.estimate == pytest.approx(1.2)
    # Nothing was paired, so the bounds are the far ends of both intervals.
    assert metric.ratio.low == pytest.approx(1.2 * 0.99 / 1.01)
    assert metric.ratio.high == pytest.approx(1.2 * 1.01 / 0.99)
    assert metric.verdict == "better"
    assert found.metric("params").ratio.estimate == 1.0  # type: ignore[union-attr]


def test_overlapping_runs_are_not_called_different(tmp_path: Path) -> None:
    found = compare_files(stored(tmp_path, record(100.0, spread=0.2), record(110.0, spread=0.2)), across=False)
    assert found.metric("inference_throughput").verdict == "unsure"  # type: ignore[union-attr]


def test_different_machines_are_refused_not_warned_about(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"different machines \(device: fake against other\).*--across"):
        compare_files(stored(tmp_path, record(1.0), record(1.0, device="other")), across=False)


def test_across_machines_only_ratios_to_a_shared_operand_are_compared(tmp_path: Path) -> None:
    both = ("resnet34", "resnet50")
    paths = stored(tmp_path, record(100.0, operands=both), record(1000.0, device="other", operands=both))
    found = compare_files(paths, across=True)
    metric = found.metric("inference_throughput")
    assert metric is not None
    assert metric.unit == "1"
    assert {title: value.median for title, value in metric.values.items()} == {
        "a:resnet34": 1.0,
        "a:resnet50": 2.0,
        "b:resnet34": 1.0,
        "b:resnet50": 2.0,
    }
    assert "relative to resnet34" in metric.notes[0]


def test_each_operand_is_compared_with_its_own_earlier_result(tmp_path: Path) -> None:
    both = ("resnet34", "lenet")
    found = compare_files(stored(tmp_path, record(100.0, operands=both), record(120.0, operands=both)), across=False)
    metric = found.metric("inference_throughput")
    assert metric is not None
    ratios = {(ratio.of, ratio.to): ratio.estimate for ratio in metric.comparisons}
    assert ratios == {
        ("b:resnet34", "a:resnet34"): pytest.approx(1.2),
        ("b:lenet", "a:lenet"): pytest.approx(1.2),
    }


def test_across_needs_something_shared(tmp_path: Path) -> None:
    paths = stored(tmp_path, record(1.0), record(1.0, device="other", operands=("lenet",)))
    with pytest.raises(RecordError, match="share no operand"):
        compare_files(paths, across=True)


def test_other_files_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"schema": 99}')
    with pytest.raises(RecordError, match=r"x\.json.*schema is 99"):
        compare_files([tmp_path / "x.json"], across=False)
    (tmp_path / "x.json").write_text('{"sche')
    with pytest.raises(RecordError, match=r"x\.json"):
        compare_files([tmp_path / "x.json"], across=False)
    with pytest.raises(RecordError, match=r"gone\.json"):
        compare_files([tmp_path / "gone.json"], across=False)


def test_one_reading_of_the_resident_set_is_not_compared_with_a_count(tmp_path: Path) -> None:
    value = {"resnet34": Value.counted(1000)}
    ids = {"resnet34": "training/resnet34@amp-nhwc-eager/b8/s224/c1000/cpu"}
    old = Metric.named("training_peak_bytes", value, workloads=ids)
    new = replace(old, memory={"resnet34": {"peak": 1000, "counted": True}})
    plain = record(1.0)
    both = [replace(plain, metrics=(metric,)) for metric in (old, new)]
    [metric] = compare_files(stored(tmp_path, *both), across=False).metrics
    assert metric.ratio is metric.verdict is None
    assert metric.notes[0].startswith("not compared: a is a single reading")
    [metric] = compare_files(stored(tmp_path, both[1], both[1]), across=False).metrics
    assert metric.verdict == "same"
    assert not metric.one_reading


def test_a_run_in_which_every_process_kept_freed_memory_says_so_beside_one_of_today(tmp_path: Path) -> None:
    def naive(machine: dict[str, Any]) -> Record:
        run = record(100.0, operands=("naive",))
        timed = replace(run.metrics[1], workloads={"naive": "inference/lenet@fp32-nchw-eager/b32/s32/c10/cpu"})
        return replace(run, metrics=(timed,), machine={**run.machine, **machine})

    older = naive({"settings": {"allocator": "keeps freed memory"}})
    found = compare_files(stored(tmp_path, older, naive({})), across=False).metrics[0]
    assert found.notes == ("a kept freed memory, as the lever keep does now",)
    assert list(found.workloads.values()) == [
        f"inference/lenet@{text}/b32/s32/c10/cpu" for text in ("fp32-nchw-eager-keep", "fp32-nchw-eager")
    ]
