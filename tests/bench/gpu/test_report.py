"""The table of a device from fabricated records: rates, shares, projections, and what is missing."""

import json
import tarfile
from pathlib import Path

import pytest

from bench.gpu.report import packed, report
from bench.gpu.running import OUTCOMES
from results.errors import RecordError
from results.record import Metric, Ratio, Record, Value
from results.store import save

MACHINE = {"fingerprint": {"device": "NVIDIA H200", "cpu": "a CPU", "cores": 16}}


def value(number: float | None) -> Value:
    return Value.none("out of memory") if number is None else Value(number, 0.9 * number, 1.1 * number, 8)


def record(metrics: dict[str, dict[str, float | None]], machine: dict = MACHINE) -> Record:
    operands = tuple(dict.fromkeys(operand for values in metrics.values() for operand in values))
    made = []
    for name, values in metrics.items():
        first, *others = values
        ratios = [
            Ratio(other, first, values[other] / values[first], 0.9, 1.2, 0.95, 1, 8)
            for other in others
            if values[other] and values[first]
        ]
        found = {operand: value(number) for operand, number in values.items()}
        made.append(Metric.named(name, found, batch=256, ratios=ratios))
    return Record("compare", "2026-01-01T00:00:00+00:00", "", None, machine, operands, tuple(made))


def put(folder: Path, name: str, part: str, made: Record | None, reason: str = "") -> None:
    if made is not None:
        save(made, folder / f"{name}.json")
    put_line(folder, name, part, f"{name}.json" if made else "", reason)


def put_line(folder: Path, name: str, part: str, file: str, reason: str = "") -> None:
    line = {"part": part, "name": name, "command": ["bench"], "file": file}
    with (folder / OUTCOMES).open("a") as lines:
        lines.write(json.dumps({**line, "exit_code": 0 if file else 2, "seconds": 9.0, "reason": reason}) + "\n")


TRAINING = {
    "training_throughput": {
        "resnet50@amp-nhwc-compile": 4000.0,
        "resnet50@naive": 500.0,
        "resnet50@amp-nhwc-graphs": 4600.0,
        "resnet50@fast": None,
    },
}


def row(text: str, start: str) -> list[str]:
    [line] = [line for line in text.splitlines() if line.startswith(f"| {start}")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_rates_stand_beside_their_ratios_and_failures_below(tmp_path: Path) -> None:
    put(tmp_path, "training-resnet50", "training", record(TRAINING))
    latency = {"inference_latency_p50": {"resnet50@fast": 0.010}}
    put(tmp_path, "latency-resnet50", "latency", record(latency))
    put(tmp_path, "inference-resnet50", "inference", None, "ended after 240 s")
    put(tmp_path, "loaders", "loaders", record(TRAINING))
    (tmp_path / "loaders.json").write_text("{")
    text = report([tmp_path])
    assert text.startswith("# NVIDIA H200\n")
    assert row(text, "resnet50@amp-nhwc-graphs")[1:] == ["256", "4,600", "1.15", "[0.90, 1.20]", "", ""]
    assert row(text, "resnet50@amp-nhwc-compile")[1:] == ["256", "4,000", "", "", "", ""]
    training, _, latencies = text.partition("## latency")
    assert row(training, "resnet50@fast")[1:] == ["256", "out of memory", "", "", "", ""]
    assert row(latencies, "resnet50@fast")[1:] == ["256", "0.01", "", ""]
    assert row(text, "inference-resnet50") == ["inference-resnet50", "ended after 240 s"]
    assert "ends in the middle" in row(text, "loaders")[1]


def test_published_epochs_stand_beside_projected_ones(tmp_path: Path) -> None:
    fed = {"training_throughput": {"resnet34@fast": 9000.0}, "end_to_end_throughput": {"resnet34@fast": 8000.0}}
    put(tmp_path, "end_to_end-resnet34", "end_to_end", record(fed))
    found = row(report([tmp_path]), "imagenet100-resnet34 ")
    assert found[1:4] == ["131689", "8,000", "16.5"]
    assert found[4:] == ["1,064", "DGX A100", "64.6"]


def test_shares_of_the_ceilings_stand_beside_the_rates(tmp_path: Path) -> None:
    shares = {"roof_fraction": {"resnet50@fast": 0.613, "resnet50@naive": None}, "mfu": {"resnet50@fast": 0.2}}
    put(tmp_path, "training-resnet50", "training", record({**TRAINING, **shares}))
    text = report([tmp_path])
    assert row(text, "resnet50@fast")[-2:] == ["61.3%", "20.0%"]
    assert row(text, "resnet50@naive")[-2:] == ["", ""]


def test_several_runs_make_one_table_and_the_later_ones_count(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
    put(first, "training-resnet50", "training", record({"training_throughput": {"resnet50@naive": 1.0}}))
    put(first, "training-resnet34", "training", record({"training_throughput": {"resnet34@naive": 700.0}}))
    put(first, "training-compile", "training", None)
    put(second, "training-resnet50", "training", record(TRAINING))
    put(second, "training-resnet34", "training", None, "ended after 9 s")
    (second / "cifar.json").write_text(
        json.dumps(
            [{"recipe": "cifar10-fast", "epochs": 8, "top1": 0.9412, "train_seconds": 2.5, "status": "finished"}]
        )
    )
    put_line(second, "cifar", "cifar", "cifar.json")
    packed(second, tmp_path / "gpu.tar.gz")
    packed(second, second / "gpu.tar.gz")
    with tarfile.open(second / "gpu.tar.gz") as archive:
        assert sorted(archive.getnames()) == ["cifar.json", OUTCOMES, "training-resnet50.json"]
    text = report([first, tmp_path / "gpu.tar.gz"])
    assert row(text, "resnet50@naive")[2] == "500"
    assert row(text, "resnet34@naive")[2] == "700"
    assert row(text, "cifar10-fast") == ["cifar10-fast", "8", "94.12%", "2.5", "finished"]
    assert "Failed jobs" not in text
    (second / "training-resnet50.json").unlink()
    text = report([second])
    assert text.startswith("# make gpu")
    assert row(text, "cifar10-fast")[2] == "94.12%"
    (tmp_path / "gpu.tar.gz").write_bytes(b"none")
    with pytest.raises(RecordError, match="cannot be unpacked"):
        report([first, tmp_path / "gpu.tar.gz"])


def test_our_kernels_in_a_network_stand_beside_kernels(tmp_path: Path) -> None:
    kernels = {"kernel_throughput": {"depthwise@torch": 100.0, "depthwise@triton": 300.0}}
    inside = {"training_throughput": {"b0@amp-nhwc-graphs": 4000.0, "b0@amp-nhwc-graphs-kernels": 5000.0}}
    put(tmp_path, "kernels-depthwise", "kernels", record(kernels))
    put(tmp_path, "kernels-training", "kernels", record(inside))
    text = report([tmp_path])
    assert row(text, "depthwise@triton")[3] == "3.00"
    assert row(text, "b0@amp-nhwc-graphs-kernels")[2:4] == ["5,000", "1.25"]


def test_a_folder_without_records_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=OUTCOMES):
        report([tmp_path])
    put(tmp_path, "training-resnet50", "training", None, "exit code 2: no GPU")
    with pytest.raises(RecordError, match="no measured record"):
        report([tmp_path])
