"""The sweep over networks, without a measurement: what is kept, continued and told."""

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.commands.compare import command as compare_command
from bench.selfcheck import presets
from bench.selfcheck.presets import row_of, sweep
from bench.timing.workload import METRIC
from results.lines import read_lines
from results.presets import TASKS, Outcome, summary
from results.record import Metric, Value
from results.store import load

RECORD = Path(__file__).parents[3] / "results/published/intel-xeon-amx-2-cores/resnet34-naive-fast.json"


def outcome(network: str, ratio: float | None, **row: Any) -> Outcome:
    told = {"ratio": ratio, "low": None, "high": None, "fast": "amp-nhwc-eager", **row}
    return Outcome(network, 8, 4, "c0ffee", "a CPU", 0.0, 1.0, dict.fromkeys(TASKS, told))


def test_a_sweep_goes_on_where_it_ended(tmp_path: Path) -> None:
    path, asked, said = tmp_path / "presets.jsonl", [], []

    def once(network: str, *_: float) -> Outcome:
        asked.append(network)
        return outcome(network, 2.0)

    sweep(path, ["a"], 8, 4, 1.0, 1e9, said.append, once=once)
    with path.open("a") as file:
        file.write('{"network": "b"')
    found = sweep(path, ["a", "b", "c"], 8, 4, 1.0, 1e9, said.append, once=once)
    assert asked == ["a", "b", "c"]
    assert [one.network for one in found] == asked
    assert read_lines(Outcome, path) == found
    sweep(path, ["d"], 8, 4, 1.0, -1.0, said.append, once=once)
    assert said[-1] == "1 network left; the same command goes on"


def test_an_interrupt_ends_the_sweep_and_leaves_no_outcome(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        presets.subprocess, "run", lambda *words, **options: subprocess.CompletedProcess([], 130, "", "")
    )
    with pytest.raises(KeyboardInterrupt):
        sweep(tmp_path / "presets.jsonl", ["a", "b"], 8, 4, 1.0, 1e9, lambda text: None)
    assert read_lines(Outcome, tmp_path / "presets.jsonl") == []


def test_the_slowest_come_first_and_failures_before_them() -> None:
    rows = [outcome("fine", 2.0), outcome("slow", 0.8, low=0.75, high=0.86), outcome("none", None, reason="no memory")]
    partly = outcome("partly", 3.0)
    rows.append(replace(partly, rows={**partly.rows, "training": {"reason": "no memory"}}))
    lines = summary(rows).splitlines()[2:]
    assert [line.split()[0] for line in lines] == ["none", "partly", "slow", "fine"]
    assert "none (no memory)" in lines[0]
    assert "0.80 [0.75, 0.86]" in lines[2]


def test_a_record_s_times_are_told_as_speeds() -> None:
    metrics = {metric.name: metric for metric in load(RECORD).metrics}
    times = metrics["inference_latency_p50"]
    row = row_of(times, "resnet34@fast")
    assert times.ratio is not None
    assert times.ratio.estimate is not None
    assert row["ratio"] == pytest.approx(1 / times.ratio.estimate)
    assert row["low"] < row["ratio"] < row["high"]
    assert row["fast"] == "bf16-nhwc-compile-freeze-keep"
    assert row_of(metrics["training_throughput"], "resnet34@fast")["fast"] == "amp-nhwc-eager-keep"


def test_without_a_ratio_the_reason_is_what_a_side_failed_by() -> None:
    metric = Metric.named(
        "training_throughput",
        {"vit_h_14@naive": Value(None, None, None, 0, missing="no memory"), "vit_h_14@fast": Value(2.0, 1.9, 2.1, 3)},
        notes=["vit_h_14@fast was still getting faster when its warm-up ended"],
    )
    assert row_of(metric, "vit_h_14@fast") == {"reason": "no memory"}


def test_one_network_s_rows_are_those_of_the_record_that_its_command_wrote(monkeypatch: pytest.MonkeyPatch) -> None:
    def compare(command: Sequence[str], **options: Any) -> "subprocess.CompletedProcess[str]":
        words = command[command.index("bench") + 1 :]
        given = compare_command.make_context(words[0], list(words[1:])).params
        assert (given["operands"], given["batch"]) == (("resnet34@naive", "resnet34@fast"), 8)
        shutil.copy(RECORD, given["output"])
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(presets.subprocess, "run", compare)
    found = presets.run_once("resnet34", 8, 4, 45.0, 600.0)
    metrics = {metric.name: metric for metric in load(RECORD).metrics}
    assert found.rows == {task: row_of(metrics[METRIC[task]], "resnet34@fast") for task in TASKS}
    assert found.device == load(RECORD).machine["fingerprint"]["device"]


@pytest.mark.night
def test_one_network_end_to_end() -> None:
    found = presets.run_once("lenet", 1, 1, 0.0, 600.0)
    assert set(found.rows) == set(TASKS)
    assert all(row["ratio"] > 0 for row in found.rows.values()), found.rows
    assert found.device
