"""Records survive a round trip, refuse what they do not know, and never hold what JSON cannot."""

import json
import math
from typing import Any

import pytest

from results.errors import RecordError
from results.record import METRICS, SCHEMA, Metric, Ratio, Record, Value, utc_now


def sample_record() -> Record:
    values = {
        "resnet34": Value(90.25, 89.0, 91.5, 80, confidence=0.95),
        "efficientnet_b0": Value(187.5, 185.0, 190.0, 80),
    }
    ratio = Ratio("efficientnet_b0", "resnet34", 2.0775, 1.98, 2.15, 0.95, 1, 8)
    timed = Metric.named(
        "inference_throughput",
        values,
        batch=32,
        ratio=ratio,
        verdict="better",
        workloads={"resnet34": "inference:resnet34:b32"},
        notes=("warm cache",),
        pairs=[[0.73, 0.74]],
    )
    counts = {"resnet34": Value.counted(21797672), "efficientnet_b0": Value.none("not counted")}
    return Record(
        kind="compare",
        created="2026-01-02T03:04:05+00:00",
        command="bench compare resnet34 efficientnet_b0",
        commit={"sha": "abc", "dirty": False},
        machine={"fingerprint": {"device": "cpu", "cores": 2}},
        operands=("resnet34", "efficientnet_b0"),
        metrics=(Metric.named("params", counts), timed),
        settings={"budget": 60.0},
    )


def test_round_trip_through_json_text() -> None:
    record = sample_record()
    again = Record.from_json(json.loads(json.dumps(record.to_json(), allow_nan=False)))
    assert again.to_json() == record.to_json()
    assert again.metrics[1].values == record.metrics[1].values
    assert again.metrics[1].ratio == record.metrics[1].ratio


def test_json_has_the_promised_shape() -> None:
    data = sample_record().to_json()
    assert data["schema"] == SCHEMA
    assert next(iter(data)) == "schema"
    assert {"machine", "operands", "metrics"} <= set(data)
    metric = data["metrics"][1]
    assert {"name", "unit", "better", "batch", "values", "ratio", "verdict"} <= set(metric)
    assert {"median", "low", "high", "samples"} <= set(metric["values"]["resnet34"])
    assert {"of", "to", "estimate", "low", "high"} <= set(metric["ratio"])
    assert metric["values"]["resnet34"]["median"] == 90.25
    assert data["metrics"][0]["values"]["resnet34"]["median"] == 21797672


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_json_cannot_hold_becomes_none(bad: float) -> None:
    value = Value(bad, bad, 1.0, 3)
    assert value.median is None
    assert value.missing == f"the measurement gave {bad}"
    assert Value(1.0, bad, bad, 3).low is None
    assert Ratio("a", "b", bad, bad, 1.0, 0.95, 1, 1).estimate is None
    data = sample_record().to_json()
    data["machine"]["load"] = bad
    dumped = Record.from_json(data).to_json()
    assert dumped["machine"]["load"] is None
    json.dumps(dumped, allow_nan=False)


def test_a_value_without_number_needs_a_reason() -> None:
    with pytest.raises(RecordError, match="reason"):
        Value(None, None, None, 0)


def change(path: list[Any], value: Any) -> dict[str, Any]:
    data = sample_record().to_json()
    at: Any = data
    for key in path[:-1]:
        at = at[key]
    if value is ...:
        del at[path[-1]]
    else:
        at[path[-1]] = value
    return data


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["metrics", 1, "values", "resnet34", "mediam"], 1, r"resnet34.*unknown key 'mediam' .*'median'"),
        (["metrics", 1, "values", "resnet34", "low"], ..., r"missing 'low'"),
        (["metrics", 1, "values", "resnet34", "low"], "1", r"low: expected a finite number"),
        (["metrics", 1, "values", "resnet34", "median"], True, r"median: expected a finite number"),
        (["metrics", 1, "values", "resnet34", "samples"], -1, r"samples: expected a whole number"),
        (["metrics", 1, "ratio", "of"], "vgg", r"'vgg', which has no value"),
        (["metrics", 1, "better"], "more", r"'higher' or 'lower'"),
        (["metrics", 1, "values"], [], r"values: expected an object"),
        (["metrics"], {}, r"metrics: expected a list"),
        (["metrics", 0], 3, r"metrics\[0\]: expected an object"),
        (["operands"], ["resnet34"], r"'efficientnet_b0', which is not an operand"),
        (["operands"], ["resnet34", 4], r"operands\[1\].*expected text"),
        (["created"], "yesterday", r"ISO 8601"),
        (["complete"], 1, r"complete: expected true or false"),
        (["created"], ..., r"missing 'created'"),
        (["extra"], 1, r"unknown key 'extra'"),
        (["schema"], 2, r"schema is 2, this version reads 1; .*newer"),
        (["schema"], "1", r"schema is '1'"),
        (["schema"], ..., r"no key 'schema'"),
    ],
)
def test_what_is_wrong_is_named(path: list[Any], value: Any, message: str) -> None:
    with pytest.raises(RecordError, match=message):
        Record.from_json(change(path, value))


def test_keys_with_a_default_may_be_absent() -> None:
    data = sample_record().to_json()
    for metric in data["metrics"]:
        for key in ("ratios", "workloads", "notes", "pairs"):
            del metric[key]
        for value in metric["values"].values():
            del value["confidence"]
    assert Record.from_json(data).metrics[1].verdict == "better"


def test_metric_names_are_checked_and_described() -> None:
    with pytest.raises(RecordError, match="did you mean 'inference_throughput'"):
        Metric.named("inference_troughput", {})
    for name, (unit, better, meaning) in METRICS.items():
        metric = Metric.named(name, {})
        assert (metric.unit, metric.better) == (unit, better)
        assert meaning


def test_exact_ratio_and_its_inverse() -> None:
    values = {
        "a": Value.counted(3),
        "b": Value.counted(4),
        "none": Value.none("gone"),
        "zero": Value.counted(0),
    }
    ratio = Ratio.exact("a", "b", values)
    assert ratio is not None
    assert (ratio.estimate, ratio.counted, ratio.within_process) == (0.75, True, False)
    turned = ratio.inverse()
    assert (turned.of, turned.to) == ("b", "a")
    assert turned.estimate == pytest.approx(4 / 3)
    assert Ratio.exact("a", "none", values) is None
    assert Ratio.exact("a", "zero", values) is None
    wide = Ratio("a", "b", 2.0, 1.6, 2.5, 0.95, 1, 8).inverse()
    assert (wide.low, wide.high, wide.within_process) == (0.4, 0.625, True)


def test_lookups() -> None:
    record = sample_record()
    found = record.metric("inference_throughput", 32)
    assert found is not None
    assert found.comparisons == (found.ratio,)
    assert record.metric("inference_throughput", 64) is None
    assert Record.from_json({**record.to_json(), "created": utc_now()}).complete
