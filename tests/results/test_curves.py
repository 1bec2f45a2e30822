"""Curves over batch, size and threads: the best value, the knee, and what is said of them."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from results.comparison import compare_table, in_tables, sentences
from results.curves import beside, curves_of, point_label, point_of
from results.pictures.page import of_comparison, write
from results.record import Metric, Ratio, Record, Value
from results.report import open_results
from results.store import save

RATES = {1: 100.0, 2: 150.0, 4: 194.0, 8: 200.0, 16: 190.0}


def swept(
    rates: Mapping[str, Mapping[int, float]],
    key: str = "batch",
    name: str = "inference_throughput",
    spread: float | None = 0.02,
) -> Record:
    """Two operands over the same values, each compared with its best and with the first one at its value."""
    numbers = {point_label(who, key, at): rate for who, found in rates.items() for at, rate in found.items()}
    better = "lower" if "latency" in name else "higher"
    first, choose = next(iter(rates)), min if better == "lower" else max

    def ratio(of: str, to: str) -> Ratio:
        x = numbers[of] / numbers[to]
        if spread is None:
            return Ratio(of, to, x, None, None, None, blocks=1, pairs=5)
        return Ratio(of, to, x, x - spread, x + spread, 0.95, blocks=6, pairs=30)

    ratios = []
    for who, found in rates.items():
        best = choose(found, key=lambda at: found[at])
        ratios += [ratio(point_label(who, key, at), point_label(who, key, best)) for at in found if at != best]
        if who != first:
            ratios += [ratio(point_label(who, key, at), point_label(first, key, at)) for at in found]
    values = {label: Value(rate, 0.99 * rate, 1.01 * rate, 6, confidence=0.95) for label, rate in numbers.items()}
    metrics = [Metric.named(name, values, ratios=ratios)]
    if better == "higher":
        sizes = {label: Value.counted(1000 * (i + 1)) for i, label in enumerate(numbers)}
        metrics.append(Metric.named("inference_peak_bytes", sizes))
    over = f"{key}={','.join(map(str, next(iter(rates.values()))))}"
    settings = {"over": over}
    created = "2026-11-30T08:00:00+00:00"
    return Record("compare", created, "bench compare", None, {}, tuple(numbers), tuple(metrics), settings=settings)


def test_labels_of_points_are_read_back() -> None:
    for label in ("resnet50", "net.py:build[width=64]@fast", "resnet50#2"):
        assert point_of(point_label(label, "batch", 8)) == (label, "batch", 8)
    assert point_of("net.py:build[batch=4]") is None
    assert point_of("resnet50") is None


def test_the_knee_is_the_smallest_value_that_is_nearly_the_best() -> None:
    record = swept({"a": RATES})
    [curve] = curves_of(record, record.metrics[0])
    assert (curve.best, curve.knee) == (8, 4)
    assert curve.values[4].median == 194.0
    assert curve.shares[4].estimate == pytest.approx(0.97)
    assert 8 not in curve.shares
    seconds = curve.seconds(16)
    assert seconds is not None
    assert seconds.median == pytest.approx(16 / 190)
    assert seconds.low is not None
    assert seconds.high is not None
    assert seconds.low < 16 / 190 < seconds.high
    assert sentences(record) == ["inference of a: batch 4 reaches 97 % [95, 99] of the best rate, that of 8"]


@pytest.mark.parametrize(
    ("rates", "key", "said"),
    [
        (
            {1: 100.0, 2: 150.0, 4: 200.0},
            "batch",
            "fastest at batch 4; 2 reaches 75 % [73, 77] of its rate, and a larger one may be faster still",
        ),
        ({1: 100.0, 2: 90.0}, "batch", "fastest at batch 1, the smallest that was tried"),
        (
            {1: 99.0, 2: 100.0},
            "threads",
            "threads 1, the smallest that was tried, reaches 99 % [97, 101] of the best rate, that of 2",
        ),
        ({1: 50.0, 2: 100.0}, "threads", "fastest at threads 2; 1 reaches 50 % [48, 52] of its rate"),
        ({64: 100.0, 128: 40.0}, "size", "size 128 reaches 40 % [38, 42] of the rate of 64"),
    ],
)
def test_a_curve_says_where_more_is_not_worth_having(rates: dict[int, float], key: str, said: str) -> None:
    assert sentences(swept({"a": rates}, key)) == [f"inference of a: {said}"]


def test_what_was_measured_once_says_so() -> None:
    assert sentences(swept({"a": {1: 100.0, 2: 90.0}}, spread=None))[0].endswith("tried (measured once)")


def test_times_count_as_the_rates_they_stand_for() -> None:
    record = swept({"a": {1: 0.010, 2: 0.008}}, "threads", "inference_latency_p50")
    [curve] = curves_of(record, record.metrics[0])
    assert (curve.best, curve.knee) == (2, 2)
    assert curve.shares[1].estimate == pytest.approx(0.8)
    assert (curve.shares[1].low or 0) < 0.8 < (curve.shares[1].high or 0)
    assert curve.seconds(1) is None


def test_a_value_that_failed_is_a_row_and_no_knee() -> None:
    record = swept({"a": RATES})
    metric = record.metrics[0]
    values = {**metric.values, point_label("a", "batch", 4): Value.none("out of memory: 2 GiB asked for, 1 GiB free")}
    ratios = [ratio for ratio in metric.comparisons if ratio.of != point_label("a", "batch", 4)]
    broken = Metric.named(metric.name, values, ratios=ratios)
    [curve] = curves_of(record, broken)
    assert (curve.best, curve.knee) == (8, 8)
    lines = compare_table(
        Record(**{**vars(record), "metrics": (broken,)}),
    ).splitlines()
    assert any(line.split()[:3] == ["4", "out", "of"] for line in lines), lines


def test_the_table_has_a_row_a_value_and_two_operands_beside_each_other() -> None:
    record = swept({"a": RATES, "b": {at: 2 * rate for at, rate in RATES.items()}})
    text = compare_table(record)
    rows = [line.split() for line in text.splitlines() if line[:1] in "ab" and len(line.split()) > 5]
    assert [row[:2] for row in rows] == [[who, str(at)] for who in "ab" for at in RATES]
    assert "best" in rows[3]
    assert "0.97" in " ".join(rows[2])
    assert all("2.00" in " ".join(row) and row[-1] == "better" for row in rows[5:])
    assert not any("better" in row for row in rows[:5])
    assert "a and b are the same" not in text
    ratio = beside(record.metrics[0], point_label("b", "batch", 4))
    assert ratio is not None
    assert ratio.to == point_label("a", "batch", 4)
    assert beside(record.metrics[0], point_label("a", "batch", 4)) is None


def test_notes_that_may_change_a_decision_are_shown_over_something_too() -> None:
    record = swept({"a": RATES})
    doubt = "a batch=1 was still getting faster when its warm-up ended"
    consists = "a batch=1: weights 1 MiB"
    rate, peak = (replace(m, notes=(note,)) for m, note in zip(record.metrics, (doubt, consists), strict=True))
    none = Metric.named("params", {label: Value.none("no network") for label in record.operands})
    record = replace(record, metrics=(rate, peak, none))
    text = compare_table(record)
    assert doubt in text
    assert consists not in text
    assert "--explain says what the numbers consist of (1 note)" in text
    assert "params" not in text
    assert consists in compare_table(record, explain=True)


def test_counts_are_not_told_once_for_every_value() -> None:
    values = {point_label("a", "batch", at): Value.counted(7) for at in (1, 2)}
    assert not in_tables(Metric.named("params", values))
    assert in_tables(Metric.named("params", {"a": Value.counted(7)}))
    assert in_tables(swept({"a": RATES}).metrics[0])


def test_pictures_of_curves_are_in_the_report_and_in_files(tmp_path: Path) -> None:
    record = swept({"a": RATES, "b": {at: 2 * rate for at, rate in RATES.items()}})
    drawn = of_comparison(record, {})
    assert list(drawn) == ["inference-throughput", "inference-batch-time", "inference-memory"]
    title, figure = drawn["inference-throughput"] or ("", None)
    assert title.startswith("inference rate: a batch 4 reaches 97 %")
    assert figure is not None
    lines = figure.axes[0].get_lines()
    assert [list(line.get_xdata()) for line in lines[:2]] == [list(RATES)] * 2
    assert [list(line.get_xdata()) for line in lines[2:]] == [[4], [4]], "a ring around each knee"
    assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()] == ["1", "2", "4", "8", "16"]
    [section], skipped = open_results([save(record, tmp_path / "swept.json")])
    assert section.title == "Comparison of a and b over batch"
    assert [chart.title for chart in section.charts] == [made[0] for made in drawn.values() if made]
    assert "var(--ink)" in section.charts[0].svg
    assert skipped == []
    quick = of_comparison(Record(**{**vars(record), "settings": {**record.settings, "quick": True}}), {})
    assert all(made is not None and made[0].startswith("first estimate: ") for made in quick.values())
    files = write(record, {}, tmp_path / "pictures")
    assert [path.stem for path in files] == list(drawn)
    with Image.open(files[0]) as picture:
        assert picture.getpixel((0, 0)) == (255, 255, 255, 255), "a file has a background of its own"
