"""The table of a device from fabricated records: figures, targets, and what is missing."""

import json
from pathlib import Path

import pytest

from bench.errors import UsageError
from bench.gpu.report import report
from bench.gpu.running import OUTCOMES
from bench.gpu.targets import find, targets
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
    line = {"part": part, "name": name, "command": ["bench"], "file": f"{name}.json" if made else ""}
    with (folder / OUTCOMES).open("a") as file:
        file.write(json.dumps({**line, "exit_code": 0 if made else 2, "seconds": 9.0, "reason": reason}) + "\n")


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


def test_targets_stand_beside_their_figures(tmp_path: Path) -> None:
    put(tmp_path, "training-resnet50", "training", record(TRAINING))
    fed = {
        "training_throughput": {"resnet50@fast": 5000.0},
        "end_to_end_throughput": {"resnet50@fast": 4900.0},
    }
    put(tmp_path, "end_to_end-resnet50", "end_to_end", record(fed))
    put(tmp_path, "inference-resnet50", "inference", None, "ended after 240 s")
    text = report(tmp_path)
    assert text.startswith("# NVIDIA H200\n")
    found = row(text, "resnet50 training, ours / default")
    assert found[1:] == ["at least 1.1", "1.15", "amp-nhwc-graphs", "yes"]
    assert row(text, "resnet50 training, ours / naive")[2:] == ["9.2", "amp-nhwc-graphs", "yes"]
    assert row(text, "resnet50, JPEG to step")[1:] == ["at least 7,300", "4,900 [4,410, 5,390]", "fast", "no"]
    assert row(text, "resnet50 JPEG to step / ")[2:] == ["0.98", "fast", "yes"]
    assert row(text, "resnet50 inference, images/s")[2:] == ["ended after 240 s", "", "-"]
    assert row(text, "loader alone")[2:] == ["not run", "", "-"]
    assert row(text, "resnet50@amp-nhwc-graphs")[1:] == ["256", "4,600", "1.15", "[0.90, 1.20]"]
    assert "| resnet50@fast" in text
    assert "out of memory" in text
    assert row(text, "inference-resnet50") == ["inference-resnet50", "ended after 240 s"]


def test_published_epochs_stand_beside_projected_ones(tmp_path: Path) -> None:
    fed = {"training_throughput": {"resnet34@fast": 9000.0}, "end_to_end_throughput": {"resnet34@fast": 8000.0}}
    put(tmp_path, "end_to_end-resnet34", "end_to_end", record(fed))
    found = row(report(tmp_path), "imagenet100-resnet34 ")
    assert found[1:4] == ["131689", "8,000", "16.5"]
    assert found[4:] == ["1,064", "DGX A100", "64.6"]


def test_on_another_device_only_ratios_have_a_target(tmp_path: Path) -> None:
    machine = {"fingerprint": {"device": "AMD EPYC"}}
    put(tmp_path, "training-resnet50", "training", record(TRAINING, machine))
    latency = {
        "inference_latency_p50": {"resnet50@fast": 0.010},
        "inference_latency_p99": {"resnet50@fast": 0.011},
    }
    put(tmp_path, "latency-resnet50", "latency", record(latency, machine))
    text = report(tmp_path)
    assert row(text, "resnet50, one image, p50")[1:] == ["-", "0.01 [0.009, 0.011]", "fast", "-"]
    assert row(text, "resnet50, one image, p99 / p50")[1:] == ["at most 1.05", "1.1", "fast", "no"]


def test_a_rate_is_that_of_the_best_batch_and_a_ratio_that_of_one_run(tmp_path: Path) -> None:
    main = {"inference_throughput": {"resnet50@amp-nhwc-compile": 30_000.0, "resnet50@fast": 33_000.0}}
    put(tmp_path, "training-resnet50", "training", record(TRAINING))
    put(tmp_path, "inference-resnet50", "inference", record(main))
    put(tmp_path, "inference-resnet50-b64", "batches", record({"inference_throughput": {"resnet50@fast": 20_000.0}}))
    put(tmp_path, "inference-resnet50-b512", "batches", record({"inference_throughput": {"resnet50@fast": 41_000.0}}))
    text = report(tmp_path)
    assert row(text, "resnet50 inference, images/s")[2:] == ["41,000 [36,900, 45,100]", "fast", "yes"]
    assert row(text, "resnet50 inference, ours / default")[2:] == ["1.1", "fast", "no"]


def test_a_slice_of_a_gpu_owes_ratios_only(tmp_path: Path) -> None:
    machine = {"fingerprint": {"device": "NVIDIA H200 MIG 1g.18gb"}}
    put(tmp_path, "training-resnet50", "training", record(TRAINING, machine))
    fed = {"training_throughput": {"resnet50@fast": 500.0}, "end_to_end_throughput": {"resnet50@fast": 490.0}}
    put(tmp_path, "end_to_end-resnet50", "end_to_end", record(fed, machine))
    text = report(tmp_path)
    assert row(text, "resnet50, JPEG to step")[1] == "-"
    assert row(text, "resnet50 training, ours / default")[1] == "at least 1.1"


def test_shares_of_the_ceilings_stand_beside_one_another(tmp_path: Path) -> None:
    shares = {"roof_fraction": {"resnet50@fast": 0.613, "resnet50@naive": None}, "mfu": {"resnet50@fast": 0.2}}
    put(tmp_path, "training-resnet50", "training", record({**TRAINING, **shares}))
    text = report(tmp_path).partition("ceilings in training")[2]
    assert row(text, "resnet50@fast") == ["resnet50@fast", "61.3%", "20.0%"]
    assert "resnet50@naive" not in text


def test_every_target_names_a_metric_that_exists() -> None:
    found = targets(("resnet18", "resnet34", "resnet50", "efficientnet_b0"))
    assert len({target.what for target in found}) == len(found)
    for target in found:
        names = [target.metric, *([target.to] if target.to and "@" not in target.to else [])]
        for name in names:
            Metric.named(name, {"a": Value.counted(1.0)})
        missing = find(target, {}, "NVIDIA A100", {target.record: "no such GPU"})
        assert (missing.value, missing.met, missing.missing) == (None, None, "no such GPU")


def test_a_folder_without_records_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=OUTCOMES):
        report(tmp_path)
    put(tmp_path, "training-resnet50", "training", None, "exit code 2: no GPU")
    with pytest.raises(RecordError, match="no measured record"):
        report(tmp_path)
