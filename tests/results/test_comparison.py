"""A comparison as a reader sees it: sentences, cells, notes, width and colour; and as a program reads it."""

import csv
import io
import json
import random
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from results import stats
from results.comparison import compare_table, metric_line
from results.errors import RecordError
from results.record import METRICS, Metric, Ratio, Record, Value
from results.tables import WIDTH
from results.verdict import compare_verdict, margin_of

OPERANDS = ("efficientnet_b0", "resnet34")
ANSI = re.compile(r"\x1b\[[0-9;]*m")


def timed(
    name: str, medians: Sequence[float], blocks: int, operands: Sequence[str] = OPERANDS, noise: float = 0.01
) -> Metric:
    """A measured metric with its ratios to the last operand, from made-up blocks of 8 pairs."""
    rng = random.Random(name)
    values = {
        o: stats.summarise([m * (1 + rng.gauss(0, noise)) for _ in range(40)])
        for o, m in zip(operands, medians, strict=True)
    }
    logs = [[[rng.gauss(0, noise) for _ in range(8)] for _ in range(blocks)] for _ in operands]
    ratios: list[Ratio] = []
    for i, o in enumerate(operands[:-1]):
        found = stats.ratio_of(o, operands[-1], logs[i])
        factor = medians[i] / medians[-1]
        bounds = [None if x is None else x * factor for x in (found.estimate, found.low, found.high)]
        ratios.append(Ratio(o, operands[-1], *bounds, found.confidence, found.blocks, found.pairs))
    verdict = compare_verdict(ratios[0], METRICS[name][1], margin_of(name))
    return Metric.named(
        name, values, batch=32, ratio=ratios[0], verdict=verdict, ratios=ratios if len(operands) > 2 else ()
    )


def counted(name: str, numbers: Sequence[int], operands: Sequence[str] = OPERANDS) -> Metric:
    values = {o: Value.counted(n) for o, n in zip(operands, numbers, strict=True)}
    ratio = Ratio.exact(operands[0], operands[-1], values)
    assert ratio is not None
    return Metric.named(name, values, ratio=ratio, verdict=compare_verdict(ratio, "lower", 0.0))


def comparison(blocks: int = 1, operands: tuple[str, str] = OPERANDS, complete: bool = True) -> Record:
    a, b = operands
    few = stats.percentile_value([0.02] * 120, 0.99)
    metrics = (
        counted("params", (5288548, 21797672), operands),
        counted("flops", (771734656, 7326499840), operands),
        Metric.named("inference_latency_p99", {a: few, b: few}),
        timed("inference_throughput", (187.3, 90.4), blocks, operands),
        timed("training_throughput", (23.3, 23.1), blocks, operands),
        Metric.named(
            "training_peak_bytes",
            {a: Value.counted(2_100_000_000), b: Value.none("out of memory: 2.1 GiB asked for, 0.4 free")},
            batch=32,
        ),
        Metric.named(
            "compile_seconds",
            {a: Value(14.21, None, None, 1), b: Value(7.12, 6.9, 7.3, 3, confidence=0.75)},
            notes=("cold cache",),
        ),
    )
    return Record(
        kind="compare",
        created="2026-01-02T03:04:05+00:00",
        command="bench compare",
        commit={"sha": "0123456789abcdef", "dirty": True},
        machine={"fingerprint": {"device": "cpu", "cpu": "Xeon", "cores": 2, "torch": "2.15.0", "driver": None}},
        operands=operands,
        metrics=metrics,
        complete=complete,
    )


def row(text: str, start: str) -> str:
    return next(line for line in text.splitlines() if line.startswith(start))


@pytest.mark.parametrize("blocks", [1, 3, 8])
@pytest.mark.parametrize("names", [OPERANDS, ("resnet34@fp32-nchw-eager", "resnet34@openvino-int8-nchw")])
def test_two_operands_fit_on_100_columns(blocks: int, names: tuple[str, str]) -> None:
    text = compare_table(comparison(blocks, names))
    assert max(len(line) for line in text.splitlines()) <= WIDTH + 8
    if names == OPERANDS:
        assert max(len(line) for line in text.splitlines()) <= WIDTH


def test_sentences_come_first_and_the_machine_last() -> None:
    text = compare_table(comparison(), "text")
    first = text.split("\n\n")[0].replace("\n  ", " ")
    assert first.startswith("inference: efficientnet_b0 is 2.0")
    assert "not included" not in first
    assert "parameters: resnet34 has 4.12x as many as efficientnet_b0" in first
    assert "peak memory in training: no number for resnet34 (out of memory: 2.1 GiB asked" in first
    last = text.rstrip().split("\n\n")[-1]
    assert last.startswith("machine: cpu, Xeon, 2 cores, torch 2.15.0, commit 0123456789 with uncommitted changes")


def test_a_record_shows_itself() -> None:
    record = comparison(6)
    assert str(record) == compare_table(record)
    shown = record._repr_html_()
    assert shown.startswith("<ul>\n<li>inference: ")
    assert shown.count("<table>") == 1
    assert "</td>" in shown


def test_cells() -> None:
    text = compare_table(comparison())
    assert re.search(r"^params +M +5\.289 +21\.80 +0\.243 better$", text, re.M)
    assert re.search(r"^flops +GFLOP +0\.7717 +7\.326 +0\.105 better$", text, re.M)
    assert re.search(r"^inference_throughput b32 +images/s +18\d\.\d ±0\.\d+% ", text, re.M)
    assert "out of memory (" in row(text, "training_peak_bytes")
    assert "No number: inference_latency_p99" in text
    assert not re.search("^inference_latency_p99", text, re.M)
    explained = compare_table(comparison(), explain=True)
    assert re.search(r"^inference_latency_p99", explained, re.M)
    assert re.search(r"\(1\) needs 459 samples, has 120$", explained, re.M)
    assert "measured once, so no interval" in text
    assert "the range of 3 samples, 75 % confidence" in text
    assert "Every measured ratio: from one pair of processes; variation between processes is not included." in text
    assert "interrupted" not in text
    assert "This run was interrupted" in compare_table(comparison(complete=False))


@pytest.mark.parametrize(
    ("error", "text"),
    [(0.0094, "0.9%"), (0.094, "9%"), (0.0951, "10%"), (0.0999, "10%"), (0.12, "12%"), (0.994, "99%")],
)
def test_an_error_is_never_written_as_a_power_of_ten(error: float, text: str) -> None:
    metric = Metric.named("inference_throughput", {"a": Value(100.0, 100 * (1 - error), 100 * (1 + error), samples=9)})
    record = Record("compare", "2026-01-01T00:00:00+00:00", "bench compare a", None, {}, ("a",), (metric,))
    assert f" ±{text}" in compare_table(record)


def test_an_error_as_large_as_the_number_is_written_as_the_interval() -> None:
    metric = Metric.named("inference_throughput", {"a": Value(100.0, 88.5, 1306.8, samples=9)})
    record = Record("compare", "2026-01-01T00:00:00+00:00", "bench compare a", None, {}, ("a",), (metric,))
    text = compare_table(record)
    assert "100 [88.5, 1310]" in text
    assert "%" not in row(text, "inference_throughput")


def test_no_cell_is_blank() -> None:
    text = compare_table(comparison(), "markdown")
    body = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    assert len({len(cells) for cells in body}) == 1
    assert all(cell.strip() for cells in body for cell in cells)


def test_machine_formats_are_raw() -> None:
    record = comparison()
    assert json.loads(compare_table(record, "json")) == record.to_json()
    rows = list(csv.DictReader(io.StringIO(compare_table(record, "csv"))))
    assert len(rows) == 2 * len(record.metrics)
    by_key = {(r["metric"], r["operand"]): r for r in rows}
    assert by_key["params", "resnet34"]["median"] == "21797672"
    found = record.metrics[3]
    assert found.ratio is not None
    assert float(by_key["inference_throughput", "efficientnet_b0"]["ratio_low"]) == found.ratio.low
    assert by_key["training_peak_bytes", "resnet34"]["missing"].startswith("out of memory")
    with pytest.raises(RecordError, match="unknown format 'html'"):
        compare_table(record, "html")


def test_many_operands_get_a_table_of_ratios() -> None:
    names = ("resnet18", "resnet50", "vit_b_16", "resnet34")
    record = Record(
        kind="compare",
        created="2026-01-02T03:04:05+00:00",
        command="",
        commit=None,
        machine={},
        operands=names,
        metrics=(timed("inference_throughput", (160.0, 50.0, 20.0, 90.0), 1, names),),
    )
    text = compare_table(record)
    assert re.search(r"^ratio to resnet34 +resnet18 +resnet50 +vit_b_16$", text, re.M)
    assert re.search(r"^inference_throughput b32 +1\.\d+ \[.*\] better +0\.5.* worse +0\.2.* worse$", text, re.M)
    assert text.count("x as fast as ") == 3
    assert text.rstrip().endswith("machine: not recorded, measured 2026-01-02T03:04:05+00:00")
    assert len(list(csv.DictReader(io.StringIO(compare_table(record, "csv"))))) == 4


def test_a_single_operand_has_no_ratio() -> None:
    record = Record(
        "compare",
        "2026-01-02T03:04:05+00:00",
        "",
        None,
        {},
        ("a",),
        (Metric.named("params", {"a": Value.counted(7)}),),
    )
    text = compare_table(record)
    assert "/" not in text
    assert re.search(r"^params +parameters +7$", text, re.M)


def test_ratios_the_other_way_round_are_turned() -> None:
    given = comparison(8)
    metric = given.metrics[3]
    assert metric.ratio is not None
    turned = Metric.named(metric.name, metric.values, batch=32, ratio=metric.ratio.inverse(), verdict="worse")
    record = Record(given.kind, given.created, "", None, {}, OPERANDS, (given.metrics[0], turned))
    assert row(compare_table(record), "inference_throughput").endswith("better")


def test_colour_only_on_demand_and_only_in_text() -> None:
    record = comparison()
    plain = compare_table(record)
    painted = compare_table(record, colour=True)
    assert "\x1b" not in plain
    assert "\x1b[32mbetter\x1b[0m" in painted
    assert ANSI.sub("", painted) == plain
    assert "\x1b" not in compare_table(record, "markdown", colour=True)


def test_metric_line() -> None:
    metrics = comparison().metrics
    line = metric_line(metrics[3])
    assert re.fullmatch(
        r"inference_throughput b32: efficientnet_b0 18\d\.\d ±0\.\d+%, resnet34 90\.\d+ ±0\.\d+% images/s; "
        r"efficientnet_b0 / resnet34 2\.0\d+ \[2\.0\d+, 2\.0\d+\]",
        line,
    ), line
    assert "resnet34 none (out of memory: 2.1 GiB" in metric_line(metrics[5])


def peaks(**more: Any) -> Metric:
    values = {o: Value.counted(n) for o, n in zip(OPERANDS, (2_000_000, 3_000_000), strict=True)}
    ids = {o: f"training/{o}@amp-nhwc-eager/b8/s224/c1000/cpu" for o in OPERANDS}
    return replace(Metric.named("training_peak_bytes", values, workloads=ids), **more)


def test_peak_memory_of_records_made_before_it_was_counted_says_so() -> None:
    record = replace(comparison(), metrics=(peaks(),))
    assert "a single reading of the process's resident set" in compare_table(record).replace("\n  ", " ")
    now = peaks(memory=dict.fromkeys(OPERANDS, {"peak": 2_000_000, "counted": True}))
    assert "single reading" not in compare_table(replace(record, metrics=(now,)))
    assert Record.from_json(replace(record, metrics=(now,)).to_json()).metrics[0].memory == now.memory
    on_cuda = peaks(workloads={o: f"training/{o}@amp-nhwc-eager/b8/s224/c1000/cuda" for o in OPERANDS})
    assert "single reading" not in compare_table(replace(record, metrics=(on_cuda,)))


def test_an_older_record_says_what_its_naive_was() -> None:
    whole = comparison()
    kept = {**whole.machine, "settings": {"allocator": "keeps freed memory"}}
    naive, fast = (f"inference/lenet@{text}/b32/s32/c10/cpu" for text in ("fp32-nchw-eager", "fp32-nhwc-eager"))
    for machine, id, said in ((kept, naive, 1), (kept, fast, 0), (whole.machine, naive, 0)):
        metrics = (replace(whole.metrics[3], workloads={OPERANDS[0]: id}),)
        text = compare_table(replace(whole, machine=machine, metrics=metrics), "text")
        assert text.count("naive kept freed memory in this run; today that is fp32-nchw-eager-keep") == said


@pytest.mark.parametrize(
    ("load", "line"),
    [
        (
            {"foreign": 0.12, "stolen": 0.03, "stalls": 4, "turns": 1200},
            "While this was measured, other programs had 12 % of the machine (of that 3 % other guests of its host); "
            "4 of 1,200 turns took over 5 times as long as usual.",
        ),
        (
            {"foreign": 0.05, "stolen": 0.0, "stalls": 0, "turns": 10},
            "While this was measured, other programs had 5 % of the machine.",
        ),
        (
            {"foreign": None, "stolen": None, "stalls": 1, "turns": 10},
            "While this was measured, 1 of 10 turns took over 5 times as long as usual.",
        ),
        ({"foreign": 0.01, "stolen": 0.0, "stalls": 0, "turns": 10}, None),
        ({"average": [3.0, 2.0, 1.0], "stolen_since_boot": 0.5}, None),
        (None, None),
    ],
)
def test_a_bad_moment_is_named_in_one_line(load: dict[str, Any] | None, line: str | None) -> None:
    record = comparison(6)
    record = replace(record, machine={**record.machine, "load": load})
    said = [text for text in compare_table(record, "markdown").splitlines() if "While this was measured" in text]
    assert said == ([] if line is None else [f"- {line}"])


@pytest.mark.parametrize(("beside", "when"), [("core", "random"), ("busy", "all")])
def test_a_load_that_was_asked_for_is_named(beside: str, when: str) -> None:
    record = replace(comparison(6), settings={"beside": beside})
    assert f"a process of the comparison kept one core busy at {when} times" in compare_table(record, "text")
    assert "kept one core" not in compare_table(replace(record, settings={"beside": "none"}), "text")


def test_operands_that_are_the_same_thing_are_named_in_one_line() -> None:
    record = comparison()
    ids = dict.fromkeys(OPERANDS, "inference/x@fast/b32")

    def said(workloads: Sequence[dict[str, str]], kind: str = "compare") -> str:
        metrics = [replace(metric, workloads=of) for metric, of in zip(record.metrics, workloads, strict=False)]
        return " ".join(compare_table(replace(record, metrics=tuple(metrics), kind=kind)).split())

    line = "efficientnet_b0 and resnet34 are the same in the same configuration: what is measured differs by noise"
    assert line in said([{}, {}, ids])
    assert line not in said([{}, {}, ids], "stored"), "of two days the differences are no noise"
    assert line not in said([{}, ids, {**ids, "resnet34": "inference/y@fast/b32"}])
    assert line not in said([{}, {}, {}])


@pytest.mark.parametrize(
    ("name", "note", "shown"),
    [
        (
            "inference_throughput",
            "a: logits differ from plain fp32's by 0.041 of their spread (root mean square)",
            False,
        ),
        ("inference_throughput", "a: logits differ from plain fp32's by 0.41 of their spread (root mean square)", True),
        ("inference_throughput", "a: has other weights than b, so their logits are not comparable", True),
        ("inference_throughput", "a was still getting faster when its warm-up ended", True),
        ("end_to_end_throughput", "a: 0.98 of the same step on a constant batch; step-bound, the loader alone", False),
        ("end_to_end_throughput", "a: 0.5 of the same step on a constant batch; loader-bound, the step alone", True),
        ("inference_peak_bytes", "a: 41.6 MiB weights + 9.19 MiB input", False),
        ("loader_throughput", "b and a take the same batches: measured once", False),
    ],
)
def test_notes_that_may_change_a_decision_are_always_shown(name: str, note: str, shown: bool) -> None:
    metric = replace(Metric.named(name, {"a": Value(100.0, 99.0, 101.0, samples=9)}), notes=(note,))
    record = Record("compare", "2026-01-01T00:00:00+00:00", "bench compare a", None, {}, ("a",), (metric,))
    beginning = note[:40]
    assert (beginning in compare_table(record)) == shown
    assert beginning in compare_table(record, explain=True)
    assert ("--explain says what the numbers consist of (1 note)." in compare_table(record)) == (not shown)
